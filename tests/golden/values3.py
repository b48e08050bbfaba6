"""What the golden files of set 3 say: what both state machines, the index and reads learnt after set 1.
Otherwise as `values.py`, whose device and cluster these are of, too."""

from __future__ import annotations

from typing import Any

from . import values as v

# -- the wire -------------------------------------------------------------------------------------------

PREFIX = 4  # frame flag
READ_OF_A_PREFIX = (0, 3, 3, 14, 1022, 2)  # as HOT["read"]
READ_REPLY_OF_A_PREFIX = (14, 2, 9)  # applied, count, epoch; the checksums of two blocks before the epoch

# -- the index of a device ------------------------------------------------------------------------------

INDEX_REACHED = 22
# handle -> replica, passed_ms, began_ms, page, {(chunk, block): (location, LSN)}
INDEX_CHECKS: dict[int, tuple[int, int, int, int, dict[tuple[int, int], tuple[int, int]]]] = {
    1: (1, 1_700_000_000_000, 1_700_000_100_000, 7, {(0, 5): ((3 << 32) + 4096, 12), (9, 1023): (8192, 4)}),
    2: (2, 0, 0, 0, {}),
}

# -- the replicated states ------------------------------------------------------------------------------

NO_HOST = {"code": 40, "message": "host h3 does not answer", "details": {"host": "h3"}}


def _metadata(name: str, first: int, index: int) -> list[dict[str, Any]]:
    """A volume with a change of members behind it, and one that did not come about; ``first``: the id that
    is given next."""
    volume, lost, cancelled, new = first, first + 1, first + 4, first + 5
    gone = first + 6
    plan = {"do": "plan_replacement", "volume": volume, "group": 0, "version": 1, "old": lost}
    create = {"do": "create_limited", "size": 64 << 20, "replicas": 3, "placement": v.PLACEMENT}
    return [
        create
        | {"request": f"r{index}", "name": name, "durability": "sync", "created_ms": 1000, "iops": 500}
        | {"bw": 1 << 20, "principal": "team-a", "fs": {"type": "ext4", "state": "new"}},
        {"do": "ready", "volume": volume},
        {"do": "attach", "volume": volume, "epoch": 0, "writer": 77, "holder": v.HOLDER}
        | {"recovers": False, "succeeds": [], "now_ms": 2000},
        {"do": "note_fs", "volume": volume, "epoch": 1, "writer": 77, "now_ms": 2001}
        | {"fs": {"type": "ext4", "state": "ready"}},
        {"do": "set_ceilings", "volume": volume, "iops": 0, "bw": None},
        {**plan, "device": "d4", "host": "h4", "why": "drain", "now_ms": 2002},
        {"do": "cancel_replacement", "volume": volume, "group": 0, "replica": cancelled},
        {**plan, "device": "d5", "host": "h5", "why": "lost", "now_ms": 2003},
        {"do": "reconfigure", "volume": volume, "group": 0, "epoch": 1, "version": 1, "now_ms": 2004}
        | {"replace": {"old": lost, "new": new}},
        create
        | {"request": f"r{index + 1}", "name": f"{name}.gone", "durability": "writeback", "created_ms": 2005},
        {"do": "abandon", "volume": gone, "error": NO_HOST, "now_ms": 3000},
        {"do": "dropped", "volume": gone, "replicas": [gone + 1, gone + 2, gone + 3]},
        {"do": "released", "volume": gone},
    ]


METADATA_COMMANDS: list[dict[str, Any]] = [
    {"do": "found", "uid": v.UID},
    {"do": "admit", "uid": v.UID},
    *_metadata("db", v.V1, 1),
]
METADATA_LATER: list[dict[str, Any]] = _metadata("next", v.V1 + 10, 3)

D1, D2 = v.DEVICE.hex(), v.DEVICE[::-1].hex()


def _device(device: str, host: str) -> dict[str, Any]:
    start = {"op": "start_device", "device": device, "host": host, "address": f"{host}:2", "old_token": ""}
    return {**start, "capacity": 64 << 20, "new_token": "a" * 32, "count": 0}


def _registry(name: str, principal: str, count: int) -> list[dict[str, Any]]:
    order = {"group": "m1", "term": 5, "count": count}
    number = v.V1 + 10 * count
    by = {"at_ms": 1000 + count, "by": "root@h9"}
    event = {"at_ms": 1000, "kind": "attach", "about": [name, "h9"], "text": f"volume {name} is attached"}
    return [
        {"op": "set_quota", "principal": principal, "capacity": 1 << 40, "volumes": 5},
        {"op": "set_quota", "principal": f"{principal}-2", "capacity": None, "volumes": None},
        {"op": "remove_quota", "principal": f"{principal}-2"},
        {"op": "claim_charged", "name": name, "kind": "volume", "group": "m1", "id": number}
        | {"principal": principal, "size": 64 << 20},
        {"op": "charge", **order, "name": name, "id": number, "principal": principal, "size": 128 << 20},
        {"op": "settle", **order, "charges": [[name, number, principal, 96 << 20]]},
        {"op": "set_drain", "kind": "host", "name": "h1", "drain": True, "to": "", **by},
        {"op": "set_drain", "kind": "device", "name": D1, "drain": True, "to": D2, **by},
        {"op": "set_balance", "paused": True, **by},
        {"op": "set_mount_table", "version": count - 1, "text": f"moorage:///{name} /data\n", **by}
        | {"request": f"q{count}"},
        {"op": "note_events", "events": [{**event, "id": f"e{count}"}]},
        {"op": "note_health", "device": D1, "host": "h1", "at_ms": 1001}
        | {"health": "down" if count == 1 else "failed", "reason": "no heartbeat"},
    ]


REGISTRY_COMMANDS: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h1", "labels": {}, "address": "h1:1", "http": ""},
    {"op": "join_host", "host": "h2", "labels": {}, "address": "h2:1", "http": ""},
    {"op": "join_service", "service": "metadata", "group": "m1", "name": "a", "address": "h1:1"}
    | {"http": "", "uid": v.UID},
    _device(D1, "h1"),
    _device(D2, "h2"),
    *_registry("db", "team-a", 1),
]
REGISTRY_LATER: list[dict[str, Any]] = [
    *_registry("next", "team-b", 2),
    {"op": "refuse_device", "device": D2, "token": "a" * 32, "reason": "evicted by root@h9"},
    {"op": "forget", "kind": "device", "name": D2},
    {"op": "forget", "kind": "host", "name": "h2"},
]
