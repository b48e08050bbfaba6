"""What copies and backups of whole volumes share: reading a snapshot in pieces, several calls at once, and a
new volume that is deleted again unless it becomes complete.

Holes are never read, nor written into a new volume. Memory is bounded by ``DEPTH`` pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar

from moorage.client import uri
from moorage.client.attachment import find_snapshot
from moorage.client.front import split
from moorage.client.snapshots import Progress, changed_since
from moorage.client.volume import Volume
from moorage.quorum.record import CHUNK_SIZE
from moorage.wire.errors import Invalid, MoorageError, NotFound

if TYPE_CHECKING:
    from moorage.client.cluster import Cluster, VolumeInfo

T = TypeVar("T")
DEPTH = 16  # pieces of up to 1 MiB in flight
LOOK_BYTES = 64 * CHUNK_SIZE  # whose holes are asked for at once
Extent = tuple[int, int, bool]  # offset, length, is it a hole; data is cut into pieces


class Shape(TypedDict, total=False):
    """Of a volume that is made like another one; what is None, or not there, is as with that."""

    size: int | str | None
    replicas: int | None
    groups: int | None
    durability: str | None


class CopyOptions(Shape, total=False):
    """Of :meth:`moorage.Cluster.copy_volume` and :meth:`moorage.Cluster.restore`."""

    progress: Progress


class Start(Protocol):
    async def __call__(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> asyncio.Task[T]:
        """Wait until fewer than ``DEPTH`` calls are under way, and begin this one."""


@asynccontextmanager
async def lanes() -> AsyncIterator[Start]:
    """Several calls at once. It ends when all have, or with the first error, which cancels the others."""
    free = asyncio.Semaphore(DEPTH)
    try:
        async with asyncio.TaskGroup() as group:

            async def start(call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> asyncio.Task[T]:
                await free.acquire()
                task = group.create_task(call(*arguments))
                task.add_done_callback(lambda _: free.release())
                return task

            yield start
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass
class Source:
    """A snapshot being read. ``info`` is its volume as metadata had it before, ``entry`` the snapshot there,
    ``base`` the older one since which changes are wanted, or None."""

    cluster: Cluster
    info: VolumeInfo
    entry: dict[str, Any]
    base: dict[str, Any] | None
    volume: Volume

    async def extents(self) -> AsyncIterator[Extent]:
        """All of it, or what was written or discarded since the base; in order."""
        if self.base is not None:
            async for extent in _changed_extents(self.volume, self.base["lsns"]):
                yield extent
            return
        for at in range(0, self.volume.size, LOOK_BYTES):
            for extent in await _look(self.volume, at, min(LOOK_BYTES, self.volume.size - at)):
                yield extent

    async def check_is_there(self) -> None:
        """Both snapshots are there still: then they were all the time, for an id is given once. Else what was
        discarded since the base may be forgotten. Raises NotFound."""
        now = await self.cluster.show(self.info.name)
        for entry in (self.entry, self.base):
            if entry is not None:
                find_snapshot(now.to_json(), entry["name"], entry["id"])


async def _changed_extents(volume: Volume, lsns: list[int]) -> AsyncIterator[Extent]:
    chunk, found = -1, [(0, 0, False)]
    async for offset, length in changed_since(volume, lsns):
        if offset // CHUNK_SIZE != chunk:  # many changes in one chunk are one look
            chunk = offset // CHUNK_SIZE
            first = chunk * CHUNK_SIZE
            found = await _look(volume, first, min(CHUNK_SIZE, volume.size - first))
        for at, size, is_hole in found:
            begin, end = max(at, offset), min(at + size, offset + length)
            if begin < end:
                yield begin, end - begin, is_hole


async def _look(volume: Volume, offset: int, length: int) -> list[Extent]:
    found: list[Extent] = []
    for size, is_hole in await volume.block_status(offset, length):
        cuts = [(offset, size)] if is_hole else split(offset, size)
        found += [(at, part, is_hole) for at, part in cuts]
        offset += size
    return found


@asynccontextmanager
async def reading(cluster: Cluster, snapshot: str, since: str = "") -> AsyncIterator[Source]:
    """``VOLUME@SNAPSHOT``, and an older one of the same volume. Raises NotFound, Busy, Invalid."""
    for text in filter(None, (snapshot, since)):
        cluster.check_here(uri.parse(text))
    name, wanted = uri.parse_snapshot(snapshot)
    info = await cluster.show(name)
    entry = find_snapshot(info.to_json(), wanted)
    base = None
    if since:
        other, older = uri.parse_snapshot(since)
        if other != name:
            raise Invalid(f"{since} is not a snapshot of {name!r}: only two of one volume can be compared")
        base = find_snapshot(info.to_json(), older)
        if base["id"] == entry["id"] or any(a > b for a, b in zip(base["lsns"], entry["lsns"], strict=True)):
            raise Invalid(
                f"{name}@{older} is not older than {name}@{wanted}: `moorage snapshot list {name}` shows when"
                " each was made"
            )
    async with await cluster.attach(f"{name}@{wanted}") as volume:
        yield Source(cluster, info, entry, base, volume)


@asynccontextmanager
async def new_volume(
    cluster: Cluster, name: str, size: int, how: dict[str, Any]
) -> AsyncIterator[tuple[VolumeInfo, Volume]]:
    """Attached, and deleted again unless the body ends well and all is on stable storage; also when it is
    cancelled. ``how``: of :meth:`moorage.Cluster.create_volume`, whose errors it raises."""

    async def create() -> VolumeInfo:
        return await cluster.create_volume(name, size, **how)

    async def delete(made: VolumeInfo) -> None:
        try:
            with suppress(NotFound):
                if (await cluster.show(name)).id == made.id:  # else it is somebody else's
                    await cluster.delete(name, force=True)
        except MoorageError as error:
            raise type(error)(
                f"volume {name!r} is not complete, and could not be deleted: {error}; `moorage volume delete"
                f" {name} --force` does it",
                **error.details,
            ) from error

    async with undone(create, delete) as info, await cluster.attach(name) as volume:
        yield info, volume
        await volume.flush()


@asynccontextmanager
async def undone(
    do: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], Awaitable[None]], *, always: bool = False
) -> AsyncIterator[T]:
    """``undo`` what was done when the body fails, or ``always``. When it is cancelled while ``do`` is under
    way, that is waited for: else nobody knew what there is to undo."""
    doing = asyncio.create_task(do())
    try:
        yield await asyncio.shield(doing)
    except BaseException:
        await asyncio.wait([doing])
        if doing.exception() is None:
            await undo(doing.result())
        raise
    if always:
        await undo(doing.result())


def shape(given: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """How a new volume is to be made: what is None is ``like`` the source."""
    return like | {key: value for key, value in given.items() if value is not None}


def checked_size(size: int | str | None, least: int) -> int:
    """Bytes. Raises Invalid when the contents do not fit."""
    wanted = least if size is None else uri.parse_size(size)
    if wanted < least:
        raise Invalid(f"size {wanted} is too small for contents of {least} bytes: leave it out, or give more")
    return wanted
