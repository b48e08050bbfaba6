"""A move of the nemesis with an aim: a holder goes on with a minority while another one takes its volume.

Owns the scene: one client attaches by force and works; its links, and those of one host, to all others are
cut; a second client takes the volume by force and works on the same blocks. What the first one still reads
must not be older than what the second one was acknowledged. Must never look behind the library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from moorage.client.cluster import Cluster
from moorage.client.config import ClusterConfig
from moorage.simulation.cluster import PORT, Client, Machine
from moorage.simulation.network import Weather
from moorage.simulation.workload import VOLUMES, Workload
from moorage.wire.errors import MoorageError

if TYPE_CHECKING:
    from moorage.simulation.nemesis import Nemesis

WORKERS = 8
ATTACH_S = 3.0


def strand(nemesis: Nemesis, rng: Random) -> Callable[[], None]:
    cluster, loop = nemesis._cluster, nemesis._world.loop
    name = rng.choice(VOLUMES)
    zombie, other = rng.sample(cluster.clients, 2)
    host = rng.choice(cluster.hosts)
    undone: list[Callable[[], None]] = []
    subject = f"z{rng.randrange(10**9)}"
    _start(zombie, name, subject, rng.random(), 2.0, changes=False)

    def cut() -> None:
        if zombie.process is None or not zombie.process.alive or nemesis._healed:
            return
        minority: list[Machine] = [zombie, host]
        others = [each for each in cluster.machines if each not in minority]
        undone.append(nemesis._both(minority, others, Weather(cut=True)))
        _start(other, name, subject, rng.random(), 1.0, changes=True)

    loop.at(rng.uniform(0.3, 0.8), cut)

    def undo() -> None:
        for each in undone:
            each()

    return undo


def _start(client: Client, name: str, subject: str, seed: float, lasts_s: float, changes: bool) -> None:
    process = client.process
    if process is not None and process.alive:
        process.start(
            lambda: _hold(client, name, subject, Random(seed), lasts_s, changes), f"strand of {name}"
        )


async def _names(
    workload: Workload, client: Client, cluster: Cluster, name: str, seed: float, changes: bool, end: float
) -> None:
    """One side makes and deletes a volume, the other looks whether it is there."""
    rng, loop = Random(seed), asyncio.get_running_loop()
    while loop.time() < end and not workload.stopping:
        if not changes:
            await workload.show(client, cluster, name)
        elif rng.random() < 0.5:
            await workload._create(client, cluster, name)
        else:
            await workload.delete(client, cluster, name)
        await asyncio.sleep(0.01)


async def _hold(client: Client, name: str, subject: str, rng: Random, lasts_s: float, changes: bool) -> None:
    """Attach by force and work, with the workload's own operations."""
    workload = getattr(client.program, "__self__", None)
    if not isinstance(workload, Workload) or workload.stopping:
        return
    cluster = client.cluster
    registry = ",".join(f"{host.address}:{PORT}" for host in cluster.hosts)
    connected = Cluster(ClusterConfig(registry, cluster.secret_file), cluster.secret, host=client.name)
    end = asyncio.get_running_loop().time() + 2 * lasts_s
    names = asyncio.create_task(
        _names(workload, client, connected, subject, rng.random(), changes, end), name="names"
    )
    volume = await workload.attach(client, connected, name, True, ATTACH_S)
    if volume is None:
        await names
        return
    end = asyncio.get_running_loop().time() + lasts_s
    works = [workload._work(client, volume, Random(rng.random()), end) for _ in range(WORKERS)]
    await asyncio.gather(names, *works)
    with suppress(MoorageError):
        await volume.detach(timeout=3.0)
