"""The mount table of the cluster: one text with versions, changed by compare-and-set.

Owns the keys ``mount_table/VERSION`` (the version in 10 digits): text, by, at_ms, request; the newest is the
table, and a few older ones are its history. What the lines mean is the client's business
(`client/mount_table.py`): the registry keeps them as they were given. Part of the replicated state: no clock
and no chance in here.
"""

from __future__ import annotations

from typing import Any

from moorage.registry.view import Store, View
from moorage.wire.errors import Invalid, LimitExceeded, NotFound, Stale

PREFIX = "mount_table/"
SIZE_MAX = 64 << 10  # bytes of the text; with the history it is no burden for a snapshot of the state
VERSIONS_KEPT = 16
NOTE_MAX = 256
NO_TABLE: dict[str, Any] = {"version": 0, "text": "", "by": "", "at_ms": 0}


def set_text(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{version, text, by, at_ms, request}``: replace the text if the table still is at ``version`` (0:
    there is none yet). Sent again with the same ``request`` it gives the same answer. Raises Stale."""
    version, text, request = command.get("version"), command.get("text"), command.get("request")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise Invalid(f"bad version {version!r}: give the one that was changed, 0 for the first")
    if not isinstance(text, str) or "\0" in text:
        raise Invalid("text: give the lines of the table")
    if len(text.encode(errors="surrogatepass")) > SIZE_MAX:
        raise LimitExceeded(f"the mount table has more than {SIZE_MAX} bytes, which is the most")
    for field in ("by", "request"):
        value = command.get(field)
        if not isinstance(value, str) or len(value) > NOTE_MAX:
            raise Invalid(f"{field}: give a text of at most {NOTE_MAX} characters")
    kept = list(kv.scan(PREFIX))
    newest = _number(kept[-1][0]) if kept else 0
    if kept and request and kept[-1][1]["request"] == request:
        return {"version": newest}
    if newest != version:
        raise Stale(f"the mount table is at version {newest}, not {version}: get it and change that one")
    value = {"text": text, "by": command["by"], "at_ms": int(command.get("at_ms") or 0), "request": request}
    kv.put(f"{PREFIX}{newest + 1:010}", value)
    for key, _ in kept[: max(0, len(kept) + 1 - VERSIONS_KEPT)]:
        kv.delete(key)
    return {"version": newest + 1}


def get(kv: View, version: int | None) -> dict[str, Any]:
    """``{version, text, by, at_ms, history}`` of the newest version, or of the one that is asked for;
    ``history``: version, by, at_ms of all that are kept. Raises NotFound."""
    kept = {_number(key): value for key, value in kv.scan(PREFIX)}
    history = [_shown(number, value) for number, value in kept.items()]
    number = max(kept, default=0) if version is None else version
    if number and number not in kept:
        known = f"{min(kept)} to {max(kept)}" if kept else "none"
        raise NotFound(f"version {number} of the mount table is not kept: known are {known}")
    if not number:
        return {**NO_TABLE, "history": history}
    return {**_shown(number, kept[number]), "text": kept[number]["text"], "history": history}


def newest_version(kv: View) -> int:
    return max((_number(key) for key, _ in kv.scan(PREFIX)), default=0)


def _shown(number: int, value: dict[str, Any]) -> dict[str, Any]:
    return {"version": number, "by": value["by"], "at_ms": value["at_ms"]}


def _number(key: str) -> int:
    return int(key.removeprefix(PREFIX))
