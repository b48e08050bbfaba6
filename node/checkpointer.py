"""Making a checkpoint: the index's dirty pages in many small transactions, the replicas and the replay
position in the last one; then the segments that nothing refers to any more are free.

Owns when a segment is freed. Must never free one that the durable checkpoint, a pending record, the tail or a
reader still needs. The argument: a segment is chosen at the *beginning*, when no block in memory
is in it; every page that still says so on disk is dirty then, and is stored before the last transaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

import msgpack

from moorage.node.checkpoint import PAST_ALL, IndexStore, Meta, page_key
from moorage.node.fold import Fold
from moorage.node.index import Index, Table
from moorage.node.lane import Lane
from moorage.node.log import Log
from moorage.node.metrics import StoreMetrics
from moorage.node.page import PAGE_SIZE, PAGES_PER_CHUNK, Page, stored_locations
from moorage.node.replica import Replica
from moorage.node.segment import OFFSET_BITS, pack_head
from moorage.node.tombstones import Range
from moorage.quorum.record import BLOCK_SIZE, Kind
from moorage.wire.errors import Corrupt

log = logging.getLogger(__name__)

PAGES_PER_TRANSACTION = 512
PRUNE_AT_ONCE = 1 << 16  # pages looked at for versions, in the index's lane

Losses = tuple[tuple[int, int], list[Range]]  # see ``Table.losses``
_NONE = (0, 0)


class Checkpointer:
    def __init__(
        self,
        fold: Fold,
        index: Index,
        log_: Log,
        store: IndexStore,
        lane: Lane,
        metrics: StoreMetrics,
        charge: Callable[[int], None],
    ) -> None:
        self._fold = fold
        self._index = index
        self._log = log_
        self._store = store
        self._lane = lane
        self._metrics = metrics
        self._charge = charge  # told the bytes that it writes: it waits for nobody, others wait for it
        self._lock = asyncio.Lock()
        self._tombstones: dict[int, tuple[int, int]] = {}  # handle -> version that is stored
        self.segment = 0  # where a replay from the last checkpoint begins: older segments may be compacted
        self.written_bytes = 0  # of the log, when it was made
        self.made_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        async with self._lock:
            await self._sweep_dead()
            await self._sweep_tombstones()
            await self._prune_versions()
            # no await until the snapshot is complete: position, replicas and dirty pages belong together
            written = self._log.written_bytes
            segment, offset, group = self._log.end()
            self._trim_tails(segment)
            freed = self._unused(segment)
            replicas = self._replicas()
            tombstones = self._changed_tombstones(each.table for each in self._fold.replicas.values())
            pages = list(self._index.dirty)
            kept = [
                each
                for each in self._log.segments.values()
                if each.number not in freed and each.number <= segment
            ]
            meta = Meta(
                segment,
                offset,
                group,
                self._fold.next_handle,
                [(each.number, each.name, each.end) for each in kept],
                any(each.table.snapshots_lsn or _lists(each) for each in self._fold.replicas.values()),
            )
            try:
                await self._store_pages(pages)
                tombstones = self._not_stored(tombstones)
                await self._lane.run(partial(self._store.finish, meta, replicas, _ranges(tombstones)))
            except BaseException:
                self._fold.changed.update(replicas)
                raise
            self._tombstones_stored(tombstones)
            self.segment, self.written_bytes = segment, written
            self.made_at = asyncio.get_running_loop().time()
            self._metrics.checkpoints += 1
            self._metrics.checkpoint_pages += len(pages)
            self._free(freed)

    # -- the snapshot -----------------------------------------------------------------------------------

    def _replicas(self) -> dict[int, bytes | None]:
        changed, self._fold.changed = self._fold.changed, set()
        found: dict[int, bytes | None] = {}
        for identity in sorted(changed):
            replica = self._fold.replicas.get(identity)
            found[identity] = None if replica is None else pack_replica(replica)
        return found

    def _changed_tombstones(self, tables: Iterable[Table]) -> dict[int, Losses]:
        """handle -> (version, ranges)"""
        return {
            table.handle: table.losses
            for table in tables
            if self._tombstones.get(table.handle, _NONE) != (table.tombstones.version, table.snapshots_lsn)
        }

    def _not_stored(self, tombstones: dict[int, Losses]) -> dict[int, Losses]:
        """Without those of which newer ones were stored with pages meanwhile: older ones in their place would
        not explain what these pages have lost."""
        return {
            handle: found
            for handle, found in tombstones.items()
            if found[0] > self._tombstones.get(handle, _NONE)
        }

    def _tombstones_stored(self, tombstones: dict[int, Losses]) -> None:
        for handle, (version, _) in tombstones.items():
            self._tombstones[handle] = version

    def _trim_tails(self, segment: int) -> None:
        """Applied records in older segments are not kept for others: their segments may go. From the end: one
        that was moved while it was pending lies further on than those behind it."""
        for replica in self._fold.replicas.values():
            lsn = replica.state.commit
            while lsn >= replica.tail_from and replica.tail[lsn][1] >> OFFSET_BITS >= segment:
                lsn -= 1
            replica.trim(lsn + 1)

    def _unused(self, segment: int) -> set[int]:
        return self._empty(
            segment,
            {
                location >> OFFSET_BITS
                for replica in self._fold.replicas.values()
                for _, location in replica.tail.values()
            },
        )

    def _empty(self, segment: int, held: set[int]) -> set[int]:
        live = self._index.live
        return {
            number
            for number in self._log.segments
            if number < segment and live.get(number, 0) <= 0 and number not in held
        }

    def would_free(self) -> bool:
        """Whether a checkpoint would free a segment now: of the tails it keeps what is pending."""
        pending = {
            location >> OFFSET_BITS
            for replica in self._fold.replicas.values()
            for _, location in replica.pending()
        }
        return bool(self._empty(self._log.end()[0], pending))

    # -- pages ------------------------------------------------------------------------------------------

    async def _store_pages(self, pages: list[Page]) -> None:
        """Each batch with the tombstones of its tables: what a page has lost by one must be explained, should
        this be the last transaction before a crash."""
        for start in range(0, len(pages), PAGES_PER_TRANSACTION):
            batch = [
                (page, page.version)
                for page in pages[start : start + PAGES_PER_TRANSACTION]
                if page.table.alive
            ]
            written = [(page_key(page.table.handle, page.number), page.pack()) for page, _ in batch]
            tombstones = self._changed_tombstones({page.table for page, _ in batch})
            ranges, reached = _ranges(tombstones), self._log.group
            await self._lane.run(partial(self._store.write_pages, written, ranges, reached))
            self._charge(sum(len(packed) if packed else PAGE_SIZE for _, packed in written))
            self._tombstones_stored(tombstones)
            for page, version in batch:
                self._index.stored(page, version)

    async def _sweep_dead(self) -> None:
        """Delete the pages of tables that are gone, and take their blocks off the segments' accounts."""
        reached = self._log.group  # with it at the latest these tables were given up
        for handle, accounted in list(self._fold.dead.items()):
            while True:
                gone = await self._lane.run(
                    partial(self._store.delete_pages, handle, PAGES_PER_TRANSACTION, reached)
                )
                for _, number, packed in gone:
                    if number not in accounted and packed is not None:
                        self._release(packed)
                if len(gone) < PAGES_PER_TRANSACTION:
                    break
            await self._lane.run(partial(self._store.delete_tombstones, handle, reached))
            self._tombstones.pop(handle, None)
            del self._fold.dead[handle]

    async def _sweep_tombstones(self) -> None:
        """Let new tombstones take every page under them: that is what brings their space back."""
        for replica in list(self._fold.replicas.values()):
            table = replica.table
            ranges, table.tombstones.unswept = table.tombstones.unswept, []
            swept = 0
            try:
                for first, end in ranges:
                    await self._sweep_range(replica, table, first * PAGES_PER_CHUNK, end * PAGES_PER_CHUNK)
                    swept += 1
            finally:
                table.tombstones.unswept[:0] = ranges[swept:]

    async def _sweep_range(self, replica: Replica, table: Table, first: int, end: int) -> None:
        for number in sorted(each for each in table.pages if first <= each < end):
            self._sweep_page(replica, table, number)
        while table.alive:
            numbers = self._store.page_numbers(table.handle, first, end, PAGES_PER_TRANSACTION)
            for number in numbers:
                self._sweep_page(replica, table, number)
            await self._store_pages([table.pages[each] for each in numbers if each in table.pages])
            if len(numbers) < PAGES_PER_TRANSACTION:
                return
            first = numbers[-1] + 1

    async def _prune_versions(self) -> None:
        """Let go of what no snapshot shows any more: that is what brings the space of one back."""
        for replica in list(self._fold.replicas.values()):
            table = replica.table
            if not table.prune:
                continue
            table.prune = False
            try:
                await self._prune_table(replica, table)
            except BaseException:
                table.prune = True
                raise
            self._fold.changed.add(replica.info.replica)

    async def _prune_table(self, replica: Replica, table: Table) -> None:
        for number in [page.number for page in table.pages.values() if page.older]:
            self._prune_page(replica, table, number)
        table.tombstones.prune(table.keeps)
        first = 0
        while first < PAST_ALL:
            look = partial(self._store.pages_with_versions, table.handle, first, PAGES_PER_TRANSACTION)
            numbers, first = await self._lane.run(partial(look, PRUNE_AT_ONCE))
            if not table.alive:
                return  # it was dropped, or begun anew
            for number in numbers:
                self._prune_page(replica, table, number)
            await self._store_pages([table.pages[each] for each in numbers if each in table.pages])

    def _prune_page(self, replica: Replica, table: Table, number: int) -> None:
        try:
            self._index.prune(self._index.page(table, number))
        except Corrupt as error:
            self._fold.damage(replica, str(error))

    def _sweep_page(self, replica: Replica, table: Table, number: int) -> None:
        try:
            self._index.page(table, number)
        except Corrupt as error:
            self._fold.damage(replica, str(error))

    def _release(self, packed: bytes) -> None:
        for location in stored_locations(packed):
            self._index.live[location >> OFFSET_BITS] -= BLOCK_SIZE

    # -- afterwards ---------------------------------------------------------------------------------------

    def _free(self, freed: set[int]) -> None:
        for number in sorted(freed):
            segment = self._log.segments.pop(number)
            self._index.live.pop(number, None)
            self._log.release(segment)


def _ranges(tombstones: dict[int, Losses]) -> dict[int, list[Range]]:
    return {handle: ranges for handle, (_, ranges) in tombstones.items()}


def _lists(replica: Replica) -> bool:
    """Whether a pending record is about snapshots."""
    return any(record.kind == Kind.SNAPSHOTS for record, _ in replica.pending())


def pack_replica(replica: Replica) -> bytes:
    """What a checkpoint says of a replica: description, table, state, pending records and their places, and
    its snapshots if there ever were some."""
    pending = [[pack_head(record), location] for record, location in replica.pending()]
    table = replica.table
    fields = [replica.info.pack(), table.handle, replica.state.pack(), pending]
    prune = table.prune or table.kept_blindly
    if table.snapshots_lsn or prune:
        fields.append([table.snapshots_lsn, table.snapshots, prune])
    packed: bytes = msgpack.packb(fields)
    return packed
