"""Tombstones over ranges of chunks: a sorted map of disjoint ranges, each with the LSN of its discard.

Owns one replica's whole-chunk tombstones. Must never forget one: a member that was away would keep what was
discarded. Invariant: ranges are disjoint and ascending; where two overlap the greater LSN stays.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Range = tuple[int, int, int]  # first chunk, one past the last, LSN


class Tombstones:
    __slots__ = ("_ranges", "unswept", "version")

    def __init__(self, ranges: list[Range] | None = None) -> None:
        self._ranges: list[Range] = sorted(ranges or [])
        self.version = 1 if self._ranges else 0  # counts changes: a page knows up to which it has been swept
        self.unswept: list[tuple[int, int]] = [(first, end) for first, end, _ in self._ranges]

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def lsn(self, chunk: int) -> int:
        """LSN of the discard that covers ``chunk``, or 0."""
        at = bisect_right(self._ranges, (chunk, 1 << 64, 0)) - 1
        if at >= 0 and chunk < self._ranges[at][1]:
            return self._ranges[at][2]
        return 0

    def overlapping(self, first: int, end: int) -> list[Range]:
        at = bisect_left(self._ranges, (first, 0, 0))
        if at and self._ranges[at - 1][1] > first:
            at -= 1
        found = []
        while at < len(self._ranges) and self._ranges[at][0] < end:
            found.append(self._ranges[at])
            at += 1
        return found

    def add(self, first: int, end: int, lsn: int) -> None:
        """Cover [first, end) with ``lsn`` wherever no greater one does."""
        old = self.overlapping(first, end)
        new: list[Range] = []
        at = first
        for start, stop, other in old:
            if start < first:
                new.append((start, first, other))
            if other >= lsn:
                if at < max(start, first):
                    new.append((at, start, lsn))
                new.append((max(start, first), min(stop, end), other))
                at = min(stop, end)
            if stop > end:
                if at < end:
                    new.append((at, end, lsn))
                    at = end
                new.append((end, stop, other))
        if at < end:
            new.append((at, end, lsn))
        low = bisect_left(self._ranges, old[0]) if old else bisect_left(self._ranges, (first, 0, 0))
        self._ranges[low : low + len(old)] = sorted(new)
        self.version += 1
        self.unswept.append((first, end))
