"""Which hosts and devices an operator wants to be emptied.

Owns the keys ``drain/host/NAME`` and ``drain/device/ID``: to (a device that is to take over all of it, "" for
wherever placement says), at_ms, by. A drain is a wish: metadata moves the replicas, and nothing new is placed
there meanwhile. Part of the replicated state: no clock and no chance in here.
"""

from __future__ import annotations

from typing import Any

from moorage.registry.view import Store, View
from moorage.wire.errors import Invalid, NotFound

KINDS = ("host", "device")
NOTE_MAX = 256


def set_drain(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{kind, name, drain, to, at_ms, by}``: begin to empty it, or (``drain`` false) stop that. May be
    repeated. Raises NotFound for what is not in the registry."""
    kind, name, to = command.get("kind"), command.get("name"), command.get("to") or ""
    if kind not in KINDS:
        raise Invalid(f"kind {kind!r}: use one of {', '.join(KINDS)}")
    if not isinstance(name, str) or kv.get(f"{kind}/{name}") is None:
        raise NotFound(
            f"there is no {kind} {str(name)!r:.80} in the registry: `moorage {kind} list` shows all"
        )
    if command.get("drain") is False:
        kv.delete(f"drain/{kind}/{name}")
        return {}
    if command.get("drain") is not True:
        raise Invalid("drain: use true or false")
    if to and (not isinstance(to, str) or kv.get(f"device/{to}") is None):
        raise NotFound(f"there is no device {str(to)!r:.80} in the registry: `moorage device list` shows all")
    if to == name:
        raise Invalid(f"device {name} cannot take over what is on itself")
    row = {"to": to, "at_ms": int(command.get("at_ms") or 0), "by": by_of(command)}
    kv.put(f"drain/{kind}/{name}", row)
    return {}


def by_of(command: dict[str, Any]) -> str:
    """Who asks, for others to read."""
    by = command.get("by")
    if not isinstance(by, str) or len(by) > NOTE_MAX:
        raise Invalid(f"by: give a text of at most {NOTE_MAX} characters")
    return by


def of_host(kv: View, host: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = kv.get(f"drain/host/{host}")
    return found


def of_device(kv: View, device: str, host: str) -> dict[str, Any] | None:
    """Its own, or that of its host."""
    found: dict[str, Any] | None = kv.get(f"drain/device/{device}")
    return found or of_host(kv, host)
