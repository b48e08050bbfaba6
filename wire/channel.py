"""Channel: a connection to one peer that comes back by itself.

Owns one task, which connects, checks that the peer is who we want, waits for the end and tries again with a
growing, jittered pause. A silent peer (its sockets open, nothing comes) is found out by PINGs and counts as
lost. Must never: try more often than the backoff allows, or report the same state twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Literal

from moorage.wire.connection import Connection, Endpoint
from moorage.wire.errors import MoorageError, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.limits import DEFAULT, Limits
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

log = logging.getLogger(__name__)

State = Literal["stopped", "connecting", "up", "down"]

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
STEADY_S = 5.0  # a connection that lasted so long was a good one: the backoff starts afresh


class Channel:
    """``start()`` it, and ``await stop()``. ``expect(peer)`` may raise when the peer is not who we want (a
    reused port): the channel stays down with that error and tries again."""

    def __init__(
        self,
        address: str,
        *,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        endpoint: Endpoint | None = None,
        expect: Callable[[Hello], None] | None = None,
        on_up: Callable[[Connection], None] | None = None,
        on_down: Callable[[MoorageError], None] | None = None,
        ping_after_s: float = 1.0,
        silence_s: float = 5.0,
        limits: Limits = DEFAULT,
    ) -> None:
        self.address = address
        self.state: State = "stopped"
        self.conn: Connection | None = None
        self.last_error: MoorageError | None = None
        self._hello = hello
        self._secret = secret
        self._endpoint = endpoint
        self._expect = expect
        self._on_up = on_up
        self._on_down = on_down
        self._ping_after_s = ping_after_s
        self._silence_s = silence_s
        self._limits = limits
        self._task: asyncio.Task[None] | None = None
        self._hurry: asyncio.Event = asyncio.Event()
        self._changed: asyncio.Event = asyncio.Event()  # replaced whenever the state changes
        self._heard = 0.0

    def start(self) -> None:
        if self._task is None:
            self._heard = asyncio.get_running_loop().time()
            self._task = asyncio.create_task(self._run(), name=f"channel to {self.address}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()
            await conn.wait_closed()
        self._enter("stopped")

    def set_address(self, address: str) -> None:
        """The peer moved: connect there (at once, and also when connected elsewhere)."""
        if address == self.address:
            return
        self.address = address
        if self.conn is not None:
            self.conn.close()
        self.retry_now()

    def retry_now(self) -> None:
        """Do not wait for the rest of the backoff."""
        self._hurry.set()

    @property
    def silent_for_s(self) -> float:
        """Since when nothing was heard from the peer (since start() when never)."""
        heard = self._heard if self.conn is None else self.conn.last_received
        return asyncio.get_running_loop().time() - heard

    async def connected(self, timeout: float) -> Connection:
        """The connection, waiting for it; raises Unavailable with the last error."""
        try:
            async with asyncio.timeout(timeout):
                while self.conn is None or self.conn.closed:
                    await self._changed.wait()
                return self.conn
        except TimeoutError:
            why = f": {self.last_error}" if self.last_error is not None else ""
            raise Unavailable(f"{self.address} is not connected after {timeout:g} s{why}") from None

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> Any:
        """Wait for the connection and CALL; the timeout covers both."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        conn = await self.connected(timeout)
        result, _ = await conn.call(method, params, timeout=max(0.001, end - loop.time()))
        return result

    # -- the task --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = BACKOFF_FIRST_S
        while True:
            self._hurry.clear()
            self._enter("connecting")
            try:
                conn = await self._connect()
            except MoorageError as exc:
                self._down(exc)
            else:
                since = loop.time()
                await conn.wait_closed()
                self.conn = None
                self._heard = conn.last_received
                self._down(conn.close_reason or Unavailable(f"connection to {self.address} was closed"))
                if loop.time() - since >= STEADY_S:
                    backoff = BACKOFF_FIRST_S
            await self._pause(backoff * random.uniform(0.5, 1.0))
            backoff = min(2 * backoff, BACKOFF_MAX_S)

    async def _connect(self) -> Connection:
        hello = self._hello() if callable(self._hello) else self._hello
        timeout = min(self._silence_s, self._limits.handshake_s)
        address = self.address
        conn = await connect(
            address,
            hello=hello,
            secret=self._secret,
            endpoint=self._endpoint,
            timeout=timeout,
            limits=self._limits,
        )
        # no await until `self.conn` is set: a cancelled task must not leave a connection behind
        try:
            if address != self.address:
                raise Unavailable(f"the peer moved from {address} to {self.address}")
            if self._expect is not None:
                self._expect(conn.peer)
        except MoorageError as exc:
            conn.close(exc)
            raise
        conn.keepalive(self._ping_after_s, self._silence_s)
        self.conn = conn
        self.last_error = None
        self._enter("up")
        if self._on_up is not None:
            self._guarded(self._on_up, conn)
        return conn

    def _down(self, error: MoorageError) -> None:
        was_up = self.state == "up"
        self.last_error = error
        self._enter("down")
        if was_up:
            log.info("channel to %s is down: %s", self.address, error)
            if self._on_down is not None:
                self._guarded(self._on_down, error)

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    def _guarded(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception as exc:
            context = {"message": f"callback of the channel to {self.address} failed", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            pass
