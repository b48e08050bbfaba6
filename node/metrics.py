"""Counters of the store and of the node's hot path, as plain numbers: the HTTP side exports them.

Owns nothing else. Must never cost more than additions on the hot path: per entry, not per record.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, fields

# Each 1.41 times the one before: what is read out of the counts is no further off than that. uvloop's clock
# has 1 ms.
BOUNDS_S = tuple(round(0.001 * 2 ** (step / 2), 6) for step in range(27))  # 1 ms to 8.2 s
SMALL_MAX = 64 << 10  # bytes of a record, on the average of an entry


class Latencies:
    """How long users' records took to be durable: ``counts[n]`` of them up to ``BOUNDS_S[n]``, the last above
    all. Those that one replica has in one group commit count as the oldest of them, since it was queued."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def note(self, took_s: float, records: int) -> None:
        self.counts[bisect_left(BOUNDS_S, took_s)] += records
        self.total_s += took_s * records


@dataclass(slots=True)
class StoreMetrics:
    group_commits: int = 0
    group_commit_entries: int = 0
    group_commit_bytes: int = 0
    records: int = 0
    record_bytes: int = 0
    reads: int = 0
    read_bytes: int = 0
    reads_blocking: int = 0
    corrupt_blocks: int = 0
    checkpoints: int = 0
    checkpoint_pages: int = 0
    compacted_segments: int = 0
    compacted_bytes: int = 0
    copied_bytes: int = 0  # pulled from other nodes
    scrubbed_bytes: int = 0  # read back from the disk
    scrubbed_pages: int = 0  # of the index
    scrub_passes: int = 0  # over a replica, to the end
    scrub_bad_blocks: int = 0  # found, on the disk
    appends: Latencies = field(default_factory=Latencies)
    large_appends: Latencies = field(default_factory=Latencies)  # of records above SMALL_MAX

    def group_commit(self, entries: int, size: int) -> None:
        self.group_commits += 1
        self.group_commit_entries += entries
        self.group_commit_bytes += size

    def durable(self, size: int, took_s: float, records: int) -> None:
        """``size`` bytes in so many users' records of one replica. By the size of a record: how many of them
        go into one group commit is a matter of how slow the disk is."""
        (self.appends if size <= SMALL_MAX * records else self.large_appends).note(took_s, records)

    def as_dict(self) -> dict[str, int]:
        """The plain counters."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in values if isinstance(value, int)}
