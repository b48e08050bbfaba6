"""One operation on a volume at a time, in the order of the calls.

An orchestrator is to call so, and not all do: Mesos stages a volume for the next task while it unstages it
for the last one. The later call waits for its turn, for a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import StatusCode

from moorage.gateway.csi.codes import Refused

TURN_TIMEOUT_S = 60.0


class Pending:
    def __init__(self, timeout: float = TURN_TIMEOUT_S) -> None:
        self._timeout = timeout
        self._turns: dict[str, asyncio.Lock] = {}
        self._calls: dict[str, int] = {}

    @asynccontextmanager
    async def on(self, name: str) -> AsyncIterator[None]:
        """ABORTED when the others before take too long."""
        turn = self._turns.setdefault(name, asyncio.Lock())
        self._calls[name] = self._calls.get(name, 0) + 1
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    await turn.acquire()
            except TimeoutError:
                raise Refused(
                    StatusCode.ABORTED, f"another call works on volume {name!r}: try again later"
                ) from None
            try:
                yield
            finally:
                turn.release()
        finally:
            self._calls[name] -= 1
            if not self._calls[name]:
                del self._calls[name], self._turns[name]
