"""Services as processes of their own, started from environment variables alone (docs/launch.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moorage.service.http import create_token, load_token
from moorage.wire.secret import ClusterSecret


class Service:
    """One process and what it said."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.ready: dict[str, Any] = {}

    async def wait_ready(self) -> Service:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        assert line, f"exit code {await self.process.wait()}: {self.log.read_text()}"
        self.ready = json.loads(line)
        return self

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    async def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            await self.process.stdout.read()
            return await self.process.wait()


class Launcher:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ClusterSecret.create(directory / "secret")
        create_token(directory / "token")
        self.token = load_token(directory / "token")
        self.secret = ClusterSecret.load(directory / "secret")
        self._all: list[Service] = []

    async def launch(self, service: str, *, prefix: Sequence[str] = (), **environ: str) -> Service:
        """``prefix``: what the command begins with, to run elsewhere."""
        log = self.directory / f"{service}-{environ.get('MOORAGE_NAME', 'h1')}.log"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                sys.executable,
                "-m",
                "moorage.cli.main",
                service,
                env={
                    "PATH": os.environ["PATH"],
                    "MOORAGE_NAME": "h1",
                    "MOORAGE_DATA_DIR": str(self.directory / service),
                    "MOORAGE_SECRET_FILE": str(self.directory / "secret"),
                    "MOORAGE_TOKEN_FILE": str(self.directory / "token"),
                    "MOORAGE_HEARTBEAT_MS": "200",
                    "MOORAGE_SUSPECT_MS": "600",
                    "MOORAGE_DOWN_MS": "1200",
                    **environ,
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        self._all.append(Service(process, log))
        return self._all[-1]

    async def start(self, service: str, **environ: str) -> Service:
        return await (await self.launch(service, **environ)).wait_ready()

    async def get(self, service: Service, path: str) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"http://{service.ready['http']}{path}") as answer,
        ):
            return answer.status, await (answer.text() if path == "/metrics" else answer.json())

    async def post(self, service: Service, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"http://{service.ready['http']}{path}", json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def close(self) -> None:
        """All are killed before one is waited for: what goes wrong with one leaves no other behind."""
        for service in self._all:
            if service.process.returncode is None:
                service.process.kill()
        for service in self._all:
            assert service.process.stdout is not None
            with contextlib.suppress(RuntimeError):  # a test that failed while it was reading
                await service.process.stdout.read()
            await service.process.wait()


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    await launcher.close()
