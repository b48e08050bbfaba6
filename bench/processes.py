"""What processes cost: CPU seconds and memory from /proc, their files, and which one listens on which port.

Linux only. A process that ended or belongs to somebody else has no figure, and is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from moorage.wire.errors import NotFound

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LISTEN = "0A"


class Memory(NamedTuple):
    """Of one process, in bytes. ``private``: without what the kernel keeps of files and may drop."""

    resident: int
    private: int
    peak: int


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """User and system time of each process since its start, all its threads."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
    return found


def disk_usage(directory: Path) -> int:
    """Bytes on disk of all files below; LMDB's are sparse."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def memory_of(pid: int) -> Memory:
    """Raises NotFound when there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as error:
        raise NotFound(f"process {pid}: {error.strerror}") from None
    return parse_status(lines)


def parse_status(lines: Iterable[str]) -> Memory:
    """Of ``/proc/PID/status``: in KiB there."""
    rows = dict(line.split(":", 1) for line in lines if ":" in line)

    def size(name: str) -> int:
        return int(rows[name].split()[0]) * 1024

    return Memory(size("VmRSS"), size("RssAnon"), size("VmHWM"))


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
