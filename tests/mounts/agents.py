"""Hosts whose volumes are mounted for those who ask for a path: by drivers, and by several Mesos agents."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

from moorage.gateway.mount import system
from moorage.gateway.mount.record import Place, StateDirectory

from .conftest import Host, run_program, signalled


class Agent(Host):
    """Volumes appear below ``root``, or below ``root/@ADDRESS`` for the agent of that address."""

    def __init__(self, environment: dict[str, str], name: str = "") -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="moo")), environment)  # short: sockets are below it
        self.directory.chmod(0o755)
        self.root = self.directory / "v"
        self.environment["MOORAGE_MOUNT_ROOT"] = str(self.root)
        self.environment["MOORAGE_HOST"] = name or self.directory.name

    async def run_with(self, variables: dict[str, str], *arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr), with more variables in the environment."""
        process = self.start(*arguments, env={**self.environment, **variables}, cwd=self.directory)
        out, err = await asyncio.to_thread(process.communicate, timeout=60)
        return process.returncode, out.strip(), err.strip()

    async def ok(self, *arguments: str, **variables: str) -> str:
        code, out, err = await self.run_with(variables, *arguments)
        assert code == 0, err
        return out

    def states(self) -> list[StateDirectory]:
        """Its own, and those of Mesos agents on it."""
        return [self.state, *(StateDirectory(path) for path in sorted(self.state.path.glob("@*")))]

    def places(self) -> list[Place]:
        return [place for state in self.states() for place in state.places()]

    async def clean(self) -> None:
        for state in self.states()[1:]:
            part = Host(self.directory, self.environment)
            part.state = state
            await part.end()
        await self.end()
        if system.mounted_at(str(self.root)) is not None:
            await run_program("umount", str(self.root))
        assert self.left() == []


def processes_of(place: Place) -> list[int]:
    """The keeper and the daemon of a mount."""
    return [int(place.keeper_lock.read_text() or 0), place.status().pid]


def kill_processes(place: Place) -> None:
    for pid in processes_of(place):
        signalled(pid, signal.SIGKILL)
