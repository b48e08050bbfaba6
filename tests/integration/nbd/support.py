"""Helpers of the NBD tests: a server on a fresh unix socket, programs as clients, and a client of raw
bytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

from moorage.client.device import Done
from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import NbdServer
from moorage.gateway.nbd import protocol as p

MIB = 1 << 20
CLIENT_DEADLINE_S = 60.0


class HeldDevice(MemoryDevice):
    """Answers nothing until ``release``: requests stay in flight as long as a test wants."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.held: list[tuple[Done, BaseException | None]] = []

    def complete(self, done: Done, error: BaseException | None) -> None:
        self.held.append((done, error))

    def release(self) -> None:
        held, self.held = self.held, []
        for done, error in held:
            done(error)


class FailingDevice(MemoryDevice):
    """Fails every operation with ``error``."""

    def __init__(self, size: int, error: BaseException) -> None:
        super().__init__(size)
        self.error = error

    def complete(self, done: Done, error: BaseException | None) -> None:
        done(self.error)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        raise self.error


class RawClient:
    """Speaks NBD byte by byte, so that it can also speak it wrongly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def handshake(self, name: str = "vol", *, structured: bool = False) -> None:
        greeting = await self.reader.readexactly(18)
        assert greeting[:16] == b"NBDMAGICIHAVEOPT"
        self.writer.write(struct.pack(">I", 3))
        if structured:
            await self.option(p.OPT_STRUCTURED_REPLY, b"")
        raw = name.encode()
        replies = await self.option(p.OPT_GO, struct.pack(">I", len(raw)) + raw + b"\0\0")
        assert replies[-1][0] == p.REP_ACK

    async def option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        self.writer.write(p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            _, answered, kind, size = p.OPTION_REPLY.unpack(await self.reader.readexactly(20))
            assert answered == option
            replies.append((kind, await self.reader.readexactly(size)))
            if kind == p.REP_ACK or kind >> 31:
                return replies

    def send(
        self, command: int, offset: int, length: int, *, cookie: int = 1, flags: int = 0, data: bytes = b""
    ) -> None:
        self.writer.write(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length) + data)

    async def simple_reply(self, length: int = 0) -> tuple[int, int, bytes]:
        """(error, cookie, data)."""
        magic, error, cookie = p.SIMPLE_REPLY.unpack(await self.reader.readexactly(16))
        assert magic == p.SIMPLE_REPLY_MAGIC
        return error, cookie, await self.reader.readexactly(0 if error else length)

    async def chunk(self) -> tuple[int, int, int, bytes]:
        """(flags, type, cookie, payload)."""
        magic, flags, kind, cookie, size = p.CHUNK.unpack(await self.reader.readexactly(20))
        assert magic == p.STRUCTURED_REPLY_MAGIC
        return flags, kind, cookie, await self.reader.readexactly(size)

    async def ended(self) -> bool:
        """The server closed the connection (whatever it said before)."""
        with suppress(ConnectionError):
            await asyncio.wait_for(self.reader.read(-1), CLIENT_DEADLINE_S)
        return self.reader.at_eof() or self.reader.exception() is not None

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Bench:
    """What a test works with: the server, the way to it, and programs to run against it."""

    def __init__(self, server: NbdServer, path: str) -> None:
        self.server = server
        self.path = path

    def uri(self, name: str = "vol") -> str:
        return f"nbd+unix:///{name}?socket={self.path}"

    async def connect(self) -> RawClient:
        return RawClient(*await asyncio.open_unix_connection(self.path, limit=64 * MIB))

    async def client(self, *, structured: bool = False) -> RawClient:
        client = await self.connect()
        await client.handshake(structured=structured)
        return client

    async def program(self, *argv: str, expect: int = 0) -> str:
        """Run a program to its end; its whole output. Fails the test when it does not exit with
        ``expect``.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), CLIENT_DEADLINE_S)
        except TimeoutError:
            process.kill()
            raise
        text = output.decode(errors="replace")
        assert process.returncode == expect, f"{argv[0]} exited with {process.returncode}: {text}"
        return text

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll for something that another process or the event loop brings about."""
        deadline = asyncio.get_running_loop().time() + 20.0
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, f"never: {what}"
            await asyncio.sleep(0.002)
