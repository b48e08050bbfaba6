"""Closing a store whose log cannot go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from moorage.node import store as store_module
from moorage.node.config import CAPACITY_MIN, NodeConfig
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.service import NodeService
from moorage.node.store import Store, StoreConfig
from moorage.node.superblock import Superblock
from moorage.quorum.record import BLOCK_SIZE, Kind, Record, block_sums

SEGMENT = 64 << 10
CAPACITY = (8 << 20) + 16 * SEGMENT


async def open_store(directory: Path) -> Store:
    config = StoreConfig(directory, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, MemoryDisk())
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "sync", 3), done.set_result)
    await done
    return store


async def stall(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The log waits for a free segment, and none can be allocated; what gives them back."""
    kept = list(store.log.free)
    store.log.free.clear()

    async def nothing() -> None:
        pass

    monkeypatch.setattr(store, "allocate", nothing)
    replica, data = store.replica(1), bytes(8 * BLOCK_SIZE)
    for lsn in (1, 2, 3):
        record = Record(1, lsn, Kind.WRITE, 0, 0, 8, block_sums(data), data)
        store.append(replica, [record], lsn)
        replica.open_entry = None
    async with asyncio.timeout(10):
        while not store.log.stalled:
            await asyncio.sleep(0.01)

    def release() -> None:
        for segment in kept:
            store.log.add_free(segment)

    return release


async def test_a_store_whose_log_is_stalled_can_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CLOSE_STALLED_SECONDS", 0.2, raising=False)
    store = await open_store(tmp_path)
    await stall(store, monkeypatch)
    async with asyncio.timeout(8):
        await store.close()


@pytest.mark.parametrize("error", [lmdb.MapFullError("full"), RuntimeError("a mistake of ours")])
async def test_a_store_that_cannot_checkpoint_lets_go_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = await open_store(tmp_path)
    closed: list[str] = []

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(store.index_store, "finish", fail)
    for file in store.all_files.values():
        monkeypatch.setattr(file, "close", lambda name=file.name: closed.append(name))  # type: ignore[attr-defined]
    if isinstance(error, lmdb.Error):
        await store.close()  # nothing is lost by it: said in the log, and that is all
    else:
        with pytest.raises(RuntimeError):
            await store.close()
    assert not store._device_lane._thread.is_alive() and not store._index_lane._thread.is_alive()
    assert sorted(closed) == sorted(store.all_files)
    again = Store(store.config, store._disk)
    await again.open()
    await again.close()


async def test_a_node_that_cannot_close_its_store_unlocks_the_device(tmp_path: Path) -> None:
    nothing: Any = None
    service = NodeService(NodeConfig(tmp_path, "host", nothing, (), str, capacity=CAPACITY_MIN))
    service._superblock = Superblock(tmp_path, CAPACITY_MIN)

    async def fail() -> None:
        raise OSError(5, "bad sector")

    store: Any = SimpleNamespace(close=fail)
    service._store = store
    with pytest.raises(OSError, match="bad sector"):
        await service.stop()
    Superblock(tmp_path, CAPACITY_MIN).close()


async def test_closing_waits_for_space_that_upkeep_still_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path)
    replica = store.replica(1)
    release = await stall(store, monkeypatch)

    gave: list[bool] = []

    async def once() -> None:
        if not gave:
            gave.append(True)
            release()

    monkeypatch.setattr(store, "allocate", once)
    async with asyncio.timeout(8):
        await store.close()
    assert replica.state.last == 3
