"""The superblock: which device a directory is, and the token of its last start.

Owns the file ``superblock`` and the lock on the directory. Must never hand out a heartbeat count that it has
not reserved on disk before (after a crash it would go back, and the registry refuse the device for good), nor
ask the registry for a token that it has not written down before.

A token moves in two durable steps: ``next_token`` is written, the registry moves from ``token`` to it, then
``token`` becomes it. A crash between leaves both, and the same move is asked for again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from moorage.node.config import CAPACITY_MIN
from moorage.node.space import segment_size_for
from moorage.service import identity
from moorage.wire.errors import Corrupt, DeviceFailed, IdentityConflict, Invalid, NoSpace

FILE = "superblock"
KIND = "device"
# Heartbeats reserved at once: one small write in so many. A clone of a running device's directory remembers
# so many more than were sent, and goes unnoticed until the original has been heard that much longer: so few.
COUNT_STEP = 10
_FREE_SHARE = 90  # per cent of what the file system has free, when nobody said how much to use


@dataclass(frozen=True)
class Fields:
    device: str  # 32 hex digits, for good
    seed: str  # 16 hex digits: secret, of the log's checks (see segment.py)
    token: str  # the last one that the registry is known to have agreed to; "" before the first start
    next_token: str  # asked for, outcome not known; ""
    count: int  # heartbeats below this may have been sent
    segment_size: int
    capacity: int


_TYPES = {key: {"str": str, "int": int}[str(kind)] for key, kind in Fields.__annotations__.items()}


class Superblock:
    """``Superblock.open`` locks the directory and reads or makes the file; ``close`` unlocks."""

    def __init__(self, directory: Path, capacity: int | None) -> None:
        self._path = directory / FILE
        identity.make_directory(directory)
        self._lock = _lock(directory)
        try:
            found = identity.load(self._path, KIND)
            self.fields = _parse(found, self._path) if found is not None else _fresh(directory, capacity)
            self._count = self.fields.count
            if capacity is not None and capacity != self.fields.capacity:
                # Stored with the token of this start: nothing is written before the rest could be read.
                self.fields = replace(self.fields, capacity=capacity)
            if found is None:
                self._refuse_leftovers(directory)
                self._store(self.fields)
        except BaseException:
            self.close()
            raise

    def _refuse_leftovers(self, directory: Path) -> None:
        """Segments without a superblock: it was lost, and with it what the device had promised."""
        if any((directory / "segments").glob("*.seg")):
            raise Corrupt(
                f"{self._path} is missing, but there are segments beside it: restore this file alone, or move"
                " the directory away and start empty, under a new identity"
            )

    def _store(self, fields: Fields) -> None:
        """They count once they are durable: on NoSpace all is as it was, and may be tried again."""
        try:
            identity.store(self._path, KIND, asdict(fields))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = "make room in this file system"
                raise NoSpace(f"{self._path} cannot be written: {error.strerror}: {advice}") from None
            raise DeviceFailed(f"{self._path} cannot be written: {error}") from error
        self.fields = fields

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- tokens -----------------------------------------------------------------------------------

    def begin_move(self) -> tuple[str, str]:
        """(token, next token) to ask the registry for; durable."""
        if not self.fields.next_token:
            self._store(replace(self.fields, next_token=secrets.token_hex(16)))
        return self.fields.token, self.fields.next_token

    def moved(self) -> None:
        """The registry has agreed."""
        self._store(replace(self.fields, token=self.fields.next_token, next_token=""))

    # -- heartbeats ---------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The count that comes next."""
        return self._count

    def needs_count(self) -> bool:
        return self._count >= self.fields.count

    def reserve_counts(self) -> None:
        """Blocking: before :meth:`take_count` when :meth:`needs_count`."""
        self._store(replace(self.fields, count=self._count + COUNT_STEP))

    def take_count(self) -> int:
        count = self._count
        self._count += 1
        return count


def _lock(directory: Path) -> int:
    """One process per device: the lock ends with the process, however that ends."""
    descriptor = os.open(directory / "device.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise IdentityConflict(
            f"{directory} is in use by another process: stop that one, or give this one its own --data-dir"
        ) from None
    return descriptor


def _parse(body: dict[str, object], path: Path) -> Fields:
    if {key: type(value) for key, value in body.items()} != _TYPES:
        raise Corrupt(f"{path}: fields that no version wrote ({', '.join(sorted(body))})")
    return Fields(**body)  # type: ignore[arg-type]


def _fresh(directory: Path, capacity: int | None) -> Fields:
    if capacity is None:
        found = os.statvfs(directory)
        capacity = found.f_bavail * found.f_frsize * _FREE_SHARE // 100
        if capacity < CAPACITY_MIN:
            raise Invalid(f"{directory}: the file system has only {capacity >> 20} MiB to give: make room")
    return Fields(
        secrets.token_hex(16), secrets.token_hex(8), "", "", 0, segment_size_for(capacity), capacity
    )
