"""A checkpoint refers to durable bytes only, also when the log has just begun a new segment."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from random import Random

from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.segment import SegmentHeader, pack_segment_header
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import Kind, Record, block_sums

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
