"""The way through FUSE: the volume is a file (``volume_file.py``), with a loop device on it.

Works on every kernel with FUSE, and also in another network namespace than the first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from pathlib import Path

from moorage.gateway.mount import filesystem, system
from moorage.gateway.mount.record import Place, Record
from moorage.wire.errors import Invalid

log = logging.getLogger(__name__)

FUSE = Path("/dev/fuse")
THREADS_MAX = 32
RETRY_S = 0.05


class FuseWay:
    name = "fuse"

    def check(self) -> None:
        if not FUSE.exists():
            raise Invalid(
                f"{FUSE} does not exist: load the fuse module (modprobe fuse), or give it to the container"
            )
        system.program("losetup")

    def devices(self, place: Place) -> list[str]:
        return system.loops_on(place.device_file)

    async def open(self, place: Place, read_only: bool) -> str:
        return await system.attach_loop(place.device_file, read_only)

    async def settle(self, place: Place, device: str) -> None:
        """In use, it only gets told to go with its last mount: also when that goes with a mount namespace,
        and the keeper and its FUSE mount, by which it could be found, with it."""
        await system.detach_loop(device, place.device_file)

    async def resize(self, place: Place, device: str, size: int) -> None:
        await filesystem.refresh_size(device, place.device_file)

    async def release(self, place: Place, device: str) -> None:
        await system.detach_loop(device, place.device_file)

    async def abandon(self, place: Place) -> None:
        """A keeper that is dead has taken its session along."""
        entry = system.mounted_at(str(place.fuse))
        if entry is not None and place.keeper_lives():
            await system.abort_fuse(entry)

    async def end_session(self, place: Place) -> None:
        if system.mounted_at(str(place.fuse)) is not None:
            await system.run("umount", str(place.fuse))


class FuseSession:
    def __init__(self, place: Place, record: Record) -> None:
        self._place, self._record = place, record
        self._ended = threading.Event()

    def serve(self) -> None:
        try:
            self._serve()
        finally:
            self._ended.set()

    def _serve(self) -> None:
        os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
        import mfusepy

        from moorage.gateway.mount.volume_file import Parking, VolumeFile

        record = self._record
        parking = Parking(str(self._place.socket), record.volume)
        try:
            mfusepy.FUSE(
                VolumeFile(parking, record.read_only),
                str(self._place.fuse),
                foreground=True,
                fsname=f"moorage:{record.volume}",
                subtype="moorage",
                max_threads=THREADS_MAX,
            )
        except RuntimeError as error:
            log.error("FUSE session: %s", error)
        finally:
            parking.close()

    def end(self) -> None:
        """It may be about to begin."""
        command = ["umount", str(self._place.fuse)]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if self._ended.wait(RETRY_S):
                return
