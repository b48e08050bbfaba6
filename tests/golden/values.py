"""What the golden files of version 1 say, in today's words: literals, and nothing that today's code computes.

The files in ``v1/`` were made from these once (`make.py`), and are never made again: when the code changes,
the values here are what the old bytes must still decode to.
"""

from __future__ import annotations

from typing import Any

BLOCK_SIZE = 4096
SEED = 0x0123456789ABCDEF  # of the checks of segment headers and frames
DEVICE = bytes(range(16))
CLUSTER = "0123456789abcdef"
KEY = bytes(range(32, 64))
SECRET_FILE = b"0123456789abcdef:202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\n"


def block(number: int, count: int = 1) -> bytes:
    """Content of ``count`` blocks; each block of every number differs from all others."""
    return b"".join((number * 1000 + at).to_bytes(8, "little") * (BLOCK_SIZE // 8) for at in range(count))


# -- identity files: kind, body -------------------------------------------------------------------------

IDENTITY = {"cluster": CLUSTER, "name": "h1", "service": "node"}
SUPERBLOCK = {
    "device": DEVICE.hex(),
    "seed": f"{SEED:016x}",
    "token": "a" * 32,
    "next_token": "b" * 32,
    "count": 40,
    "segment_size": 64 << 10,
    "capacity": 64 << 20,
}

# -- the segment ----------------------------------------------------------------------------------------

SEGMENT_HEADER = (7, 100, 5, 4608, DEVICE)  # number, first_group, previous, previous_end, device
FRAME = (7, 101)  # segment, group
# (epoch, lsn, kind, chunk, block, count, number of the data's first block)
RECORDS: list[tuple[int, int, int, int, int, int, int]] = [
    (3, 10, 1, 0, 0, 0, 0),
    (3, 11, 2, 5, 1022, 2, 21),
    (3, 12, 3, 5, 0, 1024, 0),
    (4, 13, 4, 6, 0, 9, 0),
    (4, 14, 2, (1 << 48) - 1, 0, 1, 22),
]
# (kind, chunk, block, LSNs, number of the data's first block)
RUNS: list[tuple[int, int, int, tuple[int, ...], int]] = [
    (1, 5, 10, (11, 9), 31),
    (2, 6, 1021, (3, 4, 5), 0),
    (3, 7, 1 << 20, ((1 << 63) - 1,), 0),
]
REPLICA_INFO = [(1 << 48) + 1, (1 << 48) + 2, 3, "writeback", 5]
# (replica, kind, argument): what the entries of the frame are, in order
ENTRIES: list[tuple[int, int, int]] = [
    (REPLICA_INFO[0], 4, 17),
    (REPLICA_INFO[0], 2, 0),
    (REPLICA_INFO[0], 1, 9),
    (REPLICA_INFO[0], 6, 18),
    (REPLICA_INFO[0], 3, 18),
    (REPLICA_INFO[0], 7, 0),
    (REPLICA_INFO[0], 5, 0),
]

# -- a member's state -----------------------------------------------------------------------------------

STATE: dict[str, Any] = {
    "replica": REPLICA_INFO[0],
    "epoch": 4,
    "writer": (1 << 63) - 1,
    "history": [(2, 1), (3, 10), (4, 13)],
    "commit": 12,
    "last": 14,
    "damaged": "",
    "promise_lost": False,
}
COPYING: dict[str, Any] = {
    **STATE,
    "damaged": "index page 3 does not match its checksum",
    "promise_lost": True,
}
COPY: dict[str, Any] = {
    "base": (3, 11),
    "above": 8,
    "until": (4, 13),
    "old": (2, 9),
    "floor": (3, 12),
    "copied": True,
    "attempt": 2,
}

# -- the wire -------------------------------------------------------------------------------------------

# (kind, op, request_id, payload_size, flags, deadline_ms), body
FRAME_HEADER = (1, 1, 0x1122334455667788, 8192, 0x0102, 2500)
CALL = ["node.describe", {"a": 1, "b": b"\x00\xff", "c": [True, None, -1]}]
CLIENT_HELLO = ("client", CLUSTER, "c1", "f" * 16, {})
SERVER_HELLO = ("node", CLUSTER, "h1", "e" * 16, {"device": DEVICE.hex(), "token": "a" * 32})
CLIENT_NONCE, SERVER_NONCE = bytes(range(32)), bytes(range(32, 64))
ERROR = (32, "epoch 5 has been promised", {"promised": 5})
BIG = (1 << 63) - 1
HOT: dict[str, tuple[int, ...]] = {
    "append": (BIG, 2, 3, 4, 5, 6, 7, 5),
    "ack": (1, 2, 3, 4, 5, BIG, (1 << 32) - 1, 7),
    "nack": (1, 2, BIG, 4, 5, 6),
    "read": (1, 0, 3, BIG, 1023, 1),
    "heartbeat": (BIG,),
    "heartbeat_reply": (BIG, 1000),
}
READ_REPLY = (14, 2)  # applied, count; the checksums of two blocks behind
SEAL_ANSWER: dict[str, Any] = {
    "epoch": 4,
    "vote": (3, 12),
    "last": (4, 14),
    "commit": 12,
    "history": [(3, 10), (4, 13)],
    "newest": (4, 13),
    "whole": False,
    "damaged": True,
    "base": (3, 11),
    "tail_from": 12,
    "space_limit": 8 << 20,
    "full": True,
}
CAPABILITY: dict[str, Any] = {
    "volume": (1 << 48) + 2,
    "epoch": 4,
    "writer": BIG,
    "replicas": [(1 << 48) + 1, (1 << 48) + 3],
    "rights": "rw",
    "expires_ms": 1_700_000_000_000,
}
MEMBERS = [("a", "h1:1", True, 0), ("b", "h2:1", False, 9)]
RAFT_ENTRIES = [(5, 11, 0, b""), (5, 12, 1, b"\x81\xa2do\xa5found"), (6, 13, 1, b"")]
# by code: fields in the order of docs/raft.md; the entries and the snapshot are put in by name
RAFT: dict[int, list[Any]] = {
    1: [6, 5, 12, True, False],
    2: [6, True, False],
    3: [6, 10, 5, 9, 77, "entries"],
    4: [6, False, 10, 8, 4, 77],
    5: [6, 78],
    6: [6, 78],
    7: [6, "snapshot", 2, 3, True, b"chunk"],
    8: [6, 2, 4],
    9: [6],
}
SNAPSHOT = (10, 5)  # index, term; with MEMBERS

# -- a raft directory -----------------------------------------------------------------------------------

RAFT_IDENTITY = {"cluster": CLUSTER, "group": "m1", "name": "a"}
RAFT_INSTANCE = "c" * 16
RAFT_LIFE = (4, "d" * 16, "e" * 16, True)
RAFT_HARD_STATE = (6, "b")
RAFT_PINS = {"b": (9, "f" * 16, 2, "1" * 16), "c": (0, "2" * 16, 0, "")}
RAFT_KV = {"counter/id": 3, "volume/0001": {"id": 1, "name": "db", "holder": None}, "x": [b"\x00", True, 1.5]}
RAFT_STAGED = [["k", b"\x01"]]

# -- the replicated states: what was proposed, and every key afterwards ---------------------------------

UID = "3" * 16
V1, R1, R2, R3, V2, R4, R5, R6, R7 = range((1 << 48) + 1, (1 << 48) + 10)
PLACEMENT = [[{"device": f"d{n}", "host": f"h{n}"} for n in (1, 2, 3)]]
HOLDER = {"host": "h9", "pid": 42, "program": "fio"}
METADATA_COMMANDS: list[dict[str, Any]] = [
    {"do": "found", "uid": UID},
    {"do": "admit", "uid": UID},
    {
        "do": "create",
        "request": "r1",
        "name": "db",
        "size": 64 << 20,
        "replicas": 3,
        "durability": "sync",
        "placement": PLACEMENT,
        "created_ms": 1000,
    },
    {"do": "ready", "volume": V1},
    {
        "do": "create",
        "request": "r2",
        "name": "old",
        "size": 1 << 20,
        "replicas": 3,
        "durability": "writeback",
        "placement": PLACEMENT,
        "created_ms": 1001,
    },
    {"do": "ready", "volume": V2},
    {
        "do": "attach",
        "volume": V1,
        "epoch": 0,
        "writer": 77,
        "holder": HOLDER,
        "recovers": False,
        "now_ms": 2000,
    },
    {
        "do": "plan_replacement",
        "volume": V1,
        "group": 0,
        "version": 1,
        "old": R1,
        "device": "d4",
        "host": "h4",
    },
    {"do": "delete", "volume": V2, "epoch": 0, "request": "r3", "name": "old", "now_ms": 3000},
    {"do": "dropped", "volume": V2, "replicas": [R4]},
]
METADATA_LATER: list[dict[str, Any]] = [  # in the log, and not yet in the stored state
    {"do": "resize", "volume": V1, "size": 128 << 20},
    {"do": "detach", "volume": V1, "epoch": 1, "writer": 77, "now_ms": 4000},
]
REGISTRY_COMMANDS: list[dict[str, Any]] = [
    {"op": "join_host", "host": "h1", "labels": {"rack": "r1"}, "address": "10.0.0.1:7000", "http": "x:80"},
    {
        "op": "join_service",
        "service": "metadata",
        "group": "m1",
        "name": "a",
        "address": "h1:1",
        "http": "",
        "uid": UID,
    },
    {
        "op": "start_device",
        "device": DEVICE.hex(),
        "host": "h1",
        "address": "h1:2",
        "capacity": 64 << 20,
        "old_token": "",
        "new_token": "a" * 32,
        "count": 0,
    },
    {"op": "note_counts", "counts": {DEVICE.hex(): ["a" * 32, 30]}},
    {"op": "claim", "name": "db", "kind": "volume", "group": "m1", "id": V1},
    {"op": "claim", "name": "old", "kind": "volume", "group": "m1", "id": V2},
    {"op": "release", "name": "old", "group": "m1", "id": V2},
]
REGISTRY_LATER: list[dict[str, Any]] = [
    {"op": "refuse_device", "device": DEVICE.hex(), "token": "a" * 32, "reason": "an older copy of it runs"},
]
# -- a device -------------------------------------------------------------------------------------------

# replica: what metadata ordered, in the order of the CREATE entry
DEVICE_REPLICAS = {1: [1, 11, 0, "sync", 3], 2: [2, 12, 5, "writeback", 5], 3: [3, 13, 1, "sync", 1]}
# replica 1, in the order of the log; as RECORDS. A checkpoint comes behind LSN 8, LSN 13 stays pending.
DEVICE_RECORDS: list[tuple[int, int, int, int, int, int, int]] = [
    (1, 1, 1, 0, 0, 0, 0),
    (1, 2, 2, 0, 0, 1, 100),
    (1, 3, 2, 0, 1, 1, 101),
    (1, 4, 2, 0, 2, 1, 102),
    (1, 5, 3, 0, 2, 1, 0),
    (1, 6, 2, 3, 1023, 1, 103),
    (1, 7, 2, 5, 0, 1, 110),
    (1, 8, 4, 5, 0, 1, 0),
    (2, 9, 1, 0, 0, 0, 0),
    (2, 10, 2, 0, 0, 1, 200),
    (2, 11, 2, 6, 0, 1, 104),
    (2, 12, 2, 7, 7, 1, 105),
    (2, 13, 2, 8, 0, 1, 106),
]
DEVICE_MOVED = (1, 0, 1, (3,), 101)  # a BLOCKS entry of replica 1, as compaction writes it; as RUNS
DEVICE_COPIED: list[tuple[int, int, int, tuple[int, ...], int]] = [  # of replica 2
    (1, 0, 0, (21, 22), 300),
    (2, 0, 2, (23,), 0),
    (3, 2, 1, (24,), 0),
]
DEVICE_COPY = {"base": (3, 20), "above": 0, "until": (3, 25), "old": (1, 2), "floor": (0, 0)}
# replica -> {(chunk, block): what is there; None: a hole}
DEVICE_BLOCKS: dict[int, dict[tuple[int, int], bytes | None]] = {
    1: {
        (0, 0): block(200),
        (0, 1): block(101),
        (0, 2): None,
        (0, 3): None,
        (3, 1023): block(103),
        (5, 0): None,
        (6, 0): block(104),
        (7, 7): block(105),
        (8, 0): None,
    },
    2: {(0, 0): block(300, 2)[:BLOCK_SIZE], (0, 1): block(300, 2)[BLOCK_SIZE:], (0, 2): None, (2, 0): None},
}
# replica -> epoch, writer, commit, last, history
DEVICE_STATES: dict[int, tuple[int, int, int, int, list[tuple[int, int]]]] = {
    1: (2, 77, 12, 13, [(1, 1), (2, 9)]),
    2: (3, 88, 20, 20, [(3, 20)]),
}
