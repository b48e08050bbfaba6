"""Generic netlink: how one asks a module of the kernel for something, in binary.

Owns the socket, the layout of messages and attributes, and nothing of what they mean. Blocking: the kernel
answers within the call. In the machine's byte order, attributes padded to 4 bytes:

========= ==== ===============  =============== ==== =============  ========= ==== =================
message   size field            generic header  size field          attribute size field
========= ==== ===============  =============== ==== =============  ========= ==== =================
0         4    length of all    16              1    command        0         2    length, of both
4         2    family           17              1    version        2         2    kind
6         2    flags            18              2    0              4         n    value, or attributes
8         4    sequence         20              n    attributes
12        4    port, 0: ours
========= ==== ===============  =============== ==== =============  ========= ==== =================
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
assert (_HEADER.size, _GENERIC.size, _ATTRIBUTE.size) == (16, 4, 4)

_NETLINK_GENERIC = 16
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_FLAG_REQUEST, _FLAG_ACK = 1, 4
_TYPE_ERROR = 2  # also says that all went well
_KIND_MASK = 0x3FFF  # above are flags

_CONTROL = 16  # the family that knows the others
_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME, _MAX_ATTRIBUTE, _GROUPS = 1, 2, 5, 7
_GROUP_NAME, _GROUP_ID = 1, 2
_MESSAGE_SIZE_MAX = 1 << 16


def attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, os.fsencode(value) + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each; what is cut off ends it."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _KIND_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


@dataclass(frozen=True)
class Message:
    command: int
    attributes: dict[int, bytes]

    def number(self, kind: int) -> int:
        return int.from_bytes(self.attributes[kind], sys.byteorder)


class Family:
    """A socket to one family of this process's network namespace. Raises FileNotFoundError where there is
    none of that name. ``attribute_max``: the greatest kind that this kernel knows for it."""

    def __init__(self, name: str, version: int = 1) -> None:
        self._version = version
        self._sequence = itertools.count(1)
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC
        )
        try:
            self._socket.bind((0, 0))
            (answer,) = self._call(_CONTROL, _GET_FAMILY, text(_FAMILY_NAME, name))
        except BaseException:
            self._socket.close()
            raise
        self._id = answer.number(_FAMILY_ID)
        self.attribute_max = answer.number(_MAX_ATTRIBUTE)
        self._groups = dict(_groups(answer.attributes.get(_GROUPS, b"")))

    def call(self, command: int, attributes: bytes) -> list[Message]:
        """What the kernel answers once it has done it. Raises OSError."""
        return self._call(self._id, command, attributes)

    def join(self, group: str) -> None:
        """Hear from now on what the kernel tells a group, by :meth:`wait`."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, self._groups[group])

    def wait(self, timeout: float) -> list[Message]:
        """What was told meanwhile; nothing after ``timeout`` seconds."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return []
        return [message for _, _, message in self._receive() if message is not None]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, family: int, command: int, attributes: bytes) -> list[Message]:
        sequence = next(self._sequence)
        length = _HEADER.size + _GENERIC.size + len(attributes)
        header = _HEADER.pack(length, family, _FLAG_REQUEST | _FLAG_ACK, sequence, 0)
        self._socket.send(header + _GENERIC.pack(command, self._version, 0) + attributes)
        answers: list[Message] = []
        while True:
            for number, error, message in self._receive():
                if number != sequence:
                    continue
                if message is None:
                    if error:
                        raise OSError(error, os.strerror(error))
                    return answers
                answers.append(message)

    def _receive(self) -> Iterator[tuple[int, int, Message | None]]:
        """(sequence, errno, message) of each in one datagram; without a message it is the end of a call."""
        data = self._socket.recv(_MESSAGE_SIZE_MAX)
        while len(data) >= _HEADER.size:
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if not _HEADER.size <= length <= len(data):
                raise OSError(errno.EBADMSG, "netlink: a message is cut off")
            body, data = data[_HEADER.size : length], data[length + -length % 4 :]
            if kind == _TYPE_ERROR:
                yield sequence, -_ERROR.unpack_from(body)[0], None
            elif len(body) >= _GENERIC.size:
                yield sequence, 0, Message(body[0], dict(attributes(body[_GENERIC.size :])))


def _groups(data: bytes) -> Iterator[tuple[str, int]]:
    for _, content in attributes(data):
        group = Message(0, dict(attributes(content)))
        yield group.attributes[_GROUP_NAME].rstrip(b"\0").decode(), group.number(_GROUP_ID)
