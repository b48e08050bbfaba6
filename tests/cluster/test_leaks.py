"""Attach and detach in a loop: what a process holds afterwards is what it held before. What is left behind
each time grows each time; a connection that is made once, because a host was slow for a moment, does not."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster

TIMES = 4


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

    def held() -> tuple[tuple[int, int, int], dict[str, int]]:
        gc.collect()
        memory = {host.name: resident_bytes(host.pid) for host in local.hosts} | {"client": resident_bytes()}
        return (descriptors(), threading.active_count(), len(asyncio.all_tasks())), memory

    await one_pass(names)
    for _ in range(warm_up - 1):
        await one_pass(names[:10])
    seen = [held()]
    for _ in range(TIMES):
        for _ in range(rounds):
            await one_pass(names[:20])
        seen.append(held())
        (counts, memory), (counts_then, memory_then) = seen[-1], seen[-2]
        grown = max(memory[name] / memory_then[name] for name in memory)
        if counts == counts_then and (grown < 1.05 or warm_up < 50):
            return
    raise AssertionError(f"it grows each time: descriptors, threads, tasks, and bytes: {seen}")
