"""Access keys: who a program is that comes by S3.

Owns these records:

====================== ====================================================================================
key                    value
====================== ====================================================================================
``access-key/ID``      principal, created_ms, by: what is signed with this key comes from that principal
====================== ====================================================================================

No secret is stored: that of a key follows from its id and the cluster's secret
(``ClusterSecret.access_secret``). So a key is good while it is here, and no copy of the registry is worth
anything to who signs. Part of the replicated state: no clock and no chance in here."""

from __future__ import annotations

import re
from typing import Any

from moorage.registry.quota import principal_of
from moorage.registry.view import Store, View
from moorage.wire.errors import Invalid, LimitExceeded, NameTaken, NotFound

KEYS_MAX = 10_000
ID = re.compile(r"[A-Z2-7]{20}")


def create_key(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{id, principal, at_ms, by}``; sent again it is the same one."""
    key, principal = _id_of(command), principal_of(command)
    found = kv.get(f"access-key/{key}")
    if found is not None and found["principal"] != principal:
        raise NameTaken(f"access key {key} is another principal's")
    if found is None:
        if sum(1 for _ in kv.scan("access-key/")) >= KEYS_MAX:
            raise LimitExceeded(f"the cluster has {KEYS_MAX} access keys, which is the most: revoke some")
        found = {"principal": principal, "created_ms": command["at_ms"], "by": command["by"]}
        kv.put(f"access-key/{key}", found)
    return {"id": key, **found}


def revoke_key(kv: Store, command: dict[str, Any]) -> dict[str, Any]:
    """``{id}``"""
    found = key_of(kv, _id_of(command))
    kv.delete(f"access-key/{found['id']}")
    return found


def key_of(kv: View, key: str) -> dict[str, Any]:
    """Raises NotFound."""
    found = kv.get(f"access-key/{_id_of({'id': key})}")
    if found is None:
        raise NotFound(f"there is no access key {key}: `moorage key list` shows all")
    return {"id": key, **found}


def rows(kv: View, after: str, limit: int) -> list[dict[str, Any]]:
    """By id."""
    found = ((key.partition("/")[2], value) for key, value in kv.scan("access-key/"))
    return [{"id": key, **value} for key, value in found if key > after][:limit]


def _id_of(command: dict[str, Any]) -> str:
    key = command.get("id")
    if not isinstance(key, str) or not ID.fullmatch(key):
        raise Invalid(f"access key {key!r} is not 20 of the characters A-Z and 2-7")
    return key
