"""A page of the index: 32 blocks of a replica, each with what it is now and what snapshots still show of it.

Owns the bytes of a page, in memory and stored. Pure. A *cell* is a block as it is now: location, checksum,
LSN; location 0 with an LSN is a tombstone, both 0: it was never written, or its chunk was discarded. A
*version* is what a block was before, and is kept as long as a snapshot shows it: (LSN, location, checksum).

Invariants: versions of a block rise by LSN, and all are below that of its cell, which is then not 0.

Stored: 32 locations, 32 checksums, 32 LSNs; then for each version block (u8), LSN, location, checksum (25
bytes), little-endian.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from moorage.quorum.record import BLOCKS_PER_CHUNK
from moorage.wire.errors import Corrupt

if TYPE_CHECKING:
    from moorage.node.index import Table

PAGE_BLOCKS = 32
PAGES_PER_CHUNK = BLOCKS_PER_CHUNK // PAGE_BLOCKS
PAGE_SIZE = PAGE_BLOCKS * 24
LSNS = 2 * PAGE_BLOCKS  # cells: 32 locations, 32 checksums, 32 LSNs
_VERSION = struct.Struct("<BQQQ")


class Version(NamedTuple):
    lsn: int
    location: int  # 0: a tombstone
    check: int


Older = dict[int, list[Version]]  # by block of the page, without those that have none


class Page:
    __slots__ = ("cells", "dirty", "number", "older", "swept", "table", "used", "version")

    def __init__(self, table: Table, number: int, stored: bytes | None) -> None:
        self.table = table
        self.number = number
        self.cells, self.older = unpack_page(stored)
        self.swept = -1
        self.used = True
        self.dirty = False
        self.version = 0  # counts changes: what was stored meanwhile is compared with it

    def pack(self) -> bytes | None:
        """As it is stored; None: there is nothing in it."""
        if not any(self.cells[LSNS:]):
            return None
        packed = [_VERSION.pack(at, *version) for at, versions in self.older.items() for version in versions]
        return b"".join([self.cells.tobytes(), *packed])

    def keep(self, at: int, version: Version) -> None:
        """It is below the cell."""
        insort(self.older.setdefault(at, []), version)

    def find(self, at: int, lsn: int) -> Version | None:
        """The version with this LSN, not the cell."""
        for version in self.older.get(at, ()):
            if version.lsn == lsn:
                return version
        return None

    def following(self, at: int, lsn: int) -> int:
        """LSN of what replaced, or would have replaced, a version with this one."""
        lsns = [version.lsn for version in self.older.get(at, ())]
        after = bisect_right(lsns, lsn)
        return lsns[after] if after < len(lsns) else self.cells[LSNS + at]

    def shown(self, at: int, snapshot: int) -> Version:
        """What the block was at that LSN."""
        cells = self.cells
        if cells[LSNS + at] <= snapshot:
            return Version(cells[LSNS + at], cells[at], cells[PAGE_BLOCKS + at])
        versions = self.older.get(at, [])
        found = bisect_right([version.lsn for version in versions], snapshot) - 1
        return versions[found] if found >= 0 else _HOLE

    def by_age(self) -> list[tuple[int, Version]]:
        """All versions, each with its block, the oldest first."""
        found = [(at, version) for at, versions in self.older.items() for version in versions]
        return sorted(found, key=lambda each: (each[1].lsn, each[0]))

    def everything(self, at: int) -> list[Version]:
        """All that there is of a block, the oldest first."""
        cell = Version(self.cells[LSNS + at], self.cells[at], self.cells[PAGE_BLOCKS + at])
        return [*self.older.get(at, ()), cell] if cell.lsn else []


_HOLE = Version(0, 0, 0)


def unpack_page(stored: bytes | None) -> tuple[array[int], Older]:
    """Raises Corrupt."""
    if stored is None:
        return array("Q", bytes(PAGE_SIZE)), {}
    if len(stored) < PAGE_SIZE or (len(stored) - PAGE_SIZE) % _VERSION.size:
        raise Corrupt(f"a page of {len(stored)} bytes")
    older: Older = {}
    for at, *version in _VERSION.iter_unpack(stored[PAGE_SIZE:]):
        older.setdefault(at, []).append(Version(*version))
    return array("Q", stored[:PAGE_SIZE]), older


def stored_locations(stored: bytes) -> Iterator[int]:
    """Where the blocks and versions of a stored page are; tombstones are left out."""
    cells, older = unpack_page(stored)
    yield from (location for location in cells[:PAGE_BLOCKS] if location)
    yield from (each.location for versions in older.values() for each in versions if each.location)


def stored_lsn(stored: bytes) -> int:
    """The greatest one in a stored page."""
    return max(memoryview(stored)[8 * LSNS : PAGE_SIZE].cast("Q"))


def is_kept(snapshots: list[int], lsn: int, following: int) -> bool:
    """Whether one of these (in order) shows what was written at ``lsn`` and replaced at ``following``."""
    at = bisect_left(snapshots, lsn)
    return at < len(snapshots) and snapshots[at] < following
