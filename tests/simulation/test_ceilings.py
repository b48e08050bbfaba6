"""Ceilings of a volume, measured on a whole cluster whose time is simulated: so nothing but them counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from moorage.bench.block import ClosedLoop, Workload
from moorage.client.cluster import Cluster
from moorage.client.volume import Volume
from moorage.simulation.cluster import Client, SimCluster, staged
from moorage.simulation.tunables import FAST_DISK_S, Tunables
from moorage.simulation.world import bury, world

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
MEASURE_S = 2.0

Script = Callable[[Cluster], Awaitable[None]]


def play(script: Script) -> None:
    """A cluster of three hosts, and a client that does this."""
    _play_in_a_world(script)
    bury()  # when nothing here refers to the world any more


def _play_in_a_world(script: Script) -> None:
    with world(1) as made:
        tunables = Tunables.draw(made.rng)
        easy = replace(tunables, spares=0, disk_s=FAST_DISK_S, window_records=16_384, window_bytes=64 * MIB)
        with staged(made, replace(easy, piece_bytes=MIB, capacity=256 * MIB)):
            _play(SimCluster(made, replace(easy, capacity=256 * MIB), masters=3, clients=1), script)


def _play(cluster: SimCluster, script: Script) -> None:
    loop, (client,) = cluster.world.loop, cluster.clients
    for host in cluster.hosts:
        host.start()
    ready = loop.run(lambda: all(host.ready for host in cluster.hosts), loop.now + 30)
    assert ready and not loop.failures

    async def program(client: Client, connected: Cluster) -> None:
        await script(connected)

    client.program = program
    client.start()
    ended = loop.run(lambda: client.ended or bool(loop.failures), loop.now + 120)
    assert not loop.failures, loop.failures
    assert ended


async def measure(volume: Volume, kind: str, size: int, depth: int) -> float:
    """Operations a second of a closed loop, after some time to get going."""
    load = ClosedLoop(volume, Workload("load", kind, "random", size, depth), SIZE)
    load.start()
    await asyncio.sleep(0.5)
    before = len(load.samples)
    await asyncio.sleep(MEASURE_S)
    count = len(load.samples) - before
    await load.stop()
    return count / MEASURE_S


def test_what_is_measured_is_the_ceiling_and_changes_live() -> None:
    async def script(cluster: Cluster) -> None:
        await cluster.create_volume("db", SIZE, iops=200)
        async with await cluster.attach("db") as volume:
            assert await measure(volume, "write", 4 * KIB, 8) == pytest.approx(200, rel=0.1)
            assert await measure(volume, "read", 4 * KIB, 2) == pytest.approx(200, rel=0.1)
            info = await cluster.set_volume("db", iops=0, bw="8M")
            assert (info.iops, info.bw) == (0, 8 * MIB)
            await asyncio.sleep(1.5)
            assert await measure(volume, "write", 256 * KIB, 4) == pytest.approx(32, rel=0.1)
            assert await measure(volume, "read", 512 * KIB, 4) == pytest.approx(16, rel=0.1)
            await cluster.set_volume("db", iops=100)  # beside the other one
            await asyncio.sleep(1.5)
            assert await measure(volume, "write", 4 * KIB, 8) == pytest.approx(100, rel=0.1)
            assert (await cluster.show("db")).bw == 8 * MIB
            await cluster.set_volume("db", iops=0, bw=0)
            await asyncio.sleep(1.5)
            assert volume.gate is None

    play(script)


def test_readers_have_the_ceiling_each_for_itself() -> None:
    async def script(cluster: Cluster) -> None:
        await cluster.create_volume("db", SIZE, bw=4 * MIB)
        async with await cluster.attach("db") as volume:
            await volume.write(0, bytes(MIB))
            async with await cluster.attach("db", read_only=True) as reader:
                both = measure(volume, "write", 64 * KIB, 4), measure(reader, "read", 64 * KIB, 4)
                assert await asyncio.gather(*both) == [pytest.approx(64, rel=0.1)] * 2
                await cluster.set_volume("db", bw="1M")
                await asyncio.sleep(4.0)
                assert await measure(reader, "read", 64 * KIB, 4) == pytest.approx(16, rel=0.1)

    play(script)
