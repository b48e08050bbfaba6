"""A member that was away catches up beside a running writer, and copies only what changed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from tests.cluster.metrics import metric

MIB = 1 << 20
Awaiting = Callable[..., Awaitable[Any]]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("missed", [96 * MIB, pytest.param(2048 * MIB, marks=pytest.mark.slow)])
async def test_a_member_that_was_down_catches_up(
    local: LocalCluster, cluster: moorage.Cluster, missed: int, until: Awaiting
) -> None:
    kept = 32 * MIB
    await cluster.create_volume("away", size=missed + kept, replicas=3)
    rng = random.Random(1)
    victim = local.hosts[2]
    async with await cluster.attach("away") as volume:
        for at in range(0, kept, MIB):
            await volume.write(at, rng.randbytes(MIB))
        await volume.flush()
        await victim.kill()
        blocks = [rng.randbytes(MIB) for _ in range(7)]
        for index, at in enumerate(range(kept, kept + missed, MIB)):
            await volume.write(at, blocks[index % 7])
        await victim.launch()
        await victim.wait_ready()
        written = 0

        async def current() -> bool:
            nonlocal written
            await volume.write(kept + written % missed, blocks[0])  # the writer goes on meanwhile
            written += 7 * MIB
            mine = [member for member in volume.members() if member["host"] == victim.name]
            return all(member["state"] == "current" for member in mine)

        await until(current, "the member is current again", timeout=300)
        assert written > 0
        # What it had before it went away is not copied again.
        assert await metric(victim, "moorage_node_copied_bytes_total") <= missed + 16 * MIB
        assert await volume.read_from(victim.name, kept, MIB) == blocks[0]
