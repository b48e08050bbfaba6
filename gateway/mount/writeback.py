"""Processes below a file system: what writing back dirty pages may need must not need pages written back.

Owns two calls to the kernel. Where they are refused (a container without the capabilities), the log says so,
and the process goes on: it only fares worse when memory is short.
"""

from __future__ import annotations

import ctypes
import logging
import os

log = logging.getLogger(__name__)

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_SET_IO_FLUSHER = 57


def become_io_flusher() -> None:
    """Allocations of this process start no I/O that it might have to serve (Linux 5.6, CAP_SYS_RESOURCE)."""
    _call("prctl(PR_SET_IO_FLUSHER)", "prctl", _PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def lock_memory() -> None:
    """Pages that this process has touched, now or later, are never swapped out (CAP_IPC_LOCK)."""
    _call("mlockall", "mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def _call(shown: str, name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        log.warning("%s is refused: %s", shown, os.strerror(ctypes.get_errno()))
