"""Which LSN a read must see: that of the last write acknowledged in its chunk, from a bounded map.

Two generations: when the young one is full, the old one is dropped, and a chunk in neither must see the
greatest LSN ever dropped (the floor). So a read may wait for a little more than it needs, never for less.
"""

from __future__ import annotations


class ReadMap:
    """``chunks_max``: chunks remembered for sure; up to twice as many are kept."""

    __slots__ = ("_chunks_max", "_old", "_young", "floor", "last")

    def __init__(self, floor: int, chunks_max: int) -> None:
        self.floor = floor
        self.last = floor
        self._chunks_max = chunks_max
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def wrote(self, chunk: int, lsn: int) -> None:
        """A write or discard in this chunk was acknowledged; LSNs come in order."""
        self._young[chunk] = self.last = lsn
        if len(self._young) >= self._chunks_max:
            self.floor = max(self._old.values(), default=self.floor)
            self._old = self._young
            self._young = {}

    def wrote_all(self, lsn: int) -> None:
        """A record over many chunks was acknowledged."""
        self.floor = self.last = lsn
        self._young.clear()
        self._old.clear()

    def must_see(self, chunk: int) -> int:
        found = self._young.get(chunk)
        if found is None:
            found = self._old.get(chunk, self.floor)
        return found
