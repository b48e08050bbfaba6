"""Node services over real sockets, with a registry that only knows tokens, and a writer written by hand."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.node.config import NodeConfig
from moorage.node.service import NodeService
from moorage.quorum.orders import SealAnswer
from moorage.quorum.record import Kind, Record, block_sums, encode_head
from moorage.wire.capability import Capability, sign
from moorage.wire.connection import Connection, Reply
from moorage.wire.errors import IdentityConflict, MoorageError
from moorage.wire.frame import ACK, APPEND, HEARTBEAT, NACK, ONEWAY, READ
from moorage.wire.handshake import Hello
from moorage.wire.log_messages import (
    pack_append,
    pack_heartbeat,
    pack_read,
    unpack_ack,
    unpack_nack,
    unpack_read_reply,
)
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, connect, serve

SECRET = ClusterSecret("0123456789abcdef", b"k" * 32)
CAPACITY = 64 << 20


class TinyRegistry:
    """Tokens and heartbeats, as the real one judges them."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.beats: list[dict[str, Any]] = []
        self.refusing = False
        self.server: Server | None = None

    async def start(self) -> None:
        router = Router()
        router.method("registry.join_host", self._join)
        router.method("registry.start_device", self._start)
        router.method("registry.heartbeat", self._beat)
        hello = Hello("registry", SECRET.cluster, "r", secrets.token_hex(8))
        self.server = await serve("127.0.0.1:0", hello=hello, secret=SECRET, endpoint=router)

    @property
    def address(self) -> str:
        assert self.server is not None
        return self.server.address

    async def _join(self, context: CallContext, params: dict[str, Any]) -> Any:
        return {}

    async def _start(self, context: CallContext, params: dict[str, Any]) -> Any:
        known = self.tokens.get(params["device"], "")
        if known not in (params["old_token"], params["new_token"]):
            raise IdentityConflict("started from another copy")
        self.tokens[params["device"]] = params["new_token"]
        return {}

    async def _beat(self, context: CallContext, params: dict[str, Any]) -> Any:
        if self.refusing or self.tokens[params["device"]] != params["token"]:
            raise IdentityConflict("refused")
        self.beats.append(params)
        return {"interval_ms": 50}


class Node:
    """One node service behind its own listener."""

    def __init__(self, directory: Path, name: str, registry: TinyRegistry) -> None:
        self.directory = directory
        self.name = name
        self.registry = registry
        self.server: Server | None = None
        self.failures: list[MoorageError] = []

    async def start(self) -> None:
        self.service = NodeService(
            NodeConfig(
                self.directory,
                self.name,
                SECRET,
                self.registry.address,
                lambda: self.address,
                capacity=CAPACITY,
                heartbeat_ms=50,
            )
        )
        self.service.fatal = self.failures.append
        self.router = Router()
        started = False

        def hello() -> Hello:
            extra = self.service.hello_extra() if started else {}
            return Hello("node", SECRET.cluster, self.name, secrets.token_hex(8), extra)

        self.server = await serve("127.0.0.1:0", hello=hello, secret=SECRET, endpoint=self.router)
        self.service_runs = True
        await self.service.start(self.router)
        started = True

    @property
    def address(self) -> str:
        assert self.server is not None
        return self.server.address

    @property
    def store(self) -> Any:
        return self.service._store

    async def stop_service(self) -> None:
        """The process, and with it the listener and its connections, is still there."""
        await self.service.stop()
        self.service_runs = False

    async def stop(self) -> None:
        if self.service_runs:
            await self.stop_service()
        await self.router.stop()
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None


class HandWriter:
    """Speaks to one member of one replica, as a client does, without any cleverness."""

    def __init__(self, node: Node, replica: int, epoch: int, writer: int = 1) -> None:
        self.node = node
        self.replica = replica
        self.epoch = epoch
        self.writer = writer
        self.session = 0
        self.prev = (0, 0)
        self.commit = 0
        self.acks: list[tuple[int, ...]] = []
        self.nacks: list[tuple[int, ...]] = []
        self.conn: Connection

    def frame_received(self, conn: Connection, kind: int, op: int, *rest: Any) -> None:
        body = rest[3]
        if op == ACK:
            self.acks.append(unpack_ack(body))
        elif op == NACK:
            self.nacks.append(unpack_nack(body))

    def connection_lost(self, conn: Connection, error: MoorageError) -> None:
        pass

    async def connect(self) -> None:
        hello = Hello("client", SECRET.cluster, "c", secrets.token_hex(8))
        self.conn = await connect(self.node.address, hello=hello, secret=SECRET, endpoint=self)

    async def call(self, method: str, params: dict[str, Any]) -> tuple[Any, memoryview]:
        common = {
            "replica": self.replica,
            "epoch": self.epoch,
            "writer": self.writer,
            "session": self.session,
        }
        return await self.conn.call(f"node.{method}", common | params, timeout=10)

    def capability(self, **changes: Any) -> bytes:
        soon_ms = time.time_ns() // 1_000_000 + 10_000
        fields = {
            "volume": 1,
            "epoch": self.epoch,
            "writer": self.writer,
            "replicas": [self.replica],
            "rights": "rw",
            "expires_ms": soon_ms,
        }
        return sign(SECRET, Capability(**(fields | changes)))

    async def seal(self, **changes: Any) -> SealAnswer:
        self.session += 1
        answer, _ = await self.call("seal", {"capability": self.capability(**changes)})
        found = SealAnswer.unpack(answer)
        self.prev, self.commit = tuple(found.last), found.commit
        return found

    def append(self, records: list[Record], commit: int | None = None) -> None:
        heads = b"".join(
            encode_head(r.epoch, r.lsn, r.kind, r.chunk, r.block, r.count, r.sums) for r in records
        )
        self.commit = self.commit if commit is None else commit
        body = pack_append(
            self.replica, self.writer, self.epoch, *self.prev, self.commit, self.session, len(records)
        )
        self.conn.send(ONEWAY, APPEND, 0, body + heads, [r.data for r in records if r.data])
        if records:
            self.prev = (records[-1].epoch, records[-1].lsn)

    def write(self, chunk: int, block: int, data: bytes, commit: int | None = None) -> int:
        lsn = self.prev[1] + 1
        count = len(data) // 4096
        self.append(
            [Record(self.epoch, lsn, Kind.WRITE, chunk, block, count, block_sums(data), data)], commit
        )
        return lsn

    def barrier(self) -> int:
        lsn = self.prev[1] + 1
        self.append([Record(self.epoch, lsn, Kind.BARRIER)])
        return lsn

    def notice(self, commit: int) -> None:
        self.append([], commit)

    async def durable(self, lsn: int) -> tuple[int, ...]:
        """The acknowledgement that says so."""
        await until(lambda: bool(self.acks) and self.acks[-1][3] >= lsn)
        return self.acks[-1]

    async def read(self, chunk: int, block: int, count: int = 1, lsn: int | None = None) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Reply | MoorageError) -> None:
            if isinstance(reply, MoorageError):
                future.set_exception(reply)
            else:
                _, found, _ = unpack_read_reply(reply.body)
                assert found == count
                future.set_result(bytes(reply.payload) or bytes(4096 * count))

        wanted = self.commit if lsn is None else lsn
        body = pack_read(self.replica, self.epoch, wanted, chunk, block, count)
        self.conn.request(READ, body, (), on_reply)
        async with asyncio.timeout(10):
            return await future

    async def heartbeat(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Reply | MoorageError) -> None:
            if isinstance(reply, MoorageError):
                future.set_exception(reply)
            else:
                future.set_result(None)

        self.conn.request(HEARTBEAT, pack_heartbeat(1), (), on_reply)
        async with asyncio.timeout(10):
            await future

    async def close(self) -> None:
        self.conn.close()
        await self.conn.wait_closed()


async def until(condition: Callable[[], bool], timeout: float = 20) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


class Site:
    """What a test needs: nodes, replicas on them, writers."""

    def __init__(self, directory: Path, registry: TinyRegistry) -> None:
        self.directory = directory
        self.registry = registry
        self.nodes: list[Node] = []
        self.writers: list[HandWriter] = []
        self.until: Callable[..., Awaitable[None]] = until

    async def node(self, name: str = "h1") -> Node:
        node = Node(self.directory / name, name, self.registry)
        self.nodes.append(node)
        await node.start()
        return node

    async def order(self, node: Node, method: str, params: dict[str, Any], service: str = "metadata") -> Any:
        params = {"metadata": "m1", "term": 1, **params}
        hello = Hello(service, SECRET.cluster, "m", secrets.token_hex(8))
        conn = await connect(node.address, hello=hello, secret=SECRET)
        try:
            return (await conn.call(f"node.{method}", params, timeout=10))[0]
        finally:
            conn.close()
            await conn.wait_closed()

    async def create(self, node: Node, replica: int = 7, durability: str = "sync") -> None:
        params = {"replica": replica, "volume": 1, "group": 0, "durability": durability, "members": 3}
        await self.order(node, "create_replica", params)

    async def writer(self, node: Node, epoch: int, replica: int = 7, writer: int = 1) -> HandWriter:
        made = HandWriter(node, replica, epoch, writer)
        self.writers.append(made)
        await made.connect()
        return made


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    registry = TinyRegistry()
    await registry.start()
    site = Site(tmp_path, registry)
    yield site
    for writer in site.writers:
        await writer.close()
    for node in site.nodes:
        await node.stop()
    assert registry.server is not None
    registry.server.close()
    await registry.server.wait_closed()
