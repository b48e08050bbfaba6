"""LeaderClient: calls to a replicated service, whoever leads it now.

Owns one connection per candidate that it talked to. A call goes to the leader known last, then to where a
NotLeader hint points, then round the candidates, until one answers or the deadline is over; then the error
says whom it waited for, and why each did not answer. Who they are is asked for only when the leader does not
answer. Must never: believe a peer that is another service, or
try a call again whose outcome is unknown unless the caller said that this is harmless.

A candidate that does not answer holds nobody up: after ``STAGGER_S`` the next one is tried beside it, and who
has proved first to be what is wanted is asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from moorage.wire.connection import Connection
from moorage.wire.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    Invalid,
    MoorageError,
    NotLeader,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.limits import DEFAULT, Limits
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

CONNECT_S = 2.0  # a candidate that takes longer is passed over for now
STAGGER_S = 0.1  # one that is well has answered by then, unless it is very busy
PING_AFTER_S = 0.5
SILENCE_S = 3.0  # a leader silent for so long is given up during a call
PAUSE_FIRST_S = 0.02  # after a round without a leader: an election takes a few hundred ms
PAUSE_MAX_S = 0.5
HINTS_MAX = 3  # hints followed in a row: two members that point at each other must not keep us

Candidates = Sequence[str] | Callable[[], Awaitable[Sequence[str]]]


class LeaderClient:
    """``candidates``: addresses, or an async function that finds them anew. ``service``: what the peer must
    be (a "host" is also accepted). ``check(method, answer)`` raises ProtocolError for what is no answer.
    ``hearsay``: others may be there in a moment, so that all refuse is not final. Connections are made on
    demand; ``await close()`` at the end."""

    def __init__(
        self,
        candidates: Candidates,
        *,
        service: str,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        limits: Limits = DEFAULT,
        check: Callable[[str, Any], None] = lambda method, answer: None,
        hearsay: bool = False,
    ) -> None:
        self.leader_address: str | None = None
        self._candidates = candidates
        self._service = service
        self._hello = hello
        self._secret = secret
        self._limits = limits
        self._check = check
        self._hearsay = hearsay
        self._connections: dict[str, Connection] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._causes: dict[str, str] = {}  # address -> why it did not answer last
        self._closed = False

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float = 10.0, idempotent: bool = True
    ) -> Any:
        """Call the leader; NotLeader hints are followed, and what is retriable is tried again until the
        deadline. ``idempotent=False``: an unknown outcome is raised instead of tried again. The outcome of
        an error is that of all attempts: unknown, when one of them may have had an effect."""
        unsure: list[MoorageError] = []
        try:
            return await self._call(method, params, timeout, idempotent, unsure)
        except MoorageError as exc:
            if unsure and exc.outcome != "unknown":
                raise type(exc)(exc.message, **{**exc.details, "outcome": "unknown"}) from exc
            raise

    async def _call(
        self,
        method: str,
        params: dict[str, Any],
        timeout: float,
        idempotent: bool,
        unsure: list[MoorageError],
    ) -> Any:
        """``unsure`` takes the errors of attempts that may have had an effect, or may still have."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        pause = PAUSE_FIRST_S
        known = self._connected_leader()  # while it answers, nobody is asked for candidates
        while True:
            refused: MoorageError | None = None  # by everybody in this round: it will not get better
            others = False
            order = known or await self._order(end)
            async with contextlib.aclosing(self._round(order, end)) as candidates:
                async for address, failed in candidates:
                    try:
                        if failed is not None:
                            raise failed
                        return await self._follow(address, method, params, end)
                    except MoorageError as exc:
                        if exc.outcome == "unknown":
                            unsure.append(exc)
                        if isinstance(exc, ProtocolError | AuthenticationFailed):
                            refused = exc
                            others |= self._hearsay and exc.outcome == "not_done"
                        elif _try_again(exc, idempotent):
                            others = True
                        else:
                            raise
                    if loop.time() >= end:
                        break
            if known and loop.time() < end:
                known = []
                continue
            if refused is not None and not others:
                raise refused
            if loop.time() + pause >= end:
                raise self._gave_up(method, timeout)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE_MAX_S)

    async def connection(self, timeout: float = 10.0) -> Connection:
        """Any connection to a candidate (e.g. for a describe)."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            for address in await self._order(end):
                try:
                    return await self._connect(address, end)
                except MoorageError as exc:
                    self._causes[address] = str(exc)
            if loop.time() + PAUSE_MAX_S >= end:
                raise self._gave_up("connect", timeout)
            await asyncio.sleep(PAUSE_MAX_S)

    async def close(self) -> None:
        self._closed = True
        connections = [*self._connections.values()]
        self._connections.clear()
        for conn in connections:
            conn.close()
        for conn in connections:
            await conn.wait_closed()

    # -- one round -------------------------------------------------------------------------------------

    async def _round(
        self, addresses: Sequence[str], end: float
    ) -> AsyncGenerator[tuple[str, MoorageError | None], None]:
        """Each candidate, once it is connected or has failed to. To be closed: what still connects ends."""
        loop = asyncio.get_running_loop()
        waiting = [*addresses]
        connecting: dict[asyncio.Task[MoorageError | None], str] = {}
        try:
            while waiting or connecting:
                if waiting:
                    address = waiting.pop(0)
                    conn = self._connections.get(address)
                    if conn is not None and not conn.closed:
                        yield address, None
                        continue
                    task = asyncio.create_task(self._reach(address, end), name=f"connect to {address}")
                    connecting[task] = address
                left = max(0.0, end - loop.time())
                timeout = min(STAGGER_S, left) if waiting else left
                await asyncio.wait(connecting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in [each for each in connecting if each.done()]:
                    yield connecting.pop(task), task.result()
                if loop.time() >= end:
                    self._causes |= dict.fromkeys(connecting.values(), "no answer so far")
                    return
        finally:
            for task in connecting:
                task.cancel()
            await asyncio.gather(*connecting, return_exceptions=True)

    async def _reach(self, address: str, end: float) -> MoorageError | None:
        """Why it cannot be asked."""
        try:
            await self._connect(address, end)
        except MoorageError as exc:
            self._causes[address] = str(exc)
            if self.leader_address == address:
                self.leader_address = None
            return exc
        return None

    # -- one attempt -----------------------------------------------------------------------------------

    async def _follow(self, address: str, method: str, params: dict[str, Any], end: float) -> Any:
        """Call at ``address``, and at whom it names as the leader."""
        for _ in range(HINTS_MAX):
            try:
                result = await self._attempt(address, method, params, end)
            except NotLeader as exc:
                self._causes[address] = str(exc)
                hint = _hinted(exc)
                if hint is None or hint == address:
                    raise
                address = hint
                continue
            except MoorageError as exc:
                self._causes[address] = str(exc)
                if self.leader_address == address and exc.retriable:
                    self.leader_address = None
                raise
            self.leader_address = address
            self._causes.clear()
            return result
        raise NotLeader(f"{method}: the candidates point at each other as the leader", leader=None)

    async def _attempt(self, address: str, method: str, params: dict[str, Any], end: float) -> Any:
        conn = await self._connect(address, end)
        remaining = end - asyncio.get_running_loop().time()
        if remaining <= 0:
            raise Unavailable(f"{method}: no time left to ask {address}")
        result, _ = await conn.call(method, params, timeout=remaining)
        self._check(method, result)
        return result

    async def _connect(self, address: str, end: float) -> Connection:
        lock = self._connecting.setdefault(address, asyncio.Lock())
        async with lock:  # calls that start together share one connection
            conn = self._connections.get(address)
            if conn is not None and not conn.closed:
                return conn
            if self._closed:
                raise Invalid("this client is closed")
            remaining = end - asyncio.get_running_loop().time()
            conn = await connect(
                address,
                hello=self._hello() if callable(self._hello) else self._hello,
                secret=self._secret,
                timeout=max(0.01, min(CONNECT_S, remaining)),
                limits=self._limits,
            )
            # no await until the connection is in the table: it would have no owner
            if self._closed or conn.peer.service not in (self._service, "host"):
                error = ProtocolError(f"{address} is a {conn.peer.service}, not a {self._service}")
                conn.close()
                raise error
            conn.keepalive(PING_AFTER_S, SILENCE_S)
            self._connections = {key: old for key, old in self._connections.items() if not old.closed}
            self._connections[address] = conn
            return conn

    def _connected_leader(self) -> list[str]:
        conn = self._connections.get(self.leader_address or "")
        return [] if conn is None or conn.closed or self.leader_address is None else [self.leader_address]

    async def _order(self, end: float) -> list[str]:
        """The leader known last, then the others in random order (so that clients spread)."""
        others = [address for address in await self._find(end) if address != self.leader_address]
        random.shuffle(others)
        return others if self.leader_address is None else [self.leader_address, *others]

    async def _find(self, end: float) -> Sequence[str]:
        candidates = self._candidates
        if callable(candidates):
            remaining = end - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(0.01, remaining)):
                    candidates = await candidates()
            except TimeoutError:
                raise Unavailable(f"no answer to where the {self._service} is") from None
        return candidates

    def _gave_up(self, method: str, timeout: float) -> DeadlineExceeded:
        causes = "; ".join(f"{address}: {cause}" for address, cause in sorted(self._causes.items()))
        return DeadlineExceeded(
            f"{method}: no leader of the {self._service} answered in {timeout:g} s: "
            f"{causes or 'no candidates'}",
            causes=dict(self._causes),
        )


def _hinted(error: NotLeader) -> str | None:
    leader = error.details.get("leader")
    address = leader.get("address") if isinstance(leader, dict) else None
    return address if isinstance(address, str) and address else None


def _try_again(error: MoorageError, idempotent: bool) -> bool:
    if error.outcome == "unknown" and not idempotent:
        return False
    return isinstance(error, NotLeader | Unavailable | Overloaded)
