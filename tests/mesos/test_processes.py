"""Who is alive, and who belongs together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from . import processes

# The first thread ends; the second one holds the process, and its sockets, for as long as stdin is open.
HEADLESS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def until(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def state(pid: int) -> str:
    process = processes.stat(pid)
    return process.state if process else ""


def test_a_process_without_its_first_thread_is_alive() -> None:
    argv = [sys.executable, "-c", HEADLESS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        until(lambda: state(process.pid) == "Z")
        assert processes.alive(process.pid)
        process.kill()
        until(lambda: not processes.alive(process.pid))


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        until(lambda: state(process.pid) == "Z")
        assert not processes.alive(process.pid)


def test_a_family_has_those_that_left_their_parent() -> None:
    script = "setsid sh -c 'sleep 1000 & sleep 1000 & wait' & echo; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        until(lambda: len(processes.family({process.pid})) == 4)
        found = processes.family({process.pid})
        (shell,) = (pid for pid in found if processes.stat(pid).parent == process.pid)  # type: ignore[union-attr]
        os.kill(shell, signal.SIGKILL)
        sleeping = found - {process.pid, shell}
        until(lambda: not processes.alive(shell))
        one = min(sleeping)
        assert processes.family({one}) >= sleeping, "by their session"
        assert os.getpid() not in processes.family({one})
        processes.send(found, signal.SIGKILL)
        until(lambda: not any(map(processes.alive, found)))
