"""What both parts of the demo stand on: machines, what is mounted there, and what is said."""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moorage.cli.demo.databases.timeline import KernelLog, Timeline
from moorage.cli.machine_mounts import MountTimes, boot_clock, granted, mount, unmount
from moorage.cli.machines import MachineCluster
from moorage.cli.report import Report

LEASE_WAIT_S = 30


@dataclass
class Stage:
    cluster: MachineCluster
    report: Report
    timelines: list[Timeline] = field(default_factory=list)

    def path(self, volume: str) -> Path:
        """Where a volume is mounted, on whichever machine."""
        return self.cluster.volumes / volume

    async def mount_new(self, host: str, volume: str, size: str, owner: str) -> None:
        self.path(volume).mkdir()
        user = pwd.getpwnam(owner)
        uri, where = f"moorage:///{volume}?size={size}", str(self.path(volume))
        await mount(self.cluster, host, uri, where, "--owner", f"{user.pw_uid}:{user.pw_gid}")

    @asynccontextmanager
    async def killed(self, title: str, host: str, successor: str, *volumes: str) -> AsyncIterator[Timeline]:
        """SIGKILL of everything at ``host``; inside of the block its volumes are mounted at ``successor``."""
        with KernelLog() as kernel:
            timeline = Timeline(title)
            await self.cluster.cut_power(host)
            timeline.note(boot_clock(), host, "dead: its last process is gone")
            times = await asyncio.gather(*(self._mount_again(successor, volume) for volume in volumes))
            yield timeline
            for volume, one in zip(volumes, times, strict=True):
                given = await granted(self.cluster, volume)
                timeline.note_mount(volume, one, given, kernel.replayed.get(one.device))
        self.timelines.append(timeline)

    async def _mount_again(self, host: str, volume: str) -> MountTimes:
        return await mount(self.cluster, host, volume, str(self.path(volume)), "--wait", str(LEASE_WAIT_S))

    async def unmount(self, host: str, *volumes: str) -> None:
        for volume in volumes:
            clean, said = await unmount(self.cluster, host, volume)
            self.report.promise(f"e2fsck finds the file system of {volume} clean", clean, said)
