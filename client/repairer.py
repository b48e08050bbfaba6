"""Leads the logs of a volume that nobody holds, on behalf of metadata's leader: the same attachment as any
writer's, under an epoch that makes room for whoever attaches.

Owns the connections to devices that this takes. It never decides that there is
something to do: metadata does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from moorage.client.attachment import lead
from moorage.client.nodes import NodePool
from moorage.client.succession import MetadataCall
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret

ATTACH_S = 15.0


class Repairer:
    def __init__(self, hello: Hello, secret: ClusterSecret) -> None:
        self._hello = hello
        self._secret = secret
        self._nodes: NodePool | None = None  # made within the event loop

    async def lead(self, call: MetadataCall, done: Callable[[], bool]) -> None:
        """Attach as a recovery does and lead until ``done``. Raises Busy when somebody holds the volume,
        Fenced when somebody comes, Unavailable when no majority of a group answers."""
        if self._nodes is None:
            self._nodes = NodePool(self._hello, self._secret)
        holder = {"host": self._hello.name, "pid": os.getpid(), "program": "repairer"}
        end = asyncio.get_running_loop().time() + ATTACH_S
        await lead(call, self._nodes, holder, end, done)

    async def close(self) -> None:
        if self._nodes is not None:
            await self._nodes.close()
