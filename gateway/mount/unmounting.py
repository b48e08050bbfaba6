"""Unmount, and put right what dead mounts left: file systems, loop devices, FUSE sessions, notes.

Owns the way back, from any step that a mount may have come to; each step is idempotent, and is taken by what
the system shows rather than by what was noted. It must never pull a file system from under a process that
still uses it: that one is named, and everything stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from moorage.gateway.mount import system
from moorage.gateway.mount.record import Place, StateDirectory
from moorage.gateway.mount.ways import way_of
from moorage.wire.errors import Busy, DeadlineExceeded, Invalid, NotFound

log = logging.getLogger(__name__)

UNMOUNT_TIMEOUT_S = 60.0
ENDING_TIMEOUT_S = 20.0
KEEPER_TIMEOUT_S = 5.0  # once its session is unmounted
POLL_S = 0.01


def find(directory: StateDirectory, what: str) -> Place:
    """The mount at a path, or of a volume. NotFound that says what there is."""
    target = os.path.abspath(what)
    found = [
        place
        for place in directory.places()
        if (record := place.load()).target == target or record.volume == what
    ]
    if not found:
        known = ", ".join(place.load().target for place in directory.places())
        raise NotFound(f"{what} is not mounted by Moorage here: mounted are {known or 'none'}")
    if len(found) > 1:
        raise Invalid(f"{what} means several mounts: give the path")
    return found[0]


async def unmount(place: Place, *, force: bool = False, timeout: float = UNMOUNT_TIMEOUT_S) -> None:
    """Write back, unmount, detach. Raises Busy that names who uses it; DeadlineExceeded when the volume does
    not take what is to be written back: ``force`` gives that up (it is lost)."""
    with place.worked_on():
        if force:
            await _kill(place)
        await end(place, timeout)


async def _kill(place: Place) -> None:
    """With the keeper goes its session, and with that all that waits in the kernel; its daemon ends in order.
    One that is frozen by its control group (a container that is paused) dies only when that is thawed, and
    runs no more until then; one in a container with process ids of its own cannot be named. What waits for
    such a keeper is failed without it."""
    _signal(_keeper_pid(place), signal.SIGKILL)
    try:
        await _until(lambda: not place.keeper_lives(), lambda: "its keeper lives on", KEEPER_TIMEOUT_S)
    except Busy:
        _signal(_daemon_pid(place), signal.SIGKILL)
        await way_of(place.load()).abandon(place)


async def end(place: Place, timeout: float = UNMOUNT_TIMEOUT_S) -> None:
    """Take back everything that there is of a mount, then forget it. Its keeper lives or is dead."""
    way = way_of(place.load())
    had_keeper = place.keeper_lives()
    if not had_keeper:
        await _end_daemon(place)
        await way.abandon(place)  # all that waits in the kernel ends with an error
    devices = way.devices(place)
    for device in devices:
        for entry in reversed(system.mounts_of(device)):
            await unmount_file_system(entry, timeout)
        await way.release(place, device)
    await _until(lambda: not way.devices(place), lambda: _who_keeps(devices))
    await way.end_session(place)
    if had_keeper:
        await _end_keeper(place)
        await _end_daemon(place)
    await asyncio.to_thread(shutil.rmtree, place.directory, ignore_errors=True)


async def clean_up(directory: StateDirectory) -> list[str]:
    """End the mounts whose keeper is dead. What cannot be ended yet stays, and is said: one line each. Where
    a record cannot be read (Corrupt, VersionMismatch), nothing is ended."""
    problems, places = [], directory.places()
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            place.load()
    for place in places:
        try:
            with place.worked_on():
                if not place.keeper_lives():
                    log.info("the mount %s is dead, cleaning up", place.directory)
                    await end(place)
        except FileNotFoundError:
            pass  # somebody else was faster
        except (Busy, system.ProgramFailed, DeadlineExceeded) as error:
            problems.append(f"{place.directory}: {error}")
    return problems


async def unmount_file_system(entry: system.MountEntry, timeout: float) -> None:
    """Raises Busy that names who uses it."""
    try:
        await system.unmount(entry, timeout)
    except DeadlineExceeded:
        raise DeadlineExceeded(
            f"{entry.target} is not unmounted yet, its volume does not take what is to be written within "
            f"{timeout:g} s: see `moorage mounts` and `moorage status`; `moorage umount --force` gives up "
            "what was not written"
        ) from None


def _who_keeps(devices: list[str]) -> str:
    """A mount in another namespace (a container's) keeps a device after it was unmounted here."""
    shown = ", ".join(devices)
    return f"{shown} is still mounted in another mount namespace, of a container perhaps: end that first"


async def _until(
    condition: Callable[[], bool], problem: Callable[[], str], timeout: float = ENDING_TIMEOUT_S
) -> None:
    end = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise Busy(problem())
        await asyncio.sleep(POLL_S)


async def _end_keeper(place: Place) -> None:
    """It ends with its session; that stays where a mount namespace made meanwhile (a container's) has a copy
    of the FUSE mount. Nothing is left to be written by then, and its daemon ends in order without it."""
    try:
        await _until(lambda: not place.keeper_lives(), lambda: "its keeper does not end", KEEPER_TIMEOUT_S)
    except Busy:
        _signal(_keeper_pid(place), signal.SIGKILL)


async def _end_daemon(place: Place) -> None:
    """It ends by itself when its keeper does, and lets the volume go; unless it is frozen."""
    try:
        await _until(lambda: not _daemon_pid(place), lambda: "its daemon does not end")
    except Busy:
        _signal(_daemon_pid(place), signal.SIGKILL)


def _daemon_pid(place: Place) -> int:
    """0 when it has ended."""
    return _verified(place.status().pid, place)


def _keeper_pid(place: Place) -> int:
    """0 when it has ended, or has no number here that is known: a container may have numbers of its own."""
    return _verified(int(place.keeper_lock.read_text() or 0), place) if place.keeper_lives() else 0


def _verified(pid: int, place: Place) -> int:
    """0 where it is another process: ids are reused, and mean others in a container. Look at what it runs."""
    try:
        runs = str(place.directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return 0
    return pid if runs else 0


def _signal(pid: int, number: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
