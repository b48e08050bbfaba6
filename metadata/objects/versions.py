"""Versions of the objects of a bucket: what a key held before, and delete markers.

Owns which record of a key is where, and how many there are. The current object is at its key, as in a bucket
without versions: so a read or a list costs the same, whatever was there before. All else is the key's
*history*, newest first: objects that were replaced or deleted, and *markers*, which stand for deletions.

Versions are off until they are switched on; from then on they are on or suspended, for good. A record that is
put then has ``seq``, the index of its command in the log: by that the versions of a key are ordered, and
named. One without has the name ``null``, and is older than all with one. While versions are suspended, what
is put has the name ``null`` too (``null``), and replaces the former one of that name: a key has one.

Invariants: the current object is newer than all of its history; without one, the newest is a marker; a
history is not empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from moorage.metadata import limits
from moorage.metadata.objects import layout
from moorage.service.kv import KV, SCAN_BATCH

NULL: Final = "null"
ENABLED: Final = "enabled"
SUSPENDED: Final = "suspended"
NAME: Final = re.compile(r"[0-9a-f]{16}")

Record = dict[str, Any]


class Versioning(NamedTuple):
    """Of a bucket where versions were switched on. ``locks``: they may be locked."""

    state: str
    locks: bool


class Outcome(IntEnum):
    """Of one key, or version, that was to be deleted."""

    ABSENT = 0
    DELETED = 1
    MARKER_DELETED = 2
    LOCKED = 3


def of_bucket(kv: KV, bucket: int) -> Versioning | None:
    found = kv.get(layout.versioning_key(bucket))
    return None if found is None else Versioning(found["state"], found["locks"])


def switch(kv: KV, bucket: int, state: str, *, with_locks: bool) -> None:
    kv.put(layout.versioning_key(bucket), {"state": state, "locks": with_locks})


def name_of(record: Record) -> str:
    return NULL if _is_null(record) else name_at(record["seq"])


def name_at(seq: int) -> str:
    return f"{seq:016x}"


def is_marker(record: Record) -> bool:
    return bool(record.get("marker"))


def seq_of(record: Record) -> int:
    return int(record.get("seq", 0))


def _is_null(record: Record) -> bool:
    return "seq" not in record or bool(record.get("null"))


# -- looking --------------------------------------------------------------------------------------------


def find(kv: KV, bucket: int, key: str, name: str) -> Record | None:
    there = layout.find_object(kv, bucket, key)
    if there is not None and name_of(there) == name:
        return there
    place = layout.find_history(kv, bucket, key)
    if place is None:
        return None
    number, null, _ = place
    seq = null if name == NULL else int(name, 16) if NAME.fullmatch(name) else None
    found: Record | None = None if seq is None else kv.get(layout.version_key(bucket, number, seq))
    return found if found is not None and name_of(found) == name else None


def newest(kv: KV, bucket: int, key: str) -> Record | None:
    """An object, or a marker."""
    return layout.find_object(kv, bucket, key) or newest_former(kv, bucket, key)


def newest_former(kv: KV, bucket: int, key: str) -> Record | None:
    place = layout.find_history(kv, bucket, key)
    return None if place is None else next(history_of(kv, bucket, place.number, batch=1), None)


def history(kv: KV, bucket: int, key: str) -> Iterator[Record]:
    """The newest first."""
    place = layout.find_history(kv, bucket, key)
    return iter(()) if place is None else history_of(kv, bucket, place.number)


def history_of(
    kv: KV, bucket: int, number: int, below: int | None = None, batch: int = SCAN_BATCH
) -> Iterator[Record]:
    """``below``: those whose ``seq`` is less. ``batch``: how many to fetch first."""
    if below == 0:
        return
    prefix = layout.versions_prefix(bucket, number)
    start = prefix if below is None else layout.version_key(bucket, number, below - 1)
    for _, record in kv.scan_from(prefix.encode(), start.encode(), batch):
        yield record


def is_full(kv: KV, bucket: int, key: str) -> bool:
    """Whether too many keys share a record with this one, and it is none of them: what is there may always
    change, and come back."""
    if not layout.is_long(key) or newest(kv, bucket, key) is not None:
        return False
    return len(layout.long_keys_beside(kv, bucket, key)) >= limits.LONG_KEYS_MAX


# -- changes: each returns what is gone for good ----------------------------------------------------------


def put(kv: KV, bucket: int, key: str, found: Record, index: int) -> list[Record]:
    """It is the current object, by the command at ``index``."""
    there = layout.find_object(kv, bucket, key)
    versioning = of_bucket(kv, bucket)
    if versioning is None:
        _set_current(kv, bucket, key, there, found)
        return [] if there is None else [there]
    found.update(_stamp(versioning, index))
    gone = _make_room(kv, bucket, key, there, versioning)
    _set_current(kv, bucket, key, None, found)
    return gone


def delete(kv: KV, bucket: int, key: str, index: int, at_ms: int) -> list[Record]:
    """The current object is not current any more: a marker stands for that, where versions are on."""
    there = layout.find_object(kv, bucket, key)
    versioning = of_bucket(kv, bucket)
    if versioning is None:
        _set_current(kv, bucket, key, there, None)
        return [] if there is None else [there]
    marker = {"marker": True, "id": name_at(index), "size": 0, "etag": "", "attributes": {}, "extents": []}
    gone = _make_room(kv, bucket, key, there, versioning)
    _keep(kv, bucket, key, {**marker, "at_ms": at_ms, **_stamp(versioning, index)})
    return gone


def remove(kv: KV, bucket: int, key: str, record: Record) -> list[Record]:
    """This version is gone; what was before the newest one is the current object again."""
    there = layout.find_object(kv, bucket, key)
    if there is not None and seq_of(there) == seq_of(record):
        _set_current(kv, bucket, key, there, None)
        there = None
    else:
        _forget(kv, bucket, key, record)
    former = None if there is not None else newest_former(kv, bucket, key)
    if former is not None and not is_marker(former):
        _forget(kv, bucket, key, former)
        _set_current(kv, bucket, key, None, former)
    return [record]


def rewrite(kv: KV, bucket: int, key: str, record: Record) -> None:
    """What is noted of it has changed."""
    there = layout.find_object(kv, bucket, key)
    if there is not None and seq_of(there) == seq_of(record):
        layout.put_object(kv, bucket, key, record)
    else:
        place = layout.find_history(kv, bucket, key)
        assert place is not None, "a version that was found is current, or of a history"
        kv.put(layout.version_key(bucket, place.number, seq_of(record)), record)


def _stamp(versioning: Versioning, index: int) -> Record:
    return {"seq": index, "null": True} if versioning.state == SUSPENDED else {"seq": index}


def _make_room(kv: KV, bucket: int, key: str, there: Record | None, versioning: Versioning) -> list[Record]:
    """For a newer version, which may be the null one."""
    gone: list[Record] = []
    if versioning.state == SUSPENDED and (former := find(kv, bucket, key, NULL)) is not None:
        gone.append(former)
        if there is None or not _is_null(there):
            _forget(kv, bucket, key, former)
    if there is not None:
        _set_current(kv, bucket, key, there, None)
        if not gone or not _is_null(there):
            _keep(kv, bucket, key, there)
    return gone


def _set_current(kv: KV, bucket: int, key: str, there: Record | None, found: Record | None) -> None:
    layout.put_object(kv, bucket, key, found)
    size = (found["size"] if found else 0) - (there["size"] if there else 0)
    _count(kv, bucket, (found is not None) - (there is not None), size)


def _keep(kv: KV, bucket: int, key: str, record: Record) -> None:
    """In its history."""
    place = layout.find_history(kv, bucket, key)
    if place is None:
        place = layout.History(layout.next_number(kv, bucket), None, 0)
    number, null, kept = place
    null = seq_of(record) if _is_null(record) else null
    layout.put_history(kv, bucket, key, layout.History(number, null, kept + 1))
    kv.put(layout.version_key(bucket, number, seq_of(record)), record)
    _count(kv, bucket, 0, 0, 1, record["size"])


def _forget(kv: KV, bucket: int, key: str, record: Record) -> None:
    """Out of its history."""
    place = layout.find_history(kv, bucket, key)
    assert place is not None, "a version that was found is of a history"
    number, null, kept = place
    kv.delete(layout.version_key(bucket, number, seq_of(record)))
    left = layout.History(number, None if _is_null(record) else null, kept - 1)
    layout.put_history(kv, bucket, key, left if left.kept else None)
    _count(kv, bucket, 0, 0, -1, -record["size"])


def _count(kv: KV, bucket: int, objects: int, size: int, former: int = 0, former_size: int = 0) -> None:
    before = usage(kv, bucket)
    after = [each + more for each, more in zip(before, (objects, size, former, former_size), strict=True)]
    kv.put(layout.usage_key(bucket), after if any(after[2:]) else after[:2])


def usage(kv: KV, bucket: int) -> list[int]:
    """Current objects, their bytes, former versions and markers, their bytes."""
    found = kv.get(layout.usage_key(bucket)) or [0, 0]
    return [*found, 0, 0][:4]
