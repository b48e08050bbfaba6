"""What ``test_kernel_nbd.py`` has done in its guest: a mount through the kernel's nbd, and its mishaps.

Prints one line for each step, with the seconds that it took. Ends with a traceback, the log of the mount and
what the kernel said when a step fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import moorage
from moorage.gateway.mount import system
from moorage.gateway.mount.mounting import Mount, mounts
from moorage.gateway.mount.record import Place, StateDirectory, state_directory

VOLUME, AT = "data", Path("/run/mounted")
RECORD, RECORDS = 64 << 10, 48
GROWN = 128 << 20
SILENCE_MAX_S = 150.0  # a new daemon takes 5 s here, and much more beside other work
FROZEN_S = 5.0  # longer than the driver lets a request go unseen
STATE = StateDirectory(state_directory())


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Steps:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        say(f"STEP {now - self._began:6.1f} s  {what}")
        self._began = now


def content(number: int) -> bytes:
    return random.Random(number).randbytes(RECORD)


class Load(threading.Thread):
    """Writes records, each synced before the next, and reads them past the cache; what was synced counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._ending = threading.Event()
        self.rounds, self.longest_s = 0, 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work(random.Random(7))
        except BaseException as error:
            self.error = error

    def _work(self, chance: random.Random) -> None:
        synced: dict[int, int] = {}
        buffer = mmap.mmap(-1, RECORD)
        write = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        read = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        while not self._ending.is_set():
            began = time.monotonic()
            place = self.rounds % RECORDS
            assert os.pwrite(write, content(self.rounds), place * RECORD) == RECORD
            os.fsync(write)
            synced[place] = self.rounds
            place = chance.choice(sorted(synced))
            assert os.preadv(read, [buffer], place * RECORD) == RECORD
            assert buffer[:] == content(synced[place]), f"record {place} is not what was synced"
            self.rounds += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        os.close(read)
        os.close(write)

    def goes_on(self, rounds: int = 5) -> None:
        wanted = self.rounds + rounds
        until(lambda: self.rounds >= wanted or self.error is not None, "the load goes on")
        if self.error is not None:
            raise self.error

    def end(self) -> str:
        self._ending.set()
        self.join(SILENCE_MAX_S)
        assert self.error is None and not self.is_alive()
        return hashlib.sha256(self._path.read_bytes()).hexdigest()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SILENCE_MAX_S
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.02)


def place() -> Place:
    (found,) = STATE.places()
    return found


def pid() -> int:
    return place().status().pid


def new_daemon(number: int, old: int) -> None:
    os.kill(old, number)
    until(lambda: place().status().state == "serving" and pid() != old, "a new daemon serves")


def backends() -> list[str]:
    return [path.read_text().strip() for path in Path("/sys/block").glob("nbd*/backend")]


def kernel_has_nothing() -> None:
    assert not backends()
    assert not STATE.places()
    timeouts = {path.read_text() for path in Path("/sys/block").glob("nbd*/queue/io_timeout")}
    assert timeouts == {"30000\n"}, timeouts


def under_load(mount: Mount, steps: Steps) -> str:
    load = Load(AT / "load")
    load.start()
    load.goes_on()
    for number in (signal.SIGKILL, signal.SIGTERM):
        new_daemon(number, pid())
        load.goes_on()
        steps.done(
            f"a new daemon after {number.name}, the load goes on, longest round {load.longest_s:.1f} s"
        )
        load.longest_s = 0
    frozen = pid()
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    os.kill(frozen, signal.SIGCONT)
    load.goes_on()
    assert pid() == frozen and load.longest_s >= FROZEN_S - 1
    assert mount.device == "/dev/nbd0" and backends() == [str(place().directory)]
    steps.done(f"a daemon that was frozen for {FROZEN_S:.0f} s lost nothing")
    return load.end()


def reread(expected: str) -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert hashlib.sha256((AT / "load").read_bytes()).hexdigest() == expected


def filled() -> int:
    told = os.statvfs(AT)
    return told.f_blocks * told.f_frsize


async def main() -> None:
    steps = Steps()
    AT.mkdir()
    async with await moorage.connect() as cluster:
        steps.done("connected")
        mount = await cluster.mount(VOLUME, AT)
        assert Path("/sys/block/nbd0/ro").read_text() == "0\n"
        steps.done(f"mounted {mount.fs} on {mount.device}")
        expected = await asyncio.to_thread(under_load, mount, steps)

        before = filled()
        await cluster.resize(VOLUME, GROWN)
        await asyncio.to_thread(until, lambda: filled() > before * 3 // 2, "the mounted file system grows")
        steps.done(f"grew from {before >> 20} to {filled() >> 20} MiB while mounted")
        steps.done(await system.run("fstrim", "-v", str(AT)))
        reread(expected)
        await mount.unmount()
        kernel_has_nothing()
        steps.done("unmounted, nothing is left")

        await cluster.mount(VOLUME, AT)
        reread(expected)
        os.kill(int(place().keeper_lock.read_text()), signal.SIGKILL)
        until(lambda: mounts(STATE)[0].state == "dead", "the mount is dead")
        mount = await cluster.mount(VOLUME, AT)
        reread(expected)
        assert backends() == [str(place().directory)]
        steps.done("a mount whose keeper was killed is cleaned up by the next one")

        async with await cluster.attach(VOLUME, force=True):
            await asyncio.to_thread(until, lambda: mounts(STATE)[0].state == "lost", "the holder is fenced")
            with contextlib.suppress(OSError):
                (AT / "too late").write_bytes(b"x" * 4096)
            try:
                reread(expected)
                raise AssertionError("what a fenced mount reads may be old")
            except OSError as error:
                assert error.errno == errno.EIO
            await mount.unmount(force=True)
        kernel_has_nothing()
        steps.done("a fenced mount has I/O errors, and says why")

        mount = await cluster.mount(VOLUME, AT)
        reread(expected)
        (AT / "not synced").write_bytes(b"x" * (1 << 20))
        os.kill(pid(), signal.SIGSTOP)
        await mount.unmount(force=True)
        kernel_has_nothing()
        steps.done("a mount with a frozen daemon is given up by force")
    say(f"CONTENT {expected}")


def explain() -> None:
    say(traceback.format_exc())
    for each in STATE.places():
        say(f"{each.record_file.read_text()}\n{each.status()}\n{each.log.read_text()}")
    say(subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout[-6000:])


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except BaseException:
        explain()
        sys.exit(1)
