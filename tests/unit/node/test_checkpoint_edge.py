"""A checkpoint refers to durable bytes only, also when the log has just begun a new segment."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from random import Random

import pytest

from moorage.node.index import Page
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.segment import OFFSET_BITS, SegmentHeader, pack_segment_header
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import Kind, Position, Record, block_sums
from moorage.quorum.state import CopyState, MemberState

SEGMENT = 64 << 10
CAPACITY = (8 << 20) + 30 * SEGMENT


async def test_a_checkpoint_while_the_first_group_of_a_segment_is_under_way(tmp_path: Path) -> None:
    disk = MemoryDisk()
    store = Store(StoreConfig(tmp_path, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9), disk)
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "sync", 3), done.set_result)
    await done
    for segment in store.log.free:  # they have been in use before
        segment.file.pwritev([pack_segment_header(SegmentHeader(1, 1, 0, 0, b"0" * 16), 0)], 0)
        segment.file.fdatasync()
    replica, lsn, released = store.replica(1), 0, threading.Event()
    syncing = threading.Event()

    def on_event(call: str, name: str) -> None:
        current = store.log.current
        if call == "fdatasync" and current is not None and current.end == 512:
            syncing.set()
            released.wait(10)
            raise OSError(5, "the power is gone")

    disk.on_event = on_event
    data = bytes(8192)
    while not syncing.is_set():
        lsn += 1
        store.append(replica, [Record(1, lsn, Kind.WRITE, 0, 0, 2, block_sums(data), data)], lsn)
        while not store.log.idle and not syncing.is_set():
            await asyncio.sleep(0.001)
    await store.checkpoint()
    durable = replica.state.last
    after = disk.crash(Random(1), keep=0.0)
    for file in after.files.values():
        file.now[:] = disk.files[file.name].synced  # nothing that was not synced is there
    released.set()
    await store.close()
    store = Store(StoreConfig(tmp_path, b"0" * 16, CAPACITY, SEGMENT), after)
    report = await store.open()
    assert not report.damaged
    assert store.replica(1).state.last == durable
    await store.close()


@pytest.mark.parametrize("moved", [False, True], ids=["stored", "moved"])
async def test_what_a_copying_replica_had_applied_stays_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Its index holds a record that it had applied; a crash before the states are stored must not make less
    of it: the next copy may begin behind what is known to have left a trace, and keeps what is before."""
    disk = MemoryDisk()
    config = StoreConfig(tmp_path, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, disk)
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "writeback", 3), done.set_result)
    await done
    replica, base = store.replica(1), Position(3, 10)
    copy = CopyState(base, 0, base, Position(2, 5))
    state = MemberState(1, epoch=3, writer=1, history=[(3, 10)], commit=10, last=10, copy=copy)
    store.note(replica, state.pack(), 1)
    data = bytes(4096)
    store.append(
        replica, [Record(3, n, Kind.WRITE, 0, n, 1, block_sums(data), data) for n in range(11, 15)], 2
    )
    await store.flushed()
    store.apply(replica, 14)
    assert replica.state.newest.lsn == 14

    def fail(*_: object) -> None:
        raise OSError(5, "the power is gone")

    if moved:  # by compaction, which logs the block with its LSN
        location = next(iter(store.index.find(replica.table, 0, 14, 1)))[0]
        segment = store.log.segments[location >> OFFSET_BITS]
        await store.compactor.compact(segment)
    else:  # the pages are stored, what is said of the replica is not
        monkeypatch.setattr(store.index_store, "finish", fail)
        with pytest.raises(OSError, match="the power is gone"):
            await store.checkpoint()
    await store.close(checkpoint=False)
    store = Store(config, disk.crash(Random(1), keep=0.0))
    await store.open()
    assert store.replica(1).state.newest.lsn == 14
    await store.close()


async def test_a_checkpoint_does_not_take_back_a_tombstone_that_it_has_stored(tmp_path: Path) -> None:
    """A discard comes while it stores pages, and takes a block out of one of them. Stored without it, the
    block would be gone for no reason, and nobody would know that the discard had been applied."""
    disk = MemoryDisk()
    config = StoreConfig(tmp_path, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, disk)
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "writeback", 3), done.set_result)
    await done
    replica, data = store.replica(1), bytes(4096)
    discard = Record(1, 1, Kind.ZERO_CHUNKS, 0, 0, 1)
    write = Record(1, 2, Kind.WRITE, 0, 5, 1, block_sums(data), data)
    store.append(replica, [discard, write], 1)
    await store.flushed()
    store.apply(replica, 2)
    store_pages = store.checkpointer._store_pages

    async def discarded_meanwhile(pages: list[Page]) -> None:
        store.append(replica, [Record(1, 3, Kind.ZERO_CHUNKS, 0, 0, 1)], 2)
        await store.flushed()
        store.apply(replica, 3)
        assert list(store.index.find(replica.table, 0, 5, 1)) == [(0, 0, 0)]
        await store_pages(pages)

    store.checkpointer._store_pages = discarded_meanwhile  # type: ignore[method-assign]
    store.checkpointer._sweep_tombstones = _nothing  # type: ignore[method-assign]
    await store.checkpoint()
    await store.close(checkpoint=False)
    store = Store(config, disk.crash(Random(1), keep=0.0))
    await store.open()
    replica = store.replica(1)
    assert list(replica.table.tombstones) == [(0, 1, 3)]
    assert replica.state.commit == 3
    await store.close()


async def _nothing() -> None:
    pass
