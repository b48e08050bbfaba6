"""One connection: frames in and out of a socket, requests and their replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from moorage.wire.errors import MoorageError
from moorage.wire.frame import Buffer
from moorage.wire.handshake import Hello


class Reply:
    """A reply, valid only during the ``on_reply`` call: the object itself is used again, and so is ``body``.
    ``payload`` may be kept when ``owned`` (it was received into a buffer of its own, or into ``into``)."""

    __slots__ = ("body", "flags", "owned", "payload")

    body: memoryview
    payload: memoryview
    flags: int
    owned: bool


OnReply = Callable[[Reply | MoorageError], None]


class Endpoint(Protocol):
    """What a server, or a client that gets ONEWAY frames, implements. Both are called on the loop."""

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
        """A REQUEST, ONEWAY or CANCEL frame. Synchronous; ``body`` and ``payload`` are valid only during the
        call, except that an ``owned`` payload may be kept. An exception answers a REQUEST with an error."""

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        """Called once, after the last frame."""


class Connection(asyncio.BufferedProtocol):
    hello: Hello  # our own
    peer: Hello
    address: str
    closed: bool
    close_reason: MoorageError | None

    def send(
        self,
        kind: int,
        op: int,
        request_id: int,
        body: Buffer,
        payload: Sequence[Buffer] = (),
        flags: int = 0,
        deadline_ms: int = 0,
    ) -> None:
        """Queue one frame; a loop turn's frames are written at once. Payload buffers are not copied: they
        must not change until the queue has drained. Dropped when the connection is closed."""
        raise NotImplementedError

    def reply(
        self, request_id: int, op: int, body: Buffer, payload: Sequence[Buffer] = (), flags: int = 0
    ) -> None:
        raise NotImplementedError

    def reply_error(self, request_id: int, op: int, error: MoorageError) -> None:
        raise NotImplementedError

    def request(
        self,
        op: int,
        body: Buffer,
        payload: Sequence[Buffer],
        on_reply: OnReply,
        into: memoryview | None = None,
        deadline_ms: int = 0,
    ) -> int:
        """Send a request; ``on_reply`` is called exactly once on the loop, unless the request is cancelled:
        with the reply, the peer's error, or ConnectionLost. A reply whose payload fits into ``into``
        is received there. No timeout here: the caller keeps its own and calls :meth:`cancel`."""
        raise NotImplementedError

    def cancel(self, request_id: int) -> None:
        """Forget a request and tell the peer: ``on_reply`` is not called, ``into`` is not touched again."""
        raise NotImplementedError

    async def call(
        self,
        method: str,
        params: dict[str, Any],
        payload: Sequence[Buffer] = (),
        *,
        timeout: float,
        into: memoryview | None = None,
    ) -> tuple[Any, memoryview]:
        """CALL a method: (result, payload). Raises the peer's error, DeadlineExceeded or ConnectionLost."""
        raise NotImplementedError

    @property
    def write_queue_size(self) -> int:
        """Bytes queued and not yet taken by the kernel."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until the queue is below the high-water mark; raises when the connection is closed."""
        raise NotImplementedError

    def close(self, error: MoorageError | None = None) -> None:
        """End the connection. Without ``error`` what is queued is still sent (for a second at most); with one
        it is dropped, and the peer is told why."""
        raise NotImplementedError

    async def wait_closed(self) -> None:
        raise NotImplementedError

    def keepalive(self, ping_after_s: float, silence_s: float) -> None:
        """PING a peer silent for ``ping_after_s``; close the connection after ``silence_s`` of silence."""
        raise NotImplementedError
