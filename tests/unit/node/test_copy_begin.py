"""What the beginning of a copy does to the index and the log, live and in a replay."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import Run, RunKind
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import BLOCK_SIZE, Kind, Position, Record, block_sum, block_sums
from moorage.quorum.state import CopyState, MemberState

SEGMENT = 256 << 10
CAPACITY = (8 << 20) + 16 * SEGMENT


async def open_store(directory: Path, disk: MemoryDisk) -> Store:
    store = Store(StoreConfig(directory, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9), disk)
    await store.open()
    return store


async def create(store: Store) -> Replica:
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "sync", 3), done.set_result)
    assert await done is None
    return store.replica(1)


async def read(store: Store, block: int) -> Any:
    got = asyncio.get_running_loop().create_future()
    store.reader.read(store.replica(1), 0, block, 1, got.set_result)
    return (await got)[1]


async def test_a_replay_applies_what_the_beginning_of_a_copy_counts_on(tmp_path: Path) -> None:
    """The note says that the index is complete up to ``above``. When the records up to there were queued, the
    commit LSN that the log carries with them was older; nothing else in the log says that they are
    committed."""
    disk = MemoryDisk()
    store = await open_store(tmp_path, disk)
    replica = await create(store)
    data = [bytes([lsn]) * BLOCK_SIZE for lsn in range(4)]
    for lsn in (1, 2, 3):
        record = Record(1, lsn, Kind.WRITE, 0, lsn, 1, block_sums(data[lsn]), data[lsn])
        store.append(replica, [record], lsn)
        await store.flushed()
    store.apply(replica, 3)
    copy = CopyState(Position(1, 10), above=3, until=Position(1, 10), old=Position(1, 3))
    state = MemberState(1, epoch=1, writer=1, history=[(1, 10)], commit=10, last=10, copy=copy)
    store.note(replica, state.pack(), 4)
    await store.flushed()
    assert [await read(store, lsn) for lsn in (1, 2, 3)] == data[1:]
    await store.close(checkpoint=False)
    store = await open_store(tmp_path, disk)
    assert [await read(store, lsn) for lsn in (1, 2, 3)] == data[1:]
    await store.close()


async def test_a_copy_that_begins_anew_from_the_same_base_drops_the_index_and_the_log(tmp_path: Path) -> None:
    """Blocks of the first attempt are newer than what the second one says that its index may show; its
    applied records may be gone from the tail, which then began behind the new end of the log."""
    disk = MemoryDisk()
    store = await open_store(tmp_path, disk)
    replica = await create(store)
    base, data = Position(1, 5), bytes([8]) * BLOCK_SIZE

    def begin(attempt: int, ticket: int) -> None:
        copy = CopyState(base, above=0, until=base, old=Position(0, 0), attempt=attempt)
        state = MemberState(1, epoch=1, writer=1, history=[(1, 1)], commit=5, last=5, copy=copy)
        store.note(replica, state.pack(), ticket)

    def log(lsn: int) -> None:
        store.append(replica, [Record(1, lsn, Kind.ZERO, 0, 20, 1)], lsn)
        store.apply(replica, lsn)

    begin(1, 1)
    store.merge(replica, [Run(RunKind.DATA, 0, 0, (8,), (block_sum(data),))], [data], lambda _: None)
    log(6)
    log(7)
    await store.flushed()
    assert await read(store, 0) == data
    replica.trim(8)
    begin(2, 2)
    log(6)
    await store.flushed()
    for _ in range(2):  # live, and after a replay
        replica = store.replica(1)
        assert await read(store, 0) is None
        assert (replica.state.last, replica.tail_from) == (6, 6)
        replica.validate()
        await store.close(checkpoint=False)
        store = await open_store(tmp_path, disk)
    assert not store.replica(1).damaged
    await store.close()
