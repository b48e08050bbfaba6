"""Snapshots as a program sees them: create, list, delete, roll back, and what has changed since one.

Owns the questions to metadata, and the writing of a rollback. Whoever holds the volume makes a snapshot
(:mod:`moorage.client.snapshotting`); ``cluster.attach("VOLUME@SNAPSHOT")`` reads it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from moorage.client import uri
from moorage.client.attachment import find_snapshot
from moorage.client.volume import Volume
from moorage.wire.errors import Busy, DeadlineExceeded, Invalid

CREATE_S = 20.0
DELETE_S = 15.0
PIECE = 1 << 20  # written at once

Ask = Callable[
    [str, str, dict[str, Any], float], Awaitable[Any]
]  # about a volume: method, parameters, seconds
Progress = Callable[[int, int], None]  # (bytes looked at, of how many)


class Attaching(Protocol):
    """:meth:`moorage.Cluster.attach`"""

    async def __call__(
        self, name: str, *, force: bool = ..., wait: float = ..., rollback: str = ...
    ) -> Volume: ...


@dataclass(frozen=True)
class SnapshotInfo:
    """``size``: bytes of the volume then; ``set``: common to those of several volumes at one moment, 0 for
    one alone; ``children``: how many volumes were cloned from it; ``state``: creating, ready or deleting."""

    volume: str
    name: str
    id: int
    state: str
    size: int
    created_ms: int
    set: int
    children: int

    @classmethod
    def from_wire(cls, volume: str, entry: dict[str, Any]) -> SnapshotInfo:
        same = ("name", "id", "state", "size", "created_ms", "set")
        return cls(volume=volume, children=len(entry["children"]), **{key: entry[key] for key in same})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Snapshots:
    def __init__(self, ask: Ask, attach: Attaching) -> None:
        self._ask = ask
        self._attach = attach

    async def create(self, name: str, *volumes: str) -> list[SnapshotInfo]:
        """One of each of these volumes, all at one moment: a write that was acknowledged before the call is
        in it, one that begins after it has returned is not, and none is there without what had been
        acknowledged before it, in whichever of the volumes. Writers go on. All must be of one metadata
        group. Raises NameTaken, NotFound, LimitExceeded, Busy when it could not be made in time: then there
        is none."""
        if not volumes:
            raise Invalid("name the volumes of which there is to be a snapshot")
        names = [_volume(each) for each in volumes]
        params = {"volumes": names, "snapshot": name, "request": secrets.token_hex(16)}
        made = await self._ask(names[0], "metadata.create_snapshot", params, CREATE_S)
        return [SnapshotInfo.from_wire(row["volume"], row) for row in made["snapshots"]]

    async def list(self, volume: str) -> list[SnapshotInfo]:
        """The oldest first."""
        name = _volume(volume)
        shown = await self._ask(name, "metadata.show_volume", {}, CREATE_S)
        found = [SnapshotInfo.from_wire(name, entry) for entry in shown.get("snapshots", [])]
        return sorted(found, key=lambda each: (each.created_ms, each.id))

    async def delete(self, snapshot: str) -> None:
        """``VOLUME@SNAPSHOT``. Its space comes back with time. Who reads it gets NotFound from now on. Raises
        Busy while volumes are clones of it, DeadlineExceeded when it takes long (it goes on by itself)."""
        volume, name = uri.parse_snapshot(snapshot)
        params = {"snapshot": name, "request": secrets.token_hex(16)}
        if (await self._ask(volume, "metadata.delete_snapshot", params, DELETE_S))["left"]:
            raise DeadlineExceeded(
                f"{snapshot} is being deleted: whoever holds {volume!r} takes it out of the logs when it can"
            )

    async def rollback(
        self, snapshot: str, *, force: bool = False, progress: Progress = lambda done, size: None
    ) -> int:
        """Give the volume the contents of ``VOLUME@SNAPSHOT`` again, and its snapshots stay; how many bytes
        were written. Nobody else attaches it before that is complete: should this process end, call it again.
        Raises Busy when somebody holds the volume, unless ``force``."""
        name, wanted = uri.parse_snapshot(snapshot)
        written = 0
        entry = await self._ready(name, wanted)
        async with (
            await self._attach(f"{name}@{wanted}") as source,
            await self._attach(name, force=force, wait=0.0, rollback=wanted) as volume,
        ):
            if (await self._ready(name, wanted))["id"] != entry["id"]:  # it stays from here on
                raise Busy(f"snapshot {snapshot} was deleted and made anew just now: say it again")
            async for offset, length in changed_since(volume, entry["lsns"], progress):
                written += await _write_back(source, volume, offset, length)
            await volume.flush()
            await volume.rolled_back()
        return written

    async def _ready(self, volume: str, name: str) -> dict[str, Any]:
        return find_snapshot(await self._ask(volume, "metadata.show_volume", {}, CREATE_S), name)


async def changed_since(
    volume: Volume, lsns: list[int], progress: Progress = lambda done, size: None
) -> AsyncIterator[tuple[int, int]]:
    """(offset, length) of what was written or discarded since a snapshot of this volume with these LSNs, in
    order, each inside of one chunk."""
    at = 0
    while at < volume.size:
        stamps, length = await volume.stamps(at)
        since = lsns[volume.group_of(at)]
        first = None
        for number, lsn in enumerate([*stamps, 0]):
            if lsn > since and first is None:
                first = number
            elif lsn <= since and first is not None:
                offset = at + first * volume.block_size
                yield offset, min(at + number * volume.block_size, volume.size) - offset
                first = None
        at += length
        progress(min(at, volume.size), volume.size)


async def _write_back(source: Volume, volume: Volume, offset: int, length: int) -> int:
    """What the source does not reach to is a hole."""
    there = max(0, min(length, source.size - offset))
    at = offset
    for size, is_hole in await source.block_status(offset, there) if there else []:
        if is_hole:
            await volume.write_zeroes(at, size)
        for piece in range(at, at + size, PIECE) if not is_hole else ():
            await volume.write(piece, await source.read(piece, min(PIECE, at + size - piece)))
        at += size
    if there < length:
        await volume.write_zeroes(offset + there, length - there)
    return length


def _volume(text: str) -> str:
    address = uri.parse(text)
    if address.snapshot:
        raise Invalid(f"{text} is a snapshot already: name the volume alone, {address.name}")
    return address.name
