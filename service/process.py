"""Which process this is, said so that another one can be sure of it before it sends a signal.

A pid alone proves nothing: it may be of another machine, another container, or used again. Owns what is said
(``identity``) and the check (``open_process``). Must never hand out a process that is not provably the one
that said so: the same boot of the same kernel, the same pid namespace, the same start.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from moorage.wire.errors import Invalid

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_START_FIELD = 19  # "starttime" of proc(5), counted from behind the name, which may hold anything


def identity() -> dict[str, Any]:
    """``pid``, ``started`` (ticks since the boot), ``boot`` (the kernel's run), ``namespace`` (of pids)."""
    return {"pid": os.getpid(), "started": _started("self"), "boot": _boot(), "namespace": _namespace()}


def open_process(said: dict[str, Any]) -> int:
    """A pidfd of the process that ``said`` so; the caller closes it. Raises Invalid that says why it cannot
    be had: it is not of this machine, it is gone, or somebody else has its pid now."""
    if said.get("boot") != _boot():
        raise Invalid("it runs on another machine")
    if said.get("namespace") != _namespace():
        raise Invalid("it runs in another container")
    pid = int(said["pid"])
    gone = f"the process that was {pid} has ended"
    try:
        opened = os.pidfd_open(pid)
    except OSError as error:
        raise Invalid(f"{gone} ({error.strerror})") from None
    try:
        # The process that has the pid now has it since ``started``: so it had it when it was opened, too.
        if _started(pid) != said.get("started"):
            raise Invalid(f"{gone}: another one has its pid")
    except OSError:
        os.close(opened)
        raise Invalid(gone) from None
    except BaseException:
        os.close(opened)
        raise
    return opened


def _started(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_FIELD])


def _boot() -> str:
    return _BOOT.read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
