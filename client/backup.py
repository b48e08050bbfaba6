"""Backups of snapshots to streams, and volumes made of them.

Owns the way between a cluster and the stream, whose bytes are :mod:`moorage.client.backup_stream`'s. The
cluster is read and written in pieces, several at once; the stream in order, and in threads of its own, so
that a pipe which nobody reads or fills stops nothing else. A restore never succeeds without the trailer of
each of its backups, and what it made is deleted when it fails.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from moorage.client.backup_stream import (
    BackupReader,
    BackupWriter,
    Base,
    Frame,
    Header,
    Kind,
    Totals,
    check_chain,
)
from moorage.client.snapshots import Progress
from moorage.client.transfer import DEPTH, Source, checked_size, lanes, new_volume, reading, shape
from moorage.client.volume import Volume

if TYPE_CHECKING:
    from moorage.client.cluster import Cluster, VolumeInfo

T = TypeVar("T")
GRACE_S = 1.0  # for a call of the stream to end when we are cancelled: a disk's does, a pipe's may not


@dataclass(frozen=True)
class BackupInfo:
    """``header`` says what it is of. ``totals``, when all of it was written or read: how much."""

    header: Header
    totals: Totals | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def create(
    cluster: Cluster, snapshot: str, stream: BinaryIO, *, since: str, progress: Progress
) -> BackupInfo:
    """See :meth:`moorage.Cluster.backup`."""
    async with reading(cluster, snapshot, since) as source, lanes() as start:
        writer = await _aside(BackupWriter, stream, _header(cluster, source))
        under_way: deque[tuple[int, int, asyncio.Task[bytes] | None]] = deque()
        writing: asyncio.Task[None] | None = None

        async def put() -> asyncio.Task[None]:
            """Begin to write the first one, and what is ready behind it."""
            frames: list[tuple[int, int, bytes | None]] = []
            while under_way and not (frames and _is_read_still(under_way[0][2])):
                offset, length, read = under_way.popleft()
                frames.append((offset, length, None if read is None else await read))
            if writing is not None:
                await writing
            progress(frames[0][0], source.volume.size)
            return await start(_aside, _write, writer, frames)

        async for offset, length, is_hole in source.extents():
            read = None if is_hole else await start(source.volume.read, offset, length)
            under_way.append((offset, length, read))
            if len(under_way) == DEPTH:
                writing = await put()
        while under_way:
            writing = await put()
        if writing is not None:
            await writing
        await source.check_is_there()
        await _aside(writer.end)
        progress(source.volume.size, source.volume.size)
        return BackupInfo(writer.header, writer.totals)


def _is_read_still(task: asyncio.Task[bytes] | None) -> bool:
    return task is not None and not task.done()


def _write(writer: BackupWriter, frames: list[tuple[int, int, bytes | None]]) -> None:
    for offset, length, data in frames:
        if data is None:
            writer.hole(offset, length)
        else:
            writer.data(offset, data)


def _header(cluster: Cluster, source: Source) -> Header:
    info, entry, base = source.info, source.entry, source.base
    return Header(
        cluster=cluster.hello.cluster,
        volume=info.name,
        volume_id=info.id,
        snapshot=entry["name"],
        snapshot_id=entry["id"],
        created_ms=entry["created_ms"],
        size=source.volume.size,
        block_size=source.volume.block_size,
        replicas=info.replicas,
        groups=len(info.groups),
        durability=info.durability,
        base=Base(info.id, base["name"], base["id"], base["created_ms"]) if base else None,
    )


async def restore(
    cluster: Cluster,
    streams: Sequence[BinaryIO],
    name: str,
    *,
    size: int | str | None,
    given: dict[str, Any],
    progress: Progress,
) -> VolumeInfo:
    """See :meth:`moorage.Cluster.restore`."""
    readers = [await _aside(BackupReader, stream) for stream in streams]
    check_chain(readers)
    last = readers[-1].header
    how = shape(given, {key: getattr(last, key) for key in ("replicas", "groups", "durability")})
    total, done = sum(reader.header.size for reader in readers), 0
    async with new_volume(cluster, name, checked_size(size, last.size), how) as (made, volume):
        for reader in readers:  # one after the other: between writes in flight there is no order
            before = done
            async with lanes() as start:
                while frames := await _aside(reader.batch):
                    for frame in frames:
                        if frame.kind == Kind.DATA or reader.header.base is not None:
                            await start(_apply, volume, frame)
                    progress(before + frame.offset + frame.length, total)
            done += reader.header.size
            progress(done, total)
    return made


async def _apply(volume: Volume, frame: Frame) -> None:
    if frame.kind == Kind.DATA:
        await volume.write(frame.offset, frame.data)
    else:
        await volume.discard(frame.offset, frame.length)


async def show(
    stream: BinaryIO, *, verify: bool = False, progress: Progress = lambda done, size: None
) -> BackupInfo:
    """What a backup is of, by its header; ``verify``: read all of it, and raise Corrupt for what is wrong."""
    reader = await _aside(BackupReader, stream)
    if not verify:
        return BackupInfo(reader.header, None)
    while frames := await _aside(reader.batch):
        progress(frames[-1].offset + frames[-1].length, reader.header.size)
    return BackupInfo(reader.header, reader.totals)


async def _aside(call: Callable[..., T], *arguments: Any) -> T:
    """Call it in a thread that nobody waits for when the program ends: a pipe may block for ever."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also when cancelled

    def run() -> None:
        settle: tuple[Callable[..., None], Any]
        try:
            settle = future.set_result, call(*arguments)
        except BaseException as error:
            settle = future.set_exception, error
        with suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(*settle)

    threading.Thread(target=run, name="backup", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future], timeout=GRACE_S)
        raise
