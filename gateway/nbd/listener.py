"""Listening sockets of the NBD server: ``unix:PATH`` and ``tcp:HOST:PORT``.

Owns the socket and, for a unix one, its file: private from the first moment, never in the place of
somebody else's, gone at the end. Never looks at what is said on a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable

from moorage.wire import errors

BACKLOG = 64


def check_address(address: str) -> None:
    """Raises Invalid for what is no address at all, before anything is done for its sake."""
    scheme, _, rest = address.partition(":")
    if scheme == "tcp":
        _host_and_port(address, rest)
    elif scheme != "unix" or not rest:
        raise errors.Invalid(f"bad NBD address {address!r}: use unix:PATH or tcp:HOST:PORT")


class Listener:
    """One listening socket, and the file of a unix one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._server: asyncio.AbstractServer | None = None
        self._file: tuple[str, int, int] | None = None  # path, device and inode of our socket file

    async def start(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        check_address(self.address)
        loop = asyncio.get_running_loop()
        scheme, _, rest = self.address.partition(":")
        if scheme == "unix":
            sock = _listen_unix(rest)
            status = os.stat(rest)
            self._file = (rest, status.st_dev, status.st_ino)
            self._server = await loop.create_unix_server(factory, sock=sock, backlog=BACKLOG)
        else:
            host, port = _host_and_port(self.address, rest)
            sock = await _listen_tcp(self.address, host, port)
            shown = f"[{host}]" if ":" in host else host
            self.address = f"tcp:{shown}:{sock.getsockname()[1]}"
            self._server = await loop.create_server(factory, sock=sock, backlog=BACKLOG)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._file is not None:
            _unlink_ours(*self._file)


def _listen_unix(path: str) -> socket.socket:
    """A listening socket of mode 0600: the mode is set between bind and listen, when nobody can connect
    yet.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise errors.CannotBind(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; refuse anything else that is in the way."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.CannotBind(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise errors.Invalid(f"{path} exists and is not a socket; choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody does listen
        except OSError as error:
            raise errors.CannotBind(f"cannot listen on unix:{path}: {error.strerror}") from error
    raise errors.Busy(f"another process listens on unix:{path}; stop it or choose another path")


def _unlink_ours(path: str, device: int, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == (device, inode):
            os.unlink(path)


def _host_and_port(address: str, rest: str) -> tuple[str, int]:
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise errors.Invalid(f"bad NBD address {address!r}: use tcp:HOST:PORT, with a port from 0 to 65535")
    return host, int(port)


async def _listen_tcp(address: str, host: str, port: int) -> socket.socket:
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, where = found[0]
        sock = socket.socket(family, kind, number)
    except OSError as error:
        raise errors.CannotBind(f"cannot listen on {address}: {error.strerror or error}") from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit it
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise errors.CannotBind(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock
