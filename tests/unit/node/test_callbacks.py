"""One callback that raises must not take those of others with it."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from moorage.node.handlers import Handlers
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import Kind, Record
from moorage.wire.errors import DeviceFailed, Fatal

SEGMENT = 256 << 10
CAPACITY = (8 << 20) + 16 * SEGMENT


async def open_store(directory: Path) -> Store:
    config = StoreConfig(directory, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, MemoryDisk())
    await store.open()
    for identity in (1, 2):
        done = asyncio.get_running_loop().create_future()
        store.create(ReplicaInfo(identity, 1, 0, "sync", 3), done.set_result)
        await done
    return store


def bad(*_: Any) -> None:
    raise OSError(5, "a read of a parked request failed")


async def test_a_member_that_raises_hides_no_commit_from_others_and_fails_the_device(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    failures: list[DeviceFailed] = []
    tickets: list[int] = []
    done: list[Any] = []
    store.on_failed = failures.append
    store.replica(1).on_persisted = bad
    store.replica(2).on_persisted = tickets.append
    for identity in (1, 2):
        store.append(store.replica(identity), [Record(1, 1, Kind.ZERO_CHUNKS, 0, 0, 1)], 7)
    store.create(ReplicaInfo(3, 1, 0, "sync", 3), done.append)
    await store.flushed()
    await asyncio.sleep(0)
    assert tickets == [7] and done == [None]
    assert store.failed is not None and failures == [store.failed]
    await store.close()


async def test_an_entry_whose_done_raises_hides_no_other_and_fails_the_device(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    done: list[Any] = []
    store.create(ReplicaInfo(3, 1, 0, "sync", 3), bad)
    store.create(ReplicaInfo(4, 1, 0, "sync", 3), done.append)
    await store.flushed()
    await asyncio.sleep(0)
    assert done == [None] and store.failed is not None
    await store.close()


async def test_what_was_under_way_when_the_device_failed_is_answered_with_the_failure(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    done: list[Any] = []

    def first(_: Any) -> None:
        raise OSError(5, "our own mistake")

    store.create(ReplicaInfo(3, 1, 0, "sync", 3), first)
    store.log._begin()  # under way, and the next one waits behind it
    store.create(ReplicaInfo(4, 1, 0, "sync", 3), done.append)
    async with asyncio.timeout(10):
        while not done:
            await asyncio.sleep(0.01)
    assert done == [store.failed] and isinstance(done[0], DeviceFailed)
    assert 4 not in store.replicas
    await store.close()


async def test_upkeep_that_ends_fails_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checkpoints and compaction, it must not go on taking records: heartbeats say why."""
    store = await open_store(tmp_path)
    failures: list[DeviceFailed] = []
    store.on_failed = failures.append

    async def once() -> None:
        raise struct.error("unpack requires more bytes")

    monkeypatch.setattr(store, "_keep_up_once", once)
    async with asyncio.timeout(10):
        while not failures:
            await asyncio.sleep(0.01)
    assert failures == [store.failed] and "unpack requires" in str(store.failed)
    with pytest.raises(DeviceFailed):
        store.append(store.replica(1), [Record(1, 1, Kind.ZERO_CHUNKS, 0, 0, 1)], 1)
    await store.close()


async def test_a_parked_read_that_fails_is_answered_fatal() -> None:
    nothing: Any = None
    sessions: Any = SimpleNamespace(members={})
    handlers = Handlers(nothing, sessions, nothing, nothing, nothing, dict)
    answers: list[Any] = []
    conn: Any = SimpleNamespace(closed=False, reply_error=lambda *what: answers.append(what))
    for error in (OSError(5, "bad sector"), lmdb.Error("index")):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        handlers._read = fail  # type: ignore[method-assign]
        handlers._read_again(nothing, conn, 9, (1, 1, 0, 0, 1, 0), None)
    assert [type(each[2]) for each in answers] == [Fatal, Fatal]
