"""A cluster that gets a second metadata group while it is used: what there is stays where it is, buckets and
volumes that come later are spread over both."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster, _free_ports
from moorage.wire.errors import NameTaken, NotFound

NAMES = [f"bucket{number}" for number in range(12)]
Awaiting = Callable[..., Awaitable[Any]]


@pytest.fixture
async def second(local: LocalCluster, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Start three members of group ``m2``."""
    processes: list[asyncio.subprocess.Process] = []

    async def start() -> None:
        ports = _free_ports(3)
        peers = ",".join(f"n{number}=127.0.0.1:{port}" for number, port in enumerate(ports))
        for number, port in enumerate(ports):
            arguments = {
                **{"name": f"n{number}", "data-dir": str(tmp_path / f"n{number}"), "port": str(port)},
                **{"secret-file": str(local.secret_file), "registry": local.registry},
                **{"group": "m2", "peers": peers},
            }
            flags = [f"--{name}={value}" for name, value in arguments.items()]
            command = (sys.executable, "-m", "moorage.cli.main", "metadata", *flags)
            pipe = asyncio.subprocess.PIPE
            processes.append(await asyncio.create_subprocess_exec(*command, stdout=pipe))
        for process in processes:
            assert process.stdout is not None
            async with asyncio.timeout(30):
                assert await process.stdout.readline(), "a member of m2 did not start"

    yield start
    for process in processes:
        process.kill()
    for process in processes:
        await process.communicate()


@pytest.mark.slow
async def test_buckets_are_spread_over_groups_that_come_later(
    cluster: moorage.Cluster, second: Callable[[], Awaitable[None]], until: Awaiting
) -> None:
    for name in NAMES[:4]:
        await (await cluster.buckets.create(name)).put("k", name.encode())
    await cluster.create_volume("db", "16MiB")
    await second()

    async def both_serve() -> bool:
        return sorted((await cluster._view())["groups"]) == ["m1", "m2"]

    await until(both_serve, "the registry knows both groups")
    assert set((await owners_of(cluster, NAMES[:4])).values()) == {"m1"}
    for name in NAMES[4:]:
        await (await cluster.buckets.create(name)).put("k", name.encode())
    later = await owners_of(cluster, NAMES[4:])
    assert set(later.values()) == {"m1", "m2"}
    assert [row["name"] for row in await cluster.buckets.list()] == sorted(NAMES)
    for name in NAMES:
        bucket = await cluster.bucket(name)
        assert await bucket.get("k") == name.encode()
        await bucket.set_versioning("enabled")
        await bucket.put("k", b"2")
        assert len((await bucket.versions_page()).versions) == 2
    for name in ("db", NAMES[0], NAMES[-1]):
        with pytest.raises(NameTaken):
            await cluster.buckets.create(name)
        with pytest.raises(NameTaken):
            await cluster.create_volume(name, "16MiB")

    async def all_are_whole() -> bool:
        copies = [(await cluster.bucket_copies(name)).redundancy.copies for name in NAMES]
        return {copy.state for each in copies for copy in each} == {"good"}

    await until(all_are_whole, "all copies count, those that m2 has placed as well")
    for name in NAMES:
        bucket = await cluster.bucket(name)
        for info in (await bucket.versions_page()).versions:
            await bucket.delete_versions([(info.key, info.version)])
        await cluster.buckets.delete(name)
    with pytest.raises(NotFound):
        await cluster.bucket(NAMES[-1])
    assert await cluster.buckets.list() == []


async def owners_of(cluster: moorage.Cluster, names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        answer = await cluster._registry.call("registry.locate", {"name": name}, timeout=10)
        found[name] = str(answer["group"])
    return found
