"""Planted bugs of the store, for histories of one store (``moorage.simulation.store_history``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import msgpack
import pytest

from moorage.node import checkpointer, reader, replay, scrub, segment
from moorage.node.checkpoint import IndexStore, Meta
from moorage.node.checkpointer import Checkpointer
from moorage.node.checks import Check
from moorage.node.compaction import Compactor
from moorage.node.fold import Fold
from moorage.node.index import Index, Table
from moorage.node.log import Log, Queued
from moorage.node.opening import Opening
from moorage.node.page import LSNS, PAGE_BLOCKS, Page, Version
from moorage.node.recovery import Cursor, Found, Place, Verdict
from moorage.node.replay import Replay, Step
from moorage.node.replica import Replica
from moorage.node.scheduler import Scheduler, Work
from moorage.node.scrub import Scrubber
from moorage.node.segment import (
    OFFSET_BITS,
    Entry,
    EntryKind,
)
from moorage.node.store import Store
from moorage.node.tombstones import Keeps, Range, Tombstones
from moorage.quorum.state import MemberState
from moorage.simulation.disk import SimFile
from moorage.simulation.store_history import Failed, run_seed
from moorage.wire import errors

from .catalogue import first_words, planted


def run(seed: int) -> object:
    return run_seed(seed)


def verdict(error: BaseException) -> str | None:
    cause = error.cause if isinstance(error, Failed) else error
    if isinstance(cause, errors.MoorageError | AssertionError):
        return first_words(cause)
    return None


# -- the log -------------------------------------------------------------------------------------------


@planted("store", "sync")
def no_fdatasync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group commit is acknowledged when it is written: nobody asks for it to be synced."""
    monkeypatch.setattr(SimFile, "fdatasync", lambda self: None)


@planted("store", "sync")
def told_before_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group commit is folded and acknowledged while it is still being written."""
    real = Log._write

    def write(self: Log, segment: Any, taken: list[Queued], buffers: Any) -> None:
        def submit(work: Callable[[], object], done: Callable[[object, Any], None]) -> None:
            lane.submit(work, lambda *_: None)
            self._call_soon(lambda: done(None, None))

        lane = self._lane
        self._lane = type("Hasty", (), {"submit": staticmethod(submit)})()
        try:
            real(self, segment, taken, buffers)
        finally:
            self._lane = lane

    monkeypatch.setattr(Log, "_write", write)


@planted("store", "sync", rare=True)
def failed_sync_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fdatasync that failed is asked for again, and succeeds: the kernel has forgotten the pages."""
    real = SimFile.fdatasync

    def fdatasync(self: SimFile) -> None:
        try:
            real(self)
        except OSError:
            real(self)

    monkeypatch.setattr(SimFile, "fdatasync", fdatasync)


@planted("store", "sync")
def failed_write_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that failed costs its own group commit only: the device goes on."""
    real = Log._broken

    def broken(self: Log, taken: list[Queued], error: BaseException, *rest: Any) -> None:
        if isinstance(error, OSError):
            self._tell(taken, errors.DeviceFailed("once"))
            for replica, entry in taken:
                if replica.last_entry is entry:
                    replica.last_entry = None
                if entry.barrier:
                    replica.barriers -= 1
            self._schedule()
            return
        real(self, taken, error, *rest)

    monkeypatch.setattr(Log, "_broken", broken)


@planted("store", "sync", rare=True)
def start_does_not_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process left in the page cache counts at the next start, and is not synced."""

    async def sync(self: Opening, found: Any, end: Any) -> None:
        pass

    monkeypatch.setattr(Opening, "_sync", sync)


@planted("store", "10", rare=True)
def former_life_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither segment nor group number of a frame is compared: bytes of a file's former life are replayed."""

    def look(self: Replay, at: Cursor) -> Any:
        file = self._found.files[self._found.names[at.segment]]
        header = replay._frame_at(file, at.offset, None, self._seed)
        if header is None:
            return Found.BAD, None, []
        frame = bytearray(header.frame_size)
        file.preadv([frame], at.offset)
        entries = list(segment.parse_entries(memoryview(frame), header))
        return (Found.WHOLE if all(each.whole for each in entries) else Found.PART), header, entries

    monkeypatch.setattr(Replay, "_look", look)


@planted("store", "10")
def former_life_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not record where the log ended: a torn tail is met again behind which the log goes on."""
    real = Log.begin_life

    def begin_life(self: Log, previous: int, previous_end: int, number: int, group: int) -> None:
        real(self, previous, self.segment_size, number, group)

    monkeypatch.setattr(Log, "begin_life", begin_life)


# -- recovery ----------------------------------------------------------------------------------------------


@planted("store", "9", rare=True)
def rot_ends_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad bytes before later group commits are taken for a torn tail."""

    def judge(place: Place) -> Verdict:
        if place.at_recorded_end:
            return Verdict.LIFE_END
        return Verdict.KEEP if place.found is Found.WHOLE else Verdict.TORN_TAIL

    monkeypatch.setattr(replay, "judge", judge)


@planted(
    "store",
    "9",
    rare=True,
    excuse="it takes some 450 histories, which is a minute or a little more: was caught after 452 (60.4 s)",
)
def damaged_entry_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that does not match its checksum is passed over, and nobody hears of it."""
    monkeypatch.setattr(Opening, "_damage_one", lambda self, head, step: None)


@planted("store", "9", rare=True)
def unreadable_group_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group commit of which nothing can be read is passed over."""
    monkeypatch.setattr(Opening, "_damage_all", lambda self, what: None)


@planted("store", "9")
def torn_tail_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn last group commit is taken for damage: every crash would cost a copy."""
    real = Opening._step

    def step(self: Opening, found: Step) -> None:
        if found.verdict is Verdict.TORN_TAIL and found.at.offset % 1024:
            self._damage_all("torn")
        real(self, found)

    monkeypatch.setattr(Opening, "_step", step)


@planted("store", "replay")
def replay_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last group commit of a log is left out of its replay."""
    real = Replay.batch

    def batch(self: Replay) -> list[Step]:
        steps = real(self)
        if steps and steps[-1].verdict is Verdict.TORN_TAIL and len(steps) > 1:
            del steps[-2]
        return steps

    monkeypatch.setattr(Replay, "batch", batch)


@planted("store", "9", rare=True)
def entry_data_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay compares the checks of heads and bodies only: a torn block of data counts as written."""
    monkeypatch.setattr(segment, "_data_whole", lambda head, body, data: True)


@planted("store", "8", rare=True)
def lost_promise_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica whose note is damaged is called damaged, and its promise taken for known."""
    monkeypatch.setattr(Fold, "lose_promise", lambda self, replica, what: self.damage(replica, what))


@planted("store", "25", rare=True)
def reset_keeps_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from nothing keeps the blocks of before."""

    def note(self: Store, replica: Replica, packed: bytes, ticket: int) -> None:
        state = MemberState.unpack(packed)
        entry = Entry(EntryKind.STATE)
        entry.add_body(packed)
        entry.ticket = ticket
        replica.noted = state
        replica.last_queued, replica.apply_target = state.last, state.commit
        self._put(replica, entry, barrier=True)

    monkeypatch.setattr(Store, "note", note)


@planted("store", "drop", rare=True)
def drop_told_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a replica is gone is answered before the log says so."""

    def drop(self: Store, identity: int, done: Any) -> None:
        self.log.put(self.replica(identity), Entry(EntryKind.DROP))
        done(None)

    monkeypatch.setattr(Store, "drop", drop)


@planted("store", "create")
def create_told_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a replica is there is answered before the log says so."""
    real = Store.create

    def create(self: Store, info: Any, done: Any) -> None:
        real(self, info, lambda error: None)
        replica, _ = self.log._queue._queues[info.volume][-1]
        self.fold.replicas[info.replica] = replica
        done(None)

    monkeypatch.setattr(Store, "create", create)


# -- checkpoints ------------------------------------------------------------------------------------------


@planted("store", "15")
def checkpoint_ahead_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint says that the group commit under way is in it."""

    def end(self: Log) -> tuple[int, int, int]:
        assert self._durable_segment is not None
        extra = 1 if self._busy else 0
        return self._durable_segment.number, self._durable_segment.end + 512 * extra, self.group + 1 + extra

    monkeypatch.setattr(Log, "end", end)


@planted("store", "15")
def checkpoint_position_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay position is taken at the end of a checkpoint, the states at its beginning."""
    real = Checkpointer._store_pages
    finish = IndexStore.finish

    async def store_pages(self: Checkpointer, pages: list[Page]) -> None:
        await real(self, pages)
        late.append(self._log.end())

    def finish_late(self: IndexStore, meta: Meta, *rest: Any) -> None:
        if late:
            meta.segment, meta.offset, meta.group = late.pop()
        finish(self, meta, *rest)

    late: list[tuple[int, int, int]] = []
    monkeypatch.setattr(Checkpointer, "_store_pages", store_pages)
    monkeypatch.setattr(IndexStore, "finish", finish_late)


@planted("store", "6")
def checkpoint_drops_pending_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are not applied yet are missing from a checkpoint."""

    def pack(replica: Replica) -> bytes:
        state = replica.state.clone()
        state.last = state.commit
        packed: bytes = msgpack.packb([replica.info.pack(), replica.table.handle, state.pack(), []])
        return packed

    monkeypatch.setattr(checkpointer, "pack_replica", pack)


@planted("store", "6")
def checkpoint_drops_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint has the records, and the promise only up to their epoch."""
    real = checkpointer.pack_replica

    def pack(replica: Replica) -> bytes:
        state, kept = replica.state, replica.state.clone()
        kept.epoch = kept.writer = max((epoch for epoch, _ in kept.history), default=0)
        replica.state = kept
        try:
            return real(replica)
        finally:
            replica.state = state

    monkeypatch.setattr(checkpointer, "pack_replica", pack)


@planted("store", "11")
def checkpoint_drops_chunk_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discards of whole chunks are in memory and in the log, but in no checkpoint."""
    real = checkpointer._ranges

    def ranges(tombstones: dict[int, checkpointer.Losses]) -> dict[int, list[Range]]:
        return {handle: [] for handle in real(tombstones)}

    monkeypatch.setattr(checkpointer, "_ranges", ranges)


@planted("store", "11")
def checkpoint_drops_block_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discarded blocks are stored as if they had never been written."""
    real = IndexStore.write_pages

    def write_pages(self: IndexStore, pages: list[tuple[bytes, bytes | None]], *rest: Any) -> None:
        kept = []
        for key, cells in pages:
            changed = memoryview(bytearray(cells or b"")).cast("Q")
            for at in range(32 if cells else 0):
                if not changed[at]:
                    changed[64 + at] = 0
            kept.append((key, changed.tobytes() if cells else None))
        real(self, kept, *rest)

    monkeypatch.setattr(IndexStore, "write_pages", write_pages)


@planted("store", "11")
def chunk_tombstone_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay applies writes and discards of blocks, and forgets discards of whole chunks."""
    real, zero_chunks = Opening._replay, Index.zero_chunks
    replaying: WeakSet[Index] = WeakSet()  # a history that ends amid a replay must not leave the bug behind

    async def replayed(self: Opening, *rest: Any) -> Any:
        index = self._store.index
        replaying.add(index)
        try:
            return await real(self, *rest)
        finally:
            replaying.discard(index)

    def forgets(self: Index, *args: Any) -> None:
        if self not in replaying:
            zero_chunks(self, *args)

    monkeypatch.setattr(Opening, "_replay", replayed)
    monkeypatch.setattr(Index, "zero_chunks", forgets)


@planted("store", "16")
def dirty_page_called_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that has changed while it was being stored counts as stored."""

    def stored(self: Index, page: Page, version: int) -> None:
        if page.dirty:
            page.dirty = False
            del self.dirty[page]

    monkeypatch.setattr(Index, "stored", stored)


@planted("store", "16", rare=True)
def segment_freed_before_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is written again before the checkpoint that does without it is complete."""
    real = Checkpointer._unused

    def unused(self: Checkpointer, before: int) -> set[int]:
        freed = real(self, before)
        self._free(freed)
        return set()

    monkeypatch.setattr(Checkpointer, "_unused", unused)


@planted("store", "16")
def segment_of_pending_records_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is freed when no block is in it: pending and recent records are not asked."""

    def unused(self: Checkpointer, before: int) -> set[int]:
        live = self._index.live
        return {number for number in self._log.segments if number < before and live.get(number, 0) <= 0}

    monkeypatch.setattr(Checkpointer, "_unused", unused)


@planted(
    "store",
    "16",
    rare=True,
    excuse="reads are short: of some 150 to 600 histories one has a read under way when its file is written"
    " again",
)
def segment_freed_under_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment's file is written again while a read of it is under way."""

    def reclaim(self: Log) -> None:
        waiting, self._leaving = self._leaving, []
        for each in waiting:
            self.add_free(each)

    monkeypatch.setattr(Log, "reclaim", reclaim)


# -- compaction ----------------------------------------------------------------------------------------------


@planted("store", "16")
def compaction_drops_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of a run is not moved, and taken off the account."""
    real = Compactor._move_blocks

    async def move_blocks(self: Compactor, segment: Any) -> int:
        moved = await real(self, segment)
        self._index.live[segment.number] = 0
        return moved

    def alive(self: Compactor, candidate: Any, segment: Any, real: Any = Compactor._alive) -> Any:
        found = real(self, candidate, segment)
        return found[:-1] if candidate[2] % 4 == 3 else found

    monkeypatch.setattr(Compactor, "_move_blocks", move_blocks)
    monkeypatch.setattr(Compactor, "_alive", alive)


@planted("store", "16")
def compaction_moves_with_a_new_lsn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moved block gets the LSN of now, as if it had been written again."""
    real = Compactor._alive

    def alive(self: Compactor, candidate: Any, segment: Any) -> Any:
        return [
            (replica, run._replace(lsns=tuple(max(lsn, replica.state.commit) for lsn in run.lsns)), extent)
            for replica, run, extent in real(self, candidate, segment)
        ]

    monkeypatch.setattr(Compactor, "_alive", alive)


@planted("store", "16")
def moved_block_wins_over_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was written while it was being moved becomes the old one again."""

    def merge(self: Index, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        page = self.page(table, chunk * 32 + block // 32)
        self._release(table, page.cells[block & 31])
        self._fill(page, block & 31, location, check, lsn)

    monkeypatch.setattr(Index, "merge", merge)


@planted("store", "16")
def pending_records_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction says that it has moved pending records, and their places stay the old ones."""
    real = Fold._moved

    def moved(self: Fold, replica: Replica, records: Any, location: int) -> None:
        places = {lsn: where for lsn, (_, where) in replica.tail.items()}
        real(self, replica, records, location)
        for record in records:
            held = replica.tail.get(record.lsn)
            if held is not None and record.lsn in places:
                replica.tail[record.lsn] = (held[0], location ^ places[record.lsn] ^ location)
        self.left_behind = {places.get(r.lsn, 0) >> OFFSET_BITS for r in records}  # type: ignore[attr-defined]

    def unused(self: Checkpointer, before: int, real: Any = Checkpointer._unused) -> Any:
        left = getattr(self._fold, "left_behind", set())
        live = self._index.live
        return real(self, before) | {
            number for number in left & self._log.segments.keys() if number < before and live[number] <= 0
        }

    monkeypatch.setattr(Fold, "_moved", moved)
    monkeypatch.setattr(Checkpointer, "_unused", unused)


@planted("store", "16", rare=True)
def corrupt_block_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction gives a rotten block the checksum of what it has read."""
    real = Compactor._move

    async def move(self: Compactor, batch: Any) -> int:
        data, places = await self._fetch([extent for _, _, extent in batch])
        renewed = []
        for (replica, run, extent), at in zip(batch, places, strict=True):
            raw = bytes(data[at : at + extent.size])
            sums = tuple(segment._xxh3(raw[n : n + 4096]) for n in range(0, len(raw), 4096))
            renewed.append((replica, run._replace(sums=sums), extent))
        return await real(self, renewed)

    def merge(self: Index, table: Table, chunk: int, block: int, location: int, check: int, lsn: int) -> None:
        page = self.page(table, chunk * 32 + block // 32)
        if page.cells[64 + (block & 31)] <= lsn and table.tombstones.lsn(chunk) < lsn:
            self._release(table, page.cells[block & 31])
            self._fill(page, block & 31, location, check, lsn)

    monkeypatch.setattr(Compactor, "_move", move)
    monkeypatch.setattr(Index, "merge", merge)


# -- index and reads ---------------------------------------------------------------------------------------


@planted("store", "checksums", rare=True)
def checksum_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read hands out what the disk gave."""
    monkeypatch.setattr(reader, "first_bad_block", lambda sums, data: -1)
    real = reader.Reader._read_one

    def read_one(self: Any, replica: Replica, chunk: int, block: int) -> Any:
        sums, extents = self._locate(replica, chunk, block, 1)
        data = bytearray(4096)
        if not extents:
            return sums, None
        return (sums, data) if self._now(extents, data) else None

    assert real is not None
    monkeypatch.setattr(reader.Reader, "_read_one", read_one)


@planted("store", "11")
def evicted_page_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that comes back from the disk is taken as it is: a discard that came meanwhile is not in it."""
    real = Index._fetch

    def fetch(self: Index, table: Table, number: int) -> Page:
        page = real(self, table, number)
        page.swept = table.tombstones.version
        return page

    monkeypatch.setattr(Index, "_fetch", fetch)


@planted("store", "16")
def dirty_page_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is short: a page goes that is not stored yet."""

    def evict(self: Index) -> None:
        for _ in range(min(8, len(self._ring) - 1)):
            page = self._ring.popleft()
            if page.table.alive:
                page.table.pages.pop(page.number, None)
                self.dirty.pop(page, None)

    monkeypatch.setattr(Index, "_evict", evict)


@planted("store", "11")
def newer_range_splits_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discard of chunks takes the place of all that it overlaps, also of newer ones."""

    def add(self: Tombstones, first: int, end: int, lsn: int, keeps: Keeps) -> None:
        kept = [each for each in self._ranges if each[1] <= first or each[0] >= end]
        self._ranges = sorted([*kept, (first, end, lsn)])
        self.version += 1
        self.unswept.append((first, end))

    monkeypatch.setattr(Tombstones, "add", add)


@planted("store", "12")
def notes_pass_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note passes records: a promise is answered before the records in front of it are durable."""
    real = Store._put

    def put(self: Store, replica: Replica, entry: Entry, barrier: bool) -> None:
        real(self, replica, entry, barrier)
        if entry.kind == EntryKind.STATE:
            queue = self.log._queue._queues[replica.info.volume]
            queue.appendleft(queue.pop())

    monkeypatch.setattr(Store, "_put", put)


@planted("store", "handles")
def handle_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart gives out the handles of tables that are being swept."""
    monkeypatch.setattr(Meta, "pack", _pack_without_handle)


def _pack_without_handle(self: Meta) -> bytes:
    packed: bytes = msgpack.packb([1, self.segment, self.offset, self.group, 1, self.segments])
    return packed


# -- scrub and the scheduler -----------------------------------------------------------------------------


@planted("store", "scrub")
def scrub_skips_a_bad_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that does not match is passed over in silence."""
    monkeypatch.setattr(scrub, "find_bad", lambda segment, piece: [])


@planted("store", "scrub")
def scrub_takes_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was overwritten or moved while it was read is called bad."""
    monkeypatch.setattr(Scrubber, "_is_there", lambda self, replica, block, place: True)


@planted("store", "scrub")
def verified_with_bad_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that came to its end is a clean one."""
    monkeypatch.setattr(Check, "verified_ms", property(lambda self: self.passed_ms))


@planted("store", "scrub")
def scrub_believes_stored_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the index that does not match its checksum is one without blocks."""
    monkeypatch.setattr(Index, "refresh", lambda self, table, number: True)


@planted("store", "scrub")
def mended_blocks_stay_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was written again is never taken off the list."""
    monkeypatch.setattr(Check, "forget_mended", lambda self, is_there: False)


@planted("store", "scheduler")
def scheduler_starves_scrub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due has no account of its own: who always asks takes all, and scrub, which takes no more than
    is due, nothing."""
    real = Scheduler.admit

    def admit(self: Scheduler, work: Work, size: int, now: float, *, spare: bool = True) -> float:
        self._own[work].balance = -1.0
        self._own[work].at = now
        return 1.0 if not spare or work is Work.SCRUB else real(self, work, size, now, spare=spare)

    monkeypatch.setattr(Scheduler, "admit", admit)


# -- snapshots -------------------------------------------------------------------------------------------


@planted("store", "scrub")
def scrub_looks_at_no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass reads the blocks as they are, and nothing that only snapshots show."""
    real = Index.shown

    def places(self: Scrubber, table: Table, number: int, stored: bytes | None) -> list[scrub.Place]:
        monkeypatch.setattr(Index, "shown", staticmethod(lambda page, at: page.everything(at)[-1:]))
        try:
            return real_places(self, table, number, stored)
        finally:
            monkeypatch.setattr(Index, "shown", staticmethod(real))

    real_places = Scrubber._places
    monkeypatch.setattr(Scrubber, "_places", places)


@planted(
    "store",
    "snapshots",
    rare=True,
    excuse="the process must end between the pages of a checkpoint and its last transaction, when the list"
    " that they were pruned by had been applied, and no group commit since had said so",
)
def losses_without_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pages have lost by a new list of snapshots is stored without that list."""
    monkeypatch.setattr(
        Table, "losses", property(lambda self: ((self.tombstones.version, 0), list(self.tombstones)))
    )


@planted("store", "snapshots")
def compaction_drops_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is moved is let go of: it is not what the block is."""
    real = Index._merge_older

    def merge_older(self: Index, page: Page, at: int, version: Version) -> None:
        known = page.find(at, version.lsn)
        if known is None:
            real(self, page, at, version)
            return
        page.older[at].remove(known)
        self._release(page.table, known.location)
        if not page.older[at]:
            del page.older[at]
        self._touch(page)

    monkeypatch.setattr(Index, "_merge_older", merge_older)


@planted("store", "snapshots")
def start_forgets_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint does not say which snapshots there are."""
    real = Opening._unpack

    def unpack(self: Opening, identity: int, packed: Any) -> Replica:
        return real(self, identity, packed and packed[:4])

    monkeypatch.setattr(Opening, "_unpack", unpack)


@planted("store", "snapshots")
def discard_takes_what_snapshots_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is swept lets go of all that is older than the discard."""

    def bury(self: Index, page: Page, at: int, lsn: int) -> None:
        self._release(page.table, page.cells[at])
        page.cells[at] = page.cells[PAGE_BLOCKS + at] = page.cells[LSNS + at] = 0
        self._touch(page)

    monkeypatch.setattr(Index, "_bury", bury)


@planted("store", "snapshots")
def list_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of snapshots takes the place of a newer one."""

    def set_snapshots(self: Index, table: Table, snapshots: list[int], lsn: int) -> None:
        table.prune = table.prune or not set(table.snapshots) <= set(snapshots)
        table.snapshots, table.snapshots_lsn = snapshots, lsn

    monkeypatch.setattr(Index, "set_snapshots", set_snapshots)


@planted("store", "snapshots")
def replay_keeps_what_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay keeps of each block what the list shows that it has come to."""
    real = Fold.new_table

    def new_table(self: Fold, handle: int) -> Table:
        table = real(self, handle)
        table.keep_all = False
        return table

    monkeypatch.setattr(Fold, "new_table", new_table)


@planted("store", "snapshots")
def older_discards_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the discards of a chunk the last one is kept alone."""
    real = Tombstones.add

    def add(self: Tombstones, first: int, end: int, lsn: int, keeps: Keeps) -> None:
        real(self, first, end, lsn, lambda lsn, following: False)

    monkeypatch.setattr(Tombstones, "add", add)
