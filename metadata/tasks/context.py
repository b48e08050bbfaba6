"""What every task works with: the replicated state, the registry, the nodes, and how long to try."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moorage.metadata.directory import Directory
from moorage.metadata.orders import NodeOrders
from moorage.service.replicated import Replicated


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class TaskContext:
    replicated: Replicated
    directory: Directory
    orders: NodeOrders
    create_timeout_s: float
    order_timeout_s: float = 2.0  # for one try at one device
    retry_s: float = 0.2  # between tries while a creation waits
    drop_retry_max_s: float = 10.0
    term: int = 0  # of the leadership whose tasks run: goes with each order
    progressed: Callable[[], None] = field(default=lambda: None)  # the state of a volume moved

    async def propose(self, command: dict[str, Any]) -> Any:
        result = await self.replicated.propose(command)
        self.progressed()
        return result
