"""Locks of versions of objects: until when one must stay, and who may shorten that. Pure.

A lock is ``[mode, until_ms, hold]``. ``mode``: "GOVERNANCE" may be passed over by who says so (``bypass``),
"COMPLIANCE" by nobody; "" is none, then ``until_ms`` is 0. ``hold``: it stays until that is taken away.
"""

from __future__ import annotations

from typing import Any, Final

from moorage.wire.errors import Invalid, Locked

GOVERNANCE: Final = "GOVERNANCE"
COMPLIANCE: Final = "COMPLIANCE"

Lock = list[Any]


def check(value: Any) -> Lock | None:
    """From the wire; one that locks nothing is None. Raises Invalid."""
    match value:
        case None:
            return None
        case [str(mode), int(until_ms), bool(hold)] if _is_sound(mode, until_ms):
            return [mode, until_ms, hold] if mode or hold else None
    raise Invalid("lock: use [mode, until_ms, hold], mode of GOVERNANCE, COMPLIANCE, or empty with 0")


def _is_sound(mode: str, until_ms: int) -> bool:
    return (mode in (GOVERNANCE, COMPLIANCE) and 0 < until_ms < 1 << 63) or (not mode and until_ms == 0)


def is_locked(lock: Lock | None, now_ms: int, bypass: bool) -> bool:
    """Whether what has it must stay."""
    if lock is None:
        return False
    mode, until_ms, hold = lock
    return hold or (until_ms > now_ms and not (mode == GOVERNANCE and bypass))


def check_change(former: Lock | None, lock: Lock | None, now_ms: int, bypass: bool) -> None:
    """Raises Locked when that would end a retention early. (A hold may be taken away at any time.)"""
    if former is None or not is_locked([*former[:2], False], now_ms, bypass):
        return
    mode, until_ms, _ = lock if lock is not None else ["", 0, False]
    if until_ms < former[1] or (mode != COMPLIANCE and former[0] == COMPLIANCE):
        raise Locked(f"it is retained ({former[0]}) for longer: that cannot be shortened", until_ms=former[1])
