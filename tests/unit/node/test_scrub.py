"""Scrub on a disk double: what it finds, what it remembers, and what it must not call bad."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.node import scrub as scrub_module
from moorage.node import store as store_module
from moorage.node.checks import BAD_MAX, Check
from moorage.node.disk import RealDisk
from moorage.node.replica import Replica
from moorage.node.scrub import Scrubber
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.store import Store
from moorage.quorum.record import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    Kind,
    Position,
    Record,
    first_bad_block,
    pack_lsns,
)
from moorage.quorum.state import CopyState, MemberState
from moorage.wire.errors import Corrupt

from .test_compaction import Rig, block

HOUR_MS = 3_600_000


class Clock:
    """Milliseconds since 1970."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 1_700_000_000_000
        monkeypatch.setattr(scrub_module, "_now_ms", lambda: self.now_ms)
        monkeypatch.setattr(store_module, "check_index", _no_check)


async def _no_check(path: Path) -> None:
    """A process each time, and not what is tested here."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class ScrubRig(Rig):
    async def open(self) -> None:
        await super().open()
        await self.without_upkeep()

    async def reopen(self, checkpoint: bool = True) -> None:
        if checkpoint:
            await self.store.checkpoint()
        await self.store.close(checkpoint=False)
        self.store = Store(self.config, self.disk)
        await self.store.open()
        await self.without_upkeep()

    @property
    def scrubber(self) -> Scrubber:
        return self.store.scrubber

    @property
    def replica(self) -> Replica:
        return self.store.replica(1)

    @property
    def check(self) -> Check:
        return self.scrubber.check(self.replica)

    async def scrub(self) -> None:
        self.scrubber.ask(self.replica)
        for _ in range(3):  # suspects and mended blocks are looked at before, the pass is one tick
            await self.scrubber._tick()

    def rot(self, chunk: int, at: int) -> None:
        location, *_ = next(self.store.index.find(self.replica.table, chunk, at, 1))
        file = self.disk.files[self.store.log.segments[location >> OFFSET_BITS].name]
        file.now[(location & OFFSET_MASK) + 17] ^= 1


@pytest.fixture
async def rig(tmp_path: Path, clock: Clock) -> AsyncIterator[ScrubRig]:
    rig = ScrubRig(tmp_path)
    await rig.open()
    yield rig
    await rig.store.close(checkpoint=False)


async def test_a_replica_that_was_made_here_counts_as_checked_since_then(rig: ScrubRig, clock: Clock) -> None:
    await rig.write(0, 0, block(1, 3))
    assert rig.check.verified_ms == clock.now_ms
    born, clock.now_ms = clock.now_ms, clock.now_ms + HOUR_MS
    await rig.scrubber._tick()
    await rig.reopen()
    assert rig.check.verified_ms == born
    await rig.scrub()
    assert rig.check.verified_ms == clock.now_ms
    assert rig.store.metrics.scrubbed_bytes == 3 * BLOCK_SIZE
    await rig.reopen(checkpoint=False)
    assert rig.check.verified_ms == clock.now_ms


async def test_a_bad_block_is_remembered_until_it_is_written_again(rig: ScrubRig, clock: Clock) -> None:
    told: list[int] = []
    rig.scrubber.on_bad = lambda replica: told.append(len(rig.scrubber.check(replica).bad))
    await rig.write(0, 0, block(1, 40))
    rig.rot(0, 33)
    await rig.scrub()
    assert list(rig.check.bad) == [(0, 33)] and rig.check.verified_ms == 0 and told == [1]
    assert rig.store.metrics.scrub_bad_blocks == 1
    await rig.reopen()
    assert list(rig.check.bad) == [(0, 33)] and rig.check.verified_ms == 0
    rig.scrubber.on_bad = lambda replica: told.append(len(rig.scrubber.check(replica).bad))
    await rig.write(0, 33, block(2))
    await rig.scrubber._tick()
    assert not rig.check.bad and rig.check.verified_ms == clock.now_ms and told == [1, 0]
    await rig.reopen()
    assert not rig.check.bad


@pytest.mark.parametrize("how", ["overwritten", "discarded"])
async def test_a_bad_block_that_a_snapshot_shows_is_not_mended_by_another_write(
    rig: ScrubRig, how: str
) -> None:
    await rig.write(0, 0, block(1, 40))
    lsn = rig.replica.last_queued + 1
    await rig.log(rig.replica, Record(1, lsn, Kind.SNAPSHOTS, count=1, sums=pack_lsns([lsn])))
    rig.rot(0, 33)
    await rig.scrub()
    assert list(rig.check.bad) == [(0, 33)] and not rig.replica.damaged, "as it is now it can be mended"
    if how == "overwritten":
        await rig.write(0, 33, block(1))
    else:
        await rig.discard(0, 1)
    await rig.scrubber._tick()
    # The replica has all that is there now, and counts; what the snapshot shows is bad there, and it is said.
    assert not rig.replica.damaged and not rig.check.bad
    assert list(rig.check.versions.values()) == [(0, 33)] and rig.check.verified_ms == 0
    again = Check.unpack(rig.check.handle, rig.check.pack())
    assert again is not None and again.count == 1
    lsn = rig.replica.last_queued + 1
    await rig.log(rig.replica, Record(1, lsn, Kind.SNAPSHOTS))
    await rig.store.checkpoint()
    await rig.scrubber._tick()
    assert not rig.check.count, "nothing shows it any more"


@pytest.mark.parametrize("how", ["overwritten", "discarded"])
async def test_what_is_not_shown_any_more_is_not_looked_at(rig: ScrubRig, how: str) -> None:
    await rig.write(0, 0, block(1, 2))
    rig.rot(0, 1)
    if how == "overwritten":
        await rig.write(0, 1, block(2))
    else:
        await rig.discard(0, 1)
    await rig.scrub()
    assert not rig.check.bad and rig.check.verified_ms


async def test_what_is_overwritten_while_it_is_read_is_not_called_bad(
    rig: ScrubRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.write(0, 0, block(1, 2))
    rig.rot(0, 1)
    real = scrub_module.Scrubber._read_back

    async def read_back(self: Scrubber, piece: list[Any]) -> list[Any]:
        found = await real(self, piece)
        await rig.write(0, 1, block(2))
        return found

    monkeypatch.setattr(Scrubber, "_read_back", read_back)
    await rig.scrub()
    assert not rig.check.bad


@pytest.mark.parametrize("pending", [True, False])
async def test_what_is_dropped_while_it_is_read_is_not_called_bad(
    rig: ScrubRig, monkeypatch: pytest.MonkeyPatch, pending: bool
) -> None:
    replica = rig.replica
    await rig.log(replica, rig.record(replica, 0, 0, block(1, 2)), apply=not pending)
    await rig.store.checkpoint()

    async def read_back(self: Scrubber, piece: list[Any]) -> list[Any]:
        rig.store.drop(1, lambda error: None)
        await rig.store.flushed()
        return piece  # its segment has gone

    monkeypatch.setattr(Scrubber, "_read_back", read_back)
    rig.scrubber.ask(replica)
    await rig.scrubber._tick()
    assert not rig.scrubber.check(replica).bad and not rig.store.metrics.scrub_bad_blocks


async def test_a_sector_that_cannot_be_read_takes_no_others_along(rig: ScrubRig) -> None:
    await rig.write(0, 0, block(1, 40))
    location, *_ = next(rig.store.index.find(rig.replica.table, 0, 20, 1))
    file = rig.disk.files[rig.store.log.segments[location >> OFFSET_BITS].name]
    real, sector = file.preadv_direct, (location & OFFSET_MASK) + 2048

    def preadv_direct(into: memoryview, offset: int) -> int:
        if offset <= sector < offset + len(into):
            raise OSError(errno.EIO, "bad sector")
        return real(into, offset)

    file.preadv_direct = preadv_direct  # type: ignore[method-assign]
    await rig.scrub()
    assert (0, 20) in rig.check.bad and len(rig.check.bad) <= 3


async def test_pending_records_are_read_back_too(rig: ScrubRig) -> None:
    record = rig.record(rig.replica, 0, 0, block(1, 4))
    await rig.log(rig.replica, record, apply=False)
    _, location = rig.replica.tail[record.lsn]
    file = rig.disk.files[rig.store.log.segments[location >> OFFSET_BITS].name]
    file.now[(location & OFFSET_MASK) + 2 * BLOCK_SIZE] ^= 1
    await rig.scrub()
    assert list(rig.check.bad) == [(0, 2)]
    rig.store.apply(rig.replica, record.lsn)
    await rig.scrubber._tick()
    assert list(rig.check.bad) == [(0, 2)], "it is the same place"


async def test_what_a_read_or_compaction_meets_is_looked_at(rig: ScrubRig) -> None:
    await rig.write(0, 0, block(1, 4))
    rig.rot(0, 3)
    await rig.read(0, 0, 4)
    await rig.scrubber._tick()
    assert list(rig.check.bad) == [(0, 3)] and not rig.store.metrics.scrub_passes


async def test_what_only_memory_has_badly_is_not_called_bad(
    rig: ScrubRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.write(0, 0, block(1))
    rig.scrubber.suspect(rig.replica, 0, 0)
    await rig.scrubber._tick()
    assert not rig.check.bad and rig.store.metrics.scrubbed_bytes == BLOCK_SIZE


async def test_a_stored_page_that_is_bad_is_stored_again_or_damages(rig: ScrubRig) -> None:
    await rig.write(0, 0, block(1))
    await rig.store.checkpoint()
    assert rig.store.index_store is not None
    handle = rig.replica.table.handle
    for damaged in (False, True):
        env = rig.store.index_store._env
        with env.begin(write=True, db=rig.store.index_store._pages) as txn:
            ((key, value),) = [each for each in txn.cursor() if int.from_bytes(each[0][:4], "big") == handle]
            txn.put(key, bytes(value[:-1]) + bytes([value[-1] ^ 1]))
        if damaged:
            rig.replica.table.pages.clear()
        await rig.scrub()
        assert bool(rig.replica.damaged) is damaged
        await rig.store.checkpoint()
        assert (rig.store.index_store.pages(handle, 0, 1)[0].packed is None) is damaged


async def test_a_pass_goes_on_after_a_restart(
    rig: ScrubRig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "PAGES_AT_ONCE", 1)
    monkeypatch.setattr(scrub_module, "SAVE_S", 0.0)
    for chunk in range(6):
        await rig.write(chunk, 0, block(chunk + 1, 2))
    await rig.store.checkpoint()
    began, real = clock.now_ms, Scrubber._scan

    async def scan(self: Scrubber, replica: Replica, *more: Any) -> Any:
        if rig.store.metrics.scrubbed_bytes >= 6 * BLOCK_SIZE:
            raise OSError(errno.EIO, "the process ends here")
        return await real(self, replica, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Scrubber, "_scan", scan)
        with pytest.raises(OSError, match="ends here"):
            await rig.scrub()
    clock.now_ms += HOUR_MS
    await rig.reopen()
    assert rig.check.began_ms == began and rig.check.page
    await rig.scrubber._pass(rig.replica)
    assert rig.check.passed_ms == began, "it vouches for when it began"
    assert rig.store.metrics.scrubbed_bytes == 6 * BLOCK_SIZE


async def test_a_pass_that_is_asked_for_begins_then(
    rig: ScrubRig, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is under way has passed by what rots now."""
    monkeypatch.setattr(scrub_module, "PAGES_AT_ONCE", 1)
    for chunk in range(4):
        await rig.write(chunk, 0, block(chunk + 1))
    real = Scrubber._scan
    asked: list[int] = []

    async def scan(self: Scrubber, replica: Replica, table: Any, first: int, fresh: Any) -> Any:
        if first and not asked:
            asked.append(first)
            clock.now_ms += HOUR_MS
            rig.rot(0, 0)
            self.ask(replica)
        return await real(self, replica, table, first, fresh)

    await rig.store.checkpoint()
    monkeypatch.setattr(Scrubber, "_scan", scan)
    rig.check.begin(clock.now_ms)
    await rig.scrubber._pass(rig.replica)
    assert asked and rig.check.asked and not rig.check.bad
    await rig.scrubber._tick()
    assert list(rig.check.bad) == [(0, 0)] and rig.check.passed_ms == clock.now_ms


async def test_one_whose_check_is_not_known_was_never_checked(rig: ScrubRig) -> None:
    await rig.write(0, 0, block(1))
    await rig.reopen()  # nothing was saved of it, as in an index of an older version
    assert rig.check.verified_ms == 0 and not rig.check.bad
    await rig.scrub()
    assert rig.check.verified_ms


async def test_far_too_many_bad_blocks_are_damage(rig: ScrubRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "BAD_MAX", 3)
    await rig.write(0, 0, block(1, 6))
    for at in range(5):
        rig.rot(0, at)
    await rig.scrub()
    assert "more than 3" in rig.replica.damaged and BAD_MAX > 3


async def test_a_fresh_table_has_a_check_of_its_own(rig: ScrubRig, clock: Clock) -> None:
    await rig.write(0, 0, block(1))
    rig.rot(0, 0)
    await rig.scrub()
    former, clock.now_ms = rig.replica.table.handle, clock.now_ms + HOUR_MS
    state = MemberState(1, epoch=1, commit=1, last=1, history=[(1, 1)])
    state.copy = CopyState(Position(1, 1), 0, Position(1, 1), Position(1, 1))
    rig.store.note(rig.replica, state.pack(), 1)
    await rig.store.flushed()
    assert rig.replica.table.handle != former
    assert not rig.check.bad and rig.check.verified_ms == clock.now_ms
    await rig.scrubber._tick()
    assert former not in rig.scrubber.checks
    await rig.reopen()
    assert former not in rig.scrubber.checks and rig.check.verified_ms == clock.now_ms


async def test_replicas_are_due_in_the_order_of_their_checks(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = ScrubRig(tmp_path)
    rig.config = replace(rig.config, scrub_period_s=7200.0)
    await rig.open()
    first, second = (rig.scrubber.check(rig.store.replica(identity)) for identity in (1, 2))
    began = clock.now_ms
    second.passed_ms -= 1000
    assert rig.scrubber._next() is None
    clock.now_ms += HOUR_MS
    assert rig.scrubber._next() is rig.store.replica(2)
    await rig.scrubber._tick()
    await rig.scrubber._tick()
    assert (first.passed_ms, second.passed_ms) == (began + HOUR_MS, began + HOUR_MS)
    assert rig.scrubber._next() is None
    first.passed_ms = clock.now_ms + HOUR_MS  # a clock was wrong
    assert rig.scrubber._next() is rig.store.replica(1)
    await rig.store.close(checkpoint=False)


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xc0", Check(1, 5).pack()[:-1], b"\x96\x02\x01\x00\x00\x00\x90", b"\x96\x01\x01\xff\x00\x00\x90"],
)
def test_a_check_that_makes_no_sense_says_nothing(packed: bytes) -> None:
    assert Check.unpack(5, packed) is None


def test_a_check_is_read_as_it_was_written() -> None:
    check = Check(7, 5, 1000)
    check.begin(2000)
    check.page = 9
    check.bad[1, BLOCKS_PER_CHUNK - 1] = (1 << 63, (1 << 63) - 1)
    found = Check.unpack(5, check.pack())
    assert found is not None and found.pack() == check.pack() and found.replica == 7


async def test_the_disk_is_read_past_the_page_cache(tmp_path: Path) -> None:
    """What a file has, at any offset and size that direct I/O can do, and to the end of the file."""
    disk = RealDisk(tmp_path / "segments")
    file = disk.create("00000001.seg", 64 << 10)
    file.pwritev([b"x" * 5000], 100)
    file.fdatasync()
    whole = bytearray(64 << 10)
    file.preadv([whole], 0)
    for offset, size in ((0, 32 << 10), (4096, 32 << 10), (60 << 10, 8192)):
        into = scrub_module.payload_buffer(32 << 10)[:size]
        got = await asyncio.to_thread(file.preadv_direct, into, offset)
        assert bytes(into[:got]) == whole[offset : offset + size] and got == min(size, (64 << 10) - offset)
    file.close()


async def test_what_cannot_be_read_for_a_copy_fails_its_check_alone(rig: ScrubRig) -> None:
    """Also of what compaction and a recovery read. It was an internal error, and no copy came to its end."""
    record = rig.record(rig.replica, 0, 0, block(1, 3))
    await rig.log(rig.replica, record)
    locations = [location for location, _, _ in rig.store.index.find(rig.replica.table, 0, 0, 3)]
    file = rig.disk.files[rig.store.log.segments[locations[1] >> OFFSET_BITS].name]
    real, sector = file.preadv, locations[1] & OFFSET_MASK

    def preadv(into: Any, offset: int) -> int:
        if offset <= sector < offset + sum(map(len, into)):
            raise OSError(errno.EIO, "bad sector")
        return real(into, offset)

    file.preadv = preadv  # type: ignore[method-assign]
    data = await rig.store.fetch_blocks(rig.replica, locations)
    assert first_bad_block(record.sums, data) == 1
    assert data[2 * BLOCK_SIZE :] == block(1, 3)[2 * BLOCK_SIZE :]
    with pytest.raises(Corrupt, match="block 1 does not match"):
        await rig.store.reader.records(rig.replica, record.lsn, record.lsn, 1 << 20)
