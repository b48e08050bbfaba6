"""Compaction: what it moves, what it leaves, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from moorage.node.compaction import PIECE_BYTES
from moorage.node.memory_disk import MemoryDisk, MemoryFile
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import PAGE
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, block_sums, encode_head

SEGMENT = 256 << 10


class Rig:
    """A store on a disk in memory, with two replicas."""

    def __init__(self, directory: Path, slots: int = 16, segment_size: int = SEGMENT) -> None:
        self.disk = MemoryDisk()
        capacity = (8 << 20) + slots * segment_size
        self.config = StoreConfig(directory, b"0" * 16, capacity, segment_size, checkpoint_seconds=1e9)
        self.store: Store

    async def open(self) -> None:
        self.store = Store(self.config, self.disk)
        await self.store.open()
        for identity in (1, 2):
            done = asyncio.get_running_loop().create_future()
            self.store.create(ReplicaInfo(identity, 1, 0, "sync", 3), done.set_result)
            assert await done is None

    async def without_upkeep(self) -> None:
        """Compaction and checkpoints only when the test says so."""
        for task in self.store._upkeep:
            task.cancel()
        await asyncio.wait(self.store._upkeep)
        self.store._upkeep = []

    def record(self, replica: Replica, chunk: int, block: int, data: bytes) -> Record:
        lsn = replica.last_queued + 1
        return Record(1, lsn, Kind.WRITE, chunk, block, len(data) // BLOCK_SIZE, block_sums(data), data)

    async def write(self, chunk: int, block: int, data: bytes, identity: int = 1) -> None:
        replica = self.store.replica(identity)
        await self.log(replica, self.record(replica, chunk, block, data))

    async def discard(self, chunk: int, count: int, identity: int = 1) -> None:
        replica = self.store.replica(identity)
        await self.log(replica, Record(1, replica.last_queued + 1, Kind.ZERO_CHUNKS, chunk, 0, count))

    async def log(self, replica: Replica, record: Record, apply: bool = True) -> None:
        self.store.append(replica, [record], record.lsn)
        if apply:
            self.store.apply(replica, record.lsn)
        await self.store.flushed()

    async def roll(self, segments: int = 1, identity: int = 2) -> None:
        """Until the log is that many segments further, with what is overwritten at once."""
        end = self.store.log.last_number + segments
        while self.store.log.last_number < end:
            await self.store.allocate()
            await self.write(99, 0, block(99, 8), identity)

    async def read(self, chunk: int, block: int, count: int = 1, identity: int = 1) -> Any:
        got = asyncio.get_running_loop().create_future()
        self.store.reader.read(self.store.replica(identity), chunk, block, count, got.set_result)
        return await got


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.open()
    yield rig
    await rig.store.close(checkpoint=False)


def block(number: int, count: int = 1) -> bytes:
    return number.to_bytes(4, "little") * (BLOCK_SIZE // 4) * count


# -- rot -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "bit"), [(8 + 2, 1), (16 + 7, 0x80)], ids=["lsn-65537", "chunk-past-the-end"]
)
async def test_a_body_that_rotted_is_not_believed(rig: Rig, offset: int, bit: int) -> None:
    """Its block stays in its place, and the segment with it: the index knows better what is there."""
    await rig.write(0, 0, block(0x5151))
    (segment,) = rig.store.log.segments.values()
    await rig.roll()
    await rig.store.checkpoint()
    raw = rig.disk.files[segment.name].now
    head = encode_head(1, 1, Kind.WRITE, 0, 0, 1, block_sums(block(0x5151)))
    raw[raw.index(head) + offset] ^= bit
    await rig.store.compactor.compact(segment)
    assert (await rig.read(0, 0))[1] == block(0x5151)
    await rig.write(0, 0, block(0x9999))
    assert (await rig.read(0, 0))[1] == block(0x9999), "a later write still wins"


# -- the choice ------------------------------------------------------------------------------------------


async def half_alive(rig: Rig, overwritten: int = 2) -> None:
    """Write until space is short; half of every segment stays alive."""
    at = 0
    while not rig.store._short_of_space():
        await rig.store.allocate()
        await rig.write(10, at * 8 % 1024, block(at, 8))
        await rig.write(99, 0, block(at, 8), identity=overwritten)
        at += 1
    await rig.roll(identity=overwritten)
    await rig.store.checkpoint()


async def test_a_segment_that_waits_for_a_checkpoint_is_not_compacted_again(rig: Rig) -> None:
    await rig.without_upkeep()
    await half_alive(rig)
    store = rig.store
    first = store.compactor.choose(store.checkpointer.segment)
    assert first is not None
    number = first.number
    assert await store.compactor.compact(first) > 0
    assert store.compactor.choose(store.checkpointer.segment) not in (first, None)
    await store.checkpoint()
    assert number not in store.log.segments


async def test_what_cannot_be_moved_does_not_keep_others_from_it(rig: Rig) -> None:
    """A pending record that rotted, in the emptiest segment of all."""
    await rig.without_upkeep()
    store, replica = rig.store, rig.store.replica(2)
    held = store.log.segments[store.log.last_number]
    await rig.log(replica, rig.record(replica, 0, 0, block(4711)), apply=False)
    raw = rig.disk.files[held.name].now
    raw[raw.index(block(4711))] ^= 1
    store.create(ReplicaInfo(3, 1, 0, "sync", 3), lambda _: None)
    await store.flushed()
    await rig.roll(identity=3)
    await half_alive(rig, overwritten=3)
    free = store.free_slots
    await store._keep_up_once()
    assert store.free_slots > free and not store._short_of_space()
    assert held in store.log.segments.values()
    assert store.metrics.corrupt_blocks == 1, "not tried again and again"


async def test_compaction_of_large_records_comes_to_an_end(tmp_path: Path) -> None:
    """Two thirds of a segment each, as a whole chunk is of 6 MiB: moved whole, each would fill one again."""
    rig = Rig(tmp_path, slots=20, segment_size=384 << 10)
    await rig.open()
    await rig.without_upkeep()
    store, written = rig.store, 0
    while not store._short_of_space():
        await store.allocate()
        await rig.write(written, 0, block(written + 1, 64))
        written += 1
    await store.checkpoint()
    used, free = store.used, store.free_slots
    async with asyncio.timeout(10):
        await store._keep_up_once()
    assert store.metrics.compacted_bytes <= used
    assert store.free_slots > free
    for number in range(written):
        assert (await rig.read(number, 0, 64))[1] == block(number + 1, 64)
    await store.close(checkpoint=False)


async def test_a_device_full_of_large_records_recovers_by_discards(tmp_path: Path) -> None:
    rig = Rig(tmp_path, slots=20, segment_size=384 << 10)
    await rig.open()
    await rig.without_upkeep()
    store, written, enough = rig.store, 0, 65 * BLOCK_SIZE
    while store.room() >= enough:
        await store.allocate()
        await rig.write(written, 0, block(written + 1, 64))
        written += 1
        if store.room() < enough:
            await store._keep_up_once()
    assert store.free_slots >= store.layout.reserve
    assert store.used > store.layout.usable * 2 // 3
    await rig.discard(0, written)
    await store.checkpoint()  # due within a second
    assert store.room() >= enough and not store._short_of_space()
    await store.close(checkpoint=False)


async def test_a_large_pending_record_is_left_where_moving_it_wins_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, segment_size=384 << 10)
    await rig.open()
    await rig.without_upkeep()
    store, replica = rig.store, rig.store.replica(1)
    held = store.log.last_number
    await rig.log(replica, rig.record(replica, 0, 0, block(1, 64)), apply=False)
    await rig.roll(2)
    await store.checkpoint()
    assert store.compactor.choose(store.checkpointer.segment) is None
    store.apply(replica, 1)
    await rig.discard(0, 1)
    await store.checkpoint()
    assert held not in store.log.segments
    await store.close(checkpoint=False)


async def test_large_pieces_are_moved_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, segment_size=4 << 20)
    await rig.open()
    await rig.without_upkeep()
    segment = rig.store.log.segments[rig.store.log.last_number]
    data = b"".join(block(number) for number in range(256))
    await rig.write(0, 0, data)
    await rig.write(0, 100, block(4711))  # in the middle: what is left are two runs
    moved: list[int] = []

    def direct(file: MemoryFile, buffers: Sequence[Any], offset: int) -> None:
        assert offset % PAGE == 0 and sum(map(len, buffers)) % PAGE == 0
        moved.extend(map(len, buffers))
        file.pwritev(buffers, offset)

    monkeypatch.setattr(MemoryFile, "pwritev_direct", direct)
    monkeypatch.setattr(rig.store.compactor, "_piece", lambda: 2 << 20)  # as when there is no user
    await rig.store.compactor.compact(segment)
    assert sum(moved) == len(data) and max(moved) == PIECE_BYTES
    expected = data[: 100 * BLOCK_SIZE] + block(4711) + data[101 * BLOCK_SIZE :]
    assert (await rig.read(0, 0, 256))[1] == expected
    await rig.store.close(checkpoint=False)


# -- records ---------------------------------------------------------------------------------------------


async def test_a_record_behind_one_that_was_moved_keeps_no_segment(rig: Rig) -> None:
    await rig.without_upkeep()
    store, replica = rig.store, rig.store.replica(1)
    first = store.log.segments[store.log.last_number]
    await rig.log(replica, rig.record(replica, 0, 0, block(1)), apply=False)
    await rig.roll()
    second = store.log.segments[store.log.last_number]
    await rig.log(replica, rig.record(replica, 0, 1, block(2)), apply=False)
    await rig.roll()
    await store.checkpoint()
    await store.compactor.compact(first)  # the record is further on now
    store.apply(replica, 2)
    await rig.discard(0, 1)
    await store.checkpoint()
    assert first not in store.log.segments.values() and second not in store.log.segments.values()
    replica.validate()


async def test_a_record_that_is_applied_while_its_segment_is_compacted_is_moved(rig: Rig) -> None:
    await rig.without_upkeep()
    store, replica, compactor = rig.store, rig.store.replica(1), rig.store.compactor
    segment = store.log.segments[store.log.last_number]
    await rig.write(0, 0, block(1))
    await rig.log(replica, rig.record(replica, 0, 1, block(2)), apply=False)
    await rig.roll()
    await store.checkpoint()
    fetch = compactor._fetch

    async def slow(extents: Any) -> Any:
        store.apply(replica, 2)
        return await fetch(extents)

    compactor._fetch = slow  # type: ignore[method-assign]
    await compactor.compact(segment)
    await store.checkpoint()
    assert segment not in store.log.segments.values()
    assert (await rig.read(0, 0, 2))[1] == block(1) + block(2)
