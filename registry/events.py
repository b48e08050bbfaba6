"""What has happened in the cluster: the last events, in the order in which they were noted.

Owns the keys ``event/NUMBER`` (16 digits): at_ms, kind, about, text, id; ``count/event``: the newest number;
``noted_health/DEVICE``: the health that was noted last (up, when there is none). The same event may be sent
again: its id is looked for among the newest. Part of the replicated state: no clock and no chance in here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moorage.registry.view import Store, View
from moorage.wire.errors import Invalid, LimitExceeded

KEPT = 2048
AT_ONCE_MAX = 64
REPEATED_WITHIN = 128  # newest events that are looked through for the id of one that is sent again
PAGE_MAX = 500
TEXT_MAX = 512
ABOUT_MAX = 8
NOTED = ("up", "down", "failed", "refused")  # suspect comes and goes with each new leader

_PREFIX = "event/"


def note_events(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{events: [{at_ms, kind, about, text, id}]}``; ``about``: names of volumes, hosts, devices."""
    events = command.get("events")
    if not isinstance(events, list | tuple) or len(events) > AT_ONCE_MAX:
        raise LimitExceeded(f"events: give a list of at most {AT_ONCE_MAX}")
    checked = [_checked(event) for event in events]
    newest = newest_number(kv)
    known = {event["id"] for _, event in _of(kv, range(max(1, newest - REPEATED_WITHIN), newest + 1))}
    for event in checked:
        if event["id"] not in known:
            _append(kv, event)
    return {}


def note_health(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{device, host, health, reason, at_ms}``: an event, when it is another health than the one noted."""
    device, host, health = command["device"], command["host"], command["health"]
    key = f"noted_health/{device}"
    if is_noted(kv, device, health):
        return {}
    if health == "up":
        kv.delete(key)
    else:
        kv.put(key, health)
    reason = f": {command['reason']}" if command["reason"] else ""
    text = f"device {device} of host {host} is {health}{reason}"
    about = [host, device]
    _append(
        kv, {"at_ms": command["at_ms"], "kind": f"device {health}", "about": about, "text": text, "id": ""}
    )
    return {}


def is_noted(kv: View, device: str, health: str) -> bool:
    """Whether that health is the one that was noted last, or none to be noted."""
    return health not in NOTED or (kv.get(f"noted_health/{device}") or "up") == health


def page(kv: View, after: int, about: str, limit: int) -> dict[str, Any]:
    """``{events, next}``: those behind number ``after`` (negative: the last so many), about a name or all;
    ``next`` goes on from there."""
    newest = newest_number(kv)
    first = max(1, newest - KEPT + 1, after + 1 if after >= 0 else newest + after + 1)
    found: list[dict[str, Any]] = []
    for number, event in _of(kv, range(first, newest + 1)):
        if about and about not in event["about"]:
            continue
        if len(found) == limit:
            return {"events": found, "next": found[-1]["number"]}
        shown = {key: event[key] for key in ("at_ms", "kind", "about", "text")}
        found.append({"number": number, **shown})
    return {"events": found, "next": newest}


def newest_number(kv: View) -> int:
    return int(kv.get("count/event") or 0)


def _of(kv: View, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
    for number in numbers:
        event = kv.get(f"{_PREFIX}{number:016}")
        if event is not None:
            yield number, event


def _append(kv: Store, event: dict[str, Any]) -> None:
    number = newest_number(kv) + 1
    kv.put("count/event", number)
    kv.put(f"{_PREFIX}{number:016}", event)
    kv.delete(f"{_PREFIX}{max(0, number - KEPT):016}")


def _checked(event: Any) -> dict[str, Any]:
    match event:
        case {"at_ms": int(at_ms), "kind": str(kind), "about": [*about], "text": str(text), "id": str(id)}:
            texts = [kind, text, id, *about]
            if len(about) <= ABOUT_MAX and all(
                isinstance(each, str) and len(each) <= TEXT_MAX for each in texts
            ):
                return {"at_ms": at_ms, "kind": kind, "about": about, "text": text, "id": id}
    raise Invalid(f"an event has at_ms, kind, about, text and id; texts of at most {TEXT_MAX} characters")
