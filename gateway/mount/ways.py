"""How a volume becomes a block device of this host: the ways that there are, and which one is taken.

A way has two sides. The keeper's :class:`Session` shows the device to the kernel for as long as it is wanted;
the :class:`Way` is what all others (the daemon, who unmounts, who cleans up) do about it. Everything is told
by what the system shows of a place, never by what a process remembers.
"""

from __future__ import annotations

from typing import Protocol

from moorage.gateway.mount.fuse_device import FuseSession, FuseWay
from moorage.gateway.mount.nbd_device import NbdSession, NbdWay, available
from moorage.gateway.mount.record import Place, Record


class Way(Protocol):
    name: str

    def check(self) -> None:
        """Raises Invalid, or NotFound, with what is missing."""

    def devices(self, place: Place) -> list[str]:
        """Paths of those that there are of a mount, also of one that nobody serves any more."""

    async def open(self, place: Place, read_only: bool) -> str:
        """The device of a mount that has none. Called while the daemon serves."""

    async def settle(self, place: Place, device: str) -> None:
        """It is mounted: nothing but its last mount needs to keep it."""

    async def resize(self, place: Place, device: str, size: int) -> None:
        """Have the kernel know the new size."""

    async def release(self, place: Place, device: str) -> None:
        """Give it up: now, or when the last one that has it open lets go."""

    async def abandon(self, place: Place) -> None:
        """Keeper and daemon are dead, or killed and yet to die: all that waits for them fails."""

    async def end_session(self, place: Place) -> None:
        """Once there is no device any more: the keeper ends."""


class Session(Protocol):
    def serve(self) -> None:
        """Until it is given up."""

    def end(self) -> None:
        """Give it up, from another thread; ``serve`` may be about to begin."""


_WAYS: dict[str, tuple[Way, type[FuseSession] | type[NbdSession]]] = {
    "nbd": (NbdWay(), NbdSession),
    "fuse": (FuseWay(), FuseSession),
}


def choose() -> Way:
    """The kernel's nbd driver where there is one, else FUSE. Raises Invalid, or NotFound, where no way is."""
    way = _WAYS["nbd" if available() else "fuse"][0]
    way.check()
    return way


def way_of(record: Record) -> Way:
    return _WAYS[record.via][0]


def session(place: Place, record: Record) -> Session:
    return _WAYS[record.via][1](place, record)
