"""Volumes mounted at machines, and when each step of it was: what the demo and the benchmark tell."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from moorage.cli.machines import MachineCluster


@dataclass(frozen=True)
class MountTimes:
    """Boot clock, seconds, at which a mount had reached the cluster, was attached, had a block device with a
    file system, and was mounted."""

    device: str
    connected: float
    attached: float
    found: float
    mounted: float


async def mount(cluster: MachineCluster, host: str, volume: str, *arguments: str) -> MountTimes:
    """`moorage mount VOLUME ARGUMENTS` at ``host``."""
    said = json.loads(await cluster.command(host, "mount", volume, *arguments, "--json"))
    times = said["times"]
    return MountTimes(
        said["device"], times["attaching"], times["attached"], times["mounting"], times["serving"]
    )


async def granted(cluster: MachineCluster, volume: str) -> float:
    """Boot clock at which metadata gave a volume to its holder; to a millisecond."""
    shown = json.loads(await cluster.command("c1", "volume", "show", volume, "--json"))
    since: int = shown["holder"]["since_ms"]
    return since / 1000 - time.time() + boot_clock()


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
