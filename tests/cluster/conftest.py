"""Whole clusters of real processes: what an operator would run, on loopback, in a temporary directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster

MakeCluster = Callable[..., Awaitable[LocalCluster]]


@pytest.fixture
async def make_cluster(tmp_path: Path) -> AsyncIterator[MakeCluster]:
    """Start clusters that are gone when the test ends, frozen hosts included."""
    made: list[LocalCluster] = []

    async def make(hosts: int = 3, **options: str) -> LocalCluster:
        cluster = LocalCluster(tmp_path / f"cluster{len(made)}", hosts=hosts, options=options)
        made.append(cluster)
        await cluster.start()
        return cluster

    yield make
    for cluster in made:
        await cluster.kill()


@pytest.fixture
async def local(make_cluster: MakeCluster) -> LocalCluster:
    return await make_cluster()


@pytest.fixture
async def cluster(local: LocalCluster) -> AsyncIterator[moorage.Cluster]:
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as connected:
        yield connected


@pytest.fixture
def environment(local: LocalCluster) -> dict[str, str]:
    """What a client program needs to find the cluster."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")},
        "MOORAGE_REGISTRY": local.registry,
        "MOORAGE_SECRET_FILE": str(local.secret_file),
    }


async def _moorage(*arguments: str, env: dict[str, str], timeout: float = 60) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "moorage.cli.main",
        *arguments,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(timeout):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def moorage_command() -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Run `moorage ARGUMENTS`; returns (exit code, stdout, stderr)."""
    return _moorage


async def _until(condition: Callable[[], Awaitable[Any]], what: str, timeout: float = 30) -> Any:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        found = await condition()
        if found:
            return found
        assert loop.time() < deadline, f"{what}: not within {timeout} s"
        await asyncio.sleep(0.05)


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """Poll an async condition until it holds, with a deadline and words for what was awaited."""
    return _until
