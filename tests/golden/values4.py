"""What the golden files of set 4 say: snapshots, on a device, on the wire and in metadata. Otherwise as
`values.py`, whose device and cluster these are of, too."""

from __future__ import annotations

from typing import Any

from . import values as v

# -- the wire -------------------------------------------------------------------------------------------

AT, LSNS = 8, 16  # frame flags, beside PREFIX
READ_OF_A_SNAPSHOT = (0, 3, 12, 14, 1022, 2)  # as HOT["read"]
SNAPSHOT = 12  # its LSN, behind

# -- a device -------------------------------------------------------------------------------------------

REPLICA_INFO = [1, 11, 0, "sync", 3]
# as RECORDS there; of kind 5 the last field are the LSNs
RECORDS: list[tuple[int, int, int, int, int, int, Any]] = [
    (1, 1, 1, 0, 0, 0, 0),
    (1, 2, 2, 0, 0, 1, 200),
    (1, 3, 2, 1, 3, 1, 201),
    (1, 4, 5, 0, 0, 1, [4]),
    (1, 5, 2, 0, 0, 1, 202),
    (1, 6, 4, 1, 0, 1, 0),
    (1, 7, 5, 0, 0, 2, [4, 7]),
    (1, 8, 2, 1, 3, 1, 203),
    (1, 9, 4, 1, 0, 1, 0),  # behind it all is in the log only
    (1, 10, 3, 0, 0, 1, 0),
    (1, 11, 5, 0, 0, 3, [4, 7, 11]),
    (1, 12, 2, 0, 0, 1, 204),
    (1, 13, 5, 0, 0, 2, [4, 11]),  # not applied yet
]
CHECKPOINT_BEHIND = 8
APPLIED = 12
# snapshot (0: now) -> (chunk, block) -> number of the contents, None: a hole
SHOWN: dict[int, dict[tuple[int, int], int | None]] = {
    4: {(0, 0): 200, (1, 3): 201},
    7: {(0, 0): 202, (1, 3): None},
    11: {(0, 0): None, (1, 3): None},
    0: {(0, 0): 204, (1, 3): None},
}
# what a copy brings: LSN of the list, the LSNs; chunk, block, LSN, contents of a version below the block
COPIED_LIST, COPIED_VERSION = (7, (4, 7)), (2, 5, 3, 205)

# -- the replicated states ------------------------------------------------------------------------------

LATE = {"code": 30, "message": "snapshot 'late' is given up", "details": {"volume": "db"}}


def _metadata(suffix: str, first: int, request: int) -> list[dict[str, Any]]:
    """Two volumes with snapshots in every state, and a clone that is rolled back; ``first``: the id that is
    given next. The first volume was rolled back, too, and is attached by who did that."""
    db, logs = first, first + 4
    one, in_db, in_logs = first + 8, first + 10, first + 11  # (the set has the id between)
    late, old, clone, of_clone = first + 12, first + 13, first + 14, first + 18
    create = {"do": "create", "size": 64 << 20, "replicas": 3, "durability": "sync", "placement": v.PLACEMENT}
    held: dict[str, Any] = {"epoch": 1, "writer": request + 70, "now_ms": 3000}
    again: dict[str, Any] = {"epoch": 2, "writer": request + 80, "now_ms": 3500}
    taken = {"holder": v.HOLDER, "recovers": False, "succeeds": [], "now_ms": 2000}
    snapshot = {"do": "create_snapshots", "created_ms": 2500}

    def attach(volume: int) -> dict[str, Any]:
        return {"do": "attach", "volume": volume, "epoch": 0, "writer": held["writer"], **taken}

    def roll_back(volume: int, name: str) -> list[dict[str, Any]]:
        return [
            {"do": "detach", "volume": volume, **held},
            {"do": "attach_to_roll_back", "volume": volume, "epoch": 1, "writer": again["writer"]}
            | {"rolls_back": name, **taken},
        ]

    done = {"do": "snapshots_done", "deleted": []}
    return [
        {**create, "request": f"r{request}", "name": f"db{suffix}", "created_ms": 1000},
        {"do": "ready", "volume": db},
        {**create, "request": f"r{request + 1}", "name": f"logs{suffix}", "created_ms": 1001},
        {"do": "ready", "volume": logs},
        attach(db),
        attach(logs),
        {**snapshot, "request": f"r{request + 2}", "wanted": [{"volume": db, "name": "one"}]},
        {**done, **held, "volume": db, "created": [[one, [5]]]},
        *roll_back(db, "one"),
        {"do": "rolled_back", "volume": db, **again},
        {**snapshot, "request": f"r{request + 3}"}
        | {"wanted": [{"volume": db, "name": "both"}, {"volume": logs, "name": "both"}]},
        {"do": "snapshots_put", "volume": db, **again, "ids": [in_db]},
        {"do": "snapshots_put", "volume": logs, **held, "ids": [in_logs]},
        {**done, **again, "volume": db, "created": [[in_db, [9]]]},
        {**snapshot, "request": f"r{request + 4}", "wanted": [{"volume": db, "name": "late"}]},
        {"do": "abandon_snapshots", "volume": db, "ids": [late], "error": LATE},
        {**snapshot, "request": f"r{request + 5}", "wanted": [{"volume": db, "name": "old"}]},
        {**done, **again, "volume": db, "created": [[old, [11]]], "deleted": [late]},
        {"do": "delete_snapshot", "volume": db, "snapshot": "old", "request": f"r{request + 6}"},
        {**create, "do": "create_clone", "request": f"r{request + 7}", "name": f"clone{suffix}"}
        | {"created_ms": 4000, "parent": {"volume": db, "snapshot": one}},
        {"do": "ready", "volume": clone},
        attach(clone),
        {**snapshot, "request": f"r{request + 8}", "wanted": [{"volume": clone, "name": "mine"}]},
        {**done, **held, "volume": clone, "created": [[of_clone, [7]]]},
        *roll_back(clone, "mine"),
    ]


METADATA_COMMANDS: list[dict[str, Any]] = [
    {"do": "found", "uid": v.UID},
    {"do": "admit", "uid": v.UID},
    *_metadata("", v.V1, 1),
]
METADATA_LATER: list[dict[str, Any]] = _metadata("-2", v.V1 + 19, 11)
REGISTRY_COMMANDS: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h1", "labels": {}, "address": "h1:1", "http": ""}
]
REGISTRY_LATER: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h2", "labels": {}, "address": "h2:1", "http": ""}
]
