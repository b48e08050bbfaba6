"""Queues of several owners that are served in turns: who asks for much does not keep the others waiting.

A core. Deficit round robin (Shreedhar and Varghese, 1995): with each turn an owner may have QUANTUM more than
before, and what it could not use yet is kept as long as it waits. Order is kept within an owner, not between
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUANTUM = 256 << 10  # bytes


class Turns(Generic[T]):
    """``cost``: bytes of an item, asked when its turn may have come."""

    def __init__(self, cost: Callable[[T], int]) -> None:
        self._cost = cost
        self._queues: dict[int, deque[T]] = {}
        self._order: deque[int] = deque()  # owners that wait; it is the first one's turn
        self._left: dict[int, int] = {}  # bytes
        self._begun = False  # the first one has its quantum

    def __bool__(self) -> bool:
        return bool(self._order)

    @property
    def owners(self) -> int:
        return len(self._order)

    def put(self, owner: int, item: T) -> None:
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = deque()
            self._order.append(owner)
            self._left[owner] = 0
        queue.append(item)

    def first(self) -> T:
        """The one that :meth:`take` would give."""
        order, left = self._order, self._left
        while True:
            owner = order[0]
            if not self._begun:
                left[owner] += QUANTUM
                self._begun = True
            item = self._queues[owner][0]
            if self._cost(item) <= left[owner]:
                return item
            order.rotate(-1)
            self._begun = False

    def take(self) -> T:
        item = self.first()
        owner = self._order[0]
        queue = self._queues[owner]
        queue.popleft()
        self._left[owner] -= self._cost(item)
        if not queue:
            del self._queues[owner], self._left[owner]
            self._order.popleft()
            self._begun = False
        return item

    def clear(self) -> list[T]:
        """All of them, in no order that means anything."""
        found = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        self._order.clear()
        self._left.clear()
        self._begun = False
        return found
