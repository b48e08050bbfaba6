"""The shell of a member: what a SEAL was promised is given back when nobody waits for its answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.node.member import MemberShell
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.space import GRANT_FIRST
from moorage.node.store import Store, StoreConfig
from moorage.quorum.lease import GrantedLease

SEGMENT = 256 << 10
CAPACITY = (8 << 20) + 200 * SEGMENT


def try_answer(member: MemberShell) -> None:
    member._try_seal_answer()  # a group commit, before the task has heard that it is cancelled


@pytest.mark.parametrize("between", [lambda member: None, try_answer])
async def test_a_seal_whose_caller_disappears_gives_back_its_grant(
    tmp_path: Path, between: Callable[[MemberShell], None]
) -> None:
    config = StoreConfig(tmp_path, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, MemoryDisk())
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "sync", 3), done.set_result)
    await done
    member = MemberShell(store, store.replica(1), created=True)
    conn: Any = SimpleNamespace(closed=False, send=lambda *_: None)
    task = asyncio.create_task(member.seal(conn, 1, 1, 7, GrantedLease()))
    await asyncio.sleep(0)
    assert store.granted == GRANT_FIRST and not task.done()
    task.cancel()
    between(member)
    await asyncio.wait([task])
    assert store.granted == 0
    await store.flushed()
    answer = await member.seal(conn, 2, 1, 7, GrantedLease())
    assert answer is not None and store.granted == GRANT_FIRST
    await store.close()
