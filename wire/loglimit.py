"""A bound on repeated log lines. Pure: the time is an argument."""

from __future__ import annotations

INTERVAL_S = 10.0
BURST = 5
KEYS_MAX = 256


class LogLimiter:
    """At most ``BURST`` lines per key in ``INTERVAL_S`` seconds; counts what it held back."""

    def __init__(self) -> None:
        # key -> [start of its interval, lines in it, lines held back]
        self._keys: dict[str, list[float]] = {}

    def allow(self, key: str, now: float) -> int | None:
        """None: hold the line back. Else the number of lines held back since the last one."""
        entry = self._keys.get(key)
        if entry is None or now - entry[0] >= INTERVAL_S:
            if len(self._keys) >= KEYS_MAX:
                self._keys.clear()
            self._keys[key] = [now, 1, 0]
            return 0 if entry is None else int(entry[2])
        if entry[1] < BURST:
            entry[1] += 1
            return 0
        entry[2] += 1
        return None
