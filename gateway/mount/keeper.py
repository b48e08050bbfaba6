"""The keeper of one mount: ``python -m moorage.gateway.mount.keeper DIRECTORY``.

Owns the session that shows the volume to the kernel (``ways.py``), and the daemon's life: it starts the
daemon, and starts it again when it ends, however often; that is how a daemon is upgraded. It ends with its
session, or when the daemon gives up before anything was mounted. It must never need memory from the device
that it serves (its memory is locked), and never wait for the daemon where the kernel does not wait for it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from moorage.gateway.mount import ways
from moorage.gateway.mount.record import FAILED, MOUNTED, Place
from moorage.gateway.mount.writeback import become_io_flusher, lock_memory

log = logging.getLogger("moorage.keeper")

RESTART_S, RESTART_MAX_S = 0.05, 2.0
STEADY_S = 10.0  # a daemon that lived for so long is restarted at once
STOP_TIMEOUT_S = 15.0


def main(directory: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    place = Place(Path(directory))
    lock = os.open(place.keeper_lock, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(lock, b"%d" % os.getpid())
    os.chdir("/")
    lock_memory()
    become_io_flusher()
    session = ways.session(place, place.load())
    daemon = Daemon(place, session)
    thread = threading.Thread(target=daemon.supervise, name="supervisor")
    thread.start()
    try:
        session.serve()
    finally:
        daemon.stop()
        thread.join()


class Daemon:
    """The process behind the socket. Its stdin is a pipe whose end tells it that the keeper is gone."""

    def __init__(self, place: Place, session: ways.Session) -> None:
        self._place, self._session = place, session
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def supervise(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            began = time.monotonic()
            code = self._run()
            if self._ending.is_set():
                return
            if code == FAILED or (code > 0 and self._place.load().phase != MOUNTED):
                log.info("the mount has failed: the daemon ended with %d", code)
                self._session.end()
                return
            lived = time.monotonic() - began
            pause = RESTART_S if lived > STEADY_S else min(max(pause, RESTART_S) * 2, RESTART_MAX_S)
            log.warning("the daemon ended with %d, starting it again in %.2f s", code, pause)

    def _run(self) -> int:
        command = [sys.executable, "-m", "moorage.gateway.mount.daemon", str(self._place.directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        if self._ending.is_set():
            self._end(self._process)
        return self._process.wait()

    def stop(self) -> None:
        """Let it write what it has and detach; after a time, end it."""
        self._ending.set()
        if self._process is not None:
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the daemon does not end, killing it")
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
