"""A new volume with the contents of another one, as a snapshot shows them.

Owns the copy of one volume; whoever writes to the source goes on meanwhile. A copy that does not become
complete is deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from moorage.client import uri
from moorage.client.snapshots import Progress
from moorage.client.transfer import Source, checked_size, lanes, new_volume, reading, shape, undone
from moorage.client.volume import Volume
from moorage.wire.errors import DeadlineExceeded, MoorageError, NotFound

if TYPE_CHECKING:
    from moorage.client.cluster import Cluster, VolumeInfo


async def copy_volume(
    cluster: Cluster,
    source: str,
    name: str,
    *,
    size: int | str | None,
    given: dict[str, Any],
    progress: Progress,
) -> VolumeInfo:
    """See :meth:`moorage.Cluster.copy_volume`."""
    async with _snapshot(cluster, source) as snapshot, reading(cluster, snapshot) as found:
        info = found.info
        like = {"replicas": info.replicas, "groups": len(info.groups), "durability": info.durability}
        wanted = checked_size(size, found.volume.size)
        async with new_volume(cluster, name, wanted, shape(given, like)) as (made, volume):
            await _copy(found, volume, progress)
        return made


@asynccontextmanager
async def _snapshot(cluster: Cluster, source: str) -> AsyncIterator[str]:
    """The one that is named, or one of the volume that is named, for as long as it is needed."""
    address = uri.parse(source)
    cluster.check_here(address)
    if address.snapshot:
        yield address.shown
        return
    snapshot = f"copy-{secrets.token_hex(4)}"

    async def create() -> None:
        await cluster.snapshots.create(snapshot, address.name)

    async def delete(_: None) -> None:
        try:
            with suppress(NotFound, DeadlineExceeded):  # it goes on by itself
                await cluster.snapshots.delete(f"{address.name}@{snapshot}")
        except MoorageError as error:
            raise type(error)(
                f"{address.name}@{snapshot}, which was made for this copy, could not be deleted: {error};"
                f" `moorage snapshot delete {address.name}@{snapshot}` does it",
                **error.details,
            ) from error

    async with undone(create, delete, always=True):
        yield f"{address.name}@{snapshot}"


async def _copy(source: Source, volume: Volume, progress: Progress) -> None:
    async def piece(offset: int, length: int) -> None:
        await volume.write(offset, await source.volume.read(offset, length))

    async with lanes() as start:
        async for offset, length, is_hole in source.extents():
            if not is_hole:
                await start(piece, offset, length)
            progress(offset + length, source.volume.size)
    await source.check_is_there()
