"""A verifying load through faults of the devices, and takeovers: nothing acknowledged is lost, nothing
stale read.

Real time and sockets, so a seed does not replay a history; the simulation of the cores does. What is tested
here is the shell: the queue, the pump, reads in flight, the hand-out under the lease.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from moorage.bench.verify import VerifyingLoad
from moorage.client.attachment import Attachment
from moorage.client.nodes import NodePool
from moorage.client.volume import Volume
from moorage.wire.handshake import Hello

Make = Callable[..., Awaitable[Any]]


async def attach(cluster: Any, pool: NodePool) -> Volume:
    return await Attachment.open(
        cluster.call,
        pool,
        name="db",
        read_only=False,
        force=True,
        io_timeout=30,
        timeout=20,
        holder={},
    )


async def trouble(cluster: Any, rng: random.Random, seconds: float) -> None:
    """One device at a time is silent, dead, or moves to another port."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        device = rng.choice(cluster.devices)
        if rng.random() < 0.5:
            device.set_mute(True)
            await asyncio.sleep(rng.uniform(0.02, 0.3))
            device.set_mute(False)
        else:
            address = device.address
            await device.stop()
            await asyncio.sleep(rng.uniform(0, 0.2))
            await device.start(address if rng.random() < 0.7 else "127.0.0.1:0")
        await asyncio.sleep(rng.uniform(0.02, 0.4))


@pytest.mark.parametrize("sync", [True, False])
async def test_load_through_faults_and_a_takeover(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=2, sync=sync)
    rng = random.Random(f"faults {sync}")
    pools = [
        NodePool(Hello("client", cluster.secret.cluster, "here", str(at)), cluster.secret) for at in (0, 1)
    ]
    old = await attach(cluster, pools[0])
    # Shallow: a device that is away must not fall behind the window, since these devices cannot be copied to.
    load = VerifyingLoad(old, blocks=2048, run=7, depth=3)
    load.start("faults")
    await trouble(cluster, rng, 2.5)
    new = await attach(cluster, pools[1])
    figures = await load.stop()
    assert not load.mismatches
    assert figures["writes"] and figures["reads"]
    errors = figures["errors"]
    assert not errors or "taken over by" in str(figures["first_error"])
    load.device = new
    load.start("after")
    await trouble(cluster, rng, 1.0)
    figures = await load.stop()
    assert not load.mismatches and not figures["errors"], figures
    await load.verify_all()
    assert not load.mismatches
    try:
        async with asyncio.timeout(5):
            while not cluster.agrees():
                await asyncio.sleep(0.02)
    except TimeoutError:
        shown = [group.writer.status() for group in new.groups]
        held = [
            (
                device.host,
                replica.replica,
                replica.applied,
                replica.core.state.last,
                replica.core.state.commit,
            )
            for device in cluster.devices
            for replica in device.replicas.values()
        ]
        # In writeback a member may have applied what a takeover lost: it needs a fresh copy, which these
        # devices cannot be given. In sync mode that must never happen.
        rows = [row for status in shown for row in status["members"].values()]
        lagging = [row for row in rows if row["status"] != "STREAMING"]
        if sync or not lagging or any("node.copy" not in row["reason"] for row in lagging):
            pytest.fail(f"members differ: {shown} {held}")
    await new.detach()
    await old.detach()
    for pool in pools:
        await pool.close()
