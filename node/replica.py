"""What is durable of one replica: its member's state, its pending and recent records, its table of blocks.

Owns the fold: what each entry of the log does, in log order, after it is durable; live operation and replay
run the same code. Must never run ahead of the log: a checkpoint is made of this, and may refer to synced
bytes only. Invariants (``validate``): ``tail`` holds every LSN from ``tail_from`` to
``state.last``; nothing above ``state.commit`` is in the table; ``tail_from <= state.commit + 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moorage.node.index import Index, Table
from moorage.node.segment import Entry
from moorage.quorum.record import Kind, Record
from moorage.quorum.state import MemberState
from moorage.wire.errors import Corrupt, invariant

OBJECTS = "objects"  # in place of a durability: of a bucket, whose blocks have no log
DURABILITIES = ("sync", "writeback", OBJECTS)
TAIL_KEPT = 1024  # applied records kept for members that are a little behind; older ones they copy


@dataclass(frozen=True)
class ReplicaInfo:
    """What metadata ordered; never changes."""

    replica: int
    volume: int
    group: int
    durability: str
    members: int

    def pack(self) -> list[Any]:
        return [self.replica, self.volume, self.group, self.durability, self.members]

    @classmethod
    def unpack(cls, identity: int, packed: Any) -> ReplicaInfo:
        """Raises ValueError or TypeError for what is not a list of :meth:`pack`, or of another replica."""
        replica, volume, group, durability, members = packed
        if replica != identity or durability not in DURABILITIES:
            raise ValueError(f"no description of replica {identity}")
        if not all(type(each) is int and each >= 0 for each in (replica, volume, group, members)):
            raise ValueError("a number expected")
        return cls(replica, volume, group, durability, members)


class Replica:
    __slots__ = (
        "apply_target",
        "barriers",
        "damages",
        "found",
        "handle",
        "info",
        "last_entry",
        "last_queued",
        "noted",
        "on_persisted",
        "open_entry",
        "state",
        "table",
        "tail",
        "tail_from",
    )

    def __init__(self, info: ReplicaInfo, table: Table, state: MemberState) -> None:
        self.info = info
        self.table = table
        self.handle = table.handle  # the table's once all that is queued is durable
        self.state = state
        self.tail: dict[int, tuple[Record, int]] = {}  # LSN -> record without its data, location of the data
        self.tail_from = state.last + 1
        # of entries that are not durable yet
        self.open_entry: Entry | None = None  # the last one queued, when more records may join it
        self.last_entry: Entry | None = None  # the last one queued or in flight
        self.last_queued = state.last  # LSN of the last record handed over
        self.apply_target = state.commit  # LSN to apply up to once all that is queued is durable
        self.noted = state  # the last note handed over
        self.barriers = 0  # entries under way that replace records or the state
        self.found = ""  # damage found in this life: only a fresh table ends it
        self.damages = 0  # how often some was found in this life
        self.on_persisted: Callable[[int], None] = _nobody  # told the ticket, once per group commit

    def settle(self) -> None:
        """All that is known is durable: the end of a replay."""
        self.handle = self.table.handle
        self.last_queued, self.apply_target = self.state.last, self.state.commit
        self.noted = self.state

    @property
    def damaged(self) -> str:
        return self.state.damaged

    def damage(self, what: str) -> None:
        """It lost acknowledged data: it counts towards no majority from now on."""
        self.damages += 1
        self.found = self.found or what
        self.state.damaged = self.state.damaged or what

    # -- the fold -------------------------------------------------------------------------------

    def fold_records(self, records: list[Record], location: int) -> None:
        """Records that became durable; the data of the first is at ``location``, the others' follow."""
        for record in records:
            lsn = record.lsn
            if lsn > self.state.commit:
                self._drop_above(lsn - 1)
                self.state.replay_record(record)
                self.tail[lsn] = (_without_data(record), location)
            if record.kind == Kind.WRITE:
                location += record.count << 12

    def _drop_above(self, lsn: int) -> None:
        for each in range(lsn + 1, self.state.last + 1):
            self.tail.pop(each, None)

    def fold_note(self, index: Index, packed: bytes) -> None:
        """The member's whole state: pending records outside of ``base < lsn <= last`` are forgotten, the rest
        up to its commit LSN is applied."""
        former, state = self.state, MemberState.unpack(packed)
        begins = state.copy is not None and (former.copy is None or former.copy.base != state.copy.base)
        applied = state.base if begins else former.commit
        if begins:
            # The copy brings what is above ``above``: up to there the index must be complete. Live, that was
            # applied when it became durable; a replay learns only here that those records are committed.
            self.apply(index, state.copy.above if state.copy is not None else 0)
            self.tail, self.tail_from = {}, applied + 1
        for lsn in range(state.last + 1, former.last + 1):
            self.tail.pop(lsn, None)
        self.state = state
        state.damaged = state.damaged or self.found
        commit, state.commit = state.commit, min(applied, state.commit)
        if (
            set(self.tail) != set(range(self.tail_from, state.last + 1))
            or self.tail_from > state.commit + 1  # an earlier note was without its records
        ):
            self.tail, self.tail_from, lost = {}, state.last + 1, self.tail_from
            state.commit = state.last  # nothing is left to apply: it is damaged, and is copied anew
            raise Corrupt(f"replica {state.replica}: pending records {lost}..{state.last} are gone")
        self.apply(index, commit)

    def note_copy(self, before: int) -> None:
        """A note was folded. While it is copied anew from another base than ``before`` (0: it was not
        copied), which snapshots there are is not known until its source says so."""
        base = self.state.base
        if not base:
            self.table.learn_of_snapshots()
        elif base != before:
            self.table.keep_to = base

    def apply(self, index: Index, lsn: int) -> bool:
        """Put durable records up to ``lsn`` into the table; whether there was any."""
        state, tail = self.state, self.tail
        first, last = state.commit + 1, min(lsn, state.last)
        if first > last:
            return False
        for each in range(first, last + 1):
            record, location = tail[each]
            self._apply_one(index, record, location)
            state.commit = each
        if last - self.tail_from > TAIL_KEPT + 64:
            self.trim(last - TAIL_KEPT)
        return True

    def _apply_one(self, index: Index, record: Record, location: int) -> None:
        kind = record.kind
        if kind == Kind.WRITE:
            index.put(self.table, record.chunk, record.block, location, record.sums, record.lsn)
        elif kind == Kind.ZERO:
            index.zero(self.table, record.chunk, record.block, record.count, record.lsn)
        elif kind == Kind.ZERO_CHUNKS:
            index.zero_chunks(self.table, record.chunk, record.count, record.lsn)
        elif kind == Kind.SNAPSHOTS:
            index.set_snapshots(self.table, record.snapshots, record.lsn)

    def trim(self, tail_from: int) -> None:
        """Forget applied records below ``tail_from``."""
        for lsn in range(self.tail_from, min(tail_from, self.state.commit + 1)):
            del self.tail[lsn]
            self.tail_from = lsn + 1

    def pending(self) -> list[tuple[Record, int]]:
        return [self.tail[lsn] for lsn in range(self.state.commit + 1, self.state.last + 1)]

    def validate(self) -> None:
        self.state.validate()
        expected = set(range(self.tail_from, self.state.last + 1))
        invariant(set(self.tail) == expected, "tail has gaps", replica=self.info.replica)
        invariant(self.tail_from <= self.state.commit + 1, "pending records are missing", at=self.tail_from)


def _without_data(record: Record) -> Record:
    """A copy: others share the record, and its buffer is not to live as long as the tail."""
    if not record.data:
        return record
    return Record(
        record.epoch, record.lsn, record.kind, record.chunk, record.block, record.count, record.sums
    )


def _nobody(ticket: int) -> None:
    pass
