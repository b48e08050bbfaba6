"""Objects, looked at from outside: what metadata refers to is at every member, and nothing else is anywhere.

Owns the looking: it may read what the processes hold, and must never change it.
"""

from __future__ import annotations

from typing import Any

from moorage.metadata import records
from moorage.metadata.objects import invariants, layout
from moorage.node.objects import WRITTEN
from moorage.node.replica import Replica
from moorage.simulation.checks import metadata_state, store_of
from moorage.simulation.chunks import blocks_per_chunk
from moorage.simulation.cluster import Host, SimCluster


def wrong_objects(cluster: SimCluster) -> str:
    """Where a member lacks what it should have, or has what nothing refers to; empty when all is well."""
    kv = metadata_state(cluster)
    if kv is None:
        return "nobody leads metadata"
    for bucket in records.volumes(kv):
        if records.kind_of(bucket) == records.BUCKET and bucket["state"] == records.READY:
            invariants.validate(kv, bucket)
            if free := sum(1 for _ in layout.frees(kv, bucket["id"])):
                return f"{free} extents of {bucket['name']} are to be discarded yet"
            for group in bucket["groups"]:
                if found := _wrong_group(cluster, kv, bucket, group):
                    return found
    return ""


def _wrong_group(cluster: SimCluster, kv: Any, bucket: dict[str, Any], group: dict[str, Any]) -> str:
    number = group["group"]
    wanted = {
        address
        for extent in layout.extents(kv, bucket["id"], number)
        for address in range(extent.first, extent.end)
    }
    given = int(kv.get(layout.next_region_key(bucket["id"], number)) or 0)
    sums: dict[int, int] = {}
    for member in group["members"]:
        if next(layout.lacks(kv, bucket["id"], number, member["replica"]), None) is not None:
            return f"replica {member['replica']} on {member['host']} lacks something yet"
        host = next(host for host in cluster.hosts if host.name == member["host"])
        replica = store_of(host).replicas.get(member["replica"])
        if replica is None:
            return f"{host.name} has no replica {member['replica']}"
        held = _held(host, replica, given)
        if missing := wanted - held.keys():
            return (
                f"{host.name}: {len(missing)} blocks of {bucket['name']} are missing: {sorted(missing)[:5]}"
            )
        if extra := held.keys() - wanted:
            return (
                f"{host.name}: {len(extra)} blocks of {bucket['name']} are of no object: {sorted(extra)[:5]}"
            )
        for address, check in held.items():
            assert sums.setdefault(address, check) == check, f"{host.name}: block {address} is another one"
    return ""


def _held(host: Host, replica: Replica, chunks: int) -> dict[int, int]:
    """Checksum by address of all that is there."""
    assert host.process is not None
    return host.process.context.run(_held_there, host, replica, chunks)


def _held_there(host: Host, replica: Replica, chunks: int) -> dict[int, int]:
    found = {}
    index = store_of(host).index
    for chunk in range(chunks):
        cells = index.find(replica.table, chunk, 0, blocks_per_chunk())
        for block, (location, check, lsn) in enumerate(cells):
            if location:
                assert lsn == WRITTEN, f"{host.name}: chunk {chunk} block {block} has LSN {lsn}"
                found[chunk * blocks_per_chunk() + block] = check
    return found
