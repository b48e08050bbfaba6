"""Placement: which devices hold a volume's replica groups. A core: the view of the cluster is an argument.

Rules, in this order: only devices that are up, on hosts that are up, with room; the replicas of one group
on distinct hosts, always; then on distinct failure domains (host labels ``site``, ``zone``, ``rack``, the
widest first) as far as they go; then where the least is provisioned for the size of the device. A refusal
carries its reason in numbers and what to do. Volumes are thin: a device needs room for the start of a
replica, not for all of it. Invariant: the same input gives the same plan (ties break by name), and a plan
never repeats a host in a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moorage.metadata.limits import MIB
from moorage.quorum.record import CHUNK_SIZE
from moorage.service.units import human
from moorage.wire.errors import NoSpace, NotEnoughHosts

# Room that a device must have for a new replica (or all of the replica, where that is less): enough to be
# useful, little enough that a small device can hold the start of a big, thin volume.
ROOM_MIN: Final = 64 * MIB
GROUPS_DEFAULT_MAX: Final = 8
DOMAINS: Final = ("site", "zone", "rack")


@dataclass(frozen=True)
class Host:
    name: str
    domains: tuple[str, ...]  # values of the labels DOMAINS; "" where the host has none
    up: bool
    reason: str  # why not, for people: "down for 14 s"


@dataclass(frozen=True)
class Device:
    id: str
    host: Host
    capacity: int
    used: int
    up: bool
    reason: str

    @property
    def free(self) -> int:
        return max(0, self.capacity - self.used)


@dataclass
class Cluster:
    """What placement needs to know: devices from the registry's view, and what is provisioned on each by
    now.
    """

    hosts: dict[str, Host]
    devices: list[Device]
    provisioned: dict[str, int] = field(default_factory=dict)  # bytes by device id, if all were written


@dataclass(frozen=True)
class Choice:
    device: str
    host: str


def cluster_from_view(view: Mapping[str, Any], provisioned: Mapping[str, int]) -> Cluster:
    """Build the input from the reply of ``registry.view``."""
    hosts = {name: _host(name, entry) for name, entry in sorted(view["hosts"].items())}
    devices = [
        Device(
            id=device,
            host=hosts.get(entry["host"]) or _unknown_host(entry["host"]),
            capacity=int(entry["capacity"]),
            used=int(entry["used"]),
            up=entry["health"] == "up" and not entry.get("drain"),
            reason=_reason(entry),
        )
        for device, entry in sorted(view["devices"].items())
    ]
    return Cluster(hosts, devices, dict(provisioned))


def groups_default(cluster: Cluster, size: int, replicas: int) -> int:
    """One group for each disjoint set of hosts there is, at most 8, and never more groups than chunks."""
    up = len({device.host.name for device in cluster.devices if device.up and device.host.up})
    return max(1, min(GROUPS_DEFAULT_MAX, up // replicas, size // CHUNK_SIZE))


def place(cluster: Cluster, *, size: int, replicas: int, groups: int) -> list[list[Choice]]:
    """Choose ``replicas`` devices on distinct hosts for each of ``groups`` groups.

    Raises :class:`NotEnoughHosts` or :class:`NoSpace`, with the numbers.
    """
    share = replica_share(size, groups)
    room = min(share, ROOM_MIN)
    usable = [device for device in cluster.devices if device.up and device.host.up]
    _check_hosts(cluster, usable, replicas)
    roomy = [device for device in usable if device.free >= room]
    _check_room(usable, roomy, replicas, room)
    provisioned = {device.id: cluster.provisioned.get(device.id, 0) for device in roomy}
    return [_place_group(roomy, provisioned, share, replicas) for _ in range(groups)]


def place_replacement(
    cluster: Cluster, *, size: int, groups: int, keep: Iterable[str], only: str = ""
) -> Choice:
    """Choose one device (``only``: this one) for a group whose other members are on the hosts ``keep``."""
    kept = [cluster.hosts.get(name) or _unknown_host(name) for name in sorted(keep)]
    taken = {host.name for host in kept}
    usable = [d for d in cluster.devices if d.up and d.host.up and d.host.name not in taken]
    needs = f"needs a host besides {', '.join(sorted(taken)) or 'none'}, none is up"
    if only:
        usable = [device for device in usable if device.id == only]
        needs = f"needs device {only}, which is not up"
    if not usable:
        raise NotEnoughHosts(f"{needs}{_why_not(cluster, taken)}: bring a host up, or add one", needs=1, up=0)
    share = replica_share(size, groups)
    room = min(share, ROOM_MIN)
    roomy = [device for device in usable if device.free >= room]
    _check_room(usable, roomy, 1, room)
    provisioned = {device.id: cluster.provisioned.get(device.id, 0) for device in roomy}
    return _pick(roomy, provisioned, share, kept)


def replica_share(size: int, groups: int) -> int:
    """Bytes of one replica when every byte of the volume has been written."""
    chunks = -(-size // CHUNK_SIZE)
    return min(size, -(-chunks // groups) * CHUNK_SIZE)


def _place_group(
    devices: list[Device], provisioned: dict[str, int], share: int, replicas: int
) -> list[Choice]:
    chosen: list[Host] = []
    choices: list[Choice] = []
    for _ in range(replicas):
        choice = _pick(devices, provisioned, share, chosen)
        chosen.append(next(device.host for device in devices if device.id == choice.device))
        choices.append(choice)
    return choices


def _pick(devices: list[Device], provisioned: dict[str, int], share: int, chosen: list[Host]) -> Choice:
    """The best device on a host not chosen yet; notes the share as provisioned there."""
    taken = {host.name for host in chosen}

    def rank(device: Device) -> tuple[list[int], float, float, str]:
        load = (provisioned[device.id] + share) / max(1, device.capacity)
        return crowding(device.host, chosen), load, -device.free / max(1, device.capacity), device.id

    best = min((device for device in devices if device.host.name not in taken), key=rank)
    provisioned[best.id] += share
    return Choice(best.id, best.host.name)


def crowding(host: Host, others: Iterable[Host]) -> list[int]:
    """How many of the others share its site, its zone, its rack: the less, the better, in this order. A rack
    counts within its site: "r1" of two sites are two racks."""
    others = list(others)
    return [
        sum(each.domains[:level] == host.domains[:level] for each in others)
        for level in range(1, len(DOMAINS) + 1)
    ]


def _check_hosts(cluster: Cluster, usable: list[Device], replicas: int) -> None:
    up = sorted({device.host.name for device in usable})
    if len(up) >= replicas:
        return
    raise NotEnoughHosts(
        f"needs {replicas} distinct hosts, {len(up)} {'is' if len(up) == 1 else 'are'} up"
        f"{_why_not(cluster, set(up))}: start hosts, or ask for fewer replicas",
        needs=replicas,
        up=len(up),
    )


def _why_not(cluster: Cluster, up: set[str]) -> str:
    """``": host3 down for 14 s, host4 has no device"`` for the hosts that do not count, or nothing."""
    causes = []
    for name, host in sorted(cluster.hosts.items()):
        if name in up:
            continue
        own = [device for device in cluster.devices if device.host.name == name]
        if not host.up:
            causes.append(f"{name} {host.reason}")
        elif not own:
            causes.append(f"{name} has no device")
        else:
            causes.append(f"{name}: its device {own[0].id} is {own[0].reason}")
    return f": {', '.join(causes)}" if causes else ""


def _check_room(usable: list[Device], roomy: list[Device], replicas: int, room: int) -> None:
    with_room = {device.host.name for device in roomy}
    if len(with_room) >= replicas:
        return
    most: dict[str, int] = {}
    for device in usable:
        most[device.host.name] = max(most.get(device.host.name, 0), device.free)
    short = ", ".join(f"{name} has {human(most[name])}" for name in sorted(most) if name not in with_room)
    raise NoSpace(
        f"needs {replicas} distinct hosts with {human(room)} free, {len(with_room)} "
        f"{'has' if len(with_room) == 1 else 'have'} it: {short}: delete or discard data, or add a device",
        needs=replicas,
        have=len(with_room),
        room=room,
    )


def _host(name: str, entry: Mapping[str, Any]) -> Host:
    labels = entry.get("labels") or {}
    up = entry["health"] == "up" and not entry.get("drain")
    return Host(name, tuple(str(labels.get(domain, "")) for domain in DOMAINS), up, _reason(entry))


def _unknown_host(name: str) -> Host:
    return Host(name, ("",) * len(DOMAINS), False, "not registered")


def _reason(entry: Mapping[str, Any]) -> str:
    """``"down (silent for 14 s)"``: the registry's verdict and its reason; "" for what may be used."""
    if entry["health"] == "up":
        return "being drained" if entry.get("drain") else ""
    return f"{entry['health']} ({entry['reason']})" if entry.get("reason") else str(entry["health"])
