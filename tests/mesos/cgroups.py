"""Cgroups of version 1, in which the linux launcher of Mesos keeps its containers.

A machine that has version 2 only gets the one hierarchy that the launcher needs, the freezer, for as long as
a cluster uses it. (Mesos would mount it itself, but never unmount it.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import machine, run
from .errors import MesosError

OWN = Path("/run/moorage-mesos")
FREEZER = OWN / "freezer"
PREFIX = "moorage-mesos-"  # of the names of all our cgroups: the kernel may hold others in the hierarchy


def unusable() -> str:
    """Why this machine has no freezer, or nothing."""
    if re.search(r"^freezer\t.*\t1$", Path("/proc/cgroups").read_text(), re.MULTILINE):
        return ""
    return "this kernel has no freezer cgroup of version 1, which the linux launcher of Mesos needs"


def find(name: str) -> list[Path]:
    """Those of one agent, in all hierarchies, innermost first."""
    tops = (Path(mount, name) for mount in _mounts())
    return [Path(path) for top in tops for path, _, _ in os.walk(top, topdown=False)]


def claim(names: Iterable[str]) -> None:
    """Where the machine has no freezer hierarchy, mount one, and hold it by a cgroup for each agent."""
    names = list(names)
    if not names or any(
        "freezer" in options for point, options in _mounts().items() if point != str(FREEZER)
    ):
        return
    with _locked():
        FREEZER.mkdir(exist_ok=True)
        if not FREEZER.is_mount():
            run.output(["mount", "-t", "cgroup", "-o", "freezer", "moorage-mesos", str(FREEZER)])
        for name in names:
            (FREEZER / name).mkdir(exist_ok=True)


def release(names: Iterable[str]) -> None:
    """Remove the cgroups of agents, whose processes are dead, and our hierarchy when nobody has any in it."""
    for name in names:
        _remove(name)
    if not FREEZER.is_mount():
        return
    with _locked():
        if FREEZER.is_mount() and not any(FREEZER.glob(PREFIX + "*")):
            run.output(["umount", str(FREEZER)])


@contextlib.contextmanager
def frozen(name: str, pids: Iterable[int]) -> Iterator[None]:
    """These processes in a cgroup that is frozen, as those of a container that is paused. They have to be
    killed meanwhile: it is removed once they are thawed."""
    claim([name])
    (top,) = (Path(mount) for mount, options in _mounts().items() if "freezer" in options)
    group = top / name
    group.mkdir(exist_ok=True)
    state = group / "freezer.state"
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        state.write_text("FROZEN")
        end = time.monotonic() + 10
        while state.read_text() != "FROZEN\n":
            if time.monotonic() > end:
                raise MesosError(f"{group} does not freeze")
            time.sleep(0.01)
        yield
    finally:
        state.write_text("THAWED")
        release([name])


def _remove(name: str) -> None:
    """A process that was killed stays in its cgroup for a moment."""
    end = time.monotonic() + 5
    while cgroups := find(name):
        for cgroup in cgroups:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
        if time.monotonic() > end:
            raise MesosError(f"cgroups that cannot be removed: {cgroups}")
        time.sleep(0.01)


def _mounts() -> dict[str, list[str]]:
    """Hierarchies: mount point and options."""
    return {mount.point: mount.options for mount in machine.mounts() if mount.kind == "cgroup"}


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Clusters of several processes share the hierarchy."""
    OWN.mkdir(exist_ok=True)
    with (OWN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
