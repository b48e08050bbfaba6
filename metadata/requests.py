"""Requests that may come again: what each one led to, kept in the replicated state.

Owns ``request/``, ``request-order/`` and their counter (records.py). A client that does not know the
outcome of a command sends it again under the same id, and gets what the first one led to. Only the last
ones are kept; the oldest goes first, in the order of the log, so that every member forgets the same.
"""

from __future__ import annotations

from typing import Any

from moorage.metadata import limits, records
from moorage.service.kv import KV
from moorage.wire.errors import Invalid, NotFound


def known(kv: KV, request_id: str, kind: str, name: str) -> dict[str, Any] | None:
    """The volume of a request that was applied before, or None; raises its error where it ended in one."""
    if not request_id and kind == "delete":
        return None  # a client that can live with NotFound for a second delete
    request = kv.get(records.REQUESTS + limits.check_request(request_id))
    if request is None:
        return None
    if (request["kind"], request["name"]) != (kind, name):
        raise Invalid(f"request id {request_id} was used for {request['kind']} of {request['name']!r}")
    if request["error"] is not None:
        raise records.error_from_record(request["error"])
    volume = records.volume_by_id(kv, request["volume"])
    if volume is None and kind == "create":
        raise NotFound(f"volume {name!r} was created by this request, and deleted since")
    return volume or {"id": request["volume"], "name": name, "state": records.DELETING, "released": True}


def remember(kv: KV, request_id: str, kind: str, volume: dict[str, Any], index: int) -> None:
    if not request_id:
        return
    record = {"kind": kind, "name": volume["name"], "volume": volume["id"], "error": None}
    kv.put(records.REQUESTS + request_id, record)
    kv.put(f"{records.REQUEST_ORDER}{index:016x}", request_id)
    count = int(kv.get(records.COUNTER_REQUESTS) or 0) + 1
    if count > limits.REQUESTS_KEPT:
        oldest, forgotten = next(iter(kv.scan(records.REQUEST_ORDER)))
        kv.delete(oldest)
        kv.delete(records.REQUESTS + forgotten)
        count -= 1
    kv.put(records.COUNTER_REQUESTS, count)


def failed(kv: KV, request_id: str, error: dict[str, Any]) -> None:
    """What the request began could not be completed: from now on it answers with ``error``."""
    request = kv.get(records.REQUESTS + request_id)
    if request is not None:
        kv.put(records.REQUESTS + request_id, {**request, "error": error})
