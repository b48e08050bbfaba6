"""One page of what is in a bucket: keys in the order of their bytes, and what they have in common up to a
delimiter. Pure.

Owns the walk: its cost grows with the page, not with the bucket, since what is rolled up into one common
prefix is passed over in one step. A page ends where the next one begins: at a *start*, the bytes below which
nothing is looked at any more; it need not be a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moorage.metadata.objects import layout
from moorage.service.kv import KV, SCAN_BATCH

FEW = 4
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
