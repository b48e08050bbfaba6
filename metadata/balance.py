"""Which replicas should move so that devices are filled alike: decided from what the devices hold.

A core: the view, the volumes and the devices' own words are arguments. Owns the measure (bytes of live blocks
by the capacity of the device, with the moves under way done) and the choice: a replica leaves the fullest
device that it helps to leave, for where it leaves the two most alike. It must never put a group's replicas
nearer to each other than they are, nor touch a group of which a member is away: what is at risk goes first.

Each move lowers the fuller one of two devices by ``GAIN_MIN`` at least, and the other one stays below what
that was: so there is an end, whatever the sizes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from moorage.metadata import placement
from moorage.metadata.healing import BALANCE, Move, Told, is_up, move_of
from moorage.metadata.placement import Choice, Cluster, Device

WITHIN: Final = 0.10  # of their capacity: the fullest and the emptiest device may differ by so much
GAIN_MIN: Final = 0.01
MOVES_MAX: Final = 2  # of one metadata group at once; the nodes' schedulers decide how fast they are


@dataclass
class Decision:
    moves: list[Move] = field(default_factory=list)
    text: str = ""  # for people; "" when the devices are filled alike


class _Candidate(NamedTuple):
    """A replica that may move."""

    volume: Mapping[str, Any]
    group: Mapping[str, Any]
    member: Mapping[str, Any]
    size: int


def is_uneven(view: Mapping[str, Any]) -> bool:
    """By what the registry has heard: whether it is worth it to ask the devices what they hold."""
    fills = [each.used / each.capacity for each in _usable(placement.cluster_from_view(view, {}))]
    return bool(fills) and max(fills) - min(fills) > WITHIN


def decide(view: Mapping[str, Any], volumes: Iterable[Mapping[str, Any]], held: Told) -> Decision:
    """``volumes``: those of this metadata group that are ready, with all that are changed. ``held``: what
    devices that are up have said of theirs, also of other groups' replicas."""
    cluster = placement.cluster_from_view(view, {})
    devices = {device.id: device for device in _usable(cluster)}
    if silent := sorted(devices.keys() - held.keys()):
        return Decision(text=f"device {silent[0]} does not say what it holds")
    volumes = list(volumes)
    sizes = {device: sum(row["bytes"] for row in held[device].values()) for device in devices}
    under_way = _with_moves_done(sizes, volumes, held)
    candidates: dict[str, list[_Candidate]] = {}
    for each in _candidates(view, volumes, held):
        candidates.setdefault(each.member["device"], []).append(each)
    made = Decision()
    while under_way < MOVES_MAX:
        found = _best(cluster, devices, sizes, candidates)
        if found is None:
            break
        chosen, where = found
        text = f"its device is {_fill(devices, sizes, chosen.member['device']):.0%} full,"
        text += f" that of {where.host.name} {_fill(devices, sizes, where.id):.0%}"
        place = Choice(where.id, where.host.name)
        made.moves.append(move_of(chosen.volume, chosen.group, chosen.member, place, BALANCE, text))
        sizes[chosen.member["device"]] -= chosen.size
        sizes[where.id] += chosen.size
        for device, some in candidates.items():
            candidates[device] = [each for each in some if each.group is not chosen.group]
        under_way += 1
    made.text = _told(devices, sizes, under_way)
    return made


def _usable(cluster: Cluster) -> list[Device]:
    return [each for each in cluster.devices if each.up and each.host.up and each.capacity > 0]


def _with_moves_done(sizes: dict[str, int], volumes: list[Mapping[str, Any]], held: Told) -> int:
    """Change ``sizes`` to what they will be after the changes under way; how many of these even out."""
    under_way = 0
    for volume in volumes:
        for group in volume["groups"]:
            wish = group["wish"]
            if wish is None:
                continue
            under_way += wish.get("why") == BALANCE
            whole = max(_held(held, each["device"], each["replica"]) for each in group["members"])
            if wish["device"] in sizes:
                sizes[wish["device"]] += whole - _held(held, wish["device"], wish["replica"])
            (old,) = (each for each in group["members"] if each["replica"] == wish["replaces"])
            if old["device"] in sizes:
                sizes[old["device"]] -= _held(held, old["device"], old["replica"])
    return under_way


def _held(held: Told, device: str, replica: int) -> int:
    return int(held.get(device, {}).get(replica, {}).get("bytes", 0))


def _candidates(
    view: Mapping[str, Any], volumes: list[Mapping[str, Any]], held: Told
) -> Iterator[_Candidate]:
    """Of groups that have all that they should have, and do not change."""
    for volume in volumes:
        for group in volume["groups"]:
            rows = [held.get(each["device"], {}).get(each["replica"]) for each in group["members"]]
            well = all(row is not None and row["whole"] and not row["damaged"] for row in rows)
            up = all(is_up(view, each["device"]) for each in group["members"])
            if group["wish"] is None and well and up:
                for member, row in zip(group["members"], rows, strict=True):
                    if row is not None and row["bytes"]:
                        yield _Candidate(volume, group, member, row["bytes"])


def _fill(devices: Mapping[str, Device], sizes: Mapping[str, int], device: str) -> float:
    return sizes[device] / devices[device].capacity


def _best(
    cluster: Cluster,
    devices: Mapping[str, Device],
    sizes: Mapping[str, int],
    candidates: Mapping[str, list[_Candidate]],
) -> tuple[_Candidate, Device] | None:
    """From the fullest device that anything may leave with a gain: what leaves it with the greatest one."""
    by_fill = sorted(devices, key=lambda each: (_fill(devices, sizes, each), each))
    if not by_fill:
        return None
    lowest = _fill(devices, sizes, by_fill[0])
    for source in reversed(by_fill):
        fill = _fill(devices, sizes, source)
        if fill - lowest <= WITHIN:
            return None
        best: tuple[float, _Candidate, Device] | None = None
        for each in candidates.get(source, ()):
            for target in by_fill:  # the emptiest that it may go to
                after = max(
                    (sizes[source] - each.size) / devices[source].capacity,
                    (sizes[target] + each.size) / devices[target].capacity,
                )
                if fill - after >= GAIN_MIN and _may_go(cluster, each, devices[target]):
                    if best is None or fill - after > best[0]:
                        best = fill - after, each, devices[target]
                    break
                if _fill(devices, sizes, target) >= fill:
                    break
        if best is not None:
            return best[1], best[2]
    return None


def _may_go(cluster: Cluster, each: _Candidate, target: Device) -> bool:
    """To another host than the others', with room, and no nearer to them than it is now."""
    others = [
        cluster.hosts[member["host"]]
        for member in each.group["members"]
        if member["replica"] != each.member["replica"]
    ]
    if target.host in others or target.free < each.size + placement.ROOM_MIN:
        return False
    now = placement.crowding(cluster.hosts[each.member["host"]], others)
    return placement.crowding(target.host, others) <= now


def _told(devices: Mapping[str, Device], sizes: Mapping[str, int], under_way: int) -> str:
    if not devices:
        return ""
    fullest = max(devices, key=lambda each: _fill(devices, sizes, each))
    emptiest = min(devices, key=lambda each: _fill(devices, sizes, each))
    fills = [_fill(devices, sizes, each) for each in (fullest, emptiest)]
    names = [devices[each].host.name for each in (fullest, emptiest)]
    if under_way:
        then = f"then {names[0]} is {fills[0]:.0%} full, and {names[1]} {fills[1]:.0%}"
        return f"{under_way} {'replica is' if under_way == 1 else 'replicas are'} on the way: {then}"
    if fills[0] - fills[1] <= WITHIN:
        return ""
    return f"{names[0]} is {fills[0]:.0%} full, {names[1]} {fills[1]:.0%}: no replica can move that helps"
