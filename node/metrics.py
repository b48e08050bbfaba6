"""Counters of the store and of the node's hot path, as plain numbers: the HTTP side exports them.

Owns nothing else. Must never cost more than an addition on the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


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

    def group_commit(self, entries: int, size: int) -> None:
        self.group_commits += 1
        self.group_commit_entries += entries
        self.group_commit_bytes += size

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
