"""What the benchmark runs at hosts and clients: ``python -m moorage.cli.takeover.probe WHAT ...``.

``write FILE`` appends numbered lines, each synced, and says a number once it is; ``use FILE`` waits until the
file is there, looks at its lines, appends one, syncs it, and says when; ``settle`` waits until any host may
be taken away, and says who leads. Answers are lines of JSON on stdout; times are the boot clock's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LOOK_S = 0.005
PATIENCE_S = 60.0


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def line(number: int) -> bytes:
    return b"%07d\n" % number


def write(path: str) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
    number = 0
    while True:
        number += 1
        os.write(file, line(number))
        os.fsync(file)
        say(number)


def use(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(LOOK_S)
    file = os.open(path, os.O_RDWR)
    content = b""
    while piece := os.read(file, 1 << 20):
        content += piece
    lines = content.split(b"\n")[:-1]
    good = sum(found + b"\n" == line(number) for number, found in enumerate(lines, 1))
    os.write(file, line(len(lines) + 1))
    os.fsync(file)
    say({"usable": time.clock_gettime(time.CLOCK_BOOTTIME), "lines": good, "wrong": len(lines) - good})


async def settle() -> None:
    import moorage
    from moorage.cli.drill.stage import healthy
    from moorage.wire.secret import ClusterSecret
    from moorage.wire.server import connect

    async with await moorage.connect() as cluster:
        view = (await healthy(cluster, PATIENCE_S)).view
        secret = ClusterSecret.load(Path(os.environ["MOORAGE_SECRET_FILE"]))
        leaders = {}
        for row in view["services"]:
            connection = await connect(row["address"], hello=cluster.hello, secret=secret)
            described, _ = await connection.call(f"{row['service']}.describe", {}, timeout=5)
            connection.close()
            await connection.wait_closed()
            leaders[row["service"]] = (described["leader"] or {}).get("name")
    say(leaders)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", path]:
            write(path)
        case ["use", path]:
            use(path)
        case ["settle"]:
            asyncio.run(settle())
