"""What services answer to control calls, as far as this library reads it; anything else is a ProtocolError.

Owns the shapes. An answer may have more fields: other versions and other readers have theirs. A shape is a
type, a list of one shape ``[shape]``, a map by name ``{str: shape}``, or the fields of a map; a field with
``?`` at its end may be missing or None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from moorage.wire.errors import ProtocolError

Shape = Any

MEMBER = {"replica": int, "device": str, "host": str}
PLACED = MEMBER | {"address": str}
GROUP = {"group": int, "version": int, "members": [MEMBER], "wish?": MEMBER | {"replaces": int}}
PLACED_GROUP = GROUP | {"members": [PLACED], "wish?": PLACED | {"replaces": int}}
NOTED = PLACED | {"lacks": int, "built?": int}  # of a bucket
NOTED_GROUP = GROUP | {"members": [NOTED], "wish?": NOTED | {"replaces": int, "built": int}}
HOLDER = {"host": str, "pid": int, "program": str, "recovers": bool}
CEILINGS = {"iops?": int, "bw?": int}
SNAPSHOT = {
    **{"id": int, "name": str, "state": str, "size": int, "lsns": [int], "epoch?": int},
    **{"set": int, "put": bool, "created_ms": int, "children": [int]},
}
PARENT = {"volume": int, "name": str, "snapshot": int, "snapshot_name": str, "size": int}
VOLUME = CEILINGS | {
    **{"id?": int, "name?": str, "size?": int, "replicas?": int, "durability?": str, "epoch?": int},
    **{"state?": str, "groups?": [Any], "created_ms?": int, "holder?": HOLDER, "holder_alive?": bool},
    **{"lease_left_ms?": int, "fs?": {"type": str, "state": str}, "principal?": str},
    **{"snapshots?": [SNAPSHOT], "snapshots_version?": int, "parent?": PARENT, "rollback?": int},
}
QUOTA = {"principal": str, "capacity?": int, "volumes?": int, "used_bytes": int, "used_volumes": int}
KEY = {"id": str, "principal": str, "created_ms": int, "by": str}
OBJECT = {
    **{"key": str, "id": str, "size": int, "etag": str, "at_ms": int, "attributes": dict},
    **{"parts": [[int]], "version": str, "marker": bool, "lock?": list},
}
DRAIN = {"by": str}
HEALTH = {"health": str, "reason": str, "since_ms": int, "drain?": DRAIN}
BLOCKED = {"name": str, "kind?": str, "group": int, "device": str, "text": str}
MOVE = {"volume": str, "group": int, "from": MEMBER, "to": MEMBER}
MOVES = {
    **{"left": {str: int}, "moves": [MOVE], "blocked": [BLOCKED], "moves_count": int, "blocked_count": int},
    **{"repair_after_ms": int, "unevenness": str},
}
DEVICE = HEALTH | {"host": str, "address": str, "capacity": int, "used": int}
SERVICE = {"service": str, "group": str, "name": str, "address": str}
VIEW = {
    "hosts": {str: HEALTH},
    "devices": {str: DEVICE},
    "services": [SERVICE],
    "groups": [str],
    "balance?": {"paused": bool, "by": str, "at_ms": int},
}
REPLICA = {
    **{"replica": int, "position": [int], "offered": bool, "whole": bool, "damaged": str},
    **{"bad_blocks": int, "verified_ms": int, "bytes": int},
}
ATTACHED = {
    "volume": VOLUME | CEILINGS | {"id": int, "name": str, "size": int, "durability": str},
    "epoch": int,
    "capability": bytes,
    "groups": [PLACED_GROUP],
    "holder_alive": bool,
}

ANSWERS: dict[str, Shape] = {
    "registry.describe": {"name": str},
    "registry.view": VIEW,
    "registry.locate": {"group": str},
    "registry.events": {"events": [{"number": int, "at_ms": int, "kind": str, "text": str}], "next": int},
    "registry.mount_table": {"version": int, "text?": str, "by?": str, "at_ms?": int, "history?": [dict]},
    "registry.set_mount_table": {"version": int},
    "registry.quotas": {"quotas": [QUOTA], "next?": str},
    "registry.set_quota": QUOTA,
    "registry.remove_quota": QUOTA,
    "registry.create_key": KEY,
    "registry.key": KEY,
    "registry.keys": {"keys": [KEY], "next?": str},
    "metadata.describe": {"name": str},
    "metadata.create_volume": VOLUME,
    "metadata.show_volume": VOLUME | {"id": int, "groups": [GROUP]},
    "metadata.resize_volume": VOLUME | {"size": int},
    "metadata.set_volume": VOLUME,
    "metadata.list_volumes": {"volumes": [VOLUME], "next?": str},
    "metadata.move_replica": {"moves": int},
    "metadata.moves": MOVES,
    "metadata.check_departure": {"blocked": [BLOCKED], "blocked_count": int},
    "metadata.attach": ATTACHED,
    "metadata.renew": CEILINGS
    | {"size": int, "groups": [PLACED_GROUP], "capability?": bytes, "snapshots_version?": int},
    "metadata.watch": {"version": int, "snapshots": [SNAPSHOT], "sets": dict},
    "metadata.create_snapshot": {"snapshots": [SNAPSHOT | {"volume": str}]},
    "metadata.delete_snapshot": {"left": bool},
    "metadata.reconfigure": GROUP,
    "metadata.show_bucket": VOLUME
    | {"id": int, "groups": [PLACED_GROUP], "objects": int, "bytes": int, "versioning?": str, "locks": bool}
    | {"former_versions": int, "former_bytes": int},
    "metadata.show_lacks": {"id": int, "groups": [NOTED_GROUP]},
    "metadata.list_buckets": {"volumes": [VOLUME | {"name": str}], "next?": str},
    "metadata.open_region": {"chunk": int, "chunks": int, "of": int, "group": PLACED_GROUP},
    "metadata.put_object": OBJECT,
    "metadata.set_attributes": OBJECT,
    "metadata.set_lock": OBJECT,
    "metadata.complete_upload": OBJECT,
    "metadata.get_object": OBJECT | {"extents": [[int]], "groups": [PLACED_GROUP]},
    "metadata.delete_objects": {"outcomes": [int], "markers": list},
    "metadata.list_objects": {"objects": [OBJECT], "prefixes": [str], "next": bytes},
    "metadata.list_versions": {"versions": [OBJECT | {"latest": bool}], "prefixes": [str], "next?": [str]},
    "metadata.put_part": {"number": int, "size": int, "etag": str, "at_ms": int},
    "metadata.show_upload": {"upload": str, "key": str, "attributes": dict, "parts": [dict], "more": bool},
    "metadata.list_uploads": {
        "uploads": [{"upload": str, "key": str, "created_ms": int, "attributes": dict}],
        "more": bool,
    },
    "node.list_replicas": [REPLICA],
    "node.describe": dict,
    "node.scrub": [int],
}


def check(method: str, answer: Any) -> None:
    """Raises ProtocolError, of unknown outcome: what was asked for may have been done."""
    if wrong := _wrong(answer, ANSWERS.get(method, Any), ""):
        raise ProtocolError(f"the answer to {method} is none: {wrong}", outcome="unknown")


def check_volume(value: Any) -> None:
    """Raises ProtocolError for what does not describe a volume."""
    if wrong := _wrong(value, VOLUME, ""):
        raise ProtocolError(f"this describes no volume: {wrong}")


def _wrong(value: Any, shape: Shape, where: str) -> str:
    """What is not as it should be, or nothing."""
    if shape is Any:
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return _other(value, "list", where)
        return _first(_wrong(each, shape[0], f"{where}[{at}]") for at, each in enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _other(value, "map", where)
        return _first(_wrong_fields(value, shape, where))
    fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    return "" if fits else _other(value, shape.__name__, where)


def _wrong_fields(value: dict[Any, Any], shape: dict[Any, Shape], where: str) -> Iterator[str]:
    for name, inner in shape.items():
        if name is str:
            for key, each in value.items():
                yield _wrong(key, str, f"a key of {where.lstrip('.') or 'it'}") or _wrong(
                    each, inner, f"{where}.{key}"
                )
            continue
        found = value.get(name.removesuffix("?"))
        if found is not None or not name.endswith("?"):
            yield _wrong(found, inner, f"{where}.{name.removesuffix('?')}")


def _first(wrong: Iterable[str]) -> str:
    return next(filter(None, wrong), "")


def _other(value: Any, wanted: str, where: str) -> str:
    return f"{where.lstrip('.') or 'it'} is {repr(value)[:80]}, not a {wanted}"
