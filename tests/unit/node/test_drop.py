"""Dropping a replica: every call for it is answered once the drop is durable."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.node.handlers import Handlers
from moorage.wire.errors import DeviceFailed, NoReplica

CONTEXT: Any = SimpleNamespace(peer=SimpleNamespace(service="metadata"))
PARAMS = {"replica": 5, "volume": 1, "metadata": "m1", "term": 1}


class Rig:
    """A store that makes a drop durable when it is told to."""

    def __init__(self) -> None:
        self.failed = None
        self.members: dict[int, Any] = {
            5: SimpleNamespace(replica=SimpleNamespace(info=SimpleNamespace(volume=1)))
        }
        self.withheld: dict[int, Any] = {}
        self.drops: list[Any] = []
        me: Any = self
        nothing: Any = None
        self.handlers = Handlers(me, me, nothing, nothing, nothing, dict)

    def find(self, identity: int) -> Any:
        if identity not in self.members:
            raise NoReplica("none")
        return self.members[identity]

    def dropped(self, identity: int) -> None:
        self.members.pop(identity, None)

    def drop(self, identity: int, done: Any) -> None:
        self.drops.append(done)

    async def call(self) -> asyncio.Task[Any]:
        task = asyncio.create_task(self.handlers.drop_replica(CONTEXT, PARAMS))
        for _ in range(3):
            await asyncio.sleep(0)
        return task


async def test_a_second_drop_waits_for_the_first() -> None:
    rig = Rig()
    first = await rig.call()
    second = await rig.call()
    assert not first.done() and not second.done() and len(rig.drops) == 1
    first.cancel()  # its caller has gone
    await asyncio.wait([first])
    third = await rig.call()
    assert not third.done()
    rig.drops[0](None)
    assert await second == {} and await third == {}
    with pytest.raises(NoReplica):
        await (await rig.call())


async def test_a_drop_that_fails_is_told_to_all() -> None:
    rig = Rig()
    tasks = [await rig.call(), await rig.call()]
    rig.drops[0](DeviceFailed("disk"))
    for task in tasks:
        with pytest.raises(DeviceFailed):
            await task
