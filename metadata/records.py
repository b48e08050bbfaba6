"""Records of the metadata state: their keys in the KV, and how they are read. No writes here (state.py does
those).

====================================== ==================================================================
key                                    value
====================================== ==================================================================
``counter/id``                         last number given to a volume or a replica
``counter/volumes``                    volumes there are, creating and deleting ones included
``counter/requests``                   finished requests remembered
``volume/VOLUME``                      the volume: see ``state.py``
``name/NAME``                          id of the volume that owns the name
``group``                              ``{uid, admitted}``: this group, as the registry knows it
``drop/VOLUME/REPLICA``                ``{device, host}``: replica to be dropped, by committed decision
``device/DEVICE``                      ``{replicas, bytes}`` provisioned there by this metadata group
``snapshot-set/SET``                   ids of the volumes of a set of snapshots that is being created
``request/REQUEST``                    ``{kind, name, volume, error}`` of a command that a client may retry
``request-order/INDEX``                the request's id; the oldest is forgotten first
====================================== ==================================================================

VOLUME, REPLICA, SET and INDEX are 16 hex digits, so that a scan goes in numeric order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from moorage.metadata import limits
from moorage.service.kv import KV
from moorage.wire.errors import Busy, Invalid, MoorageError, NameTaken, NotFound, from_wire

GROUP: Final = "group"
COUNTER_ID: Final = "counter/id"
COUNTER_VOLUMES: Final = "counter/volumes"
COUNTER_REQUESTS: Final = "counter/requests"
VOLUMES: Final = "volume/"
NAMES: Final = "name/"
DROPS: Final = "drop/"
DEVICES: Final = "device/"
SNAPSHOT_SETS: Final = "snapshot-set/"
REQUESTS: Final = "request/"
REQUEST_ORDER: Final = "request-order/"

CREATING: Final = "creating"
READY: Final = "ready"
DELETING: Final = "deleting"

VOLUME: Final = "volume"
BUCKET: Final = "bucket"

NEAR_MAX: Final = 500  # names compared for a hint: 35 us each, on the leader's event loop

# Fields of a volume that came later, and what a volume without them has.
LATER: Final = {
    "iops": 0,
    "bw": 0,
    "principal": "default",
    "kind": VOLUME,
    "snapshots_version": 0,
    "parent": None,
    "rollback": 0,
}

_PRIVATE: Final = ("writers", "owner", "released", "ended_ms", "request")


def volume_key(volume: int) -> str:
    return f"{VOLUMES}{volume:016x}"


def drops_prefix(volume: int) -> str:
    return f"{DROPS}{volume:016x}/"


def volume_by_id(kv: KV, volume: int) -> dict[str, Any] | None:
    found: dict[str, Any] | None = kv.get(volume_key(volume))
    return found


def existing_volume(kv: KV, volume: int) -> dict[str, Any]:
    """Raises :class:`NotFound`."""
    found = volume_by_id(kv, volume)
    if found is None:
        raise NotFound(f"volume {volume:#x} is gone: it was deleted")
    return found


def volume_by_name(kv: KV, name: str, kind: str = VOLUME) -> dict[str, Any]:
    """Volumes and buckets share one namespace. Raises :class:`NotFound`, with names that look alike, and
    :class:`Invalid` for one of the other kind."""
    volume = kv.get(NAMES + name)
    found = volume_by_id(kv, volume) if volume is not None else None
    if found is None:
        raise unknown_volume(kv, name)
    if (is_one := kind_of(found)) != kind:
        raise Invalid(f"{name!r} is a {is_one}, not a {kind}: `moorage {is_one} show {name}` shows it")
    return found


def durability_of(volume: dict[str, Any]) -> str:
    """As devices know it: the replicas of a bucket have no log."""
    return "objects" if kind_of(volume) == BUCKET else str(volume["durability"])


def kind_of(volume: Mapping[str, Any]) -> str:
    return str(volume.get("kind", VOLUME))


def unknown_volume(kv: KV, name: str) -> NotFound:
    names = (key.removeprefix(NAMES) for key, _ in kv.scan(NAMES))
    likely = islice((other for other in names if abs(len(other) - len(name)) <= 2), NEAR_MAX)
    near = difflib.get_close_matches(name, likely, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`moorage volume list` shows all"
    return NotFound(f"there is no volume {name!r}: {hint}", name=name, near=near)


def check_name_free(kv: KV, name: str) -> None:
    owner = kv.get(NAMES + name)
    volume = volume_by_id(kv, owner) if owner is not None else None
    if volume is None:
        return
    if volume["state"] == DELETING:
        raise Busy(f"volume {name!r} is being deleted: try again in some seconds", name=name)
    raise NameTaken(f"the name {name!r} is taken: choose another, or delete that volume first", name=name)


def check_ready(volume: dict[str, Any]) -> None:
    if volume["state"] == CREATING:
        raise Busy(f"{kind_of(volume)} {volume['name']!r} is being created: try again in some seconds")
    if volume["state"] == DELETING:
        raise NotFound(f"{kind_of(volume)} {volume['name']!r} was deleted")


def volumes(kv: KV) -> Iterator[dict[str, Any]]:
    for _, volume in kv.scan(VOLUMES):
        yield volume


def wishes(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Its groups that are to have another member."""
    return [group for group in volume["groups"] if group["wish"] is not None]


def snapshots(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Its snapshots, in whatever state. A volume of before they were known has no such field."""
    found: list[dict[str, Any]] = volume.get("snapshots", [])
    return found


def snapshot_by_id(volume: dict[str, Any], snapshot: int) -> dict[str, Any] | None:
    return next((entry for entry in snapshots(volume) if entry["id"] == snapshot), None)


def snapshot_by_name(volume: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises :class:`NotFound`, with names that look alike."""
    found = next((entry for entry in snapshots(volume) if entry["name"] == name), None)
    if found is None:
        near = difflib.get_close_matches(name, [entry["name"] for entry in snapshots(volume)], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{len(snapshots(volume))} are there"
        raise NotFound(f"volume {volume['name']!r} has no snapshot {name!r}: {hint}", name=name, near=near)
    return found


def ready_snapshot(volume: dict[str, Any], name: str) -> dict[str, Any]:
    """Raises :class:`NotFound`, and :class:`Busy` for one that is not there yet, or not for long."""
    found = snapshot_by_name(volume, name)
    if found["state"] != READY:
        raise Busy(
            f"snapshot {name!r} of volume {volume['name']!r} is {found['state']}: only a ready one will do"
        )
    return found


def snapshots_under_way(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that the holder has yet to write to the logs, or to take out of them."""
    if volume["state"] != READY:
        return []
    return [entry for entry in snapshots(volume) if entry["state"] != READY]


def snapshot_set(kv: KV, number: int) -> list[int]:
    """The volumes of a set that is being created; of another one, none."""
    found: list[int] = kv.get(set_key(number)) or []
    return found


def set_key(number: int) -> str:
    return f"{SNAPSHOT_SETS}{number:016x}"


def check_not_rolling_back(volume: dict[str, Any]) -> None:
    """Raises :class:`Busy` that says how to end it."""
    name = volume["name"]
    for entry in snapshots(volume):
        if entry["id"] == volume.get("rollback", 0):
            raise Busy(
                f"volume {name} is being rolled back to snapshot {entry['name']}: finish with "
                f"`moorage snapshot rollback {name}@{entry['name']}`",
                volume=name,
                snapshot=entry["name"],
            )


def devices(volume: dict[str, Any]) -> set[str]:
    """Where its replicas are; not those that are to come."""
    return {member["device"] for group in volume["groups"] for member in group["members"]}


def was_given(kv: KV, group: str, identity: int) -> bool:
    """Whether the metadata group has ever given this id to anything."""
    number, count = identity >> limits.ID_COUNTER_BITS, identity & limits.ID_COUNTER_MAX
    return number == limits.group_number(group) and 0 < count <= int(kv.get(COUNTER_ID) or 0)


def drops(kv: KV, volume: int) -> list[tuple[int, str, str]]:
    """(replica, device, host) of this volume's replicas that are still to be dropped."""
    prefix = drops_prefix(volume)
    found = kv.scan(prefix)
    return [(int(key.removeprefix(prefix), 16), entry["device"], entry["host"]) for key, entry in found]


def provisioned(kv: KV) -> dict[str, int]:
    """Bytes by device id that this group's replicas there could come to hold."""
    return {key.removeprefix(DEVICES): entry["bytes"] for key, entry in kv.scan(DEVICES)}


def group(kv: KV) -> dict[str, Any] | None:
    """``{uid, admitted}``; None before the group was founded."""
    found: dict[str, Any] | None = kv.get(GROUP)
    return found


def admitted(kv: KV) -> bool:
    """Whether the registry has said that this is the group of its name: nothing is served before."""
    found = group(kv)
    return found is not None and bool(found["admitted"])


def public(volume: dict[str, Any]) -> dict[str, Any]:
    """The volume as callers see it."""
    shown = {key: value for key, value in volume.items() if key not in _PRIVATE}
    return LATER | shown | {"snapshots": [public_snapshot(entry) for entry in snapshots(volume)]}


def public_snapshot(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "request"}


def error_record(error: MoorageError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "details": error.details}


def error_from_record(record: dict[str, Any]) -> MoorageError:
    return from_wire(record["code"], record["message"], record["details"])
