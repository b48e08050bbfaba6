"""The shell of a member: who waits for it is answered, and what nobody waits for any more is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.node.handlers import Handlers
from moorage.node.member import MemberShell
from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import ReplicaInfo
from moorage.node.space import GRANT_FIRST
from moorage.node.store import Store, StoreConfig
from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import NO_SESSION, OK
from moorage.quorum.record import Kind, Record
from moorage.wire.errors import MoorageError, NoReplica, ShuttingDown
from moorage.wire.frame import NACK, ONEWAY
from moorage.wire.log_messages import pack_nack

SEGMENT = 256 << 10
CAPACITY = (8 << 20) + 200 * SEGMENT


def try_answer(member: MemberShell) -> None:
    member._try_seal_answer()  # a group commit, before the task has heard that it is cancelled


async def open_member(directory: Path) -> MemberShell:
    config = StoreConfig(directory, b"0" * 16, CAPACITY, SEGMENT, checkpoint_seconds=1e9)
    store = Store(config, MemoryDisk())
    await store.open()
    done = asyncio.get_running_loop().create_future()
    store.create(ReplicaInfo(1, 1, 0, "sync", 3), done.set_result)
    await done
    return MemberShell(store, store.replica(1), created=True)


@pytest.mark.parametrize("between", [lambda member: None, try_answer])
async def test_a_seal_whose_caller_disappears_gives_back_its_grant(
    tmp_path: Path, between: Callable[[MemberShell], None]
) -> None:
    member = await open_member(tmp_path)
    store = member.store
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


@pytest.mark.parametrize(
    ("end", "told"),
    [(lambda member: member.fail(ShuttingDown("stops")), ShuttingDown), (MemberShell.dropped, NoReplica)],
    ids=["stop", "drop"],
)
async def test_a_read_that_waits_for_a_sync_is_answered_when_its_member_ends(
    tmp_path: Path, end: Callable[[MemberShell], None], told: type[MoorageError]
) -> None:
    member = await open_member(tmp_path)
    store, answers = member.store, list[Any]()
    conn: Any = SimpleNamespace(
        closed=False, send=lambda *_: None, reply_error=lambda *what: answers.append(what[2])
    )
    await member.seal(conn, 1, 1, 7, GrantedLease())
    nothing: Any = None
    sessions: Any = SimpleNamespace(members={1: member})
    handlers = Handlers(store, sessions, nothing, nothing, nothing, dict)
    assert member.core.append(7, 1, 1, 0, 0, 1, 0, [Record(1, 1, Kind.ZERO, 0, 0, 1)]) == OK
    member.drain()
    handlers._read(member, conn, 5, (1, 1, 0, 0, 1, 0, 0))
    assert not answers, "the record is committed, and not synced here yet"
    end(member)
    assert [type(each) for each in answers] == [told]
    await store.flushed()
    assert len(answers) == 1
    await store.close()


async def test_the_writer_of_an_idle_volume_hears_of_damage(tmp_path: Path) -> None:
    member = await open_member(tmp_path)
    sent: list[tuple[Any, ...]] = []
    conn: Any = SimpleNamespace(closed=False, send=lambda *frame: sent.append(frame))
    task = asyncio.create_task(member.seal(conn, 1, 1, 7, GrantedLease()))
    await asyncio.sleep(0)
    await member.store.flushed()
    await task
    sent.clear()
    member.store.on_damage = lambda _, what: member.damage(what)
    member.store.fold.damage(member.replica, "a page is gone")
    assert sent == [(ONEWAY, NACK, 0, pack_nack(1, 1, 1, 0, 1, NO_SESSION))]
    await member.store.flushed()
    assert member.replica.damaged
    await member.store.close()
