"""What processes cost: CPU seconds from /proc, and which process listens on which port.

Linux only. A process that ended or belongs to somebody else has no figure, and is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LISTEN = "0A"


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """User and system time of each process since its start, all its threads."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
    return found


def listening_pids(ports: Iterable[int]) -> dict[int, int]:
    """Port to the process on this machine that listens on it over TCP, for those that can be seen."""
    inodes = _listening_inodes(set(ports))
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            for inode in _socket_inodes(int(entry)):
                if inode in inodes:
                    found[inodes[inode]] = int(entry)
    return found


def _listening_inodes(ports: set[int]) -> dict[int, int]:
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == _LISTEN and port in ports:
                    inodes[int(fields[9])] = port
    return inodes


def _socket_inodes(pid: int) -> list[int]:
    inodes = []
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(directory):
            with contextlib.suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"{directory}/{descriptor}"))
                if match:
                    inodes.append(int(match[1]))
    return inodes
