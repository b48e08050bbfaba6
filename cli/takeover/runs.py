"""Runs of a takeover on a cluster of machines, and the phases that each had.

Owns the order: a host writes, dies, another mounts the volume and uses it, the dead one comes back, all
settles. The holder of one run is the victim of the next, so that every host dies in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

from moorage.cli.local_cluster import die_with_parent
from moorage.cli.machine_mounts import MountTimes, boot_clock, granted, mount, unmount
from moorage.cli.machines import MachineCluster
from moorage.cli.network_cluster import HOSTS
from moorage.wire.errors import Unavailable

VOLUME, SIZE = "takeover", "256M"
WRITING_S = 1.0
WAIT_S = 30.0  # for the lease
USABLE_TIMEOUT_S = 60.0

# What a run is made of, in order; each lasts from the end of the one before.
PHASES = {
    "dead": "SIGKILL until every process of the host is gone",
    "connected": "moorage mount elsewhere has started, and the cluster answers it",
    "lease over": "metadata gives it the volume",
    "attached": "the other devices are sealed, the log is recovered, the barrier committed",
    "device": "a block device",
    "mounted": "the file system's journal is replayed, it is mounted",
    "usable": "the file is read, a line is written and synced",
}


@dataclass(frozen=True)
class Run:
    """``phases``: seconds; ``led``: services that the victim led; ``written``: lines acknowledged to the
    victim, of which ``lost`` are not there, and ``wrong`` are not what was written."""

    victim: str
    successor: str
    led: list[str]
    written: int
    lost: int
    wrong: int
    phases: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "seconds": self.seconds}


class Takeovers:
    def __init__(self, cluster: MachineCluster, *, force: bool, unplug: bool) -> None:
        self._cluster = cluster
        self._force, self._unplug = force, unplug
        self._path = cluster.volumes / VOLUME
        self._holder = HOSTS[0]
        self._file = str(self._path / "lines")

    async def prepare(self) -> None:
        self._path.mkdir()
        await self._mount(self._holder, f"moorage:///{VOLUME}?size={SIZE}")

    async def run(self, count: int) -> AsyncIterator[Run]:
        for number in range(count):
            victim, successor = (HOSTS[(number + step) % len(HOSTS)] for step in (0, 1))
            if number:
                await self._cluster.power_on(HOSTS[(number - 1) % len(HOSTS)])
            yield await self._one(victim, successor)

    async def _one(self, victim: str, successor: str) -> Run:
        leaders = await settle(self._cluster)
        async with _probe(self._cluster, victim, "write", self._file) as writer:
            await _answer(writer)
            counting = asyncio.ensure_future(_last_number(writer))
            try:
                async with _probe(self._cluster, successor, "use", self._file) as user:
                    await asyncio.sleep(WRITING_S)
                    killed = boot_clock()
                    await self._cluster.cut_power(victim, unplug=self._unplug)
                    dead = boot_clock()
                    times = await self._mount(successor, VOLUME)
                    found = json.loads(await _answer(user))
            finally:
                _kill(writer)
                written = await counting
        given = await granted(self._cluster, VOLUME)
        ends = [dead, times.connected, given, times.attached, times.found, times.mounted]
        return Run(
            victim,
            successor,
            sorted(service for service, leader in leaders.items() if leader == victim),
            written,
            max(written - found["lines"], 0),
            found["wrong"],
            durations(killed, [*ends, found["usable"]]),
        )

    async def _mount(self, host: str, volume: str) -> MountTimes:
        force = ["--force"] if self._force else ["--wait", str(WAIT_S)]
        times = await mount(self._cluster, host, volume, str(self._path), *force)
        self._holder = host
        return times

    async def finish(self) -> tuple[bool, str]:
        """Whether the file system is whole after all of that, and what e2fsck said."""
        return await unmount(self._cluster, self._holder, VOLUME)


def durations(began: float, ends: list[float]) -> dict[str, float]:
    """A stamp of metadata's clock has whole milliseconds, and may come out before the one before it."""
    found = {}
    for name, end in zip(PHASES, ends, strict=True):
        found[name] = max(end - began, 0.0)
        began = max(began, end)
    return found


async def settle(cluster: MachineCluster) -> dict[str, str]:
    """Wait until any host may be taken away; which host leads each service."""
    async with _probe(cluster, "c1", "settle") as probe:
        leaders: dict[str, str] = json.loads(await _answer(probe))
    return leaders


@asynccontextmanager
async def _probe(
    cluster: MachineCluster, name: str, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *cluster.prefix(name),
        *(sys.executable, "-m", "moorage.cli.takeover.probe", *arguments),
        env={**os.environ, **cluster.environment(name)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        _kill(process)
        await process.wait()
        await process.stdout.read()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        process.kill()


async def _answer(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(USABLE_TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        raise Unavailable("a probe of the takeover ended without an answer")
    return line


async def _last_number(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    last = 0
    while (line := await process.stdout.readline()).endswith(b"\n"):
        last = int(line)
    return last
