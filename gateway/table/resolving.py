"""Where a name lives: volumes of the cluster and lines of its mount table, and where this host has them.

Owns the joining of the three: what metadata knows, what the table says, what is mounted here. It only looks.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from moorage.client import config as configuration
from moorage.client import uri
from moorage.client.cluster import Cluster, VolumeInfo
from moorage.client.mount_table import Line
from moorage.gateway.mount import system
from moorage.gateway.mount.record import Record, StateDirectory
from moorage.wire.errors import Invalid, NotFound


@dataclass(frozen=True)
class Storage:
    """``kind``: "volume", or that of its line; ``cluster``: of a volume; ``target`` and ``hosts``: of its
    line in the mount table (line 0: it has none); ``mounted_at``: on this host, None when that may not be
    known (it takes root); ``holder``: who has it attached anywhere, None for nobody, and for what is not of
    this cluster."""

    name: str
    uri: str
    kind: str
    cluster: str
    line: int
    target: str
    hosts: list[str]
    mounted_at: list[str] | None
    holder: dict[str, Any] | None
    holder_alive: bool


async def resolve(cluster: Cluster, name: str, directory: StateDirectory) -> list[Storage]:
    """See :meth:`moorage.Cluster.resolve`."""
    table = await cluster.mount_table()
    lines, _ = table.lines()
    volumes = {volume.name: volume for volume in await _volumes(cluster, name, lines)}
    here = _records(directory)
    found = []
    named = set()
    for line in lines:
        if name and not line.is_called(name):
            continue
        address = line.address
        volume = None
        if address is not None and _is_here(cluster, address):
            volume = volumes.get(address.name)
            named.add(address.name)
        found.append(_of_line(cluster, line, volume, here))
    found += [_of_volume(cluster, volume, here) for volume in volumes.values() if volume.name not in named]
    if name and not found:
        raise NotFound(
            f"{name!r} is no volume, and no line of the mount table: `moorage resolve` shows all", name=name
        )
    return found


async def _volumes(cluster: Cluster, name: str, lines: list[Line]) -> list[VolumeInfo]:
    if not name:
        return await cluster.list_volumes()
    called = {
        line.address.name
        for line in lines
        if line.address and line.is_called(name) and _is_here(cluster, line.address)
    }
    try:
        if _is_here(cluster, address := uri.parse(name)):
            called.add(address.name)
    except Invalid:
        pass  # not the name of a volume
    found = []
    for each in sorted(called):
        try:
            found.append(await cluster.show(each))
        except NotFound:
            continue  # a line may be there before its volume
    return found


def _is_here(cluster: Cluster, address: uri.Address) -> bool:
    return address.cluster in ("", cluster.config.name, cluster.config.registry)


def _records(directory: StateDirectory) -> list[Record] | None:
    if directory.path.is_dir() and not os.access(directory.path, os.R_OK | os.X_OK):
        return None
    found = []
    for place in directory.places():
        with contextlib.suppress(FileNotFoundError):  # it ends just now
            found.append(place.load())
    return found


def _of_line(cluster: Cluster, line: Line, volume: VolumeInfo | None, here: list[Record] | None) -> Storage:
    address = line.address
    if address is None:
        mounted = system.mounted_at(line.target)
        at: list[str] | None = [line.target] if mounted is not None else []
        where = ""
    else:
        where = address.cluster or _name_of(cluster)
        at = _mounted_at(address.name, here, _registry_of(cluster, address))
    return Storage(
        name=line.name,
        uri=line.source,
        kind="volume" if address else line.kind,
        cluster=where,
        line=line.number,
        target=line.target,
        hosts=list(line.hosts),
        mounted_at=at,
        holder=volume.holder if volume else None,
        holder_alive=bool(volume and volume.holder_alive),
    )


def _of_volume(cluster: Cluster, volume: VolumeInfo, here: list[Record] | None) -> Storage:
    return Storage(
        name=volume.name,
        uri=f"moorage:///{volume.name}",
        kind="volume",
        cluster=_name_of(cluster),
        line=0,
        target="",
        hosts=[],
        mounted_at=_mounted_at(volume.name, here, cluster.config.registry),
        holder=volume.holder,
        holder_alive=volume.holder_alive,
    )


def _name_of(cluster: Cluster) -> str:
    return cluster.config.name or cluster.config.registry


def _registry_of(cluster: Cluster, address: uri.Address) -> str:
    """ "" for a cluster that this host does not know: it has none of its volumes."""
    if _is_here(cluster, address):
        return cluster.config.registry
    try:
        return configuration.load(address.cluster).registry
    except Invalid:
        return ""


def _mounted_at(volume: str, here: list[Record] | None, registry: str) -> list[str] | None:
    """Every place where it is to be seen, such as in a namespace of `moorage automount`."""
    if here is None:
        return None
    devices = [each.device for each in here if (each.volume, each.registry) == (volume, registry)]
    return [entry.target for device in devices if device for entry in system.mounts_of(device)]
