"""What the golden files of set 2 say: the notes on the hosts of volumes; otherwise as `values.py`."""

from __future__ import annotations

from typing import Any

# By the file: the path below the state directory, the format, and the fields.
NOTES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mount-record": (
        "0123456789ab/record.json",
        1,
        {
            "id": "0123456789ab",
            "volume": "db",
            "registry": "h1:1,h2:1",
            "secret_file": "/etc/moorage/secret",
            "host": "h9",
            "target": "/data/db",
            "fs": "ext4",
            "options": ["noatime"],
            "read_only": False,
            "force": True,
            "overwrite": False,
            "owner": [1000, 1001],
            "io_timeout": 60.0,
            "wait": 0.0,
            "phase": "mounted",
            "via": "nbd",
            "device": "/dev/nbd0",
            "by": "docker (0123)",
        },
    ),
    "mount-status": (
        "0123456789ab/status.json",
        1,
        {
            "state": "lost",
            "pid": 42,
            "epoch": 7,
            "size": 1 << 30,
            "durability": "sync",
            "writers": [(1 << 63) - 1, 5],
            "clean": False,
            "reason": "held by fio on h8",
            "error": {"code": 32, "message": "epoch 8 has been promised", "details": {"promised": 8}},
            "times": {"starting": 1.5, "lost": 2.25},
        },
    ),
    "table": (
        "table/d8052a88c634cb21952b3318d002909f.json",
        1,
        {
            "target": "/data",
            "what": "moorage:///db?size=1G /data ext4 ro",
            "source": "moorage:///db?size=1G",
            "kind": "ext4",
            "volume": "db",
        },
    ),
    "docker-volume": (
        "docker/volumes/db.json",
        1,
        {"users": ["", "0123"], "options": {"mode": "ro"}, "engines": {"0123": "42 99"}},
    ),
    "docker-known": ("docker/known.json", 2, {"volumes": {"db": [1 << 30, 1000], "format": [4096, 1001]}}),
    "csi": (
        "csi/db.json",
        1,
        {
            "volume": "db",
            "at": "/staging/db",
            "implicit": False,
            "capability": {"mode": 7, "block": False, "fs": "ext4", "flags": ["noatime", "discard"]},
            "context": {"size": "64M"},
            "device": "/dev/nbd0",
            "targets": {
                "/pods/a": {
                    "capability": {"mode": 5, "block": False, "fs": "", "flags": []},
                    "read_only": True,
                    "staging": "/staging/db",
                    "context": {},
                }
            },
        },
    ),
}
# Before there was a field for the format, and what is known was all there was in its file.
WITHOUT_FORMAT: dict[str, dict[str, Any]] = {
    name: fields["volumes"] if name == "docker-known" else fields for name, (_, _, fields) in NOTES.items()
}
