"""What the golden files of set 5 say: backups of snapshots, a full one and one of what changed since;
otherwise as `values.py`."""

from __future__ import annotations

from typing import Any

from .values import BLOCK_SIZE, CLUSTER

FULL: dict[str, Any] = {
    "cluster": CLUSTER,
    "volume": "db",
    "volume_id": (1 << 48) + 1,
    "snapshot": "monday",
    "snapshot_id": (1 << 48) + 20,
    "created_ms": 1_700_000_000_000,
    "size": 64 << 10,
    "block_size": BLOCK_SIZE,
    "replicas": 3,
    "groups": 2,
    "durability": "writeback",
    "base": None,
}
Rows = list[tuple[int, int, int, int]]  # (kind, offset, length, number of the data's first block)
FULL_FRAMES: Rows = [
    (1, 0, 2 * BLOCK_SIZE, 400),
    (2, 2 * BLOCK_SIZE, 13 * BLOCK_SIZE, 0),
    (1, 15 * BLOCK_SIZE, BLOCK_SIZE, 402),
]
INCREMENTAL: dict[str, Any] = {
    **FULL,
    "snapshot": "tuesday",
    "snapshot_id": (1 << 48) + 21,
    "created_ms": 1_700_000_086_400_000,
    "size": 128 << 10,
    "base": {
        "volume_id": (1 << 48) + 1,
        "snapshot": "monday",
        "snapshot_id": (1 << 48) + 20,
        "created_ms": 1_700_000_000_000,
    },
}
INCREMENTAL_FRAMES: Rows = [
    (2, 0, BLOCK_SIZE, 0),
    (1, 20 * BLOCK_SIZE, BLOCK_SIZE, 403),
]
BACKUPS: dict[str, tuple[dict[str, Any], Rows]] = {
    "full": (FULL, FULL_FRAMES),
    "incremental": (INCREMENTAL, INCREMENTAL_FRAMES),
}
