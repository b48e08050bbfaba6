"""Reading blocks: from the page cache on the loop, from the disk in threads; every block is checked.

Owns the path from (replica, chunk, block) to bytes, and the counting of readers that keeps a segment's file
from being written again under a read. Must never hand out a block that does not match its checksum, nor block
the loop.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from moorage.node.disk import WOULD_BLOCK
from moorage.node.index import Index
from moorage.node.lane import Lane
from moorage.node.log import Log, Segment
from moorage.node.metrics import StoreMetrics
from moorage.node.page import PAGE_BLOCKS, PAGES_PER_CHUNK
from moorage.node.replica import Replica
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.turns import Turns
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, block_sum, first_bad_block, pack_lsns
from moorage.wire.buffers import payload_buffer
from moorage.wire.errors import Corrupt, MoorageError, ShuttingDown

log = logging.getLogger(__name__)

READERS = 2  # threads: the disk sees some depth, and a cold read does not wait behind another one
AHEAD = 2  # jobs that a thread has: the next one is there when it has done with one
NOBODY = 0  # reads for compaction and copies wait for their turn as one more volume's do
_MASK = PAGE_BLOCKS - 1
_NO_SUM = bytes(8)

Blocks = tuple[bytes, bytearray | None]  # packed checksums (0: a hole), data, or None when all are holes
Done = Callable[[Blocks | MoorageError], None]


class Extent(NamedTuple):
    segment: Segment
    offset: int  # in the file
    at: int  # in the result
    size: int


def _read(extent: Extent, into: memoryview) -> None:
    extent.segment.file.preadv((into,), extent.offset)


def _read_what_can_be(extent: Extent, into: memoryview) -> None:
    """A sector that cannot be read takes no other blocks along."""
    try:
        _read(extent, into)
    except OSError as error:
        log.warning("segment %s from %d on cannot be read: %s", extent.segment.name, extent.offset, error)
        for at in range(0, extent.size, BLOCK_SIZE):
            block = into[at : at + BLOCK_SIZE]
            try:
                extent.segment.file.preadv((block,), extent.offset + at)
            except OSError:
                block[:] = bytes(len(block))


class _Job(NamedTuple):
    size: int
    work: Callable[[], None]
    done: Callable[[object, BaseException | None], None]


class Reader:
    def __init__(
        self, index: Index, log: Log, loop: asyncio.AbstractEventLoop, metrics: StoreMetrics
    ) -> None:
        self._index = index
        self._log = log
        self._metrics = metrics
        self._lanes = [Lane(f"read-{number}", loop) for number in range(READERS)]
        self._busy = [0] * READERS  # jobs that each has
        self._waiting: Turns[_Job] = Turns(lambda job: job.size)
        self._closed = False
        self._clock = loop.time
        self.on_suspect: Callable[[Replica, int, int], None] = _nobody  # (replica, chunk, block): it is bad
        self.on_read: Callable[[int, float], None] = _no_time  # (bytes, seconds) of reads that had to wait

    async def close(self) -> None:
        self._closed = True
        for job in self._waiting.clear():
            job.done(None, ShuttingDown("the node is stopping"))
        for lane in self._lanes:
            await asyncio.to_thread(lane.close)

    # -- blocks ---------------------------------------------------------------------------------------

    def read(
        self, replica: Replica, chunk: int, block: int, count: int, done: Done, snapshot: int = 0
    ) -> None:
        """``count`` blocks as they are in the index now, or as a snapshot shows them. ``done`` is called at
        once when the page cache has them, else from a thread's completion on the loop. Raises nothing: errors
        go to ``done``."""
        try:
            found = self.read_now(replica, chunk, block, count, snapshot)
        except MoorageError as error:
            done(error)
            return
        if found is None:
            self.read_later(replica, chunk, block, count, done, snapshot)
        else:
            done(found)

    def read_now(
        self, replica: Replica, chunk: int, block: int, count: int, snapshot: int = 0
    ) -> Blocks | None:
        """The blocks, or None when the page cache lacks some. Raises Corrupt."""
        metrics = self._metrics
        metrics.reads += 1
        metrics.read_bytes += count << 12
        if count == 1 and not snapshot:
            return self._read_one(replica, chunk, block)
        sums, extents = self._locate(replica, chunk, block, count, snapshot)
        if not extents:
            return sums, None
        data = bytearray(count * BLOCK_SIZE)
        if not self._now(extents, data):
            return None
        self._verify(replica, chunk, block, sums, data, snapshot)
        return sums, data

    def sums(self, replica: Replica, chunk: int, block: int, count: int, snapshot: int = 0) -> bytes:
        """The checksums alone, from the index: 0 for a hole."""
        parts = self._index.parts(replica.table, chunk, block, count, snapshot)
        return b"".join(
            [
                cells[PAGE_BLOCKS + first : PAGE_BLOCKS + first + part].tobytes()
                for cells, first, part in parts
            ]
        )

    def lsns(self, replica: Replica, chunk: int, block: int, count: int, snapshot: int = 0) -> bytes:
        """When each block was written or discarded last, from the index: 0 for never."""
        discards = replica.table.tombstones.lsns(chunk)
        discarded = max([lsn for lsn in discards if not snapshot or lsn <= snapshot], default=0)
        cells = self._index.find(replica.table, chunk, block, count, snapshot)
        return pack_lsns([max(lsn, discarded) for _, _, lsn in cells])

    def read_later(
        self, replica: Replica, chunk: int, block: int, count: int, done: Done, snapshot: int = 0
    ) -> None:
        """The blocks as they are in the index now, read in a thread."""
        try:
            sums, extents = self._locate(replica, chunk, block, count, snapshot)
        except MoorageError as error:
            done(error)
            return
        self._later(replica, chunk, block, sums, extents, bytearray(count * BLOCK_SIZE), done, snapshot)

    def _read_one(self, replica: Replica, chunk: int, block: int) -> Blocks | None:
        """The path of a cached 4 KiB read; None when it would block."""
        page = self._index.page(replica.table, chunk * PAGES_PER_CHUNK + block // PAGE_BLOCKS)
        at = block & _MASK
        location = page.cells[at]
        if not location:
            return _NO_SUM, None
        segment = self._log.segments.get(location >> OFFSET_BITS)
        if segment is None:
            raise self._lost(replica, chunk, block)
        data = bytearray(BLOCK_SIZE)
        if segment.file.preadv_nowait((data,), location & OFFSET_MASK) != BLOCK_SIZE:
            return None
        expected = page.cells[PAGE_BLOCKS + at]
        if block_sum(data) != expected:
            raise self._corrupt(replica, chunk, block, segment, location & OFFSET_MASK)
        return expected.to_bytes(8, "little"), data

    def _locate(
        self, replica: Replica, chunk: int, block: int, count: int, snapshot: int
    ) -> tuple[bytes, list[Extent]]:
        """Checksums, and the pieces that lie together in a file."""
        sums: list[bytes] = []
        pieces: list[list[int]] = []  # location, place in the result, size
        at = 0
        for cells, first, part in self._index.parts(replica.table, chunk, block, count, snapshot):
            sums.append(cells[PAGE_BLOCKS + first : PAGE_BLOCKS + first + part].tobytes())
            for location, size in _pieces(cells[first : first + part]):
                last = pieces[-1] if pieces else None
                if location and last and last[0] + last[2] == location and last[1] + last[2] == at:
                    last[2] += size
                elif location:
                    pieces.append([location, at, size])
                at += size
        extents = [self._extent(replica, chunk, block, *piece) for piece in pieces]
        return b"".join(sums), extents

    def _extent(self, replica: Replica, chunk: int, block: int, location: int, at: int, size: int) -> Extent:
        segment = self._log.segments.get(location >> OFFSET_BITS)
        if segment is None:
            raise self._lost(replica, chunk, block + at // BLOCK_SIZE)
        return Extent(segment, location & OFFSET_MASK, at, size)

    def _now(self, extents: list[Extent], data: bytearray) -> bool:
        view = memoryview(data)
        for segment, offset, at, size in extents:
            got = segment.file.preadv_nowait((view[at : at + size],), offset)
            if got == WOULD_BLOCK or got != size:
                return False
        return True

    def _later(
        self,
        replica: Replica,
        chunk: int,
        block: int,
        sums: bytes,
        extents: list[Extent],
        data: bytearray,
        done: Done,
        snapshot: int,
    ) -> None:
        began = self._clock()

        def finished(_: object, error: BaseException | None) -> None:
            self.on_read(len(data), self._clock() - began)
            if error is not None:
                self._suspect_all(replica, chunk, block, sums)
                wrapped = Corrupt(f"reading replica {replica.info.replica} failed: {error}")
                done(error if isinstance(error, MoorageError) else wrapped)
                return
            try:
                self._verify(replica, chunk, block, sums, data, snapshot)
            except MoorageError as failure:
                done(failure)
            else:
                done((sums, data))

        self._metrics.reads_blocking += 1
        self.fetch(extents, data, finished, replica.info.volume)

    def fetch(
        self,
        extents: list[Extent],
        data: bytearray | memoryview,
        finished: Callable[[object, BaseException | None], None],
        volume: int = NOBODY,
        read: Callable[[Extent, memoryview], None] = _read,
    ) -> None:
        """Read extents in a thread, when it is the volume's turn. Their files are not written again before it
        has ended."""
        if self._closed:
            finished(None, ShuttingDown("the node is stopping"))
            return
        for each in extents:
            each.segment.readers += 1

        def work() -> None:
            view = memoryview(data)
            for each in extents:
                read(each, view[each.at : each.at + each.size])

        def done(result: object, error: BaseException | None) -> None:
            for each in extents:
                each.segment.readers -= 1
            finished(result, error)

        self._waiting.put(volume, _Job(sum(each.size for each in extents), work, done))
        self._give_out()

    def _give_out(self) -> None:
        """Jobs to threads that may have one more."""
        while self._waiting and not self._closed:
            number = min(range(READERS), key=self._busy.__getitem__)
            if self._busy[number] >= AHEAD:
                return
            self._busy[number] += 1
            job = self._waiting.take()
            self._lanes[number].submit(job.work, partial(self._ended, number, job))

    def _ended(self, number: int, job: _Job, result: object, error: BaseException | None) -> None:
        self._busy[number] -= 1
        self._give_out()
        job.done(result, error)

    async def fetch_all(self, extents: list[Extent], size: int) -> memoryview:
        """The bytes of extents, as :meth:`fetch` reads them; not verified: blocks that cannot be read are
        zeroes, which their checksums tell."""
        data = payload_buffer(size)
        if not extents:
            return data
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finished(_: object, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.fetch(extents, data, finished, read=_read_what_can_be)
        await future
        return data

    def extent(self, location: int, at: int, size: int) -> Extent | None:
        segment = self._log.segments.get(location >> OFFSET_BITS)
        return None if segment is None else Extent(segment, location & OFFSET_MASK, at, size)

    # -- records ----------------------------------------------------------------------------------------

    async def records(self, replica: Replica, from_lsn: int, to_lsn: int, max_bytes: int) -> list[Record]:
        """Durable records from the tail, with their data: at least one when there is any, fewer than asked
        for when ``max_bytes`` is reached. Raises Corrupt when a block does not match."""
        chosen: list[tuple[Record, int]] = []
        extents: list[Extent] = []
        size = 0
        for lsn in range(max(from_lsn, replica.tail_from), min(to_lsn, replica.state.last) + 1):
            record, location = replica.tail[lsn]
            length = record.count * BLOCK_SIZE if record.kind == Kind.WRITE else 0
            if chosen and size + length > max_bytes:
                break
            if length:
                extents.append(self._extent(replica, record.chunk, record.block, location, size, length))
            chosen.append((record, size))
            size += length
        data = await self.fetch_all(extents, size)
        return [self._with_data(record, data, at, replica) for record, at in chosen]

    def _with_data(self, record: Record, data: memoryview, at: int, replica: Replica) -> Record:
        if record.kind != Kind.WRITE:
            return record
        view = data[at : at + record.count * BLOCK_SIZE]
        bad = first_bad_block(record.sums, view)
        if bad >= 0:
            self.on_suspect(replica, record.chunk, record.block + bad)
            raise Corrupt(
                f"replica {replica.info.replica}: record {record.lsn} block {bad} does not match its"
                " checksum",
                replica=replica.info.replica,
                lsn=record.lsn,
            )
        return Record(
            record.epoch, record.lsn, record.kind, record.chunk, record.block, record.count, record.sums, view
        )

    # -- what is wrong ----------------------------------------------------------------------------------

    def _verify(
        self, replica: Replica, chunk: int, block: int, sums: bytes, data: bytearray, snapshot: int
    ) -> None:
        view = memoryview(data)
        # (eight zero bytes may lie across two checksums: the slower way is right too)
        check = _first_bad_beside_holes if _NO_SUM in sums else first_bad_block
        bad = check(sums, view)
        if bad >= 0:
            location = next(iter(self._index.find(replica.table, chunk, block + bad, 1, snapshot)))[0]
            segment = self._log.segments.get(location >> OFFSET_BITS)
            raise self._corrupt(replica, chunk, block + bad, segment, location & OFFSET_MASK)

    def _corrupt(
        self, replica: Replica, chunk: int, block: int, segment: Segment | None, offset: int
    ) -> Corrupt:
        self._metrics.corrupt_blocks += 1
        self.on_suspect(replica, chunk, block)
        name = segment.name if segment is not None else "?"
        identity = replica.info.replica
        return Corrupt(
            f"replica {identity}: chunk {chunk} block {block} at {name}:{offset} does not match its checksum:"
            " read it from another member",
            replica=identity,
            chunk=chunk,
            block=block,
            file=name,
            offset=offset,
        )

    def _suspect_all(self, replica: Replica, chunk: int, block: int, sums: bytes) -> None:
        """Some of these blocks cannot be read."""
        for at in range(len(sums) // 8):
            if sums[at * 8 : at * 8 + 8] != _NO_SUM:
                self.on_suspect(replica, chunk, block + at)

    def _lost(self, replica: Replica, chunk: int, block: int) -> Corrupt:
        self._metrics.corrupt_blocks += 1
        return Corrupt(
            f"replica {replica.info.replica}: chunk {chunk} block {block} is in a segment that is gone",
            replica=replica.info.replica,
            chunk=chunk,
            block=block,
        )


def _pieces(locations: array[int]) -> list[tuple[int, int]]:
    """(location, bytes) of what lies together; location 0: a hole. Mostly one piece: one comparison."""
    first, count = locations[0], len(locations)
    if locations == array("Q", range(first, first + count * BLOCK_SIZE, BLOCK_SIZE)) and first:
        return [(first, count * BLOCK_SIZE)]
    return [(location, BLOCK_SIZE) for location in locations]


def _first_bad_beside_holes(sums: bytes, view: memoryview) -> int:
    for index in range(len(sums) // 8):
        check = sums[index * 8 : index * 8 + 8]
        part = view[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        if check != _NO_SUM and first_bad_block(check, part) >= 0:
            return index
    return -1


def _nobody(replica: Replica, chunk: int, block: int) -> None:
    pass


def _no_time(size: int, took_s: float) -> None:
    pass
