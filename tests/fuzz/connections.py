"""A whole connection of the binary protocol, either end, before and behind the handshake: a stream of bytes
through receiver, handshake, pending requests and router, as a socket would bring it.

Owns a transport that takes everything. What the parse does not catch, and what a callback or a task raised,
comes out: a connection may end, with an error of Moorage, and nothing else may happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from moorage.wire import frame
from moorage.wire.connection import Connection
from moorage.wire.errors import InvariantViolation, MoorageError
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.limits import Limits
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret

from ..golden import support
from ..golden import values as v
from .engine import Target
from .fixing import fix_frames

SECRET = ClusterSecret(v.CLUSTER, v.KEY)
LIMITS = Limits(calls=4, write_queue_bytes=1 << 20)


class _Transport:
    """Takes everything that is written, and forgets it."""

    def __init__(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int) -> None: ...

    def writelines(self, parts: Any) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None: ...

    abort = close


def _hello(op: int, kind: int, name: str) -> bytes:
    return frame.encode(kind, op, 1, support.wire(f"handshake-{name}"), 0, 0, 0)


AS_SERVER = _hello(frame.HELLO, frame.REQUEST, "hello") + _hello(frame.HELLO, frame.REQUEST, "proof")
AS_CLIENT = _hello(frame.HELLO, frame.REPLY, "challenge") + _hello(frame.HELLO, frame.REPLY, "ready")


async def _echo(context: CallContext, params: dict[str, Any]) -> Any:
    return params


async def _wait(context: CallContext, params: dict[str, Any]) -> Any:
    await asyncio.sleep(3600)


def _router() -> Router:
    router = Router(calls_max=4)
    router.method("echo", _echo)
    router.method("wait", _wait)
    router.op(frame.READ, lambda conn, kind, flags, request, *_: conn.reply(request, frame.READ, b"body"))
    return router


async def stream(data: bytes) -> None:
    """Bits of the mode: accepting end, behind the handshake, checks made right, cut small."""
    mode, raw = (data[0] if data else 0), data[1:]
    if mode & 4:
        raw = fix_frames(raw)
    router, lost = _router(), list[Connection]()
    handshake: ClientHandshake | ServerHandshake
    if mode & 1:
        handshake = ServerHandshake(Hello(*v.SERVER_HELLO), SECRET, v.SERVER_NONCE)
    else:
        handshake = ClientHandshake(Hello(*v.CLIENT_HELLO), SECRET, v.CLIENT_NONCE)
    conn = Connection(
        handshake,
        hello=Hello(*(v.SERVER_HELLO if mode & 1 else v.CLIENT_HELLO)),
        address="unix:/x",
        endpoint=router,
        limits=LIMITS,
        on_open=lambda _: None,
        on_lost=lost.append,
    )
    transport: Any = _Transport()
    conn.connection_made(transport)
    if mode & 2:
        _feed(conn, AS_SERVER if mode & 1 else AS_CLIENT, 1 << 16)
        assert not conn.closed, conn.close_reason
        into = memoryview(bytearray(100_000))
        for number in range(3):
            conn.request(frame.CALL, b"", (), _answered, into if number else None)
    step = 29 if mode & 8 else 1 << 16
    for at in range(0, len(raw), 2048):
        _feed(conn, raw[at : at + 2048], step)
        await asyncio.sleep(0)
        if conn.closed:
            break
    for _ in range(2):
        await asyncio.sleep(0)
    if isinstance(conn.close_reason, InvariantViolation):
        raise conn.close_reason
    assert conn.close_reason is None or isinstance(conn.close_reason, MoorageError)
    conn.close()
    conn.connection_lost(None)
    await router.stop()
    assert lost == [conn] and router.running == 0


def _feed(conn: Connection, data: bytes, step: int) -> None:
    at = 0
    while at < len(data) and not conn.closed:
        into = conn.get_buffer(-1)
        part = data[at : at + min(step, len(into))]
        into[: len(part)] = part
        conn.buffer_updated(len(part))
        at += len(part)


def _answered(reply: Any) -> None:
    if not isinstance(reply, MoorageError):
        bytes(reply.body)


def _memory(size: int) -> int:
    """One frame of the limits is received into a buffer of its own, whatever comes of it."""
    return frame.PAYLOAD_SIZE_MAX + frame.BODY_SIZE_MAX + (2 << 20) + 64 * size


def connection_targets(in_loop: Callable[[Any], None]) -> list[Target]:
    def of(work: Callable[[bytes], Awaitable[None]]) -> Callable[[bytes], None]:
        return lambda data: in_loop(lambda: work(data))

    call = frame.encode(frame.REQUEST, frame.CALL, 1, frame.pack(["echo", {"a": 1}]), 3, 0, 0) + b"abc"
    wait = frame.encode(frame.REQUEST, frame.CALL, 2, frame.pack(["wait", {}]), 0, 0, 1000)
    cancel = frame.encode(frame.CANCEL, frame.CALL, 2, b"", 0, 0, 0)
    reply = frame.encode(frame.REPLY, frame.CALL, 1, frame.pack({"a": 1}), 4, 1, 0) + b"wxyz"
    failed = frame.encode(frame.ERROR, frame.CALL, 2, support.wire("error"), 0, 0, 0)
    last = frame.encode(frame.ERROR, frame.PING, 0, support.wire("error"), 0, 0, 0)
    ping = frame.encode(frame.REQUEST, frame.PING, 9, b"", 0, 0, 0)
    read = frame.encode(frame.REQUEST, frame.READ, 3, support.wire("read"), 0, 2, 50)
    large = frame.encode(frame.REPLY, frame.CALL, 3, b"\xc0", 40_000, 0, 0) + bytes(2000)
    streams = [call + wait + cancel + read + ping, wait * 6, reply + failed + ping, large, last + call]
    seeds = [bytes([mode]) + each for mode in (2, 3, 6, 7, 15) for each in streams]
    seeds += [bytes([5]) + AS_SERVER + call, bytes([4]) + AS_CLIENT + reply]
    return [Target("connection", of(stream), seeds, (), (), _memory)]
