"""Blocks of objects on a device with a disk in memory: written once, discarded for good, fetched."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.node import objects as node_objects
from moorage.node import store as store_module
from moorage.node.memory_disk import MemoryDisk
from moorage.node.objects import ObjectHandlers
from moorage.node.replica import ReplicaInfo
from moorage.node.segment import Run
from moorage.node.sessions import Sessions
from moorage.node.store import Store, StoreConfig
from moorage.quorum.record import BLOCK_SIZE, block_sums
from moorage.wire.errors import (
    Behind,
    CannotConnect,
    Corrupt,
    Damaged,
    DeadlineExceeded,
    Denied,
    Invalid,
    MoorageError,
    NoReplica,
    NoSpace,
    ProtocolError,
    Stale,
)
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import serve

SEGMENT = 6 << 20
CAPACITY = (8 << 20) + 12 * SEGMENT
SECRET = ClusterSecret("c" * 16, b"k" * 32)
BUCKET, VOLUME = 1, 2


def block(number: int) -> bytes:
    return number.to_bytes(4, "big") * (BLOCK_SIZE // 4)


def blocks(first: int, count: int) -> bytes:
    return b"".join(block(number) for number in range(first, first + count))


class Rig:
    """One device with a replica of a bucket, and one of a volume."""

    def __init__(self, directory: Path, name: str = "d1", capacity: int = CAPACITY) -> None:
        self.directory = directory
        self.directory.mkdir(exist_ok=True)
        self.name = name
        self.capacity = capacity
        self.disk = MemoryDisk()
        self.store: Store
        self.ordered = True

    async def open(self) -> None:
        never = {"checkpoint_seconds": 1e9, "checkpoint_bytes": 1 << 40}
        config = StoreConfig(self.directory, b"0" * 16, self.capacity, SEGMENT, **never)  # type: ignore[arg-type]
        self.store = Store(config, self.disk)
        await self.store.open()
        self.sessions = Sessions(self.store, SimpleNamespace(begin=None, end=lambda _: None))  # type: ignore[arg-type]
        self.sessions.load()
        self.hello = Hello("node", SECRET.cluster, "h1", secrets.token_hex(8), {"device": self.name})
        self.handlers = ObjectHandlers(
            self.store, self.sessions, self.hello, SECRET, self._check_order, lambda: None
        )

    def _check_order(self, context: CallContext, params: dict[str, Any]) -> None:
        if not self.ordered:
            raise Denied("only metadata orders")

    async def create(self, identity: int, durability: str) -> None:
        done: asyncio.Future[MoorageError | None] = asyncio.get_running_loop().create_future()
        self.store.create(ReplicaInfo(identity, identity, 0, durability, 3), done.set_result)
        assert await done is None
        self.sessions.created(self.store.replica(identity))

    async def reopen(self, checkpoint: bool) -> None:
        if checkpoint:
            await self.store.checkpoint()
        await self.store.close(checkpoint=False)
        await self.open()

    # -- calls --------------------------------------------------------------------------------------------

    async def put(self, chunk: int, at: int, data: bytes, sums: bytes | None = None) -> None:
        params = {"replica": BUCKET, "chunk": chunk, "block": at}
        params["sums"] = block_sums(data) if sums is None else sums
        context: Any = SimpleNamespace(payload=memoryview(data))
        assert await self.handlers.put_blocks(context, params) == {}

    async def read(self, chunk: int, at: int, count: int = 1) -> bytes:
        params = {"replica": BUCKET, "chunk": chunk, "block": at, "blocks": count}
        result = await self.handlers.read_blocks(self.context, params)
        (data,) = result.payload
        assert block_sums(bytes(data)) == result.value
        return bytes(data)

    async def lacking(self, *pieces: list[int]) -> list[list[int]]:
        answer = await self.handlers.lacking_blocks(self.context, {"replica": BUCKET, "pieces": list(pieces)})
        found: list[list[int]] = answer["lacking"]
        return found

    async def mended(self, damage: str) -> None:
        assert await self.handlers.mended_blocks(self.context, {"replica": BUCKET, "damage": damage}) == {}

    async def discard(self, *pieces: list[int], regions: Any = ()) -> None:
        params = {"replica": BUCKET, "pieces": list(pieces), "regions": regions}
        assert await self.handlers.discard_blocks(self.context, params) == {}

    async def fetch(self, sources: list[dict[str, Any]], *pieces: list[int]) -> dict[str, Any]:
        params = {"replica": BUCKET, "sources": sources, "pieces": list(pieces)}
        answer: dict[str, Any] = await self.handlers.fetch_blocks(self.context, params)
        return answer

    @property
    def context(self) -> Any:
        return SimpleNamespace(payload=memoryview(b""))


@pytest.fixture(autouse=True)
def trusted_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the index in a process of its own takes longer than all that is tried here."""

    async def nothing(path: Path) -> None:
        pass

    monkeypatch.setattr(store_module, "check_index", nothing)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "d1")
    await rig.open()
    await rig.create(BUCKET, "objects")
    await rig.create(VOLUME, "sync")
    yield rig
    await rig.store.close(checkpoint=False)


# -- damaged -----------------------------------------------------------------------------------------------


async def damage_of(rig: Rig) -> str:
    with pytest.raises(Damaged) as raised:
        await rig.lacking()
    return str(raised.value.details["damage"])


def whole(rig: Rig) -> bool:
    return rig.sessions.find(BUCKET).core.whole


async def test_what_is_damaged_is_mended_of_that_damage(rig: Rig) -> None:
    rig.store.fold.damage(rig.store.replica(BUCKET), "a page is gone")
    damage = await damage_of(rig)
    assert not whole(rig)
    await rig.mended(damage)
    assert await rig.lacking() == [] and whole(rig)
    await rig.reopen(checkpoint=False)
    assert await rig.lacking() == [] and whole(rig)
    await rig.mended("")  # asked again


@pytest.mark.parametrize("again", [True, False])
async def test_damage_that_comes_while_it_is_looked_through_is_not_forgotten(rig: Rig, again: bool) -> None:
    """Nor what another life of the node finds."""
    rig.store.fold.damage(rig.store.replica(BUCKET), "a page is gone")
    await rig.store.checkpoint()  # which says so
    looked = await damage_of(rig)
    if again:
        rig.store.fold.damage(rig.store.replica(BUCKET), "another page is gone")
    else:
        await rig.reopen(checkpoint=True)
    with pytest.raises(Stale, match="damaged again"):
        await rig.mended(looked)
    await rig.mended(await damage_of(rig))
    assert await rig.lacking() == []


# -- written once ------------------------------------------------------------------------------------------


async def test_blocks_are_read_as_they_were_put_also_after_a_restart(rig: Rig) -> None:
    await rig.put(3, 1020, blocks(0, 4))
    await rig.put(5, 0, blocks(4, 256))
    for checkpoint in (False, True, False):
        assert await rig.read(3, 1020, 4) == blocks(0, 4)
        assert await rig.read(5, 100, 7) == blocks(104, 7)
        assert await rig.lacking([3, 1020, 4], [5, 0, 256], [5, 0, 257], [3, 1019, 2], [4, 0, 1]) == [
            [5, 0, 257],
            [3, 1019, 2],
            [4, 0, 1],
        ]
        await rig.reopen(checkpoint)


async def test_a_put_may_be_repeated_and_may_not_change_anything(rig: Rig) -> None:
    await rig.put(0, 0, blocks(0, 3))
    await rig.put(0, 0, blocks(0, 3))
    await rig.put(0, 2, blocks(2, 2))
    for at, data in ((0, block(9)), (2, blocks(1, 5)), (3, block(2))):
        with pytest.raises(Invalid, match="written once"):
            await rig.put(0, at, data)
    assert await rig.read(0, 0, 4) == blocks(0, 4)
    with pytest.raises(Behind):
        await rig.read(0, 4)


async def test_of_two_puts_at_once_the_second_is_told(rig: Rig) -> None:
    """Neither sees the other in the index."""
    done = await asyncio.gather(
        rig.put(0, 0, block(1)), rig.put(0, 0, block(2)), rig.put(0, 0, block(1)), return_exceptions=True
    )
    assert [type(each) for each in done] == [type(None), Invalid, type(None)]
    assert await rig.read(0, 0) == block(1)


async def test_blocks_of_zeroes_are_no_holes(rig: Rig) -> None:
    await rig.put(0, 0, bytes(2 * BLOCK_SIZE))
    assert await rig.read(0, 0, 2) == bytes(2 * BLOCK_SIZE)
    assert await rig.lacking([0, 0, 2]) == []


async def test_a_read_of_anything_that_is_not_there_says_so(rig: Rig) -> None:
    await rig.put(0, 1, block(1))
    await rig.put(0, 3, block(3))
    for at, count in ((0, 1), (0, 2), (1, 3), (3, 2)):
        with pytest.raises(Behind, match="does not have all"):
            await rig.read(0, at, count)


@pytest.mark.parametrize(
    ("chunk", "at", "data", "sums"),
    [
        (0, 0, b"", b""),
        (0, 0, block(1), b""),
        (0, 0, block(1), b"1234567"),
        (0, 0, block(1)[1:], bytes(8)),
        (0, 0, block(1), block_sums(blocks(1, 2))),
        (0, 1023, blocks(1, 2), None),
        (0, 1024, block(1), None),
        (-1, 0, block(1), None),
        (1 << 48, 0, block(1), None),
        (0, 0, bytes(257 * BLOCK_SIZE), None),
        ("0", 0, block(1), None),
    ],
)
async def test_puts_that_make_no_sense(
    rig: Rig, chunk: Any, at: int, data: bytes, sums: bytes | None
) -> None:
    with pytest.raises(Invalid):
        await rig.put(chunk, at, data, sums)


async def test_a_block_that_came_damaged_is_to_be_sent_again(rig: Rig) -> None:
    with pytest.raises(ProtocolError, match="send it again"):
        await rig.put(0, 0, blocks(1, 2), block_sums(blocks(1, 1) + block(9)))
    assert await rig.lacking([0, 0, 1]) == [[0, 0, 1]]


async def test_a_replica_of_a_volume_holds_no_objects(rig: Rig) -> None:
    for replica, error in ((VOLUME, Invalid), (77, NoReplica), ("1", Invalid), (None, Invalid)):
        params = {"replica": replica, "chunk": 0, "block": 0, "blocks": 1}
        with pytest.raises(error):
            await rig.handlers.read_blocks(rig.context, params)


async def test_metadata_orders_and_nobody_else(rig: Rig) -> None:
    rig.ordered = False
    with pytest.raises(Denied):
        await rig.discard([0, 0, 1])
    with pytest.raises(Denied):
        await rig.fetch([], [0, 0, 1])


async def test_a_full_device_takes_no_blocks_but_serves_and_discards(rig: Rig) -> None:
    await rig.put(0, 0, block(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.store, "room", lambda: BLOCK_SIZE - 1)
        with pytest.raises(NoSpace):
            await rig.put(0, 1, block(2))
        assert await rig.read(0, 0) == block(1)
        await rig.discard([0, 0, 1])
    assert await rig.lacking([0, 0, 1], [0, 1, 1]) == [[0, 0, 1], [0, 1, 1]]


async def test_what_is_not_written_yet_counts_against_the_room(rig: Rig) -> None:
    room = rig.store.room()
    puts = [asyncio.create_task(rig.put(n, 0, bytes(1 << 20))) for n in range(room // (1 << 20) + 5)]
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(each, NoSpace) for each in done) >= 5
    assert rig.store.failed is None


# -- discarded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, False, True])
async def test_a_discard_wins_over_a_late_put(rig: Rig, checkpoint: bool | None) -> None:
    await rig.put(0, 0, blocks(0, 4))
    await rig.discard([0, 1, 2], [7, 1000, 30], [9, 0, 1024])
    for _ in range(3):
        if checkpoint is not None:
            await rig.reopen(checkpoint)
        for chunk, at in ((0, 1), (0, 2), (7, 1000), (8, 5), (9, 0), (9, 1023)):
            with pytest.raises(Stale, match="were discarded"):
                await rig.put(chunk, at, block(at))
            with pytest.raises(Behind):
                await rig.read(chunk, at)
        with pytest.raises(Stale):
            await rig.put(0, 0, blocks(0, 4))
        assert await rig.read(0, 0) == block(0) and await rig.read(0, 3) == block(3)
        await rig.put(8, 6, block(6))
        await rig.put(7, 999, block(6))


async def test_a_put_that_a_discard_overtakes_is_told(rig: Rig) -> None:
    done = await asyncio.gather(rig.put(0, 0, block(1)), rig.discard([0, 0, 1]), return_exceptions=True)
    assert isinstance(done[0], Stale) and done[1] is None
    assert await rig.lacking([0, 0, 1]) == [[0, 0, 1]]


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_a_region_is_discarded_whole_with_what_was_discarded_in_it(rig: Rig, checkpoint: bool) -> None:
    for number in (0, 63, 64):
        await rig.put(number, 0, blocks(number, 4))
    await rig.discard([0, 0, 2])
    await rig.discard(regions=[[0, 64]])
    for _ in range(2):
        await rig.reopen(checkpoint)
        for chunk in (0, 1, 63):
            with pytest.raises(Stale):
                await rig.put(chunk, 9, block(1))
        assert await rig.lacking([0, 2, 1], [63, 0, 4], [64, 0, 4]) == [[0, 2, 1], [63, 0, 4]]
    assert rig.store.used == 4 * BLOCK_SIZE or not checkpoint


async def test_regions_one_after_the_other_are_one_range(rig: Rig) -> None:
    """They are remembered for ever."""
    for first in (0, 64, 192, 128, 320):
        await rig.discard(regions=[[first, 64]])
    ranges = [(0, 256, 3), (320, 384, 3)]
    assert list(rig.store.replica(BUCKET).table.tombstones) == ranges
    await rig.reopen(True)
    assert list(rig.store.replica(BUCKET).table.tombstones) == ranges


async def test_what_is_discarded_already_is_not_written_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another member is away it is asked for again and again."""
    await rig.put(0, 0, blocks(0, 4))
    pieces = [[0, 0, 4], [5, 1000, 2000], [20, 0, 1024]]
    await rig.discard(*pieces)
    merged: list[Run] = []
    monkeypatch.setattr(
        rig.store, "merge", lambda replica, runs, data, done: merged.extend(runs) or done(None)
    )
    await rig.discard(*pieces)
    assert not merged
    await rig.discard([0, 0, 5])
    assert len(merged) == 1


async def test_many_pieces_are_discarded_in_several_steps(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_objects, "ZEROES_AT_ONCE", 50)
    await rig.put(2, 0, blocks(0, 40))
    await rig.discard(*[[2, at, 1] for at in range(0, 40, 2)], [100, 5, 1 << 16], [3, 0, 49])
    lacking = await rig.lacking(*[[2, at, 1] for at in range(40)])
    assert lacking == [[2, at, 1] for at in range(0, 40, 2)]
    for chunk, at in ((100, 5), (120, 0), (164, 4), (3, 48)):
        with pytest.raises(Stale):
            await rig.put(chunk, at, block(1))
    await rig.put(164, 5, block(1))


@pytest.mark.parametrize(
    "params",
    [
        {"pieces": [[0, 0, 0]]},
        {"pieces": [[0, 0, (1 << 16) + 1]]},
        {"pieces": [[0, 1024, 1]]},
        {"pieces": [[0, 0]]},
        {"pieces": [5]},
        {"pieces": 5},
        {"pieces": [[0, 0, 1]] * 2001},
        {"regions": [[0, 0]]},
        {"regions": [[1 << 48, 1]]},
        {"regions": [["a", 1]]},
        {"regions": {}, "pieces": {}},
    ],
)
async def test_orders_that_make_no_sense(rig: Rig, params: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await rig.handlers.discard_blocks(rig.context, {"replica": BUCKET, **params})


# -- bad blocks --------------------------------------------------------------------------------------------


def rot(rig: Rig, data: bytes) -> None:
    (file,) = [file for file in rig.disk.files.values() if data in file.now]
    file.now[file.now.index(data) + 100] ^= 1


async def test_a_bad_block_is_noticed_lacked_and_fetched_again(rig: Rig, source: Source) -> None:
    await rig.put(0, 0, blocks(0, 3))
    await source.rig.put(0, 0, blocks(0, 3))
    rot(rig, blocks(0, 3))
    with pytest.raises(Corrupt):
        await rig.read(0, 0, 3)
    async with asyncio.timeout(10):
        while not rig.store.scrubber.check(rig.store.replica(BUCKET)).bad:
            await asyncio.sleep(0)
    assert await rig.lacking([0, 0, 3], [0, 1, 2]) == [[0, 0, 3]]
    found = await rig.handlers.lacking_blocks(rig.context, {"replica": BUCKET, "pieces": []})
    assert found == {"lacking": [], "bad": 1}
    assert await rig.fetch([source.place], [0, 0, 3]) == {"left": [], "why": ""}
    assert await rig.read(0, 0, 3) == blocks(0, 3)


# -- fetched from others -------------------------------------------------------------------------------------


class Source:
    """Another device, behind a socket."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.router = Router()
        rig.handlers.register(self.router)

    async def start(self) -> None:
        self.server = await serve("127.0.0.1:0", hello=self.rig.hello, secret=SECRET, endpoint=self.router)

    @property
    def place(self) -> dict[str, Any]:
        return {"address": self.server.address, "device": self.rig.name, "replica": BUCKET}

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()
        await self.router.stop()


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    rig = Rig(tmp_path / "d2", "d2")
    await rig.open()
    await rig.create(BUCKET, "objects")
    source = Source(rig)
    await source.start()
    yield source
    await source.stop()
    await rig.store.close(checkpoint=False)


async def test_pieces_are_fetched_and_what_nobody_has_is_named(rig: Rig, source: Source) -> None:
    await source.rig.put(0, 1000, blocks(0, 24))
    await source.rig.put(1, 0, blocks(24, 256))
    await source.rig.put(1, 256, blocks(280, 256))
    answer = await rig.fetch([source.place], [0, 1000, 300], [2, 0, 1], [1, 500, 12])
    assert answer["left"] == [[2, 0, 1]] and "does not have all" in answer["why"]
    assert await rig.read(0, 1000, 24) == blocks(0, 24)
    assert await rig.read(1, 0, 256) == blocks(24, 256)
    assert await rig.read(1, 500, 12) == blocks(524, 12)
    assert (await rig.fetch([source.place], [0, 1000, 300]))["left"] == [], "may be repeated"


async def test_what_is_there_is_not_fetched_again(
    rig: Rig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that took too long is given again: it must come further each time."""
    await source.rig.put(0, 0, blocks(0, 256))
    await source.rig.put(0, 256, blocks(256, 256))
    await rig.put(0, 0, blocks(0, 256))
    read: list[int] = []
    reading = source.rig.handlers._read

    async def counted(replica: Any, chunk: int, at: int, count: int) -> Any:
        read.append(at)
        return await reading(replica, chunk, at, count)

    monkeypatch.setattr(source.rig.handlers, "_read", counted)
    assert (await rig.fetch([source.place], [0, 0, 512]))["left"] == []
    assert read == [256]
    assert (await rig.fetch([source.place], [0, 0, 512]))["left"] == []
    assert read == [256]


async def test_a_page_of_the_index_that_cannot_be_read_is_lacking(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.put(0, 0, blocks(0, 40))
    sums = rig.store.reader.sums

    def broken(replica: Any, chunk: int, at: int, count: int) -> bytes:
        if at + count > 32:
            raise Corrupt("a page of the index")
        return sums(replica, chunk, at, count)

    monkeypatch.setattr(rig.store.reader, "sums", broken)
    assert await rig.lacking([0, 0, 4], [0, 30, 10], [0, 8, 1]) == [[0, 30, 10]]


async def test_what_is_discarded_here_is_not_brought_back(rig: Rig, source: Source) -> None:
    await source.rig.put(0, 0, blocks(0, 2))
    await rig.discard([0, 1, 1])
    answer = await rig.fetch([source.place], [0, 0, 2])
    assert answer["left"] == [[0, 0, 2]] and "were discarded" in answer["why"]
    assert await rig.lacking([0, 1, 1]) == [[0, 1, 1]]


async def test_without_a_source_that_is_it(rig: Rig, source: Source) -> None:
    await source.rig.put(0, 0, block(0))
    assert "nobody" in (await rig.fetch([], [0, 0, 1]))["why"]
    other = {**source.place, "device": "d7"}
    answer = await rig.fetch([other], [0, 0, 1])
    assert answer["left"] == [[0, 0, 1]] and "is not device d7" in answer["why"]
    assert (await rig.fetch([other, source.place], [0, 0, 1]))["left"] == []
    for sources in ([{"address": 1}], "x", [5]):
        with pytest.raises(Invalid):
            await rig.handlers.fetch_blocks(
                rig.context, {"replica": BUCKET, "sources": sources, "pieces": []}
            )


async def test_a_source_that_is_silent_is_asked_once(
    rig: Rig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order has a minute for many pieces: each of them would wait for five seconds."""
    await source.rig.put(0, 0, blocks(0, 20))
    asked = {"silent": 0, source.place["address"]: 0}
    connect = node_objects.connect

    async def counted(address: str, **more: Any) -> Any:
        asked[address] += 1
        if address == "silent":
            raise CannotConnect("nobody answers")
        return await connect(address, **more)

    monkeypatch.setattr(node_objects, "connect", counted)
    silent = {"address": "silent", "device": "d7", "replica": 9}
    answer = await rig.fetch([silent, source.place], *[[0, at, 1] for at in range(20)])
    assert answer["left"] == [] and asked == {"silent": 1, source.place["address"]: 1}


async def test_a_source_that_hangs_in_the_middle_is_left(
    rig: Rig, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.rig.put(0, 0, blocks(0, 4))
    hanging = 0

    async def read_blocks(context: Any, params: dict[str, Any]) -> Any:
        nonlocal hanging
        hanging += 1
        raise DeadlineExceeded("it hangs")

    slow = Source(source.rig)
    slow.router = Router()
    slow.router.method("node.read_blocks", read_blocks)
    await slow.start()
    answer = await rig.fetch([slow.place | {"replica": 5}, source.place], [0, 0, 1], [0, 1, 1], [0, 2, 2])
    assert answer["left"] == [] and hanging == 1
    await slow.stop()


async def test_garbage_of_a_source_is_not_stored(rig: Rig, source: Source) -> None:
    router = Router()

    async def read_blocks(context: Any, params: dict[str, Any]) -> Any:
        return node_objects.Result(block_sums(block(1)), [block(2)])

    router.method("node.read_blocks", read_blocks)
    bad = Source(source.rig)
    bad.router = router
    await bad.start()
    await source.rig.put(0, 0, block(1))
    answer = await rig.fetch([bad.place], [0, 0, 1])
    assert answer["left"] and "does not match its checksums" in answer["why"]
    assert await rig.lacking([0, 0, 1]) == [[0, 0, 1]]
    assert (await rig.fetch([bad.place | {"replica": 5}, source.place], [0, 0, 1]))["left"] == []
    assert await rig.read(0, 0) == block(1)
    await bad.stop()
