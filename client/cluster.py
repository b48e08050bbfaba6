"""A cluster as a program sees it: create, list, show, resize, delete and attach volumes.

Owns the connections to the registry, to the leaders of the metadata groups and (through the pool) to
devices; one ``Cluster`` per event loop is enough for any number of volumes. It holds no state that
matters: everything can be asked for again. Which metadata group owns a name is remembered, and asked for
anew when that group says that it does not know the name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from moorage.client import answers, backup, copying, uri
from moorage.client import config as configuration
from moorage.client.attachment import Attachment, after_the_lease
from moorage.client.backup import BackupInfo
from moorage.client.keys import Keys
from moorage.client.members import REGISTRY, Members
from moorage.client.mount_table import MountTable
from moorage.client.mount_table import check as check_mount_table
from moorage.client.nodes import NodePool
from moorage.client.objects.bucket import Bucket
from moorage.client.objects.buckets import Buckets
from moorage.client.objects.copies import BucketCopies, measure_bucket
from moorage.client.places import Places
from moorage.client.quota import Quota
from moorage.client.redundancy import Redundancy, measure
from moorage.client.snapshots import Progress, Snapshots
from moorage.client.succession import Succession
from moorage.client.volume import Volume
from moorage.client.why import Facts, Finding, about_bucket, about_device, about_host, about_volume
from moorage.wire.errors import Invalid, MoorageError, NameTaken, NotFound, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.registry import RegistryClient
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect as connect_to

if TYPE_CHECKING:
    from moorage.gateway.mount.mounting import Mount
    from moorage.gateway.table.resolving import Storage

CALL_TIMEOUT = 10.0
DEFAULT_PRINCIPAL = "default"
REDUNDANCY_S = 3.0  # a host that is so late is as good as lost to who asks
NOTE_MAX = 256
SILENT_S = 3.0  # a member that takes longer to answer counts as silent


@dataclass(frozen=True)
class VolumeInfo:
    """A volume as metadata describes it. ``size`` in bytes; ``holder`` is who has it attached, or None, and
    ``lease_left_ms`` for how long nobody takes it over unasked, unless it renews; ``fs`` is ``{"type",
    "state"}`` of the file system that mounts made or are to make of it, or None; ``iops`` and ``bw`` are its
    ceilings, operations and bytes a second, 0 for none; ``principal`` is whose quota it counts for.
    ``snapshots``: ``{id, name, state, size, lsns, set, put, created_ms, children}`` each; ``parent`` of a
    clone: ``{volume, name, snapshot, snapshot_name, size}``, ids and names, or None; ``rollback``: the id of
    the snapshot to which it is being rolled back, or 0."""

    id: int
    name: str
    size: int
    replicas: int
    durability: str
    epoch: int
    state: str
    groups: list[dict[str, Any]]
    created_ms: int
    holder: dict[str, Any] | None
    holder_alive: bool
    lease_left_ms: int
    fs: dict[str, str] | None
    iops: int = 0
    bw: int = 0
    principal: str = DEFAULT_PRINCIPAL
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    parent: dict[str, Any] | None = None
    rollback: int = 0

    @classmethod
    def from_wire(cls, value: Any) -> VolumeInfo:
        """A field that has a default is one that an older service does not know. Raises ProtocolError."""
        answers.check_volume(value)
        known = {each.name for each in fields(cls) if each.default is each.default_factory is MISSING}
        return cls(
            **{each.name: value.get(each.name) for each in fields(cls) if each.name in known | value.keys()}
        )

    @property
    def has_writer(self) -> bool:
        """Whether a living holder has it to write; who only recovers makes room for everybody."""
        return self.holder is not None and self.holder_alive and not self.holder["recovers"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def connect(
    cluster: str | None = None,
    *,
    registry: str | None = None,
    secret_file: str | Path | None = None,
    host: str | None = None,
    principal: str | None = None,
    timeout: float = CALL_TIMEOUT,
) -> Cluster:
    """Connect to a cluster, and check that its registry answers.

    ``cluster``: a configured name, an SRV name or ``host:port``; or give ``registry`` (``"host:port,..."`` or
    ``"srv:NAME"``); or neither: ``$MOORAGE_REGISTRY``, else the cluster configured as ``default``.
    ``secret_file``: the cluster's secret (mode 0600), default ``$MOORAGE_SECRET_FILE``. ``host``: the name
    of the host that this program runs on, so that reads prefer replicas there (default ``$MOORAGE_HOST``).
    ``principal``: for whose quota the volumes count that it creates (default ``$MOORAGE_PRINCIPAL``).

    Raises :class:`~moorage.errors.Invalid` (configuration), :class:`~moorage.errors.AuthenticationFailed`, or
    :class:`~moorage.errors.Unavailable` when no registry answered within ``timeout`` seconds.
    """
    settled = configuration.load(cluster, registry=registry, secret_file=secret_file, principal=principal)
    found = Cluster(
        settled, ClusterSecret.load(settled.secret_file), host=host or os.environ.get("MOORAGE_HOST")
    )
    try:
        await found.status(timeout=timeout)
    except BaseException:
        await found.close()
        raise
    return found


class Cluster:
    """Made by :func:`moorage.connect`. An async context manager; :meth:`close` detaches what is attached."""

    def __init__(
        self, config: configuration.ClusterConfig, secret: ClusterSecret, *, host: str | None = None
    ) -> None:
        self.config = config
        self.hello = Hello(
            service="client",
            cluster=secret.cluster,
            name=host or socket.gethostname(),
            instance=secrets.token_hex(8),
            extra={},
        )
        self._secret = secret
        self._registry = RegistryClient(config.registry, hello=self.hello, secret=secret, check=answers.check)
        self._metadata: dict[str, LeaderClient] = {}
        self._owner: dict[str, str] = {}  # name -> metadata group
        self._nodes = NodePool(self.hello, secret)
        self._volumes: set[Volume] = set()
        self.keys = Keys(self._ask_registry, secret, self._by)
        self.buckets = Buckets(
            self._nodes, self._call_owner, self._call_for_new, self._call_groups, config.principal
        )

    # -- volumes -------------------------------------------------------------------------------------

    async def create_volume(
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
        """Create a volume. ``size``: bytes, or text such as ``"10GiB"``; a multiple of 4096 from 1 MiB to
        64 TiB. ``replicas``: 1, 3 or 5, on as many hosts. ``groups``: replica groups it is striped over,
        fixed for life (0: a default by size). ``durability``: ``"sync"`` or ``"writeback"``. ``fs``: what its
        first mount makes of it, ``"ext4"`` or ``"xfs"``. ``iops``, ``bw``: ceilings, see :meth:`set_volume`.
        ``principal``: whose quota it counts for (default: the one that this client is configured with).
        ``parent``: a snapshot, ``"VOLUME@SNAPSHOT"``, of which it is to be a clone, at least as large (and
        without ``size`` just so); it lives in the metadata group of that volume.

        Repeating a call whose outcome is unknown is not idempotent: it may raise NameTaken for the first one.
        Errors: NameTaken, NotEnoughHosts, NoSpace, LimitExceeded (past a quota, too), Invalid; for a clone
        NotFound, and Busy while the snapshot is not ready.
        """
        if size is None and parent is None:
            raise Invalid(f"volume {name!r} needs a size: only a clone has that of its parent")
        params = {
            "name": uri.check_name(name),
            "replicas": replicas,
            "groups": groups,
            "durability": durability,
            "fs": {"type": fs, "state": "new"} if fs else None,
            "request": secrets.token_hex(16),
        }
        later = {"iops": iops, "bw": uri.parse_size(bw), "principal": principal or self.config.principal}
        params |= {key: value for key, value in later.items() if value}  # an older service knows none of them
        if size is not None:
            params["size"] = uri.parse_size(size)
        if parent is not None:
            volume, snapshot = uri.parse_snapshot(parent)
            params["parent"] = {"volume": volume, "snapshot": snapshot}
            group = await self._locate(volume)
        else:
            group = await self._group_for_new(name)
        result = await self._client_of(group).call("metadata.create_volume", params, timeout=timeout)
        self._owner[name] = group
        return VolumeInfo.from_wire(result)

    async def list_volumes(self) -> list[VolumeInfo]:
        """All volumes of all metadata groups, by name."""
        found: list[VolumeInfo] = []
        for group in (await self._view())["groups"]:
            page: dict[str, Any] = {"next": ""}
            while page["next"] is not None:
                params = {"after": page["next"]}
                client = self._client_of(group)
                page = await client.call("metadata.list_volumes", params, timeout=CALL_TIMEOUT)
                found += [VolumeInfo.from_wire(value) for value in page["volumes"]]
        return sorted(found, key=lambda volume: volume.name)

    async def show(self, name: str) -> VolumeInfo:
        """One volume by name or URI; NotFound."""
        return VolumeInfo.from_wire(await self._call_owner(name, "metadata.show_volume", {}))

    async def volume_or_bucket(self, name: str) -> VolumeInfo | None:
        """The volume of this name; None where it is a bucket's. NotFound."""
        try:
            return await self.show(name)
        except NotFound:
            raise
        except Invalid:
            return None

    async def resize(self, name: str, size: int | str) -> VolumeInfo:
        """Grow a volume; an attached holder hears of it with its lease, within about a second."""
        params = {"size": uri.parse_size(size)}
        return VolumeInfo.from_wire(await self._call_owner(name, "metadata.resize_volume", params))

    async def move(self, name: str, device: str, *, to: str = "") -> int:
        """Move what a volume has on a device to device ``to``, or to where placement says; how many replicas
        are on their way. :meth:`show` tells when they are there. Raises NotFound, NotEnoughHosts."""
        params = {"device": device, "to": to}
        return int((await self._call_owner(name, "metadata.move_replica", params))["moves"])

    async def set_volume(
        self, name: str, *, iops: int | None = None, bw: int | str | None = None
    ) -> VolumeInfo:
        """Change the ceilings of a volume: ``iops`` operations and ``bw`` bytes a second (or text such as
        ``"50M"``), 0 for none; what is None stays. Its holder keeps them within about a second, readers
        within three; each attachment counts for itself. Nothing fails because a ceiling lets it wait."""
        wanted = {"iops": iops, "bw": None if bw is None else uri.parse_size(bw)}
        params = {key: value for key, value in wanted.items() if value is not None}
        return VolumeInfo.from_wire(await self._call_owner(name, "metadata.set_volume", params))

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its data. Busy while somebody holds it, unless ``force``."""
        name = self._volume_name(name)
        params = {"force": force, "request": secrets.token_hex(16)}
        await self._call_owner(name, "metadata.delete_volume", params, timeout=30.0)
        self._owner.pop(name, None)

    async def attach(
        self,
        name: str,
        *,
        read_only: bool = False,
        force: bool = False,
        io_timeout: float | None = None,
        timeout: float = 15.0,
        wait: float = 0.0,
        succession: Succession | None = None,
        rollback: str = "",
    ) -> Volume:
        """Attach a volume by name or URI (options ``mode=ro|rw`` and ``io_timeout`` seconds; arguments win),
        or a snapshot, ``"VOLUME@SNAPSHOT"``, read-only.

        One process at a time writes to a volume; Busy says who does. ``force`` takes it over: the other
        one is fenced, nothing it tries from then on takes effect. ``read_only`` attaches beside a writer:
        what is read is a prefix of its writes that never goes back; without a writer the logs are recovered
        first, so that all that was acknowledged is seen. ``io_timeout`` (default 60, 0 for
        ever): how long an operation may wait for a majority before it fails with NoQuorum. ``wait``: seconds
        to wait for a holder that seems dead, until its lease is over. ``rollback``: for who writes that
        snapshot's contents into the volume (:meth:`moorage.client.snapshots.Snapshots.rollback`), and until
        it is complete for nobody else. Raises Busy, NotFound, or Unavailable when no majority of the members
        answered within ``timeout`` seconds; it says whom it waited for.
        """
        address = uri.parse(name)
        self.check_here(address)
        read_only = read_only or uri.read_only(address)
        if io_timeout is None:
            io_timeout = uri.io_timeout(address)
        opening = self._opening(
            address, read_only, force, io_timeout, timeout, succession=succession, rollback=rollback
        )
        volume = await after_the_lease(opening, wait)
        self._volumes = {other for other in self._volumes if not other.detached} | {volume}
        return volume

    def _opening(
        self,
        address: uri.Address,
        read_only: bool,
        force: bool,
        io_timeout: float,
        timeout: float,
        **more: Any,
    ) -> Callable[[], Awaitable[Volume]]:
        async def open_snapshot(name: str) -> Volume:
            """For a clone, which detaches it."""
            below = uri.parse(name)
            return await self._opening(below, True, False, io_timeout, timeout, is_below=True)()

        return functools.partial(
            Attachment.open,
            lambda method, params, wait: self._call_owner(address.name, method, params, timeout=wait),
            self._nodes,
            name=address.name,
            read_only=read_only,
            force=force,
            io_timeout=io_timeout,
            timeout=timeout,
            holder={
                "host": self.hello.name,
                "pid": os.getpid(),
                "program": Path(sys.argv[0] or "python").name,
            },
            snapshot=address.snapshot,
            open_snapshot=open_snapshot,
            **more,
        )

    async def bucket(self, name: str) -> Bucket:
        """A bucket by name, to put and get objects: see :class:`moorage.client.objects.bucket.Bucket`."""
        return await self.buckets.open(name)

    async def copy_volume(
        self,
        source: str,
        name: str,
        *,
        size: int | str | None = None,
        replicas: int | None = None,
        groups: int | None = None,
        durability: str | None = None,
        progress: Progress = lambda done, size: None,
    ) -> VolumeInfo:
        """A new, independent volume with the contents of ``source``: a snapshot, ``"VOLUME@SNAPSHOT"``, or a
        volume, of which a snapshot is made for as long as it takes. Who writes to the source goes on. What
        is None is as with the source; ``size`` is not smaller. When it fails or is cancelled, the new volume
        is deleted again. Raises what :meth:`create_volume` and :meth:`attach` do."""
        given = {"replicas": replicas, "groups": groups, "durability": durability}
        return await copying.copy_volume(self, source, name, size=size, given=given, progress=progress)

    async def backup(
        self,
        snapshot: str,
        stream: BinaryIO,
        *,
        since: str = "",
        progress: Progress = lambda done, size: None,
    ) -> BackupInfo:
        """Write a backup of ``"VOLUME@SNAPSHOT"`` to a binary file, pipe or the like, which is neither
        flushed nor closed. ``since``: an older snapshot of the same volume: only what was written or
        discarded after that one. When this raises, what was written is no backup, and no restore takes it."""
        return await backup.create(self, snapshot, stream, since=since, progress=progress)

    async def restore(
        self,
        backups: Sequence[BinaryIO],
        name: str,
        *,
        size: int | str | None = None,
        replicas: int | None = None,
        groups: int | None = None,
        durability: str | None = None,
        progress: Progress = lambda done, size: None,
    ) -> VolumeInfo:
        """A new volume from backups: a full one, then incremental ones, each of what changed since the one
        before. Options and their defaults are as in :meth:`copy_volume`. When it fails or is cancelled, the
        volume is deleted again. Raises NameTaken where there is one, Invalid when the backups do not follow
        one another, Corrupt or VersionMismatch for one that cannot be read."""
        given = {"replicas": replicas, "groups": groups, "durability": durability}
        return await backup.restore(self, backups, name, size=size, given=given, progress=progress)

    async def mount(
        self,
        name: str,
        path: str | Path,
        *,
        fs: str | None = None,
        owner: tuple[int, int] | None = None,
        read_only: bool = False,
        force: bool = False,
        overwrite: bool = False,
        options: Sequence[str] = (),
        wait: float = 10.0,
        state_dir: str | Path | None = None,
        by: str = "",
    ) -> Mount:
        """Mount a volume or, read-only, a snapshot (name or URI) as a file system at the directory ``path``;
        needs root.

        A volume that is new and blank is formatted first (``fs``: ``"ext4"``, the default, or ``"xfs"``;
        ``owner``: uid and gid of its root directory); one that holds anything never is, unless ``overwrite``.
        A URI with ``size=`` creates the volume where there is none. ``force`` takes it from its holder;
        ``wait``: seconds for the lease of a holder that seems dead. ``options``: of mount(8). ``by``: who
        asked, for `moorage mounts`. The mount stays after this process, until
        :meth:`~moorage.gateway.mount.mounting.Mount.unmount`. Raises Busy, Invalid, NotFound, Denied,
        Unavailable; nothing is left behind then.
        """
        from moorage.gateway.mount import mounting
        from moorage.gateway.mount.record import Record, StateDirectory, new_id, state_directory

        address = uri.parse_volume(name)
        self.check_here(address)
        record = Record(
            id=new_id(),
            volume=address.shown,
            registry=self.config.registry,
            secret_file=str(self.config.secret_file.absolute()),
            host=self.hello.name,
            target=str(await asyncio.to_thread(Path(path).absolute)),
            fs=fs or address.options.get("fs", ""),
            options=list(options),
            read_only=read_only or uri.read_only(address),
            force=force,
            overwrite=overwrite,
            owner=owner,
            io_timeout=uri.io_timeout(address),
            wait=wait,
            by=by or f"{Path(sys.argv[0] or 'python').name} (pid {os.getpid()})",
        )
        mounting.check(record)
        await self._create_if_missing(address)
        return await mounting.mount(StateDirectory(state_directory(state_dir)), record)

    async def mounts(self, *, state_dir: str | Path | None = None) -> list[Mount]:
        """What is mounted on this host, by whomever and of any cluster; the dead ones too."""
        from moorage.gateway.mount import mounting
        from moorage.gateway.mount.record import StateDirectory, state_directory

        return await asyncio.to_thread(mounting.mounts, StateDirectory(state_directory(state_dir)))

    async def umount(
        self,
        what: str | Path,
        *,
        force: bool = False,
        timeout: float = 60.0,
        state_dir: str | Path | None = None,
    ) -> None:
        """Unmount a mount point or a volume of this host, whoever mounted it; needs root. ``timeout``:
        seconds to write back. Raises NotFound that says what is mounted, Denied, and what
        :meth:`~moorage.gateway.mount.mounting.Mount.unmount` does."""
        from moorage.gateway.mount import system, unmounting
        from moorage.gateway.mount.record import StateDirectory, state_directory

        system.check_root()
        place = unmounting.find(StateDirectory(state_directory(state_dir)), str(what))
        await unmounting.unmount(place, force=force, timeout=timeout)

    async def _create_if_missing(self, address: uri.Address) -> None:
        """As its options say; without a size it has to be there."""
        options = address.options
        if "size" not in options:
            return
        try:
            await self.show(address.name)
        except NotFound:
            with contextlib.suppress(NameTaken):  # somebody else was faster
                await self.create_volume(address.name, options["size"], **uri.creation(options))

    def check_here(self, address: uri.Address) -> None:
        """Raises Invalid when it is of another cluster."""
        here = ("", self.config.name, self.config.registry)
        if address.cluster not in here and f"srv:{address.cluster}" not in here:
            shown = self.config.name or self.config.registry
            raise Invalid(f"{address} is not in {shown!r}: connect to {address.cluster!r} for it")

    # -- quotas ---------------------------------------------------------------------------------------

    async def set_quota(
        self, principal: str, *, capacity: int | str | None = None, volumes: int | None = None
    ) -> Quota:
        """Limit the volumes of a principal: ``capacity`` of all in sum (bytes, or text such as ``"1T"``), and
        their number; None: any. It replaces the quota that there was. What would be past it is refused with
        LimitExceeded, the numbers in the message; what there is already stays."""
        wanted = {"capacity": None if capacity is None else uri.parse_size(capacity), "volumes": volumes}
        params = {"principal": uri.check_principal(principal), **wanted}
        return Quota.from_wire(await self._registry.call("registry.set_quota", params, timeout=CALL_TIMEOUT))

    async def remove_quota(self, principal: str) -> Quota:
        """No limit any more; what it has. NotFound when it had no quota."""
        params = {"principal": principal}
        answer = await self._registry.call("registry.remove_quota", params, timeout=CALL_TIMEOUT)
        return Quota.from_wire(answer)

    async def quotas(self) -> list[Quota]:
        """Of every principal that has a quota or volumes, by name."""
        found: list[Quota] = []
        after: str | None = ""
        while after is not None:
            page = await self._registry.call("registry.quotas", {"after": after}, timeout=CALL_TIMEOUT)
            found += [Quota.from_wire(row) for row in page["quotas"]]
            after = page["next"]
        return found

    # -- the mount table -----------------------------------------------------------------------------

    async def mount_table(self, version: int | None = None) -> MountTable:
        """The mount table, or an older version of it: NotFound when that is not kept any more."""
        params = {"version": version}
        answer = await self._registry.call("registry.mount_table", params, timeout=CALL_TIMEOUT)
        return MountTable.from_wire(answer)

    async def newer_mount_table(self, known: int | None) -> MountTable | None:
        """The mount table, or None when it is the ``known`` version: cheap to ask again and again."""
        found = await self._registry.call("registry.mount_table", {"known": known}, timeout=CALL_TIMEOUT)
        return MountTable.from_wire(found) if found.get("text") is not None else None

    async def set_mount_table(self, text: str, *, version: int) -> int:
        """Replace the mount table if it is at ``version`` still (0: there was none); the new version. Raises
        Invalid that names each bad line by its number, and Stale when somebody else was faster."""
        check_mount_table(text)
        params = {
            "version": version,
            "text": text,
            "by": self._by,
            "request": secrets.token_hex(16),
        }
        answer = await self._registry.call("registry.set_mount_table", params, timeout=CALL_TIMEOUT)
        return int(answer["version"])

    async def resolve(self, name: str = "", *, state_dir: str | Path | None = None) -> list[Storage]:
        """Where a name lives: the volume and the lines of the mount table that are called so (by name, URI or
        mount point); all there are without a name. NotFound."""
        from moorage.gateway.mount.record import StateDirectory, state_directory
        from moorage.gateway.table.resolving import resolve

        return await resolve(self, name, StateDirectory(state_directory(state_dir)))

    # -- the cluster ---------------------------------------------------------------------------------

    @property
    def snapshots(self) -> Snapshots:
        """Create, list and delete snapshots of volumes, and roll back to one."""

        async def ask(name: str, method: str, params: dict[str, Any], timeout: float) -> Any:
            return await self._call_owner(name, method, params, timeout=timeout)

        return Snapshots(ask, self.attach)

    @property
    def places(self) -> Places:
        """Hosts and devices, to be emptied or given up."""
        return Places(self._ask_registry, self._call_groups, self._by)

    async def why(self, name: str) -> list[Finding]:
        """What is not as it should be with a volume, bucket, host or device, since when, and what is done
        about it. NotFound when there is nothing of that name."""
        view, now_ms = await self._view(), time.time_ns() // 1_000_000
        if name in view["devices"]:
            return about_device(name, Facts(view, await self.places.moves([name]), now_ms=now_ms))
        if name in view["hosts"]:
            on_it = [device for device, row in view["devices"].items() if row["host"] == name]
            return about_host(name, Facts(view, await self.places.moves(on_it), now_ms=now_ms))
        name = self._volume_name(name)
        volume = await self.volume_or_bucket(name)
        if volume is None:
            found = await self.bucket_copies(name)
            copies = {copy.replica: copy for copy in found.redundancy.copies}
            return about_bucket(
                name, found.groups, Facts(view, await self.places.moves(), copies, now_ms=now_ms)
            )
        copies = {copy.replica: copy for copy in (await self.redundancy(volume)).copies}
        devices = sorted({group["wish"]["device"] for group in volume.groups if group["wish"]})
        answers = await asyncio.gather(*(self._learners(device, volume.id) for device in devices))
        learners = {row["replica"]: row for answer in answers for row in answer}
        facts = Facts(view, await self.places.moves(), copies, learners, now_ms)
        return about_volume(volume.to_json(), facts)

    async def _learners(self, device: str, volume: int) -> list[dict[str, Any]]:
        """And whatever else it has of the volume; nothing is known of them when it does not answer."""
        try:
            return await self.list_replicas(device, volume=volume, timeout=SILENT_S)
        except MoorageError:
            return []

    async def events(self, *, after: int = -20, about: str = "") -> tuple[list[dict[str, Any]], int]:
        """What has happened: ``{number, at_ms, kind, about, text}`` each, behind number ``after`` (negative:
        the last so many), about a name or all; and where to go on from."""
        params = {"after": after, "about": about}
        answer = await self._registry.call("registry.events", params, timeout=CALL_TIMEOUT)
        return answer["events"], answer["next"]

    @property
    def members(self) -> Members:
        """Of the Raft groups: the registry and the metadata groups."""

        async def call(group: str, method: str, params: dict[str, Any]) -> Any:
            client = self._registry if group == REGISTRY else self._client_of(group)
            return await client.call(f"raft.{group}.{method}", params, timeout=CALL_TIMEOUT)

        async def groups() -> list[str]:
            return list((await self._view())["groups"])

        async def trouble(group: str, name: str, address: str) -> str:
            service = REGISTRY if group == REGISTRY else "metadata"
            row = {"service": service, "name": name, "address": address}
            return await self._ask_service(row, SILENT_S)

        async def forget(service: str) -> None:
            params = {"kind": "service", "name": service}
            await self._registry.call("registry.forget", params, timeout=CALL_TIMEOUT)

        return Members(call, groups, trouble, forget)

    async def metadata_status(self) -> list[dict[str, Any]]:
        """What each metadata group says of itself: volumes, tasks under way, replicas still to be dropped."""
        return await self._call_groups("metadata.status", {})

    async def _call_groups(self, method: str, params: dict[str, Any]) -> list[Any]:
        names = (await self._view())["groups"]
        calls = (self._client_of(name).call(method, params, timeout=CALL_TIMEOUT) for name in names)
        return list(await asyncio.gather(*calls))

    @property
    def _by(self) -> str:
        """Who asks, as others are told."""
        return f"{Path(sys.argv[0] or 'python').name} (pid {os.getpid()}) on {self.hello.name}"[:NOTE_MAX]

    async def status(self, *, timeout: float = CALL_TIMEOUT) -> dict[str, Any]:
        """The registry's view: hosts and devices with their health and its reasons, services, metadata
        groups."""
        return await self._view(timeout)

    async def describe_device(self, device: str, *, timeout: float = CALL_TIMEOUT) -> dict[str, Any]:
        """What a device says of itself: room (bytes that writers may still be granted), damaged replicas, its
        directory, its process. NotFound, or Unavailable when it does not answer."""
        described: dict[str, Any] = await self._ask_device(device, "node.describe", timeout)
        return described

    async def list_replicas(
        self, device: str, *, volume: int | None = None, timeout: float = CALL_TIMEOUT
    ) -> list[dict[str, Any]]:
        """A row for each replica on a device (of the volume with this id only): of which volume, whether it
        is ``whole``, ``damaged``, has ``bad_blocks``, and when it was read back (``verified_ms``)."""
        params = {} if volume is None else {"volume": volume}
        rows: list[dict[str, Any]] = await self._ask_device(device, "node.list_replicas", timeout, params)
        return rows

    async def redundancy(self, volume: VolumeInfo, *, timeout: float = REDUNDANCY_S) -> Redundancy:
        """How many more host losses a volume survives now. A device that does not answer within ``timeout``
        seconds does not count."""
        return await measure(
            volume.groups, lambda device: self.list_replicas(device, volume=volume.id, timeout=timeout)
        )

    async def bucket_copies(self, name: str, *, timeout: float = REDUNDANCY_S) -> BucketCopies:
        """Where the replicas of a bucket are, what each lacks, and how many more host losses it survives now.
        A device that is not up, or does not answer within ``timeout`` seconds, does not count. NotFound, and
        Invalid for a volume."""
        devices = (await self._view())["devices"]

        async def ask(bucket: int, device: str) -> list[dict[str, Any]] | str:
            if device not in devices:
                return "its device is not in the registry"
            if (row := devices[device])["health"] != "up":
                return f"its device is {row['health']}: {row['reason']}"
            return await self.list_replicas(device, volume=bucket, timeout=timeout)

        return await measure_bucket(lambda: self.buckets.lacks(name), ask)

    async def scrub(
        self, device: str, replicas: list[int] | None = None, *, timeout: float = CALL_TIMEOUT
    ) -> list[int]:
        """Have a device read back these replicas, or all of its, now: which it has. Their rows in
        :meth:`list_replicas` show how far it is."""
        params = {} if replicas is None else {"replicas": replicas}
        begun: list[int] = await self._ask_device(device, "node.scrub", timeout, params)
        return begun

    async def silent_services(self, *, timeout: float = CALL_TIMEOUT) -> list[str]:
        """Members of the registry and of the metadata groups that do not answer, each with why."""
        rows = (await self._view(timeout))["services"]
        answers = await asyncio.gather(*(self._ask_service(row, timeout) for row in rows))
        return [answer for answer in answers if answer]

    async def _ask_service(self, row: dict[str, Any], timeout: float) -> str:
        try:
            conn = await connect_to(row["address"], hello=self.hello, secret=self._secret, timeout=timeout)
            try:
                described, _ = await conn.call(f"{row['service']}.describe", {}, timeout=timeout)
                answers.check(f"{row['service']}.describe", described)
            finally:
                conn.close()
                await conn.wait_closed()
        except MoorageError as error:
            return f"{row['service']} {row['name']}: {error}"
        found = described["name"]
        return "" if found == row["name"] else f"{row['service']} {row['name']}: {found} is at its address"

    async def _ask_device(
        self, device: str, method: str, timeout: float, params: dict[str, Any] | None = None
    ) -> Any:
        found = (await self._view(timeout))["devices"].get(device)
        if found is None:
            raise NotFound(f"device {device} is not in this cluster: `moorage status` shows all")
        conn = await connect_to(found["address"], hello=self.hello, secret=self._secret, timeout=timeout)
        try:
            if (who := conn.peer.extra.get("device")) != device:
                raise Unavailable(
                    f"{found['address']} is device {who} now, not {device}: it moved, ask again"
                )
            answer, _ = await conn.call(method, params or {}, timeout=timeout)
            answers.check(method, answer)
            return answer
        finally:
            conn.close()
            await conn.wait_closed()

    async def close(self) -> None:
        """Detach every volume and end all connections. Errors of a detach are raised at the end."""
        volumes, self._volumes = self._volumes, set()
        ended = await asyncio.gather(*(volume.detach() for volume in volumes), return_exceptions=True)
        await self.buckets.close()
        await self._nodes.close()
        await asyncio.gather(self._registry.close(), *(client.close() for client in self._metadata.values()))
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- who is asked --------------------------------------------------------------------------------

    async def _view(self, timeout: float = CALL_TIMEOUT) -> dict[str, Any]:
        view: dict[str, Any] = await self._registry.call("registry.view", {}, timeout=timeout)
        return view

    async def _call_owner(
        self, name: str, method: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """Call the metadata group that owns ``name``; when it does not know the name, look the owner up
        anew."""
        name = self._volume_name(name)
        remembered = self._owner.get(name)
        group = remembered or await self._locate(name)
        params = {"name": name, **params}
        try:
            return await self._client_of(group).call(method, params, timeout=timeout)
        except NotFound:
            self._owner.pop(name, None)
            if remembered is None or (group := await self._locate(name)) == remembered:
                raise
        return await self._client_of(group).call(method, params, timeout=timeout)

    @staticmethod
    def _volume_name(text: str) -> str:
        """Raises Invalid for a snapshot: only what takes one knows what to do with it."""
        address = uri.parse(text)
        if address.snapshot:
            raise Invalid(f"{text} is a snapshot: name the volume alone, {address.name}")
        return address.name

    async def _locate(self, name: str) -> str:
        try:
            found = await self._registry.call("registry.locate", {"name": name}, timeout=CALL_TIMEOUT)
        except NotFound:
            what = f"there is no volume or bucket {name!r}"
            text = f"{what}: `moorage volume list` and `moorage bucket list` show all"
            raise NotFound(text, name=name) from None
        self._owner[name] = found["group"]
        return str(found["group"])

    async def _ask_registry(self, method: str, params: dict[str, Any]) -> Any:
        return await self._registry.call(method, params, timeout=CALL_TIMEOUT)

    async def _call_for_new(self, name: str, method: str, params: dict[str, Any], *, timeout: float) -> Any:
        group = await self._group_for_new(name)
        answer = await self._client_of(group).call(method, params, timeout=timeout)
        self._owner[name] = group
        return answer

    async def _group_for_new(self, name: str) -> str:
        groups = sorted((await self._view())["groups"])
        if not groups:
            raise Unavailable("no metadata service has joined the cluster yet: start one, or wait a moment")
        return str(groups[xxhash.xxh3_64_intdigest(name.encode()) % len(groups)])

    def _client_of(self, group: str) -> LeaderClient:
        if group not in self._metadata:
            self._metadata[group] = self._leader_client(group)
        return self._metadata[group]

    async def _members_of(self, group: str) -> list[str]:
        services = (await self._view())["services"]
        return [row["address"] for row in services if row["service"] == "metadata" and row["group"] == group]

    def _leader_client(self, group: str) -> LeaderClient:
        return LeaderClient(
            lambda: self._members_of(group),
            service="metadata",
            hello=self.hello,
            secret=self._secret,
            check=answers.check,
        )
