"""Whether a cluster could bear to lose a host now, and how fast it is, as its own services say."""

from __future__ import annotations

from typing import Any

from moorage.client.cluster import Cluster
from moorage.client.redundancy import GOOD, UNTOLD, Copy
from moorage.framework.latency import Appends
from moorage.wire.errors import MoorageError, NotFound


async def what_is_wrong(cluster: Cluster) -> dict[str, str]:
    """By host: a device that is not up, a member that does not vote or answer, a copy of a volume or bucket
    that does not count. Nothing when the cluster could bear to lose as many hosts as ever."""
    found: dict[str, str] = {}
    for device, row in (await cluster.status())["devices"].items():
        if row["health"] != "up":
            found.setdefault(row["host"], f"device {device} of {row['host']} is {row['health']}")
    for group in await cluster.members.groups():
        for member in await cluster.members.list(group):
            if member.trouble or not member.voter:
                why = member.trouble or "does not vote yet"
                found.setdefault(member.name, f"{group}: {member.name} {why}")
    for volume in await cluster.list_volumes():
        for copy in (await cluster.redundancy(volume)).copies:
            if copy.state != GOOD:
                found.setdefault(copy.host, f"volume {volume.name} on {copy.host}: {copy.state}")
    for row in await cluster.buckets.list():
        for copy in await _copies_of(cluster, row):
            # What is to go round may be the release whose metadata says that: it must not wait for itself.
            if copy.state not in (GOOD, UNTOLD):
                found.setdefault(copy.host, f"bucket {row['name']} on {copy.host}: {copy.state}")
    return found


async def _copies_of(cluster: Cluster, bucket: dict[str, Any]) -> tuple[Copy, ...]:
    if bucket["state"] != "ready":
        return ()
    try:
        return (await cluster.bucket_copies(bucket["name"])).redundancy.copies
    except NotFound:  # it was deleted meanwhile
        return ()


async def appends_of(cluster: Cluster) -> dict[str, Appends]:
    """By host, of the devices that are up. A host has none while one of them does not answer, or is of a
    version that does not count."""
    found: dict[str, Appends] = {}
    unknown = set()
    for device, row in (await cluster.status())["devices"].items():
        host = row["host"]
        try:
            counted = (await cluster.describe_device(device))["appends"]
            made = Appends(tuple(counted["bounds_s"]), tuple(counted["counts"]))
        except (MoorageError, KeyError):
            unknown.add(host)
        else:
            found[host] = found[host] + made if host in found else made
    return {host: each for host, each in found.items() if host not in unknown}
