"""The synchronous twin of the library: the same names and arguments, without ``await``.

Owns one thread with an event loop per connected cluster; every method runs its asynchronous namesake there
and waits. Safe to call from several threads. Use it as ``import moorage.sync``::

    with moorage.sync.connect() as cluster, cluster.attach("db") as volume:
        volume.write(0, b"hello")

A call that is interrupted (Ctrl-C) is cancelled; a write may take effect all the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, Unpack

import uvloop

from moorage.client import cluster as asynchronous
from moorage.client.backup import BackupInfo
from moorage.client.cluster import VolumeInfo
from moorage.client.mount_table import MountTable
from moorage.client.objects.sync import Bucket, Buckets
from moorage.client.places import Kind, Moves
from moorage.client.places import Places as AsyncPlaces
from moorage.client.quota import Quota
from moorage.client.snapshots import Progress, SnapshotInfo
from moorage.client.snapshots import Snapshots as AsyncSnapshots
from moorage.client.transfer import CopyOptions
from moorage.client.volume import Volume as AsyncVolume
from moorage.client.why import Finding
from moorage.quorum.record import Buffer
from moorage.wire.errors import ShuttingDown

if TYPE_CHECKING:
    from moorage.gateway.mount.mounting import Mount as AsyncMount
    from moorage.gateway.table.resolving import Storage

T = TypeVar("T")


class _Loop:
    """A thread that runs an event loop until :meth:`stop`."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="moorage-sync", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ShuttingDown("this cluster is closed: connect again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def connect(
    cluster: str | None = None,
    *,
    registry: str | None = None,
    secret_file: str | Path | None = None,
    host: str | None = None,
    principal: str | None = None,
    timeout: float = asynchronous.CALL_TIMEOUT,
) -> Cluster:
    """See :func:`moorage.connect`."""
    loop = _Loop()
    try:
        connecting = asynchronous.connect(
            cluster,
            registry=registry,
            secret_file=secret_file,
            host=host,
            principal=principal,
            timeout=timeout,
        )
        return Cluster(loop.run(connecting), loop)
    except BaseException:
        loop.stop()
        raise


class Cluster:
    """See :class:`moorage.Cluster`. A context manager; :meth:`close` detaches and ends the thread."""

    def __init__(self, cluster: asynchronous.Cluster, loop: _Loop) -> None:
        self._cluster = cluster
        self._loop = loop
        self.buckets = Buckets(cluster.buckets, loop)

    def bucket(self, name: str) -> Bucket:
        return self.buckets.open(name)

    def create_volume(
        self,
        name: str,
        size: int | str | None = None,
        *,
        replicas: int = 3,
        groups: int = 0,
        durability: str = "sync",
        fs: str | None = None,
        iops: int = 0,
        bw: int | str = 0,
        principal: str | None = None,
        parent: str | None = None,
        timeout: float = 30.0,
    ) -> VolumeInfo:
        return self._loop.run(
            self._cluster.create_volume(
                name,
                size,
                replicas=replicas,
                groups=groups,
                durability=durability,
                fs=fs,
                iops=iops,
                bw=bw,
                principal=principal,
                parent=parent,
                timeout=timeout,
            )
        )

    def list_volumes(self) -> list[VolumeInfo]:
        return self._loop.run(self._cluster.list_volumes())

    def show(self, name: str) -> VolumeInfo:
        return self._loop.run(self._cluster.show(name))

    def resize(self, name: str, size: int | str) -> VolumeInfo:
        return self._loop.run(self._cluster.resize(name, size))

    def set_volume(self, name: str, *, iops: int | None = None, bw: int | str | None = None) -> VolumeInfo:
        return self._loop.run(self._cluster.set_volume(name, iops=iops, bw=bw))

    def delete(self, name: str, *, force: bool = False) -> None:
        self._loop.run(self._cluster.delete(name, force=force))

    def status(self, *, timeout: float = asynchronous.CALL_TIMEOUT) -> dict[str, Any]:
        return self._loop.run(self._cluster.status(timeout=timeout))

    def attach(
        self,
        name: str,
        *,
        read_only: bool = False,
        force: bool = False,
        io_timeout: float | None = None,
        timeout: float = 15.0,
        wait: float = 0.0,
    ) -> Volume:
        attaching = self._cluster.attach(
            name, read_only=read_only, force=force, io_timeout=io_timeout, timeout=timeout, wait=wait
        )
        return Volume(self._loop.run(attaching), self._loop)

    def copy_volume(self, source: str, name: str, **options: Unpack[CopyOptions]) -> VolumeInfo:
        return self._loop.run(self._cluster.copy_volume(source, name, **options))

    def backup(
        self,
        snapshot: str,
        stream: BinaryIO,
        *,
        since: str = "",
        progress: Progress = lambda done, size: None,
    ) -> BackupInfo:
        return self._loop.run(self._cluster.backup(snapshot, stream, since=since, progress=progress))

    def restore(self, backups: Sequence[BinaryIO], name: str, **options: Unpack[CopyOptions]) -> VolumeInfo:
        return self._loop.run(self._cluster.restore(backups, name, **options))

    def mount(self, name: str, path: str | Path, **options: Any) -> Mount:
        """The options are those of :meth:`moorage.Cluster.mount`."""
        return Mount(self._loop.run(self._cluster.mount(name, path, **options)), self._loop)

    def mounts(self, *, state_dir: str | Path | None = None) -> list[Mount]:
        return [Mount(each, self._loop) for each in self._loop.run(self._cluster.mounts(state_dir=state_dir))]

    def umount(
        self,
        what: str | Path,
        *,
        force: bool = False,
        timeout: float = 60.0,
        state_dir: str | Path | None = None,
    ) -> None:
        self._loop.run(self._cluster.umount(what, force=force, timeout=timeout, state_dir=state_dir))

    def set_quota(
        self, principal: str, *, capacity: int | str | None = None, volumes: int | None = None
    ) -> Quota:
        return self._loop.run(self._cluster.set_quota(principal, capacity=capacity, volumes=volumes))

    def remove_quota(self, principal: str) -> Quota:
        return self._loop.run(self._cluster.remove_quota(principal))

    def quotas(self) -> list[Quota]:
        return self._loop.run(self._cluster.quotas())

    def move(self, name: str, device: str, *, to: str = "") -> int:
        return self._loop.run(self._cluster.move(name, device, to=to))

    def why(self, name: str) -> list[Finding]:
        return self._loop.run(self._cluster.why(name))

    def events(self, *, after: int = -20, about: str = "") -> tuple[list[dict[str, Any]], int]:
        return self._loop.run(self._cluster.events(after=after, about=about))

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self._cluster.snapshots, self._loop)

    @property
    def places(self) -> Places:
        return Places(self._cluster.places, self._loop)

    def mount_table(self, version: int | None = None) -> MountTable:
        return self._loop.run(self._cluster.mount_table(version))

    def set_mount_table(self, text: str, *, version: int) -> int:
        return self._loop.run(self._cluster.set_mount_table(text, version=version))

    def resolve(self, name: str = "", *, state_dir: str | Path | None = None) -> list[Storage]:
        return self._loop.run(self._cluster.resolve(name, state_dir=state_dir))

    def close(self) -> None:
        try:
            self._loop.run(self._cluster.close())
        finally:
            self._loop.stop()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Snapshots:
    """See :class:`moorage.client.snapshots.Snapshots`."""

    def __init__(self, snapshots: AsyncSnapshots, loop: _Loop) -> None:
        self._snapshots = snapshots
        self._loop = loop

    def create(self, name: str, *volumes: str) -> list[SnapshotInfo]:
        return self._loop.run(self._snapshots.create(name, *volumes))

    def list(self, volume: str) -> list[SnapshotInfo]:
        return self._loop.run(self._snapshots.list(volume))

    def delete(self, snapshot: str) -> None:
        self._loop.run(self._snapshots.delete(snapshot))

    def rollback(
        self, snapshot: str, *, force: bool = False, progress: Progress = lambda done, size: None
    ) -> int:
        return self._loop.run(self._snapshots.rollback(snapshot, force=force, progress=progress))


class Places:
    """See :class:`moorage.client.places.Places`."""

    def __init__(self, places: AsyncPlaces, loop: _Loop) -> None:
        self._places = places
        self._loop = loop

    def devices(self, kind: Kind, name: str) -> list[str]:
        return self._loop.run(self._places.devices(kind, name))

    def drain(self, kind: Kind, name: str, *, to: str = "", force: bool = False, by: str = "") -> None:
        self._loop.run(self._places.drain(kind, name, to=to, force=force, by=by))

    def undrain(self, kind: Kind, name: str, *, by: str = "") -> None:
        self._loop.run(self._places.undrain(kind, name, by=by))

    def pause_balance(self) -> None:
        self._loop.run(self._places.pause_balance())

    def resume_balance(self) -> None:
        self._loop.run(self._places.resume_balance())

    def evict(self, kind: Kind, name: str, *, force: bool = False) -> list[str]:
        return self._loop.run(self._places.evict(kind, name, force=force))

    def moves(self, devices: list[str] | None = None) -> Moves:
        return self._loop.run(self._places.moves(devices))

    def forget(self, kind: Kind, name: str, devices: list[str]) -> None:
        self._loop.run(self._places.forget(kind, name, devices))


class Volume:
    """See :class:`moorage.Volume`. A context manager that detaches at the end."""

    def __init__(self, volume: AsyncVolume, loop: _Loop) -> None:
        self._volume = volume
        self._loop = loop

    @property
    def name(self) -> str:
        return self._volume.name

    @property
    def size(self) -> int:
        return self._volume.size

    @property
    def epoch(self) -> int:
        return self._volume.epoch

    @property
    def durability(self) -> str:
        return self._volume.durability

    @property
    def read_only(self) -> bool:
        return self._volume.read_only

    @property
    def detached(self) -> bool:
        return self._volume.detached

    def read(self, offset: int, length: int) -> bytes:
        return self._loop.run(self._volume.read(offset, length))

    def readinto(self, offset: int, into: bytearray | memoryview) -> None:
        self._loop.run(self._volume.readinto(offset, into))

    def read_from(self, host: str, offset: int, length: int) -> bytes:
        return self._loop.run(self._volume.read_from(host, offset, length))

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self._loop.run(self._volume.write(offset, data, fua=fua))

    def write_zeroes(self, offset: int, length: int, *, fua: bool = False) -> None:
        self._loop.run(self._volume.write_zeroes(offset, length, fua=fua))

    def discard(self, offset: int, length: int) -> None:
        self._loop.run(self._volume.discard(offset, length))

    def flush(self) -> None:
        self._loop.run(self._volume.flush())

    def resize(self, size: int | str) -> None:
        self._loop.run(self._volume.resize(size))

    def detach(self, timeout: float = 10.0) -> None:
        self._loop.run(self._volume.detach(timeout))

    def describe(self) -> dict[str, Any]:
        async def describe() -> dict[str, Any]:  # on the loop: it asks its clock
            return self._volume.describe()

        return self._loop.run(describe())

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


class Mount:
    """See :class:`moorage.gateway.mount.mounting.Mount`, whose fields it has. A context manager that
    unmounts."""

    def __init__(self, mount: AsyncMount, loop: _Loop) -> None:
        self._mount = mount
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mount, name)

    def unmount(self, *, force: bool = False, timeout: float = 60.0) -> None:
        self._loop.run(self._mount.unmount(force=force, timeout=timeout))

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()
