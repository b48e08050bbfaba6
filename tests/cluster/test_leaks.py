"""Attach and detach in a loop: what a process holds afterwards is what it held before."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_bytes(pid: int | str = "self") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("volumes", "warm_up", "rounds"), [(20, 1, 2), pytest.param(200, 50, 10, marks=pytest.mark.slow)]
)
async def test_attach_and_detach_leave_nothing_behind(
    local: LocalCluster, cluster: moorage.Cluster, volumes: int, warm_up: int, rounds: int
) -> None:
    """``warm_up`` and ``rounds`` count passes over a part of the volumes; all are attached at least once."""
    names = [f"v{index}" for index in range(volumes)]
    for name in names:
        await cluster.create_volume(name, size=1 << 20, replicas=3)

    async def one_pass(some: list[str]) -> None:
        for name in some:
            async with await cluster.attach(name) as volume:
                await volume.write(0, b"x" * 4096)

    await one_pass(names)
    for _ in range(warm_up - 1):
        await one_pass(names[:10])
    gc.collect()
    before = descriptors(), threading.active_count(), len(asyncio.all_tasks())
    memory = {host.name: resident_bytes(host.pid) for host in local.hosts} | {"client": resident_bytes()}
    for _ in range(rounds):
        await one_pass(names[:20])
    gc.collect()
    assert (descriptors(), threading.active_count(), len(asyncio.all_tasks())) == before
    if warm_up >= 50:
        after = {host.name: resident_bytes(host.pid) for host in local.hosts} | {"client": resident_bytes()}
        grown = {name: after[name] / memory[name] for name in after}
        assert all(ratio < 1.05 for ratio in grown.values()), grown
