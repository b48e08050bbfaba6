"""Listening and connecting: sockets, handshake and the bounds on strangers."""

from __future__ import annotations

from collections.abc import Callable

from moorage.wire.connection import Connection, Endpoint
from moorage.wire.handshake import Hello
from moorage.wire.limits import DEFAULT, Limits
from moorage.wire.secret import ClusterSecret


class Server:
    address: str  # as bound: port 0 is replaced by the real one
    connections: set[Connection]  # authenticated ones

    def close(self) -> None:
        """Stop listening and close every connection."""
        raise NotImplementedError

    async def wait_closed(self) -> None:
        raise NotImplementedError


async def serve(
    address: str,
    *,
    hello: Hello | Callable[[], Hello],
    secret: ClusterSecret,
    endpoint: Endpoint,
    limits: Limits = DEFAULT,
) -> Server:
    """Listen; raises :class:`Invalid` when the address cannot be bound."""
    raise NotImplementedError


async def connect(
    address: str,
    *,
    hello: Hello,
    secret: ClusterSecret,
    endpoint: Endpoint | None = None,
    timeout: float = 5.0,
    limits: Limits = DEFAULT,
) -> Connection:
    """Connect and shake hands. Raises CannotConnect, AuthenticationFailed, VersionMismatch, ..."""
    raise NotImplementedError
