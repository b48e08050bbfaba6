"""A holder that a recovery has fenced goes on: what waits is issued again, in order, once; never after
another one came to write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from moorage.client import session, succession
from moorage.client.attachment import Attachment
from moorage.client.nodes import NodePool
from moorage.client.succession import Lives, Rest, Succession
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE, Kind
from moorage.wire.errors import AttachmentLost, Fenced, NotFound, Unavailable
from moorage.wire.handshake import Hello

Make = Callable[..., Awaitable[Any]]
both = pytest.mark.parametrize("sync", [True, False])


class Client:
    """``gate``: while it is cleared, metadata does not hear this one."""

    def __init__(self, cluster: Any, writer: int = 77) -> None:
        self.cluster = cluster
        self.writer = writer
        self.gate = asyncio.Event()
        self.gate.set()
        self.noted: list[tuple[int, ...]] = []
        self.pool = NodePool(Hello("client", cluster.secret.cluster, "here", "1"), cluster.secret)

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        if not self.gate.is_set():
            raise Unavailable("metadata is out of reach")
        return await self.cluster.call(method, params, timeout)

    async def attach(self, read_only: bool = False) -> Volume:
        return await Attachment.open(
            self.call,
            self.pool,
            name="db",
            read_only=read_only,
            force=False,
            io_timeout=30.0,
            timeout=5.0,
            open_snapshot=_no_clone,
            holder={},
            succession=None if read_only else Succession(self.writer, (), self.noted.append),
        )


async def recover(cluster: Any) -> None:
    """As by a reader, who finds that nobody holds the volume; it is over when this returns."""
    cluster.held = False
    reader = Client(cluster)
    async with await reader.attach(read_only=True):
        pass
    await reader.pool.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def hold_up(volume: Volume) -> None:
    """Nothing that is written from now on reaches a member in this epoch."""
    for group in volume.groups:
        group.writer.take_batch = lambda replica, bytes_max: None  # type: ignore[attr-defined]


def write(volume: Volume, offset: int, data: bytes) -> asyncio.Task[None]:
    return asyncio.ensure_future(volume.write(offset, data))


def block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK_SIZE // 8)


def written(cluster: Any, data: bytes) -> list[int]:
    """How often each device's log has it."""
    return [
        sum(
            bytes(record.data) == data
            for each in device.replicas.values()
            for record in each.records.values()
        )
        for device in cluster.devices
    ]


def give_room(cluster: Any) -> None:
    for device in cluster.devices:
        device.full = False
        for replica in device.replicas.values():
            replica.core.grant(64 << 20, False)
            replica.drain()


async def stands_once(cluster: Any, *data: bytes) -> None:
    """In the log of a majority (who answers late would get a copy, which these devices cannot take)."""
    for each in data:
        await until(lambda each=each: sum(written(cluster, each)) >= 2)  # type: ignore[misc]
        assert max(written(cluster, each)) == 1


@both
async def test_an_idle_holder_goes_on(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=2, sync=sync)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, b"before")
        await recover(cluster)
        async with asyncio.timeout(5):
            await volume.write(CHUNK_SIZE, b"after")
            assert await volume.read(0, 6) == b"before"
            assert await volume.read(CHUNK_SIZE, 5) == b"after"
            await volume.flush()
        assert volume.epoch == cluster.epoch == 3 and volume.failed is None
        [(first, second)] = client.noted
        assert first == 77 and second == cluster.owner == cluster.writer
        await recover(cluster)  # and again: the one before the last is not named any more
        await volume.write(CHUNK_SIZE, b"later")
        assert volume.epoch == 5 and client.noted[1:] == [(second, cluster.owner)]
        await until(cluster.agrees)
    assert not cluster.held and cluster.calls[-1] == "metadata.detach"
    await client.pool.close()


@both
async def test_what_waits_is_issued_again_in_order(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=2, sync=sync)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, block(1))
        hold_up(volume)
        client.gate.clear()
        writes = [
            write(volume, at * CHUNK_SIZE, block(10 * at + number)) for number in (2, 3) for at in (0, 1)
        ]
        writes.append(write(volume, 100, b"a part"))
        flush = asyncio.ensure_future(volume.flush())
        await recover(cluster)
        await until(lambda: "out of reach" in volume.groups[0].waiting_for())
        writes.append(write(volume, 2 * CHUNK_SIZE, block(4)))  # while it is fenced
        reading = asyncio.ensure_future(volume.read(3 * CHUNK_SIZE, 8))
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in (*writes, reading))
        client.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*writes, flush)
            assert await reading == bytes(8)
        expected = bytearray(block(3))
        expected[100:106] = b"a part"
        assert await volume.read(0, BLOCK_SIZE) == expected
        assert await volume.read(CHUNK_SIZE, BLOCK_SIZE) == block(13)
        assert await volume.read(2 * CHUNK_SIZE, BLOCK_SIZE) == block(4)
        await volume.flush()
        await stands_once(cluster, block(2), block(13))
    await client.pool.close()


@both
async def test_what_the_recovery_found_is_not_issued_again(memory_cluster: Make, sync: bool) -> None:
    """All members have them, only the acknowledgements are lost: they are done, and stand once in the log."""
    cluster = await memory_cluster(groups=1, sync=sync)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, block(1))
        client.gate.clear()
        volume.groups[0].writer.ack = lambda *fields: None  # type: ignore[attr-defined]
        writes = [write(volume, 0, block(number)) for number in (2, 3)]
        flush = asyncio.ensure_future(volume.flush())
        await until(lambda: written(cluster, block(3)) == [1, 1, 1])
        await recover(cluster)
        client.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*writes, flush)
        assert await volume.read(0, BLOCK_SIZE) == block(3)
        await stands_once(cluster, block(2), block(3))
    await client.pool.close()


@both
async def test_nothing_is_issued_again_after_another_came_to_write(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=2, sync=sync)
    client, other = Client(cluster), Client(cluster, 88)
    volume = await client.attach()
    await volume.write(0, block(1))
    hold_up(volume)
    client.gate.clear()
    late = write(volume, 0, block(2))
    await recover(cluster)
    async with await other.attach() as theirs:
        await theirs.write(0, block(3))
    cluster.held = False  # it has gone by the time we ask
    await recover(cluster)
    client.gate.set()
    async with asyncio.timeout(5):
        with pytest.raises(Fenced, match="taken over by other") as raised:
            await late
        assert raised.value.outcome == "unknown"
        with pytest.raises(Fenced):
            await volume.read(0, 8)
        with pytest.raises(Fenced):
            await volume.wait_lost()
    assert written(cluster, block(2)) == [0, 0, 0]
    await volume.detach()
    await client.pool.close()
    await other.pool.close()


@pytest.mark.parametrize("room", ["there", "soon", "none"])
async def test_what_was_acknowledged_and_is_lost_is_issued_again(
    memory_cluster: Make, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writeback: every member loses its power before a flush, the recovery finds nothing of it, but the
    holder has it yet; nobody reads through it before it is there again."""
    cluster = await memory_cluster(groups=2, sync=False)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, block(1))
        await volume.flush()
        for device in cluster.devices:
            device.unsynced = True
        for number in (2, 3):
            for at in (0, 1):
                await volume.write(at * CHUNK_SIZE, block(10 * at + number))
        client.gate.clear()
        addresses = [device.address for device in cluster.devices]
        for device in cluster.devices:
            await device.stop()
            for replica in device.replicas.values():
                replica.lose_unsynced()
        assert not any(written(cluster, block(3)))
        for group in volume.groups:  # it does not come to say it itself
            group.pause("not now")  # type: ignore[attr-defined]
        for device, address in zip(cluster.devices, addresses, strict=True):
            await device.start(address)
            device.full = room != "there"
        if room == "none":
            monkeypatch.setattr(session, "ROOM_S", 0.2)
        await recover(cluster)
        volume._attached._suspect(Fenced("by a member"))  # type: ignore[attr-defined]
        reading = asyncio.ensure_future(volume.read(0, BLOCK_SIZE))
        flush = asyncio.ensure_future(volume.flush())
        client.gate.set()
        if room != "there":
            await asyncio.sleep(0.3)
        async with asyncio.timeout(5):
            if room == "none":
                with pytest.raises(AttachmentLost, match="no room"):
                    await reading
                with pytest.raises(AttachmentLost):
                    await flush
                return
            if room == "soon":
                assert not reading.done() and not flush.done()
                give_room(cluster)
            assert await reading == block(3)
            assert await volume.read(CHUNK_SIZE, BLOCK_SIZE) == block(13)
            await flush
        cores = [each.core for device in cluster.devices for each in device.replicas.values()]
        assert sum(core._durable == core.state.last for core in cores) >= 4, "at a majority of each group"
        await stands_once(cluster, block(3))
    await client.pool.close()


@both
async def test_fenced_again_while_it_goes_on(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=2, sync=sync)
    client = Client(cluster)
    async with await client.attach() as volume:
        hold_up(volume)
        client.gate.clear()
        writes = [write(volume, at * CHUNK_SIZE, block(at)) for at in range(8)]
        await recover(cluster)
        for device in cluster.devices[1:]:
            device.set_mute(True)  # the next epoch does not come to serve
        client.gate.set()
        await until(lambda: volume.epoch == 3)
        client.gate.clear()
        for device in cluster.devices:
            device.set_mute(False)
        cluster.epoch += 1  # a recovery that nobody saw has taken it
        cluster.writer = 1
        await recover(cluster)
        client.gate.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*writes)
        assert volume.epoch > 4
        for at in range(8):
            assert await volume.read(at * CHUNK_SIZE, BLOCK_SIZE) == block(at)
            await stands_once(cluster, block(at))
    await client.pool.close()


async def test_a_detach_while_it_is_fenced(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()
    client.gate.clear()
    await recover(cluster)
    await until(lambda: "out of reach" in volume.groups[0].waiting_for())
    await volume.detach()
    assert not volume._attached._tasks  # type: ignore[attr-defined]
    await client.pool.close()


async def test_a_volume_that_was_deleted(memory_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        if method == "metadata.renew":
            raise Fenced("volume 'db' was deleted", epoch=9, holder=None)
        raise NotFound("volume 'db' does not exist")

    monkeypatch.setattr(cluster, "call", call)
    async with asyncio.timeout(5):
        with pytest.raises(Fenced, match="was deleted"):
            await volume.wait_lost()
    await volume.detach()
    await client.pool.close()


# -- the parts -----------------------------------------------------------------------------------------


async def test_ids_of_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id whose epoch was over at once is not used again; the one that served is named until another one
    does."""
    monkeypatch.setattr(succession, "PAUSE_S", 0.0)
    answers: list[Any] = [Unavailable("away"), Fenced("has ended"), {"epoch": 3}]
    asked: list[dict[str, Any]] = []

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        asked.append(params)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    noted: list[tuple[int, ...]] = []
    said: list[str] = []
    lives = Lives(call, {}, 77, Succession(77, (), noted.append))
    found, writer = await lives.attach(said.append)
    assert found == {"epoch": 3} and said == ["away"]
    first, again, second = (each["writer"] for each in asked)
    assert first == again != second == writer
    assert [each["succeeds"] for each in asked] == [(77,), (77,), (77, first)]
    assert noted == [(77, first), (77, first, second)] and lives.knows(first)
    answers += [Fenced("has ended")] * 20 + [{"epoch": 60}]
    await lives.attach(said.append)
    assert all(each["succeeds"][0] == 77 and len(each["succeeds"]) <= 8 for each in asked[3:])
    lives.serves()
    answers += [Fenced("taken over", epoch=70, holder=None)]
    with pytest.raises(Fenced, match="taken over"):
        await lives.attach(said.append)
    assert asked[-1]["succeeds"] == (asked[-2]["writer"],)


class Log:
    """As much of a writer as is asked."""

    def __init__(self, there: dict[int, bool | None]) -> None:
        self.epoch, self._there = 5, there

    def take_rest(self) -> list[tuple[int, Any, Any]]:
        class Entry:
            kind, chunk, block, count, sums, data = Kind.ZERO, 0, 0, 1, b"", b""

        return [(7, Entry, "seven"), (8, Entry, "eight"), (8, None, "flush"), (9, Entry, None)]

    def recovered(self, epoch: int, lsn: int) -> bool | None:
        assert epoch == 5
        return self._there[lsn]


def test_what_is_left_is_divided_by_the_log() -> None:
    rest = Rest(Log({}))  # type: ignore[arg-type]
    there, again = rest.divide(Log({7: True, 8: False, 9: False}))  # type: ignore[arg-type]
    assert there == ["seven"] and [each[6] for each in again] == ["eight", "flush", None]
    assert [each[0] for each in again] == [Kind.ZERO, 0, Kind.ZERO]
    with pytest.raises(AttachmentLost, match="record 8 of epoch 5"):
        rest.divide(Log({7: True, 8: None, 9: None}))  # type: ignore[arg-type]


async def _no_clone(name: str) -> Volume:
    raise AssertionError(name)
