"""A connection that is closed after its transport went, but before it was told so."""

from __future__ import annotations

from pathlib import Path

from moorage.wire.frame import ONEWAY, RAFT
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect, serve


async def test_close_after_the_transport_is_gone(tmp_path: Path) -> None:
    secret = ClusterSecret.create(tmp_path / "secret")
    hello = Hello("node", secret.cluster, "a", "1")
    server = await serve("127.0.0.1:0", hello=hello, secret=secret, endpoint=Router())
    conn = await connect(server.address, hello=hello, secret=secret)
    assert conn._transport is not None
    conn._transport.abort()
    conn.send(ONEWAY, RAFT, 0, b"x")
    conn.close()
    await conn.wait_closed()
    server.close()
    await server.wait_closed()
