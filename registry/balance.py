"""Whether replicas may move only so that devices are filled alike.

Owns the key ``balance``: paused, at_ms, by. Without it they may. Part of the replicated state: no clock and
no chance in here.
"""

from __future__ import annotations

from typing import Any

from moorage.registry.drains import by_of
from moorage.registry.view import Store, View
from moorage.wire.errors import Invalid

KEY = "balance"


def set_balance(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{paused, at_ms, by}``: stop it, or let it go on. May be repeated."""
    if not isinstance(command.get("paused"), bool):
        raise Invalid("paused: use true or false")
    row = {"paused": command["paused"], "at_ms": int(command.get("at_ms") or 0), "by": by_of(command)}
    kv.put(KEY, row)
    return {}


def get(kv: View) -> dict[str, Any]:
    found: dict[str, Any] | None = kv.get(KEY)
    return found or {"paused": False, "at_ms": 0, "by": ""}
