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


def check_change(retention: Any, hold: Any) -> dict[str, Any]:
    """From the wire, None for what is to stay. Raises Invalid."""
    found: dict[str, Any] = {}
    if retention is not None:
        if not isinstance(retention, list | tuple) or check([*retention, True]) is None:
            raise Invalid("retention: use [mode, until_ms]")
        found["retention"] = list(retention)
    if hold is not None:
        if not isinstance(hold, bool):
            raise Invalid("hold must be true or false")
        found["hold"] = hold
    return found


def _is_sound(mode: str, until_ms: int) -> bool:
    return (mode in (GOVERNANCE, COMPLIANCE) and 0 < until_ms < 1 << 63) or (not mode and until_ms == 0)


def is_locked(lock: Lock | None, now_ms: int, bypass: bool) -> bool:
    """Whether what has it must stay."""
    if lock is None:
        return False
    mode, until_ms, hold = lock
    return hold or (until_ms > now_ms and not (mode == GOVERNANCE and bypass))


def changed(lock: Lock | None, change: dict[str, Any], now_ms: int, bypass: bool) -> Lock | None:
    """``change``: ``retention``, a mode and until when, and ``hold``, or one of them: the other stays. Raises
    Locked when that would end a retention early. (A hold may be taken away at any time.)"""
    former_mode, former_until_ms, hold = lock if lock is not None else ["", 0, False]
    mode, until_ms = change.get("retention", [former_mode, former_until_ms])
    if is_locked([former_mode, former_until_ms, False], now_ms, bypass) and (
        until_ms < former_until_ms or (mode != COMPLIANCE and former_mode == COMPLIANCE)
    ):
        text = f"it is retained ({former_mode}) for longer: that cannot be shortened"
        raise Locked(text, until_ms=former_until_ms)
    return check([mode, until_ms, change.get("hold", hold)])
