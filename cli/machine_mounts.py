"""Volumes mounted at machines, when each step of it was, and how they are left: what the demo and the
benchmark tell."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from moorage.cli.clients import run_program
from moorage.cli.machines import MachineCluster
from moorage.gateway.mount import system
from moorage.wire.errors import Unavailable


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


async def unmount(cluster: MachineCluster, host: str, volume: str) -> tuple[bool, str]:
    """And look whether its file system is whole, and what e2fsck said: of a copy, which another program's NBD
    client makes."""
    await cluster.command(host, "umount", volume)
    socket, copy = cluster.directory / "nbd.sock", cluster.directory / f"{volume}.img"
    try:
        async with cluster.client("c1", "attach", volume, "--nbd", f"unix:{socket}", "--json"):
            await run_program("nbdcopy", f"nbd+unix:///{volume}?socket={socket}", str(copy))
        # At a machine: e2fsck asks every loop device that it sees mounted what is in it, and one of somebody
        # else may not answer.
        said = await run_program(*cluster.prefix(host), system.program("e2fsck"), "-f", "-n", str(copy))
    except Unavailable as error:
        return False, str(error)
    finally:
        await asyncio.to_thread(copy.unlink, missing_ok=True)
    return True, said.strip().splitlines()[-1].partition(": ")[2]


async def granted(cluster: MachineCluster, volume: str) -> float:
    """Boot clock at which metadata gave a volume to its holder; to a millisecond."""
    shown = json.loads(await cluster.command("c1", "volume", "show", volume, "--json"))
    since: int = shown["holder"]["since_ms"]
    return since / 1000 - time.time() + boot_clock()


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
