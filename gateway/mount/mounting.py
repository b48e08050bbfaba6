"""Mount a volume on this host: check, note, start the keeper, wait until it is there.

Owns the checks that come before anything is done, and the words for what is in the way. The work is the
daemon's: this one may die at any moment, and the mount comes to an end without it, good or bad.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from moorage.gateway.mount import filesystem, system, ways
from moorage.gateway.mount.record import MOUNTED, Place, Record, StateDirectory, Status
from moorage.gateway.mount.unmounting import UNMOUNT_TIMEOUT_S, clean_up, end, unmount
from moorage.wire.errors import Busy, Invalid, Unavailable, from_wire

POLL_S = 0.01


@dataclass(frozen=True)
class Mount:
    """A volume mounted on this host, also after this process. An async context manager that unmounts.

    ``device``: its block device; ``state``: "serving", "restarting" (its daemon), "lost" (all I/O fails,
    ``reason`` says why), "dead" (to be cleaned up), or a step of mounting; ``times``: boot clock by step, in
    seconds.
    """

    id: str
    state_dir: str
    volume: str
    target: str
    device: str
    fs: str
    epoch: int
    read_only: bool
    state: str
    reason: str
    by: str
    times: dict[str, float]

    async def unmount(self, *, force: bool = False, timeout: float = UNMOUNT_TIMEOUT_S) -> None:
        """Write back, unmount, let the volume go. Raises Busy that names who uses it; DeadlineExceeded when
        the volume does not take what is to be written back: ``force`` gives that up."""
        await unmount(Place(Path(self.state_dir) / self.id), force=force, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unmount()


async def mount(directory: StateDirectory, record: Record) -> Mount:
    """Carry out ``record``. Raises Busy (mounted or held elsewhere), Invalid, NotFound, Denied, or what the
    daemon met; nothing is left behind then."""
    record = dataclasses.replace(record, via=check(record).name)
    directory.prepare()
    await clean_up(directory)
    with directory.created(record, lambda: _check_free(directory, record)) as place:
        keeper = _start(place)
        # Whoever called may live on for months: it must not keep a zombie once this keeper has ended.
        threading.Thread(target=keeper.wait, name=f"reaper of {keeper.pid}", daemon=True).start()
        try:
            await _until_served(place, keeper)
        except BaseException:
            keeper.kill()  # with the session all that waits in the kernel ends
            await asyncio.to_thread(keeper.wait)
            await end(place)
            raise
        return describe(place)


def check_host() -> ways.Way:
    """The way to take on this host. Raises Denied, or Unavailable that names what is missing."""
    system.check_root()
    return ways.choose()


def check(record: Record) -> ways.Way:
    """The way to take, where nothing is in the way."""
    way = check_host()
    target = Path(record.target)
    if not target.exists():
        raise Invalid(f"mount point {target} does not exist: create it (mkdir -p {target})")
    if not target.is_dir():
        raise Invalid(f"mount point {target} is not a directory")
    if record.fs and record.fs not in filesystem.KINDS:
        raise Invalid(f"file system {record.fs!r} is not supported: use {' or '.join(filesystem.KINDS)}")
    if record.overwrite and record.read_only:
        raise Invalid("--overwrite formats the volume, --read-only does not write: choose one")
    for name in ("blkid", "mount", "umount", *([f"mkfs.{record.fs}"] if record.fs else [])):
        system.program(name)
    return way


def _check_free(directory: StateDirectory, record: Record) -> None:
    for place in directory.places():
        other = place.load()
        if other.volume == record.volume and other.registry == record.registry:
            raise Busy(f"volume {record.volume!r} is mounted at {other.target} already", target=other.target)
        if other.target == record.target:
            raise Busy(f"{record.target} is the mount point of volume {other.volume!r} already")
    entry = system.mounted_at(record.target)
    if entry is not None:
        raise Busy(f"{record.target} is a mount point already, of {entry.source}: choose another")


def _start(place: Place) -> subprocess.Popen[bytes]:
    """In a session of its own: it outlives who asked, and no terminal's Ctrl-C is for it."""
    with place.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "moorage.gateway.mount.keeper", str(place.directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},  # its memory is locked: no arena for each thread
        )


async def _until_served(place: Place, keeper: subprocess.Popen[bytes]) -> None:
    while (status := place.status()).state != "serving":
        if status.state == "failed" and status.error is not None:
            raise from_wire(**status.error)
        if status.state == "lost":
            raise Unavailable(f"the volume was lost at once: {status.reason}")
        if keeper.poll() is not None:
            raise Unavailable(f"the mount has failed, its last words are: {place.last_words()}")
        await asyncio.sleep(POLL_S)


def describe(place: Place) -> Mount:
    record, status = place.load(), place.status()
    return Mount(
        record.id,
        str(place.directory.parent),
        record.volume,
        record.target,
        record.device,
        record.fs,
        status.epoch,
        record.read_only,
        _state(place, record, status),
        status.reason,
        record.by,
        status.times,
    )


def _state(place: Place, record: Record, status: Status) -> str:
    if not place.keeper_lives():
        return "dead"
    if record.phase == MOUNTED and status.state not in ("lost", "failed"):
        # However far a later life has come: what is mounted stays, its requests wait for it.
        lives = os.path.exists(f"/proc/{status.pid}")
        return "serving" if lives and status.state == "serving" else "restarting"
    return status.state


def mounts(directory: StateDirectory) -> list[Mount]:
    """Every mount that is noted here, the dead ones too."""
    found = []
    for place in directory.places():
        with contextlib.suppress(FileNotFoundError):  # it ends just now
            found.append(describe(place))
    return found
