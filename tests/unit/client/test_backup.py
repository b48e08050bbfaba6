"""Backups, restores and copies over a cluster of dicts: what they make of a history, and what is left behind
when they fail."""

from __future__ import annotations

import asyncio
import copy
import io
import os
import random
import select
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.client import backup, copying
from moorage.client.transfer import DEPTH
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE
from moorage.wire.errors import (
    Corrupt,
    Fenced,
    Invalid,
    MoorageError,
    NameTaken,
    NoSpace,
    NotFound,
    Unavailable,
)

GROUPS = 2
Blocks = dict[int, tuple[int, bytes | None]]  # LSN, data; None: discarded


def quiet(done: int, size: int) -> None:
    pass


class FakeVolume:
    """What copies and backups use of a volume."""

    block_size = BLOCK_SIZE

    def __init__(self, cluster: FakeCluster, size: int, blocks: Blocks) -> None:
        self.cluster, self.size, self.blocks = cluster, size, blocks
        self.lsn = 0
        self.reading = self.reading_max = 0
        self.flushed = False
        self.fails: MoorageError | None = None
        self.hold: asyncio.Event | None = None

    def group_of(self, offset: int) -> int:
        return offset // CHUNK_SIZE % GROUPS

    async def stamps(self, offset: int) -> tuple[list[int], int]:
        length = min(CHUNK_SIZE, self.size - offset)
        first = offset // BLOCK_SIZE
        await asyncio.sleep(0)
        return [self.blocks.get(first + at, (0, None))[0] for at in range(length // BLOCK_SIZE)], length

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        assert 0 < length <= self.size - offset
        found: list[tuple[int, bool]] = []
        for at in range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE):
            is_hole = self.blocks.get(at, (0, None))[1] is None
            size = found.pop()[0] if found and found[-1][1] == is_hole else 0
            found.append((size + BLOCK_SIZE, is_hole))
        return found

    async def read(self, offset: int, length: int) -> bytes:
        self.reading += 1
        self.reading_max = max(self.reading, self.reading_max)
        await asyncio.sleep(0)
        self.reading -= 1
        if self.fails:
            raise self.fails
        blocks = range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE)
        return b"".join(self.blocks.get(at, (0, None))[1] or bytes(BLOCK_SIZE) for at in blocks)

    async def write(self, offset: int, data: bytes) -> None:
        if self.hold:
            await self.hold.wait()
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        assert offset + len(data) <= self.size
        self.lsn += 1
        for at in range(0, len(data), BLOCK_SIZE):
            self.blocks[(offset + at) // BLOCK_SIZE] = self.lsn, data[at : at + BLOCK_SIZE]

    async def discard(self, offset: int, length: int) -> None:
        await asyncio.sleep(0)
        assert offset + length <= self.size
        self.lsn += 1
        for at in range(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE):
            self.blocks[at] = self.lsn, None

    async def flush(self) -> None:
        self.flushed = True

    async def __aenter__(self) -> FakeVolume:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def content(self) -> dict[int, bytes]:
        return {at: data for at, (_, data) in self.blocks.items() if data is not None}


class FakeCluster:
    def __init__(self) -> None:
        self.hello = SimpleNamespace(cluster="c" * 16)
        self.volumes: dict[str, FakeVolume] = {}
        self.infos: dict[str, dict[str, Any]] = {}
        self.shown: dict[str, FakeVolume] = {}  # by VOLUME@SNAPSHOT
        self.ids = 0
        self.snapshots = self
        self.deletes_fail: MoorageError | None = None
        self.creating: Callable[[], Awaitable[None]] | None = (
            None  # before it is told that something was made
        )
        self.on_attach: Callable[[FakeVolume], None] = lambda volume: None

    def check_here(self, address: object) -> None:
        pass

    async def show(self, name: str) -> Any:
        if name not in self.infos:
            raise NotFound(f"volume {name!r} does not exist")
        info = copy.deepcopy(self.infos[name])
        return SimpleNamespace(**info, to_json=lambda: info)

    async def create_volume(self, name: str, size: int, **how: Any) -> Any:
        if name in self.volumes:
            raise NameTaken(f"there is a volume {name!r}")
        self.ids += 1
        self.volumes[name] = FakeVolume(self, size, {})
        groups = [{}] * how.get("groups", GROUPS)
        self.infos[name] = {
            "name": name,
            "id": self.ids,
            "size": size,
            "snapshots": [],
            **how,
            "groups": groups,
        }
        made = await self.show(name)
        if self.creating:
            await self.creating()
        return made

    async def attach(self, name: str) -> FakeVolume:
        volume = self.shown[name] if "@" in name else self.volumes[name]
        self.on_attach(volume)
        return volume

    async def delete(self, name: str, *, force: bool = False) -> None:
        if self.deletes_fail:
            raise self.deletes_fail
        if "@" in name:
            del self.shown[name]
            volume, _, snapshot = name.partition("@")
            entries = self.infos[volume]["snapshots"]
            entries[:] = [each for each in entries if each["name"] != snapshot]
        else:
            assert force
            del self.volumes[name], self.infos[name]

    async def create(self, name: str, volume: str) -> None:
        """A snapshot."""
        self.ids += 1
        found = self.volumes[volume]
        self.infos[volume]["snapshots"].append(
            {
                "id": self.ids,
                "name": name,
                "state": "ready",
                "created_ms": 1000 * self.ids,
                "lsns": [found.lsn] * GROUPS,
                "size": found.size,
            }
        )
        self.shown[f"{volume}@{name}"] = FakeVolume(self, found.size, dict(found.blocks))
        if self.creating:
            await self.creating()


def faked() -> Any:
    return FakeCluster()


GIVEN = {"replicas": None, "groups": None, "durability": None}


async def made(cluster: Any, *, chunks: int = 3, blocks: int = 8) -> FakeVolume:
    """A volume "db" with something at the beginning of each chunk, and a snapshot of it."""
    size = chunks * CHUNK_SIZE
    await cluster.create_volume("db", size, replicas=3, groups=GROUPS, durability="writeback")
    volume: FakeVolume = cluster.volumes["db"]
    for chunk in range(chunks):
        await volume.write(chunk * CHUNK_SIZE, random.Random(chunk).randbytes(blocks * BLOCK_SIZE))
    await cluster.create("s", "db")
    return volume


async def backed_up(cluster: Any, snapshot: str, since: str = "") -> io.BytesIO:
    stream = io.BytesIO()
    await backup.create(cluster, snapshot, stream, since=since, progress=quiet)
    stream.seek(0)
    return stream


async def restored(cluster: Any, *streams: io.BytesIO, name: str = "new", **given: Any) -> Any:
    size = given.pop("size", None)
    for stream in streams:
        stream.seek(0)
    return await backup.restore(cluster, streams, name, size=size, given=GIVEN | given, progress=quiet)


async def copied(cluster: Any, source: str, size: int | None = None, **given: Any) -> Any:
    return await copying.copy_volume(cluster, source, "new", size=size, given=GIVEN | given, progress=quiet)


# -- contents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_a_chain_gives_each_snapshot_of_any_history(seed: int) -> None:
    rng, cluster = random.Random(seed), faked()
    volume = await made(cluster, chunks=rng.randint(1, 4))
    names, since = ["s"], ""
    chain: list[io.BytesIO] = []
    for number in range(4):
        if number:
            names.append(f"s{number}")
            await cluster.create(names[-1], "db")
        chain.append(await backed_up(cluster, f"db@{names[-1]}", since))
        since = f"db@{names[-1]}"
        for _ in range(rng.randint(0, 8)):
            length = BLOCK_SIZE * rng.choice([1, 2, 300, 1500])
            offset = rng.randrange(0, volume.size, BLOCK_SIZE)
            length = min(length, volume.size - offset)
            if rng.random() < 0.5:
                await volume.write(offset, rng.randbytes(length))
            else:
                await volume.discard(offset, length)
        if rng.random() < 0.3:
            volume.size += CHUNK_SIZE // 2
            cluster.infos["db"]["size"] = volume.size
    for number, name in enumerate(names):
        shown = cluster.shown[f"db@{name}"]
        new = f"new{number}"
        await restored(cluster, *chain[: number + 1], name=new)
        assert (cluster.volumes[new].content(), cluster.volumes[new].size) == (shown.content(), shown.size)
        assert cluster.volumes[new].flushed
        await cluster.delete(new, force=True)
        await copied(cluster, f"db@{name}")
        assert cluster.volumes["new"].content() == shown.content()
        assert None not in [data for _, data in cluster.volumes["new"].blocks.values()], "holes stay holes"
        await cluster.delete("new", force=True)


async def test_an_incremental_one_has_what_changed() -> None:
    cluster = faked()
    volume = await made(cluster)
    await volume.write(5 * BLOCK_SIZE, b"n" * BLOCK_SIZE)
    await volume.discard(CHUNK_SIZE, 2 * BLOCK_SIZE)
    await cluster.create("t", "db")
    found = await backup.show(await backed_up(cluster, "db@t", "db@s"), verify=True)
    assert found.totals is not None
    assert (found.totals.data, found.totals.holes, found.totals.frames) == (BLOCK_SIZE, 2 * BLOCK_SIZE, 2)
    found = await backup.show(await backed_up(cluster, "db@t"))
    assert found.totals is None and found.header.base is None and found.header.durability == "writeback"


async def test_the_new_volume_is_like_the_source_unless_it_is_said() -> None:
    cluster = faked()
    volume = await made(cluster)
    for make in (copied(cluster, "db"), restored(cluster, await backed_up(cluster, "db@s"))):
        found = await make
        assert (found.replicas, len(found.groups), found.durability) == (3, GROUPS, "writeback")
        assert found.size == volume.size
        await cluster.delete("new", force=True)
    other = {"replicas": 1, "groups": 4, "durability": "sync", "size": 2 * volume.size}
    for make in (
        copied(cluster, "db", **other),
        restored(cluster, await backed_up(cluster, "db@s"), **other),
    ):
        found = await make
        assert (found.replicas, len(found.groups), found.durability) == (1, 4, "sync")
        assert found.size == 2 * volume.size
        await cluster.delete("new", force=True)
    small = {"size": volume.size - BLOCK_SIZE}
    for make in (
        copied(cluster, "db", **small),
        restored(cluster, await backed_up(cluster, "db@s"), **small),
    ):
        with pytest.raises(Invalid, match="is too small for contents of"):
            await make
    assert set(cluster.volumes) == {"db"} and set(cluster.shown) == {"db@s"}


async def test_some_pieces_at_once_and_no_more() -> None:
    cluster = faked()
    volume = await made(cluster, chunks=8, blocks=1024)
    shown = cluster.shown["db@s"]
    await copied(cluster, "db@s")
    assert 1 < shown.reading_max <= DEPTH
    shown.reading_max = 0
    await restored(cluster, await backed_up(cluster, "db@s"), name="other")
    assert 1 < shown.reading_max <= DEPTH
    assert cluster.volumes["new"].content() == cluster.volumes["other"].content() == volume.content()


# -- what is refused ------------------------------------------------------------------------------------


async def test_what_cannot_be_compared() -> None:
    cluster = faked()
    await made(cluster)
    await cluster.create("t", "db")
    await cluster.create_volume("other", CHUNK_SIZE, replicas=3, durability="sync")
    await cluster.create("t", "other")
    for snapshot, since, match in [
        ("db@s", "db@s", "db@s is not older than db@s: `moorage snapshot list db`"),
        ("db@t", "other@t", "other@t is not a snapshot of 'db'"),
        ("db@t", "db@u", "has no snapshot 'u'"),
        ("db", "", "'db' is not a snapshot"),
        ("nobody@s", "", "does not exist"),
    ]:
        with pytest.raises(Invalid, match=match):
            await backed_up(cluster, snapshot, since)
    await cluster.volumes["db"].write(0, bytes(BLOCK_SIZE))
    await cluster.create("u", "db")
    with pytest.raises(Invalid, match="db@u is not older than db@t"):
        await backed_up(cluster, "db@t", "db@u")


@pytest.mark.parametrize("gone", ["db@s", "db@t"])
async def test_a_snapshot_that_is_deleted_meanwhile(gone: str) -> None:
    """Also when there is another one of its name by the end. The stream has no trailer."""
    cluster, stream = faked(), io.BytesIO()
    await made(cluster)
    await cluster.create("t", "db")
    volume, _, name = gone.partition("@")

    def on_attach(shown: FakeVolume) -> None:
        cluster.on_attach = lambda volume: None
        for entry in cluster.infos[volume]["snapshots"]:
            if entry["name"] == name:
                entry["id"] += 100

    cluster.on_attach = on_attach
    await cluster.volumes["db"].write(0, bytes(BLOCK_SIZE))
    await cluster.create("u", "db")
    snapshot, since = ("db@s", "") if gone == "db@s" else ("db@u", "db@t")
    with pytest.raises(NotFound, match=f"has no snapshot '{name}'"):
        await backup.create(cluster, snapshot, stream, since=since, progress=quiet)
    stream.seek(0)
    with pytest.raises(Corrupt, match="before the end"):
        await backup.show(stream, verify=True)
    with pytest.raises(NotFound):
        cluster.on_attach = on_attach
        await copied(cluster, gone)
    assert set(cluster.volumes) == {"db"}


# -- failures -------------------------------------------------------------------------------------------


async def test_a_backup_that_is_not_whole_restores_nothing() -> None:
    cluster = faked()
    volume = await made(cluster)
    full = (await backed_up(cluster, "db@s")).getvalue()
    await volume.write(0, bytes(BLOCK_SIZE))
    await cluster.create("t", "db")
    more = (await backed_up(cluster, "db@t", "db@s")).getvalue()
    for raws in ([full[:-1]], [full + b"x"], [full, more[:-1]], [full[:20_000]], [full, more[:100]]):
        with pytest.raises(Corrupt):
            await restored(cluster, *map(io.BytesIO, raws))
        assert set(cluster.volumes) == {"db"}
    with pytest.raises(NameTaken):
        await restored(cluster, io.BytesIO(full), name="db")
    assert cluster.volumes["db"] is volume and volume.content()


async def test_a_failure_leaves_nothing_behind() -> None:
    cluster = faked()
    await made(cluster)
    stream = await backed_up(cluster, "db@s")

    def on_attach(volume: FakeVolume) -> None:
        if volume is cluster.volumes.get("new"):
            volume.fails = NoSpace("no room")

    cluster.on_attach = on_attach
    for make in (copied(cluster, "db"), copied(cluster, "db@s"), restored(cluster, stream)):
        with pytest.raises(NoSpace, match="no room"):
            await make
        assert set(cluster.volumes) == {"db"} and set(cluster.shown) == {"db@s"}
    cluster.shown["db@s"].fails = Unavailable("away")
    with pytest.raises(Unavailable, match="away"):
        await copied(cluster, "db@s")
    with pytest.raises(Unavailable, match="away"):
        await backed_up(cluster, "db@s")
    assert set(cluster.volumes) == {"db"}
    cluster.deletes_fail = Unavailable("nobody answers")
    with pytest.raises(
        Unavailable, match=r"not complete, and could not be deleted.*`moorage volume delete new --force`"
    ):
        await restored(cluster, stream)
    await cluster.create_volume("new2", CHUNK_SIZE)
    cluster.on_attach = lambda volume: None
    with pytest.raises(
        Unavailable, match=r"db@copy-\w{8}, which was made for this copy, could not be deleted"
    ):
        await copying.copy_volume(cluster, "db", "third", size=None, given=GIVEN, progress=quiet)


async def test_the_volume_of_somebody_else_is_not_deleted() -> None:
    """Who deleted ours meanwhile, and has another one of that name."""
    cluster = faked()
    await made(cluster)
    stream = await backed_up(cluster, "db@s")

    def on_attach(volume: FakeVolume) -> None:
        if volume is cluster.volumes.get("new"):
            cluster.infos["new"]["id"] += 1
            volume.fails = Fenced("another process took it over")

    cluster.on_attach = on_attach
    with pytest.raises(Fenced):
        await restored(cluster, stream)
    assert set(cluster.volumes) == {"db", "new"}
    del cluster.volumes["new"], cluster.infos["new"]

    def gone(volume: FakeVolume) -> None:
        del cluster.infos["new"]
        volume.fails = NoSpace("full")

    cluster.on_attach = gone
    with pytest.raises(NoSpace):
        await restored(cluster, stream)


@pytest.mark.parametrize("source", ["db", "db@s"])
async def test_who_is_cancelled_leaves_nothing_behind(source: str) -> None:
    """At any moment: also while the snapshot or the volume is being created."""
    cluster = faked()
    await made(cluster)
    stream = await backed_up(cluster, "db@s")
    for steps in range(0, 60):
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def creating(begun: asyncio.Event = begun, goes_on: asyncio.Event = goes_on) -> None:
            begun.set()
            await goes_on.wait()

        cluster.creating = creating if steps % 2 else None
        work = copied(cluster, source) if steps % 4 < 2 else restored(cluster, stream)
        task = asyncio.create_task(work)
        for _ in range(steps // 4):
            await asyncio.sleep(0)
        if cluster.creating:
            await begun.wait()
        task.cancel()
        goes_on.set()
        try:
            await task
        except asyncio.CancelledError:
            assert set(cluster.volumes) == {"db"}
        else:
            await cluster.delete("new", force=True)
        assert set(cluster.shown) == {"db@s"}


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "backup"]


@pytest.fixture
def pipe() -> Iterator[tuple[Any, Any]]:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as output, open(writer, "wb", buffering=0) as into:
        yield output, into


async def test_a_pipe_that_nobody_fills(pipe: tuple[Any, Any]) -> None:
    """Who is cancelled does not wait for it."""
    reader, writer = pipe
    task = asyncio.create_task(backup.show(reader))
    while not threads():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (thread,) = threads()
    writer.close()
    await asyncio.to_thread(thread.join, 10)
    assert not threads()


async def test_a_pipe_that_nobody_reads(pipe: tuple[Any, Any]) -> None:
    reader, writer = pipe
    cluster = faked()
    await made(cluster, chunks=1, blocks=512)
    task = asyncio.create_task(backup.create(cluster, "db@s", writer, since="", progress=quiet))
    while select.select([], [writer], [], 0)[1]:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (thread,) = threads()
    reader.close()
    await asyncio.to_thread(thread.join, 10)
    assert not threads()
