"""Programs of others at a machine: started as their own user, heard, and ended by their process id.

Owns those processes as far as this side of the machine's namespaces goes: each is the child of an nsenter,
and dies with its machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

from moorage.cli.local_cluster import die_with_parent
from moorage.cli.machine_mounts import boot_clock
from moorage.cli.machines import MachineCluster, child_of
from moorage.cli.network import PATH
from moorage.wire.errors import Unavailable

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 120.0


class Program:
    """``log`` gets all it says; what was heard of it has the boot clock's time."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self._log = log
        self._said: list[tuple[float, str]] = []
        self._more = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *command: str) -> None:
        """``command`` as :func:`as_user` gives it."""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C is for the demo: it ends them in order
            env=_environment(),
            cwd="/",
        )
        self._hearing = asyncio.ensure_future(self._hear(self._process))

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self._log.open("ab") as log:
            while line := await process.stdout.readline():
                log.write(line)
                log.flush()
                async with self._more:
                    self._said.append((boot_clock(), line.decode(errors="replace")))
                    self._more.notify_all()
        async with self._more:
            self._more.notify_all()

    def heard(self, text: str) -> float | None:
        """When it first said that."""
        return next((when for when, line in self._said if text in line), None)

    async def wait_for(self, text: str) -> float:
        """Until it says so; when that was."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S), self._more:
                while (when := self.heard(text)) is None:
                    if self._hearing.done():
                        raise Unavailable(f"{self.name} ended: {self._last_words()}")
                    await self._more.wait()
        except TimeoutError:
            raise Unavailable(
                f"{self.name} is not ready after {START_TIMEOUT_S:.0f} s: {self._last_words()}"
            ) from None
        return when

    def _last_words(self) -> str:
        return " | ".join(line.strip() for _, line in self._said[-4:]) + f" (see {self._log})"

    async def stop(self) -> None:
        """SIGTERM to the program itself, which is not the process that was started here."""
        assert self._process is not None
        if pid := child_of(self._process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.wait()
        except TimeoutError:
            raise Unavailable(f"{self.name} does not end: {self._last_words()}") from None

    async def wait(self) -> None:
        assert self._process is not None
        await self._process.wait()
        await self._hearing


def as_user(cluster: MachineCluster, where: str, user: str, *command: str) -> tuple[str, ...]:
    """The command line of ``command`` at a host or a client, as ``user``."""
    # Another user's process forgets whose death it is to die of, unless it is told again.
    who = (program("setpriv"), f"--reuid={user}", f"--regid={user}", "--init-groups", "--pdeathsig=KILL")
    return (*cluster.prefix(where), *(() if user == "root" else who), *command)


async def run(*command: str, stdin: str = "", timeout: float = RUN_TIMEOUT_S) -> str:
    """A program to its end; what it printed. Unavailable with the end of what it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
        env=_environment(),
        cwd="/",
    )
    try:
        async with asyncio.timeout(timeout):
            printed, said = await process.communicate(stdin.encode() or None)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        text = (said + printed).decode(errors="replace").strip()[-500:]
        raise Unavailable(f"{' '.join(command)[:200]} ended with {process.returncode}: {text}")
    return printed.decode(errors="replace")


def program(name: str) -> str:
    """Its path; Unavailable that says how to get it."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian keeps the server's programs there
    found = shutil.which(name, path=":".join([PATH, *map(str, versions[-1:])]))
    if found is None:
        raise Unavailable(f"{name} is not installed: `make demo-mysql` as root installs what is needed")
    return found


def _environment() -> dict[str, str]:
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
