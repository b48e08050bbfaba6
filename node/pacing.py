"""Background work waits here for its turn: the shell around :mod:`moorage.node.scheduler`.

Owns the waiting: in order within a kind of work, in short sleeps, so that what has become urgent meanwhile
goes at once. Must never hold up what makes room for users, nor outlive the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moorage.node.scheduler import Gauge, Scheduler, Work

# Bytes of a user's operation: a MiB takes longer than a block, and is compared with its like.
LARGE = 64 << 10
SLEEP_MAX_S = 0.05


class Pacer:
    """One for each device."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ceiling: int = 0) -> None:
        self._now = loop.time
        self.scheduler = Scheduler(loop.time(), ceiling)
        self._turns = {work: asyncio.Lock() for work in Work}
        self.waited_s = dict.fromkeys(Work, 0.0)

    async def admitted(
        self,
        work: Work,
        size: int,
        *,
        spare: bool = True,
        urgent: Callable[[], bool] | None = None,
        at_most_s: float = float("inf"),
    ) -> None:
        """Wait until ``size`` bytes of this work may go. ``urgent``: it waits no longer, others wait for it;
        the same after ``at_most_s``, where somebody would give up waiting for an answer."""
        scheduler, began = self.scheduler, self._now()
        async with self._turns[work]:
            while True:
                now = self._now()
                if (urgent is not None and urgent()) or now - began >= at_most_s:
                    scheduler.charge(work, size, now)
                    break
                delay = scheduler.admit(work, size, now, spare=spare)
                if not delay:
                    break
                await asyncio.sleep(min(delay, SLEEP_MAX_S))
        self.waited_s[work] += self._now() - began

    def charge(self, work: Work, size: int) -> None:
        self.scheduler.charge(work, size, self._now())

    def set_due(self, work: Work, who: object, rate: float, for_s: float) -> None:
        self.scheduler.set_due(work, who, rate, self._now() + for_s)

    def piece(self) -> int:
        return self.scheduler.piece(self._now())

    def wrote(self, size: int, took_s: float) -> None:
        """A group commit with ``size`` bytes of users' records, since the first of them was queued."""
        self.scheduler.felt(Gauge.LARGE_WRITE if size > LARGE else Gauge.WRITE, took_s, self._now())

    def read(self, size: int, took_s: float) -> None:
        """A user's read that had to wait for the disk."""
        self.scheduler.felt(Gauge.LARGE_READ if size > LARGE else Gauge.READ, took_s, self._now())

    def late(self, by_s: float) -> None:
        """The event loop came to something so much later than it was to."""
        self.scheduler.felt(Gauge.LOOP, by_s, self._now())
