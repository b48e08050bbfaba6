"""What people type by mistake while a cluster is there; as tests/integration/test_bad_invocations.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from tests.integration.test_bad_invocations import check, directory

__all__ = ["directory"]  # a fixture

# (arguments, exit code, words), as there.
ONLINE: list[tuple[str, int, str]] = [
    ("volume create taken --size 1M", 3, "taken"),
    ("volume create Upper --size 1M", 3, "a-z"),
    ("volume create -- -v --size 1M", 2, ""),
    ("volume create v --size 4097", 3, "4"),
    ("volume create v --size 4096", 3, "1 MiB"),
    ("volume create v --size 65T", 3, "64 TiB"),
    ("volume create v --size 1M --replicas 2", 3, "1, 3"),
    ("volume create v --size 1M --replicas 5", 3, "3"),
    ("volume create v --size 1M --groups 65", 3, "64"),
    ("volume show nobody", 3, "nobody"),
    ("volume resize nobody --size 4M", 3, "nobody"),
    ("volume resize taken --size 1M", 3, "shrink"),
    ("volume delete nobody", 3, "nobody"),
    ("volume delete taken", 9, "--force"),
    ("attach nobody --nbd unix:{tmp}/s", 3, "nobody"),
    ("attach taken --nbd unix:{tmp}/s", 9, "--force"),
    ("attach taken --nbd nonsense --read-only", 3, "unix:"),
    ("attach http://x/y --nbd unix:{tmp}/s", 3, "moorage://"),
    ("attach moorage:///taken?colour=red --nbd unix:{tmp}/s", 3, "colour"),
    ("bench verify nobody", 3, "nobody"),
]


@pytest.fixture
async def held(cluster: moorage.Cluster) -> AsyncIterator[None]:
    await cluster.create_volume("taken", size=2 << 20, replicas=3)
    async with await cluster.attach("taken"):
        yield


async def test_a_second_up_ends_as_the_host_that_was_refused(
    local: LocalCluster,
    environment: dict[str, str],
    tmp_path: Path,
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
) -> None:
    environment = {**environment, "HOME": str(tmp_path)}
    code, out, err = await moorage_command("up", "--data", str(local.directory), env=environment)
    check(code, out, err, 4, "in use by another process", "up")
    assert all(host.running for host in local.hosts)


async def test_online(
    local: LocalCluster,
    held: None,
    environment: dict[str, str],
    directory: Path,
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
) -> None:
    gate = asyncio.Semaphore(4)

    async def one(arguments: str, code: int, words: str) -> str | None:
        async with gate:
            found = await moorage_command(*arguments.format(tmp=directory).split(), env=environment)
        try:
            check(*found, code, words.format(tmp=directory), arguments)
        except AssertionError as error:
            return str(error)
        return None

    wrong = [text for text in await asyncio.gather(*(one(*row) for row in ONLINE)) if text]
    assert not wrong, "\n".join(wrong)
