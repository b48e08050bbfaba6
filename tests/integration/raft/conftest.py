"""A group of real members in one process: real sockets, real LMDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.service.kv import KV
from moorage.service.replicated import Replicated
from moorage.wire import errors
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve


class Ledger:
    """A state machine for tests: puts, adds, refuses."""

    def apply(self, kv: KV, command: dict[str, Any], index: int) -> Any:
        match command["do"]:
            case "put":
                kv.put(command["key"], command["value"])
                return index
            case "add":
                total = (kv.get(command["key"]) or 0) + command["n"]
                kv.put(command["key"], total)
                return total
            case "append":
                kv.put(command["key"], (kv.get(command["key"]) or "") + command["value"])
                return None
            case "refuse":
                kv.put("refused", True)
                raise errors.NameTaken("taken")
            case _:
                raise RuntimeError("a bug in the state machine")


class Node:
    """One member with its server."""

    def __init__(self, name: str, directory: Path, peers: dict[str, str], secret: ClusterSecret) -> None:
        self.name = name
        self.directory = directory
        self.address = peers.get(name) or f"unix:{directory.parent}/{name}.sock"
        hello = Hello("registry", secret.cluster, name, "i")
        self.member = Replicated(
            directory=directory,
            group="g",
            name=name,
            peers=peers,
            machine=Ledger(),
            hello=hello,
            secret=secret,
        )
        self.router = Router()
        self.member.register(self.router)
        self._hello = hello
        self._secret = secret
        self.server: Server | None = None

    async def start(self) -> None:
        self.server = await serve(self.address, hello=self._hello, secret=self._secret, endpoint=self.router)
        try:
            await self.member.start()
        except BaseException:
            await self.stop_server()
            raise

    async def stop_server(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    async def stop(self) -> None:
        await self.member.stop()
        await self.router.stop()
        await self.stop_server()


class Group:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = ClusterSecret("00" * 8, b"k" * 32)
        self.nodes: dict[str, Node] = {}
        self.peers: dict[str, str] = {}

    def address(self, name: str) -> str:
        return f"unix:{self.directory}/{name}.sock"

    async def start(self, *names: str) -> None:
        """Begin with these members, or start those again that were stopped."""
        if not self.peers:
            self.peers = {name: self.address(name) for name in names}
        for name in names:
            await self.add(name, self.peers)

    async def add(self, name: str, peers: dict[str, str]) -> Node:
        node = Node(name, self.directory / name, peers, self.secret)
        node.address = self.address(name)
        await node.start()
        self.nodes[name] = node
        return node

    async def stop(self, *names: str) -> None:
        for name in names:
            await self.nodes.pop(name).stop()

    async def leader(self) -> Replicated:
        await until(lambda: sum(node.member.is_leader for node in self.nodes.values()) == 1)
        return next(node.member for node in self.nodes.values() if node.member.is_leader)

    async def propose(self, command: dict[str, Any], timeout: float = 10.0) -> Any:
        """Propose wherever the leader is, again after a change of leader."""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await (await self.leader()).propose(command)
                except errors.NotLeader:
                    await asyncio.sleep(0.01)


async def until(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    return until


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Group]:
    group = Group(tmp_path)
    yield group
    await asyncio.gather(*(node.stop() for node in group.nodes.values()))
