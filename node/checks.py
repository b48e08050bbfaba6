"""What is known of each table of blocks: when all of it was last read back, and which blocks are bad.

Owns that memory (pure; ``scrub.py`` does the reading, ``checkpoint.py`` keeps it in the index). Must never
call a table checked while a block of it is known to be bad, nor take one table's check for another's: the
handle names it, and a copy from nothing has a new one.

A block is bad as long as the table, or a pending record, still says that it lies at that place with that
LSN: written again, copied or discarded, it is elsewhere. A *version*, which only snapshots show, is bad as
long as one does: nobody can write it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

VERSION = 1
BAD_MAX = 1024  # of a table: where there are more, a fresh copy of the replica costs less

BadBlock = tuple[int, int]  # chunk, block
BadPlace = tuple[int, int]  # location, LSN


class Check:
    """Of one table. Times in milliseconds since 1970; 0: never."""

    __slots__ = ("asked", "bad", "began_ms", "done", "handle", "page", "passed_ms", "replica", "versions")

    def __init__(self, replica: int, handle: int, passed_ms: int = 0) -> None:
        self.replica = replica
        self.handle = handle
        self.passed_ms = passed_ms  # when the last pass that came to its end had begun
        self.began_ms = 0  # when the pass under way did
        self.page = 0  # where it goes on
        self.done = 0  # bytes that it has read in this life
        self.bad: dict[BadBlock, BadPlace] = {}
        self.versions: dict[BadPlace, BadBlock] = {}  # bad ones that only snapshots show
        self.asked = False  # somebody wants a pass now

    @property
    def verified_ms(self) -> int:
        """All that is in the table was read back, or written, at this time or later; 0: that is not so."""
        return 0 if self.bad or self.versions else self.passed_ms

    def begin(self, now_ms: int) -> None:
        self.began_ms, self.page, self.done = now_ms, 0, 0

    def complete(self) -> None:
        self.passed_ms, self.began_ms, self.page, self.done = self.began_ms, 0, 0, 0
        self.asked = False

    @property
    def count(self) -> int:
        return len(self.bad) + len(self.versions)

    def forget_mended(
        self, is_now: Callable[[BadBlock, BadPlace], bool], is_shown: Callable[[BadBlock, BadPlace], bool]
    ) -> bool:
        """``is_now``: the block is there yet; ``is_shown``: it is, or a snapshot shows it from there. Whether
        anything is another than it was."""
        before = dict(self.bad), dict(self.versions)
        for block, place in before[0].items():
            if not is_now(block, place):
                del self.bad[block]
                self.versions[place] = block
        self.versions = {place: block for place, block in self.versions.items() if is_shown(block, place)}
        return before != (self.bad, self.versions)

    def pack(self) -> bytes:
        found = [*self.bad.items(), *((block, place) for place, block in self.versions.items())]
        bad = [[*block, *place] for block, place in sorted(found)]
        packed: bytes = msgpack.packb([VERSION, self.replica, self.passed_ms, self.began_ms, self.page, bad])
        return packed

    @classmethod
    def unpack(cls, handle: int, packed: bytes) -> Check | None:
        """None for what :meth:`pack` of this version did not make: then nothing is known."""
        try:
            version, replica, passed_ms, began_ms, page, bad = msgpack.unpackb(packed)
            if version != VERSION or not _are_numbers(replica, passed_ms, began_ms, page):
                return None
            found = cls(replica, handle, passed_ms)
            found.began_ms, found.page = began_ms, page
            for row in bad:
                if not _are_numbers(*row):
                    return None
                chunk, block, location, lsn = row
                if (chunk, block) in found.bad:  # which of them is which is found out when they are looked at
                    found.versions[location, lsn] = chunk, block
                else:
                    found.bad[chunk, block] = location, lsn
        except (ValueError, TypeError, msgpack.UnpackException):
            return None
        return found


def _are_numbers(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def overdue_rate(due: list[tuple[float, int]], least_s: float) -> float:
    """Bytes per second that keep all deadlines: ``due`` has (seconds left, bytes) of each, done in the order
    of their deadlines. Nobody has less than ``least_s``: a device that was away for long would do nothing
    else."""
    rate, size = 0.0, 0
    for left_s, bytes_left in sorted(due):
        size += bytes_left
        rate = max(rate, size / max(left_s, least_s))
    return rate
