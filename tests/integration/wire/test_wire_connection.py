"""Connections over real sockets, on asyncio's own loop and on uvloop, with friendly and hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.wire import address as addresses
from moorage.wire import frame
from moorage.wire.connection import Connection, Reply
from moorage.wire.errors import (
    AuthenticationFailed,
    CannotConnect,
    ConnectionLost,
    DeadlineExceeded,
    Fatal,
    Invalid,
    LimitExceeded,
    MoorageError,
    NameTaken,
    NotFound,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    Unavailable,
    VersionMismatch,
)
from moorage.wire.frame import ACK, APPEND, CALL, HELLO, NACK, ONEWAY, READ, REPLY, REQUEST
from moorage.wire.handshake import ClientHandshake, Hello, ServerHandshake
from moorage.wire.limits import Limits
from moorage.wire.rpc import CallContext, Result, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, connect, serve

SECRET = ClusterSecret("ab" * 8, b"k" * 32)
NODE = Hello("node", SECRET.cluster, "host1", "i-node", {"device": "d1"})
CLIENT = Hello("client", SECRET.cluster, "job1", "i-client")
DEADLINE_S = 10.0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


class World:
    """A node that answers a few methods and ops, and the clients of a test; all gone at its end."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.router = Router(calls_max=4)
        self.servers: list[Server] = []
        self.clients: list[Connection] = []
        self.cancelled: list[str] = []
        self.oneways: list[bytes] = []
        self.lost: list[MoorageError] = []
        self.release = asyncio.Event()
        self.data = bytes(range(256)) * 8192
        for name in ("echo", "sleep", "wait", "fail", "crash", "unpackable", "huge", "payload"):
            self.router.method(name, getattr(self, name))
        self.router.op(READ, self.read)
        self.router.op(APPEND, self.append)
        self.router.op(NACK, self.broken)
        self.router.on_connection_lost(lambda conn, error: self.lost.append(error))

    async def serve(self, address: str = "127.0.0.1:0", limits: Limits | None = None) -> Server:
        self.servers.append(
            await serve(address, hello=NODE, secret=SECRET, endpoint=self.router, limits=limits or Limits())
        )
        return self.servers[-1]

    async def client(self, server: Server, **options: Any) -> Connection:
        self.clients.append(await connect(server.address, hello=CLIENT, secret=SECRET, **options))
        return self.clients[-1]

    async def close(self) -> None:
        for conn in self.clients:
            conn.close()
            await conn.wait_closed()
        for server in self.servers:
            server.close()
        await self.router.stop()
        for server in self.servers:
            await server.wait_closed()

    async def echo(self, context: CallContext, params: dict[str, Any]) -> Any:
        return {**params, "peer": context.peer.name, "size": len(context.payload)}

    async def sleep(self, context: CallContext, params: dict[str, Any]) -> Any:
        try:
            await asyncio.sleep(params.get("s", 60))
        except asyncio.CancelledError:
            self.cancelled.append("sleep")
            raise

    async def wait(self, context: CallContext, params: dict[str, Any]) -> Any:
        await self.release.wait()
        return "waited"

    async def fail(self, context: CallContext, params: dict[str, Any]) -> Any:
        raise NameTaken("taken by m2", group="m2")

    async def crash(self, context: CallContext, params: dict[str, Any]) -> Any:
        raise KeyError("secret detail")

    async def unpackable(self, context: CallContext, params: dict[str, Any]) -> Any:
        return object()

    async def huge(self, context: CallContext, params: dict[str, Any]) -> Any:
        return bytes(frame.BODY_SIZE_MAX + 1)

    async def payload(self, context: CallContext, params: dict[str, Any]) -> Any:
        return Result(len(context.payload), [memoryview(self.data)[: params["size"]], b"!"])

    def read(self, conn: Connection, kind: int, flags: int, request_id: int, *rest: Any) -> None:
        (size,) = struct.unpack("<I", rest[1])
        conn.reply(request_id, READ, b"head", (memoryview(self.data)[:size],), flags + 1)

    def append(self, conn: Connection, kind: int, flags: int, request_id: int, *rest: Any) -> None:
        self.oneways.append(bytes(rest[1]) + bytes(rest[2]))

    def broken(self, conn: Connection, kind: int, flags: int, request_id: int, *rest: Any) -> None:
        raise KeyError("secret detail")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("call ")] == []
    gc.collect()  # a socket that leaked warns now, and the warning fails the test


async def read(conn: Connection, size: int, into: memoryview | None = None) -> tuple[bytes, bytes, int]:
    answer: asyncio.Future[tuple[bytes, bytes, int]] = asyncio.get_running_loop().create_future()

    def on_reply(reply: Reply | MoorageError) -> None:
        if isinstance(reply, MoorageError):
            answer.set_exception(reply)
        else:
            answer.set_result((bytes(reply.body), bytes(reply.payload), reply.flags))

    conn.request(READ, struct.pack("<I", size), (), on_reply, into)
    async with asyncio.timeout(DEADLINE_S):
        return await answer


# -- friends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
async def test_call_over_every_kind_of_socket(world: World, kind: str) -> None:
    if kind == "tcp6" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    where = {"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": f"unix:{world.tmp_path}/s"}[kind]
    server = await world.serve(where)
    conn = await world.client(server)
    result, payload = await conn.call("echo", {"a": [1, None, b"x"]}, (b"12", b"345"), timeout=5)
    assert result == {"a": [1, None, b"x"], "peer": "job1", "size": 5}
    assert bytes(payload) == b""
    assert conn.peer == NODE
    assert [peer.peer.name for peer in server.connections] == ["job1"]
    if kind != "unix":
        for peer in (conn, *server.connections):
            assert peer._transport is not None
            sock = peer._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("size", [0, 1, 4096, 32 << 10, 100_000, 1 << 20, 2 << 20])
async def test_payload_arrives_in_its_destination(world: World, size: int) -> None:
    conn = await world.client(await world.serve())
    buffer = bytearray(size + 10)
    body, payload, flags = await read(conn, size, memoryview(buffer))
    assert (body, flags) == (b"head", 1)
    assert payload == buffer[:size] == world.data[:size]
    assert buffer[size:] == bytes(10)
    body, payload, _ = await read(conn, size, memoryview(bytearray(size // 2)))  # too small: not used
    assert payload == world.data[:size]


async def test_many_requests_of_all_sizes_at_once(world: World) -> None:
    conn = await world.client(await world.serve())
    sizes = [0, 17, 4096, 40_000, 4096, 300_000, 1, 1 << 20, 4096] * 8
    replies = await asyncio.gather(*(read(conn, size, memoryview(bytearray(size))) for size in sizes))
    assert [len(payload) for _, payload, _ in replies] == sizes
    assert all(payload == world.data[: len(payload)] for _, payload, _ in replies)


async def test_result_with_a_payload(world: World) -> None:
    conn = await world.client(await world.serve())
    result, payload = await conn.call("payload", {"size": 70_000}, [world.data], timeout=5)
    assert result == len(world.data)
    assert payload == world.data[:70_000] + b"!"


async def test_oneway_frames_come_in_order(world: World) -> None:
    conn = await world.client(await world.serve())
    for count in range(100):
        conn.send(ONEWAY, APPEND, 0, b"%d" % count, (b"x" * (50_000 if count % 10 == 0 else 3),))
    await eventually(lambda: len(world.oneways) == 100)
    assert [int(item.rstrip(b"x")) for item in world.oneways] == list(range(100))


async def test_errors_of_handlers_reach_the_caller(world: World, caplog: pytest.LogCaptureFixture) -> None:
    conn = await world.client(await world.serve())
    with pytest.raises(NameTaken, match="taken by m2") as caught:
        await conn.call("fail", {}, timeout=5)
    assert caught.value.details == {"group": "m2"}
    with pytest.raises(NotFound, match="does not serve the method 'nothing'"):
        await conn.call("nothing", {}, timeout=5)
    with pytest.raises(Unavailable, match="does not serve 'registry', or not yet"):  # it may be starting
        await conn.call("registry.view", {}, timeout=5)
    with pytest.raises(LimitExceeded):
        await conn.call("huge", {}, timeout=5)
    for method in ("crash", "unpackable"):
        with pytest.raises(Fatal, match="internal error") as fatal:
            await conn.call(method, {}, timeout=5)
        assert "secret detail" not in str(fatal.value)
    assert "KeyError" in caplog.text
    assert (await conn.call("echo", {}, timeout=5))[0]["size"] == 0


async def test_an_unknown_op_and_a_broken_op_are_answered(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    conn = await world.client(await world.serve())
    answers: list[Reply | MoorageError] = []
    conn.request(77, b"", (), answers.append)
    conn.request(NACK, b"", (), answers.append)
    conn.request(CALL, b"\xc1", (), answers.append)
    await eventually(lambda: len(answers) == 3)
    assert list(map(type, answers)) == [NotFound, Fatal, ProtocolError]
    assert "secret detail" not in str(answers[1]) and "secret detail" in caplog.text
    conn.send(ONEWAY, 77, 0, b"")
    assert await conn.call("echo", {}, timeout=5)
    conn.send(ONEWAY, NACK, 0, b"")  # nobody could be told otherwise
    await eventually(lambda: conn.closed)
    assert isinstance(conn.close_reason, Fatal)


async def test_a_failing_callback_does_not_hurt_other_frames(world: World) -> None:
    conn = await world.client(await world.serve())
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))

    def bad(reply: Reply | MoorageError) -> None:
        raise ValueError("mine")

    conn.request(READ, struct.pack("<I", 1), (), bad)
    assert (await read(conn, 5))[1] == world.data[:5]
    assert list(map(type, seen)) == [ValueError]


# -- deadlines, cancellation, bounds -------------------------------------------------------------------


async def test_a_call_ends_at_its_deadline_at_both_ends(world: World) -> None:
    conn = await world.client(await world.serve())
    with pytest.raises(DeadlineExceeded):
        await conn.call("sleep", {}, timeout=0.05)
    await eventually(lambda: world.cancelled == ["sleep"] and world.router.running == 0)
    assert conn._pending == {}
    assert await conn.call("echo", {}, timeout=5)


async def test_the_server_keeps_the_deadline_for_a_caller_that_does_not_cancel(world: World) -> None:
    conn = await world.client(await world.serve())
    answers: list[Reply | MoorageError] = []
    conn.request(CALL, frame.pack(["sleep", {}]), (), answers.append, deadline_ms=30)
    await eventually(lambda: len(answers) == 1)
    assert isinstance(answers[0], DeadlineExceeded)


async def test_cancelling_the_caller_cancels_the_handler(world: World) -> None:
    conn = await world.client(await world.serve())
    task = asyncio.create_task(conn.call("sleep", {}, timeout=60))
    await eventually(lambda: world.router.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: world.cancelled == ["sleep"])


async def test_a_cancelled_read_leaves_its_destination_alone() -> None:
    """Also when half of its payload is there already; the frames behind it are not hurt."""
    size, cancelled = 1 << 20, asyncio.Event()

    async def serve_by_hand(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handshake = ServerHandshake(NODE, SECRET, b"s" * 32)
        for _ in range(2):
            head = await reader.readexactly(32)
            body = await reader.readexactly(struct.unpack_from("<I", head, 8)[0])
            answer = handshake.receive(body)
            writer.write(frame.encode(REPLY, HELLO, head[16], answer, 0, 0, 0))
        await reader.readexactly(32)  # the request
        writer.write(frame.encode(REPLY, READ, 1, b"", size, 0, 0) + b"1" * (size // 2))
        await cancelled.wait()
        writer.write(b"2" * (size // 2) + frame.encode(REPLY, READ, 2, b"next", 3, 0, 0) + b"abc")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(serve_by_hand, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    conn = await connect(f"{host}:{port}", hello=CLIENT, secret=SECRET)
    answers: list[Reply | MoorageError] = []
    buffer = bytearray(size)
    request_id = conn.request(READ, b"", (), answers.append, memoryview(buffer))
    await eventually(lambda: buffer.count(b"1") == size // 2)
    conn.cancel(request_id)
    cancelled.set()
    assert (await read(conn, 3))[:2] == (b"next", b"abc")
    assert buffer == b"1" * (size // 2) + bytes(size // 2)
    assert answers == []
    conn.close()
    await conn.wait_closed()
    listener.close()
    await listener.wait_closed()


async def test_calls_per_connection_are_bounded(world: World) -> None:
    server = await world.serve()
    conn, other = await world.client(server), await world.client(server)
    calls = [asyncio.create_task(conn.call("wait", {}, timeout=30)) for _ in range(4)]
    await eventually(lambda: world.router.running == 4)
    with pytest.raises(Overloaded):
        await conn.call("echo", {}, timeout=5)
    assert await other.call("echo", {}, timeout=5)
    world.release.set()
    assert [result for result, _ in await asyncio.gather(*calls)] == ["waited"] * 4
    assert await conn.call("echo", {}, timeout=5)


async def test_the_end_of_a_connection_ends_its_calls_and_requests(world: World) -> None:
    server = await world.serve()
    conn = await world.client(server)
    call = asyncio.create_task(conn.call("sleep", {}, timeout=60))
    await eventually(lambda: world.router.running == 1)
    next(iter(server.connections)).close()
    with pytest.raises(ConnectionLost):
        await call
    await eventually(lambda: world.cancelled == ["sleep"] and server.connections == set())
    assert conn.closed and len(world.lost) == 1
    answers: list[Reply | MoorageError] = []
    conn.request(READ, b"", (), answers.append)
    await eventually(lambda: len(answers) == 1)
    assert isinstance(answers[0], CannotConnect)
    conn.cancel(conn.request(READ, b"", (), answers.append))
    await asyncio.sleep(0.01)
    assert len(answers) == 1
    with pytest.raises(ConnectionLost):
        await conn.drain()


async def test_close_sends_what_is_queued(world: World) -> None:
    conn = await world.client(await world.serve())
    for _ in range(50):
        conn.send(ONEWAY, APPEND, 0, b"x", (bytes(100_000),))
    conn.close()
    await conn.wait_closed()
    await eventually(lambda: len(world.oneways) == 50)


async def test_a_closing_server_says_so(world: World) -> None:
    server = await world.serve()
    conn = await world.client(server)
    server.close()
    await server.wait_closed()
    await conn.wait_closed()
    assert isinstance(conn.close_reason, ShuttingDown)
    with pytest.raises(CannotConnect):
        await world.client(server)


# -- silence and slow readers --------------------------------------------------------------------------


async def test_a_silent_peer_is_found_out_and_a_living_one_kept(world: World) -> None:
    server = await world.serve()
    conn, frozen = await world.client(server), await world.client(server)
    await eventually(lambda: len(server.connections) == 2)
    for peer in server.connections:  # one of the two hears no more, as if its host were gone
        assert peer._transport is not None
    victim = next(peer for peer in server.connections if _is_peer(peer, frozen))
    assert victim._transport is not None
    victim._transport.pause_reading()
    conn.keepalive(0.05, 0.4)
    frozen.keepalive(0.05, 0.4)
    await eventually(lambda: frozen.closed)
    assert isinstance(frozen.close_reason, Unavailable)
    assert "is silent for" in str(frozen.close_reason)
    assert not conn.closed


async def test_calls_of_one_moment_wait_for_each_other_at_the_bound(world: World) -> None:
    """However many begin at once, and however slowly they are taken."""
    world.router = Router(calls_max=100)
    world.router.method("echo", world.echo)
    world.router.method("payload", world.payload)
    limits = Limits(write_queue_bytes=1 << 20, high_water_bytes=64 << 10)
    conn = await world.client(await world.serve(limits=limits), limits=limits)
    for method, params, payload in (("echo", {}, [bytes(100_000)]), ("payload", {"size": 100_000}, [])):
        calls = [conn.call(method, params, payload, timeout=DEADLINE_S) for _ in range(50)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert not conn.closed


def _is_peer(one: Connection, other: Connection) -> bool:
    assert one._transport is not None and other._transport is not None
    return bool(one._transport.get_extra_info("peername") == other._transport.get_extra_info("sockname"))


async def test_a_slow_reader_is_cut_off_at_the_bound(world: World) -> None:
    limits = Limits(write_queue_bytes=1 << 20, high_water_bytes=64 << 10)
    server = await world.serve(limits=limits)
    conn = await world.client(server)
    assert conn._transport is not None
    conn._transport.pause_reading()
    await eventually(lambda: len(server.connections) == 1)
    peer = next(iter(server.connections))
    largest = 0
    async with asyncio.timeout(DEADLINE_S):
        while not peer.closed:
            peer.send(ONEWAY, ACK, 0, b"", (bytes(100_000),))
            largest = max(largest, peer.write_queue_size)
            await asyncio.sleep(0)
    assert isinstance(peer.close_reason, Overloaded)
    assert "does not read" in str(peer.close_reason)
    assert largest < (1 << 20) + (64 << 10) + 3 * 100_000
    other = await world.client(server)
    assert await other.call("echo", {}, timeout=5)


async def test_who_does_not_take_replies_cannot_ask_for_more(world: World) -> None:
    """The server stops reading: its queue stays small without cutting anybody off."""
    server = await world.serve(limits=Limits(high_water_bytes=256 << 10))
    conn = await world.client(server)
    assert conn._transport is not None
    conn._transport.pause_reading()
    answers: list[int] = []

    def on_reply(reply: Reply | MoorageError) -> None:
        assert isinstance(reply, Reply)
        answers.append(len(reply.payload))

    for _ in range(40):
        conn.request(READ, struct.pack("<I", 1 << 20), (), on_reply)
        await asyncio.sleep(0.001)
    peer = next(iter(server.connections))
    await eventually(lambda: peer._paused)
    assert peer.write_queue_size < 16 << 20
    conn._transport.resume_reading()
    await eventually(lambda: len(answers) == 40)
    assert not peer.closed


async def test_drain_waits_for_a_slow_reader(world: World) -> None:
    server = await world.serve()
    conn = await world.client(server)
    await eventually(lambda: len(server.connections) == 1)
    peer = next(iter(server.connections))
    assert peer._transport is not None
    peer._transport.pause_reading()
    while not conn._paused:
        conn.send(ONEWAY, APPEND, 0, b"", (bytes(1 << 20),))
        await asyncio.sleep(0)
    drained = asyncio.create_task(conn.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    with pytest.raises(DeadlineExceeded):
        await conn.call("echo", {}, timeout=0.05)
    peer._transport.resume_reading()
    async with asyncio.timeout(DEADLINE_S):
        await drained
    assert await conn.call("echo", {}, timeout=5)


# -- strangers -----------------------------------------------------------------------------------------


class Raw:
    """A peer that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: str) -> Raw:
        where = addresses.parse(address)
        assert isinstance(where, addresses.Tcp)
        return cls(*await asyncio.open_connection(where.host, where.port))

    async def ends(self) -> bytes:
        """All that comes until the other end closes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.reader.read()
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def frame(self) -> tuple[int, bytes]:
        head = await self.reader.readexactly(32)
        kind, size = head[3], struct.unpack_from("<I", head, 8)[0]
        return kind, await self.reader.readexactly(size)

    async def handshake(self, secret: ClusterSecret = SECRET) -> ClientHandshake:
        client = ClientHandshake(Hello("client", secret.cluster, "raw", "i"), secret, b"n" * 32)
        self.writer.write(frame.encode(REQUEST, HELLO, 1, client.start(), 0, 0, 0))
        _, challenge = await self.frame()
        proof = client.receive(challenge)
        assert proof is not None
        self.writer.write(frame.encode(REQUEST, HELLO, 2, proof, 0, 0, 0))
        _, ready = await self.frame()
        client.receive(ready)
        return client


HOSTILE_LENGTH = struct.pack("<HBBHHIIQII", frame.MAGIC, 1, 1, 2, 0, 0xFFFFFFFF, 0xFFFFFFFF, 1, 0, 0)
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(64),
    "hostile length": HOSTILE_LENGTH,
    "large hello": frame.encode(REQUEST, HELLO, 1, bytes(4097), 0, 0, 0),
    "payload before the proof": frame.encode(REQUEST, HELLO, 1, b"x", 1, 0, 0) + b"x",
    "wrong check": frame.encode(REQUEST, HELLO, 1, b"hello", 0, 0, 0)[:-1] + b"x",
    "not msgpack": frame.encode(REQUEST, HELLO, 1, b"\xc1", 0, 0, 0),
    "a call before the proof": frame.encode(REQUEST, CALL, 1, frame.pack(["echo", {}]), 0, 0, 0),
    "a reply out of nothing": frame.encode(REPLY, HELLO, 1, b"", 0, 0, 0),
    "an old version": frame.encode(REQUEST, HELLO, 1, frame.pack([0, 0]), 0, 0, 0),
    "another frame version": struct.pack("<HBB28x", frame.MAGIC, 7, 1),
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "bytewise"])
@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_ends_the_stranger_and_not_the_server(
    world: World, what: str, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = await world.serve()
    raw = await Raw.connect(server.address)
    if whole:
        raw.writer.write(GARBAGE[what])
    else:
        for at in range(len(GARBAGE[what])):
            if raw.reader.at_eof() or raw.writer.is_closing():
                break  # it has had enough
            raw.writer.write(GARBAGE[what][at : at + 1])
            await asyncio.sleep(0)
    answer = await raw.ends()
    if answer:  # the last words say why
        error = frame.unpack_error(answer[32:])
        assert isinstance(error, VersionMismatch if "version" in what else ProtocolError)
    await raw.close()
    await eventually(lambda: server.strangers == 0)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and warnings[0].exc_info is None
    assert "ended:" in warnings[0].getMessage()
    assert world.lost == []  # nobody had come in
    assert await (await world.client(server)).call("echo", {}, timeout=5)


@pytest.mark.parametrize(
    "after", [HOSTILE_LENGTH, b"garbage" * 10, frame.encode(REQUEST, HELLO, 9, b"", 0, 0, 0)]
)
async def test_garbage_of_an_authenticated_peer(world: World, after: bytes) -> None:
    server = await world.serve()
    raw = await Raw.connect(server.address)
    assert (await raw.handshake()).peer == NODE
    raw.writer.write(after)
    await raw.ends()
    await raw.close()
    await eventually(lambda: len(world.lost) == 1 and not server.connections)
    assert isinstance(world.lost[0], ProtocolError)


async def test_half_a_frame_and_then_the_end(world: World) -> None:
    server = await world.serve()
    for size in (10, 40, 100_000):
        raw = await Raw.connect(server.address)
        await raw.handshake()
        raw.writer.write((frame.encode(ONEWAY, APPEND, 0, b"body", 2 << 20, 0, 0) + bytes(1 << 20))[:size])
        await raw.close()
    await eventually(lambda: len(world.lost) == 3)
    assert all("in the middle of a frame" in str(error) for error in world.lost)
    assert world.oneways == []


async def test_many_log_lines_become_few(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = await world.serve()
    for _ in range(30):
        raw = await Raw.connect(server.address)
        raw.writer.write(b"garbage" * 10)
        await raw.ends()
        await raw.close()
    await eventually(lambda: server.strangers == 0)
    assert 1 <= len(caplog.records) <= 6


async def test_a_wrong_secret_is_said_to_both(world: World, caplog: pytest.LogCaptureFixture) -> None:
    server = await world.serve()
    wrong = ClusterSecret(SECRET.cluster, b"x" * 32)
    with pytest.raises(AuthenticationFailed, match="does not hold the secret of cluster"):
        await connect(server.address, hello=CLIENT, secret=wrong)
    other = ClusterSecret("cd" * 8, b"k" * 32)
    hello = Hello("client", other.cluster, "job1", "i")
    with pytest.raises(AuthenticationFailed, match="check the address and the secret file"):
        await connect(server.address, hello=hello, secret=other)
    await eventually(lambda: server.strangers == 0)
    assert sum("ended:" in record.getMessage() for record in caplog.records) == 2


async def test_a_replayed_handshake_is_refused(world: World) -> None:
    server = await world.serve()
    sent = b""
    raw = await Raw.connect(server.address)
    client = ClientHandshake(CLIENT, SECRET, b"n" * 32)
    sent += frame.encode(REQUEST, HELLO, 1, client.start(), 0, 0, 0)
    raw.writer.write(sent)
    proof = client.receive((await raw.frame())[1])
    assert proof is not None
    second = frame.encode(REQUEST, HELLO, 2, proof, 0, 0, 0)
    raw.writer.write(second)
    await raw.frame()
    replay = await Raw.connect(server.address)
    replay.writer.write(sent)
    await replay.frame()
    replay.writer.write(second)
    kind, body = await replay.frame()
    assert kind == frame.ERROR and isinstance(frame.unpack_error(body), AuthenticationFailed)
    await raw.close()
    await replay.close()


async def test_a_silent_stranger_is_dropped(world: World) -> None:
    server = await world.serve(limits=Limits(handshake_s=0.05))
    raw = await Raw.connect(server.address)
    raw.writer.write(
        frame.encode(REQUEST, HELLO, 1, ClientHandshake(CLIENT, SECRET, b"n" * 32).start(), 0, 0, 0)[:20]
    )
    assert isinstance(frame.unpack_error((await raw.ends())[32:]), DeadlineExceeded)
    await raw.close()
    await eventually(lambda: server.strangers == 0)


async def test_idle_strangers_are_few_and_keep_nobody_out(world: World) -> None:
    server = await world.serve(limits=Limits(unauthenticated=5))
    crowd = [await Raw.connect(server.address) for _ in range(40)]
    await eventually(lambda: server.strangers == 5)
    assert await (await world.client(server)).call("echo", {}, timeout=5)
    assert server.strangers <= 5
    for raw in crowd:
        await raw.close()


async def test_connections_are_bounded(world: World) -> None:
    server = await world.serve(limits=Limits(connections=2))
    first = await world.client(server)
    await world.client(server)
    with pytest.raises(Overloaded, match="has 2 connections, its limit"):
        await world.client(server)
    assert await first.call("echo", {}, timeout=5)
    first.close()
    await eventually(lambda: len(server.connections) == 1)
    assert await (await world.client(server)).call("echo", {}, timeout=5)


# -- connecting and listening --------------------------------------------------------------------------


async def test_nobody_there_is_said(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(CannotConnect, match=f"cannot connect to {address}: "):
            await connect(address, hello=CLIENT, secret=SECRET)
    with pytest.raises(CannotConnect):
        await connect(f"unix:{world.tmp_path}/none", hello=CLIENT, secret=SECRET)
    for name in ("x" * 70 + ".example", "a..b", "nul\0"):
        with pytest.raises(CannotConnect):
            await connect(f"{name}:7400", hello=CLIENT, secret=SECRET)
        with pytest.raises(Invalid, match="cannot listen on"):
            await serve(f"{name}:7400", hello=CLIENT, secret=SECRET, endpoint=world.router)


async def test_a_server_that_says_nothing_or_garbage(world: World) -> None:
    answers = [b"", b"SSH-2.0-OpenSSH_9.2 and some more to fill a header\r\n"]

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0))
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(speak, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    with pytest.raises(CannotConnect, match=r"no answer in 0\.1 s"):
        await connect(f"{host}:{port}", hello=CLIENT, secret=SECRET, timeout=0.1)
    with pytest.raises(ProtocolError, match="not a Moorage frame"):
        await connect(f"{host}:{port}", hello=CLIENT, secret=SECRET)
    listener.close()
    await listener.wait_closed()


async def test_an_address_in_use_is_said(world: World) -> None:
    server = await world.serve()
    with pytest.raises(Invalid, match="cannot listen on"):
        await world.serve(server.address)
    local = await world.serve(f"unix:{world.tmp_path}/s")
    with pytest.raises(Invalid, match="another process does"):
        await world.serve(local.address)
    assert await (await world.client(local)).call("echo", {}, timeout=5)


async def test_a_socket_file_left_by_a_crash_is_replaced_and_removed_at_the_end(world: World) -> None:
    path = world.tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = await world.serve(f"unix:{path}")
    assert await (await world.client(server)).call("echo", {}, timeout=5)
    server.close()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(Invalid, match="not a socket"):
        await world.serve(f"unix:{path}")
    assert path.read_text() == "a file"


async def test_a_client_without_an_endpoint_refuses_requests(world: World) -> None:
    server = await world.serve()
    await world.client(server)
    await eventually(lambda: len(server.connections) == 1)
    peer = next(iter(server.connections))
    with pytest.raises(Unavailable, match="takes no requests"):
        await peer.call("echo", {}, timeout=5)


async def test_a_client_with_a_router_is_called_by_the_server(world: World) -> None:
    server = await world.serve()
    router = Router()

    async def hello(context: CallContext, params: dict[str, Any]) -> Any:
        return "from the client"

    router.method("hello", hello)
    await world.client(server, endpoint=router)
    await eventually(lambda: len(server.connections) == 1)
    assert (await next(iter(server.connections)).call("hello", {}, timeout=5))[0] == "from the client"
