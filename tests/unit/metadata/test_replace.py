"""A change of members from its wish to its end, with whoever leads the volume made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.metadata import records
from moorage.metadata.tasks import replace as task
from moorage.service.kv import KV

VOLUME = 7


class Made:
    """``wish`` says what the state wishes for. Whoever leads goes on until he is let go."""

    def __init__(self) -> None:
        self.kv = KV()
        self.created: asyncio.Queue[int] = asyncio.Queue()
        self.let_go = asyncio.Event()
        self.context: Any = SimpleNamespace(
            replicated=SimpleNamespace(kv=self.kv),
            orders=self,
            term=1,
            order_timeout_s=1.0,
            lapsed_ms=lambda volume: 1,
            call=lambda name: None,
            leading=self,
        )

    def wish(self, replica: int | None) -> None:
        members = [{"replica": 1, "device": "d1", "host": "h1"}]
        wish = replica and {"replica": replica, "device": "d2", "host": "h2", "replaces": 1}
        group = {"group": 0, "version": 1, "members": members, "wish": wish}
        volume = {"id": VOLUME, "name": "db", "state": records.READY, "groups": [group]}
        volume |= {"durability": "sync", "replicas": 3}
        self.kv.put(records.volume_key(VOLUME), volume)
        self.kv.commit()

    async def create_replicas(self, device: str, term: int, orders: Any, timeout: float) -> list[None]:
        for order in orders:
            self.created.put_nowait(order["replica"])
        return [None] * len(orders)

    async def lead(self, call: Any, done: Callable[[], bool]) -> None:
        await self.let_go.wait()


async def test_a_wish_that_comes_while_the_leading_ends_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """It went unseen until metadata's leader changed, and whoever led waited for it for ever."""
    made, fulfilled, real = Made(), asyncio.Event(), task._wishing

    def wishing(context: Any, volume: int) -> Any:
        found = real(context, volume)
        if found is None:
            fulfilled.set()
        return found

    monkeypatch.setattr(task, "_wishing", wishing)
    monkeypatch.setattr(task, "POLL_S", 0.001)
    made.wish(21)
    async with asyncio.timeout(20):
        working = asyncio.create_task(task.replace(made.context, VOLUME))
        assert await made.created.get() == 21
        made.wish(None)
        await fulfilled.wait()
        made.wish(22)
        assert await made.created.get() == 22
        made.wish(None)
        made.let_go.set()
        await working
