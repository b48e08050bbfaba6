"""What this machine can do, and what must be installed on it."""

from __future__ import annotations

import os
import platform
import random
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import run
from .errors import MesosError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("binutils", "g++", "libapr1", "libsasl2-2", "libsvn1", "python3")


def unusable() -> str:
    """Why the published library cannot run here at all, or nothing."""
    system, processor = platform.system(), platform.machine()
    if (system, processor) != ("Linux", "x86_64"):
        return f"the published Mesos library is for Linux on x86_64, not for {system} on {processor}"
    return ""


def unprivileged() -> str:
    """Why nothing can be mounted here, or nothing."""
    if os.geteuid() != 0:
        return "mounts and the linux launcher of Mesos need root"
    probe = run.attempt(["unshare", "--mount", "mount", "-t", "tmpfs", "moorage-probe", "/mnt"])
    if probe.returncode:
        return f"nothing can be mounted here: {probe.stdout.strip()}"
    return ""


def check() -> None:
    if reason := unusable():
        raise MesosError(reason)


def ensure_packages() -> None:
    run.output([str(ROOT / "packages" / "ensure"), *PACKAGES])


class Mount(NamedTuple):
    point: str
    kind: str
    options: list[str]


def mounts() -> list[Mount]:
    rows = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Mount(unescaped(point), kind, options.split(",")) for _, point, kind, options, *_ in rows]


def mounts_below(directory: Path) -> list[str]:
    """Innermost first."""
    points = (mount.point for mount in mounts())
    return sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True)


def unescaped(point: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)


def free_network(ports: Sequence[int]) -> str:
    """Three bytes of a loopback network, ``127.a.b``, in which nobody listens on these ports."""
    for _ in range(100):
        network = f"127.{random.randint(64, 254)}.{random.randint(0, 255)}"
        if all(_free(f"{network}.{last}", port) for last in (1, 11, 12, 13) for port in ports):
            return network
    raise MesosError("no free loopback network found")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
