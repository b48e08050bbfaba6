"""A volume as a file: what FUSE asks of it, asked of the daemon over NBD.

Owns the connections to the daemon, and parks a request while there is no daemon: it is asked again of the
next one. That is sound because a request is a whole read, write, or flush of the block layer, which orders
none of those that are in flight together; a write that was done already is done again with the same bytes.
The daemon decides whether the volume is still the one that it was: this one only asks.
"""

from __future__ import annotations

import errno
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import mfusepy

from moorage.gateway.mount.record import DEVICE
from moorage.gateway.nbd.client import NbdConnection

T = TypeVar("T")

RETRY_S = 0.05
BACKGROUND_MAX = 256  # requests that the kernel may have here at once
_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 16, 1  # of fallocate(2)


class Parking:
    """Runs requests on connections to the daemon, each on one of its own; waits while there is no daemon."""

    def __init__(self, socket_path: str, export: str) -> None:
        self._path, self._export = socket_path, export
        self._idle: list[NbdConnection] = []
        self._connecting = threading.Lock()  # one knocks, the others wait behind it
        self._closed = False

    def run(self, request: Callable[[NbdConnection], T]) -> T:
        while True:
            connection = self._take()
            try:
                result = request(connection)
            except ConnectionError:
                connection.close()
                continue
            except OSError:  # the daemon's answer
                self._idle.append(connection)
                raise
            self._idle.append(connection)
            return result

    def _take(self) -> NbdConnection:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._connecting:
            while not self._closed:
                try:
                    return NbdConnection(self._path, self._export)
                except ConnectionError:
                    time.sleep(RETRY_S)
        raise OSError(errno.EIO, "the mount is being ended")

    def size(self) -> int:
        """The volume's size now: told to each new connection."""
        with self._connecting:
            while not self._closed:
                try:
                    with NbdConnection(self._path, self._export) as connection:
                        return connection.size
                except ConnectionError:
                    time.sleep(RETRY_S)
        raise OSError(errno.EIO, "the mount is being ended")

    def close(self) -> None:
        """Parked requests fail; so do later ones."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class VolumeFile(mfusepy.Operations):  # type: ignore[misc]
    """A directory with one file. Paths are the kernel's; only two exist."""

    use_ns = True

    def __init__(self, parking: Parking, read_only: bool) -> None:
        self._parking = parking
        self._mode = stat.S_IFREG | (0o400 if read_only else 0o600)

    def init_with_config(self, connection: Any, config: Any) -> None:
        if connection is not None:
            connection.max_background = BACKGROUND_MAX
            connection.congestion_threshold = BACKGROUND_MAX * 3 // 4
        if config is not None:
            config.direct_io = 1
            config.parallel_direct_writes = 1
            config.attr_timeout = 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        self._check(path)
        size = self._parking.size()
        return {"st_mode": self._mode, "st_nlink": 1, "st_size": size, "st_blksize": 4096}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", DEVICE]

    def open(self, path: str, flags: int) -> int:
        self._check(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._run(lambda connection: connection.read(offset, size)))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._run(lambda connection: connection.write(offset, data))
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._run(lambda connection: connection.flush())
        return 0

    def fallocate(self, path: str, mode: int, offset: int, length: int, fh: int) -> int:
        if mode == _PUNCH_HOLE | _KEEP_SIZE:
            self._run(lambda connection: connection.trim(offset, length))
        elif mode in (_ZERO_RANGE, _ZERO_RANGE | _KEEP_SIZE):
            self._run(lambda connection: connection.write_zeroes(offset, length))
        else:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)
        return 0

    def _check(self, path: str) -> None:
        if path != f"/{DEVICE}":
            raise mfusepy.FuseOSError(errno.ENOENT)

    def _run(self, request: Callable[[NbdConnection], T]) -> T:
        try:
            return self._parking.run(request)
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno or errno.EIO) from error
