"""Compaction: what it moves, what it leaves, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import Replica, ReplicaInfo
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

    async def roll(self, segments: int = 1) -> None:
        """Until the log is that many segments further, with what is overwritten at once."""
        end = self.store.log.last_number + segments
        while self.store.log.last_number < end:
            await self.store.allocate()
            await self.write(99, 0, block(99, 8), identity=2)

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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


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
