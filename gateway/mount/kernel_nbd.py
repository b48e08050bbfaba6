"""The kernel's nbd driver: what is asked of it by generic netlink, and what sysfs shows of its devices.

Owns the numbers of ``linux/nbd-netlink.h``. A device that was made for somebody carries his mark (its
*backend*), and is only ever changed or given up by that. It must never touch one without a mark, or with
another.

One connection per device, and no timeout of the driver's own. With more than one, or with a timeout, the
driver gives up a connection on which a request takes long, and sends the request again on another one, while
the daemon may still have the first one before it: an old write could come after a newer one. With one
connection and no timeout it sends again only what was on a connection that is no more, and looks for that as
often as the queue's ``io_timeout`` says.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from moorage.gateway.mount import netlink

_CONNECT, _DISCONNECT, _RECONFIGURE, _LINK_DEAD = 1, 2, 3, 4
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS, _SOCKETS, _DEAD_TIMEOUT, _BACKEND = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    10,
)
_SOCKET_ITEM, _SOCKET_FD = 1, 1
_GROUP = "nbd_mc_group"

BLOCK_SIZE = 512
"""As a loop device has: what can be mounted in one way can be mounted in the other."""
FOR_EVER_S = 10**9
"""For a new connection, when the driver has lost its own: requests are parked as long."""
LOOK_AGAIN_MS, LOOK_AGAIN_DEFAULT_MS = 2000, 30000
"""After how long a request is looked at. The driver logs each time, so not much less."""
FIRST = Path("/dev/nbd0")
_BLOCK = Path("/sys/block")


def available() -> bool:
    """Whether this kernel, network namespace and /dev have it, and it can be marked (Linux 5.14)."""
    try:
        with netlink.Family("nbd") as family:
            return family.attribute_max >= _BACKEND and FIRST.exists()
    except OSError:
        return False


def marked(backend: str) -> list[int]:
    """The devices with that mark, also while they are only kept by somebody who has them open."""
    found = []
    for path in _BLOCK.glob("nbd*/backend"):
        with contextlib.suppress(OSError):  # it was just given up
            if path.read_text().rstrip("\n") == backend:
                found.append(int(path.parent.name.removeprefix("nbd")))
    return sorted(found)


def path(index: int) -> str:
    return f"/dev/nbd{index}"


class KernelNbd:
    """Speaks to the driver. Each method raises OSError when it refuses."""

    def __init__(self) -> None:
        self._family = netlink.Family("nbd")

    def connect(self, backend: str, descriptor: int, size: int, flags: int) -> int:
        """Make a device with that mark of a socket that is past the handshake; its index. The driver keeps
        the socket, whatever becomes of this process."""
        answers = self._family.call(
            _CONNECT,
            netlink.u64(_SIZE, size)
            + netlink.u64(_BLOCK_SIZE, BLOCK_SIZE)
            + netlink.u64(_TIMEOUT, 0)
            + netlink.u64(_SERVER_FLAGS, flags)
            + netlink.u64(_DEAD_TIMEOUT, FOR_EVER_S)
            + netlink.text(_BACKEND, backend)
            + _socket(descriptor),
        )
        index = answers[0].number(_INDEX)
        _look_again(index, LOOK_AGAIN_MS)
        return index

    def reconnect(self, backend: str, index: int, descriptor: int) -> None:
        """In the place of the connection that was lost; a device that has its own takes no other, and says
        nothing about it."""
        self._reconfigure(backend, index, _socket(descriptor))

    def resize(self, backend: str, index: int, size: int) -> None:
        self._reconfigure(backend, index, netlink.u64(_SIZE, size) + netlink.u64(_BLOCK_SIZE, BLOCK_SIZE))

    def _reconfigure(self, backend: str, index: int, attributes: bytes) -> None:
        which = netlink.u32(_INDEX, index) + netlink.text(_BACKEND, backend)
        self._family.call(_RECONFIGURE, which + attributes)

    def disconnect(self, backend: str) -> None:
        """Give up all devices with that mark: what is asked of them fails from then on. They are free once
        nobody has them open."""
        for index in marked(backend):
            with contextlib.suppress(OSError):
                _look_again(index, LOOK_AGAIN_DEFAULT_MS)  # it would stay so for the next user
            self._family.call(_DISCONNECT, netlink.u32(_INDEX, index))

    def close(self) -> None:
        self._family.close()

    def __enter__(self) -> KernelNbd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LostConnections:
    """Tells when the driver has lost a connection, and would take another one."""

    def __init__(self) -> None:
        self._family = netlink.Family("nbd")
        self._family.join(_GROUP)

    def wait(self, index: int, timeout: float) -> bool:
        """Whether that device was named within ``timeout`` seconds, or since the last call."""
        try:
            told = self._family.wait(timeout)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True  # more was told than it keeps
        return any(each.command == _LINK_DEAD and each.number(_INDEX) == index for each in told)


def _socket(descriptor: int) -> bytes:
    item = netlink.attribute(_SOCKET_ITEM, netlink.u32(_SOCKET_FD, descriptor))
    return netlink.attribute(_SOCKETS, item)


def _look_again(index: int, milliseconds: int) -> None:
    (_BLOCK / f"nbd{index}" / "queue/io_timeout").write_text(str(milliseconds))
