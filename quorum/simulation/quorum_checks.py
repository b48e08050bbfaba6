"""What an observer who sees everything checks in a simulated quorum log, from outside, at every step.

Owns: the committed log as the first writer to commit each LSN knew it, the identity of every record ever
written, what every member acknowledged, and the history of the application's operations.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

from moorage.quorum.history import UNKNOWN, History, epoch_at
from moorage.quorum.record import Position, Record
from moorage.quorum.simulation.quorum_store import BLOCKS, CHUNKS, blocks_of, identity, operation_of
from moorage.wire.errors import invariant

NEVER = 1 << 60  # when an operation without an outcome ends
NOTHING = 0  # value of a block that was never written


@dataclass(slots=True)
class Operation:
    """One operation of the application. ``value``: of a write, its own id."""

    number: int
    kind: str  # "write" (any record that changes blocks) or "read"
    blocks: tuple[int, ...]
    began: int
    ended: int = NEVER
    value: int = NOTHING
    generation: int = 0


@dataclass(slots=True)
class Cluster:
    """All operations of one block that have the same value: a write and the reads that saw it."""

    write: Operation | None
    reads: list[Operation] = field(default_factory=list)


def check_register(block: int, operations: list[Operation], initial: int) -> None:
    """Linearizability of one block, whose writes all have different values (Gibbons and Korach, "Testing
    shared memories", 1997): the zones of the values must not overlap. Raises InvariantViolation."""
    clusters: dict[int, Cluster] = {initial: Cluster(None)}
    for op in operations:
        if op.kind == "write":
            clusters[op.value] = Cluster(op)
    for op in operations:
        if op.kind == "read" and op.ended != NEVER:
            invariant(op.value in clusters, "a read saw what nobody wrote", block=block, value=op.value)
            clusters[op.value].reads.append(op)
    forward: list[tuple[int, int, int]] = []
    backward: list[tuple[int, int, int]] = []
    for value, cluster in clusters.items():
        zone = _zone(block, value, cluster)
        if zone is not None:
            (forward if zone[0] < zone[1] else backward).append((*zone, value))
    _check_zones(block, sorted(forward), backward)


def _zone(block: int, value: int, cluster: Cluster) -> tuple[int, int] | None:
    """(first end, last begin) of a value's operations; a write without an outcome that nobody saw may not
    have happened."""
    write = cluster.write
    if write is not None and write.ended == NEVER and not cluster.reads:
        return None
    ends = [op.ended for op in cluster.reads] + [write.ended if write is not None else -1]
    begins = [op.began for op in cluster.reads] + [write.began if write is not None else -1]
    if write is not None:
        invariant(min(ends) > write.began, "a read saw the future", block=block, value=value)
    return min(ends), max(begins)


def _check_zones(
    block: int, forward: list[tuple[int, int, int]], backward: list[tuple[int, int, int]]
) -> None:
    for one, two in pairwise(forward):
        invariant(one[1] < two[0], "no sequential order: two values in turn", block=block, one=one, two=two)
    for end, begin, value in backward:
        for first, last, other in forward:
            inside = first < begin and end < last
            invariant(
                not inside, "no sequential order: a write was undone", block=block, value=value, by=other
            )


class Observer:
    """See the module. ``clock`` orders the beginnings and ends of operations."""

    def __init__(self, sync: bool) -> None:
        self.sync = sync
        self.clock = 0
        self.committed: dict[int, tuple[int, tuple[int, int, int, int, int]]] = {}  # LSN: epoch, identity
        self.versions: dict[int, list[tuple[int, int]]] = {b: [] for b in range(BLOCKS * CHUNKS)}
        self.counted_by: dict[int, int] = {}  # LSN: epoch of the writer that counted it first
        self.last_committed = 0
        self.flushed = 0  # LSN up to which some writer said "durable at a majority"
        self.adopted: dict[int, tuple[int, History]] = {}  # epoch: its barrier, and the log below
        self.astray: set[Position] = set()  # writeback: acknowledged, never flushed, lost
        self.applied_to: dict[int, int] = {}  # replica: greatest LSN in its index
        self.tainted: dict[int, tuple[int, int]] = {}  # replica: (first lost LSN in its index, since epoch)
        self.known: dict[Position, tuple[tuple[int, int, int, int, int], int]] = {}
        self.acknowledged: dict[
            int, tuple[Position, int]
        ] = {}  # replica: durable position vouched for, to whom
        self.promised: dict[int, int] = {}  # replica: greatest epoch that it answered a SEAL of
        self.operations: dict[int, Operation] = {}
        self.generation = 0
        self.initial: dict[int, int] = {}
        self.losses = 0

    # -- logs ----------------------------------------------------------------------------------------

    def wrote(self, replica: int, record: Record, before: int) -> None:
        """A member accepted a record behind one of epoch ``before``. *Prefix*: by induction two members that
        have the same position have the same log, if what is at a position and before it never varies."""
        found = (identity(record), before)
        known = self.known.setdefault(record.position, found)
        invariant(known == found, "Prefix", replica=replica, record=record, known=known, found=found)

    def applied(self, replica: int, record: Record) -> None:
        """A member put a record into its index: it must be what was committed at that LSN."""
        committed = self.committed.get(record.lsn)
        found = (record.epoch, identity(record))
        self.applied_to[replica] = record.lsn
        if committed != found and record.position in self.astray:
            self.tainted.setdefault(replica, (record.lsn, max(self.adopted)))
            return
        invariant(committed == found, "applied is no prefix of committed", replica=replica, record=record)

    def restarted(self, replica: int, newest: int) -> None:
        """A member came back with an index up to ``newest``, or began one from nothing (0)."""
        self.applied_to[replica] = newest
        if replica in self.tainted and newest < self.tainted[replica][0]:
            del self.tainted[replica]

    def commits(self, epoch: int, record: Record) -> bool:
        """A writer counts a record as committed (in the order of LSNs, repeats included). False: it is one
        that no later log contains, which only an unflushed one in writeback may be."""
        for other, (barrier, history) in self.adopted.items():
            if other > epoch and (record.lsn >= barrier or epoch_at(history, record.lsn) != record.epoch):
                invariant(
                    not self.sync, "Fencing: committed past a seal", record=record, epoch=epoch, by=other
                )
                self.astray.add(record.position)
                return False
        found = (record.epoch, identity(record))
        known = self.committed.get(record.lsn)
        invariant(known is None or known == found, "Durability: replaced", record=record, known=known)
        if known is not None:
            return True
        invariant(record.lsn == self.last_committed + 1, "a gap in the committed log", record=record)
        self.committed[record.lsn] = found
        self.counted_by[record.lsn] = epoch
        self.last_committed = record.lsn
        for block in blocks_of(record):
            self.versions[block].append((record.lsn, operation_of(record)))
        return True

    def adopts(self, epoch: int, barrier: int, history: History) -> int:
        """A writer has chosen its log: *Durability*. Returns how many acknowledged records are not in it
        (writeback: only such as were never flushed)."""
        self.adopted[epoch] = (barrier, [entry for entry in history if entry[1] < barrier])
        lost_from = 0
        for lsn in range(1, self.last_committed + 1):
            if self.counted_by[lsn] > epoch:
                break  # a writer that is superseded already; it will not get far
            if lsn >= barrier or epoch_at(history, lsn) not in (self.committed[lsn][0], UNKNOWN):
                lost_from = lsn
                break
        if not lost_from:
            return 0
        lost = range(lost_from, self.last_committed + 1)
        invariant(not self.sync, "Durability: acknowledged records are lost", epoch=epoch, lost=lost)
        invariant(lost_from > self.flushed, "Durability: flushed records are lost", epoch=epoch, lost=lost)
        self._lose(lost_from, epoch)
        return len(lost)

    def _lose(self, lost_from: int, epoch: int) -> None:
        """Unflushed writes of a dead writer are gone: its history ends here, a new one begins."""
        self.check_linearizable()
        self.losses += 1
        for lsn in range(lost_from, self.last_committed + 1):
            self.astray.add(Position(self.committed.pop(lsn)[0], lsn))
        for replica, applied in self.applied_to.items():
            if applied >= lost_from:
                self.tainted.setdefault(replica, (lost_from, epoch))
        self.last_committed = lost_from - 1
        for block, versions in self.versions.items():
            while versions and versions[-1][0] >= lost_from:
                versions.pop()
            self.initial[block] = versions[-1][1] if versions else NOTHING
        self.generation += 1
        # a write without an outcome may still be in the log that goes on, or be issued again
        pending = {n: op for n, op in self.operations.items() if op.kind == "write" and op.ended == NEVER}
        for op in pending.values():
            op.generation = self.generation
        self.operations = pending

    def value_at(self, block: int, lsn: int) -> int:
        """What the committed log says is in a block at an LSN."""
        versions = self.versions[block]
        at = bisect_right(versions, (lsn, NEVER))
        return versions[at - 1][1] if at else NOTHING

    def shows(self, replica: int, epoch: int, block: int, lsn: int, value: int) -> None:
        """A whole member shows a value at its applied LSN to a reader of this epoch."""
        if replica in self.tainted:
            since = self.tainted[replica][1]
            invariant(epoch < since, "No resurrection: a lost record is shown", replica=replica, since=since)
        elif lsn <= self.last_committed:
            right = self.value_at(block, lsn)
            ids = {"replica": replica, "block": block, "lsn": lsn, "value": value, "right": right}
            invariant(value == right, "the index is not the log", **ids)

    # -- members -------------------------------------------------------------------------------------

    def acks(self, replica: int, position: Position, epoch: int) -> None:
        """A whole member told the writer of ``epoch`` that it has everything up to here on stable storage."""
        known = self.acknowledged.get(replica)
        if known is None or position >= known[0]:
            self.acknowledged[replica] = (position, epoch)

    def cuts(self, replica: int, lsn: int, epoch: int) -> None:
        """A record of a later writer takes the place of the one at ``lsn``: that was committed by nobody.
        Until the rest of that writer's log is here, the last position may be lower than before, as in
        Raft."""
        known = self.acknowledged.get(replica)
        if known is not None and lsn <= known[0].lsn:
            invariant(epoch > known[1], "a writer cuts what it was acknowledged", replica=replica, lsn=lsn)
            del self.acknowledged[replica]

    def promises(self, replica: int, epoch: int) -> None:
        """It has answered a SEAL of this epoch."""
        self.promised[replica] = max(self.promised.get(replica, 0), epoch)

    def remembers(self, replica: int, epoch: int) -> None:
        """It has restarted, and knows of this promise."""
        known = self.promised.get(replica, 0)
        invariant(
            epoch >= known, "Fencing: a promise is forgotten", replica=replica, epoch=epoch, known=known
        )

    def votes(self, replica: int, vote: Position) -> None:
        """A SEAL is answered: never below what was acknowledged as durable."""
        known = self.acknowledged.get(replica, (Position(0, 0), 0))[0]
        invariant(vote >= known, "a seal is answered below an acknowledgement", replica=replica, vote=vote)

    # -- operations ------------------------------------------------------------------------------------

    def begin(self, number: int, kind: str, blocks: tuple[int, ...]) -> Operation:
        self.clock += 1
        value = number if kind == "write" else NOTHING
        op = Operation(number, kind, blocks, self.clock, value=value, generation=self.generation)
        self.operations[number] = op
        return op

    def end(self, op: Operation) -> None:
        if op.generation == self.generation and op.ended == NEVER:
            self.clock += 1
            op.ended = self.clock

    def drop(self, op: Operation) -> None:
        """It was refused before anything was sent: it must never be seen."""
        self.operations.pop(op.number, None)

    def check_linearizable(self) -> None:
        by_block: dict[int, list[Operation]] = {block: [] for block in self.versions}
        for op in self.operations.values():
            for block in op.blocks:
                by_block[block].append(op)
        for block, operations in by_block.items():
            check_register(block, operations, self.initial.get(block, NOTHING))
