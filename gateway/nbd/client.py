"""A blocking NBD client for the server beside it: one connection, one request at a time.

Owns the socket and the protocol's client side, as far as our own server needs it (fixed newstyle, simple
replies). Never retries: a lost connection is a :class:`ConnectionError`, after which the connection is of no
more use and the outcome of a request that changes something is unknown. An error that the server answers is
an :class:`OSError` with its errno.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import Self

from moorage.gateway.nbd import protocol as nbd

HANDSHAKE_TIMEOUT_S = 20.0


class NbdConnection:
    """``size`` in bytes, ``read_only`` and the other ``flags`` are as the server said in the handshake."""

    def __init__(self, path: str, export: str, timeout: float = HANDSHAKE_TIMEOUT_S) -> None:
        """Raises ConnectionError, also when nobody listens at the unix socket ``path``. ``timeout``: for each
        step of the handshake, in seconds."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._cookies = itertools.count(1)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            self.size, self.flags = self._negotiate(export.encode())
            self._socket.settimeout(None)
        except OSError as error:
            self._socket.close()
            raise ConnectionError(f"no NBD server at {path}: {error}") from error
        self.read_only = bool(self.flags & nbd.FLAG_READ_ONLY)

    def read(self, offset: int, length: int) -> bytearray:
        self._send(nbd.CMD_READ, offset, length)
        return self._receive(length)

    def write(self, offset: int, data: bytes) -> None:
        self._command(nbd.CMD_WRITE, offset, len(data), data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._command(nbd.CMD_WRITE_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        self._command(nbd.CMD_TRIM, offset, length)

    def flush(self) -> None:
        self._command(nbd.CMD_FLUSH, 0, 0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- handshake -----------------------------------------------------------------------------------

    def _negotiate(self, export: bytes) -> tuple[int, int]:
        magic, option_magic, flags = nbd.GREETING.unpack(self._exactly(nbd.GREETING.size))
        if magic != nbd.INIT_MAGIC or option_magic != nbd.OPTION_MAGIC or not flags & nbd.FLAG_FIXED_NEWSTYLE:
            raise ConnectionError("it does not speak fixed newstyle NBD")
        asked = len(export).to_bytes(4, "big") + export + bytes(2)  # no information requests
        self._socket.sendall(
            nbd.CLIENT_FLAGS.pack(nbd.CLIENT_FIXED_NEWSTYLE | nbd.CLIENT_NO_ZEROES)
            + nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_GO, len(asked))
            + asked
        )
        size, transmission_flags = 0, 0
        while True:
            reply, data = self._option_reply()
            if reply == nbd.REP_ACK:
                return size, transmission_flags
            if reply != nbd.REP_INFO:
                raise ConnectionError(f"export {export.decode()!r}: {data.decode(errors='replace') or reply}")
            if int.from_bytes(data[:2], "big") == nbd.INFO_EXPORT:
                if len(data) != nbd.EXPORT_INFO.size:
                    raise ConnectionError(f"it describes the export in {len(data)} bytes")
                _, size, transmission_flags = nbd.EXPORT_INFO.unpack(data)

    def _option_reply(self) -> tuple[int, bytes]:
        magic, option, reply, length = nbd.OPTION_REPLY.unpack(self._exactly(nbd.OPTION_REPLY.size))
        if magic != nbd.OPTION_REPLY_MAGIC or option != nbd.OPT_GO or length > nbd.OPTION_SIZE_MAX:
            raise ConnectionError("it answers what cannot be understood")
        return reply, bytes(self._exactly(length))

    # -- transmission --------------------------------------------------------------------------------

    def _command(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self._send(command, offset, length, data)
        self._receive(0)

    def _send(self, command: int, offset: int, length: int, data: bytes = b"") -> None:
        self._cookie = next(self._cookies)
        header = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        sent = self._socket.sendmsg((header, data))
        if sent < len(header):
            self._socket.sendall(header[sent:])
            sent = len(header)
        if sent < len(header) + len(data):
            self._socket.sendall(memoryview(data)[sent - len(header) :])

    def _receive(self, length: int) -> bytearray:
        """The reply: ``length`` bytes follow it, unless it is an error."""
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self._exactly(nbd.SIMPLE_REPLY.size))
        if magic != nbd.SIMPLE_REPLY_MAGIC or cookie != self._cookie:
            raise ConnectionError("the server's answer is to another request")
        if error:
            number = error if error in errno.errorcode else errno.EINVAL  # as the protocol has it
            raise OSError(
                number, os.strerror(number) if number != errno.EIO else "the volume answers with EIO"
            )
        return self._exactly(length)

    def _exactly(self, length: int) -> bytearray:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError("the server has gone")
            view = view[count:]
        return buffer
