"""SIGKILL of one member, and of all, under load: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from moorage.wire import errors
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

NAMES = ("a", "b", "c")
SECRET = ClusterSecret("00" * 8, b"k" * 32)
PROGRAM = Path(__file__).with_name("member_process.py")


class Processes:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.addresses = {name: f"unix:{directory}/{name}.sock" for name in NAMES}
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.acknowledged: dict[str, int] = {}
        self.unknown: set[str] = set()
        self.writers: list[asyncio.Task[None]] = []
        self._count = 0

    async def start(self, *names: str) -> None:
        peers = [f"{name}={address}" for name, address in self.addresses.items()]
        for name in names:
            self.running[name] = await asyncio.create_subprocess_exec(
                sys.executable, str(PROGRAM), name, str(self.directory / name), *peers
            )

    async def kill(self, *names: str) -> None:
        for name in names:
            self.running[name].kill()
        for name in names:
            await self.running.pop(name).wait()

    async def call(self, name: str, method: str, params: dict[str, Any]) -> Any:
        hello = Hello("client", SECRET.cluster, "test", "i")
        conn = await connect(self.addresses[name], hello=hello, secret=SECRET, timeout=2.0)
        try:
            return (await conn.call(method, params, timeout=4.0))[0]
        finally:
            conn.close()
            await conn.wait_closed()

    async def write(self, rng: Random) -> None:
        self._count += 1
        key, value = f"k{self._count:06}", rng.randrange(1 << 30)
        for name in rng.sample(NAMES, 3):
            try:
                await self.call(name, "put", {"key": key, "value": value})
            except errors.MoorageError as error:
                if error.outcome == "unknown":
                    self.unknown.add(key)
            else:
                self.acknowledged[key] = value
                return

    async def load(self, rng: Random) -> None:
        while True:
            await self.write(rng)
            await asyncio.sleep(0)

    async def read_all(self) -> dict[str, int]:
        async with asyncio.timeout(30):
            while True:
                for name in NAMES:
                    with contextlib.suppress(errors.MoorageError):
                        found: dict[str, int] = await self.call(name, "everything", {})
                        return found
                await asyncio.sleep(0.05)

    async def until_acknowledged(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        try:
            async with asyncio.timeout(60):  # a disk may hold a sync back for long
                while len(self.acknowledged) < wanted:
                    for writer in self.writers:
                        if writer.done():
                            writer.result()  # what it ended by
                    await asyncio.sleep(0.01)
        except TimeoutError:
            lines = [f"{name}: {await self.status(name)}" for name in self.running]
            raise AssertionError("nothing is acknowledged any more\n" + "\n".join(lines)) from None

    async def status(self, name: str) -> Any:
        try:
            return await self.call(name, "status", {})
        except errors.MoorageError as error:
            return error


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_kill_under_load(tmp_path: Path, rounds: int) -> None:
    rng = Random(rounds)
    group = Processes(tmp_path)
    await group.start(*NAMES)
    writers = group.writers = [asyncio.create_task(group.load(Random(n))) for n in range(4)]
    try:
        await group.until_acknowledged(50)
        for _ in range(rounds):
            victim = rng.choice(NAMES)
            await group.kill(victim)
            await group.until_acknowledged(30)
            await group.start(victim)
            await group.until_acknowledged(30)
            await group.kill(*NAMES)
            await group.start(*NAMES)
            await group.until_acknowledged(30)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        found = await group.read_all()
        assert {key: found.get(key) for key in group.acknowledged} == group.acknowledged
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await group.kill(*group.running)
