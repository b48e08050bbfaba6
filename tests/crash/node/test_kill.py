"""A process that writes is killed with SIGKILL, again and again: what it was told is durable is there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import BLOCK_SIZE

CAPACITY = 256 << 20

# Says "LSN" on stdout once that record is durable: what the parent has read was acknowledged.
WRITER = """
import asyncio, sys
from pathlib import Path
from moorage.node.store import Store, StoreConfig
from moorage.node.replica import ReplicaInfo
from moorage.quorum.record import Kind, Record, block_sums

async def main():
    store = Store(StoreConfig(Path(sys.argv[1]), b"d" * 16, int(sys.argv[2]), checkpoint_bytes=1 << 20,
                              checkpoint_seconds=0.05))
    report = await store.open()
    assert not report.damaged, report
    loop = asyncio.get_running_loop()
    if 1 not in store.replicas:
        done = loop.create_future()
        store.create(ReplicaInfo(1, 1, 0, "sync", 1), done.set_result)
        await done
    replica = store.replica(1)
    lsn, durable = replica.state.last, asyncio.Event()
    def persisted(ticket):
        print(ticket, flush=True)
        store.apply(replica, ticket)
        durable.set()
    replica.on_persisted = persisted
    print("ready", lsn, flush=True)
    while True:
        for _ in range(8):
            lsn += 1
            data = lsn.to_bytes(8, "little") * 512
            record = Record(1, lsn, Kind.WRITE, 0, lsn % 1000, 1, block_sums(data), data)
            store.append(replica, [record], lsn)
        durable.clear()
        await durable.wait()

asyncio.run(main())
"""


def run_and_kill(directory: Path, lines: int) -> int:
    """Let the writer acknowledge some records, kill it in the middle; the last acknowledged LSN."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(CAPACITY)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline().split()
        assert first and first[0] == "ready"
        acknowledged = int(first[1])
        for _ in range(lines):
            acknowledged = int(process.stdout.readline())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for line in process.stdout.read().splitlines(keepends=True):
        if line.endswith("\n"):  # said before it died
            acknowledged = int(line)
    process.stdout.close()
    return acknowledged


async def check(directory: Path, acknowledged: int) -> None:
    store = Store(StoreConfig(directory, b"d" * 16, CAPACITY))
    report = await store.open()
    try:
        assert not report.damaged
        replica = store.replica(1)
        assert replica.state.last >= acknowledged
        store.apply(replica, replica.state.last)
        for lsn in range(max(1, replica.state.last - 999), replica.state.last + 1):
            got = asyncio.get_running_loop().create_future()
            store.reader.read(replica, 0, lsn % 1000, 1, got.set_result)
            _, data = await got
            assert data == lsn.to_bytes(8, "little") * (BLOCK_SIZE // 8)
    finally:
        await store.close(checkpoint=False)


@pytest.mark.parametrize("rounds", [4, pytest.param(25, marks=pytest.mark.slow)])
async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, rounds: int) -> None:
    for number in range(rounds):
        acknowledged = await asyncio.to_thread(run_and_kill, tmp_path, 5 + number * 17 % 90)
        await check(tmp_path, acknowledged)
