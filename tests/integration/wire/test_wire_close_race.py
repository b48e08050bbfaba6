"""Connecting is given up at any moment, also when the transport is there and its protocol was not told."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from moorage.wire.errors import MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect, serve


async def test_a_connect_that_is_cancelled_at_any_moment(tmp_path: Path) -> None:
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    secret = ClusterSecret.create(tmp_path / "secret")
    hello = Hello("node", secret.cluster, "a", "1")
    server = await serve("127.0.0.1:0", hello=hello, secret=secret, endpoint=Router())
    for turns in [*range(40), *range(20)]:
        connecting = asyncio.create_task(connect(server.address, hello=hello, secret=secret))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError, MoorageError):
            (await connecting).close()
    server.close()
    await server.wait_closed()
    assert raised == []
