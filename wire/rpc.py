"""Router: the table of methods (CALL) and hot ops of a service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from moorage.wire.connection import Connection
from moorage.wire.errors import MoorageError
from moorage.wire.frame import Buffer
from moorage.wire.handshake import Hello


class CallContext:
    """What a method handler knows besides its parameters. ``payload`` belongs to the handler."""

    __slots__ = ("conn", "deadline", "payload")

    conn: Connection
    payload: memoryview
    deadline: float | None  # loop.time() at which the caller gives up

    @property
    def peer(self) -> Hello:
        return self.conn.peer

    def remaining(self, default: float) -> float:
        """Seconds until the deadline; ``default`` when the caller set none."""
        raise NotImplementedError


class Result:
    """A handler's result with a payload behind it. The buffers must not change until they are sent."""

    __slots__ = ("payload", "value")

    def __init__(self, value: Any, payload: Sequence[Buffer]) -> None:
        self.value = value
        self.payload = payload


MethodHandler = Callable[[CallContext, dict[str, Any]], Awaitable[Any]]
OpHandler = Callable[[Connection, int, int, int, int, memoryview, memoryview, bool], None]


class Router:
    """An :class:`Endpoint`. Create it, fill its tables, give it to ``serve`` or ``connect``."""

    def __init__(self, *, calls_max: int = 256) -> None:
        raise NotImplementedError

    def method(self, name: str, handler: MethodHandler) -> None:
        """Serve CALLs of ``name``. The handler runs in a task that the router owns, and is cancelled when
        the caller cancels, its deadline passes or its connection ends."""
        raise NotImplementedError

    def op(self, op: int, handler: OpHandler) -> None:
        """Serve a hot op: ``handler(conn, kind, flags, request_id, deadline_ms, body, payload, owned)``."""
        raise NotImplementedError

    def on_connection_lost(self, callback: Callable[[Connection, MoorageError], None]) -> None:
        raise NotImplementedError

    def frame_received(
        self,
        conn: Connection,
        kind: int,
        op: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        raise NotImplementedError

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        """Cancel all running calls and wait for them; later ones are answered ShuttingDown."""
        raise NotImplementedError
