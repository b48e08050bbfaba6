"""Orders to a node over real sockets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.metadata import orders
from moorage.metadata.orders import NodeOrders
from moorage.wire.errors import Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import serve

SECRET = ClusterSecret("ab" * 8, b"k" * 32)


async def test_a_long_order_does_not_wait_for_a_host_that_lost_its_power(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orders, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(orders, "SILENCE_S", 0.4)
    is_there = asyncio.Event()

    async def fetch(context: CallContext, params: dict[str, Any]) -> Any:
        if params["replica"] == 1:
            await asyncio.sleep(1.0)  # longer than silence may be: its connection is alive
            return {}
        transport: Any = context.conn._transport
        transport.pause_reading()  # it hears nothing any more, and says nothing
        is_there.set()
        await asyncio.Event().wait()

    router = Router()
    router.method("node.fetch_blocks", fetch)
    hello = Hello("node", SECRET.cluster, "h1", "i1", {"device": "d1"})
    server = await serve("127.0.0.1:0", hello=hello, secret=SECRET, endpoint=router)

    async def reach(device: str) -> str:
        return server.address

    directory: Any = SimpleNamespace(reach=reach)
    asking = NodeOrders(
        directory, group="m1", hello=Hello("metadata", SECRET.cluster, "h2", "i2"), secret=SECRET
    )
    try:
        async with asyncio.timeout(20):
            assert await asking.ask("d1", "node.fetch_blocks", {"replica": 1}, 1, 60.0) == {}
            with pytest.raises(Unavailable, match="is silent for"):
                await asking.ask("d1", "node.fetch_blocks", {"replica": 2}, 1, 60.0)
        assert is_there.is_set()
    finally:
        server.close()
        await router.stop()
        await server.wait_closed()
