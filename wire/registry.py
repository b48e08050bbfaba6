"""RegistryClient: calls to the registry, wherever it has moved to since this process began.

What it is given, addresses or an SRV name, is only where it begins: members move, and DNS may be old, wrong
or gone. Each candidate has to prove that it is a registry of this cluster (leader.py). From the first answer
on the leader is asked again and again who the members are and where, and those are the candidates. What was
given is looked up once more when no leader is known, beside the members and after them; nobody waits then.

Must never: wait for DNS while members are known, or forget members because of what DNS says or does not say.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from moorage.wire import discovery
from moorage.wire.errors import MoorageError, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.secret import ClusterSecret

FOLLOW_S = 3.0  # members that move one after the other, each within its own start, are not lost sight of
FOLLOW_CALL_S = 5.0
LOOK_UP_EVERY_S = 1.0  # who waits for a name asks for it no more often, however many wait


class RegistryClient(LeaderClient):
    """``spec``: HOST:PORT,... or srv:NAME. Otherwise a LeaderClient; ``await close()`` at the end."""

    def __init__(
        self,
        spec: str,
        *,
        hello: Hello | Callable[[], Hello],
        secret: ClusterSecret,
        check: Callable[[str, Any], None] = lambda method, answer: None,
    ) -> None:
        is_name = discovery.is_name(spec)
        super().__init__(
            self._given, service="registry", hello=hello, secret=secret, check=check, hearsay=is_name
        )
        self._spec = spec
        self._members: list[str] = []  # as the leader told last; none before it did
        self._said: list[str] = []  # by the spec: the addresses in it, or those that DNS told last
        self._said_error: MoorageError | None = Unavailable(f"{spec} was not looked up")
        self._said_at = 0.0
        self._looking_up: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float = 10.0, idempotent: bool = True
    ) -> Any:
        answer = await super().call(method, params, timeout=timeout, idempotent=idempotent)
        if self._following is None and not self._closed:
            self._following = asyncio.create_task(self._follow_members(), name="follow the registry")
        return answer

    async def close(self) -> None:
        await super().close()
        tasks = [task for task in (self._following, self._looking_up) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- candidates ------------------------------------------------------------------------------------

    async def _given(self) -> list[str]:
        if self._members:
            return self._members
        await asyncio.wait([self._look_up()])  # others wait too: it goes on when this call is cancelled
        if self._said_error is not None:
            raise type(self._said_error)(self._said_error.message)  # one for each caller
        return self._said

    async def _order(self, end: float) -> list[str]:
        """Behind the members what the spec says, when that may be better: none of them is known to lead."""
        order = await super()._order(end)
        if self._members and self.leader_address is None:
            self._look_up()
            others = [address for address in self._said if address not in order]
            order += random.sample(others, len(others))
        return order

    def _look_up(self) -> asyncio.Task[None]:
        """The look-up that is under way, else the last one if that is fresh, else a new one."""
        task = self._looking_up
        now = asyncio.get_running_loop().time()
        if task is None or (task.done() and now - self._said_at >= LOOK_UP_EVERY_S):
            task = self._looking_up = asyncio.create_task(self._resolve(), name=f"look up {self._spec}")
        return task

    async def _resolve(self) -> None:
        try:
            self._said, self._said_error = await discovery.resolve(self._spec), None
        except MoorageError as error:
            self._said_error = error
        finally:
            self._said_at = asyncio.get_running_loop().time()

    # -- members ---------------------------------------------------------------------------------------

    async def _follow_members(self) -> None:
        while True:
            with contextlib.suppress(MoorageError):  # the next call says why, to somebody who has asked
                await self._learn_members()
            await asyncio.sleep(FOLLOW_S)

    async def _learn_members(self) -> None:
        """From the leader alone: a member that was removed, or cut off, tells of the past."""
        conn = self._connections.get(self.leader_address or "")
        if conn is not None and not conn.closed:
            described, _ = await conn.call("registry.describe", {}, timeout=FOLLOW_CALL_S)
            if self._take(described):
                return
        status = await self.call("registry.status", {}, timeout=FOLLOW_CALL_S)  # which finds who leads now
        self._take(status.get("raft"))

    def _take(self, told: Any) -> bool:
        """Whether it is the word of a leader."""
        match told:
            case {"name": name, "leader": {"name": leader}, "members": [*rows]} if name == leader:
                members = [row["address"] for row in rows if isinstance(row, dict) and row.get("address")]
                self._members = members or self._members
                # Our secret is right, then. A port of former times may be a stranger's by now.
                self._hearsay = True
                return True
        return False
