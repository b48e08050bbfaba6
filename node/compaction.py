"""Compaction: what lives in the emptiest segments is written again at the end of the log: they become free.

Owns the choice of segments and the copying. Must never free a segment itself: the next checkpoint does, when
nothing refers to it (checkpointer.py), so a copy that failed or came too late costs time, not data. Copies go
through the log like everything else; a moved block keeps its LSN, and the greater LSN still wins.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from moorage.node.fold import Fold
from moorage.node.index import Index
from moorage.node.lane import Lane
from moorage.node.log import Log, Segment
from moorage.node.metrics import StoreMetrics
from moorage.node.reader import Extent, Reader
from moorage.node.replica import Replica
from moorage.node.segment import (
    ENTRY,
    ENTRY_SIZE,
    FIRST_FRAME,
    FRAME_HEADER_SIZE,
    OFFSET_BITS,
    Entry,
    EntryHead,
    EntryKind,
    Run,
    RunKind,
    body_verified,
    frame_verified,
    pack_head,
    parse_frame_header,
    unpack_heads,
    unpack_runs,
)
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, first_bad_block
from moorage.wire.errors import Corrupt, MoorageError

log = logging.getLogger(__name__)

HALF_PER_MILLE = 500  # each one that is moved then frees as much as it costs, at least
FULL_PER_MILLE = 900  # more alive than that is not worth the work: pieces waste about 5 % of the next one
PIECE_BYTES = 256 << 10  # so much is moved in one entry: large enough for direct I/O, and it fits in anywhere

# where a run of blocks was written: replica id, chunk, first block, count, location; the index has the rest
Candidate = tuple[int, int, int, int, int]


class Compactor:
    def __init__(
        self,
        fold: Fold,
        index: Index,
        log_: Log,
        reader: Reader,
        lane: Lane,
        metrics: StoreMetrics,
        piece: Callable[[], int],
        admitted: Callable[[int], Awaitable[None]],
    ) -> None:
        self._fold = fold
        self._index = index
        self._log = log_
        self._reader = reader
        self._lane = lane
        self._metrics = metrics
        self._piece = piece  # bytes to move at once, about
        self._admitted = admitted  # waits until so many bytes may have been moved
        self.alive_per_mille = 0  # of the segment that is being compacted, or was last
        self._compacted: set[int] = set()
        # (at most 1/16 of a segment: there are small ones in tests)
        self._piece_blocks = min(PIECE_BYTES, log_.segment_size // 16) // BLOCK_SIZE

    def choose(self, before: int, per_mille: int = FULL_PER_MILLE) -> Segment | None:
        """The emptiest segment older than ``before``, if no more of it is alive. None is a second time: it
        waits for a checkpoint, or what is left in it cannot be moved, and others must be."""
        segments, live, pending = self._log.segments, self._index.live, self._pending_costs()
        self._compacted &= segments.keys()
        limit = self._log.segment_size * per_mille // 1000
        worth = [
            (cost, number)
            for number in segments
            if number < before
            and number not in self._compacted
            and (cost := live.get(number, 0) + pending[number]) <= limit
        ]
        return segments[min(worth)[1]] if worth else None

    def _pending_costs(self) -> Counter[int]:
        """By segment. A large record is moved whole, and may waste as much again at a segment's end."""
        costs: Counter[int] = Counter()
        for replica in self._fold.replicas.values():
            for record, location in replica.pending():
                if record.kind == Kind.WRITE:
                    whole = record.count > self._piece_blocks
                    costs[location >> OFFSET_BITS] += record.count * BLOCK_SIZE * (2 if whole else 1)
        return costs

    async def compact(self, segment: Segment) -> int:
        """Move what lives in ``segment``, so that the next checkpoint frees it: how many bytes."""
        self._compacted.add(segment.number)
        alive = self._index.live.get(segment.number, 0) * 1000 // self._log.segment_size
        self.alive_per_mille = min(alive, FULL_PER_MILLE)
        segment.readers += 1
        try:
            # Pending records first: one that is applied meanwhile is in the index when its turn comes.
            moved = await self._move_pending(segment)
            moved += await self._move_blocks(segment)
        finally:
            segment.readers -= 1
        self._metrics.compacted_segments += 1
        self._metrics.compacted_bytes += moved
        left = self._index.live.get(segment.number, 0)
        if left > 0:
            log.warning("segment %d keeps %d bytes after compaction", segment.number, left)
        return moved

    # -- blocks in tables -------------------------------------------------------------------------------

    async def _move_blocks(self, segment: Segment) -> int:
        if self._index.live.get(segment.number, 0) <= 0:
            return 0
        moved = 0
        batch: list[tuple[Replica, Run, Extent]] = []
        for each in await self._lane.run(lambda: list_blocks(segment, self._log.seed)):
            for part in self._parts(each):
                batch += self._alive(part, segment)
                if sum(extent.size for _, _, extent in batch) >= max(self._piece(), PIECE_BYTES):
                    moved += await self._move(batch)
                    batch = []
        return moved + await self._move(batch)

    def _parts(self, candidate: Candidate) -> Iterator[Candidate]:
        """A run that is long, as several: they need not be moved at once."""
        identity, chunk, block, count, location = candidate
        for at in range(0, count, self._piece_blocks):
            part = min(count - at, self._piece_blocks)
            yield identity, chunk, block + at, part, location + at * BLOCK_SIZE

    def _alive(self, candidate: Candidate, segment: Segment) -> list[tuple[Replica, Run, Extent]]:
        """The parts of a written run, no longer than a piece, that the index still refers to."""
        identity, chunk, block, count, location = candidate
        replica = self._fold.replicas.get(identity)
        if replica is None:
            return []
        try:
            cells = self._index.located(replica.table, chunk, block, count, location)
        except Corrupt as error:
            self._fold.damage(replica, str(error))
            return []
        found = []
        at = 0
        while at < count:
            start = at
            alive = []
            while at < count and (cell := cells[at]) is not None:
                alive.append(cell)
                at += 1
            if alive:
                lsns, sums = zip(*alive, strict=True)
                run = Run(RunKind.DATA, chunk, block + start, lsns, sums)
                extent = self._reader.extent(location + start * BLOCK_SIZE, 0, (at - start) * BLOCK_SIZE)
                assert extent is not None and extent.segment is segment
                found.append((replica, run, extent))
            else:
                at += 1
        return found

    async def _move(self, batch: list[tuple[Replica, Run, Extent]]) -> int:
        """Write live blocks again, and wait until they are in their new place."""
        handles = [replica.table.handle for replica, _, _ in batch]  # a copy may begin a new table meanwhile
        data, places = await self._fetch([extent for _, _, extent in batch])
        waits = []
        moved = 0
        for (replica, run, extent), handle, at in zip(batch, handles, places, strict=True):
            view = memoryview(data)[at : at + extent.size]
            bad = first_bad_block(struct.pack(f"<{len(run.sums)}Q", *run.sums), view)
            if bad >= 0:
                # It stays where it is, and its segment with it, until a read or a rewrite of it repairs it.
                self._corrupt(replica, f"chunk {run.chunk} block {run.block + bad}", extent.segment)
                self._reader.on_suspect(replica, run.chunk, run.block + bad)
                continue
            entry = Entry(EntryKind.BLOCKS, handle)
            entry.add_body(run.pack())
            entry.add_data(view)
            waits.append(self._queue(replica, entry))
            moved += extent.size
        await _all(waits)
        await self._admitted(moved)  # afterwards: no await between the look at the index and the move
        return moved

    def _corrupt(self, replica: Replica, what: str, segment: Segment) -> None:
        self._metrics.corrupt_blocks += 1
        log.error("replica %d: %s in %s is corrupt", replica.info.replica, what, segment.name)

    async def _fetch(self, extents: list[Extent]) -> tuple[memoryview, list[int]]:
        places, size = [], 0
        for extent in extents:
            places.append(size)
            size += extent.size
        placed = [each._replace(at=at) for each, at in zip(extents, places, strict=True)]
        return await self._reader.fetch_all(placed, size), places

    def _queue(self, replica: Replica, entry: Entry) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.done.append(_settle(future))
        replica.open_entry = None
        self._log.put(replica, entry)
        return future

    # -- pending records ----------------------------------------------------------------------------------

    async def _move_pending(self, segment: Segment) -> int:
        moved = 0
        for replica in list(self._fold.replicas.values()):
            held = [
                (record, location)
                for record, location in replica.tail.values()
                if location >> OFFSET_BITS == segment.number and record.lsn > replica.state.commit
            ]
            for record, location in held:
                moved += await self._move_one(replica, record, location)
        return moved

    async def _move_one(self, replica: Replica, record: Record, location: int) -> int:
        entry = Entry(EntryKind.PENDING)
        entry.add_body(pack_head(record))
        entry.count, entry.records = 1, [record]
        entry.snapshots = record.kind == Kind.SNAPSHOTS
        if record.kind == Kind.WRITE:
            extent = self._reader.extent(location, 0, record.count * BLOCK_SIZE)
            if extent is None:
                return 0  # it is not pending any more, and a checkpoint has freed the segment meanwhile
            data = await self._reader.fetch_all([extent], extent.size)
            bad = first_bad_block(record.sums, data)
            if bad >= 0:
                self._corrupt(replica, f"pending record {record.lsn}", extent.segment)
                self._reader.on_suspect(replica, record.chunk, record.block + bad)
                return 0
            entry.add_data(data)
        await self._queue(replica, entry)
        await self._admitted(entry.data_size)
        return entry.data_size


async def _all(waits: list[asyncio.Future[None]]) -> None:
    for each in waits:
        await each


def _settle(future: asyncio.Future[None]) -> Callable[[MoorageError | None], None]:
    def done(error: MoorageError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return done


def list_blocks(segment: Segment, seed: int) -> list[Candidate]:
    """Every run of blocks that was written into a segment, from its frames' heads (blocking)."""
    found: list[Candidate] = []
    offset = FIRST_FRAME
    while offset < segment.end:
        raw = bytearray(FRAME_HEADER_SIZE)
        segment.file.preadv([raw], offset)
        header = parse_frame_header(raw, segment.number, seed)
        if header is None:
            break  # what cannot be read here keeps the segment; its blocks still have their own checksums
        front = bytearray(FRAME_HEADER_SIZE + header.entry_count * ENTRY_SIZE + header.bodies_size)
        segment.file.preadv([front], offset)
        view = memoryview(front)
        if not frame_verified(view, header, seed):
            break
        body_at = FRAME_HEADER_SIZE + header.entry_count * ENTRY_SIZE
        data_at = segment.number << OFFSET_BITS | (offset + header.data_at)
        for index in range(header.entry_count):
            head = EntryHead(*ENTRY.unpack_from(front, FRAME_HEADER_SIZE + index * ENTRY_SIZE))
            body = view[body_at : body_at + head.body_size]
            if body_verified(head, body):  # else its blocks stay where they are, and keep the segment
                found += _candidates(head, body, data_at)
            body_at += head.body_size
            data_at += head.data_size
        offset += header.frame_size
    return found


def _candidates(head: EntryHead, body: memoryview, location: int) -> list[Candidate]:
    found: list[Candidate] = []
    if head.kind in (EntryKind.RECORDS, EntryKind.PENDING):
        for record in unpack_heads(body, head.records):
            if record.kind == Kind.WRITE:
                found.append((head.replica, record.chunk, record.block, record.count, location))
                location += record.count * BLOCK_SIZE
    elif head.kind == EntryKind.BLOCKS:
        for run in unpack_runs(body):
            if run.kind == RunKind.DATA:
                found.append((head.replica, run.chunk, run.block, len(run.lsns), location))
                location += len(run.lsns) * BLOCK_SIZE
    return found
