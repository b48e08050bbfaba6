"""What was found in the log after a start, and what to do about it: one table, no I/O.

Owns the decision keep / torn tail / damaged / end of a former life (docs/node-store.md has the same table).
Must never take corruption of acknowledged data for a torn tail, nor read past where a former life
ended. The argument: group n + 1 is written only after group n is synced, so whatever comes before
any proof of a later group had been synced, and may have been acknowledged. So it has, too, when something is
in the index that was written there only after this group was synced.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from moorage.node.segment import SegmentHeader


class Found(Enum):
    """What is at the place where the next group commit should be."""

    WHOLE = "whole"  # header, entry heads, bodies and data match; the number is the expected one
    PART = "part"  # header and entry heads match; some body or block of data does not
    BAD = "bad"  # anything else: zeroes, old bytes, a torn or damaged header, a wrong number


class Verdict(Enum):
    KEEP = "keep"  # replay it
    LIFE_END = "end of a life"  # go on in the next segment
    TORN_TAIL = "torn tail"  # the end of the log; it was never acknowledged
    DAMAGED_ENTRIES = "damaged entries"  # replay it, and mark the replicas of its bad entries
    DAMAGED_ALL = "damaged"  # whose records it held cannot be told: mark all, go on at a later one, if any


class Place(NamedTuple):
    found: Found
    at_recorded_end: bool  # a later segment's header says that the log of this one ended here
    later: (
        bool  # proof that it was synced: a frame behind, a later segment that follows, or the index says so
    )


# Each input matches exactly one row; the first three columns are a Place, None matches both.
TABLE: list[tuple[Found | None, bool | None, bool | None, Verdict]] = [
    (None, True, None, Verdict.LIFE_END),
    (Found.WHOLE, False, None, Verdict.KEEP),
    (Found.PART, False, True, Verdict.DAMAGED_ENTRIES),
    (Found.PART, False, False, Verdict.TORN_TAIL),
    (Found.BAD, False, True, Verdict.DAMAGED_ALL),
    (Found.BAD, False, False, Verdict.TORN_TAIL),
]


def judge(place: Place) -> Verdict:
    for found, at_end, later, verdict in TABLE:
        if all(want is None or want == got for want, got in zip((found, at_end, later), place, strict=True)):
            return verdict
    raise AssertionError(f"no row for {place}")


class Chain:
    """The order of the segments, from their headers. ``headers``: number -> header, of every file that has a
    whole one."""

    def __init__(self, headers: dict[int, SegmentHeader]) -> None:
        self._headers = headers

    def follower(self, number: int) -> SegmentHeader | None:
        """The segment that says it follows ``number``; the last one that does, since that life came later."""
        found = [each for each in self._headers.values() if each.previous == number and each.number > number]
        return max(found, default=None, key=lambda each: each.number)

    def next_after(self, number: int) -> SegmentHeader | None:
        """The next segment there is, whatever it says: where to go on when the chain is broken."""
        later = [each for each in self._headers.values() if each.number > number]
        return min(later, default=None, key=lambda each: each.number)


class Cursor(NamedTuple):
    """Where the next group commit should be."""

    segment: int
    offset: int
    group: int
