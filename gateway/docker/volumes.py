"""The volumes of this host, for all who name them: create, mount, unmount, path, remove.

Owns the order of things: under the volume's lock, look, decide (``ledger.py``), note, act. It must never
unmount what a noted user may still use, and never answer with a path at which the volume is not mounted. How
long anything may take is the caller's to bound: a cancelled call takes back what it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from moorage.client.cluster import Cluster, VolumeInfo
from moorage.client.uri import Address, creation
from moorage.gateway.docker import ledger, users
from moorage.gateway.docker.ledger import Do, Entry, Seen
from moorage.gateway.docker.notes import Notes
from moorage.gateway.docker.root import drop_target, make_target
from moorage.gateway.docker.wish import to_mount
from moorage.gateway.mount import system, unmounting
from moorage.gateway.mount.mounting import describe
from moorage.gateway.mount.record import MOUNTED, Place, StateDirectory
from moorage.wire.errors import Busy, MoorageError, NameTaken, NotFound

log = logging.getLogger(__name__)

POLL_S = 0.02
WRITE_BACK_S = 30.0
_OPENING = ("starting", "attaching", "formatting", "mounting", "failed")


class HostVolumes:
    """``connect``: gives the cluster when it is needed; what needs none works without."""

    def __init__(self, connect: Callable[[], Awaitable[Cluster]], state_dir: Path, root: Path) -> None:
        self._connect = connect
        self._state_dir = state_dir
        self._mounts = StateDirectory(state_dir)
        self._root = root
        self.notes = Notes(state_dir)

    def prepare(self) -> None:
        self._mounts.prepare()
        self.notes.prepare()

    async def create(self, address: Address) -> VolumeInfo:
        """As its options say; one that exists stays as it is. Its options for mounts are noted."""
        cluster = await self._connect()
        cluster.check_here(address)
        try:
            info = await cluster.show(address.name)
        except NotFound:
            info = await _create(cluster, address)
        options = to_mount(address)
        async with self.notes.locked(address.name):
            entry = self.notes.load(address.name)
            self.notes.save(address.name, replace(entry, options=options))
        return info

    async def mount(self, address: Address, user: str, by: str, engine: str = "") -> str:
        """Where it is mounted now, for ``user`` too, for whom ``engine`` asks (:mod:`.users`). Options for
        this mount win over those of its Create."""
        name = address.name
        async with self.notes.locked(name):
            was_noted = user in self.notes.load(name).users
            try:
                return await self._mount(address, user, by, engine)
            except BaseException:
                if not was_noted:
                    self.notes.save(name, self.notes.load(name).without(user))
                raise

    async def _mount(self, address: Address, user: str, by: str, engine: str) -> str:
        name = address.name
        while True:
            place, seen = self._look(name)
            entry, do = ledger.mount(self.notes.load(name), user, seen)
            self.notes.save(name, entry.asked_for(user, engine))
            options = {**entry.options, **address.options}
            if do is Do.WAIT:
                await asyncio.sleep(POLL_S)
                continue
            if do is Do.ANSWER:
                assert place is not None
                _check_mode(place, options)
                return place.load().target
            if do is Do.REPLACE:
                assert place is not None
                await unmounting.unmount(place, timeout=WRITE_BACK_S)
            return await self._mount_now(Address(address.cluster, name, options=options), by)

    async def _mount_now(self, address: Address, by: str) -> str:
        cluster = await self._connect()
        target = await make_target(self._root, address.name)
        try:
            return (await cluster.mount(str(address), target, state_dir=self._state_dir, by=by)).target
        except BaseException:
            await drop_target(self._root, address.name)
            raise

    async def unmount(self, name: str, user: str) -> None:
        """``user`` does not use it any more; the last one's word ends the mount."""
        async with self.notes.locked(name):
            place, seen = self._look(name)
            entry, do = ledger.unmount(self.notes.load(name), user, seen)
            self.notes.save(name, entry)
            if do is Do.UNMOUNT:
                await self._end(name, place)

    async def _end(self, name: str, place: Place | None) -> None:
        assert place is not None
        await unmounting.unmount(place, timeout=WRITE_BACK_S)
        await drop_target(self._root, name)

    async def remove(self, address: Address) -> None:
        """The volume and all its data. Busy while somebody uses it, here or elsewhere."""
        name = address.name
        async with self.notes.locked(name):
            _, entry, do = await self._put_right(name)
            if entry.users or do is Do.UNMOUNT:
                path = self._root / name
                raise Busy(
                    f"volume {name!r} is mounted at {path} for {len(entry.users)} users: unmount it first"
                )
            cluster = await self._connect()
            cluster.check_here(address)
            with contextlib.suppress(NotFound):  # gone, as was asked for
                await cluster.delete(name)
            self.notes.save(name, Entry())

    def path(self, name: str) -> str:
        """ "" where it is not mounted."""
        place, seen = self._look(name)
        return str(self._root / name) if place is not None and seen is Seen.SERVING else ""

    def forget(self, name: str) -> None:
        """The volume is no more: so are the options of its mounts here."""
        with self.notes.locked_nowait(name) as free:
            if free and not self.notes.load(name).users:
                self.notes.save(name, Entry())

    async def put_right(self) -> list[str]:
        """After a crash, a reboot or an unmount that failed: what is noted becomes what is so, and what
        nobody uses ends. A line for each that cannot be yet."""
        problems = []
        for name in sorted({*self.notes.names(), *(target.name for _, target in self._ours())}):
            with self.notes.locked_nowait(name) as free:
                if not free:
                    continue
                try:
                    place, entry, do = await self._put_right(name)
                    self.notes.save(name, entry)
                    if do is Do.UNMOUNT:
                        await self._end(name, place)
                except (MoorageError, OSError) as error:
                    problems.append(f"volume {name!r}: {error}")
        return problems

    async def put_right_within(self, timeout: float) -> list[str]:
        """The same, for who has something else to do: what remains is another one's to go on with."""
        try:
            async with asyncio.timeout(timeout):
                return await self.put_right()
        except TimeoutError:
            return [f"what a crash left is not cleaned up yet after {timeout:g} s: see `moorage mounts`"]

    async def _put_right(self, name: str) -> tuple[Place | None, Entry, Do]:
        entry, (place, seen) = self.notes.load(name), self._look(name)
        gone = {user for user, engine in entry.engines.items() if not users.lives(engine)}
        if gone:
            used = await asyncio.to_thread(users.is_used, str(self._root / name))
            gone = set() if used else gone
        return place, *ledger.put_right(entry, seen, lambda user: user not in gone and users.lives(user))

    def _look(self, name: str) -> tuple[Place | None, Seen]:
        """What there is at the volume's place. Its mount elsewhere on this host is another one's."""
        for place, target in self._ours():
            if target.name == name:
                with contextlib.suppress(FileNotFoundError):  # it has just ended
                    return place, _seen(place)
        return None, Seen.NOTHING

    def _ours(self) -> list[tuple[Place, Path]]:
        """The mounts below the root, with where they are."""
        found = []
        for place in self._mounts.places():
            with contextlib.suppress(FileNotFoundError):
                target = Path(place.load().target)
                if target.parent == self._root:
                    found.append((place, target))
        return found


async def _create(cluster: Cluster, address: Address) -> VolumeInfo:
    options, name = address.options, address.name
    if "size" not in options:
        raise NotFound(f"volume {name!r} does not exist: to create it give its size, such as size=10G")
    try:
        return await cluster.create_volume(name, options["size"], **creation(options))
    except NameTaken:
        return await cluster.show(name)  # somebody else was faster


def _check_mode(place: Place, options: dict[str, str]) -> None:
    record = place.load()
    if record.read_only and options.get("mode") != "ro":
        raise Busy(
            f"volume {record.volume!r} is mounted read-only at {record.target}: its users must end first"
        )


def _seen(place: Place) -> Seen:
    mount, record = describe(place), place.load()
    if mount.state == "dead":
        return Seen.DEAD
    if record.phase != MOUNTED and mount.state in _OPENING:
        return Seen.OPENING
    entry = system.mounted_at(record.target)
    if mount.state == "lost" or entry is None or entry.source != record.device:
        return Seen.BROKEN
    return Seen.SERVING
