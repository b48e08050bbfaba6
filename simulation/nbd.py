"""A program that uses a volume through NBD: the real server of ``gateway.nbd``, and a small client.

Owns the client's end: one or more connections to one export, requests with cookies, answers in any order. It
looks to a workload as a volume does. Must never say that a write had no effect unless the server did.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from moorage.client.volume import Volume
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.server import NbdServer, _Handshake
from moorage.wire.errors import ConnectionLost, MoorageError, RemoteError


class NbdClient(asyncio.Protocol):
    """One connection, old style handshake and simple replies."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._input = bytearray()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._agreed = self._asked = False
        self._cookies = 0
        self._waiting: dict[int, tuple[int, asyncio.Future[bytes]]] = {}  # cookie -> (bytes to come, answer)
        self._transport: Any = None
        self._lost: MoorageError | None = None

    async def ready(self) -> None:
        await self._ready

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._input += data
        if not self._agreed:
            self._shake_hands()
        if self._agreed:
            self._take_replies()

    def _shake_hands(self) -> None:
        if not self._asked and len(self._input) >= p.GREETING.size:
            del self._input[: p.GREETING.size]
            flags = p.CLIENT_FLAGS.pack(p.CLIENT_FIXED_NEWSTYLE | p.CLIENT_NO_ZEROES)
            name = self._name.encode()
            self._transport.write(flags + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, len(name)) + name)
            self._asked = True
        if self._asked and len(self._input) >= p.EXPORT_NAME_REPLY.size:
            del self._input[: p.EXPORT_NAME_REPLY.size]
            self._agreed = True
            self._ready.set_result(None)

    def _take_replies(self) -> None:
        while len(self._input) >= p.SIMPLE_REPLY.size:
            magic, number, cookie = p.SIMPLE_REPLY.unpack_from(self._input)
            assert magic == p.SIMPLE_REPLY_MAGIC and cookie in self._waiting, "an answer to nothing"
            size, answer = self._waiting[cookie]
            end = p.SIMPLE_REPLY.size + (0 if number else size)
            if len(self._input) < end:
                return
            data = bytes(self._input[p.SIMPLE_REPLY.size : end])
            del self._input[:end]
            del self._waiting[cookie]
            if answer.done():
                continue
            if number:
                answer.set_exception(_error(number))
            else:
                answer.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = ConnectionLost("the NBD connection is lost")
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._lost)
        if not self._ready.done():
            self._ready.set_exception(self._lost)

    async def ask(
        self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0, answers: int = 0
    ) -> bytes:
        if self._lost is not None:
            raise self._lost
        self._cookies += 1
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._cookies] = answers, answer
        request = p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self._cookies, offset, length)
        self._transport.write(request + data)
        return await answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _error(number: int) -> MoorageError:
    """NBD does not tell what was done of a request that failed: the outcome is unknown, also of ENOSPC."""
    return RemoteError(f"error {number}")


class NbdVolume:
    """An attached volume, by way of its export. ``async with``: server and connections end with it."""

    def __init__(self, volume: Volume, rng: Random) -> None:
        self._volume = volume
        self._rng = rng
        self._server = NbdServer({volume.name: volume})
        self._listener: Any = None
        self._clients: list[NbdClient] = []
        self.name = volume.name
        self.epoch = volume.epoch

    @property
    def failed(self) -> MoorageError | None:
        return self._volume.failed

    async def __aenter__(self) -> NbdVolume:
        loop = asyncio.get_running_loop()
        # The listener's own sockets are the kernel's: what matters here begins behind accept().
        self._listener = await loop.create_server(lambda: _Handshake(self._server), "", 0)
        host, port = self._listener.sockets[0].getsockname()
        for _ in range(self._rng.choice((1, 1, 3))):
            _, client = await loop.create_connection(lambda: NbdClient(self.name), host, port)
            await client.ready()
            self._clients.append(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._listener.close()
        await self._server.stop(1.0)

    def _client(self) -> NbdClient:
        return self._rng.choice(self._clients)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._client().ask(p.CMD_READ, offset, length, answers=length)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        flags = p.CMD_FLAG_FUA if fua else 0
        await self._client().ask(p.CMD_WRITE, offset, len(data), data, flags)

    async def flush(self) -> None:
        await self._client().ask(p.CMD_FLUSH, 0, 0)

    async def discard(self, offset: int, length: int) -> None:
        await self._client().ask(p.CMD_TRIM, offset, length)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self._client().ask(p.CMD_WRITE_ZEROES, offset, length, flags=p.CMD_FLAG_NO_HOLE)
