"""One page of what is in a bucket: keys in the order of their bytes, and what they have in common up to a
delimiter. Pure.

Owns the walk: its cost grows with the page, not with the bucket, since what is rolled up into one common
prefix is passed over in one step. A page ends where the next one begins: at a *start*, the bytes below which
nothing is looked at any more; it need not be a key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from typing import Any, NamedTuple

from moorage.metadata.objects import layout, versions
from moorage.service.kv import KV, SCAN_BATCH

FEW = 4
PLACED = re.compile(r"(null\.)?[0-9a-f]{16}")
AFTER_ALL = b"\xff"  # no UTF-8 has it: behind all that begins with what stands before it


@dataclass
class Page:
    """``next``: where the following page begins; empty: there is none. ``size``: as ``size_of`` has it."""

    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next: bytes = b""
    size: int = 0


def start_after(after: str, prefix: str, delimiter: str) -> bytes:
    """Where a page begins that comes behind the key, or the common prefix, ``after``."""
    if not after:
        return b""
    is_common = bool(delimiter) and after.startswith(prefix) and after.endswith(delimiter)
    # (the first delimiter behind the prefix, or it is a part of a key)
    is_common = is_common and after.find(delimiter, len(prefix)) == len(after) - len(delimiter)
    return after.encode() + (AFTER_ALL if is_common else b"\0")


def page(
    kv: KV,
    bucket: int,
    *,
    prefix: str,
    delimiter: str,
    start: bytes,
    limit: int,
    size: int = 1 << 62,
    size_of: Callable[[str, dict[str, Any]], int] = lambda key, entry: 0,
) -> Page:
    """Up to ``limit`` keys and common prefixes together, and no more once they have ``size``."""
    found = Page()
    walking, batch = True, SCAN_BATCH
    while walking:
        walking = False
        for key, entry in layout.scan_objects(kv, bucket, prefix, start, batch):
            if len(found.entries) + len(found.prefixes) == limit or found.size >= size:
                found.next = key.encode()
                return found
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                found.entries.append((key, entry))
                found.size += size_of(key, entry)
                start = key.encode() + b"\0"
                continue
            common = key[: at + len(delimiter)]
            found.prefixes.append(common)
            found.size += 4 * len(common)
            start = common.encode() + AFTER_ALL
            walking, batch = True, FEW  # of folders, as a rule, more follow: of each the first key is enough
            break
    return found


class Place(NamedTuple):
    """Where a page of versions begins: at the first key that is not below ``key``; of that very one, at the
    versions whose ``seq`` is below ``below`` (None: at the newest)."""

    key: bytes
    below: int | None = None


@dataclass
class VersionsPage:
    """``entries``: key, version or marker, and whether it is the newest one. ``next``: where the following
    page begins; None: there is none."""

    entries: list[tuple[str, dict[str, Any], bool]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next: Place | None = None
    size: int = 0


def place_behind(kv: KV, bucket: int, after: str, version: str, prefix: str, delimiter: str) -> Place:
    """Behind ``version`` of the key ``after``, or all of it when there is none; a key that is rolled up into
    a common prefix stands for that. ``version`` is as :func:`marker_of` has it, or a name."""
    end = after.find(delimiter, len(prefix)) if delimiter and after.startswith(prefix) else -1
    if end >= 0:
        return Place(after[: end + len(delimiter)].encode() + AFTER_ALL)
    if not version:
        return Place(start_after(after, prefix, delimiter))
    if PLACED.fullmatch(version):
        return Place(after.encode(), int(version[-16:], 16))
    found = versions.find(kv, bucket, after, version)
    return Place(after.encode(), None if found is None else versions.seq_of(found))


def marker_of(record: dict[str, Any]) -> str:
    """By which a page goes on behind this version, also when that is gone by then: its name, and its place,
    where that is not the same."""
    name, place = versions.name_of(record), versions.name_at(versions.seq_of(record))
    return name if name == place else f"{name}.{place}"


def versions_page(
    kv: KV,
    bucket: int,
    *,
    prefix: str,
    delimiter: str,
    place: Place,
    limit: int,
    size: int,
    size_of: Callable[[str, dict[str, Any]], int],
) -> VersionsPage:
    """As :func:`page`, of all versions: of each key the newest first."""
    found = VersionsPage()
    walking, batch = True, SCAN_BATCH
    while walking:
        walking = False
        for key, there, number in _keys(kv, bucket, prefix, place.key, batch):
            below = place.below if key.encode() == place.key else None
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                if len(found.entries) + len(found.prefixes) == limit or found.size >= size:
                    found.next = Place(key.encode())
                    return found
                common = key[: at + len(delimiter)]
                found.prefixes.append(common)
                found.size += 4 * len(common)
                place = Place(common.encode() + AFTER_ALL)
                walking, batch = True, FEW
                break
            is_newest = below is None
            for record in _versions(kv, bucket, there, number, below):
                if len(found.entries) + len(found.prefixes) == limit or found.size >= size:
                    found.next = Place(key.encode(), below)
                    return found
                found.entries.append((key, record, is_newest))
                found.size += size_of(key, record)
                below, is_newest = versions.seq_of(record), False
    return found


def _keys(
    kv: KV, bucket: int, prefix: str, start: bytes, batch: int
) -> Iterator[tuple[str, dict[str, Any] | None, int | None]]:
    """Each key with its current object, and the number of its history."""
    objects = layout.scan_objects(kv, bucket, prefix, start, batch)
    histories = layout.scan_histories(kv, bucket, prefix, start, batch)
    both = merge(
        ((key.encode(), 0, entry) for key, entry in objects),
        ((key.encode(), 1, found.number) for key, found in histories),
        key=lambda each: each[:2],
    )
    for raw, together in groupby(both, key=lambda each: each[0]):
        found: dict[int, Any] = {kind: each for _, kind, each in together}
        yield raw.decode(), found.get(0), found.get(1)


def _versions(
    kv: KV, bucket: int, there: dict[str, Any] | None, number: int | None, below: int | None
) -> Iterator[dict[str, Any]]:
    if there is not None and (below is None or versions.seq_of(there) < below):
        yield there
    if number is not None:
        yield from versions.history_of(kv, bucket, number, below)
