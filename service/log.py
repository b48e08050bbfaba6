"""Logging of a service process: stderr, one line per event, and no flood.

Owns the format and the rate limit. A line that repeats (same place, same template) more than ``BURST``
times in ``WINDOW_S`` is dropped until the window is over; the next one that passes says how many were.
Must never log a secret: nothing here, and no error class, holds one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

BURST = 5
WINDOW_S = 10.0
PLACES_MAX = 1000  # templates are literals in the code: more than this means somebody formats them


class OneLine(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO registry.health device d1 is suspect: ...``; tracebacks on the same
    line."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return " | ".join(part.strip() for part in line.splitlines() if part.strip())


class RateLimit(logging.Filter):
    """Drops what repeats. Time is an argument, so that tests need not wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[
            tuple[str, int, str], tuple[float, int]
        ] = {}  # place -> (window's start, lines in it)

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.name, record.lineno, str(record.msg))
        now = self._clock()
        start, count = self._seen.get(place, (now, 0))
        dropped = 0
        if now - start >= WINDOW_S:
            start, count, dropped = now, 0, max(0, count - BURST)
        if len(self._seen) >= PLACES_MAX:
            self._seen.clear()
        self._seen[place] = (start, count + 1)
        if dropped:
            record.msg, record.args = f"{record.getMessage()} (and {dropped} more like it before)", None
        return count < BURST


def configure(level: str) -> None:
    """Set up the root logger of this process; a second call replaces the first."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
