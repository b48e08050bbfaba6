"""What a Mesos master says, read: answers, events, refusals. Pure.

Owns the meaning of statuses and texts (docs/mesos-api.md has the facts): which are for good, which pass. Must
never take a text for more than it says: what is not known to be final is tried again.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from moorage.wire import errors

TEXT_MAX = 500  # characters of a master's text that are shown

Json = dict[str, Any]


class FailedOver(errors.Fenced):
    """Another scheduler has subscribed with this framework id: this one is not heard any more, and ends."""


class FrameworkRemoved(errors.Stale):
    """The framework id is burnt: its failover timeout has passed, or it was torn down. Its reservations and
    volumes remain with the role: subscribe without an id, and take them over."""


class Subscribed(NamedTuple):
    framework_id: str
    heartbeat_s: float


def call_of(kind: str, body: Json | None) -> Json:
    return {"type": kind} if body is None else {"type": kind, kind.lower(): body}


def shown(said: bytes | str) -> str:
    """A text of the master as one line, not too long."""
    text = said if isinstance(said, str) else said[: 4 * TEXT_MAX].decode("utf-8", "replace")
    printable = (each if each.isprintable() else " " for each in text[: 4 * TEXT_MAX])
    return " ".join("".join(printable).split())[:TEXT_MAX]


def parse(base: str, raw: bytes) -> Json:
    """An object of JSON. Raises ProtocolError."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.ProtocolError(
            f"the Mesos master {base} says {shown(raw)!r}, which is no JSON object: is it a Mesos master?"
        )
    return found


def parse_event(base: str, record: bytes) -> Json:
    """An event, which has a type. Raises ProtocolError."""
    event = parse(base, record)
    if not isinstance(event.get("type"), str):
        raise errors.ProtocolError(f"the Mesos master {base} sends an event without a type: {shown(record)}")
    return event


def subscribed(base: str, event: Json, heartbeat_s: float) -> Subscribed:
    """What the first event of a stream says. ``heartbeat_s``: the interval, in case it does not say. Raises
    what an ERROR means (Invalid, FrameworkRemoved, ...), or ProtocolError."""
    if event["type"] == "ERROR":
        error = error_of(base, event)
        # Of a framework that was refused; of one that was accepted before it may mean anything.
        raise errors.Invalid(error.message) if type(error) is errors.Unavailable else error
    said: Any = event.get("subscribed")
    try:
        framework_id = said["framework_id"]["value"]
        interval_s = float(said.get("heartbeat_interval_seconds") or heartbeat_s)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        framework_id, interval_s = None, 0.0
    is_one = event["type"] == "SUBSCRIBED" and isinstance(framework_id, str) and 0 < interval_s < math.inf
    if not is_one:
        raise errors.ProtocolError(
            f"the Mesos master {base} begins a stream with {shown(event['type'])}, and not with a SUBSCRIBED "
            "that has a framework id"
        )
    return Subscribed(framework_id, interval_s)


def error_of(base: str, event: Json) -> errors.MoorageError:
    """What an ERROR event means; the stream ends with it. Unavailable: whether the framework may come back,
    the next SUBSCRIBE will tell."""
    about: Any = event.get("error")
    found = about.get("message") if isinstance(about, dict) else None
    text = shown(found) if isinstance(found, str) else ""
    if "failed over" in text:
        return failed_over(base)
    if "has been removed" in text:
        return FrameworkRemoved(
            f"the Mesos master {base} has removed this framework: subscribe as a new one, which is offered "
            "the reservations and volumes of its role"
        )
    return errors.Unavailable(f"the Mesos master {base} does not accept the framework: {text}")


def failed_over(base: str) -> FailedOver:
    return FailedOver(
        f"another scheduler subscribed at the Mesos master {base} with the id of this framework: this one is "
        "not heard any more and ends; run one scheduler at a time"
    )


def is_superseded(status: int, raw: bytes) -> bool:
    """Whether a call was refused because another stream of the framework is younger than ours."""
    return status == 400 and "didn't match the stream id" in shown(raw).lower()


def is_unsubscribed(status: int, raw: bytes) -> bool:
    """Whether a call was refused because the master has no stream of the framework."""
    text = shown(raw).lower()
    if status == 400:  # a new leader, to which the framework has not come yet
        return "framework cannot be found" in text
    return status == 403 and ("framework is not subscribed" in text or "framework is not connected" in text)


def refusal(base: str, kind: str, status: int, raw: bytes) -> errors.MoorageError:
    """What a status that is no success means."""
    said = f"the Mesos master {base} answers {kind} with {status} {shown(raw)}".rstrip()
    match status:
        case 400:
            return errors.Invalid(said)
        case 401:
            return errors.AuthenticationFailed(f"{said}: check principal and secret with its --credentials")
        case 403:
            return errors.AuthenticationFailed(f"{said}: its --acls do not let this principal do that")
        case 409:
            return errors.Busy(f"{said}: the agent has no such resources free now, look at GET_AGENTS")
        case 503:  # nobody leads, or the leader still reads its registry
            return errors.Unavailable(f"{said}: try again when a master leads")
        case _ if status >= 500:
            return errors.Unavailable(f"{said}: its log has the reason", outcome="unknown")
    return errors.ProtocolError(f"{said}: is it a Mesos master?")
