"""What a volume's URI asks for, and what came of it: the same by whatever way it comes to be mounted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Effect:
    size: int
    replicas: int
    durability: str
    fs: str
    read_only: bool
    io_timeout: float


# Of a volume that there is not yet: the options of the URI.
MADE = {
    "size=64M&replicas=1": Effect(64 * MIB, 1, "sync", "ext4", False, 60),
    "size=512MiB&fs=xfs&durability=writeback&io_timeout=7.5": Effect(
        512 * MIB, 3, "writeback", "xfs", False, 7.5
    ),
    "size=67108864&replicas=1&groups=2&fs=ext4&mode=rw&io_timeout=0": Effect(
        64 * MIB, 1, "sync", "ext4", False, 0
    ),
}
# Of one that has 64 MiB, one replica and ext4: what follows its name.
EXISTING = {
    "": Effect(64 * MIB, 1, "sync", "ext4", False, 60),
    "?mode=ro": Effect(64 * MIB, 1, "sync", "ext4", True, 60),
    "?size=1G&replicas=3&io_timeout=9": Effect(64 * MIB, 1, "sync", "ext4", False, 9),  # it is there as it is
}


def effect(info: Mapping[str, Any], record: Mapping[str, Any], mounted: str) -> Effect:
    """``info``: of `moorage volume show`; ``record``: of the mount; ``mounted``: findmnt's FSTYPE,OPTIONS."""
    kind, options = mounted.split()
    read_only = "ro" in options.split(",")
    assert record["read_only"] == read_only
    return Effect(info["size"], info["replicas"], info["durability"], kind, read_only, record["io_timeout"])
