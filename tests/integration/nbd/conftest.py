"""Fixtures of the NBD tests: a server on a fresh unix socket, on either event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from moorage.client.device import BlockDevice
from moorage.gateway.nbd import Limits, NbdServer

from .support import Bench

Scenario = Callable[[Bench], Awaitable[None]]
Play = Callable[..., None]


@asynccontextmanager
async def _bench(
    path: Path, exports: Mapping[str, BlockDevice], limits: Limits | None
) -> AsyncIterator[Bench]:
    server = NbdServer(exports, limits=limits)
    await server.serve(f"unix:{path}")
    try:
        yield Bench(server, str(path))
    finally:
        await server.stop(timeout=5.0)
        assert server.connections == 0
        assert not path.exists()


@pytest.fixture(scope="session")
def warm_loops() -> None:
    """What a process opens once and keeps (libuv's signal pipe), so that it is not taken for a leak."""

    async def body() -> None:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()

    uvloop.run(body())
    asyncio.run(body())


@pytest.fixture(params=["uvloop", "asyncio"])
def play(warm_loops: None, request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Run a scenario against a server, on either loop; afterwards no descriptor may be left."""
    return _player(request.param, tmp_path)


@pytest.fixture
def play_uvloop(warm_loops: None, tmp_path: Path) -> Play:
    """The same on uvloop alone, for programs whose behaviour does not depend on the loop."""
    return _player("uvloop", tmp_path)


def _player(loop: str, tmp_path: Path) -> Play:
    def run(scenario: Scenario, exports: Mapping[str, BlockDevice], limits: Limits | None = None) -> None:
        async def body() -> None:
            async with _bench(tmp_path / "nbd.sock", exports, limits) as bench:
                await scenario(bench)

        before = _open_descriptors()
        (uvloop.run if loop == "uvloop" else asyncio.run)(body())
        assert _open_descriptors() == before

    return run


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
