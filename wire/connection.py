"""One connection: frames in and out of a socket, requests and their replies.

Owns the socket, the requests that are open on it, and the queue of frames not yet written. Each end may ask
and answer. Bounds: the queue (past ``Limits.write_queue_bytes`` the connection ends), one frame on its way in
(receiver.py), a second for the last words of a connection that is being closed.
Must never: copy a payload more than once, start a task, or let a callback's exception end the parse of the
frames behind it. Callbacks run on the loop, and inside :meth:`buffer_updated`.
An accepted connection whose writes are paused also stops reading, so a peer that does not take its replies
cannot ask for more; the connecting end always reads, or both ends could wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from moorage.wire import frame
from moorage.wire.errors import (
    AuthenticationFailed,
    CannotConnect,
    ConnectionLost,
    DeadlineExceeded,
    Fatal,
    InvariantViolation,
    MoorageError,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    Unavailable,
    VersionMismatch,
)
from moorage.wire.frame import CALL, CANCEL, ERROR, HELLO, ONEWAY, PING, REPLY, REQUEST, Buffer, encode
from moorage.wire.handshake import MESSAGE_SIZE_MAX, ClientHandshake, Hello, ServerHandshake
from moorage.wire.limits import DEFAULT, Limits
from moorage.wire.receiver import FrameReceiver

log = logging.getLogger(__name__)

LAST_WORDS_S = 1.0  # how long a closing connection may take to write what is queued
DEADLINE_MS_MAX = (1 << 32) - 1
_EMPTY = memoryview(b"")
_UNKNOWN = Hello("unknown", "", "peer", "")


class Reply:
    """A reply, valid only during the ``on_reply`` call: the object itself is used again, and so is ``body``.
    ``payload`` may be kept when ``owned`` (it was received into a buffer of its own, or into ``into``)."""

    __slots__ = ("body", "flags", "owned", "payload")

    def __init__(self) -> None:
        self.body = _EMPTY
        self.payload = _EMPTY
        self.flags = 0
        self.owned = False


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


class Connection(FrameReceiver, asyncio.BufferedProtocol):
    """Made by ``connect`` and ``serve`` (server.py). ``peer`` is known once the handshake is over."""

    def __init__(
        self,
        handshake: ClientHandshake | ServerHandshake,
        *,
        hello: Hello,
        address: str,
        endpoint: Endpoint | None,
        limits: Limits = DEFAULT,
        on_open: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        super().__init__(self._deliver_handshake, body_max=MESSAGE_SIZE_MAX, payload_max=0)
        self.hello = hello
        self.peer = _UNKNOWN
        self.address = address
        self.closed = False
        self.close_reason: MoorageError | None = None
        self._loop = asyncio.get_running_loop()
        self._handshake: ClientHandshake | ServerHandshake | None = handshake
        self._accepted = isinstance(handshake, ServerHandshake)
        self._endpoint = endpoint
        self._limits = limits
        self._on_open = on_open
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        # requests that are open: (on_reply, into)
        self._pending: dict[int, tuple[OnReply, memoryview | None]] = {}
        self._refused: dict[int, OnReply] = {}  # made when it was closed: told in the next loop turn
        self._next_id = 0
        self._reply = Reply()
        # frames of this loop turn, or of all turns since writing was paused
        self._out: list[Buffer] = []
        self._out_size = 0
        self._queue_max = limits.write_queue_bytes
        self._paused = False
        self._reading = False
        self._drained: asyncio.Future[None] | None = None
        # keepalive
        self.last_received = self._loop.time()
        self._ping_after_s = self._silence_s = 0.0
        self._alive_due = 0.0
        self._alive_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.peer} at {self.address}{' closed' if self.closed else ''}>"

    # -- sending ---------------------------------------------------------------------------------------

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
        if self.closed:
            return
        size = 0
        for part in payload:
            size += len(part)
        head = encode(kind, op, request_id, body, size, flags, deadline_ms)
        out = self._out
        if not out and not self._reading:
            self._loop.call_soon(self._flush)
        out.append(head)
        if size:
            out += payload
        self._out_size += len(head) + size
        if self._out_size > self._queue_max:
            self._overflow()

    def reply(
        self, request_id: int, op: int, body: Buffer, payload: Sequence[Buffer] = (), flags: int = 0
    ) -> None:
        self.send(REPLY, op, request_id, body, payload, flags)

    def reply_error(self, request_id: int, op: int, error: MoorageError) -> None:
        self.send(ERROR, op, request_id, frame.pack_error(error))

    def request(
        self,
        op: int,
        body: Buffer,
        payload: Sequence[Buffer],
        on_reply: OnReply,
        into: memoryview | None = None,
        deadline_ms: int = 0,
        flags: int = 0,
    ) -> int:
        """Send a request; ``on_reply`` is called exactly once on the loop, unless the request is cancelled:
        with the reply, the peer's error, or ConnectionLost. A reply whose payload fits into ``into``
        is received there. No timeout here: the caller keeps its own and calls :meth:`cancel`."""
        self._next_id = request_id = self._next_id + 1
        if self.closed:
            self._refused[request_id] = on_reply
            self._loop.call_soon(self._refuse, request_id)
            return request_id
        self.send(REQUEST, op, request_id, body, payload, flags, deadline_ms)
        self._pending[request_id] = (on_reply, into)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request and tell the peer: ``on_reply`` is not called, ``into`` is not touched again."""
        if self._pending.pop(request_id, None) is not None:
            self._divert(REPLY, request_id)
            self.send(CANCEL, CALL, request_id, b"")
        else:
            self._refused.pop(request_id, None)

    def _refuse(self, request_id: int) -> None:
        on_reply = self._refused.pop(request_id, None)
        if on_reply is not None:
            on_reply(CannotConnect(f"connection to {self.peer} is closed"))

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
        answer: asyncio.Future[tuple[Any, memoryview]] = self._loop.create_future()

        def on_reply(reply: Reply | MoorageError) -> None:
            if answer.done():
                return
            try:
                answer.set_result(_call_result(reply))
            except MoorageError as exc:
                answer.set_exception(exc)

        request_id = 0
        try:
            async with asyncio.timeout(timeout):
                # (Of all that are made in one turn of the loop, none has been handed to the transport yet.)
                if self._paused or self._out_size > self._limits.high_water_bytes:
                    await self.drain()
                deadline_ms = min(max(int(timeout * 1000), 1), DEADLINE_MS_MAX)
                body = frame.pack([method, params])
                request_id = self.request(CALL, body, payload, on_reply, into, deadline_ms)
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(
                f"{method}: {self.peer} at {self.address} gave no answer in {timeout:g} s"
            ) from None
        finally:
            self.cancel(request_id)  # does nothing when it was answered

    def _flush(self) -> None:
        out = self._out
        if not out or self._paused or self._transport is None:
            return
        self._out_size = 0
        self._transport.writelines(out)
        out.clear()

    def _overflow(self) -> None:
        self.close(
            Overloaded(
                f"{self.peer} at {self.address} does not read: {self.write_queue_size} bytes are queued"
            )
        )

    @property
    def write_queue_size(self) -> int:
        """Bytes queued and not yet taken by the kernel."""
        written = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._out_size + written

    async def drain(self) -> None:
        """Wait until the queue is below the high-water mark; raises when the connection is closed."""
        while (self._paused or self._out_size > self._limits.high_water_bytes) and not self.closed:
            if self._drained is None or self._drained.done():
                self._drained = self._loop.create_future()
            if not self._paused:
                self._flush()
                continue
            await asyncio.shield(self._drained)
        if self.closed:
            raise self._lost_error()

    # -- closing ---------------------------------------------------------------------------------------

    def close(self, error: MoorageError | None = None) -> None:
        """End the connection. Without ``error`` what is queued is still sent (for a second at most); with one
        it is dropped, and the peer is told why."""
        if self.closed:
            return
        self.close_reason = error
        if error is not None:
            self._out.clear()
            self._out_size = 0
            self.send(ERROR, HELLO if self._handshake else PING, 0, frame.pack_error(error))
        self.closed = self._stopped = True
        if self._transport is None:
            return
        try:
            self._transport.writelines(self._out)
        except RuntimeError:  # uvloop, when a connect was cancelled: closed behind our back, and nobody told
            self._loop.call_soon(self._gone)
            return
        finally:
            self._out.clear()  # a flush that is due finds nothing
            self._out_size = 0
        self._transport.close()
        self._abort_timer = self._loop.call_later(LAST_WORDS_S, self._transport.abort)

    def _gone(self) -> None:
        if not self._lost.done():
            self.connection_lost(None)

    async def wait_closed(self) -> None:
        await asyncio.shield(self._lost)

    def _lost_error(self) -> ConnectionLost:
        why = "closed by this side" if self.close_reason is None else str(self.close_reason)
        return ConnectionLost(f"connection to {self.peer} at {self.address} is lost: {why}")

    # -- asyncio.BufferedProtocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.high_water_bytes)
        if self.closed:  # before it was made
            self._transport.abort()
        elif isinstance(self._handshake, ClientHandshake):
            try:
                self.send(REQUEST, HELLO, 1, self._handshake.start())
            except MoorageError as exc:
                self.close(exc)

    def buffer_updated(self, nbytes: int) -> None:
        self.last_received = self._loop.time()
        self._reading = True
        try:
            FrameReceiver.buffer_updated(self, nbytes)
        except MoorageError as exc:
            self.close(exc)
        finally:
            self._reading = False
        if self._out:
            self._flush()

    def eof_received(self) -> bool:
        if not self.closed:
            where = " in the middle of a frame" if self.in_frame else ""
            self.close_reason = ConnectionLost(f"{self.peer} at {self.address} closed the connection{where}")
        return False  # the transport closes itself

    def pause_writing(self) -> None:
        self._paused = True
        if self._accepted and self._transport is not None and not self.closed:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self.closed or self._transport is None:
            return
        if self._accepted:
            self._transport.resume_reading()
        self._flush()
        if not self._paused and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.close_reason is None and not self.closed:
            why = f": {exc}" if exc is not None else ""
            self.close_reason = ConnectionLost(f"{self.peer} at {self.address} closed the connection{why}")
        self.closed = self._stopped = True
        self._transport = None
        self._large = None
        self._out.clear()
        self._out_size = 0
        for timer in (self._alive_timer, self._abort_timer):
            if timer is not None:
                timer.cancel()
        self._tell_everybody()

    def _tell_everybody(self) -> None:
        pending, self._pending = self._pending, {}
        for on_reply, _ in pending.values():
            self._guarded(on_reply, self._lost_error())
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._endpoint is not None and self.peer is not _UNKNOWN:
            self._guarded(self._endpoint.connection_lost, self, self.close_reason or self._lost_error())
        self._guarded(self._on_lost, self)
        if not self._lost.done():
            self._lost.set_result(None)

    def _guarded(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception as exc:
            self._callback_failed(exc)

    def _callback_failed(self, exc: Exception) -> None:
        """A mistake of ours: it goes where the service decides what that means."""
        context = {"message": f"callback of {self!r} failed", "exception": exc, "protocol": self}
        self._loop.call_exception_handler(context)

    # -- frames ----------------------------------------------------------------------------------------

    def _deliver_open(
        self,
        kind: int,
        op: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        if kind == REPLY:
            entry = self._pending.pop(request_id, None)
            if entry is None:
                return  # it was cancelled
            on_reply, into = entry
            if into is not None and not owned and payload and len(payload) <= len(into):
                into = into[: len(payload)]
                into[:] = payload
                payload = into
                owned = True
            reply = self._reply
            reply.body = body
            reply.payload = payload
            reply.flags = flags
            reply.owned = owned
            try:
                on_reply(reply)
            except Exception as exc:
                self._callback_failed(exc)
        elif kind == ERROR:
            self._error_received(request_id, body)
        elif op == PING:
            if kind == REQUEST:
                self.send(REPLY, PING, request_id, b"")
        elif op == HELLO:
            self.close(ProtocolError("second handshake on one connection"))
        elif self._endpoint is None:
            if kind == REQUEST:
                self.reply_error(request_id, op, Unavailable(f"{self.hello} takes no requests here"))
        else:
            try:
                self._endpoint.frame_received(
                    self, kind, op, flags, request_id, deadline_ms, body, payload, owned
                )
            except Exception as exc:
                self._endpoint_failed(kind, op, request_id, exc)

    def _error_received(self, request_id: int, body: memoryview) -> None:
        error = frame.unpack_error(body)
        if request_id == 0:  # the peer's last words: about the connection, not about a request
            self._end_by_peer(error)
            return
        entry = self._pending.pop(request_id, None)
        if entry is not None:
            self._guarded(entry[0], error)

    def _end_by_peer(self, error: MoorageError) -> None:
        self.close()
        if self.peer is _UNKNOWN:
            self.close_reason = _by_stranger(f"{self.address} ended the connection: {error}", error)
        else:
            text = f"{self.peer} at {self.address} ended the connection: {error}"
            self.close_reason = type(error)(text, **error.details)

    def _endpoint_failed(self, kind: int, op: int, request_id: int, exc: Exception) -> None:
        if not isinstance(exc, MoorageError) or isinstance(exc, InvariantViolation):
            self._callback_failed(exc)
            exc = Fatal("internal error, see the log of the service")
        if kind == REQUEST:
            self.reply_error(request_id, op, exc)
        elif kind == ONEWAY:  # nobody can be told but by the end of the connection
            self.close(exc)

    # -- handshake -------------------------------------------------------------------------------------

    def _deliver_handshake(
        self,
        kind: int,
        op: int,
        flags: int,
        request_id: int,
        deadline_ms: int,
        body: memoryview,
        payload: memoryview,
        owned: bool,
    ) -> None:
        handshake = self._handshake
        assert handshake is not None
        if kind == ERROR:
            self._end_by_peer(frame.unpack_error(body))
            return
        if op != HELLO or kind != (REQUEST if self._accepted else REPLY):
            raise ProtocolError("expected a handshake")
        answer = handshake.receive(bytes(body))
        if answer is not None:
            self.send(REPLY if self._accepted else REQUEST, HELLO, request_id, answer)
        if handshake.peer is not None:
            self._opened(handshake.peer)

    def _opened(self, peer: Hello) -> None:
        self.peer = peer
        self._handshake = None
        self._deliver = self._deliver_open
        self._body_max = frame.BODY_SIZE_MAX
        self._payload_max = frame.PAYLOAD_SIZE_MAX
        self._guarded(self._on_open, self)

    def _destination(self, kind: int, request_id: int, size: int) -> memoryview:
        if kind == REPLY:
            entry = self._pending.get(request_id)
            if entry is not None and entry[1] is not None and size <= len(entry[1]):
                return entry[1][:size]
        return super()._destination(kind, request_id, size)

    # -- keepalive -------------------------------------------------------------------------------------

    @property
    def silent_for_s(self) -> float:
        return self._loop.time() - self.last_received

    def keepalive(self, ping_after_s: float, silence_s: float) -> None:
        """PING a peer silent for ``ping_after_s``; close the connection after ``silence_s`` of silence."""
        self._ping_after_s = ping_after_s
        self._silence_s = silence_s
        if self._alive_timer is not None:
            self._alive_timer.cancel()
        self._schedule_alive()

    def _schedule_alive(self) -> None:
        every = min(self._ping_after_s, self._silence_s) / 2
        self._alive_due = self._loop.time() + every
        self._alive_timer = self._loop.call_later(every, self._check_alive)

    def _check_alive(self) -> None:
        if self.closed:
            return
        now = self._loop.time()
        if now - self._alive_due > self._ping_after_s:
            # This process stood still: what the peer sent meanwhile has not been read yet.
            self.last_received = max(self.last_received, now - self._ping_after_s)
        silent = now - self.last_received
        if silent >= self._silence_s:
            self.close(Unavailable(f"{self.peer} at {self.address} is silent for {silent:.1f} s"))
            return
        if silent >= self._ping_after_s / 2:
            self.request(PING, b"", (), _ignore)
        self._schedule_alive()


def _ignore(reply: Reply | MoorageError) -> None:
    pass


def _by_stranger(text: str, error: MoorageError) -> MoorageError:
    """Who has not proved to be of our cluster may say that it is not for us, or not now; nothing of what it
    says is about us, such as that our identity is refused."""
    for kind in (AuthenticationFailed, VersionMismatch, ProtocolError, Overloaded, ShuttingDown):
        if isinstance(error, kind):
            return kind(text)
    return CannotConnect(text)


def _call_result(reply: Reply | MoorageError) -> tuple[Any, memoryview]:
    if isinstance(reply, MoorageError):
        raise reply
    payload = reply.payload if reply.owned else memoryview(bytes(reply.payload))
    return frame.unpack(reply.body), payload
