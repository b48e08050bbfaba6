"""Ceilings of a volume: how many operations and bytes a second it may be asked for. A pure core: time is an
argument.

A bucket for operations and one for bytes, each kept as the time at which all that was let through is paid
for at its rate. A request is let through when neither lies in the future, and is charged whole, so that one
larger than a bucket borrows, and those behind it wait until that is paid back. What was not used is kept for
``BURST_S`` and no longer. So any window of T seconds, however it is laid, sees no more than
``rate * (T + BURST_S)`` and one request; and who always has a request waiting gets the whole rate, also when
it is asked up to ``BURST_S`` late.
"""

from __future__ import annotations

# Timers come some milliseconds late, and lose nothing by it; a second sees a tenth more than the rate at the
# very most.
BURST_S = 0.1


class Ceiling:
    """``iops`` operations and ``bw`` bytes a second; 0: no limit."""

    __slots__ = ("_bytes_paid", "_operations_paid", "bw", "iops")

    def __init__(self, iops: int, bw: int) -> None:
        self.iops = iops
        self.bw = bw
        self._operations_paid = self._bytes_paid = float("-inf")  # both buckets are full

    def due(self) -> float:
        """When the next request may go."""
        return max(self._operations_paid, self._bytes_paid)

    def admit(self, size: int, now: float) -> bool:
        """Let a request of ``size`` bytes through, and charge it; False: not before :meth:`due`."""
        if self._operations_paid > now or self._bytes_paid > now:
            return False
        if self.iops:
            self._operations_paid = max(self._operations_paid, now - BURST_S) + 1 / self.iops
        if self.bw:
            self._bytes_paid = max(self._bytes_paid, now - BURST_S) + size / self.bw
        return True

    def change(self, iops: int, bw: int, now: float) -> None:
        """Other rates from now on. What is borrowed is paid back at the new ones."""
        self._operations_paid = _moved(self._operations_paid, self.iops, iops, now)
        self._bytes_paid = _moved(self._bytes_paid, self.bw, bw, now)
        self.iops, self.bw = iops, bw


def _moved(paid: float, old: int, new: int, now: float) -> float:
    """The same debt, or credit, at another rate."""
    if not old or not new:
        return float("-inf")
    return now + max(paid - now, -BURST_S) * old / new
