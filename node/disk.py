"""The file system as the store sees it: a few calls that a double can replace (see memory_disk.py).

Owns the calls themselves: whole writes, whole reads, preallocation, and reads that must not block. Must never
retry a failed write or fdatasync: what the kernel holds after one is unknown, so the caller ends the device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from moorage.quorum.record import Buffer
from moorage.service.identity import fsync_directory, make_directory

NAME = re.compile(r"\d{8}\.seg")
IOV_MAX = 1024
WOULD_BLOCK = -1


class File(Protocol):
    """One preallocated file. Reads past the end return fewer bytes."""

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of ``buffers``, one behind the other; not durable before :meth:`fdatasync`."""

    def pwritev_direct(self, buffers: Sequence[Buffer], offset: int) -> None:
        """As :meth:`pwritev`, past the page cache where the file system and the buffers' alignment allow it.
        ``offset`` and every size are multiples of the alignment of direct I/O (4096)."""

    def fdatasync(self) -> None: ...

    def preadv(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        """Fill ``into`` from ``offset``; returns bytes read, fewer only at the end of the file. May block."""

    def preadv_direct(self, into: memoryview, offset: int) -> int:
        """As :meth:`preadv`, past the page cache where the file system allows it: what the disk has.
        ``offset``, and address and size of ``into``, are multiples of the alignment of direct I/O (4096)."""

    def preadv_nowait(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        """One attempt that never waits for the disk: bytes read, or WOULD_BLOCK."""

    def close(self) -> None: ...


class Disk(Protocol):
    def names(self) -> list[str]:
        """Segment files, in order; what else is in the directory is nobody's business."""

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> File: ...

    def create(self, name: str, size: int) -> File:
        """A new file with ``size`` bytes allocated, its name durable. ENOSPC when there is no room."""

    def unlink(self, name: str) -> None: ...


class RealFile:
    __slots__ = ("_fd", "_nowait")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._nowait = True

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        _pwritev(self._fd, [memoryview(each) for each in buffers if len(each)], offset)

    def pwritev_direct(self, buffers: Sequence[Buffer], offset: int) -> None:
        # Opened for each call, which costs microseconds: thousands of files need not be open twice.
        with _direct(self._fd, os.O_WRONLY) as fd:
            pending = [memoryview(each) for each in buffers]
            if fd is not None:
                pending, offset = _pwritev_direct(fd, pending, offset)
        _pwritev(self._fd, pending, offset)

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def preadv(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        pending, total = [memoryview(each) for each in into], 0
        while pending:
            done = os.preadv(self._fd, pending[:IOV_MAX], offset + total)
            if done == 0:
                break
            total += done
            pending = _rest(pending, done)
        return total

    def preadv_direct(self, into: memoryview, offset: int) -> int:
        total = 0
        with _direct(self._fd, os.O_RDONLY) as fd:
            while fd is not None and total < len(into):
                try:
                    done = os.preadv(fd, (into[total:],), offset + total)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    break  # the end of the file is at no multiple, or memory is not aligned as it wants it
                if done == 0:
                    return total
                total += done
        # No direct I/O: have the cache forget these pages first, which it does where nobody maps them.
        os.posix_fadvise(self._fd, offset + total, len(into) - total, os.POSIX_FADV_DONTNEED)
        return total + self.preadv((into[total:],), offset + total)

    def preadv_nowait(self, into: Sequence[memoryview | bytearray], offset: int) -> int:
        if not self._nowait:
            return WOULD_BLOCK
        try:
            return os.preadv(self._fd, into, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return WOULD_BLOCK
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._nowait = False  # this file system cannot tell: every read goes to a thread
            return WOULD_BLOCK

    def close(self) -> None:
        os.close(self._fd)


def _pwritev(fd: int, pending: list[memoryview], offset: int) -> None:
    while pending:
        done = os.pwritev(fd, pending[:IOV_MAX], offset)
        if done <= 0:
            raise OSError(errno.EIO, "wrote nothing")
        offset += done
        pending = _rest(pending, done)


def _pwritev_direct(fd: int, pending: list[memoryview], offset: int) -> tuple[list[memoryview], int]:
    """Returns what cannot be written this way, and where it goes: EINVAL says that buffers are not aligned
    as the device wants it, and that nothing of them was written."""
    while pending:
        try:
            done = os.pwritev(fd, pending[:IOV_MAX], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break
        if done <= 0:
            raise OSError(errno.EIO, "wrote nothing")
        offset += done
        pending = _rest(pending, done)
    return pending, offset


@contextlib.contextmanager
def _direct(file: int, access: int) -> Iterator[int | None]:
    """A descriptor of the same open file that goes past the page cache; None where there is no such thing, or
    no descriptor left: nothing was done yet, and all can go through the cache."""
    try:
        fd = os.open(f"/proc/self/fd/{file}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _rest(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of ``buffers`` after ``done`` bytes."""
    for index, each in enumerate(buffers):
        if done < len(each):
            return [each[done:], *buffers[index + 1 :]]
        done -= len(each)
    return []


class RealDisk:
    """Files in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_directory(directory)

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self._directory) if NAME.fullmatch(name))

    def size(self, name: str) -> int:
        return (self._directory / name).stat().st_size

    def open(self, name: str) -> File:
        return RealFile(os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC))

    def create(self, name: str, size: int) -> File:
        path = self._directory / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            fsync_directory(self._directory)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        return RealFile(fd)

    def unlink(self, name: str) -> None:
        os.unlink(self._directory / name)
        fsync_directory(self._directory)
