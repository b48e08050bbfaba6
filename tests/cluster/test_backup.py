"""Copies and backups of volumes on real hosts: under writers that go on, hosts that die, and interrupts."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from moorage.client.volume import Volume

MIB = 1 << 20
SIZE = 32 * MIB
Awaiting = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.slow


@asynccontextmanager
async def writing(volume: Volume, seed: int = 1) -> AsyncIterator[list[int]]:
    """Writes and discards of all kinds; how many there were."""
    rng, done = random.Random(seed), [0]

    async def run() -> None:
        while True:
            length = rng.choice([1, 4096, 10_000, 65536, 3 * MIB])
            offset = rng.randrange(0, volume.size - length)
            if rng.random() < 0.6:
                offset &= ~4095
            if rng.random() < 0.7:
                await volume.write(offset, rng.randbytes(length))
            else:
                await volume.discard(offset, length)
            done[0] += 1

    tasks = [asyncio.create_task(run()) for _ in range(3)]
    yield done
    for task in tasks:
        assert not task.done(), task
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def some_more(done: list[int], until: Awaiting, count: int = 40) -> None:
    target = done[0] + count

    async def are_there() -> bool:
        return done[0] >= target

    await until(are_there, "the writer goes on")


async def is_same(cluster: moorage.Cluster, name: str, snapshot: str) -> None:
    """Byte for byte, and hole for hole."""
    async with await cluster.attach(name) as volume, await cluster.attach(snapshot) as wanted:
        assert volume.size == wanted.size
        for offset in range(0, volume.size, MIB):
            assert await volume.read(offset, MIB) == await wanted.read(offset, MIB), offset
        holes = await wanted.block_status(0, wanted.size)
        assert await volume.block_status(0, volume.size) == holes and any(is_hole for _, is_hole in holes)


async def test_a_chain_under_a_writer(cluster: moorage.Cluster, until: Awaiting, tmp_path: Path) -> None:
    await cluster.create_volume("db", SIZE, groups=3)
    files = [tmp_path / f"{number}.mob" for number in range(3)]
    async with await cluster.attach("db") as volume, writing(volume) as done:
        await some_more(done, until)
        since = ""
        for number, path in enumerate(files):
            await cluster.snapshots.create(f"s{number}", "db")
            before = done[0]
            with path.open("wb") as stream:
                made = await cluster.backup(f"db@s{number}", stream, since=since)
            assert (made.header.base is None) == (number == 0)
            await some_more(done, until)
            assert done[0] > before
            since = f"db@s{number}"
            if number == 1:
                await volume.resize(SIZE + 8 * MIB)
        for number in range(3):
            streams = [io.BytesIO(path.read_bytes()) for path in files[: number + 1]]
            await cluster.restore(streams, f"new{number}")
            await is_same(cluster, f"new{number}", f"db@s{number}")


async def test_copies_under_a_writer(cluster: moorage.Cluster, until: Awaiting) -> None:
    await cluster.create_volume("db", SIZE, groups=2, durability="writeback")
    async with await cluster.attach("db") as volume, writing(volume) as done:
        await some_more(done, until)
        await cluster.snapshots.create("s", "db")
        info = await cluster.copy_volume("db@s", "same")
        assert (len(info.groups), info.durability, info.replicas) == (2, "writeback", 3)
        await is_same(cluster, "same", "db@s")
        info = await cluster.copy_volume("db", "other", size="40M", replicas=1, groups=1, durability="sync")
        assert (info.size, len(info.groups), info.durability, info.replicas) == (40 * MIB, 1, "sync", 1)
        assert [each.name for each in await cluster.snapshots.list("db")] == ["s"]
        await some_more(done, until)


async def test_clones(cluster: moorage.Cluster, until: Awaiting) -> None:
    """A full backup has what is read from below; an incremental one what was written to the clone."""
    await cluster.create_volume("db", SIZE, groups=2)
    async with await cluster.attach("db") as volume, writing(volume) as done:
        await some_more(done, until)
    await cluster.snapshots.create("s", "db")
    await cluster.create_volume("clone", SIZE, parent="db@s", groups=3)
    async with await cluster.attach("clone") as volume:
        await volume.write(5 * MIB, random.Random(1).randbytes(MIB))
        await cluster.snapshots.create("a", "clone")
        await volume.write(9 * MIB, b"n" * 4096)
        await volume.discard(0, MIB)
        await cluster.snapshots.create("b", "clone")
    full, more = io.BytesIO(), io.BytesIO()
    await cluster.backup("clone@a", full)
    made = await cluster.backup("clone@b", more, since="clone@a")
    assert made.totals is not None and (made.totals.data, made.totals.holes) == (4096, MIB)
    await cluster.copy_volume("clone@b", "copy")
    await is_same(cluster, "copy", "clone@b")
    for stream in (full, more):
        stream.seek(0)
    await cluster.restore([full, more], "new")
    await is_same(cluster, "new", "clone@b")


class Halfway(io.BytesIO):
    """Waits in its middle until it is let go."""

    def __init__(self, raw: bytes = b"") -> None:
        super().__init__(raw)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def _wait(self) -> None:
        if self.tell() > SIZE // 3:
            self.reached.set()
            assert self.go_on.wait(60)

    def write(self, data: Any) -> int:
        self._wait()
        return super().write(data)

    def read(self, size: int | None = -1) -> bytes:
        self._wait()
        return super().read(size)


async def test_a_host_is_killed_in_the_middle(
    cluster: moorage.Cluster, local: LocalCluster, until: Awaiting
) -> None:
    await cluster.create_volume("db", SIZE, groups=2)
    async with await cluster.attach("db") as volume:
        for offset in range(0, SIZE - 4 * MIB, MIB):
            await volume.write(offset, random.Random(offset).randbytes(MIB))
    await cluster.snapshots.create("s", "db")

    async def with_a_dead_host(stream: Halfway, host: int, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        assert await asyncio.to_thread(stream.reached.wait, 60)
        await local.hosts[host].kill()
        stream.go_on.set()
        await task
        await local.hosts[host].launch()
        await local.hosts[host].wait_ready()

    stream = Halfway()
    await with_a_dead_host(stream, 0, cluster.backup("db@s", stream))
    stream = Halfway(stream.getvalue())
    await with_a_dead_host(stream, 1, cluster.restore([stream], "new"))
    await is_same(cluster, "new", "db@s")


async def running(*arguments: str, env: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "moorage.cli.main", *arguments)
    return await asyncio.create_subprocess_exec(*command, env=env, stderr=subprocess.PIPE, **options)


async def interrupt(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 130 and b"Traceback" not in err, err


async def test_an_interrupt_leaves_nothing_behind(
    cluster: moorage.Cluster, environment: dict[str, str], until: Awaiting, tmp_path: Path
) -> None:
    await cluster.create_volume("db", SIZE)
    async with await cluster.attach("db") as volume:
        for offset in range(0, SIZE, MIB):
            await volume.write(offset, random.Random(offset).randbytes(MIB))
    await cluster.snapshots.create("s", "db")
    stream = io.BytesIO()
    await cluster.backup("db@s", stream)
    await cluster.set_volume("db", bw="1M")  # half a minute for each

    async def is_being_written() -> bool:
        info = next((each for each in await cluster.list_volumes() if each.name == "new"), None)
        return info is not None and info.has_writer

    async def is_clean() -> bool:
        return [each.name for each in await cluster.list_volumes()] == ["db"]

    for source in ("db@s", "db"):
        process = await running("volume", "copy", source, "new", env=environment)
        await until(is_being_written, "the copy is under way")
        await interrupt(process)
        assert await is_clean()
        assert [each.name for each in await cluster.snapshots.list("db")] == ["s"]

    process = await running("backup", "restore", "-", "new", env=environment, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(stream.getvalue()[: SIZE // 2])
    await process.stdin.drain()
    await until(is_being_written, "the restore is under way")
    assert not process.stdin.is_closing()
    process.send_signal(signal.SIGINT)  # while it waits for what never comes
    async with asyncio.timeout(30):
        assert await process.wait() == 130
    process.stdin.close()
    assert process.stderr is not None and await process.stderr.read() == b""
    assert await is_clean()

    path = tmp_path / "backups" / "db.mob"
    path.parent.mkdir()
    process = await running("backup", "create", "db@s", str(path), env=environment)

    async def has_begun() -> bool:
        return any(os.stat(each).st_size > MIB for each in path.parent.iterdir())

    await until(has_begun, "the backup is under way")
    assert not path.exists()
    await interrupt(process)
    assert list(path.parent.iterdir()) == []
