"""Tombstones over ranges of chunks: a sorted map of disjoint ranges, each with the LSN of its discard.

Owns one replica's whole-chunk tombstones. Must never forget one: a member that was away would keep what was
discarded. Invariant: ranges are disjoint and ascending; where two overlap the greater LSN stays. The other
one is *older*: it is kept as long as a snapshot shows it, since the blocks below it were gone at that time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator

Range = tuple[int, int, int]  # first chunk, one past the last, LSN
Keeps = Callable[[int, int], bool]  # (LSN, LSN of what replaces it)


class Tombstones:
    __slots__ = ("_older", "_ranges", "unswept", "version")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        """``ranges``: as :meth:`__iter__` gives them."""
        self._ranges: list[Range] = []
        self._older: list[Range] = []
        self.version = 0  # counts changes: a page knows up to which it has been swept
        self.unswept: list[tuple[int, int]] = []
        for first, end, lsn in sorted(ranges, key=lambda each: each[2]):
            self.add(first, end, lsn, _all)
        self.version = min(self.version, 1)
        self.unswept = [(first, end) for first, end, _ in self._ranges]

    def __iter__(self) -> Iterator[Range]:
        """Also those that are older."""
        yield from self._ranges
        yield from self._older

    def __len__(self) -> int:
        return len(self._ranges)

    def lsn(self, chunk: int) -> int:
        """LSN of the last discard that covers ``chunk``, or 0."""
        at = bisect_right(self._ranges, (chunk, 1 << 64, 0)) - 1
        if at >= 0 and chunk < self._ranges[at][1]:
            return self._ranges[at][2]
        return 0

    def lsns(self, chunk: int) -> list[int]:
        """Of all discards that cover ``chunk`` and are known, the oldest first."""
        last = self.lsn(chunk)
        if not self._older:
            return [last] if last else []
        return sorted({lsn for first, end, lsn in self._older if first <= chunk < end} | ({last} - {0}))

    def from_chunk(self, chunk: int) -> list[Range]:
        """All that reach to there or further, by their first chunk."""
        return sorted([each for each in self if each[1] > chunk])

    def overlapping(self, first: int, end: int) -> list[Range]:
        """Of the last ones."""
        at = bisect_left(self._ranges, (first, 0, 0))
        if at and self._ranges[at - 1][1] > first:
            at -= 1
        found = []
        while at < len(self._ranges) and self._ranges[at][0] < end:
            found.append(self._ranges[at])
            at += 1
        return found

    def add(self, first: int, end: int, lsn: int, keeps: Keeps) -> None:
        """Cover [first, end) with ``lsn`` wherever no greater one does."""
        old = self.overlapping(first, end)
        new: list[Range] = []
        at = first
        for start, stop, other in old:
            low, high = max(start, first), min(stop, end)
            if other != lsn and keeps(*sorted((other, lsn))):
                self._older.append((low, high, min(other, lsn)))
            if start < first:
                new.append((start, first, other))
            if other >= lsn:
                if at < low:
                    new.append((at, start, lsn))
                new.append((low, high, other))
                at = high
            if stop > end:
                if at < end:
                    new.append((at, end, lsn))
                    at = end
                new.append((end, stop, other))
        if at < end:
            new.append((at, end, lsn))
        low = bisect_left(self._ranges, old[0]) if old else bisect_left(self._ranges, (first, 0, 0))
        # With its neighbours: where regions of objects go one after the other, that is one range, and not one
        # for each region that ever was.
        high = min(low + len(old) + 1, len(self._ranges))
        low_too = max(low - 1, 0)
        beside = [*self._ranges[low_too:low], *sorted(new), *self._ranges[low + len(old) : high]]
        self._ranges[low_too:high] = _joined(beside)
        self.version += 1
        self.unswept.append((first, end))

    def prune(self, keeps: Keeps) -> None:
        """Let go of older ones that no snapshot shows any more."""
        kept = [each for each in self._older if keeps(each[2], self._newest(each[0], each[1]))]
        if kept != self._older:
            self._older = kept
            self.version += 1

    def _newest(self, first: int, end: int) -> int:
        return max(lsn for _, _, lsn in self.overlapping(first, end))


def _joined(ranges: list[Range]) -> list[Range]:
    found: list[Range] = []
    for first, end, lsn in ranges:
        if found and found[-1][1:] == (first, lsn):
            found[-1] = (found[-1][0], end, lsn)
        else:
            found.append((first, end, lsn))
    return found


def _all(lsn: int, following: int) -> bool:
    return True
