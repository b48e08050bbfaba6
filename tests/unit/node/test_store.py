"""The store on a disk double: errors, space, damage, and what a start finds."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from moorage.node.exporter import StoreCollector
from moorage.node.index import Table
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import Entry, EntryKind, Run, RunKind
from moorage.node.store import Store, StoreConfig
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE, HEAD_SIZE, Kind, Position, Record, block_sum, block_sums
from moorage.quorum.state import CopyState, MemberState
from moorage.wire.errors import Corrupt, DeviceFailed, NoReplica

SEGMENT = 256 << 10


class Rig:
    """A store that can be closed and opened again on the same disk."""

    def __init__(self, directory: Path, slots: int = 16) -> None:
        self.directory = directory
        self.capacity = (8 << 20) + slots * SEGMENT
        self.disk = MemoryDisk()
        self.store: Store
        self.lsn = 0

    async def open(self) -> Any:
        config = StoreConfig(self.directory, b"0" * 16, self.capacity, SEGMENT, checkpoint_seconds=1e9)
        self.store = Store(config, self.disk)
        return await self.store.open()

    async def reopen(self, checkpoint: bool = True) -> Any:
        await self.store.close(checkpoint=checkpoint)
        return await self.open()

    async def create(self, identity: int = 1) -> Replica:
        done = asyncio.get_running_loop().create_future()
        self.store.create(ReplicaInfo(identity, 1, 0, "sync", 3), done.set_result)
        assert await done is None
        return self.store.replica(identity)

    async def write(self, chunk: int, block: int, data: bytes, identity: int = 1) -> None:
        replica = self.store.replica(identity)
        lsn = replica.last_queued + 1
        count = len(data) // BLOCK_SIZE
        record = Record(1, lsn, Kind.WRITE, chunk, block, count, block_sums(data), data)
        await self.log(replica, record)

    async def log(self, replica: Replica, record: Record) -> None:
        self.store.append(replica, [record], record.lsn)
        self.store.apply(replica, record.lsn)
        await self.store.flushed()

    async def discard(self, chunk: int, count: int, identity: int = 1) -> None:
        replica = self.store.replica(identity)
        record = Record(1, replica.last_queued + 1, Kind.ZERO_CHUNKS, chunk, 0, count)
        await self.log(replica, record)

    async def read(self, chunk: int, block: int, count: int = 1, identity: int = 1) -> Any:
        got = asyncio.get_running_loop().create_future()
        self.store.reader.read(self.store.replica(identity), chunk, block, count, got.set_result)
        return await got


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.open()
    await rig.create()
    yield rig
    await rig.store.close()


def block(number: int, count: int = 1) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4) * count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# -- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fdatasync", "pwritev"])
async def test_a_failed_write_ends_the_device_for_good(rig: Rig, call: str) -> None:
    failures: list[DeviceFailed] = []
    rig.store.on_failed = failures.append
    calls = []

    def fail(name: str, _: str) -> None:
        calls.append(name)
        if name == call:
            raise OSError(errno.EIO, "bad sector")

    rig.disk.on_event = fail
    done: list[Any] = []
    rig.store.drop(1, done.append)
    await rig.store.flushed()
    assert isinstance(done[0], DeviceFailed) and failures == done
    assert calls.count(call) == 1, "not tried again"
    rig.disk.on_event = None
    with pytest.raises(DeviceFailed):
        await rig.write(0, 0, block(1))
    assert await rig.read(0, 0) == (bytes(8), None), "reads still work"


async def test_an_unknown_replica_is_not_an_empty_one(rig: Rig) -> None:
    with pytest.raises(NoReplica):
        rig.store.replica(2)


# -- reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
async def test_reads_of_blocks_and_holes(rig: Rig, cached: bool) -> None:
    rig.disk.cached = cached
    await rig.write(0, 10, block(1, 3))
    await rig.write(0, 12, block(2))
    await rig.write(0, 40, block(3))
    sums, data = await rig.read(0, 9, 35)
    expected = {10: block(1), 11: block(1), 12: block(2), 40: block(3)}
    for at in range(35):
        want = expected.get(9 + at)
        assert sums[at * 8 : at * 8 + 8] == (block_sums(want) if want else bytes(8))
        assert data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE] == (want or bytes(BLOCK_SIZE))
    assert (await rig.read(0, 12))[1] == block(2)
    assert await rig.read(5, 0, 1024) == (bytes(8 * 1024), None)
    assert (rig.store.metrics.reads_blocking > 0) is not cached


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("count", [1, 4])
async def test_a_bad_block_is_named_and_never_served(rig: Rig, cached: bool, count: int) -> None:
    rig.disk.cached = cached
    data = block(0x5A5A, 4)
    await rig.write(3, 8, data)
    (name,) = [name for name, file in rig.disk.files.items() if block(0x5A5A) in file.now]
    rig.disk.files[name].now[rig.disk.files[name].now.index(data) + 100] ^= 1
    error = await rig.read(3, 8, count)
    assert isinstance(error, Corrupt)
    assert name in str(error) and "chunk 3 block 8" in str(error)
    assert rig.store.metrics.corrupt_blocks == 1
    assert not rig.store.replica(1).damaged, "one block, not the replica"
    assert (await rig.read(3, 9))[1] == block(0x5A5A)


# -- a start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [True, False])
async def test_a_checkpoint_and_a_replay_give_the_same(rig: Rig, checkpoint: bool) -> None:
    for at in range(40):
        await rig.write(at % 3, at * 7 % 90, block(at, 1 + at % 3))
    await rig.discard(1, 1)
    replica = rig.store.replica(1)
    pending = Record(2, replica.state.last + 1, Kind.WRITE, 0, 0, 1, block_sums(block(99)), block(99))
    rig.store.append(replica, [pending], 1)
    before = [await rig.read(chunk, 0, 100) for chunk in range(3)]
    for _ in range(3):  # and restart after restart
        report = await rig.reopen(checkpoint)
        assert not report.damaged
        assert [await rig.read(chunk, 0, 100) for chunk in range(3)] == before
    replica = rig.store.replica(1)
    assert replica.state.position == Position(2, 42)
    assert replica.state.commit == 41, "a pending record is kept, and not applied"
    (found,) = await rig.store.reader.records(replica, 42, 42, 1)
    assert bytes(found.data) == block(99)
    rig.store.apply(replica, 42)
    assert (await rig.read(0, 0))[1] == block(99)


async def test_a_dropped_replica_stays_dropped_and_gives_its_space_back(rig: Rig) -> None:
    await rig.create(2)
    await rig.write(0, 0, block(1, 30), identity=2)
    await rig.write(0, 0, block(2))
    await rig.store.checkpoint()
    done = asyncio.get_running_loop().create_future()
    rig.store.drop(2, done.set_result)
    await done
    await rig.reopen(checkpoint=False)
    assert list(rig.store.replicas) == [1]
    await rig.store.checkpoint()
    assert rig.store.used == BLOCK_SIZE
    assert rig.store.index_store is not None
    assert len(rig.store.index_store.pages(0, 0, 100, whole=True)) == 1


async def test_what_is_applied_after_a_drop_leaves_nothing_behind(rig: Rig) -> None:
    replica = await rig.create(2)
    data = block(1)
    rig.store.append(replica, [Record(1, 1, Kind.WRITE, 0, 0, 1, block_sums(data), data)], 1)
    done = asyncio.get_running_loop().create_future()
    rig.store.drop(2, done.set_result)
    rig.store.apply(replica, 1)
    await done
    assert rig.store.used == 0


async def test_damage_to_a_page_of_the_index_is_its_replicas_alone(rig: Rig) -> None:
    await rig.create(2)
    await rig.write(0, 0, block(1), identity=1)
    await rig.write(0, 0, block(2), identity=2)
    handle = rig.store.replica(2).table.handle
    await rig.store.close()
    env = lmdb.open(str(rig.directory / "index"), max_dbs=8)
    pages = env.open_db(b"pages")
    with env.begin(write=True, db=pages) as txn:
        key = handle.to_bytes(4, "big") + bytes(8)
        value = bytearray(txn.get(key))
        value[300] ^= 1
        txn.put(key, bytes(value))
    env.close()
    report = await rig.open()
    assert list(report.damaged) == [2]
    assert (await rig.read(0, 0, identity=1))[1] == block(1)


async def test_damage_in_the_log_is_remembered_until_the_replica_is_copied_anew(rig: Rig) -> None:
    await rig.create(2)
    await rig.write(0, 0, block(0x11, 2), identity=1)
    await rig.write(0, 0, block(0x22), identity=2)
    await rig.store.close(checkpoint=False)
    (file,) = [file for file in rig.disk.files.values() if block(0x11) in file.now]
    file.now[file.now.index(block(0x11)) + 9] ^= 1
    report = await rig.open()
    assert list(report.damaged) == [1]
    report = await rig.reopen(checkpoint=False)
    assert list(report.damaged) == [1], "also when the replay does not meet it any more"
    replica = rig.store.replica(1)
    fresh = CopyState(Position(1, 1), 0, Position(1, 1), Position(0, 0))
    copying = MemberState(1, epoch=2, history=[(1, 1)], commit=1, last=1, copy=fresh)
    rig.store.note(replica, copying.pack(), 1)
    whole = MemberState(1, epoch=2, history=[(1, 1)], commit=1, last=1)
    rig.store.note(replica, whole.pack(), 2)
    await rig.store.flushed()
    report = await rig.reopen(checkpoint=False)
    assert not report.damaged


async def test_a_broken_index_is_refused_with_the_next_step(rig: Rig) -> None:
    segments = rig.store.log.segments
    ((first, segment),) = segments.items()
    while first in segments or all(each.name != segment.name for each in segments.values()):
        await until(lambda: rig.store.room() >= 16 * BLOCK_SIZE)
        await rig.write(0, 0, block(1, 16))  # until the log does not begin at its beginning any more
    await rig.store.close()
    path = rig.directory / "index" / "data.mdb"
    raw = bytearray(path.read_bytes())
    raw[4096 + 20 : 4096 + 40] = b"\xff" * 20
    raw[20:40] = b"\xff" * 20
    path.write_bytes(bytes(raw))
    with pytest.raises(Corrupt, match="start it empty"):
        await rig.open()
    path.unlink()
    with pytest.raises(Corrupt, match="index is missing"):
        await rig.open()
    # leave something to close
    rig.disk, rig.directory = MemoryDisk(), rig.directory / "other"
    rig.directory.mkdir()
    await rig.open()


# -- space ---------------------------------------------------------------------------------------------


async def fill(rig: Rig) -> int:
    """Write until nothing more would be granted; how many blocks there are."""
    written = 0
    while rig.store.room() >= 16 * BLOCK_SIZE:
        await rig.write(written // 1024, written % 1024, block(written // 16, 16))
        written += 16
    return written


@pytest.mark.slow
async def test_overwriting_does_not_fill_the_device(rig: Rig) -> None:
    for at in range(1500):  # 24 MiB into 6 MiB
        await until(lambda: rig.store.room() >= 16 * BLOCK_SIZE)
        await rig.write(0, at % 8 * 16, block(at, 16))
    assert rig.store.used == 8 * 16 * BLOCK_SIZE
    assert (await rig.read(0, 0))[1] == block(1496)
    assert not (await rig.reopen()).damaged
    assert (await rig.read(0, 16 * 3))[1] == block(1499)


@pytest.mark.slow
async def test_what_is_promised_to_idle_writers_does_not_keep_others_from_dead_space(rig: Rig) -> None:
    for number in range(20):  # the same blocks again and again
        await rig.write(0, 0, block(number, 16))
    layout, in_use = rig.store.layout, len(rig.store.log.segments)
    assert in_use >= 5 and rig.store.free_slots > layout.slots // 2
    rig.store.granted = rig.store.room()
    await until(lambda: rig.store.room() > layout.usable // 8)
    assert len(rig.store.log.segments) < in_use
    assert (await rig.read(0, 0, 16))[1] == block(19, 16)


async def test_compaction_keeps_what_lives(rig: Rig) -> None:
    """Every segment keeps a little that is alive: only copying gives the rest back."""
    kept = {}
    for at in range(900):
        await until(lambda: rig.store.room() >= 18 * BLOCK_SIZE)
        await rig.write(0, 0, block(at, 16))
        if at % 15 == 0:
            kept[len(kept)] = block(at + 7000)
            await rig.write(1, len(kept) - 1, kept[len(kept) - 1])
    assert rig.store.metrics.compacted_bytes > 0
    for number, data in kept.items():
        assert (await rig.read(1, number))[1] == data
    await rig.reopen(checkpoint=False)
    for number, data in kept.items():
        assert (await rig.read(1, number))[1] == data


async def test_a_full_device_reads_discards_and_recovers(rig: Rig) -> None:
    written = await fill(rig)
    assert written * BLOCK_SIZE > rig.store.layout.usable // 2
    for at in range(0, written, 16):
        assert (await rig.read(at // 1024, at % 1024))[1] == block(at // 16)
    for _ in range(50):  # notes and discards fit into the reserve
        rig.store.note(rig.store.replica(1), rig.store.replica(1).state.pack(), 1)
        await rig.store.flushed()
    await rig.reopen()
    assert rig.store.room() < 64 * BLOCK_SIZE
    await rig.discard(0, 10)
    await until(lambda: rig.store.room() > rig.store.layout.usable // 4)
    assert await fill(rig) > written // 2


async def test_pending_records_outlive_the_compaction_of_their_segment(rig: Rig) -> None:
    replica = rig.store.replica(1)
    held = Record(1, 1, Kind.WRITE, 9, 0, 2, block_sums(block(4711, 2)), block(4711, 2))
    rig.store.append(replica, [held], 1)
    await rig.create(2)
    first = next(iter(rig.store.log.segments))
    for at in range(300):
        await rig.write(0, 0, block(at, 16), identity=2)
        await until(lambda: rig.store.room() >= 16 * BLOCK_SIZE)
    await rig.store.checkpoint()
    segment = rig.store.log.segments.get(first)
    if segment is not None:
        await rig.store.compactor.compact(segment)
        await rig.store.checkpoint()
    assert first not in rig.store.log.segments
    await rig.reopen(checkpoint=False)
    replica = rig.store.replica(1)
    (found,) = await rig.store.reader.records(replica, 1, 1, 1)
    assert bytes(found.data) == block(4711, 2)
    rig.store.apply(replica, 1)
    assert (await rig.read(9, 1))[1] == block(4711)


async def test_a_full_file_system_costs_room_not_the_device(rig: Rig) -> None:
    rig.disk.free = SEGMENT
    for at in range(200):
        if rig.store.log.room() < 40 * BLOCK_SIZE:
            break
        await rig.write(0, at % 8 * 16, block(at, 16))
    assert rig.store.failed is None
    assert (await rig.read(0, 0))[1] is not None


async def test_what_a_full_file_system_does_not_have_is_not_promised(rig: Rig) -> None:
    before, rig.disk.free = rig.store.room(), 0
    with pytest.raises(OSError, match="no space"):
        await rig.store.allocate_one()
    assert before > 0 and rig.store.room() == 0, "writers hear of it before they give an LSN"
    rig.disk.free = 1 << 30
    await rig.store.allocate()
    assert rig.store.room() >= before // 2


async def test_a_store_starts_on_a_full_file_system(rig: Rig) -> None:
    await rig.write(0, 0, block(1))
    await rig.store.close()
    rig.disk.free = 0
    for _ in range(len(rig.disk.files)):  # each start takes a segment that is free
        await rig.open()
        assert (await rig.read(0, 0))[1] == block(1)
        await rig.store.close()
    rig.disk.free = SEGMENT
    await rig.open()
    await rig.write(0, 0, block(2))


async def test_a_start_without_any_free_segment_says_what_to_do(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.disk.free = 0
    with pytest.raises(DeviceFailed, match="make room"):
        await rig.open()
    await rig.store.close()


async def test_a_create_that_makes_no_sense_is_a_replica_that_is_not_here(rig: Rig) -> None:
    entry = Entry(EntryKind.CREATE, rig.store.fold.take_handle())
    entry.add_body(b"\x95\x09\x01\x00\xa4sync\x03 and more")
    made = Replica(ReplicaInfo(9, 1, 0, "sync", 3), Table(entry.argument, Tombstones()), MemberState(9))
    rig.store.log.put(made, entry)
    await rig.store.flushed()
    assert not (await rig.reopen(checkpoint=False)).damaged
    assert sorted(rig.store.replicas) == [1]
    await rig.create(9)


async def test_the_tail_keeps_records_without_their_data(rig: Rig) -> None:
    await rig.write(0, 0, block(1, 16))
    ((record, _),) = rig.store.replica(1).tail.values()
    assert record.lsn == 1 and not record.data


# -- what others copy ------------------------------------------------------------------------------------


async def test_newer_blocks_come_from_memory_and_disk(rig: Rig) -> None:
    for at in range(30):
        await rig.write(at % 4, at * 31 % 900, block(at))
    await rig.store.checkpoint()
    mark = rig.store.replica(1).state.commit
    expected = {}
    for at in range(25):
        await rig.write(at % 5, at * 17 % 900, block(100 + at))
        expected[at % 5, at * 17 % 900] = block(100 + at)
        if at == 12:
            await rig.store.checkpoint()
    found: dict[tuple[int, int], bytes] = {}
    first: int | None = 0
    while first is not None:
        blocks, first = rig.store.newer_blocks(rig.store.replica(1), mark, first, 4)
        data = await rig.store.fetch_blocks(rig.store.replica(1), [each[2] for each in blocks])
        for at, (chunk, number, _, _, lsn) in enumerate(blocks):
            assert lsn > mark and (chunk, number) not in found
            found[chunk, number] = bytes(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])
    assert found == expected


async def test_half_a_checkpoint_of_a_replica_that_only_the_log_knows(rig: Rig) -> None:
    """Its pages and tombstones are in the index already, its description is not: they are not garbage."""
    await rig.write(0, 3, block(1))
    await rig.write(2, 3, block(2))
    await rig.discard(0, 1)
    await rig.store.checkpointer._store_pages(list(rig.store.index.dirty))
    await rig.store.close(checkpoint=False)
    assert not (await rig.open()).damaged
    await rig.store.checkpoint()  # sweeps what belongs to nobody
    await rig.reopen()
    assert (await rig.read(2, 3))[1] == block(2)
    assert (await rig.read(0, 3))[1] is None
    assert rig.store.replica(1).state.commit == 3


async def test_a_ticket_covers_all_its_records(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records handed over together may end up in several group commits: only the last one tells."""
    monkeypatch.setattr("moorage.node.store.ENTRY_BYTES_MAX", 64 << 10)
    replica = rig.store.replica(1)
    told: list[tuple[int, int]] = []
    replica.on_persisted = lambda ticket: told.append((ticket, replica.state.last))
    data = block(1, 32)
    records = [Record(1, lsn, Kind.WRITE, 0, 0, 32, block_sums(data), data) for lsn in (1, 2, 3)]
    rig.store.append(replica, records, 7)
    await rig.store.flushed()
    assert told == [(7, 3)]


async def test_discards_that_gather_in_one_entry_fit_into_a_segment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no data: their heads count."""
    monkeypatch.setattr("moorage.node.store.ENTRY_BYTES_MAX", 64 << 10)
    count = SEGMENT // HEAD_SIZE + 100  # all within one loop turn, or while a sync takes long
    for lsn in range(1, count + 1):
        rig.store.append(rig.store.replica(1), [Record(1, lsn, Kind.ZERO, 0, 0, 1)], lsn)
    await rig.store.flushed()
    assert rig.store.failed is None
    assert not (await rig.reopen(checkpoint=False)).damaged
    assert rig.store.replica(1).state.last == count


async def test_a_frame_that_leaves_its_segment_is_not_written(rig: Rig) -> None:
    entry, done = Entry(EntryKind.STATE), list[Any]()
    entry.add_body(bytes(SEGMENT))
    entry.done.append(done.append)
    rig.store.log.put(rig.store.replica(1), entry)
    before = [bytes(file.now) for file in rig.disk.files.values()]
    await rig.store.flushed()
    assert done == [rig.store.failed] and "a frame lies in one segment" in str(rig.store.failed)
    assert [bytes(file.now) for file in rig.disk.files.values()] == before


async def test_what_is_applied_late_is_told(rig: Rig) -> None:
    """A read that waits for a record hears of it also when a block that was copied came behind it."""
    replica = rig.store.replica(1)
    told: list[int] = []
    replica.on_persisted = lambda ticket: told.append(replica.state.commit)
    data = block(1, 32)
    rig.store.append(replica, [Record(1, 1, Kind.WRITE, 0, 0, 32, block_sums(data), data)], 1)
    moved = asyncio.get_running_loop().create_future()
    runs = [Run(RunKind.DATA, 1, 0, (1,) * 40, (block_sum(block(2)),) * 40)]
    rig.store.merge(replica, runs, [block(2) * 40], moved.set_result)
    rig.store.apply(replica, 1)
    assert await moved is None
    await rig.store.flushed()
    assert told[-1] == 1


async def test_compaction_brings_nothing_into_a_table_begun_anew(rig: Rig) -> None:
    """A fresh copy drops what compaction has just read: it may be what was lost."""
    await rig.write(0, 0, block(1))
    segment = rig.store.log.segments[rig.store.log.last_number]
    replica, compactor = rig.store.replica(1), rig.store.compactor
    fetch = compactor._fetch

    async def slow(extents: Any) -> Any:
        got = await fetch(extents)
        base = Position(2, 9)
        copy = CopyState(base, 0, base, Position(1, 1))
        state = MemberState(1, epoch=2, writer=1, history=[(2, 9)], commit=9, last=9, copy=copy)
        rig.store.note(replica, state.pack(), 2)
        await rig.store.flushed()
        return got

    compactor._fetch = slow  # type: ignore[method-assign]
    await compactor.compact(segment)
    assert (await rig.read(0, 0))[1] is None


async def test_a_segment_that_cannot_be_read_does_not_stop_compaction(rig: Rig) -> None:
    await rig.write(0, 0, block(1))
    first = rig.store.log.last_number
    for at in range(20):
        await rig.write(1, 0, block(at, 16))
    await rig.store.checkpoint()
    compactor, before = rig.store.compactor, rig.store.checkpointer.segment
    bad = compactor.choose(before)
    assert bad is not None and bad.number <= first

    def fail(call: str, name: str) -> None:
        if call == "preadv" and name == bad.name:
            raise OSError(errno.EIO, "bad sector")

    rig.disk.on_event = fail
    with pytest.raises(OSError, match="bad sector"):
        await compactor.compact(bad)
    assert compactor.choose(before) is not bad
    rig.disk.on_event = None
    assert (await rig.read(0, 0))[1] == block(1)


async def test_writers_use_up_the_free_segments_while_compaction_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction waits for the log, and the log for a free segment: there are more to be made ready."""
    monkeypatch.setattr("moorage.node.store.ENTRY_BYTES_MAX", 64 << 10)
    rig = Rig(tmp_path, slots=96)
    await rig.open()
    await rig.create()
    burst: list[Record] = []
    compactor = rig.store.compactor
    fetch = compactor._fetch

    async def slow(extents: Any) -> Any:
        got = await fetch(extents)
        if extents and not burst:
            data, first = block(1, 16), rig.store.replica(1).last_queued + 1
            burst.extend(
                Record(1, first + at, Kind.WRITE, 9, 0, 16, block_sums(data), data) for at in range(15)
            )
            assert rig.store.room() >= 16 * len(data)
            for record in burst:
                rig.store.append(rig.store.replica(1), [record], record.lsn)
        return got

    compactor._fetch = slow  # type: ignore[method-assign]
    for at in range(360):
        place = at if at % 3 else 0
        await rig.write(place // 64, place % 64 * 16, block(at, 16))
        if burst:
            break
        await asyncio.sleep(0.002)
    await until(lambda: bool(burst))
    async with asyncio.timeout(10):
        await rig.store.flushed()
    assert rig.store.replica(1).state.last >= burst[-1].lsn
    await rig.store.close()


async def test_a_sweep_that_fails_is_made_up_for_by_the_next_checkpoint(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.write(0, 0, block(1))
    await rig.write(3, 0, block(2))
    await rig.store.checkpoint()
    await rig.discard(0, 1)
    await rig.discard(3, 1)
    unswept = list(rig.store.replica(1).table.tombstones.unswept)
    assert len(unswept) == 2
    sweep, calls = rig.store.checkpointer._sweep_range, []

    async def fail(replica: Replica, table: Any, first: int, end: int) -> None:
        calls.append(first)
        if len(calls) == 2:
            raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")
        await sweep(replica, table, first, end)

    monkeypatch.setattr(rig.store.checkpointer, "_sweep_range", fail)
    with pytest.raises(lmdb.MapFullError):
        await rig.store.checkpoint()
    assert rig.store.replica(1).table.tombstones.unswept == unswept[1:]
    await rig.store.checkpoint()
    assert calls[2:] == calls[1:2]
    assert rig.store.replica(1).table.tombstones.unswept == []
    assert rig.store.used == 0


async def test_a_checkpoint_frees_what_is_empty_while_compaction_waits_for_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log waits for a free segment, compaction for the log, the next checkpoint for compaction to end."""

    async def waits(store: Store) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Store, "_keep_up_once", waits)
    await rig.write(0, 0, block(1))
    async with asyncio.timeout(10):
        for at in range(3 * rig.store.layout.slots * SEGMENT // (16 * BLOCK_SIZE)):
            await rig.write(0, 16, block(at, 16))
    assert (await rig.read(0, 0))[1] == block(1)


async def test_a_bad_page_of_the_index_under_what_is_copied_or_moved_costs_its_replica_alone(
    rig: Rig,
) -> None:
    store, replica = rig.store, rig.store.replica(1)
    await rig.create(2)
    await rig.write(0, 0, block(1))
    await store.checkpoint()
    replica.table.pages.clear()  # let go of, as others are used

    def rotten(handle: int, number: int) -> bytes | None:
        raise Corrupt(f"page {number} of handle {handle}")

    store.index._load = rotten
    data = block(2)
    logged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    store.merge(replica, [Run(RunKind.DATA, 0, 1, (9,), (block_sum(data),))], [data], logged.set_result)
    assert await logged is None
    assert replica.damaged and store.failed is None
    assert not store.replica(2).damaged


async def test_how_long_records_took_is_counted(rig: Rig) -> None:
    """Each of them, by what its replica had in one group commit."""
    await rig.write(0, 0, block(1))
    await rig.write(0, 32, block(1, 17))
    metrics = rig.store.metrics
    assert sum(metrics.appends.counts) == sum(metrics.large_appends.counts) == 1
    assert 0 < metrics.appends.total_s < 60
    assert "appends" not in metrics.as_dict()
    collector = StoreCollector()
    collector.store = rig.store
    (family,) = [each for each in collector.collect() if each.name == "moorage_node_append_seconds"]
    counts = {each.labels["size"]: each.value for each in family.samples if each.name.endswith("_count")}
    assert counts == {"small": 1, "large": 1}
