"""Hosts that mount volumes, several on this machine: a directory, an address and an environment each.

``lose`` is what a power failure does to a host's mounts; ``close`` leaves no process, mount or loop device of
theirs behind, whatever state they are in.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moorage.gateway.mount import system

TOOLS = ("losetup", "blkid", "mount", "umount", "mkfs.ext4")


def unusable() -> str:
    """Why volumes cannot be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=system.PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed: `make setup` as root installs it"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"{device} does not exist here"
    return ""


class Agent:
    """One host: its mounts are noted and made below ``directory``."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.directory = directory
        self.state_dir, self.root = directory / "state", directory / "volumes"
        directory.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **environment,
            "MOORAGE_STATE_DIR": str(self.state_dir),
            "MOORAGE_MOUNT_ROOT": str(self.root),
            "MOORAGE_HOST": name,
        }

    async def run(self, *arguments: str, timeout: float = 60, **environment: str) -> tuple[int, str, str]:
        """`moorage ARGUMENTS` there: exit code, stdout, stderr."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moorage.cli.main", *arguments),
            env={**self.environment, **environment},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode().strip(), err.decode().strip()

    async def ok(self, *arguments: str, **environment: str) -> str:
        code, out, err = await self.run(*arguments, **environment)
        assert code == 0, err
        return out

    def mounts(self) -> list[Path]:
        """The directories of its mounts' notes; no deeper, a dead session there fails whoever looks at it."""
        patterns = ("[0-9a-f]*/record.json", "@*/[0-9a-f]*/record.json")
        return sorted(path.parent for pattern in patterns for path in self.state_dir.glob(pattern))

    def processes(self) -> list[int]:
        """Keepers and daemons of its mounts."""
        return pids_with(str(self.state_dir).encode())

    def lose(self) -> None:
        """All of them at once, with nothing written back."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        self.lose()
        for notes in self.mounts():
            record: dict[str, Any] = json.loads((notes / "record.json").read_text())
            state = {"MOORAGE_STATE_DIR": str(notes.parent)}
            code, _, error = await self.run("umount", record["target"], **state)
            assert code == 0, error
        unmount_below([self.directory])


def pids_with(word: bytes) -> list[int]:
    """Processes that have it in their command line."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if word in (directory / "cmdline").read_bytes() and int(directory.name) != os.getpid():
                found.append(int(directory.name))
        except OSError:
            pass  # it has ended
    return found


def unmount_below(directories: Iterable[Path]) -> None:
    for directory in directories:
        for entry in reversed(system.mount_table()):
            if Path(entry.target).is_relative_to(directory):
                subprocess.run(["umount", entry.target], check=True, capture_output=True)
