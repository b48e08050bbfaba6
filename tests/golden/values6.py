"""What the golden files of set 6 say: a bucket and its objects, in metadata. Otherwise as `values.py`."""

from __future__ import annotations

from typing import Any

from . import values as v

WRITER, OTHER = 77, 78
R1, R2, R3, R4 = (v.V1 + number for number in (1, 2, 3, 4))
ALL = [R1, R2, R3]


def _object(number: int, size: int) -> dict[str, Any]:
    about = {"etag": f"{number:032x}", "at_ms": 3000 + number, "attributes": {"type": "text/plain"}}
    return {"id": f"o{number}", "size": size, **about}


def _put(number: int, key: str, extents: list[list[int]], stored: list[list[int]]) -> dict[str, Any]:
    size = sum(extent[3] for extent in extents) * v.BLOCK_SIZE - 5
    about = {"bucket": v.V1, "key": key, "writer": WRITER, "condition": {}}
    return {
        "do": "put_object",
        **about,
        "object": _object(number, size),
        "extents": extents,
        "stored": stored,
    }


def _part(number: int, extent: list[int]) -> dict[str, Any]:
    about = {"bucket": v.V1, "upload": "u1", "number": number, "writer": WRITER}
    made = _object(20 + number, extent[3] * v.BLOCK_SIZE)
    return {"do": "put_part", **about, "object": made, "extents": [extent], "stored": [ALL]}


METADATA_COMMANDS: list[dict[str, Any]] = [
    {"do": "found", "uid": v.UID},
    {"do": "admit", "uid": v.UID},
    {
        "do": "create_bucket",
        "request": "r1",
        "name": "photos",
        "size": 0,
        "replicas": 3,
        "durability": "sync",
        "placement": v.PLACEMENT,
        "created_ms": 1000,
    },
    {"do": "ready", "volume": v.V1},
    {"do": "open_region", "bucket": v.V1, "group": 0, "writer": WRITER},
    {"do": "open_region", "bucket": v.V1, "group": 0, "writer": OTHER},
    _put(1, "a", [[0, 0, 0, 1]], [ALL]),
    _put(2, "b", [[0, 0, 1, 1024], [0, 2, 0, 7]], [[R1, R2], ALL]),
    _put(3, "k" * 401, [[0, 3, 0, 1]], [ALL]),
    _put(4, "k" * 500, [[0, 3, 1, 1]], [[R2, R3]]),
    _put(5, "a", [[0, 3, 2, 1]], [ALL]),
    {"do": "set_versioning", "bucket": v.V1, "state": "suspended", "locks": False, "request": "r2"},
    _put(6, "d", [[0, 3, 3, 1]], [ALL]),
    {"do": "set_versioning", "bucket": v.V1, "state": "enabled", "locks": True},
    _put(7, "a", [[0, 3, 4, 1]], [ALL]),
    _put(8, "k" * 500, [[0, 3, 5, 1]], [ALL]),
    {
        "do": "set_lock",
        "bucket": v.V1,
        "key": "k" * 500,
        "id": "o4",
        "version": "null",
        "retention": ["GOVERNANCE", 9000],
        "hold": True,
        "now_ms": 4000,
        "bypass": False,
    },
    {"do": "delete_objects", "bucket": v.V1, "keys": ["d"], "condition": {}, "bypass": False, "at_ms": 4000},
    {"do": "create_upload", "bucket": v.V1, "upload": "u1", "key": "c", "attributes": {}, "now_ms": 4000},
    _part(1, [0, 4, 0, 256]),
    _part(2, [0, 4, 256, 256]),
    _part(3, [0, 4, 512, 256]),
    {
        "do": "plan_replacement",
        "volume": v.V1,
        "group": 0,
        "version": 1,
        "old": R3,
        "device": "d4",
        "host": "h4",
    },
]
NEW = v.V1 + 4
METADATA_LATER: list[dict[str, Any]] = [
    {"do": "built", "bucket": v.V1, "group": 0, "replica": NEW, "address": 3 * 1024},
    {"do": "rebuild", "bucket": v.V1, "group": 0, "replica": R1},
    {"do": "rebuild", "bucket": v.V1, "group": 0, "replica": R2},
    {"do": "rebuilt", "bucket": v.V1, "group": 0, "replica": R2},
    {
        "do": "delete_objects",
        "bucket": v.V1,
        "keys": ["b", "none"],
        "condition": {},
        "bypass": False,
        "at_ms": 5000,
        "request": "r1",
    },
    {
        "do": "complete_upload",
        "bucket": v.V1,
        "upload": "u1",
        "key": "c",
        "parts": [[1, f"{21:032x}"], [3, f"{23:032x}"]],
        "object": {"id": "o9", "etag": "e-2", "at_ms": 6000, "attributes": {}},
        "condition": {"absent": True},
    },
    {"do": "create_upload", "bucket": v.V1, "upload": "u2", "key": "d", "attributes": {}, "now_ms": 4000},
    {"do": "create_upload", "bucket": v.V1, "upload": "u3", "key": "d", "attributes": {}, "now_ms": 4000},
    {"do": "abort_upload", "bucket": v.V1, "upload": "u2"},
    {"do": "next_generation", "generation": 0},
    {"do": "set_document", "bucket": v.V1, "document": "policy", "text": "{}"},
    {"do": "set_document", "bucket": v.V1, "document": "cors", "text": "<>"},
    {"do": "set_document", "bucket": v.V1, "document": "cors", "text": None},
    {
        "do": "set_attributes",
        "bucket": v.V1,
        "key": "a",
        "id": "o5",
        "version": "null",
        "former": {"type": "text/plain"},
        "attributes": {"tags": {"a": "b"}},
    },
    {"do": "discarded", "bucket": v.V1, "extents": [[0, 0, 0, 1]]},
    {"do": "repaired", "bucket": v.V1, "replica": R1, "extents": [[0, 3, 1, 1]]},
    {"do": "note_lack", "bucket": v.V1, "replica": R2, "extents": [[0, 3, 0, 1], [0, 9, 0, 1]]},
    {"do": "close_regions", "bucket": v.V1, "regions": [[0, 0], [0, 64]]},
    {"do": "region_swept", "bucket": v.V1, "group": 0, "chunk": 0},
    {"do": "open_region", "bucket": v.V1, "group": 0, "writer": OTHER},
    {"do": "forget_region", "bucket": v.V1, "group": 0, "chunk": 64},
    {**_part(1, [0, 5, 0, 9]), "upload": "u3", "writer": OTHER, "extents": [[0, 128, 0, 9]]},
    {"do": "purge_bucket", "bucket": v.V1},
]
REGISTRY_COMMANDS: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h1", "labels": {}, "address": "h1:1", "http": ""},
    {"op": "create_key", "id": "A" * 20, "principal": "team-a", "at_ms": 1000, "by": "me"},
    {"op": "create_key", "id": "B" * 20, "principal": "team-b", "at_ms": 1001, "by": "me"},
]
REGISTRY_LATER: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h2", "labels": {}, "address": "h2:1", "http": ""},
    {"op": "revoke_key", "id": "A" * 20},
]
