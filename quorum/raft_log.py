"""The log of one Raft member in memory, with what is known to be durable of it. Pure.

Owns: entries behind ``base_index`` (all up to there is in the state machine's durable state), the
configurations that are in force from an index on, and how far the log is stored.
Must never: cut what is committed (the caller passes the commit index, and cutting below it is a violation).
Invariants: indices without gaps, terms never fall; ``persisted <= last_index``; the newest configuration
in the log is in force, committed or not, and cutting the log brings back the one before.
"""

from __future__ import annotations

from moorage.quorum.raft_types import CONFIG, Config, Entry, Snapshot
from moorage.wire.errors import invariant, violated


class Log:
    def __init__(self, base: Snapshot, entries: list[Entry] | None = None) -> None:
        """``entries``: what was read from the disk, so it is durable."""
        self.base_index = base.index
        self.base_term = base.term
        self.configs: list[tuple[int, Config]] = [(base.index, base.config)]
        self.entries: list[Entry] = []
        self.size_bytes = 0
        for entry in entries or ():
            self._push(entry)
        self.persisted = self.last_index
        self._handed = self.last_index  # given to the shell to be stored

    # -- reading ----------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.base_term

    @property
    def config(self) -> Config:
        return self.configs[-1][1]

    @property
    def config_index(self) -> int:
        return self.configs[-1][0]

    def term(self, index: int) -> int | None:
        """The term of an entry, or None where this log does not know it."""
        if index == self.base_index:
            return self.base_term
        if self.base_index < index <= self.last_index:
            return self.entries[index - self.base_index - 1].term
        return None

    def entry(self, index: int) -> Entry:
        return self.entries[index - self.base_index - 1]

    def config_at(self, index: int) -> Config:
        """The configuration in force at an index at or behind the base."""
        for since, config in reversed(self.configs):
            if since <= index:
                return config
        violated("no configuration that old", index=index, base=self.base_index)

    def slice(self, start: int, end: int, size_max: int) -> list[Entry]:
        """Entries from ``start`` to ``end`` (included), as many as fit, at least one."""
        found: list[Entry] = []
        size = 0
        for entry in self.entries[start - self.base_index - 1 : end - self.base_index]:
            size += len(entry.data)
            if found and size > size_max:
                break
            found.append(entry)
        return found

    def up_to_date(self, last_term: int, last_index: int) -> bool:
        """Whether a candidate's log holds at least as much as this one (Raft section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def agree_below(self, index: int, term: int) -> int:
        """The greatest index <= ``index`` whose term is <= ``term``: where two logs may agree. One refusal
        then skips a whole run of wrong terms."""
        at = min(index, self.last_index)
        while at > self.base_index and self.entries[at - self.base_index - 1].term > term:
            at -= 1
        return at

    # -- writing ----------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """As a leader: never cuts."""
        self._push(entry)

    def merge(self, entries: tuple[Entry, ...], commit: int) -> None:
        """As a follower, behind an entry that matched: keep what is the same, cut where it is not."""
        for at, entry in enumerate(entries):
            known = self.term(entry.index)
            if known == entry.term:
                continue
            if known is not None:
                self._cut(entry.index, commit)
            for new in entries[at:]:
                self._push(new)
            return

    def _push(self, entry: Entry) -> None:
        if entry.index != self.last_index + 1 or entry.term < self.last_term:
            violated("entry does not follow the log", entry=entry[:2], last=(self.last_term, self.last_index))
        self.entries.append(entry)
        self.size_bytes += len(entry.data)
        if entry.kind == CONFIG:
            self.configs.append((entry.index, Config.decode(entry.data)))

    def _cut(self, index: int, commit: int) -> None:
        invariant(index > commit, "a committed entry would be cut", index=index, commit=commit)
        gone = self.entries[index - self.base_index - 1 :]
        self.size_bytes -= sum(len(entry.data) for entry in gone)
        del self.entries[index - self.base_index - 1 :]
        while self.configs[-1][0] >= index:
            self.configs.pop()
        self.persisted = min(self.persisted, index - 1)
        self._handed = min(self._handed, index - 1)

    def compact(self, index: int) -> None:
        """Forget entries up to ``index``, which the durable state of the state machine covers."""
        if index <= self.base_index:
            return
        invariant(index <= self.persisted, "compaction of what is not stored", index=index)
        term = self.term(index)
        if term is None:
            violated("compaction behind the log", index=index, last=self.last_index)
        config = self.config_at(index)
        gone = self.entries[: index - self.base_index]
        self.size_bytes -= sum(len(entry.data) for entry in gone)
        del self.entries[: index - self.base_index]
        self.base_index, self.base_term = index, term
        self.configs = [(index, config), *(each for each in self.configs if each[0] > index)]

    def restore(self, snapshot: Snapshot) -> None:
        """A snapshot replaces everything."""
        self.base_index, self.base_term = snapshot.index, snapshot.term
        self.configs = [(snapshot.index, snapshot.config)]
        self.entries.clear()
        self.size_bytes = 0
        self.persisted = self._handed = snapshot.index

    # -- storing ----------------------------------------------------------------------------------

    @property
    def has_unstored(self) -> bool:
        return self._handed < self.last_index

    def take_unstored(self) -> list[Entry]:
        entries = self.entries[self._handed - self.base_index :]
        self._handed = self.last_index
        return entries

    def stored(self, entry: Entry) -> None:
        """Everything up to this entry is durable, if it is still part of the log (same index and term: the
        same entry, and the same entries before it)."""
        if self.term(entry.index) == entry.term:
            self.persisted = max(self.persisted, entry.index)

    def validate(self) -> None:
        invariant(
            self.base_index <= self.persisted <= self.last_index, "stored part of the log", log=self.persisted
        )
        invariant(
            self.persisted <= self._handed <= self.last_index, "handed part of the log", log=self._handed
        )
        invariant(self.configs[0][0] == self.base_index, "base configuration", configs=self.configs[0])
        previous, expected = self.base_term, self.base_index
        for entry in self.entries:
            expected += 1
            if entry.index != expected or entry.term < previous:
                violated("log has a gap or a falling term", entry=entry[:2], previous=previous)
            previous = entry.term
        for (low, before), (high, after) in zip(self.configs, self.configs[1:], strict=False):
            # A member that joins does not know the configuration that the group began with.
            if low >= high or (before.voters and before.voters_changed(after) > 1):
                violated("configurations differ by more than one voter", low=low, high=high)
