"""Scrub: all that the replicas of a device hold is read back from the disk and compared with its checksum.

Owns the passes (one replica after the other, the longest unchecked first), and the last word on whether a
block is bad: others only suspect one. Must never believe the page cache, call a block bad that was
overwritten or moved meanwhile, or end a pass that left something out.

What a pass reads: pending records; every page of the index as it is stored; every block that the index
refers to, past the page cache. It goes on where it was after a restart. What is written during a pass needs
no reading: a pass vouches for the time when it began.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import lmdb

from moorage.node.checkpoint import IndexStore, StoredPage
from moorage.node.checks import BAD_MAX, BadBlock, BadPlace, Check, overdue_rate
from moorage.node.fold import Fold
from moorage.node.index import Index, Table
from moorage.node.lane import Lane
from moorage.node.log import Log, Segment
from moorage.node.metrics import StoreMetrics
from moorage.node.pacing import Pacer
from moorage.node.page import LSNS, PAGE_BLOCKS, PAGES_PER_CHUNK, Page
from moorage.node.replica import Replica
from moorage.node.scheduler import Work
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.quorum.record import BLOCK_SIZE, Kind, block_sum
from moorage.wire.buffers import ALIGNED_SIZE, PAGE, payload_buffer
from moorage.wire.errors import Corrupt, MoorageError

log = logging.getLogger(__name__)

TICK_S = 1.0
RETRY_S = 5.0  # after an index that could not be read or written
SAVE_S = 10.0  # of a pass that a restart does again
PAGES_AT_ONCE = 64  # of the index: 8 MiB of blocks, sorted by their place, so that the disk seeks less
GAP = 16 << 10  # read over rather than begin anew
LEAST_SHARE = 10  # a pass that is late has a tenth of the period
SUSPECTS_MAX = 1024  # more are found by the next pass


class Place(NamedTuple):
    """A block that is to be looked at."""

    location: int
    check: int
    chunk: int
    block: int
    lsn: int


class Scrubber:
    """``load`` before the store serves, ``run`` as a task. ``on_bad(replica)``: its bad blocks are others."""

    def __init__(
        self,
        fold: Fold,
        index: Index,
        log_: Log,
        index_lane: Lane,
        lane: Lane,
        pacer: Pacer,
        metrics: StoreMetrics,
        period_s: float,
    ) -> None:
        self._fold = fold
        self._index = index
        self._log = log_
        self._index_lane = index_lane
        self._lane = lane
        self._pacer = pacer
        self._metrics = metrics
        self._period_s = period_s
        self._store: IndexStore
        self.checks: dict[int, Check] = {}  # by handle
        self._stored: set[int] = set()
        self._saved_at = 0.0
        self._suspects: dict[tuple[int, BadBlock], None] = {}
        self.on_bad: Callable[[Replica], None] = _nobody
        fold.on_table = self._born

    def load(self, store: IndexStore) -> None:
        """What the last life knew (blocking)."""
        self._store = store
        for handle, packed in store.checks():
            self._stored.add(handle)
            found = None if packed is None else Check.unpack(handle, packed)
            if found is not None:
                self.checks[handle] = found

    # -- what others say and ask ---------------------------------------------------------------------

    def _born(self, replica: Replica) -> None:
        """Its table is new: what comes into it has its checksum compared on the way."""
        handle = replica.table.handle
        self.checks[handle] = Check(replica.info.replica, handle, _now_ms())

    def suspect(self, replica: Replica, chunk: int, block: int) -> None:
        """Somebody has read a block that does not match: is that what the disk has?"""
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects[replica.info.replica, (chunk, block)] = None

    def ask(self, replica: Replica) -> None:
        """A pass over this replica is wanted now: one that is under way by itself began too early for that,
        and begins anew. One that was asked for goes on, or who asks often would see the end of none."""
        check = self.check(replica)
        if not check.asked:
            check.asked, check.began_ms = True, 0

    def check(self, replica: Replica) -> Check:
        handle, identity = replica.table.handle, replica.info.replica
        found = self.checks.get(handle)
        if found is None or found.replica != identity:
            found = self.checks[handle] = Check(identity, handle)
        return found

    # -- passes ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._tick()
            except (OSError, lmdb.Error, MoorageError) as error:
                log.warning("scrub: %s; will try again", error)
                await asyncio.sleep(RETRY_S)

    async def _tick(self) -> None:
        await self._look_at_suspects()
        await self._look_at_bad()
        replica = self._next()
        if replica is not None:
            await self._pass(replica)

    def _next(self) -> Replica | None:
        """The one that was not checked for the longest time, if it is due."""
        due = [
            (not check.asked, check.passed_ms, replica.info.replica)
            for replica in self._fold.replicas.values()
            if self._may_scrub(replica) and self._is_due(check := self.check(replica))
        ]
        return self._fold.replicas[min(due)[2]] if due else None

    @staticmethod
    def _may_scrub(replica: Replica) -> bool:
        """What is damaged or being copied is written anew anyhow."""
        return not replica.damaged and replica.state.copy is None

    def _is_due(self, check: Check) -> bool:
        """In time for a pass as long as half of the period to end within it."""
        if check.asked or (self._period_s and check.began_ms):
            return True
        return self._period_s > 0 and self._left_s(check) <= self._period_s / 2

    def _left_s(self, check: Check) -> float:
        age_s = (_now_ms() - check.passed_ms) / 1000
        return self._period_s - age_s if age_s >= 0 else 0.0  # a clock was wrong: nothing is known

    def set_due(self) -> None:
        """Tell the pacer how fast this has to go to be in time."""
        due = []
        for replica in self._fold.replicas.values():
            check = self.check(replica)
            if self._period_s and self._may_scrub(replica) and self._is_due(check):
                due.append((self._left_s(check), max(0, replica.table.live - check.done)))
        rate = overdue_rate(due, self._period_s / LEAST_SHARE) if due else 0.0
        self._pacer.set_due(Work.SCRUB, self, rate, 60.0)

    async def _pass(self, replica: Replica) -> None:
        table, check = replica.table, self.check(replica)
        if not check.began_ms:
            check.begin(_now_ms())
        log.info("scrub of replica %d, from page %d on", replica.info.replica, check.page)
        await self._verify(replica, self._pending(replica))
        fresh = self._unstored(table)
        following: int | None = check.page
        while following is not None:
            self.set_due()
            places, following = await self._scan(replica, table, following, fresh)
            await self._verify(replica, places)
            if not self._is_still(replica, table) or not check.began_ms:
                return
            if following is not None:
                check.page = following
                await self._save_soon(check)
            await self._look_at_suspects()
        if not check.began_ms:
            return  # a pass was asked for at the very end of this one, which began too early for that
        check.complete()
        self._metrics.scrub_passes += 1
        log.info("scrub of replica %d is done: %d bad blocks", replica.info.replica, len(check.bad))
        await self._save(check)

    def _is_still(self, replica: Replica, table: Table) -> bool:
        identity = replica.info.replica
        return (
            self._fold.replicas.get(identity) is replica
            and replica.table is table
            and self._may_scrub(replica)
        )

    def _unstored(self, table: Table) -> list[int]:
        """Pages that LMDB may not have. Those of a later time have later blocks only."""
        return sorted(page.number for page in self._index.dirty if page.table is table)

    async def _scan(
        self, replica: Replica, table: Table, first: int, fresh: list[int]
    ) -> tuple[list[Place], int | None]:
        """Blocks of the next pages, and the page to go on with."""
        read = partial(self._store.pages, table.handle, first, PAGES_AT_ONCE)
        stored: list[StoredPage] = await self._index_lane.run(read)
        self._metrics.scrubbed_pages += len(stored)
        end = stored[-1].number + 1 if len(stored) == PAGES_AT_ONCE else 1 << 62
        pages = {page.number: page.packed for page in stored}
        for number in fresh[bisect_left(fresh, first) : bisect_left(fresh, end)]:
            pages.setdefault(number, b"")
        places: list[Place] = []
        for number, packed in sorted(pages.items()):
            if packed is None and not self._index.refresh(table, number):
                self._fold.damage(replica, f"index page {number} does not match its checksum")
                return [], None
            places += self._places(table, number, packed or None)
        return places, end if end < 1 << 62 else None

    def _places(self, table: Table, number: int, stored: bytes | None) -> list[Place]:
        """Of a page as it is in memory, or as it is ``stored``."""
        page = table.pages.get(number) or Page(table, number, stored)
        chunk, block = number // PAGES_PER_CHUNK, number % PAGES_PER_CHUNK * PAGE_BLOCKS
        return [
            Place(each.location, each.check, chunk, block + at, each.lsn)
            for at in range(PAGE_BLOCKS)
            for each in self._index.shown(page, at)
            if each.location
        ]

    @staticmethod
    def _pending(replica: Replica) -> list[Place]:
        places = []
        for record, location in replica.pending():
            if record.kind == Kind.WRITE:
                sums = memoryview(record.sums).cast("Q")
                places += [
                    Place(location + at * BLOCK_SIZE, sums[at], record.chunk, record.block + at, record.lsn)
                    for at in range(record.count)
                ]
        return places

    # -- blocks --------------------------------------------------------------------------------------

    async def _verify(self, replica: Replica, places: list[Place]) -> None:
        """Read them back, in pieces; note those that are bad."""
        places.sort()
        at = 0
        while at < len(places):
            end = _piece_end(places, at, self._pacer.piece())
            piece, at = places[at:end], end
            await self._admitted(replica, _span(piece))
            bad = await self._read_back(piece)
            self.check(replica).done += len(piece) * BLOCK_SIZE
            self._metrics.scrubbed_bytes += len(piece) * BLOCK_SIZE
            found = [each for each in bad if self._is_there(replica, each[2:4], (each.location, each.lsn))]
            if found:
                await self._found_bad(replica, found)

    async def _admitted(self, replica: Replica, size: int) -> None:
        """What is due, and no more: nobody waits for it. If somebody asked, what users leave too."""
        await self._pacer.admitted(Work.SCRUB, size, spare=self.check(replica).asked)

    async def _read_back(self, piece: list[Place]) -> list[Place]:
        segment = self._log.segments.get(piece[0].location >> OFFSET_BITS)
        if segment is None:
            return piece  # it was freed meanwhile, or should not have been
        segment.readers += 1
        try:
            return await self._lane.run(partial(find_bad, segment, piece))
        finally:
            segment.readers -= 1

    def _is_now(self, replica: Replica, block: BadBlock, place: BadPlace) -> bool:
        """The block is at this place, not only what a snapshot shows of it."""
        if not self._is_there(replica, block, place):
            return False
        page = self._index.page(replica.table, _page_of(block))
        return place[1] >= page.cells[LSNS + block[1] % PAGE_BLOCKS]

    def _is_there(self, replica: Replica, block: BadBlock, place: BadPlace) -> bool:
        """The replica still shows this block from this place, unless it was dropped meanwhile."""
        if not replica.table.alive:
            return False
        try:
            if self._index.has(replica.table, *block, *place):
                return True
        except Corrupt as error:
            self._fold.damage(replica, str(error))
            return True
        record, data_at = replica.tail.get(place[1], (None, 0))
        if record is None or place[1] <= replica.state.commit or record.chunk != block[0]:
            return False
        at = block[1] - record.block
        return 0 <= at < record.count and data_at + at * BLOCK_SIZE == place[0]

    async def _found_bad(self, replica: Replica, bad: list[Place]) -> None:
        check = self.check(replica)
        for each in bad:
            block, place = each[2:4], (each.location, each.lsn)
            is_new = check.bad.get(block) != place and place not in check.versions
            if self._is_now(replica, block, place):
                check.bad[block] = place
            else:
                check.versions[place] = block
            if is_new:
                self._metrics.scrub_bad_blocks += 1
                log.error(
                    "replica %d: chunk %d block %d in segment %d does not match its checksum on the disk",
                    replica.info.replica,
                    each.chunk,
                    each.block,
                    each.location >> OFFSET_BITS,
                )
        if check.count > BAD_MAX:
            self._fold.damage(replica, f"more than {BAD_MAX} of its blocks do not match their checksums")
        await self._save(check)
        self.on_bad(replica)

    async def _look_at_suspects(self) -> None:
        suspects, self._suspects = self._suspects, {}
        for identity, block in suspects:
            replica = self._fold.replicas.get(identity)
            if replica is None or not self._may_scrub(replica):
                continue
            try:
                stored = self._index.page(replica.table, _page_of(block))
            except Corrupt as error:
                self._fold.damage(replica, str(error))
                continue
            places = self._places(replica.table, stored.number, None) + self._pending(replica)
            await self._verify(replica, [each for each in places if each[2:4] == block])

    async def _look_at_bad(self) -> None:
        """Forget those that were written again, and what is known of tables that are gone."""
        known = {replica.table.handle: replica for replica in self._fold.replicas.values()}
        changed: dict[int, bytes | None] = dict.fromkeys(self._stored - known.keys())
        for handle, check in list(self.checks.items()):
            replica = known.get(handle)
            if replica is None or replica.info.replica != check.replica:
                del self.checks[handle]
                continue
            mended = check.count and check.forget_mended(
                partial(self._is_now, replica), partial(self._is_there, replica)
            )
            if mended:
                log.info("replica %d: %d bad blocks are left", check.replica, check.count)
                self.on_bad(replica)
            if mended or handle not in self._stored:
                changed[handle] = check.pack()
        if changed:
            await self._write(changed)

    # -- what a restart needs --------------------------------------------------------------------------

    async def _save_soon(self, check: Check) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._saved_at >= SAVE_S:
            await self._save(check)

    async def _save(self, check: Check) -> None:
        self._saved_at = asyncio.get_running_loop().time()
        await self._write({check.handle: check.pack()})

    async def _write(self, changed: dict[int, bytes | None]) -> None:
        await self._index_lane.run(partial(self._store.write_checks, changed))
        for handle, packed in changed.items():
            (self._stored.discard if packed is None else self._stored.add)(handle)


def _page_of(block: BadBlock) -> int:
    return block[0] * PAGES_PER_CHUNK + block[1] // PAGE_BLOCKS


def _piece_end(places: list[Place], first: int, size: int) -> int:
    """As many places as lie near one another in one segment, within about ``size`` bytes."""
    start = places[first].location
    at = first + 1
    while (
        at < len(places)
        and places[at].location >> OFFSET_BITS == start >> OFFSET_BITS
        and places[at].location - places[at - 1].location <= BLOCK_SIZE + GAP
        and places[at].location - start < size
    ):
        at += 1
    return at


def _span(piece: list[Place]) -> int:
    return piece[-1].location + BLOCK_SIZE - piece[0].location


def find_bad(segment: Segment, piece: list[Place]) -> list[Place]:
    """Those of these blocks that the disk does not give as they were written (blocking). Each is given a
    second chance by itself: a bad sector takes no others along, and not every error comes twice."""
    bad = _find_bad(segment, piece)
    return [each for each in bad if _find_bad(segment, [each])]


def _find_bad(segment: Segment, piece: list[Place]) -> list[Place]:
    first = piece[0].location & OFFSET_MASK & -PAGE
    size = -(-((piece[-1].location & OFFSET_MASK) + BLOCK_SIZE - first) // PAGE) * PAGE
    data = payload_buffer(max(size, ALIGNED_SIZE))[:size]
    try:
        got = segment.file.preadv_direct(data, first)
    except OSError as error:
        log.warning("segment %s from %d on cannot be read: %s", segment.name, first, error)
        got = 0
    bad = []
    for each in piece:
        at = (each.location & OFFSET_MASK) - first
        if at + BLOCK_SIZE > got or block_sum(data[at : at + BLOCK_SIZE]) != each.check:
            bad.append(each)
    return bad


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _nobody(replica: Replica) -> None:
    pass
