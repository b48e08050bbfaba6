"""A disk in memory that forgets what was not synced: the verified double of :mod:`moorage.node.disk`.

Owns, per file, the synced bytes and the writes since. ``crash`` gives the disk that a machine would find
after power came back: every unsynced write is there whole, in part (torn at a sector), or not at all, as
``rng`` says. Must never keep a write across a crash because of order: a disk may write in any order.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from random import Random

from moorage.node.disk import WOULD_BLOCK, File
from moorage.quorum.record import Buffer

SECTOR = 512


class MemoryFile:
    def __init__(self, disk: MemoryDisk, name: str, synced: bytes) -> None:
        self._disk = disk
        self.name = name
        self.synced = bytearray(synced)
        self.now = bytearray(synced)
        self.unsynced: list[tuple[int, bytes]] = []

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        self._disk.event("pwritev", self.name)
        raw = b"".join(bytes(each) for each in buffers)
        if offset + len(raw) > len(self.now):
            raise OSError(errno.ENOSPC, "write past what is allocated")
        self.now[offset : offset + len(raw)] = raw
        self.unsynced.append((offset, raw))

    def pwritev_direct(self, buffers: Sequence[Buffer], offset: int) -> None:
        self.pwritev(buffers, offset)

    def fdatasync(self) -> None:
        self._disk.event("fdatasync", self.name)
        for offset, raw in self.unsynced:
            self.synced[offset : offset + len(raw)] = raw
        self.unsynced.clear()

    def preadv(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        self._disk.event("preadv", self.name)
        return self._read(into, offset)

    def preadv_direct(self, into: memoryview, offset: int) -> int:
        """What is on the disk is what is in memory here."""
        return self.preadv((into,), offset)

    def _read(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        total = 0
        for each in into:
            part = self.now[offset + total : offset + total + len(each)]
            memoryview(each)[: len(part)] = part
            total += len(part)
        return total

    def preadv_nowait(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        if not self._disk.cached:
            return WOULD_BLOCK
        return self._read(into, offset)

    def close(self) -> None:
        pass


class MemoryDisk:
    """``on_event(call, name)`` may raise OSError, to fail a call; ``cached = False``: nowait reads block."""

    def __init__(self) -> None:
        self.files: dict[str, MemoryFile] = {}
        self.cached = True
        self.free = 1 << 40
        self.on_event: Callable[[str, str], None] | None = None

    def event(self, call: str, name: str) -> None:
        if self.on_event is not None:
            self.on_event(call, name)

    def names(self) -> list[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        return len(self.files[name].now)

    def open(self, name: str) -> File:
        return self.files[name]

    def create(self, name: str, size: int) -> File:
        self.event("create", name)
        if size > self.free:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.free -= size
        self.files[name] = MemoryFile(self, name, bytes(size))
        return self.files[name]

    def unlink(self, name: str) -> None:
        self.free += len(self.files.pop(name).now)

    def lose_power(self, rng: Random, keep: float = 0.5) -> None:
        """As :meth:`crash`, in place; every other time nothing of what was not synced is there."""
        loses_all = rng.random() < 0.5
        for file in self.files.values():
            if file.unsynced:
                if not loses_all:
                    _settle(file.synced, file.unsynced, rng, keep)
                file.unsynced.clear()
                file.now[:] = file.synced

    def crash(self, rng: Random | None, keep: float = 0.5) -> MemoryDisk:
        """The disk after power loss; with ``rng=None`` after a mere kill (the page cache survives)."""
        after = MemoryDisk()
        after.free = self.free
        for name, file in self.files.items():
            image = bytearray(file.now if rng is None else file.synced)
            if rng is not None:
                _settle(image, file.unsynced, rng, keep)
            found = MemoryFile(after, name, bytes(file.synced))
            found.now[:] = image
            if rng is None:
                found.unsynced = list(file.unsynced)
            else:
                found.synced[:] = image
            after.files[name] = found
        return after


def _settle(image: bytearray, unsynced: list[tuple[int, bytes]], rng: Random, keep: float) -> None:
    for offset, raw in unsynced:
        whole = rng.random()
        for start in range(0, len(raw), SECTOR):
            # a third of the writes survive whole, a third not at all, the rest by the sector
            if whole < 1 / 3 or (whole < 2 / 3 and rng.random() < keep):
                part = raw[start : start + SECTOR]
                image[offset + start : offset + start + len(part)] = part
