"""The process that undoes a fault: when it is told to, and also when the drill that made it is gone.

It is run as a file, with the standard library only. Its stdin is a pipe that the drill holds open: its end,
for whatever reason, is the sign. Signals of the terminal do not end it. Owns the undoing; must never do it
twice.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

COMMAND_S = 60


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    todo = json.loads(sys.argv[1])
    sys.stdout.write("armed\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    return undo(todo["thaw"], todo["command"])


def undo(thaw: int | None, command: str) -> int:
    """``thaw``: a pidfd that gets SIGCONT; ``command``: for the shell. Returns 0 when the fault is undone."""
    if thaw is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(thaw, signal.SIGCONT)
    if not command:
        return 0
    try:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
