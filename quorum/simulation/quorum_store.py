"""The store of one replica in simulation: a journal on a simulated disk, and the index that it adds up to.

Blocks are small integers; the value of a block is the id of the operation that wrote (or discarded) it, with
the LSN. Discarded blocks stay as tombstones. Follows the rules of ``quorum.state`` for replay.
"""

from __future__ import annotations

from typing import Any

from moorage.quorum.record import Kind, Record
from moorage.quorum.simulation.kernel import Journal, Kernel
from moorage.quorum.state import MemberState

BLOCKS = 4  # blocks of a chunk, as the workload uses them
CHUNKS = 3
RECENT = 24  # applied records kept to hand out a tail

Cell = tuple[int, int]  # (LSN, id of the operation)
Index = dict[int, Cell]


def blocks_of(record: Record) -> range:
    """Numbers of the blocks that a record writes."""
    if record.kind == Kind.ZERO_CHUNKS:
        return range(record.chunk * BLOCKS, (record.chunk + record.count) * BLOCKS)
    first = record.chunk * BLOCKS + record.block
    return range(first, first + record.count)


def operation_of(record: Record) -> int:
    """Id of the operation that a record carries (in place of data); 0 for a barrier."""
    return int.from_bytes(bytes(record.data) or bytes(record.sums), "little")


def identity(record: Record) -> tuple[int, int, int, int, int]:
    return record.kind, record.chunk, record.block, record.count, operation_of(record)


class SimStore:
    """See the module. ``pending``: records that are not applied; ``recent``: applied ones still at hand."""

    def __init__(self, kernel: Kernel, owner: str, replica: int, latency_us: tuple[int, int]) -> None:
        self.journal = Journal(kernel, owner, latency_us)
        self.journal.replace([("checkpoint", MemberState(replica).pack(), {}, [])])
        self.index: Index = {}
        self.pending: dict[int, Record] = {}
        self.recent: dict[int, Record] = {}
        self.syncs = 0

    def append(self, records: list[Record]) -> None:
        self.journal.append(("records", list(records)))
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        if record.lsn in self.pending:
            for lsn in [lsn for lsn in self.pending if lsn >= record.lsn]:
                del self.pending[lsn]
        self.pending[record.lsn] = record

    def note(self, packed: bytes, former: MemberState) -> None:
        self.journal.append(("note", packed))
        self._take_note(MemberState.unpack(packed), former)

    def _take_note(self, state: MemberState, former: MemberState) -> None:
        if state.drops_index(former):
            self.index = {}
        base = state.base
        self.pending = {lsn: r for lsn, r in self.pending.items() if base < lsn <= state.last}
        if base:
            self.recent = {lsn: r for lsn, r in self.recent.items() if lsn > base}

    def blocks(self, cells: list[tuple[int, Cell]]) -> None:
        """Copied blocks: greater LSN wins."""
        self.journal.append(("blocks", cells))
        self._merge(cells)

    def _merge(self, cells: list[tuple[int, Cell]]) -> None:
        for block, cell in cells:
            if cell[0] > self.index.get(block, (0, 0))[0]:
                self.index[block] = cell

    def apply(self, lsn: int) -> list[Record]:
        """Move pending records up to ``lsn`` into the index, in order."""
        applied = []
        for at in sorted(lsn_ for lsn_ in self.pending if lsn_ <= lsn):
            record = self.pending.pop(at)
            self._merge([(block, (at, operation_of(record))) for block in blocks_of(record)])
            self.recent[at] = record
            applied.append(record)
        for at in sorted(self.recent)[:-RECENT]:
            del self.recent[at]
        return applied

    def tail_from(self) -> int:
        """The lowest LSN from which on every record is at hand."""
        known = self.recent.keys() | self.pending.keys()
        if not known:
            return 1 << 62
        lsn = max(known)
        while lsn - 1 in known:
            lsn -= 1
        return lsn

    def record_at(self, lsn: int) -> Record | None:
        return self.pending.get(lsn) or self.recent.get(lsn)

    def used(self) -> int:
        """Blocks with data, applied or pending."""
        pending = sum(record.count for record in self.pending.values() if record.kind == Kind.WRITE)
        return sum(1 for _, operation in self.index.values() if operation > 0) + pending

    def checkpoint(self, state: MemberState) -> None:
        """Put the state of now in place of the journal; only when everything is synced."""
        pending = [self.pending[lsn] for lsn in sorted(self.pending)]
        self.journal.replace([("checkpoint", state.pack(), dict(self.index), pending)])

    def replay(self) -> MemberState:
        """What a restart finds."""
        state = MemberState(0)
        self.index, self.pending, self.recent = {}, {}, {}
        self.syncs = 0
        for item in self.journal.items:
            state = self._replay_one(state, item)
        return state

    def _replay_one(self, state: MemberState, item: tuple[Any, ...]) -> MemberState:
        if item[0] == "checkpoint":
            state = MemberState.unpack(item[1])
            self.index = dict(item[2])
            self.pending = {record.lsn: record for record in item[3]}
        elif item[0] == "records":
            for record in item[1]:
                if record.lsn > state.commit:
                    state.replay_record(record)
                    self._take(record)
        elif item[0] == "blocks":
            self._merge(item[1])
        else:
            noted = MemberState.unpack(item[1])
            if noted.copy is not None:
                self.apply(min(noted.copy.above, state.last))  # what a copy builds on was applied
            self._take_note(noted, state)
            state = noted
            self.apply(state.commit)
        return state
