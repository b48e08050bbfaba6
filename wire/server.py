"""Listening and connecting: sockets, handshakes and the bounds on strangers.

A stranger costs one socket, a few hundred bytes and ``handshake_s`` seconds; of strangers there are at most
``Limits.unauthenticated`` (the oldest makes room, so idle ones cannot keep others out), of connections
``Limits.connections`` at most. Why one ended is logged once, and at a limited rate for each kind of reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import stat
from collections.abc import Callable

from moorage.wire import address as addresses
from moorage.wire.connection import Connection, Endpoint
from moorage.wire.errors import (
    AuthenticationFailed,
    CannotConnect,
    ConnectionLost,
    DeadlineExceeded,
    Invalid,
    MoorageError,
    Overloaded,
    ShuttingDown,
)
from moorage.wire.handshake import NONCE_SIZE, ClientHandshake, Hello, ServerHandshake
from moorage.wire.limits import DEFAULT, Limits
from moorage.wire.loglimit import LogLimiter
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

BACKLOG = 1024


class Server:
    """Made by :func:`serve`. ``connections`` are the authenticated ones."""

    def __init__(
        self,
        hello: Callable[[], Hello],
        secret: ClusterSecret,
        endpoint: Endpoint,
        limits: Limits,
    ) -> None:
        self.address = ""
        self.connections: set[Connection] = set()
        self._hello = hello
        self._secret = secret
        self._endpoint = endpoint
        self._limits = limits
        # in the order of their arrival, with the timer of their handshake
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._listener: asyncio.Server | None = None
        self._unix_path: tuple[str, int] | None = None  # path and inode of our socket file
        self._log_limiter = LogLimiter()
        self._closed = False

    @property
    def strangers(self) -> int:
        """Connections that have not proved who they are yet."""
        return len(self._strangers)

    async def _listen(self, where: addresses.Address) -> None:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(where, addresses.Unix):
                await _refuse_live_socket(where.path)
                self._listener = await loop.create_unix_server(self._accept, where.path, backlog=BACKLOG)
                self._unix_path = (where.path, os.stat(where.path).st_ino)
                self.address = str(where)
            else:
                self._listener = await loop.create_server(
                    self._accept, where.host, where.port, backlog=BACKLOG
                )
                self.address = str(where._replace(port=self._listener.sockets[0].getsockname()[1]))
        except OSError as exc:
            raise Invalid(f"cannot listen on {where}: {exc.strerror or exc}") from None
        except ValueError as exc:
            raise Invalid(f"cannot listen on {where}: {exc}") from None

    def _accept(self) -> Connection:
        hello = self._hello()
        nonce = secrets.token_bytes(NONCE_SIZE)
        conn = Connection(
            ServerHandshake(hello, self._secret, nonce),
            hello=hello,
            address=self.address,
            endpoint=self._endpoint,
            limits=self._limits,
            on_open=self._opened,
            on_lost=self._lost,
        )
        if self._closed:
            conn.close(ShuttingDown(f"{hello} is shutting down"))
        if len(self._strangers) >= self._limits.unauthenticated:
            oldest = next(iter(self._strangers))
            oldest.close(Overloaded("too many connections are waiting for their handshake"))
            self._forget(oldest)
        loop = asyncio.get_running_loop()
        self._strangers[conn] = loop.call_later(self._limits.handshake_s, self._too_late, conn)
        return conn

    def _too_late(self, conn: Connection) -> None:
        conn.close(DeadlineExceeded(f"no handshake within {self._limits.handshake_s:g} s"))

    def _forget(self, conn: Connection) -> None:
        timer = self._strangers.pop(conn, None)
        if timer is not None:
            timer.cancel()

    def _opened(self, conn: Connection) -> None:
        self._forget(conn)
        if len(self.connections) >= self._limits.connections:
            conn.close(Overloaded(f"{conn.hello} has {len(self.connections)} connections, its limit"))
            return
        self.connections.add(conn)
        conn.keepalive(self._limits.ping_after_s, self._limits.silence_s)

    def _lost(self, conn: Connection) -> None:
        self._forget(conn)
        self.connections.discard(conn)
        reason = conn.close_reason
        if reason is None or isinstance(reason, ConnectionLost | ShuttingDown):
            log.debug("connection of %s ended: %s", conn.peer, reason)
            return
        skipped = self._log_limiter.allow(type(reason).__name__, asyncio.get_running_loop().time())
        if skipped is not None:
            log.warning(
                "connection of %s to %s ended: %s (%d more skipped)", conn.peer, self.address, reason, skipped
            )

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        for conn in [*self.connections, *self._strangers]:
            conn.close(ShuttingDown(f"{conn.hello} is shutting down"))
        self._unlink()

    async def wait_closed(self) -> None:
        """Wait until the last connection has ended (a second or two after :meth:`close` at most)."""
        while self.connections or self._strangers:
            await next(iter([*self.connections, *self._strangers])).wait_closed()
        if self._listener is not None:
            await self._listener.wait_closed()

    def _unlink(self) -> None:
        if self._unix_path is None:
            return
        path, inode = self._unix_path
        self._unix_path = None
        try:
            if os.stat(path).st_ino == inode:  # not the socket of a successor
                os.unlink(path)
        except FileNotFoundError:
            pass


async def _refuse_live_socket(path: str) -> None:
    """asyncio replaces a socket file that exists: right for one left by a crash, wrong for one in use."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Invalid(f"cannot listen on unix:{path}: the file exists and is not a socket")
        _, writer = await asyncio.open_unix_connection(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return
    writer.close()
    raise Invalid(f"cannot listen on unix:{path}: another process does")


async def serve(
    address: str,
    *,
    hello: Hello | Callable[[], Hello],
    secret: ClusterSecret,
    endpoint: Endpoint,
    limits: Limits = DEFAULT,
) -> Server:
    """Listen; raises :class:`Invalid` when the address cannot be bound."""
    where = addresses.parse(address)
    server = Server(hello if callable(hello) else lambda: hello, secret, endpoint, limits)
    await server._listen(where)
    return server


async def connect(
    address: str,
    *,
    hello: Hello,
    secret: ClusterSecret,
    endpoint: Endpoint | None = None,
    timeout: float = 5.0,
    limits: Limits = DEFAULT,
) -> Connection:
    """Connect and shake hands. Raises CannotConnect, AuthenticationFailed, VersionMismatch, ..."""
    where = addresses.parse(address)
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_open_or_lost(conn: Connection) -> None:
        if not opened.done():
            opened.set_result(None)

    conn = Connection(
        ClientHandshake(hello, secret, secrets.token_bytes(NONCE_SIZE)),
        hello=hello,
        address=str(where),
        endpoint=endpoint,
        limits=limits,
        on_open=on_open_or_lost,
        on_lost=on_open_or_lost,
    )
    try:
        async with asyncio.timeout(timeout):
            await _open_socket(where, conn)
            await opened
    except TimeoutError:
        conn.close()
        raise CannotConnect(f"cannot connect to {where}: no answer in {timeout:g} s") from None
    except OSError as exc:
        raise CannotConnect(f"cannot connect to {where}: {exc.strerror or exc}") from None
    except ValueError as exc:  # a name that no resolver can be asked for
        raise CannotConnect(f"cannot connect to {where}: {exc}") from None
    except asyncio.CancelledError:
        conn.close()
        raise
    if conn.closed:
        raise _refusal(where, conn.close_reason)
    return conn


async def _open_socket(where: addresses.Address, conn: Connection) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(where, addresses.Unix):
        await loop.create_unix_connection(lambda: conn, where.path)
    else:
        await loop.create_connection(lambda: conn, where.host, where.port)


def _refusal(where: addresses.Address, reason: MoorageError | None) -> MoorageError:
    """Before the handshake is over nothing was asked for: a lost connection is one not made."""
    if reason is None or isinstance(reason, ConnectionLost):
        return CannotConnect(f"cannot connect to {where}: {reason or 'closed'}")
    if isinstance(reason, AuthenticationFailed):
        return AuthenticationFailed(f"cannot connect to {where}: {reason}")
    return reason
