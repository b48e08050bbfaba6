"""What requests about objects ask for: checks of their parameters.

Owns the sentence that says what would be accepted. It looks at no state. Raises Invalid, or LimitExceeded.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from moorage.metadata import limits
from moorage.metadata.objects import locks
from moorage.metadata.params import check_known, number_of
from moorage.metadata.tasks.context import wall_ms
from moorage.wire.errors import Invalid, LimitExceeded

Params = dict[str, Any]

ATTRIBUTES_DEPTH: Final = 16
WRITTEN: Final = ("writer", "id", "size", "etag", "attributes", "extents", "stored")


def check_written(params: Params) -> Params:
    """What was written of an object, or of a part of one, and where."""
    extents, stored = params.get("extents"), params.get("stored")
    if not isinstance(extents, list | tuple) or not all(
        isinstance(each, list | tuple) and len(each) == 4 and all(type(one) is int for one in each)
        for each in extents
    ):
        raise Invalid("extents: use a list of [group, chunk, block, blocks]")
    if len(extents) > limits.EXTENTS_MAX:
        raise LimitExceeded(f"an object in {len(extents)} pieces: {limits.EXTENTS_MAX} at most")
    if (
        not isinstance(stored, list | tuple)
        or len(stored) != len(extents)
        or not all(
            isinstance(replicas, list | tuple) and all(type(one) is int for one in replicas)
            for replicas in stored
        )
    ):
        raise Invalid("stored: use a list of replicas for each extent")
    size = number_of(params, "size")
    if not 0 <= size <= sum(each[3] for each in extents) << 12:
        raise Invalid(f"an object of {size} bytes is not in {len(extents)} extents")
    return {
        "writer": limits.check_writer(params.get("writer")),
        "object": {**check_object(params), "size": size},
        "extents": [list(each) for each in extents],
        "stored": [list(replicas) for replicas in stored],
    }


def check_object(params: Params) -> Params:
    """What is known of it before its bytes are."""
    found = {
        "id": _identity(params),
        "etag": text(params, "etag", 255),
        "at_ms": wall_ms(),
        "attributes": check_attributes(params),
    }
    lock = locks.check(params.get("lock"))
    return found if lock is None else {**found, "lock": lock}


def check_version(params: Params) -> Params:
    """Which version of which key is meant, and that it is still the one with this id."""
    about = {"key": limits.check_key(params.get("key")), "id": text(params, "id", 64)}
    return about if params.get("version") is None else {**about, "version": text(params, "version", 64)}


def beside(params: Params, name: str, count: int) -> list[Any]:
    """A list with something for each key."""
    found = params[name]
    is_list = isinstance(found, list | tuple) and len(found) == count
    if not is_list or not all(each is None or isinstance(each, str) for each in found):
        raise Invalid(f"{name}: use a list with one for each key")
    return list(found)


def flag(params: Params, name: str) -> bool:
    found = params.get(name, False)
    if not isinstance(found, bool):
        raise Invalid(f"{name} must be true or false")
    return found


def check_attributes(params: Params, name: str = "attributes") -> Params:
    found = params.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Invalid(f"{name}: use a map by name")
    if _depth(found) > ATTRIBUTES_DEPTH:
        raise Invalid(f"{name}: maps and lists in one another, {ATTRIBUTES_DEPTH} deep at most")
    if (size := len(msgpack.packb(found))) > limits.ATTRIBUTES_MAX:
        raise LimitExceeded(f"{name} of {size} bytes: {limits.ATTRIBUTES_MAX} at most")
    return found


def _depth(value: Any, most: int = 32) -> int:
    """Of maps and lists in one another; what is deeper than ``most`` is not looked into."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if inner is None or not most:
        return 0
    return 1 + max((_depth(each, most - 1) for each in inner), default=0)


def check_condition(params: Params) -> Params:
    found = params.get("condition") or {}
    if not isinstance(found, dict):
        raise Invalid("condition: use a map of absent, etags, not_etags")
    check_known(found, "absent", "etags", "not_etags")
    for key in ("etags", "not_etags"):
        etags = found.get(key, [])
        if not isinstance(etags, list | tuple) or not all(isinstance(each, str) for each in etags):
            raise Invalid(f"condition: {key} must be a list of etags")
    return found


def check_after(after: Any) -> tuple[bytes, int, str] | None:
    if after is None:
        return None
    match after:
        case [str(key), int(created_ms), str(upload)]:
            return limits.check_key(key).encode(), created_ms, upload
    raise Invalid("after: use key, created_ms and upload of an upload")


def text(params: Params, key: str, most: int = limits.KEY_BYTES_MAX) -> str:
    found = params.get(key, "")
    if not isinstance(found, str) or len(found.encode(errors="replace")) > most:
        raise Invalid(f"{key} must be text of at most {most} bytes")
    return found


def _identity(params: Params) -> str:
    """By which a command that is sent again is known."""
    found = text(params, "id", 64)
    if not found:
        raise Invalid("id: use a random text, another one for each object")
    return found


def request(params: Params, part: str = "") -> Params:
    """By which a command that may come again is known, if its sender says so."""
    if "request" not in params:
        return {}
    return {"request": limits.check_request(limits.check_request(params["request"]) + part)}


def is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(each) is int for each in value)
