"""Which replicas should go elsewhere, and where to: decided from the registry's view and the committed state.

A core: the view, the volumes and the clock are arguments. Owns the reasons for which a device is left (an
operator drains it, it was refused for good, its disk failed, it has been down for ``repair_after``), what to
do about a replica that its device has lost, and the damping of hosts that come and go. It must never leave a
group with less than it has: the old member counts until the new one does, whatever is decided here.

- One change per group at a time; ``MOVES_MAX`` changes at once, and ``INTO_MAX`` into one device, so that
  users' I/O and the network have room. What is most at risk goes first.
- A device that was down and comes back calls its replacement off: what it lacks is little. One that does so
  for the second time within ``FLAPPING_MS`` is not waited for any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moorage.metadata import placement
from moorage.metadata.placement import Choice, Cluster
from moorage.metadata.records import kind_of
from moorage.quorum.majority import is_majority
from moorage.wire.errors import MoorageError

MOVES_MAX: Final = 8
INTO_MAX: Final = 2
FLAPPING_MS: Final = 3_600_000

TURN: Final = "waits for its turn"
DRAIN: Final = "drain"
ASKED: Final = "asked"  # somebody wants this one replica elsewhere
BALANCE: Final = "balance"  # devices are to be filled alike (balance.py)
LOST: Final = "lost"  # refused for good, or its disk failed
MISSING: Final = "missing"  # the device is up, and does not have it
DOWN: Final = "down"

Told = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Rows of ``node.list_replicas``, by device and replica; of devices that answered."""

_URGENCY: Final = {LOST: 0, MISSING: 0, DOWN: 0, DRAIN: 1}


@dataclass(frozen=True)
class Leaving:
    """A device that replicas should leave. ``to``: the device that takes all of it over, "" for any."""

    why: str
    text: str
    to: str = ""


_MISSING: Final = Leaving(MISSING, "has lost it")  # it may come to the same device


@dataclass(frozen=True)
class _OfGroup:
    """``kind`` of what has that name: volume or bucket."""

    volume: int
    name: str
    kind: str
    group: int

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.kind} {self.name} group {self.group}"


@dataclass(frozen=True)
class Move(_OfGroup):
    """Replace ``old`` of a group, on host ``off``, by a new replica ``where``; ``text``: why, for people."""

    version: int
    old: int
    off: str
    where: Choice
    why: str
    text: str


@dataclass(frozen=True)
class CallOff(_OfGroup):
    """The learner is not needed any more."""

    replica: int
    text: str


@dataclass(frozen=True)
class Blocked(_OfGroup):
    """A replica that should go, and cannot for now."""

    device: str
    host: str
    text: str


@dataclass
class Decisions:
    moves: list[Move] = field(default_factory=list)
    called_off: list[CallOff] = field(default_factory=list)
    blocked: list[Blocked] = field(default_factory=list)


class Flapping:
    """Which devices were down and came back of late; volatile, the leader's."""

    def __init__(self) -> None:
        self._down: set[str] = set()
        self._returns: dict[str, list[int]] = {}

    def look(self, view: Mapping[str, Any], now_ms: int) -> None:
        for device, entry in view["devices"].items():
            if entry["health"] == "down":
                self._down.add(device)
            elif entry["health"] == "up" and device in self._down:
                self._down.discard(device)
                self._returns.setdefault(device, []).append(now_ms)
        for device, times in list(self._returns.items()):
            self._returns[device] = [each for each in times if now_ms - each < FLAPPING_MS]
            if not self._returns[device]:
                del self._returns[device]

    def is_flapping(self, device: str) -> bool:
        return len(self._returns.get(device, ())) > 1


def leaving(view: Mapping[str, Any], repair_after_ms: int) -> dict[str, Leaving]:
    """The devices to be left, by id."""
    found: dict[str, Leaving] = {}
    for device, entry in view["devices"].items():
        health, since_ms = entry["health"], entry["since_ms"]
        drain = entry.get("drain")
        to = drain["to"] if drain else ""
        if health in ("refused", "failed"):
            found[device] = Leaving(LOST, f"is {health}: {entry['reason']}", to)
        elif drain is not None:
            found[device] = Leaving(DRAIN, f"is being drained by {drain['by']}", to)
        elif health == "down" and since_ms >= repair_after_ms:
            found[device] = Leaving(DOWN, f"has been down for {since_ms // 1000} s", to)
    return found


def decide(
    view: Mapping[str, Any],
    volumes: Iterable[Mapping[str, Any]],
    provisioned: Mapping[str, int],
    flapping: Flapping,
    repair_after_ms: int,
    missing: Collection[int] = (),
) -> Decisions:
    """``volumes``: those that are ready, at least all that have a replica on a device to be left or among the
    ``missing`` ones, or a wish.

    Pure but for ``flapping``, which it only reads."""
    going = leaving(view, repair_after_ms)
    made = Decisions()
    under_way: list[str] = []  # devices of the learners there are
    wanted: list[
        tuple[tuple[int, int, str, int], Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Leaving]
    ] = []
    for volume, group in _groups(volumes):
        wish = group["wish"]
        if wish is not None:
            if (text := _needless(view, group, wish, going, flapping)) is not None:
                made.called_off.append(
                    CallOff(
                        volume["id"], volume["name"], kind_of(volume), group["group"], wish["replica"], text
                    )
                )
            elif wish.get("why") != BALANCE:  # that must not keep anything at risk waiting
                under_way.append(wish["device"])
            continue
        leavers = {
            member["replica"]: why
            for member in group["members"]
            if (why := _MISSING if member["replica"] in missing else going.get(member["device"]))
        }
        if leavers:
            # One at a time: the one that is lost goes before the one that is drained.
            first = min(leavers, key=lambda replica: (_URGENCY[leavers[replica].why], replica))
            (member,) = (each for each in group["members"] if each["replica"] == first)
            there = [
                is_up(view, each["device"]) and each["replica"] not in missing for each in group["members"]
            ]
            good = sum(there)
            if not is_majority(there):
                text = f"{good} of its {len(there)} replicas are there: nothing is copied until more are back"
                made.blocked.append(_blocked(volume, group, member, text))
                continue
            rank = (_URGENCY[leavers[first].why], good, volume["name"], group["group"])
            wanted.append((rank, volume, group, member, leavers[first]))
    cluster = placement.cluster_from_view(view, provisioned)
    for _, volume, group, member, leaves in sorted(wanted, key=lambda each: each[0]):
        try:
            place = _place(view, cluster, volume, group, member, leaves)
        except MoorageError as error:
            made.blocked.append(_blocked(volume, group, member, error.message))
            continue
        if len(under_way) >= MOVES_MAX or under_way.count(place.device) >= INTO_MAX:
            made.blocked.append(_blocked(volume, group, member, TURN))
            continue
        under_way.append(place.device)
        share = placement.replica_share(volume["size"], len(volume["groups"]))
        cluster.provisioned[place.device] = cluster.provisioned.get(place.device, 0) + share
        made.moves.append(move_of(volume, group, member, place, leaves.why, f"its device {leaves.text}"))
    return made


def move_off(
    view: Mapping[str, Any],
    volume: Mapping[str, Any],
    provisioned: Mapping[str, int],
    device: str,
    to: str,
) -> Decisions:
    """Of one volume, replace what is on ``device``, by replicas on ``to`` where that may be, or anywhere."""
    made = Decisions()
    cluster = placement.cluster_from_view(view, provisioned)
    for _, group in _groups([volume]):
        for member in group["members"]:
            if member["device"] != device or group["wish"] is not None:
                continue
            try:
                place = _place(view, cluster, volume, group, member, Leaving(ASKED, "", to), apart=device)
            except MoorageError as error:
                made.blocked.append(_blocked(volume, group, member, error.message))
                continue
            made.moves.append(move_of(volume, group, member, place, ASKED, "that was asked for"))
    return made


def out_of_step(volume: Mapping[str, Any], view: Mapping[str, Any], told: Told) -> str:
    """Why a volume that nobody holds should be led for a moment: a member that is up lacks something, or may.
    "" when nothing does. ``told``: what devices said of theirs after the volume was last held; about one
    that is not in it nothing is known."""
    if not volume["epoch"]:
        return ""  # nothing was ever written
    for _, group in _groups([volume]):
        rows = {
            member["host"]: row
            for member in group["members"]
            if (row := told.get(member["device"], {}).get(member["replica"]))
            and is_up(view, member["device"])
        }
        for host, row in rows.items():
            if row["damaged"] or not row["whole"]:
                return f"group {group['group']}: the copy on {host} is not whole"
            if row.get("bad_blocks"):
                return f"group {group['group']}: {row['bad_blocks']} blocks on {host} are bad"
            if row["epoch"] < volume["epoch"] or row["commit"] < row["last"]:
                return f"group {group['group']}: {host} may lack what was written last"
        if len({row["last"] for row in rows.values()}) > 1:
            return f"group {group['group']}: the copies on {', '.join(sorted(rows))} differ in length"
    return ""


def missing(volumes: Iterable[Mapping[str, Any]], told: Told) -> set[int]:
    """Replicas that their devices do not have, though they have answered. ``told``: what devices said while
    the volumes' members were these. An id is given once: what is missing never comes back."""
    return {
        member["replica"]
        for _, group in _groups(volumes)
        for member in group["members"]
        if (rows := told.get(member["device"])) is not None and member["replica"] not in rows
    }


def check_departure(
    view: Mapping[str, Any], volumes: Iterable[Mapping[str, Any]], devices: set[str], *, at_once: bool
) -> list[Blocked]:
    """What speaks against leaving these devices: replicas that could be placed nowhere else, or, with
    ``at_once`` (they are gone, nothing can be read from them), groups without a majority besides them."""
    gone = {"to": "", "by": "", "at_ms": 0}
    entries = {
        device: {**entry, "drain": gone} if device in devices else entry
        for device, entry in view["devices"].items()
    }
    after = {**view, "devices": entries}
    cluster = placement.cluster_from_view(after, {})
    found = []
    for volume, group in _groups(volumes):
        for member in group["members"]:
            if member["device"] not in devices:
                continue
            if at_once:
                left = [
                    is_up(view, each["device"]) and each["device"] not in devices for each in group["members"]
                ]
                if not is_majority(left):
                    text = f"{sum(left)} of its {len(left)} replicas would be left, which is no majority"
                    found.append(_blocked(volume, group, member, text))
                continue
            try:
                _place(after, cluster, volume, group, member, Leaving(DRAIN, ""))
            except MoorageError as error:
                found.append(_blocked(volume, group, member, error.message))
    return found


def _groups(volumes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for volume in volumes:
        for group in volume["groups"]:
            yield volume, group


def is_up(view: Mapping[str, Any], device: str) -> bool:
    return bool(view["devices"].get(device, {}).get("health") == "up")


def paused_by(view: Mapping[str, Any]) -> str:
    """Who does not want replicas to move only so that devices are filled alike; "": nobody."""
    said = view.get("balance") or {}
    return str(said["by"]) if said.get("paused") else ""


def _needless(
    view: Mapping[str, Any],
    group: Mapping[str, Any],
    wish: Mapping[str, Any],
    going: Mapping[str, Leaving],
    flapping: Flapping,
) -> str | None:
    """Why a change under way should be called off, or None."""
    if wish["device"] in going:
        return f"the device of the new replica {going[wish['device']].text}"
    (old,) = (member["device"] for member in group["members"] if member["replica"] == wish["replaces"])
    if wish.get("why") == BALANCE:
        if who := paused_by(view):
            return f"evening out devices is paused by {who}"
        for member in group["members"]:
            if member["device"] in going:
                return f"device {member['device']} {going[member['device']].text}: that goes first"
        return None
    if old in going:
        return None
    if wish.get("why") == DRAIN:
        return f"device {old} is not drained any more"
    if wish.get("why") in (DOWN, LOST) and is_up(view, old) and not flapping.is_flapping(old):
        return f"device {old} is back"
    return None


def _place(
    view: Mapping[str, Any],
    cluster: Cluster,
    volume: Mapping[str, Any],
    group: Mapping[str, Any],
    member: Mapping[str, Any],
    why: Leaving,
    apart: str = "",
) -> Choice:
    """Where the new replica goes, not to the device ``apart``. Raises NotEnoughHosts or NoSpace. Of the other
    members, those that are lost too are replaced later: their hosts stay taken until then."""
    if apart:
        cluster = replace(cluster, devices=[each for each in cluster.devices if each.id != apart])
    others = [each["host"] for each in group["members"] if each["replica"] != member["replica"]]
    only = why.to if why.to and view["devices"].get(why.to, {}).get("host") not in others else ""
    return placement.place_replacement(
        cluster, size=volume["size"], groups=len(volume["groups"]), keep=others, only=only
    )


def move_of(
    volume: Mapping[str, Any],
    group: Mapping[str, Any],
    member: Mapping[str, Any],
    where: Choice,
    why: str,
    text: str,
) -> Move:
    return Move(
        volume=volume["id"],
        name=volume["name"],
        kind=kind_of(volume),
        group=group["group"],
        version=group["version"],
        old=member["replica"],
        off=member["host"],
        where=where,
        why=why,
        text=text,
    )


def _blocked(
    volume: Mapping[str, Any], group: Mapping[str, Any], member: Mapping[str, Any], text: str
) -> Blocked:
    kind, number = kind_of(volume), group["group"]
    return Blocked(volume["id"], volume["name"], kind, number, member["device"], member["host"], text)
