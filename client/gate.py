"""Where requests wait for the ceilings of their volume, before anything else knows of them.

Owns their order (that of arrival, reads and writes alike) and the one timer; when they may go is
:mod:`~moorage.client.ceiling`'s. Nothing is polled: the timer runs while something waits, and for as long as
the first one has to. Whoever opens a gate lets all that wait go at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from moorage.client.ceiling import Ceiling
from moorage.client.outcome import callback_failed

# A timer for each of 10,000 operations a second would cost more than some milliseconds of delay, which the
# burst makes good: those that became due meanwhile go together.
STEP_S = 0.002

Start = Callable[..., None]


class Gate:
    """``now`` and ``later`` are those of the volume's front."""

    def __init__(
        self,
        iops: int,
        bw: int,
        *,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
    ) -> None:
        self._ceiling = Ceiling(iops, bw)
        self._now = now
        self._later = later
        self._waiting: deque[tuple[int, Start, tuple[Any, ...]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def rates(self) -> tuple[int, int]:
        """Operations and bytes a second; 0: no limit."""
        return self._ceiling.iops, self._ceiling.bw

    def submit(self, size: int, start: Start, arguments: tuple[Any, ...]) -> None:
        """Start it now, or behind those that wait."""
        if not self._waiting and self._ceiling.admit(size, self._now()):
            start(*arguments)
            return
        self._waiting.append((size, start, arguments))
        self._arm()

    def change(self, iops: int, bw: int) -> None:
        self._ceiling.change(iops, bw, self._now())
        self._stop()
        self._release()

    def open(self) -> None:
        """Nothing waits any more."""
        self._stop()
        while self._waiting:
            self._start_first()

    def _release(self) -> None:
        """Those whose time has come."""
        self._timer = None
        now = self._now()
        while self._waiting and self._ceiling.admit(self._waiting[0][0], now):
            self._start_first()
        if self._waiting:
            self._arm()

    def _start_first(self) -> None:
        _, start, arguments = self._waiting.popleft()
        try:
            start(*arguments)
        except Exception as error:  # a mistake in one caller's ``done``: the others are not to wait for ever
            callback_failed(error)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._later(max(self._ceiling.due() - self._now(), STEP_S), self._release)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
