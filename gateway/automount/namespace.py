"""The service of one automount directory: what it shows, mounts at first access, and unmounts when idle.

Owns the decisions; the kernel waits for them (``autofs.py``), and mounting is ``gateway/mount``'s. A volume
is mounted below the state directory and bound to its name, since only processes of this one's group may
mount in an autofs; one that this host has mounted already, for whomever, is bound too. Everything is seen in
the system, so that a service that was killed is followed by one that goes on.

Never: let who goes to a name wait longer than the timeout, or unmount what somebody uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from moorage.client import uri
from moorage.client.cluster import Cluster
from moorage.gateway.automount import elsewhere
from moorage.gateway.automount.autofs import PACKET_MAX, TYPE, Autofs, Request, check, parse
from moorage.gateway.automount.guard import Guard
from moorage.gateway.mount import system
from moorage.gateway.mount.mounting import Mount, describe, mounts
from moorage.gateway.mount.record import StateDirectory
from moorage.wire.errors import (
    Busy,
    DeadlineExceeded,
    Denied,
    Invalid,
    MoorageError,
    NoSpace,
    NotFound,
    Unavailable,
)

log = logging.getLogger(__name__)

REFRESH_S = 10.0  # of the names; who goes to one that is not shown yet is served all the same
TICKS_PER_IDLE = 4
TICK_MIN_S, TICK_MAX_S = 0.25, 30.0
AT_ONCE_MAX = 8  # mounts under way: somebody may go through all of the names
ENDING_S = 60.0  # for what is under way when told to end
OTHERS_SHOWN = 5
GOING = ("serving", "restarting")
# First match wins. Who goes to a name gets this errno, the log has the reason.
ERRNO: tuple[tuple[type[MoorageError], int], ...] = (
    (Busy, errno.EBUSY),
    (NoSpace, errno.ENOSPC),
    (Invalid, errno.EINVAL),
    (Denied, errno.EACCES),
    (DeadlineExceeded, errno.ETIMEDOUT),
    (Unavailable, errno.EHOSTDOWN),
    (MoorageError, errno.EIO),
)


class Namespace:
    """``chosen``: volumes with options of their own, shown also before there are such volumes."""

    def __init__(
        self,
        cluster: Cluster,
        directory: StateDirectory,
        root: str,
        *,
        chosen: list[str],
        idle: float,
        timeout: float,
    ) -> None:
        self._cluster = cluster
        self._directory = directory
        self._root = root
        self._base = directory.path / "automount" / quote(root, safe="")
        self._by = f"automount {root}"
        self._chosen = self._read(chosen)
        self._idle = idle
        self._timeout = timeout
        self._busy: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by name: one thing at a time
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gone = asyncio.Event()  # the autofs is not ours any more
        self._told: dict[str, str] = {}  # what was said of a name last
        self._ending = False

    def _read(self, chosen: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text in chosen:
            address = uri.parse_volume(text)
            if address.name in found:
                raise Invalid(f"{text}: volume {address.name!r} is given twice")
            found[address.name] = str(address)
        return found

    async def run(self, *, until: asyncio.Event, ready: Callable[[list[str]], None]) -> list[str]:
        """Serve until ``until`` is set; ``ready`` hears what a former service left mounted. Returns what is
        still mounted at the end, since it is in use: the directory stays then, for the next service."""
        check(self._root)
        self._directory.prepare()
        with self._held() as lock:
            self._autofs = Autofs.open(self._root)
            guard = Guard(self._autofs, lock)
            loop = asyncio.get_running_loop()
            work: list[asyncio.Task[Any]] = []
            try:
                self._autofs.set_idle(max(1, round(self._idle)))
                loop.add_reader(self._autofs.pipe, self._read_pipe)
                await self._refresh()
                work += [asyncio.create_task(each) for each in (self._refreshing(), self._expiring())]
                ready(self._bound())
                work += [asyncio.create_task(event.wait()) for event in (until, self._gone)]
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if self._gone.is_set():
                    raise Unavailable(f"{self._root} was taken from this service by somebody else")
                await self._leave_all()
            finally:
                for task in work:
                    task.cancel()
                loop.remove_reader(self._autofs.pipe)
                await asyncio.to_thread(guard.end)
                self._autofs.close()
            return self._unmount_root()

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._base.with_name(f"{self._base.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another `moorage automount` serves {self._root} already") from None
            yield file.fileno()

    # -- what is shown -------------------------------------------------------------------------------

    async def _refreshing(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._refresh()

    async def _refresh(self) -> None:
        """A name is a directory of the autofs. Without the cluster the names stay as they are."""
        try:
            volumes = {volume.name for volume in await self._cluster.list_volumes()}
        except MoorageError as error:
            self._tell("", f"the volumes are not to be listed now: {error}")
            return
        self._told.pop("", None)
        wanted = volumes | self._chosen.keys()
        shown = set(os.listdir(self._root))
        for name in wanted - shown:
            self._show(name)
        for name in (shown | self._busy.keys()) - wanted:
            if not self._busy[name].locked():
                del self._busy[name]
                self._hide(name)

    def _show(self, name: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path(name), 0o755)

    def _hide(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it is not there, or something is mounted there
            os.rmdir(self._path(name))

    # -- what the kernel asks ------------------------------------------------------------------------

    def _read_pipe(self) -> None:
        packet = os.read(self._autofs.pipe, PACKET_MAX)
        if not packet:
            asyncio.get_running_loop().remove_reader(self._autofs.pipe)
            self._gone.set()
            return
        request = parse(packet)
        work = self._access(request) if request.access else self._expire(request)
        task = asyncio.create_task(work, name=f"automount {request.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _access(self, request: Request) -> None:
        """The answer is due after the timeout; what is under way goes on behind it."""
        coming = asyncio.create_task(self._outcome(request), name=f"mount {request.name}")
        self._tasks.add(coming)
        coming.add_done_callback(self._tasks.discard)
        await asyncio.wait((coming,), timeout=self._timeout)
        if not coming.done():
            path = self._path(request.name)
            log.warning("%s is not mounted after %g s, and goes on", path, self._timeout)
        number = coming.result() if coming.done() else errno.ETIMEDOUT
        if number:
            self._autofs.fail(request.token, number)
        else:
            self._autofs.ready(request.token)

    async def _outcome(self, request: Request) -> int:
        """0, or the errno for who wanted it; the reason is in the log."""
        path = self._path(request.name)
        try:
            await self._come(request.name)
        except NotFound:
            return errno.ENOENT
        except MoorageError as error:
            log.warning("%s, wanted by pid %d: %s", path, request.pid, error)
            return next(number for kind, number in ERRNO if isinstance(error, kind))
        except Exception:
            log.exception("%s, wanted by pid %d", path, request.pid)
            return errno.EIO
        return 0

    async def _expire(self, request: Request) -> None:
        try:
            async with self._busy[request.name]:
                await self._go(request.name)
        except MoorageError as error:
            self._tell(request.name, f"it stays mounted: {error}")
            self._autofs.fail(request.token, errno.EBUSY)
        else:
            log.info("%s was idle, it is unmounted", self._path(request.name))
            self._autofs.ready(request.token)

    # -- mounting ------------------------------------------------------------------------------------

    async def _come(self, name: str) -> None:
        if self._ending:
            raise Unavailable("the automount service is ending")
        if not uri.NAME.fullmatch(name):
            raise NotFound(f"{name!r} is not the name of a volume")
        async with self._busy[name]:
            if self._is_bound(name):
                return
            try:
                async with self._at_once:
                    found = await self._mounted(name)
            except NotFound:
                self._hide(name)
                raise
            self._show(name)
            await system.run("mount", "--bind", found.target, self._path(name))
            self._told.pop(name, None)
            log.info("%s is mounted (%s, epoch %d)", self._path(name), found.device, found.epoch)

    async def _mounted(self, name: str) -> Mount:
        found = self._mount_of(name)
        if found is not None and found.state not in GOING:
            if found.by != self._by and found.state != "dead":
                raise Busy(f"it is mounted at {found.target}, and {found.state}: {found.reason}")
            await self._take_down(found)
            found = None
        if found is not None:
            return found
        base = self._base / name
        base.mkdir(exist_ok=True)
        wanted = self._chosen.get(name, f"moorage:///{name}")
        return await self._cluster.mount(wanted, base, state_dir=self._directory.path, by=self._by)

    def _mount_of(self, name: str) -> Mount | None:
        wanted = (name, self._cluster.config.registry)
        for place in self._directory.places():
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                record = place.load()
                if (record.volume, record.registry) == wanted:
                    return describe(place)
        return None

    # -- unmounting ----------------------------------------------------------------------------------

    async def _go(self, name: str) -> None:
        """Raises Busy that says who uses it; then it is there as before."""
        found = self._mount_of(name)
        if found is None or found.by != self._by:
            if self._is_bound(name):
                await self._unbind(name)
            return
        await asyncio.to_thread(self._check_nobody_else, name, found)
        try:
            await self._take_down(found)
        except MoorageError:
            if not self._is_bound(name) and system.mounted_at(found.target) is not None:
                await system.run("mount", "--bind", found.target, self._path(name))
            raise

    async def _take_down(self, found: Mount) -> None:
        await found.unmount()
        with contextlib.suppress(OSError):
            os.rmdir(found.target)

    async def _unbind(self, name: str) -> None:
        try:
            await system.run("umount", self._path(name))
        except system.ProgramFailed as error:
            raise Busy(f"{self._path(name)} is in use") from error

    def _check_nobody_else(self, name: str, found: Mount) -> None:
        entry = system.mounted_at(found.target)
        if entry is not None:
            others = elsewhere.other_mounts(entry.device, {found.target, self._path(name)})
            if others:
                raise Busy(f"it is mounted at {', '.join(others[:OTHERS_SHOWN])}, too")

    async def _expiring(self) -> None:
        tick = min(max(self._idle / TICKS_PER_IDLE, TICK_MIN_S), TICK_MAX_S)
        while True:
            await asyncio.sleep(tick)
            while await asyncio.to_thread(self._autofs.expire):
                pass
            for found in mounts(self._directory):
                if found.by == self._by:
                    await self._look_after(found)

    async def _look_after(self, found: Mount) -> None:
        """Lost volumes are let go, so that the next access mounts them anew; so is one that no name is bound
        to: its service was killed on the way."""
        name = found.volume
        if self._busy[name].locked() or (found.state in GOING and self._is_bound(name)):
            return
        async with self._busy[name]:
            try:
                await self._go(name)
                log.warning("%s was %s, it is unmounted: %s", self._path(name), found.state, found.reason)
            except MoorageError as error:
                self._tell(name, f"it is {found.state} ({found.reason}) and cannot be unmounted yet: {error}")

    async def _leave_all(self) -> None:
        """Unmount what nobody uses; the rest stays."""
        self._ending = True
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=ENDING_S)
        await asyncio.gather(*(self._leave(name) for name in self._bound()))

    def _unmount_root(self) -> list[str]:
        """What is mounted still; without any, the directory goes too."""
        left = self._bound()
        if not left:
            try:
                self._autofs.unmount_root()
            except OSError as error:
                log.warning("%s stays mounted: %s", self._root, error.strerror)
        return left

    async def _leave(self, name: str) -> None:
        async with self._busy[name]:
            try:
                await self._go(name)
            except MoorageError as error:
                log.warning("%s stays mounted: %s", self._path(name), error)

    # -- what there is -------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _is_bound(self, name: str) -> bool:
        return system.mounted_at(self._path(name)) is not None

    def _bound(self) -> list[str]:
        inside = {
            entry.target.removeprefix(f"{self._root}/")
            for entry in system.mount_table()
            if entry.target.startswith(f"{self._root}/") and entry.type != TYPE
        }
        return sorted(name for name in inside if "/" not in name)

    def _tell(self, name: str, text: str) -> None:
        """Once, until something else is to be said."""
        if self._told.get(name) != text:
            self._told[name] = text
            log.warning("%s: %s", self._path(name) if name else self._root, text)
