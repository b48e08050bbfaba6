"""What a replica on a simulated store must be: its writer's log, what was acknowledged, what each block held.

Owns the truth of one replica, from outside of the store: the log of the present writer (of which others hold
a majority, so only what is not committed may change), every record that was ever given to it, and facts:
what was acknowledged, each with the group commit that was the last durable one then. Must never ask the
store.

When synced bytes have changed (rot, a write gone astray) the last group commit may be taken for a torn tail:
only what an earlier one made durable is sure then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Generic, TypeVar

from moorage.node.replica import ReplicaInfo
from moorage.quorum.history import History, epoch_at
from moorage.quorum.record import (
    BLOCK_SIZE,
    ZERO_POSITION,
    Kind,
    Position,
    Record,
    block_sums,
    pack_lsns,
)
from moorage.quorum.state import MemberState
from moorage.simulation.chunks import blocks_per_chunk

CHUNKS = 3
SNAPSHOTS = 4
RUNS = ((0, 6), (30, 6), (63, 2), (-2, 2))  # pages' edges, and the last blocks of a chunk

Key = tuple[int, int]  # chunk, block
Version = tuple[int, int]  # LSN of the record that wrote it last, number of its contents (0: a hole)

T = TypeVar("T")


def runs() -> list[tuple[int, int]]:
    """What is used of each chunk, as long as it is: first block and how many."""
    end = blocks_per_chunk()
    return [(first % end, min(count, end - first % end)) for first, count in RUNS if first < end]


def blocks() -> list[int]:
    return sorted({first + at for first, count in runs() for at in range(count)})


def keys() -> list[Key]:
    return _keys(tuple(blocks()))


@cache
def _keys(of_chunk: tuple[int, ...]) -> list[Key]:
    return [(chunk, block) for chunk in range(CHUNKS) for block in of_chunk]


def contents(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_SIZE // 8)


class Wrong(AssertionError):
    """The store is not what it has to be."""


class Fact(Generic[T]):
    """Something that was acknowledged, and may grow."""

    def __init__(self, nothing: T) -> None:
        self._nothing = nothing
        self._told: list[tuple[int, T]] = []  # (last durable group commit, what was told)

    def tell(self, group: int, value: T) -> None:
        if not self._told or self._told[-1][1] != value:
            self._told.append((group, value))

    def begin(self, value: T) -> None:
        """What was told before does not count any more."""
        self._nothing, self._told = value, []

    def limit(self, what: Callable[[T], T]) -> None:
        """Less counts from now on: what each one was is put through ``what``."""
        self._nothing = what(self._nothing)
        self._told = [(group, what(value)) for group, value in self._told]

    def sure(self, before: int | None) -> T:
        """The newest one, or (when bytes have changed) the newest that is older than a group commit."""
        told = [value for group, value in self._told if before is None or group < before]
        return told[-1] if told else self._nothing


@dataclass
class Model:
    """``epoch``: the newest that metadata has given out. ``log``: of its writer; LSN n at n - 1."""

    info: ReplicaInfo
    epoch: int = 0
    sealed_epoch: int = 0  # the newest that was asked of it
    log: list[Record] = field(default_factory=list)
    given: dict[Position, tuple[int, Record]] = field(default_factory=dict)  # epoch before it, record
    committed: int = 0
    told_commit: int = 0  # the greatest that it has heard of
    versions: dict[Key, list[Version]] = field(default_factory=dict)
    there: Fact[bool] = field(default_factory=lambda: Fact(False))
    gone: Fact[bool] = field(default_factory=lambda: Fact(False))
    leaving: bool = False  # it was ordered to be dropped
    promised: Fact[int] = field(default_factory=lambda: Fact(0))
    acked: Fact[int] = field(default_factory=lambda: Fact(0))
    vote: Fact[Position] = field(default_factory=lambda: Fact(ZERO_POSITION))
    whole: Fact[bool] = field(default_factory=lambda: Fact(True))
    suspect: bool = False  # it was found damaged, and is not whole again

    @property
    def identity(self) -> int:
        return self.info.replica

    @property
    def history(self) -> History:
        found: History = []
        for record in self.log:
            if not found or found[-1][0] != record.epoch:
                found.append((record.epoch, record.lsn))
        return found

    def position(self, lsn: int) -> Position:
        return Position(self.log[lsn - 1].epoch, lsn) if lsn else ZERO_POSITION

    # -- the writer -----------------------------------------------------------------------------------

    def new_epoch(self, rng: Random) -> None:
        """Another writer: it has chosen a log with all that is committed, and maybe some of the rest."""
        self.epoch += 1
        keep = rng.randint(self.committed, len(self.log))
        del self.log[keep:]
        end = self.position(keep)
        self.acked.limit(lambda lsn: min(lsn, keep))
        self.vote.limit(lambda vote: end if vote.lsn > keep else vote)
        self.write(Record(self.epoch, keep + 1, Kind.BARRIER))

    def write(self, record: Record) -> None:
        before = self.log[-1].epoch if self.log else 0
        self.log.append(record)
        self.given[record.position] = (before, record)

    def commit(self, lsn: int) -> None:
        for record in self.log[self.committed : lsn]:
            for key in keys_of(record):
                self.versions.setdefault(key, []).append((record.lsn, number_of(record, key)))
        self.committed = max(self.committed, lsn)

    def version(self, key: Key, lsn: int) -> Version:
        """What the committed log says of a block, up to an LSN."""
        versions = self.versions.get(key, [])
        at = bisect_right(versions, (lsn, 1 << 62))
        return versions[at - 1] if at else (0, 0)

    def snapshots(self, lsn: int) -> tuple[int, list[int]]:
        """Which ones there are, by the log up to an LSN, and the LSN of the record that says so."""
        for record in reversed(self.log[:lsn]):
            if record.kind == Kind.SNAPSHOTS:
                return record.lsn, record.snapshots
        return 0, []

    def shown(self, key: Key, lsn: int) -> list[Version]:
        """A block as it is at an LSN, and as each snapshot of then shows it; each once, the oldest first."""
        _, snapshots = self.snapshots(lsn)
        return sorted({self.version(key, at) for at in (*snapshots, lsn)} - {(0, 0)})

    def found_damaged(self) -> None:
        """It has lost something, and says so: nothing that it acknowledged is asked of it any more."""
        self.suspect = True
        self.acked.begin(0)
        self.vote.begin(ZERO_POSITION)
        self.whole.begin(False)

    def recovered(self, state: MemberState, group: int, before: int | None) -> None:
        """What a start has shown is durable from now on; what was not sure may be lost."""
        if before is not None:
            self.there.begin(self.there.sure(before))
            self.gone.begin(self.gone.sure(before))
            self.promised.begin(self.promised.sure(before))
            self.acked.begin(self.acked.sure(before))
            self.vote.begin(self.vote.sure(before))
            self.whole.begin(self.whole.sure(before))
        self.promised.tell(group, max(state.epoch, self.promised.sure(None)))

    # -- what a start found ------------------------------------------------------------------------------

    def check_log(self, state: MemberState) -> None:
        """Each record in it was given to it, behind the one that is before it there."""
        base = max(state.base, state.commit)
        for lsn in range(base + 1, state.last + 1):
            epoch, before = epoch_at(state.history, lsn), epoch_at(state.history, lsn - 1)
            known = self.given.get(Position(epoch, lsn))
            if known is None:
                raise Wrong(f"{self.identity}: a record ({epoch}, {lsn}) that nobody wrote")
            if lsn - 1 > base and known[0] != before:
                raise Wrong(f"{self.identity}: ({epoch}, {lsn}) behind epoch {before}, not {known[0]}")

    def check_state(self, state: MemberState, before: int | None) -> None:
        """Nothing that was acknowledged is missing, and nothing is believed that was never said."""
        who, promised = self.identity, self.promised.sure(before)
        if not promised <= state.epoch <= self.sealed_epoch:
            raise Wrong(f"{who}: promised {promised} of {self.sealed_epoch}, remembers {state.epoch}")
        if state.commit > self.told_commit:
            raise Wrong(f"{who}: commit {state.commit}, and was told of {self.told_commit} only")
        acked = self.acked.sure(before)
        if state.vote < self.vote.sure(before):
            raise Wrong(
                f"{who}: would answer a SEAL with {state.vote}, acknowledged {self.vote.sure(before)}"
            )
        if state.last < acked:
            raise Wrong(f"{who}: acknowledged up to {acked}, has {state.last}")
        for lsn in range(max(state.commit, state.base) + 1, min(acked, state.last) + 1):
            if epoch_at(state.history, lsn) != self.log[lsn - 1].epoch:
                raise Wrong(f"{who}: acknowledged record {lsn} was replaced by one from before")
        if self.whole.sure(before) and state.copy is not None:
            raise Wrong(f"{who}: it was whole, and is a copy under way")
        self.check_log(state)


def keys_of(record: Record) -> list[Key]:
    if record.kind == Kind.ZERO_CHUNKS:
        return [key for key in keys() if record.chunk <= key[0] < record.chunk + record.count]
    if record.kind in (Kind.BARRIER, Kind.SNAPSHOTS):
        return []
    return [(record.chunk, record.block + at) for at in range(record.count)]


def number_of(record: Record, key: Key) -> int:
    """Of the contents that a record gave to a block."""
    if record.kind != Kind.WRITE:
        return 0
    at = (key[1] - record.block) * BLOCK_SIZE
    return int.from_bytes(bytes(record.data[at : at + 8]), "little")


class Writing:
    """Makes records: contents are numbered, so that each write can be told from all others."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._number = 0
        self._weights = [20, rng.choice((1, 4)), rng.choice((0, 1, 4)), rng.choice((0, 1, 4))]

    def record(self, model: Model) -> Record:
        rng, epoch, lsn = self._rng, model.epoch, len(model.log) + 1
        kind = rng.choices((Kind.WRITE, Kind.ZERO, Kind.ZERO_CHUNKS, Kind.SNAPSHOTS), self._weights)[0]
        if kind is Kind.SNAPSHOTS:
            _, lsns = model.snapshots(lsn)
            kept = [each for each in lsns if rng.random() < 0.7]
            if len(kept) < SNAPSHOTS and (kept == lsns or rng.random() < 0.5):
                kept.append(lsn)
            return Record(epoch, lsn, kind, 0, 0, len(kept), pack_lsns(kept))
        chunk = rng.randrange(CHUNKS)
        if kind is Kind.ZERO_CHUNKS:
            return Record(epoch, lsn, kind, chunk, 0, rng.randint(1, CHUNKS - chunk))
        used = blocks()
        block, count = rng.choice(used), 1
        longest = rng.choice((1, 1, 2, 4))
        while count < longest and block + count in used:
            count += 1
        if kind is Kind.ZERO:
            return Record(epoch, lsn, kind, chunk, block, count)
        first = self._number + 1
        self._number += count
        data = b"".join(contents(number) for number in range(first, first + count))
        return Record(epoch, lsn, kind, chunk, block, count, block_sums(data), data)
