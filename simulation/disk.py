"""Simulated devices: the segment files of one host's device, the lanes that work on them, and what goes
wrong.

Owns latency, faults and what a crash leaves. Files are the store's verified double (``node.memory_disk``):
a kill keeps what was written (the page cache survives), a power loss keeps what was synced, and of the rest
any part, torn at sectors. Must never fail a call but by an error that a real one has, nor harm the newest
group commit before another one follows it: nobody could tell that from a torn write (docs/node-store.md).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from moorage.node.disk import WOULD_BLOCK, File
from moorage.node.lane import Lane
from moorage.node.memory_disk import MemoryDisk, MemoryFile
from moorage.quorum.record import BLOCK_SIZE, Buffer
from moorage.simulation.loop import Killed, SimLoop, current
from moorage.simulation.tunables import FAST_DISK_S

SECTOR = 512


class Device:
    """What outlives the processes of a host: the disk, and its faults to come."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.disk = MemoryDisk()
        self.latency_s = FAST_DISK_S
        self.fails_at = 0  # number of a write or sync from now that fails; 0: none
        self.misdirects_at = 0  # number of a write from now that lands somewhere else
        self.damaged = False  # something that was synced has changed
        self.unreadable: dict[str, set[int]] = {}  # sectors of files: EIO, until they are written again
        self._newest: list[tuple[str, int, int]] = []  # what the newest group commit wrote: file, from, to
        self._newest_synced = True
        self._astray: Callable[[], None] | None = None  # has a part of it be elsewhere, from the next one on

    def open(self) -> SimDisk:
        """For a new process."""
        self.disk.on_event = self._event
        return SimDisk(self)

    def lost_power(self) -> None:
        """A mere kill changes nothing: the page cache survives."""
        self.disk.lose_power(self.loop.rng)

    def _event(self, call: str, name: str) -> None:
        process = current.get()
        if process is not None:
            process.effect()
        if call in ("pwritev", "fdatasync") and self.fails_at:
            self.fails_at -= 1
            if not self.fails_at:
                self.loop.note(f"{self.name}: {call} of {name} fails")
                if call == "fdatasync":  # what the kernel could not write it forgets, and calls clean
                    file = self.disk.files[name]
                    file.now[:] = file.synced
                    file.unsynced.clear()
                raise OSError(errno.EIO, "input/output error")

    def wrote(self, file: MemoryFile, offset: int, size: int) -> None:
        if lost := self.unreadable.get(file.name):
            lost -= set(range(offset // SECTOR, (offset + size) // SECTOR))
        if self._newest_synced:
            self._newest, self._newest_synced = [], False
            if self._astray is not None:
                self._astray()
                self._astray = None
        self._newest.append((file.name, offset, offset + size))
        if self.misdirects_at:
            self.misdirects_at -= 1
            if not self.misdirects_at:
                self._misdirect(file, offset, size)

    def synced(self) -> None:
        self._newest_synced = True

    def _misdirect(self, file: MemoryFile, offset: int, size: int) -> None:
        """This write, which is about to be done, will turn out to have gone elsewhere."""
        before = bytes(file.now[offset : offset + size])
        elsewhere = self.loop.rng.randint(0, (len(file.now) - size) // BLOCK_SIZE) * BLOCK_SIZE

        def land() -> None:
            written = bytes(file.now[offset : offset + size])
            for image in (file.now, file.synced):
                image[offset : offset + size] = before
                image[elsewhere : elsewhere + size] = written
            self.damaged = True
            self.loop.note(f"{self.name}: what was written to {file.name} at {offset} is at {elsewhere}")

        self._astray = land

    def rot(self, rng: Random) -> bool:
        """Flip a bit of some block that was written and synced; whether there was one."""
        found = self._somewhere_synced(rng)
        if found is None:
            return False
        file, start = found
        return self._flip(rng, file, [start])

    def rot_at(self, rng: Random, name: str, offset: int) -> bool:
        """In the block that is there."""
        file = self.disk.files[name]
        return self._flip(rng, file, [at for at in self._may_rot(file) if offset <= at < offset + BLOCK_SIZE])

    def _flip(self, rng: Random, file: MemoryFile, sectors: list[int]) -> bool:
        """A bit in one of these."""
        if not sectors:
            return False
        at, bit = rng.choice(sectors) + rng.randrange(SECTOR), 1 << rng.randrange(8)
        self.damaged = True
        file.now[at] ^= bit
        file.synced[at] ^= bit
        self.loop.note(f"{self.name}: byte {at} of {file.name} rots")
        return True

    def lose_sector(self, rng: Random) -> bool:
        """Some sector that was written and synced cannot be read any more, which nobody knows yet."""
        found = self._somewhere_synced(rng)
        if found is None:
            return False
        file, start = found
        self.unreadable.setdefault(file.name, set()).add(start // SECTOR)
        self.loop.note(f"{self.name}: sector {start // SECTOR} of {file.name} cannot be read any more")
        return True

    def _somewhere_synced(self, rng: Random) -> tuple[MemoryFile, int] | None:
        """A file, and where a sector of it begins; not in the newest group commit."""
        files = [file for file in self.disk.files.values() if any(file.synced)]
        if not files:
            return None
        file = rng.choice(sorted(files, key=lambda each: each.name))
        sectors = self._may_rot(file)
        return (file, rng.choice(sectors)) if sectors else None

    def check_readable(self, file: MemoryFile, offset: int, size: int) -> None:
        lost = self.unreadable.get(file.name)
        if lost and any(offset < (at + 1) * SECTOR and at * SECTOR < offset + size for at in lost):
            raise OSError(errno.EIO, "input/output error")

    def _may_rot(self, file: MemoryFile) -> list[int]:
        newest = [range(start, end) for name, start, end in self._newest if name == file.name]
        return [
            at
            for at in range(0, len(file.synced), SECTOR)
            if any(file.synced[at : at + SECTOR]) and not any(at in each for each in newest)
        ]


class SimDisk:
    """A :class:`moorage.node.disk.Disk` of one process's life."""

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def _disk(self) -> MemoryDisk:
        return self._device.disk

    def names(self) -> list[str]:
        return self._disk.names()

    def size(self, name: str) -> int:
        return self._disk.size(name)

    def open(self, name: str) -> File:
        return SimFile(self._device, self._disk.files[name])

    def create(self, name: str, size: int) -> File:
        self._disk.create(name, size)
        return self.open(name)

    def unlink(self, name: str) -> None:
        self._device._event("unlink", name)
        self._disk.unlink(name)


class SimFile:
    """Reads that may have to wait for the disk, and writes that may go astray."""

    def __init__(self, device: Device, file: MemoryFile) -> None:
        self._device = device
        self._file = file

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        self._device.wrote(self._file, offset, sum(len(each) for each in buffers))
        self._file.pwritev(buffers, offset)

    def pwritev_direct(self, buffers: Sequence[Buffer], offset: int) -> None:
        self.pwritev(buffers, offset)

    def fdatasync(self) -> None:
        self._file.fdatasync()
        self._device.synced()

    def preadv(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        self._device.check_readable(self._file, offset, sum(len(each) for each in into))
        return self._file.preadv(into, offset)

    def preadv_direct(self, into: memoryview, offset: int) -> int:
        self._device.check_readable(self._file, offset, len(into))
        return self._file.preadv_direct(into, offset)

    def preadv_nowait(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        if self._device.loop.rng.random() < 0.1:
            return WOULD_BLOCK
        try:
            self._device.check_readable(self._file, offset, sum(len(each) for each in into))
        except OSError:
            return WOULD_BLOCK  # it is in no cache
        return self._file.preadv_nowait(into, offset)

    def close(self) -> None:
        pass


class SimLane(Lane):
    """Jobs in order, one at a time, each takes its time: no thread."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        assert isinstance(loop, SimLoop)
        self._loop = loop
        self._free_at = 0.0
        process = current.get()
        assert process is not None
        self._process = process

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        loop, process = self._process.loop, self._process
        slow = process.loop.devices[process.host].latency_s
        does_at = max(loop.now, self._free_at) + loop.rng.uniform(*slow)
        self._free_at = tells_at = does_at + loop.rng.uniform(*slow) / 4

        def do() -> None:
            result, failure = None, None
            process.effect()
            try:
                result = work()
            except Killed:
                raise
            except BaseException as error:
                failure = error
            loop.at(tells_at - loop.now, done, result, failure, process=process)

        loop.at(does_at - loop.now, do, process=process)

    def close(self) -> None:
        """What was submitted before is done, as time is virtual, when the caller has waited for it."""
