"""What runs on this machine, from /proc. Standard library only: the executor carries this module along."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NamedTuple


class Process(NamedTuple):
    state: str
    parent: int
    group: int
    session: int
    started: str  # with the pid, tells one process from a later one of the same number


def stat(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return Process(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])


def alive(pid: int) -> bool:
    """A process whose first thread is a zombie still has its sockets as long as it has other threads."""
    process = stat(pid)
    if process is None or process.state != "Z":
        return process is not None
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def table() -> dict[int, Process]:
    found = ((int(name), stat(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return {pid: process for pid, process in found if process is not None}


def environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def family(roots: set[int]) -> set[int]:
    """``roots``, their descendants, and all in the sessions and process groups of these, but the caller's."""
    processes, found, size = table(), set(roots), 0
    while size != len(found):
        size = len(found)
        known = [processes[pid] for pid in found if pid in processes]
        groups = {process.group for process in known} - {os.getpgid(0), 0}
        sessions = {process.session for process in known} - {os.getsid(0), 0}
        found |= {
            pid
            for pid, process in processes.items()
            if process.parent in found or process.group in groups or process.session in sessions
        }
    return found - {os.getpid(), 1}


def send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
