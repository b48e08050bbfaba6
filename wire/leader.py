"""LeaderClient: calls to a replicated service, whoever leads it now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from moorage.wire.connection import Connection
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret


class LeaderClient:
    """``candidates``: addresses, or an async function that finds them anew. ``service``: what the peer must
    be (a "host" is also accepted). Connections are made on demand; ``await close()`` at the end."""

    def __init__(
        self,
        candidates: Sequence[str] | Callable[[], Awaitable[Sequence[str]]],
        *,
        service: str,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
    ) -> None:
        raise NotImplementedError

    leader_address: str | None

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float = 10.0, idempotent: bool = True
    ) -> Any:
        """Call the leader; NotLeader hints are followed, and what is retriable is tried again until the
        deadline. ``idempotent=False``: an unknown outcome is raised instead of tried again."""
        raise NotImplementedError

    async def connection(self, timeout: float = 10.0) -> Connection:
        """Any connection to a candidate (e.g. for a describe)."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
