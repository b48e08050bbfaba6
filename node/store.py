"""The store of one device: the face of segments, index, checkpoints, compaction and space.

Owns everything below the device's directory except the superblock. One event loop calls it; what blocks runs
in its lanes. Must never call anything durable before its group commit is synced, nor serve a byte that does
not match its checksum. A failed write ends it: ``failed`` is set, and every later append raises it.

The life of a record: ``append`` (queued, gathered into the next group commit); durable: ``on_persisted`` with
its ticket; ``apply`` (into the index, as soon as it is durable); read, moved by compaction, overwritten.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lmdb
import msgpack

from moorage.node import opening
from moorage.node.checkpoint import PAST_ALL, IndexStore
from moorage.node.checkpoint import check as check_index
from moorage.node.checkpointer import Checkpointer
from moorage.node.compaction import FULL_PER_MILLE, HALF_PER_MILLE, Compactor
from moorage.node.disk import Disk, File, RealDisk
from moorage.node.fold import Fold
from moorage.node.index import Index, Table
from moorage.node.lane import Lane
from moorage.node.log import ENTRY_BYTES_MAX, Log, Segment, check_size
from moorage.node.metrics import StoreMetrics
from moorage.node.pacing import Pacer
from moorage.node.page import LSNS, PAGE_BLOCKS, PAGES_PER_CHUNK
from moorage.node.reader import Extent, Reader
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.scheduler import Work
from moorage.node.scrub import Scrubber
from moorage.node.segment import Entry, EntryKind, Run, RunKind, pack_head
from moorage.node.space import GRANT_MIN, Layout, segment_size_for, writers_room
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE, Buffer, Kind, Record
from moorage.quorum.state import MemberState
from moorage.wire.errors import Behind, DeviceFailed, MoorageError, NoReplica

log = logging.getLogger(__name__)

READY_SEGMENTS = 3  # allocated ahead: at full speed one lasts longer than it takes to allocate the next
EXTRA_SEGMENTS = 2  # past the capacity, when nothing else lets compaction go on: what it fills at once
COMPACTED_AT_ONCE = 8  # segments per checkpoint, which costs more than the copying when little lives in them
UPKEEP_SECONDS = 0.1
UPKEEP_RETRY_SECONDS = 2.0
COMPACTION_DUE_SECONDS = 5.0  # how long a measured rate of writing is believed
CLOSE_STALLED_SECONDS = 5.0  # for upkeep to make room, before what waits for it is given up

_SNAPSHOTS = int(Kind.SNAPSHOTS)

VERSIONS_LOOKED_AT = 2048  # pages, in one step of the event loop

Done = Callable[[MoorageError | None], None]


@dataclass(frozen=True)
class StoreConfig:
    directory: Path
    device: bytes  # 16 bytes: in every segment header, so that a file of another device is not taken for ours
    capacity: int
    segment_size: int = 0  # 0: from the capacity
    seed: int = 0  # secret of the device: of all checks that tell the log from what clients wrote
    index_pages_max: int = 65_536  # clean pages of 128 KiB in memory: about 60 MiB, for 8 GiB of hot blocks
    checkpoint_bytes: int = 256 << 20  # of log: bounds what a restart replays
    checkpoint_pages: int = 16_384  # dirty: bounds memory
    checkpoint_seconds: float = 30.0
    scrub_period_s: float = 0.0  # within which every block is read back; 0: only when it is asked for
    background_rate: int = 0  # bytes/s of all background work together; 0: what users leave

    @property
    def layout(self) -> Layout:
        return Layout(self.capacity, self.segment_size or segment_size_for(self.capacity))


class Store:
    """``await open()``, use, ``await close()``. After :meth:`open`, ``replicas`` says what is there."""

    def __init__(self, config: StoreConfig, disk: Disk | None = None) -> None:
        self.config = config
        self.layout = config.layout
        self.metrics = StoreMetrics()
        self.on_failed: Callable[[DeviceFailed], None] = _log_failed
        self.on_damage: Callable[[Replica, str], None] | None = None
        self._disk = disk if disk is not None else RealDisk(config.directory / "segments")
        loop = asyncio.get_running_loop()
        self._device_lane = Lane("device", loop)
        self._index_lane = Lane("index", loop)
        self._scrub_lane = Lane("scrub", loop)  # of its own: users' reads do not queue behind its large ones
        self.pacer = Pacer(loop, config.background_rate)
        self.index_store: IndexStore | None = None
        self.index = Index(self._load_page, config.index_pages_max)
        self.fold = Fold(self.index)
        self.fold.on_damage = self._damaged
        self.log = Log(
            device=config.device,
            seed=config.seed,
            segment_size=self.layout.segment_size,
            lane=self._device_lane,
            call_soon=loop.call_soon,
            fold=self._folded,
            committed=self._committed,
            fail=self._failed,
            metrics=self.metrics,
            clock=loop.time,
            wrote=self.pacer.wrote,
        )
        self.reader = Reader(self.index, self.log, loop, self.metrics)
        self.reader.on_read = self.pacer.read
        self.scrubber = Scrubber(
            self.fold,
            self.index,
            self.log,
            self._index_lane,
            self._scrub_lane,
            self.pacer,
            self.metrics,
            config.scrub_period_s,
        )
        self.reader.on_suspect = self.scrubber.suspect
        self.all_files: dict[str, File] = {}  # segments, used and free
        self._persisted: dict[Replica, int] = {}
        self.checkpointer: Checkpointer
        self.compactor: Compactor
        self._upkeep: list[asyncio.Task[None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._file_system_full = False  # the last segment that was asked for could not be allocated
        self._written_at = (loop.time(), 0)  # when, and how many bytes of records had been written
        self.granted = 0  # bytes promised to writers and not used: kept by who grants

    # -- open and close ------------------------------------------------------------------------------

    async def open(self) -> opening.Report:
        """Recover; afterwards everything that was acknowledged is there, or its replica is marked damaged.
        Raises Corrupt when the index cannot be read at all: the message says what to do."""
        report = await opening.Opening(self, self._disk, self._device_lane).run()
        if report.damaged or report.fresh:
            # A later replay must not take a note from before the damage for the newer truth, and a missing
            # index is noticed from now on.
            await self.checkpoint()
        for work, name in (
            (self._keep_up(), "store-upkeep"),
            (self._keep_ready(), "store-ready"),
            (self.scrubber.run(), "store-scrub"),
        ):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(self._upkeep_ended)
            self._upkeep.append(task)
        return report

    async def open_index(self) -> IndexStore:
        """Check the index in a child process, then open it."""
        path = self.config.directory / "index"
        await check_index(path)
        store = self.index_store = IndexStore(path)
        self.checkpointer = Checkpointer(
            self.fold,
            self.index,
            self.log,
            store,
            self._index_lane,
            self.metrics,
            partial(self.pacer.charge, Work.CHECKPOINT),
        )
        self.compactor = Compactor(
            self.fold,
            self.index,
            self.log,
            self.reader,
            self._index_lane,
            self.metrics,
            self.pacer.piece,
            self._compaction_admitted,
        )
        await self._index_lane.run(partial(self.scrubber.load, store))
        return store

    async def close(self, checkpoint: bool = True) -> None:
        """Write what is queued, checkpoint, let go of files and threads. Also after :meth:`open` failed."""
        try:
            if self._upkeep:
                await self._end_upkeep(checkpoint)
        finally:
            await self.reader.close()
            for lane in (self._device_lane, self._index_lane, self._scrub_lane):
                await asyncio.to_thread(lane.close)
            for file in self.all_files.values():
                file.close()
            if self.index_store is not None:
                self.index_store.close()

    async def _end_upkeep(self, checkpoint: bool) -> None:
        await self._flush_at_end()  # while upkeep still makes room
        for task in self._upkeep:
            task.cancel()
        await asyncio.wait(self._upkeep)
        await self._flush_at_end()
        if checkpoint and self.failed is None:
            try:
                await self.checkpoint()
            except (OSError, lmdb.Error) as error:
                log.error("the last checkpoint failed, the next start reads more of the log: %s", error)
            await self._flush_at_end()  # it may have freed what a stalled log was waiting for

    @property
    def failed(self) -> DeviceFailed | None:
        return self.log.failed

    def _failed(self, error: DeviceFailed) -> None:
        self.on_failed(error)

    def _load_page(self, handle: int, number: int) -> bytes | None:
        assert self.index_store is not None
        return self.index_store.load_page(handle, number)

    def _damaged(self, replica: Replica, what: str) -> None:
        if self.on_damage is not None:
            self.on_damage(replica, what)

    # -- replicas -------------------------------------------------------------------------------------

    @property
    def replicas(self) -> dict[int, Replica]:
        return self.fold.replicas

    def replica(self, identity: int) -> Replica:
        found = self.fold.replicas.get(identity)
        if found is None:
            raise NoReplica(f"this device has no replica {identity}", replica=identity)
        return found

    def create(self, info: ReplicaInfo, done: Done) -> None:
        """A new, empty replica; it is there once ``done`` is called."""
        table = Table(self.fold.take_handle(), Tombstones())
        entry = Entry(EntryKind.CREATE, table.handle)
        entry.add_body(msgpack.packb(info.pack()))
        entry.done.append(done)
        self.log.put(Replica(info, table, MemberState(info.replica)), entry)

    def mend(self, replica: Replica, done: Done) -> None:
        """Of a bucket, whose metadata knows what it has to have: it has all of that again, and no more."""
        state = replica.state.clone()
        state.damaged, state.promise_lost = "", False
        replica.found = ""
        entry = Entry(EntryKind.STATE)
        entry.add_body(state.pack())
        entry.done.append(done)
        replica.noted = state
        self._put(replica, entry, barrier=True)

    def drop(self, identity: int, done: Done) -> None:
        """Forget a replica for good; its space comes back with time."""
        entry = Entry(EntryKind.DROP)
        entry.done.append(done)
        self.log.put(self.replica(identity), entry)

    # -- the effects of a member, in its order ------------------------------------------------------------

    def append(
        self, replica: Replica, records: list[Record], ticket: int, heads: Buffer | None = None
    ) -> None:
        """Log records behind the last ones, or in place of some of those. Their buffers belong to the store
        until all are durable; then ``on_persisted(ticket)``. ``heads``: their heads as they were sent."""
        size = sum([len(record.data) for record in records])
        if size > ENTRY_BYTES_MAX and len(records) > 1:
            for record in records[:-1]:
                self.append(replica, [record], 0)
            self.append(replica, records[-1:], ticket)  # they may be in several group commits
            return
        if heads is None:
            heads = b"".join([pack_head(record) for record in records])
        entry = replica.open_entry
        cut = records[0].lsn <= replica.last_queued
        if entry is None or cut or entry.size + len(heads) + size > ENTRY_BYTES_MAX:
            entry = Entry(EntryKind.RECORDS, replica.apply_target)
            self._put(replica, entry, barrier=cut)
            replica.open_entry = entry
        replica.last_queued = records[-1].lsn
        entry.add_body(heads)
        entry.count += len(records)
        entry.records += records
        for record in records:
            if record.data:
                entry.data.append(record.data)
            elif record.kind == _SNAPSHOTS:
                entry.snapshots = True
        entry.data_size += size
        self.log.queued_bytes += size
        if ticket:
            entry.ticket = ticket
        self.metrics.records += len(records)
        self.metrics.record_bytes += size

    def note(self, replica: Replica, packed: bytes, ticket: int) -> None:
        """Log a member's whole state; a copy that begins from nothing drops the index in the same step."""
        state = MemberState.unpack(packed)
        if state.drops_index(replica.noted):
            entry = Entry(EntryKind.RESET, self.fold.take_handle())
            replica.handle = entry.argument
        else:
            entry = Entry(EntryKind.STATE)
        entry.add_body(packed)
        entry.ticket = ticket
        replica.noted = state
        replica.last_queued, replica.apply_target = state.last, state.commit
        self._put(replica, entry, barrier=True)

    def _put(self, replica: Replica, entry: Entry, barrier: bool) -> None:
        replica.open_entry = None
        if barrier:
            entry.barrier = True
            replica.barriers += 1
        self.log.put(replica, entry)

    def sync(self, replica: Replica, ticket: int) -> None:
        """``on_persisted(ticket)`` once everything appended so far is durable."""
        if replica.last_entry is not None:
            replica.last_entry.ticket = ticket
        else:
            asyncio.get_running_loop().call_soon(replica.on_persisted, ticket)

    def apply(self, replica: Replica, lsn: int) -> None:
        """These records are committed: into the index with them, now or when they are durable."""
        replica.apply_target = max(replica.apply_target, lsn)
        last = replica.last_entry
        if last is not None and (replica.barriers or lsn > replica.state.last):
            last.apply = max(last.apply, lsn)
        if not replica.barriers:
            self.fold.apply(replica, lsn)

    def merge(self, replica: Replica, runs: list[Run], data: list[Buffer], done: Done) -> None:
        """Blocks and tombstones copied from another member; per block the greater LSN wins."""
        entry = Entry(EntryKind.BLOCKS, replica.handle)
        for run in runs:
            entry.add_body(run.pack())
        entry.snapshots = any(run.kind == RunKind.SNAPSHOTS for run in runs)
        for each in data:
            entry.add_data(each)
        check_size(self.layout.segment_size, entry.size)
        entry.done.append(done)
        self._put(replica, entry, barrier=False)

    # -- what others copy ---------------------------------------------------------------------------

    def newer_blocks(
        self, replica: Replica, above: int, first: int, limit: int
    ) -> tuple[list[tuple[int, int, int, int, int]], int | None]:
        """Blocks and tombstones with an LSN above ``above`` out of up to ``limit`` pages from page ``first``
        on: (chunk, block, location, checksum, LSN), and the page to go on with, None at the end. In one step
        with respect to everything else: a page cannot be missed between memory and disk."""
        assert self.index_store is not None
        table = _alive(replica)
        stored = self.index_store.page_numbers(table.handle, first, 1 << 62, limit)
        end = stored[-1] + 1 if len(stored) == limit else 1 << 62
        numbers = sorted({*stored, *(each for each in table.pages if first <= each < end)})[:limit]
        found = []
        for number in numbers:
            cells = self.index.page(table, number).cells
            if max(cells[LSNS:]) > above:
                chunk, block = number // PAGES_PER_CHUNK, number % PAGES_PER_CHUNK * PAGE_BLOCKS
                found += [
                    (chunk, block + at, cells[at], cells[PAGE_BLOCKS + at], cells[LSNS + at])
                    for at in range(PAGE_BLOCKS)
                    if cells[LSNS + at] > above
                ]
        more = len(numbers) == limit
        return found, numbers[-1] + 1 if more else None

    def newer_versions(
        self, replica: Replica, above: int, first: int, after: int, limit: int
    ) -> tuple[list[tuple[int, int, int, int, int]], tuple[int, int] | None]:
        """As :meth:`newer_blocks`, of what snapshots show besides, from page ``first`` on, and of that from
        behind LSN ``after`` on: at least ``limit`` blocks if there are so many; (page, LSN) to go on with."""
        assert self.index_store is not None
        table = _alive(replica)
        memory = {each.number for each in table.pages.values() if each.older and each.number >= first}
        stored, end = self.index_store.pages_with_versions(table.handle, first, limit, VERSIONS_LOOKED_AT)
        found: list[tuple[int, int, int, int, int]] = []
        for number in sorted({*stored, *(each for each in memory if each < end)}):
            chunk, block = number // PAGES_PER_CHUNK, number % PAGES_PER_CHUNK * PAGE_BLOCKS
            low = max(above, after if number == first else 0)
            for at, version in self.index.page(table, number).by_age():
                if version.lsn > low:
                    if len(found) >= limit and version.lsn != found[-1][4]:
                        return found, (number, found[-1][4])
                    found.append((chunk, block + at, version.location, version.check, version.lsn))
            if len(found) >= limit:
                return found, (number + 1, 0)
        return found, (end, 0) if end < PAST_ALL else None

    async def fetch_blocks(self, replica: Replica, locations: list[int]) -> memoryview:
        """The bytes at these locations, one block each; not verified."""
        extents: list[Extent] = []
        for at, location in enumerate(locations):
            last = extents[-1] if extents else None
            found = self.reader.extent(location, at * BLOCK_SIZE, BLOCK_SIZE)
            if found is None:
                raise Behind(f"replica {replica.info.replica}: a block has moved meanwhile")
            if last and last.segment is found.segment and last.offset + last.size == found.offset:
                extents[-1] = last._replace(size=last.size + BLOCK_SIZE)
            else:
                extents.append(found)
        return await self.reader.fetch_all(extents, len(locations) * BLOCK_SIZE)

    async def flushed(self) -> None:
        """Everything queued so far is durable, or the device has failed."""
        while not self.log.idle and self.failed is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def _flush_at_end(self) -> None:
        """As :meth:`flushed`, but a log without a free segment is not waited for without end."""
        running = not all(task.done() for task in self._upkeep)
        while not self.log.stalled or running:
            try:
                async with asyncio.timeout(CLOSE_STALLED_SECONDS):
                    await self.flushed()
                return
            except TimeoutError:
                running = False
        log.warning("closing: the log has no free segment, what is not durable yet is given up")

    def _folded(self, replica: Replica, entry: Entry, location: int) -> None:
        self.fold.entry(replica, entry, location)
        if entry.ticket or entry.apply:  # reads may wait for what it applied
            self._persisted[replica] = entry.ticket or self._persisted.get(replica, 0)

    def _committed(self) -> None:
        """A group commit is durable and folded: tell each member in it once."""
        persisted, self._persisted = self._persisted, {}
        failure: Exception | None = None
        for replica, ticket in persisted.items():
            try:
                replica.on_persisted(ticket)
            except Exception as error:
                failure = error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if failure is not None:
            self.log.give_up(failure)

    # -- space -----------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        unmade = 0 if self._file_system_full else max(0, self.layout.slots - len(self.all_files))
        return len(self.log.free) + unmade

    def room(self) -> int:
        """Bytes of records that may still be granted to writers."""
        current = self.log.current
        rest = self.layout.segment_size - current.end if current is not None else 0
        promised = self.granted + self.log.queued_bytes
        return writers_room(self.layout, self.free_slots, rest, promised)

    @property
    def used(self) -> int:
        """Bytes of live blocks."""
        return sum(self.index.live.values())

    async def allocate(self) -> None:
        """Have a few segments ready: a group commit never waits for an allocation."""
        # When the file system was full, one is asked for in any case: only that shows that it has room again.
        while len(self.all_files) < self.layout.slots and (
            len(self.log.free) < READY_SEGMENTS or self._file_system_full
        ):
            self.log.add_free(await self.allocate_one())
        if self.log.stalled and len(self.all_files) < self.layout.slots + EXTRA_SEGMENTS:
            log.warning("the reserve is used up: one segment more than the capacity allows")
            self.log.add_free(await self.allocate_one())

    async def allocate_one(self) -> Segment:
        number = max((int(name[:8]) for name in self.all_files), default=0) + 1
        name = f"{number:08d}.seg"
        try:
            file = await self._index_lane.run(lambda: self._disk.create(name, self.layout.segment_size))
        except OSError as error:
            self._file_system_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise
        self._file_system_full = False
        self.all_files[name] = file
        return Segment(name, file)

    # -- upkeep ----------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        await self.checkpointer.run()

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            try:
                await self._keep_up_once()
            except (OSError, lmdb.Error) as error:
                # A full file system, or the index's: reads and what is in the log are not touched by it.
                log.warning("store upkeep failed, will try again: %s", error)
                await asyncio.sleep(UPKEEP_RETRY_SECONDS)

    async def _keep_ready(self) -> None:
        """Apart from the rest: compaction waits for the log, and the log for a free segment."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            self.log.reclaim()
            self.log.prove_last()
            try:
                await self.allocate()
                if self.log.stalled and self.checkpointer.would_free():
                    await self.checkpoint()  # compaction, which would make one, may be what waits
            except (OSError, lmdb.Error) as error:
                log.warning("no segment more could be made ready, will try again: %s", error)
                await asyncio.sleep(UPKEEP_RETRY_SECONDS)

    async def _keep_up_once(self) -> None:
        if self._checkpoint_due():
            await self.checkpoint()
        while (limit := self._worth_compacting()) and await self._compact_some(limit):
            await self.checkpoint()  # frees what was emptied

    async def _compact_some(self, limit: int) -> bool:
        """Compact a few segments for one checkpoint: whether there were any. It fills less than two."""
        count = moved = 0
        while count < COMPACTED_AT_ONCE and moved < self.layout.segment_size:
            segment = self.compactor.choose(self.checkpointer.segment, limit)
            if segment is None:
                break
            moved += await self.compactor.compact(segment)
            count += 1
        return count > 0

    async def _compaction_admitted(self, size: int) -> None:
        self._set_compaction_due()
        await self.pacer.admitted(Work.COMPACT, size, urgent=self._compaction_urgent)

    def _set_compaction_due(self) -> None:
        """As much is to become free as users write meanwhile: of a segment that is to a part alive, that part
        has to be moved for the rest."""
        now, written = asyncio.get_running_loop().time(), self.metrics.record_bytes
        since, before = self._written_at
        if now - since >= 1.0:
            self._written_at = now, written
            alive = self.compactor.alive_per_mille / 1000
            rate = (written - before) / (now - since) * alive / (1 - alive)
            self.pacer.set_due(Work.COMPACT, self, rate, COMPACTION_DUE_SECONDS)

    def _compaction_urgent(self) -> bool:
        """It yields to users as long as they have room left. A checkpoint, which bounds memory and what a
        restart replays, comes only when it has finished with a segment."""
        return self.free_slots <= self.layout.reserve + 2 or self.log.stalled or self._checkpoint_overdue()

    def _checkpoint_due(self) -> bool:
        written = self.log.written_bytes - self.checkpointer.written_bytes
        if not written:
            return False
        age = asyncio.get_running_loop().time() - self.checkpointer.made_at
        return self._checkpoint_overdue() or (
            self._worth_compacting() > 0 and (written >= self.layout.segment_size // 4 or age >= 1.0)
        )

    def _checkpoint_overdue(self) -> bool:
        config = self.config
        written = self.log.written_bytes - self.checkpointer.written_bytes
        age = asyncio.get_running_loop().time() - self.checkpointer.made_at
        return (
            written >= config.checkpoint_bytes
            or len(self.index.dirty) >= config.checkpoint_pages
            or (written > 0 and age >= config.checkpoint_seconds)
        )

    def _short_of_space(self) -> bool:
        """Compaction begins while writers still have room, so that they seldom see the end of it."""
        return self.free_slots < max(self.layout.reserve + 2, self.layout.slots // 4)

    def _worth_compacting(self) -> int:
        """How much of a segment may be alive, per mille; 0: nothing need be compacted. On a small device
        grants of idle writers may take all the room, though there are segments to free: then the emptier half
        of them is worth it."""
        if self._short_of_space():
            return FULL_PER_MILLE
        return HALF_PER_MILLE if self.room() < min(GRANT_MIN, self.layout.usable // 8) else 0

    def _upkeep_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log.give_up(error)  # without checkpoints the log only grows


def _alive(replica: Replica) -> Table:
    """Who looks at a table for long may find that it has gone meanwhile."""
    if not replica.table.alive:
        raise NoReplica(f"replica {replica.info.replica} was dropped", replica=replica.info.replica)
    return replica.table


def _log_failed(error: DeviceFailed) -> None:
    log.critical("device failed: %s", error)
