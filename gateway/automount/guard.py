"""The guard of an automount directory: ``python -m moorage.gateway.automount.guard ROOT DEVICE MOUNT``.

Started by the service with its lock and the descriptors of its autofs; waits until the service has ended,
however it did. Then nobody answers the kernel any more: who goes to a name that is not mounted must get
ENOENT at once, not wait, nor be ended by the signal of a broken pipe (so the pipe is kept open here), nor see
a directory that looks like an empty volume. The lock goes with this process: a next service comes after that.

It is in the process group of the service, since only that may change an autofs, and then only until the
kernel was told to ask no more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from moorage.gateway.automount.autofs import Autofs, silence


class Guard:
    """The service's side."""

    def __init__(self, autofs: Autofs, lock: int) -> None:
        descriptors = autofs.descriptors
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, autofs.root, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(*descriptors, autofs.pipe, lock),
            cwd="/",
        )

    def end(self) -> None:
        """Returns when it has done what it is there for. May be repeated."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(root: str, device: int, mount: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C is for the service
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for name in os.listdir(root):
        with contextlib.suppress(OSError):  # something is mounted there
            os.rmdir(os.path.join(root, name))
    silence(device, mount)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
