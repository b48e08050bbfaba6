"""What every task works with: the replicated state, the registry, the nodes, and how long to try."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from moorage.metadata.changes import Changes
from moorage.metadata.directory import Directory
from moorage.metadata.orders import NodeOrders
from moorage.service.replicated import Replicated


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


Call = Callable[[str, dict[str, Any], float], Awaitable[Any]]
"""(method, parameters, timeout in seconds) to this very metadata group, about one volume."""


class Leading(Protocol):
    """Leads the logs of a volume that nobody holds; a client's work, which the process that runs this member
    brings along."""

    async def lead(self, call: Call, done: Callable[[], bool]) -> None:
        """Take an epoch as a recovery does, and lead until ``done``. Raises Busy or Fenced when somebody
        holds the volume, or comes meanwhile."""

    async def close(self) -> None: ...


@dataclass
class TaskContext:
    replicated: Replicated
    directory: Directory
    orders: NodeOrders
    leading: Leading
    call: Callable[[str], Call]  # about the volume of this name
    lapsed_ms: Callable[[dict[str, Any]], int]  # for how long no lease on this volume has run; 0: one does
    create_timeout_s: float
    repair_after_ms: int  # a device that is down for so long is left
    order_timeout_s: float = 2.0  # for one try at one device
    retry_s: float = 0.2  # between tries while a creation waits
    drop_retry_max_s: float = 10.0
    term: int = 0  # of the leadership whose tasks run: goes with each order
    changes: Changes = field(default_factory=Changes)  # the state machine wakes who waits here

    async def propose(self, command: dict[str, Any]) -> Any:
        return await self.replicated.propose(command)
