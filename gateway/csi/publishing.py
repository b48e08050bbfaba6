"""Volumes on this node: mount one, show it at targets, take both back.

Owns the acts behind the node's calls. Each is idempotent, and is taken by what the system shows: a volume is
mounted once (:mod:`moorage.gateway.mount`), and each target is a bind mount of that. It must never unmount
what is not the volume's, and never count on the controller: a volume that is missing is created here when its
context says how, and taking it from a dead holder is part of mounting it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from grpc import StatusCode

from moorage.client import uri
from moorage.client.cluster import Cluster, VolumeInfo
from moorage.gateway.csi import terms
from moorage.gateway.csi.codes import Refused, precondition
from moorage.gateway.csi.controller import create, other_fs
from moorage.gateway.csi.csi_pb2 import CapacityRange
from moorage.gateway.csi.notes import Held
from moorage.gateway.mount import filesystem, system, unmounting
from moorage.gateway.mount.mounting import Mount, mounts
from moorage.gateway.mount.record import StateDirectory
from moorage.wire.errors import Busy, Invalid, NotFound

log = logging.getLogger(__name__)

SETTLED = ("serving", "restarting", "lost", "dead")
SETTLE_TIMEOUT_S = 60.0
GROW_TIMEOUT_S = 30.0
GROW_TRIES = 3
POLL_S = 0.1


class Publisher:
    def __init__(self, cluster: Cluster, directory: StateDirectory) -> None:
        self._cluster = cluster
        self._directory = directory

    def mount_of(self, volume: str) -> Mount | None:
        registry = self._cluster.config.registry
        for place in self._directory.places():
            record = place.load()
            if (record.volume, record.registry) == (volume, registry):
                return next((each for each in mounts(self._directory) if each.id == record.id), None)
        return None

    async def put_right(self) -> None:
        """What a crash of the host's processes left: mounts whose keeper is dead, and what was bound to
        them."""
        for problem in await unmounting.clean_up(self._directory):
            log.warning("%s", problem)

    # -- the volume ------------------------------------------------------------------------------------

    async def hold(self, held: Held, *, force: bool) -> Mount:
        """Mount it where it is to be, unless it is. One that was lost is taken back, and mounted anew."""
        found = await self._settled(held.volume)
        if found is not None and found.state in ("lost", "dead"):
            log.info("volume %s is %s here, mounting it anew: %s", held.volume, found.state, found.reason)
            await self.let_go(held)
            found = None
        if found is not None:
            if found.target != held.at:
                raise precondition(f"volume {held.volume!r} is mounted at {found.target} already: unmount it")
            return found
        info = await self._volume(held.volume, held.context)
        if reason := other_fs(info, held.capability.fs):
            raise precondition(reason)
        if held.implicit:
            os.makedirs(held.at, mode=0o700, exist_ok=True)
        return await self._mount(held, force)

    async def _settled(self, volume: str) -> Mount | None:
        """One that a former life of this process began comes to an end without it."""
        end = asyncio.get_running_loop().time() + SETTLE_TIMEOUT_S
        while (found := self.mount_of(volume)) is not None and found.state not in SETTLED:
            if asyncio.get_running_loop().time() > end:
                raise Refused(
                    StatusCode.ABORTED, f"volume {volume!r} is {found.state} still: try again later"
                )
            await asyncio.sleep(POLL_S)
        return found

    async def _mount(self, held: Held, force: bool) -> Mount:
        options = {key: held.context[key] for key in ("io_timeout", "mode") if key in held.context}
        try:
            return await self._cluster.mount(
                str(uri.Address("", held.volume, options=options)),
                held.at,
                fs=held.capability.fs or held.context.get("fs"),
                owner=terms.owner_of(held.context),
                read_only=held.capability.read_only,
                force=force,
                options=held.capability.flags,
                state_dir=self._directory.path,
                by=f"csi (pid {os.getpid()})",
            )
        except Busy as error:
            way_out = "; volume_context force=true does that" if "holder" in error.details else ""
            raise precondition(f"{error}{way_out}") from error
        except NotFound:  # it was deleted just now
            raise
        except Invalid as error:  # what was asked for is in order, so it is the volume
            raise precondition(str(error)) from error

    async def _volume(self, name: str, context: Mapping[str, str]) -> VolumeInfo:
        """As it is, or made as its context says."""
        if "size" not in context:
            try:
                return await self._cluster.show(name)
            except NotFound as error:
                hint = "volume_context size=10G creates it at its first use"
                raise Refused(StatusCode.NOT_FOUND, f"{error}; {hint}") from error
        size = terms.size_for(CapacityRange(), uri.parse_size(context["size"]))
        return await create(self._cluster, name, size, terms.creation_of(context))

    async def let_go(self, held: Held) -> None:
        """Unmount it, and everything that is bound to it, unless somebody uses it. What it was mounted by may
        have gone before, with a container and its mount namespace, and left mounts here."""
        for target in held.targets:
            await self.unbind(held, target)
        found, entry = self.mount_of(held.volume), system.mounted_at(held.at)
        if found is not None and found.target == held.at:
            await found.unmount(force=found.state == "lost")
        elif entry is not None and entry.source == held.device:
            await unmounting.unmount_file_system(entry, unmounting.UNMOUNT_TIMEOUT_S)
        if held.implicit:
            remove(held.at)

    # -- its targets -----------------------------------------------------------------------------------

    def check_target(self, held: Held, target: str) -> None:
        """Before anything is mounted for it."""
        if not os.path.isdir(os.path.dirname(target)):
            raise precondition(f"target_path {target}: its directory does not exist")
        if os.path.lexists(target) and not os.path.isdir(target):
            raise precondition(f"target_path {target} is not a directory")
        entry, found = system.mounted_at(target), self.mount_of(held.volume)
        if entry is not None and (found is None or entry.source != found.device):
            raise precondition(f"{target} is a mount point already, of {entry.source}")

    async def bind(self, mount: Mount, target: str, read_only: bool) -> None:
        """Show the mounted volume at ``target``, which is made unless it is there."""
        if system.mounted_at(target) is None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(target, 0o755)
            await system.run("mount", "--bind", mount.target, target)
        if read_only:
            await system.run("mount", "-o", "remount,bind,ro", target)

    async def unbind(self, held: Held, target: str) -> None:
        """And remove the directory; something else that is mounted there stays."""
        entry = system.mounted_at(target)
        if entry is not None and entry.source == held.device and target != held.at:
            await unmounting.unmount_file_system(entry, unmounting.UNMOUNT_TIMEOUT_S)
        remove(target)

    # -- its size --------------------------------------------------------------------------------------

    async def grown(self, mount: Mount, size: int) -> None:
        """When the file system fills a volume that has ``size`` bytes. Its daemon lets it grow by itself;
        this asks once more, to have the answer."""
        end = asyncio.get_running_loop().time() + GROW_TIMEOUT_S
        while device_size(mount.device) < size:
            if asyncio.get_running_loop().time() > end:
                raise Refused(StatusCode.UNAVAILABLE, f"{mount.device} has not heard of {size} bytes yet")
            await asyncio.sleep(POLL_S)
        if mount.read_only:
            return
        for left in reversed(range(GROW_TRIES)):
            try:
                return await filesystem.grow(mount.fs, mount.device, mount.target)
            except system.ProgramFailed as error:  # it may have met the daemon's
                if not left:
                    raise precondition(
                        f"the file system did not grow, it will at the next mount: {error}"
                    ) from error
            await asyncio.sleep(POLL_S)


def device_size(device: str) -> int:
    return int(Path("/sys/class/block", Path(device).name, "size").read_text()) * 512


def remove(directory: str) -> None:
    """When it is empty, and nothing is mounted on it."""
    with contextlib.suppress(OSError):
        os.rmdir(directory)
