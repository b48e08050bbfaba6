"""May this cluster be drilled now, and which host may be hit? Pure: from answers to reasons and a host.

A drill takes one host away. So it is refused unless everything else is there: all hosts and services answer,
every replica of every volume is whole, and no volume has its only replica on the host that is hit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from moorage.client.cluster import VolumeInfo
from moorage.wire.errors import Invalid

HOSTS_MIN = 3  # of three replicas one may be away
BEHIND_MAX = 10_000  # records; the rows are not of one moment, and a busy volume writes thousands in between


@dataclass(frozen=True)
class Picture:
    """``view``: the registry's; ``replicas``: rows of ``node.list_replicas`` by device, or why it did not
    answer; ``silent``: services that do not answer."""

    view: dict[str, Any]
    replicas: dict[str, list[dict[str, Any]] | str]
    silent: list[str]
    volumes: list[VolumeInfo]


def unhealthy(picture: Picture) -> list[str]:
    """Why no host may be taken away now, one line each; empty when one may."""
    reasons = [
        f"host {name} is {host['health']}" + (f" ({host['reason']})" if host.get("reason") else "")
        for name, host in sorted(picture.view["hosts"].items())
        if host["health"] != "up"
    ]
    reasons += [f"{text}" for text in picture.silent]
    with_devices = {row["host"] for row in picture.view["devices"].values()}
    if len(with_devices) < HOSTS_MIN:
        reasons.append(f"{len(with_devices)} hosts have a device: {HOSTS_MIN} are needed")
    for device, rows in sorted(picture.replicas.items()):
        host = picture.view["devices"][device]["host"]
        if isinstance(rows, str):
            reasons.append(f"the device of {host} does not answer: {rows}")
            continue
        bad = [row for row in rows if row["damaged"] or not row["whole"] or not row["offered"]]
        if bad:
            reasons.append(f"host {host} has {_counted(len(bad), 'replica')} damaged or not whole yet")
    return reasons + _behind(picture)


def _behind(picture: Picture) -> list[str]:
    last: dict[tuple[int, int], list[int]] = defaultdict(list)
    for rows in picture.replicas.values():
        for row in rows if isinstance(rows, list) else ():
            last[row["volume"], row["group"]].append(int(row["last"]))
    late = {volume for (volume, _), found in last.items() if max(found) - min(found) > BEHIND_MAX}
    names = {volume.id: volume.name for volume in picture.volumes}
    return [f"a replica of volume {names.get(volume, volume)} is far behind" for volume in sorted(late)]


def alone_on(picture: Picture) -> dict[str, list[str]]:
    """Host to the volumes that have their only replica of some group there: they stop without it."""
    alone: dict[str, list[str]] = defaultdict(list)
    for volume in picture.volumes:
        for group in volume.groups:
            hosts = {member["host"] for member in group["members"]}
            if len(hosts) == 1 and volume.name not in alone[host := hosts.pop()]:
                alone[host].append(volume.name)
    return {host: volumes for host, volumes in alone.items() if volumes}


def choose_host(picture: Picture, members: Iterable[str], wanted: str | None, *, away: bool) -> str:
    """The host to hit, of those that hold the scratch volume (``members``). ``away``: it will be gone for a
    while, so nothing may depend on it alone. Raises Invalid with the hosts that could be named."""
    able = sorted(members)
    alone = alone_on(picture) if away else {}
    if wanted is not None and wanted not in able:
        known = "" if wanted in picture.view["hosts"] else "is not in this cluster; it "
        raise Invalid(f"host {wanted} {known}does not hold the scratch volume: use one of {', '.join(able)}")
    free = [host for host in able if host not in alone]
    if wanted is None and free:
        return free[-1]
    if wanted is not None and wanted in free:
        return wanted
    stopped = "; ".join(f"on {host}: {', '.join(alone[host][:3])}" for host in ([wanted] if wanted else able))
    raise Invalid(f"volumes with one replica would stop without their host ({stopped})")


def left_behind(picture: Picture, prefix: str) -> list[str]:
    """Scratch volumes of drills that were killed."""
    found = [each for each in picture.volumes if each.name.startswith(prefix) and each.state != "deleting"]
    return [each.name for each in found if not each.holder]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
