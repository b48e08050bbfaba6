"""Calls to devices about objects, over the links that volumes use.

Owns the use of each link. A device that could not be reached is not waited for again until its link is up:
with one host down, every object would wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from moorage.client.nodes import AckFields, NackFields, NodeLink, NodePool, UserKey
from moorage.client.reader import HedgeBudget
from moorage.quorum.record import Buffer
from moorage.wire.connection import Connection
from moorage.wire.errors import CannotConnect, MoorageError

CONNECT_S = 1.0
SLOW_FOR_S = 2.0
IDLE_S = (
    600.0  # after that a device may have left the cluster, and its link is given up when another one comes
)


class _Use:
    """Keeps one link; it is told when that comes up."""

    def __init__(self, number: int, link: NodeLink) -> None:
        self.key: UserKey = (-1 - number, 0)  # no replica has this id
        self.link = link
        self.up = asyncio.Event()
        self.given_up = False
        self.used_at = 0.0

    def link_up(self, conn: Connection) -> None:
        self.up.set()
        self.given_up = False

    def link_down(self, error: MoorageError) -> None:
        self.up.clear()

    def acknowledged(self, fields: AckFields) -> None: ...

    def refused(self, fields: NackFields) -> None: ...

    def lease_promised(self, sent_ms: int) -> None: ...


class Devices:
    def __init__(self, pool: NodePool) -> None:
        self._pool = pool
        self._uses: dict[str, _Use] = {}
        self._numbers = itertools.count()
        self._slow: dict[str, float] = {}  # devices that others were faster than: until when
        self.hedges = HedgeBudget()  # of all that is read

    def link(self, place: dict[str, Any]) -> NodeLink:
        """``place``: a member as metadata describes it."""
        return self._use(place).link

    def _use(self, place: dict[str, Any]) -> _Use:
        device = place["device"]
        link = self._pool.link(device, place["host"], place["address"])
        now = asyncio.get_running_loop().time()
        use = self._uses.get(device)
        if use is None or use.link is not link:
            self._leave({device, *(each for each, old in self._uses.items() if now - old.used_at > IDLE_S)})
            use = self._uses[device] = _Use(next(self._numbers), link)
            self._pool.join(use, link)
        use.used_at = now
        return use

    def note_slow(self, device: str) -> None:
        self._slow[device] = asyncio.get_running_loop().time() + SLOW_FOR_S

    def is_slow(self, device: str) -> bool:
        """Others are asked first, for a while."""
        return self._slow.get(device, 0.0) > asyncio.get_running_loop().time()

    async def call(
        self,
        place: dict[str, Any],
        method: str,
        params: dict[str, Any],
        payload: Sequence[Buffer] = (),
        *,
        timeout: float,
    ) -> tuple[Any, memoryview]:
        """About the replica at ``place``. Raises CannotConnect, and what the device answers."""
        use = self._use(place)
        if not use.up.is_set() and not use.given_up:
            try:
                async with asyncio.timeout(min(CONNECT_S, timeout)):
                    await use.up.wait()
            except TimeoutError:
                use.given_up = True
        conn = use.link.conn
        if conn is None:
            raise CannotConnect(use.link.trouble() or f"{place['host']} cannot be reached")
        return await conn.call(method, {"replica": place["replica"], **params}, payload, timeout=timeout)

    def close(self) -> None:
        self._leave(set(self._uses))

    def _leave(self, devices: set[str]) -> None:
        for use in [self._uses.pop(device) for device in devices & self._uses.keys()]:
            self._pool.leave(use, use.link)
