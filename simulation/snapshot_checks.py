"""Snapshots, looked at from outside: what metadata has, and what the replicas list.

Owns the looking: it may read what the processes hold, and must never change it.
"""

from __future__ import annotations

from moorage.metadata import records
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.simulation.checks import metadata_state, store_of
from moorage.simulation.cluster import Host, SimCluster


def wrong_lists(cluster: SimCluster) -> str:
    """Where metadata and the replicas of a group do not agree on its snapshots, or one is not ready for ever;
    empty when all is well."""
    kv = metadata_state(cluster)
    if kv is None:
        return "nobody leads metadata"
    if sets := list(kv.scan(records.SNAPSHOT_SETS)):
        return f"sets are being created: {sets}"
    for volume in records.volumes(kv):
        if going := [each for each in records.snapshots(volume) if each["state"] != records.READY]:
            return f"snapshots of {volume['name']} come or go: {going}"
        for group in volume["groups"]:
            index = group["group"]
            wanted = sorted({each["lsns"][index] for each in records.snapshots(volume)})
            for host in cluster.hosts:
                for replica in store_of(host).replicas.values():
                    info = replica.info
                    listed = replica.table.snapshots
                    if (info.volume, info.group) == (volume["id"], index) and listed != wanted:
                        return (
                            f"{host.name} lists {listed} of volume {volume['name']} group {index}, metadata"
                            f" has {wanted}"
                        )
    return ""


def versions_of(host: Host) -> list[tuple[str, int]]:
    """Where blocks are that only snapshots show, of those in memory: file and offset."""
    if not host.ready:
        return []
    store = store_of(host)
    segments = store.log.segments
    return [
        (segments[version.location >> OFFSET_BITS].name, version.location & OFFSET_MASK)
        for _, replica in sorted(store.replicas.items())
        for _, page in sorted(replica.table.pages.items())
        for _, version in page.by_age()
        if version.location >> OFFSET_BITS in segments
    ]
