"""Hosts that can lose their power: each a network, mounts and processes of its own on this machine.

Owns the namespaces' first process (all others in there die with it at the same moment, and it dies with this
process), and what a machine that died left in the kernel that all of them share: loop devices. Where one is
mounted nobody else sees; a machine that comes back finds its disk, and nothing that was in ``/run``.

A program in there is a child of the nsenter that began it, and dies with that one; any other signal has to be
sent to the program itself (:func:`child_of`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from moorage.cli.local_cluster import LocalHost, die_with_parent
from moorage.cli.network import PATH, Network
from moorage.cli.network_cluster import HOSTS, NetworkCluster
from moorage.gateway.mount import system
from moorage.gateway.mount.record import DEVICE
from moorage.wire.errors import Unavailable

START_TIMEOUT_S = 10.0
COME_BACK_TIMEOUT_S = 120.0  # what its device has in the log is replayed
# Its first process reaps whoever has lost its parent; nothing else is asked of it.
_INIT = ("env", "--ignore-signal=CHLD", "sleep", "infinity")
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


class Machine:
    def __init__(self, name: str, network: Network, run: Path) -> None:
        """``run``: what would be in /run, gone when it comes back."""
        self.name = name
        self.run = run
        self.log = run.with_name("machine.log")
        self._network = network
        self._outer: asyncio.subprocess.Process | None = None
        self._init = 0
        self._left: list[str] = []  # loop devices that it had when it died

    async def power_on(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self.run, ignore_errors=True)
        self.run.mkdir(parents=True, mode=0o755)
        self._network.plug(self.name, plugged=True)
        with self.log.open("ab") as log:
            self._outer = await asyncio.create_subprocess_exec(
                *self._network.prefix(self.name),
                *_NAMESPACES,
                *_INIT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,
                env={**os.environ, "PATH": PATH},
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (first := _first_process(self._outer.pid)):
                if self._outer.returncode is not None:
                    raise Unavailable(f"{self.name}: unshare ended, see {self.log}")
                await asyncio.sleep(0.005)
        self._init = first
        await self._forget_mounts()

    async def _forget_mounts(self) -> None:
        """Of volumes on this machine's own host, which it was born with a copy of: as long as that is there,
        their loop devices are in use."""
        for target in _mounts_like_ours(self._init):
            await _run(*self.prefix, "umount", "--no-canonicalize", "--lazy", target)

    @property
    def pid(self) -> int:
        """Of its first process; 0 when it is off."""
        return self._init

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command has to begin with to run in there."""
        program, dying = shutil.which("nsenter", path=PATH), shutil.which("setpriv", path=PATH)
        assert program is not None and dying is not None and self._init
        return (program, f"--target={self._init}", "--net", "--mount", "--pid", dying, "--pdeathsig=KILL")

    async def cut_power(self, *, unplug: bool = False) -> None:
        """SIGKILL to everything in there at once. ``unplug``: and its cable is pulled before, so that nobody
        is sent a reset, as when a machine really loses its power."""
        if self._outer is None:
            return
        self._left = _loop_devices(self.run)
        if unplug:
            self._network.plug(self.name, plugged=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        await self._outer.wait()
        self._outer, self._init = None, 0

    async def clear_away(self) -> None:
        """After it died: what a real machine would have taken along."""
        for device in self._left:
            await asyncio.to_thread(system.clear_loop, device, f"/{DEVICE}")  # what is left of the path
        self._left = []


def _first_process(outer: int) -> int:
    """Of the namespaces, once it runs what it has to run."""
    pid = child_of(outer)
    with contextlib.suppress(OSError):
        if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
            return pid
    return 0


def child_of(pid: int) -> int:
    """The one child of an unshare or an nsenter; 0 when it has none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    return 0


def _loop_devices(below: Path) -> list[str]:
    """Those on files in a directory. To be asked while they are mounted: later the kernel has no path of them
    any more."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was just detached
            if Path(entry.read_text().rstrip("\n")).is_relative_to(below):
                found.append(f"/dev/{entry.parts[-3]}")
    return sorted(found)


def _mounts_like_ours(pid: int) -> list[str]:
    """File systems on loop devices and FUSE that a process sees, the last mounted first."""
    found = []
    for line in Path(f"/proc/{pid}/mounts").read_text().splitlines():
        source, target, kind = line.split()[:3]
        if source.startswith("/dev/loop") or kind.startswith("fuse"):
            found.append(re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), target))
    return found[::-1]


async def _run(*command: str) -> None:
    """A program that may find nothing to do any more."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PATH": PATH}, stderr=asyncio.subprocess.DEVNULL
    )
    await process.wait()


class MachineCluster(NetworkCluster):
    """Hosts h1..h3 as machines; ``clients`` have an address only."""

    def __init__(
        self, directory: Path, network: Network, *, clients: Sequence[str] = ("c1",), capacity: str = "4G"
    ) -> None:
        super().__init__(directory, network, clients=clients, capacity=capacity)
        self.machines = {name: Machine(name, network, self.directory / name / "run") for name in HOSTS}
        self.volumes = self.directory / "volumes"  # mount points, the same on each: their mounts differ
        self.volumes.mkdir()

    def prefix(self, name: str) -> tuple[str, ...]:
        machine = self.machines.get(name)
        return machine.prefix if machine is not None else super().prefix(name)

    def environment(self, name: str) -> dict[str, str]:
        found = super().environment(name)
        if name in self.machines:
            found |= {"MOORAGE_STATE_DIR": str(self.machines[name].run / "mounts"), "MOORAGE_HOST": name}
        return found

    def host(self, name: str) -> LocalHost:
        return next(host for host in self.hosts if host.name == name)

    async def cut_power(self, name: str, *, unplug: bool = False) -> None:
        await self.machines[name].cut_power(unplug=unplug)
        await self.host(name).wait()

    async def power_on(self, name: str) -> None:
        """A machine that died comes back, with its Moorage host."""
        await self.machines[name].clear_away()
        await self.machines[name].power_on()
        host = self.host(name)
        host.prefix = self.prefix(name)
        await host.launch()
        await host.wait_ready(COME_BACK_TIMEOUT_S)

    async def _prepare(self) -> None:
        for machine in self.machines.values():
            await machine.power_on()

    async def close(self) -> None:
        try:
            for machine in self.machines.values():
                await machine.cut_power()
        finally:
            try:
                await super().close()
            finally:
                for machine in self.machines.values():
                    await machine.clear_away()


def end_as_by_ctrl_c() -> None:
    """Also when this process is told to end otherwise: namespaces and loop devices would be left."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, os.kill, os.getpid(), signal.SIGINT)
