"""Channel: a connection to one peer that comes back by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from moorage.wire.connection import Connection, Endpoint
from moorage.wire.errors import MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret

State = Literal["stopped", "connecting", "up", "down"]


class Channel:
    """``start()`` it, and ``await stop()``. ``expect(peer)`` may raise when the peer is not who we want (a
    reused port): the channel stays down with that error and tries again."""

    state: State
    conn: Connection | None
    last_error: MoorageError | None

    def __init__(
        self,
        address: str,
        *,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        endpoint: Endpoint | None = None,
        expect: Callable[[Hello], None] | None = None,
        on_up: Callable[[Connection], None] | None = None,
        on_down: Callable[[MoorageError], None] | None = None,
        ping_after_s: float = 1.0,
        silence_s: float = 5.0,
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    def set_address(self, address: str) -> None:
        """The peer moved: connect there (at once, and also when connected elsewhere)."""
        raise NotImplementedError

    def retry_now(self) -> None:
        """Do not wait for the rest of the backoff."""
        raise NotImplementedError

    @property
    def silent_for_s(self) -> float:
        """Since when nothing was heard from the peer (since start() when never)."""
        raise NotImplementedError

    async def connected(self, timeout: float) -> Connection:
        """The connection, waiting for it; raises Unavailable with the last error."""
        raise NotImplementedError

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> Any:
        raise NotImplementedError
