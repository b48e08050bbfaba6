"""Whether those who are noted as users of a mount may still use it, where that can be told.

A process that runs a task is a user itself. An engine asks for its containers; one that was killed does not
tell that they are gone. When it has ended, they are taken for gone unless somebody is seen to use the mount:
an engine can end and leave its containers running.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from moorage.gateway.mount import system

_PROCESS = "process"
_ENGINE = "dockerd"


def of_process(pid: int) -> str:
    """An id that tells whether its process lives; a number that is used again does not count."""
    return f"{_PROCESS}:{pid}:{_started(pid)}"


def of_engine(pid: int) -> str:
    """The same for a process that asks for others; "" where it need not live as long as they do."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == _ENGINE:
            return of_process(pid)
    return ""


def lives(user: str) -> bool:
    """Also where that cannot be told."""
    kind, _, rest = user.partition(":")
    if kind != _PROCESS:
        return True
    pid, _, started = rest.partition(":")
    return _started(int(pid)) == started


def is_used(target: str) -> bool:
    """Whether a process has something on it open, or is in a mount namespace that has it too."""
    entry = system.mounted_at(target)
    if entry is None:
        return False
    return bool(system.users_of(entry.device)) or _is_mounted_elsewhere(entry.device)


def _is_mounted_elsewhere(device: tuple[int, int]) -> bool:
    here, seen = os.readlink("/proc/self/ns/mnt"), set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            namespace = os.readlink(process / "ns/mnt")
            if namespace == here or namespace in seen:
                continue
            seen.add(namespace)
            if any(
                entry.device == device for entry in system.mount_table((process / "mountinfo").read_text())
            ):
                return True
    return False


def _started(pid: int) -> str:
    """Since the boot, in ticks; "" of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
