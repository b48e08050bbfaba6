"""Making a new LMDB environment: a power failure leaves none, or a whole and empty one under its name.

LMDB by itself writes the first pages of a new file without a sync, and never syncs the directory: afterwards
the file may be empty, zeroes or half its size, which ``lmdb_check`` takes for damage, or have no name. Must
never touch an environment that is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from moorage.service.identity import fsync_directory, make_directory

FILE = "data.mdb"


def make_environment(path: Path, *, map_size: int, mode: int = 0o644) -> None:
    """Have ``path/data.mdb``, made empty if need be, with its name durable. For the writer alone."""
    make_directory(path)
    if not (path / FILE).exists():
        beside = path / f"{FILE}.new"
        beside.unlink(missing_ok=True)
        with lmdb.open(str(beside), map_size=map_size, subdir=False, lock=False, mode=mode) as env:
            env.sync(True)
        os.replace(beside, path / FILE)
    fsync_directory(path)  # also one that was there: a process that was killed may have just made it
