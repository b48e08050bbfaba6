"""The kernel's autofs, an indirect mount of protocol 5: the pipe it asks by, and the calls that answer it.

Owns the layout of its packets and of the calls of ``/dev/autofs`` (Linux's ``auto_fs.h`` and
``auto_dev-ioctl.h``). A directory in an autofs is a name only; who goes there waits in the kernel until
:meth:`Autofs.ready` or :meth:`Autofs.fail`. Processes of the group that mounted or adopted it never wait
there, and see the bare directories: so the service and the commands it runs can mount on them.

The autofs outlives the service: mounted volumes stay usable, and the next service adopts it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from moorage.gateway.mount import system
from moorage.wire.errors import Busy, Denied, Invalid, Unavailable

DEVICE = Path("/dev/autofs")
TYPE = "autofs"
PACKET_MAX = 4096
# int protocol, int type, unsigned token, u32 dev, u64 ino, u32 uid, gid, pid, tgid, len; then the name
_PACKET = struct.Struct("=iiIIQIIIII")
_MISSING, _EXPIRE = 3, 4  # types of an indirect mount
_CALL = struct.Struct("=IIIi8s")  # version 1, 0; size of all; descriptor of the mount; argument; then a path
_CODE, _HEAD_SIZE = 0x93, 24
_OPEN, _READY, _FAIL, _SET_PIPE, _CATATONIC, _TIMEOUT, _EXPIRE_CALL = 0x74, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x7C
_MS_SHARED = 1 << 20
assert _PACKET.size == 44 and _CALL.size == _HEAD_SIZE


@dataclass(frozen=True)
class Request:
    """Somebody went to a name (``access``), or nobody has for the idle time; answered by its token."""

    access: bool
    token: int
    name: str
    uid: int
    pid: int


def parse(packet: bytes) -> Request:
    _, kind, token, _, _, uid, _, pid, _, length = _PACKET.unpack_from(packet)
    name = packet[_PACKET.size : _PACKET.size + length]
    assert kind in (_MISSING, _EXPIRE), kind
    return Request(kind == _MISSING, token, os.fsdecode(name), uid, pid)


def check(root: str) -> None:
    """Whether an autofs can be had there; raises Invalid or Denied with the way out."""
    system.check_root()
    if not os.path.isdir(root):
        raise Invalid(f"{root} is not a directory: create it (mkdir -p {root})")
    if not DEVICE.exists():
        raise Invalid(
            f"{DEVICE} does not exist: load the autofs module (modprobe autofs4), or give it to the container"
        )


class Autofs:
    """One mounted autofs. ``pipe``: to be read packet by packet."""

    def __init__(self, root: str, pipe: int) -> None:
        self.root = root
        self.pipe = pipe
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        entry = system.mounted_at(root)
        if entry is None or entry.type != TYPE:
            raise Unavailable(f"{root} was unmounted by somebody else")
        number = struct.pack("=I4x", os.makedev(*entry.device))
        answer = self._call(_OPEN, -1, number, os.fsencode(root) + b"\0")
        self._mount = _CALL.unpack_from(answer)[3]

    @classmethod
    def open(cls, root: str) -> Autofs:
        """Mount one at a directory, or adopt the one that a former service left there. The process must lead
        its process group. Raises Busy when something else is mounted there."""
        assert os.getpgrp() == os.getpid()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            entry = system.mounted_at(root)
            if entry is None:
                _mount(root, writing)
            elif entry.type != TYPE:
                raise Busy(f"{root} is a mount point already, of {entry.source}: choose another")
            found = cls(root, reading)
            if entry is not None:
                found._adopt(writing)
            return found
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)

    def _adopt(self, writing: int) -> None:
        """Whoever had it before is told no more, and what waited for it fails."""
        silence(self._device, self._mount)
        self._call(_SET_PIPE, self._mount, struct.pack("=i4x", writing))

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of the device, and of the mount: for :func:`silence` in another process."""
        return self._device, self._mount

    def set_idle(self, seconds: int) -> None:
        self._call(_TIMEOUT, self._mount, struct.pack("=Q", seconds))

    def ready(self, token: int) -> None:
        self._call(_READY, self._mount, struct.pack("=I4x", token))

    def fail(self, token: int, number: int) -> None:
        """Who waits gets the errno ``number``."""
        self._call(_FAIL, self._mount, struct.pack("=Ii", token, -number))

    def expire(self) -> bool:
        """Have the kernel ask, by the pipe, to unmount one name that is idle; whether there was one. It
        blocks until that is answered: for a thread."""
        try:
            self._call(_EXPIRE_CALL, self._mount, struct.pack("=I4x", 0))
        except OSError as error:
            return error.errno == errno.EBUSY  # the answer was no; the kernel asks for others first then
        return True

    def unmount_root(self) -> None:
        """When it is closed and nothing is mounted in it; raises OSError (EBUSY) when somebody stands in
        it."""
        if _libc.umount2(os.fsencode(self.root), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), self.root)

    def close(self) -> None:
        """What waits fails, what is mounted stays. May be repeated."""
        if self._mount < 0:
            return
        silence(self._device, self._mount)
        os.close(self._mount)
        os.close(self._device)
        os.close(self.pipe)
        self._mount = -1

    def _call(self, number: int, mount: int, argument: bytes = b"", path: bytes = b"") -> bytearray:
        return _call(self._device, number, mount, argument, path)


def silence(device: int, mount: int) -> None:
    """What waits fails, and nobody waits from now on: the kernel calls that catatonic."""
    _call(device, _CATATONIC, mount)


def _call(device: int, number: int, mount: int, argument: bytes = b"", path: bytes = b"") -> bytearray:
    size = _HEAD_SIZE + len(path)
    buffer = bytearray(_CALL.pack(1, 0, size, mount, argument) + path)
    fcntl.ioctl(device, 3 << 30 | _HEAD_SIZE << 16 | _CODE << 8 | number, buffer, True)
    return buffer


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(root: str, writing: int) -> None:
    """Shared, so that containers that were given the directory see what is mounted in it later."""
    options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect"
    for arguments in (
        (b"moorage", os.fsencode(root), TYPE.encode(), 0, options.encode()),
        (None, os.fsencode(root), None, _MS_SHARED, None),
    ):
        if _libc.mount(*arguments):
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise Denied(f"mounting an autofs at {root} is not permitted here (CAP_SYS_ADMIN)")
            raise Unavailable(f"an autofs cannot be mounted at {root}: {os.strerror(number)}")
