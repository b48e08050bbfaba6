"""Hosts and a client are killed, stopped and continued, one at a time in no order, under a verifying load."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalCluster

BLOCKS = 2048
SECONDS = 25.0
Awaiting = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


async def current(load: ClientProcess, until: Awaiting) -> None:
    async def all_current() -> bool:
        return all(each["state"] == "current" for each in (await load.ask("members"))["members"])

    await until(all_current, "all members are current", timeout=40)


@pytest.mark.parametrize(("seed", "durability"), [(1, "sync"), (2, "writeback")])
async def test_kill_stop_and_continue_under_load(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    tmp_path: Path,
    seed: int,
    durability: str,
    until: Awaiting,
) -> None:
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    await cluster.create_volume("data", size=16 << 20, replicas=3, durability=durability)
    arguments = ["bench", "verify", "data", "--steps", "--depth", "16", "--blocks", str(BLOCKS)]
    async with ClientProcess(arguments, environment, tmp_path / "load.log") as load:
        ends, count = loop.time() + SECONDS, 0
        while loop.time() < ends:
            host, away = rng.choice(local.hosts), rng.uniform(0.2, 3.0)
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            match rng.choice(["kill", "freeze", "client"]):
                case "kill":
                    await host.kill()
                    await asyncio.sleep(away)
                    await host.launch()
                    await host.wait_ready()
                case "freeze":
                    host.freeze()
                    await asyncio.sleep(away)
                    host.thaw()
                case "client":
                    load.signal(signal.SIGSTOP)
                    await asyncio.sleep(away)
                    load.signal(signal.SIGCONT)
            await current(load, until)
            count += 1
            figures = await load.ask(f"phase {count}")
            assert figures["mismatches"] == [] and figures["errors"] == 0, figures
            assert figures["writes"] > 0, figures
        assert count >= 5
        figures = await load.ask("verify")
        assert figures["verified"] == BLOCKS and figures["mismatches"] == [], figures


async def test_clients_are_killed_one_after_the_other(
    local: LocalCluster, cluster: moorage.Cluster, environment: dict[str, str], tmp_path: Path
) -> None:
    """Each takes the volume over from one that was killed in the middle of writes, within seconds."""
    await cluster.create_volume("data", size=16 << 20, replicas=3)
    arguments = ["bench", "verify", "data", "--steps", "--depth", "16", "--blocks", str(BLOCKS), "--force"]
    epochs = []
    for number in range(6):
        load = ClientProcess(arguments, environment, tmp_path / f"load{number}.log")
        async with asyncio.timeout(20):
            await load.__aenter__()
        try:
            epochs.append(load.ready["epoch"])
            await asyncio.sleep(0.7)
            figures = await load.ask("phase rest")
            assert figures["mismatches"] == [] and figures["errors"] == 0 and figures["writes"] > 0, figures
            load.signal(signal.SIGKILL if number < 5 else signal.SIGCONT)
        finally:
            await load.__aexit__()
    assert epochs == sorted(set(epochs))
