"""Router: the table of methods (CALL) and hot ops of a service.

Owns the tasks of the calls that run: each has a name, a deadline, and ends when its caller cancels or its
connection ends. At most ``calls_max`` run per connection; one more is answered Overloaded, never queued.
A handler's error goes to the caller when it is a MoorageError; any other is our mistake: it is logged, and
the caller gets Fatal with a general text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from moorage.wire import frame
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    DeadlineExceeded,
    Fatal,
    Invalid,
    InvariantViolation,
    LimitExceeded,
    MoorageError,
    NotFound,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    Unavailable,
)
from moorage.wire.frame import CALL, CANCEL, REQUEST, Buffer
from moorage.wire.handshake import Hello
from moorage.wire.limits import DEFAULT

log = logging.getLogger(__name__)


class CallContext:
    """What a method handler knows besides its parameters. ``payload`` belongs to the handler."""

    __slots__ = ("conn", "deadline", "payload")

    def __init__(self, conn: Connection, payload: memoryview, deadline: float | None) -> None:
        self.conn = conn
        self.payload = payload
        self.deadline = deadline  # loop.time() at which the caller gives up

    @property
    def peer(self) -> Hello:
        return self.conn.peer

    def remaining(self, default: float) -> float:
        """Seconds until the deadline; ``default`` when the caller set none."""
        if self.deadline is None:
            return default
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


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

    def __init__(self, *, calls_max: int = DEFAULT.calls) -> None:
        self._calls_max = calls_max
        self._methods: dict[str, MethodHandler] = {}
        self._ops: dict[int, OpHandler] = {}
        self._lost_callbacks: list[Callable[[Connection, MoorageError], None]] = []
        self._calls: dict[Connection, dict[int, tuple[str, asyncio.Task[None]]]] = {}  # by request id
        self._withdrawn: tuple[str, ...] = ()  # prefixes of methods

    def method(self, name: str, handler: MethodHandler) -> None:
        """Serve CALLs of ``name``. The handler runs in a task that the router owns, and is cancelled when
        the caller cancels, its deadline passes or its connection ends."""
        if name in self._methods:
            raise Invalid(f"method {name} is served already")
        self._methods[name] = handler

    def op(self, op: int, handler: OpHandler) -> None:
        """Serve a hot op: ``handler(conn, kind, flags, request_id, deadline_ms, body, payload, owned)``,
        with kind REQUEST or ONEWAY. Hot ops answer at once, so cancelling them does nothing."""
        if op in self._ops or op == CALL:
            raise Invalid(f"op {op} is served already")
        self._ops[op] = handler

    def on_connection_lost(self, callback: Callable[[Connection, MoorageError], None]) -> None:
        self._lost_callbacks.append(callback)

    @property
    def running(self) -> int:
        """Calls that run now."""
        return sum(len(calls) for calls in self._calls.values())

    # -- Endpoint --------------------------------------------------------------------------------------

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
        if kind == CANCEL:
            call = self._calls.get(conn, {}).get(request_id)
            if call is not None:
                call[1].cancel()
            return
        handler = self._ops.get(op)
        if handler is not None:
            handler(conn, kind, flags, request_id, deadline_ms, body, payload, owned)
        elif op == CALL and kind == REQUEST:
            self._start(conn, request_id, deadline_ms, body, payload if owned else memoryview(bytes(payload)))
        elif kind == REQUEST:
            raise NotFound(f"{conn.hello} does not serve op {op}")
        else:
            log.debug("%s sent op %d, which %s does not serve", conn.peer, op, conn.hello)

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        for _, task in self._calls.pop(conn, {}).values():
            task.cancel()
        for callback in self._lost_callbacks:
            callback(conn, error)

    # -- calls -----------------------------------------------------------------------------------------

    def _start(
        self, conn: Connection, request_id: int, deadline_ms: int, body: memoryview, payload: memoryview
    ) -> None:
        method, params = parse_call(body)
        handler = self._methods.get(method)
        if handler is None:
            raise self._not_served(conn, method[:100])
        if method.startswith(self._withdrawn):
            raise ShuttingDown(f"{conn.hello} is shutting down")
        calls = self._calls.setdefault(conn, {})
        if request_id in calls:
            raise ProtocolError(f"request id {request_id} is in use")
        if len(calls) >= self._calls_max:
            raise Overloaded(f"{conn.hello} runs {len(calls)} calls of this connection, its limit")
        deadline = asyncio.get_running_loop().time() + deadline_ms / 1000 if deadline_ms else None
        context = CallContext(conn, payload, deadline)
        name = f"call {method} #{request_id} of {conn.peer}"
        task = asyncio.get_running_loop().create_task(
            self._run(context, request_id, method, handler, params), name=name
        )
        calls[request_id] = method, task
        task.add_done_callback(lambda _: calls.pop(request_id, None))

    def _not_served(self, conn: Connection, method: str) -> MoorageError:
        """A service that is not here may be about to start, or is elsewhere: another try may help."""
        service, dot, _ = method.partition(".")
        if dot and not any(each.startswith(service + dot) for each in self._methods):
            return Unavailable(f"{conn.hello} does not serve {service!r}, or not yet")
        return NotFound(f"{conn.hello} does not serve the method {method!r}")

    async def _run(
        self,
        context: CallContext,
        request_id: int,
        method: str,
        handler: MethodHandler,
        params: dict[str, Any],
    ) -> None:
        conn = context.conn
        try:
            async with asyncio.timeout_at(context.deadline) as limit:
                value = await handler(context, params)
            payload: Sequence[Buffer] = ()
            if isinstance(value, Result):
                value, payload = value.value, value.payload
                await conn.drain()  # many answers of one moment would pass the bound of the queue
            self._answer(conn, request_id, method, value, payload)
        except MoorageError as exc:
            if isinstance(exc, InvariantViolation):
                self._failed(method, exc)
            conn.reply_error(request_id, CALL, exc)
        except Exception as exc:
            if isinstance(exc, TimeoutError) and limit.expired():
                error: MoorageError = DeadlineExceeded(
                    f"{method}: the caller's deadline passed at {conn.hello}"
                )
            else:
                self._failed(method, exc)
                error = Fatal(f"{method}: internal error at {conn.hello}, see its log")
            conn.reply_error(request_id, CALL, error)

    @staticmethod
    def _answer(
        conn: Connection, request_id: int, method: str, value: Any, payload: Sequence[Buffer]
    ) -> None:
        body = frame.pack(value)
        if len(body) > frame.BODY_SIZE_MAX or sum(map(len, payload)) > frame.PAYLOAD_SIZE_MAX:
            raise LimitExceeded(f"{method}: the result is larger than a frame may be; ask for less")
        conn.reply(request_id, CALL, body, payload)

    @staticmethod
    def _failed(method: str, exc: Exception) -> None:
        context = {"message": f"handler of {method} failed", "exception": exc}
        asyncio.get_running_loop().call_exception_handler(context)

    async def withdraw(self, prefix: str, ops: Sequence[int] = ()) -> None:
        """The service whose methods begin with ``prefix`` stops: its calls that run are cancelled and waited
        for; later ones, and its hot ops, are answered ShuttingDown. An op that nobody can be told about ends
        its connection."""
        self._withdrawn += (prefix,)
        for op in ops:
            self._ops[op] = _shutting_down
        running = [
            task
            for calls in self._calls.values()
            for method, task in calls.values()
            if method.startswith(prefix)
        ]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def stop(self) -> None:
        """Cancel all running calls and wait for them; later ones are answered ShuttingDown."""
        await self.withdraw("")


def parse_call(body: Buffer) -> tuple[str, dict[str, Any]]:
    """Method and parameters of a CALL; raises :class:`ProtocolError`."""
    match frame.unpack(body):
        case [str(method), dict(params)] if all(isinstance(key, str) for key in params):
            return method, params
    raise ProtocolError("malformed CALL: its body is [method, params], and parameters have names")


def _shutting_down(conn: Connection, *_: object) -> None:
    raise ShuttingDown(f"{conn.hello} is shutting down")
