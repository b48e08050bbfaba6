"""Attachments over devices in memory and real sockets: writes, reads, faults, fencing, the end."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from moorage.client import attachment, nodes, reads
from moorage.client.attachment import Attachment
from moorage.client.nodes import NodePool
from moorage.client.session import Shared
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE
from moorage.wire.errors import (
    Corrupt,
    Fatal,
    Fenced,
    Invalid,
    InvariantViolation,
    MoorageError,
    NoQuorum,
    NoSpace,
    ReadOnly,
    ShuttingDown,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.rpc import CallContext

Make = Callable[..., Awaitable[Any]]
STALL_S = 2.0  # below every timeout that a client without quorum writes and second reads would wait for


class Client:
    """One client process: its own pool of connections."""

    def __init__(self, cluster: Any, call: Any = None) -> None:
        self.call = call or cluster.call
        self.pool = NodePool(Hello("client", cluster.secret.cluster, "here", "1"), cluster.secret)

    async def attach(self, timeout: float = 5.0, io_timeout: float = 30.0, read_only: bool = False) -> Volume:
        return await Attachment.open(
            self.call,
            self.pool,
            name="db",
            read_only=read_only,
            force=False,
            io_timeout=io_timeout,
            timeout=timeout,
            open_snapshot=_no_clone,
            holder={},
        )


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def longest_gap(volume: Volume, seconds: float, reads: bool) -> float:
    """Seconds of the slowest of many small operations one after the other."""
    loop = asyncio.get_running_loop()
    end, worst = loop.time() + seconds, 0.0
    while (start := loop.time()) < end:
        if reads:
            await volume.read(random.randrange(16) * CHUNK_SIZE, BLOCK_SIZE)
        else:
            await volume.write(random.randrange(16) * CHUNK_SIZE, b"x" * BLOCK_SIZE)
        worst = max(worst, loop.time() - start)
    return worst


@pytest.mark.parametrize("sync", [True, False])
async def test_a_volume_from_attach_to_detach(memory_cluster: Make, sync: bool) -> None:
    cluster = await memory_cluster(groups=3, sync=sync)
    client = Client(cluster)
    async with await client.attach() as volume:
        data = random.Random(1).randbytes(9 << 20)
        await volume.write(12345, data)
        assert await volume.read(12345, len(data)) == data
        assert await volume.read(0, 4096) == bytes(4096)
        await volume.write(0, b"f" * 4096, fua=True)
        await volume.discard(12345, len(data))
        assert await volume.read(12345, len(data)) == bytes(len(data))
        await volume.write(7, b"again")
        await volume.flush()
        assert all(group["waiting_for"] == "" for group in volume.describe()["groups"])
        await until(cluster.agrees)
    async with await client.attach() as volume:
        assert volume.epoch == 2
        assert await volume.read(7, 5) == b"again"
    assert cluster.calls.count("metadata.detach") == 2
    await client.pool.close()


async def test_a_volume_that_goes_before_its_members_were_asked(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had yet to begin leaves no coroutine behind that nobody has awaited."""
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    spawn = Shared.spawn

    def never(self: Any, work: Any, name: str) -> asyncio.Task[None]:
        task = spawn(self, work, name)
        if " replica " in name:
            task.cancel()
        return task

    with monkeypatch.context() as patched, pytest.raises(MoorageError):
        patched.setattr(Shared, "spawn", never)
        await client.attach(timeout=0.2)
    gc.collect()  # a coroutine that was never awaited fails the test
    await client.pool.close()


async def test_records_of_one_turn_go_out_in_one_message(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        before = cluster.devices[0].appends
        await asyncio.gather(*(volume.write(at * 4096, b"x" * 4096) for at in range(64)))
        assert cluster.devices[0].appends - before <= 8
    await client.pool.close()


async def test_one_dead_and_one_silent_member_cost_nothing(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=4)
    client = Client(cluster)
    async with await client.attach() as volume:
        cluster.devices[1].set_mute(True)
        gaps = [await longest_gap(volume, 0.7, reads) for reads in (True, False)]
        assert max(gaps) < STALL_S, gaps
        cluster.devices[1].set_mute(False)
        address = cluster.devices[1].address
        await cluster.devices[1].stop()
        gaps = [await longest_gap(volume, 0.5, reads) for reads in (True, False)]
        assert max(gaps) < STALL_S, gaps
        await cluster.devices[1].start(address)
        await until(lambda: all(m.session for g in volume.groups for m in g.members))
        await volume.write(0, b"last")
        await until(cluster.agrees)
    await client.pool.close()


async def test_a_device_on_another_port_is_found_again(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await cluster.devices[2].stop()
        await cluster.devices[2].start()
        await until(lambda: all(member.session for member in volume.groups[0].members))
    await client.pool.close()


async def test_without_a_quorum_operations_wait_and_resume(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach(io_timeout=0.4) as volume:
        await volume.write(0, b"before")
        for device in cluster.devices[1:]:
            device.set_mute(True)
        with pytest.raises(NoQuorum) as caught:
            await volume.write(0, b"unknown" + bytes(4089))
        assert caught.value.outcome == "unknown"
        read = asyncio.create_task(volume.read(0, 7))
        write = asyncio.create_task(volume.write(3, b"KNOWN"))
        await until(lambda: "host1 silent for" in volume.groups[0].waiting_for())
        assert volume.groups[0].waiting_for().startswith("waiting for 2 of 3: host1 silent for")
        for device in cluster.devices[1:]:
            device.set_mute(False)
        ended = await asyncio.gather(read, write, return_exceptions=True)
        assert all(error is None or isinstance(error, bytes | NoQuorum) for error in ended), ended
        await until(lambda: not volume.order.active)
        await volume.write(3, b"KNOWN")
        assert await volume.read(0, 8) == b"unkKNOWN"
        await until(cluster.agrees)
    await client.pool.close()


async def test_attach_gives_up_and_says_whom_it_waited_for(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    await cluster.devices[0].stop()
    await cluster.devices[2].stop()
    with pytest.raises(Unavailable, match=r"cannot attach 'db': waiting for 2 of 3: host0 .*host2 "):
        await client.attach(timeout=0.4)
    assert cluster.calls[-1] == "metadata.detach"
    await client.pool.close()


async def test_a_zombie_is_fenced_and_reads_nothing_stale(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=2)
    first, second = Client(cluster), Client(cluster)
    old = await first.attach()
    await old.write(0, b"old")
    new = await second.attach()
    await new.write(0, b"new")
    with pytest.raises(Fenced, match="taken over by other on host9"):
        await old.write(0, b"zombie")
    for attempt in (old.read(0, 3), old.flush(), old.discard(0, 4096)):
        with pytest.raises(Fenced):
            await attempt
    assert await new.read(0, 3) == b"new"
    await old.detach()
    await new.detach()
    await first.pool.close()
    await second.pool.close()


async def test_the_end_reaches_writes_that_wait_for_each_other(memory_cluster: Make) -> None:
    """Writes to parts of one block read it one after the other: no read is left behind at the end."""
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()
    writes = [asyncio.create_task(volume.write(10 * at, b"x")) for at in range(5)]
    await asyncio.sleep(0)
    volume._attached._end(Fenced("taken over"))  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(end) for end in ends] == [Fenced] * 5
    await volume.detach()
    await client.pool.close()


async def test_takeover_of_a_living_holder_in_one_process(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    old = await client.attach()
    new = await client.attach()
    await new.write(0, b"new")
    with pytest.raises(Fenced):
        await old.write(0, b"old")
    await old.detach()
    assert await new.read(0, 3) == b"new"
    await new.detach()
    await client.pool.close()


async def test_metadata_away_stops_no_io(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()
    cluster.metadata_away = True
    calls = len(cluster.calls)
    while len(cluster.calls) < calls + 2:
        await volume.write(0, b"x")
        assert await volume.read(0, 1) == b"x"
    cluster.metadata_away = False
    await volume.detach()
    await client.pool.close()


async def test_a_bad_block_is_read_elsewhere_and_written_again(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        data = random.Random(2).randbytes(64 * BLOCK_SIZE)
        await volume.write(0, data)
        before = cluster.devices[0].records
        for device in cluster.devices[:2]:
            device.flip = {5}
        assert await volume.read(0, len(data)) == data
        await until(lambda: not volume.repairs and cluster.devices[0].records > before)
        for device in cluster.devices:
            device.flip = set()
        assert await volume.read(0, len(data)) == data
        for device in cluster.devices:
            device.flip = {7}
        assert volume.describe()["bad_blocks"] > 0
        with pytest.raises(Corrupt, match="no replica has a good copy of chunk 0, block 7"):
            await volume.read(0, len(data))
        for device in cluster.devices:
            device.flip = set()
        await until(lambda: not volume.repairs)
    await client.pool.close()


async def test_each_copy_is_read_alone(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=2)
    client, beside = Client(cluster), Client(cluster)
    async with await client.attach() as volume, await beside.attach(read_only=True) as reader:
        data = random.Random(2).randbytes(64 * BLOCK_SIZE)
        await volume.write(0, data)
        at = CHUNK_SIZE - 32 * BLOCK_SIZE
        await volume.write(at, data)  # over both groups
        cluster.devices[1].flip = {40}
        for one in (volume, reader):
            with pytest.raises(Corrupt, match="chunk 0, block 40 on host1 is bad"):
                await one.read_from("host1", 0, len(data))
            for host in ("host0", "host2"):
                assert await one.read_from(host, 0, len(data)) == data
            assert await one.read_from("host1", at, len(data)) == data
        cluster.devices[1].flip = set()
        await until(lambda: not volume.repairs)
        assert await volume.read_from("host1", 0, len(data)) == data
        with pytest.raises(Invalid, match="they are on host0, host1, host2"):
            await volume.read_from("host7", 0, BLOCK_SIZE)
        with pytest.raises(Invalid, match="multiples of 4096"):
            await volume.read_from("host1", 0, 7)
        with pytest.raises(Invalid, match="not inside"):
            await volume.read_from("host1", volume.size, BLOCK_SIZE)
        assert await volume.read_from("host1", volume.size, 0) == b""
    for each in (client, beside):
        await each.pool.close()


@pytest.mark.parametrize(
    ("details", "repaired"),
    [
        ({"chunk": 0, "block": 200}, range(200, 256)),
        ({}, range(256)),
        ({"chunk": 1, "block": 200}, range(256)),
        ({"chunk": 0, "block": 256}, range(256)),
        ({"chunk": 0, "block": "x"}, range(256)),
    ],
)
async def test_a_bad_block_far_inside_of_a_large_read_is_repaired(
    memory_cluster: Make, details: dict[str, Any], repaired: range
) -> None:
    """A device refuses the read as a whole, and names the first bad block. What comes before it is good."""
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, bytes([1]) * (1 << 20))
        cluster.devices[1].refuse_reads = Corrupt("does not match its checksum", **details)
        with pytest.raises(Corrupt):
            await volume.read_from("host1", 0, 1 << 20)
        assert volume.repairs == set(repaired)
        await until(lambda: not volume.repairs)
    await client.pool.close()


async def test_a_copy_that_is_away_is_waited_for(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, bytes([7]) * BLOCK_SIZE)
        device = cluster.devices[1]
        address = device.address
        await device.stop()
        waiting = asyncio.create_task(volume.read_from("host1", 0, BLOCK_SIZE))
        assert await volume.read(0, BLOCK_SIZE) == bytes([7]) * BLOCK_SIZE
        await device.start(address)
        assert await waiting == bytes([7]) * BLOCK_SIZE
    await client.pool.close()


async def test_a_read_refused_by_members_goes_to_another(memory_cluster: Make, corrupt: Corrupt) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, b"good")
        cluster.devices[0].refuse_reads = Unavailable("no")
        cluster.devices[1].refuse_reads = corrupt
        for _ in range(5):
            assert await volume.read(0, 4) == b"good"
        cluster.devices[1].refuse_reads = None
        cluster.devices[0].refuse_reads = None
        await until(lambda: not volume.repairs)
    await client.pool.close()


def bound_reads(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(nodes, "READING_MAX", size)
    monkeypatch.setattr(reads, "READING_MAX", size)


async def test_a_large_read_asks_for_no_more_than_a_device_may_queue(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound_reads(monkeypatch, 2 << 20)
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        data = random.Random(3).randbytes(16 << 20)
        await volume.write(0, data)
        before = [member.conn for member in volume.groups[0].members]
        for device in cluster.devices:
            for conn in device.server.connections:
                conn._queue_max = 6 << 20
        assert await volume.read(0, len(data)) == data
        assert [member.conn for member in volume.groups[0].members] == before
        assert not any(member.link.reading for member in volume.groups[0].members)
    await client.pool.close()


@pytest.mark.parametrize("fault", ["gone", "silent"])
async def test_reads_that_wait_for_others_go_elsewhere_when_their_device_is_away(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    bound_reads(monkeypatch, BLOCK_SIZE)
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await volume.write(0, b"x" * (64 * BLOCK_SIZE))
        await volume.read(0, BLOCK_SIZE)
        (asked,) = [index for index, device in enumerate(cluster.devices) if device.reads]
        link = volume.groups[0].members[asked].link
        cluster.devices[asked].set_mute(True)
        waiting = [asyncio.create_task(volume.read(at * BLOCK_SIZE, BLOCK_SIZE)) for at in range(64)]
        await asyncio.sleep(0)
        assert len(link.reads_waiting) == 63
        if fault == "gone":
            link.conn.close()
        async with asyncio.timeout(STALL_S):
            assert await asyncio.gather(*waiting) == [b"x" * BLOCK_SIZE] * 64
        assert not link.reading and not link.reads_waiting
        cluster.devices[asked].set_mute(False)
    await client.pool.close()


async def test_the_end_reaches_reads_that_wait_for_others(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound_reads(monkeypatch, BLOCK_SIZE)
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()
    waiting = [asyncio.create_task(volume.read(0, BLOCK_SIZE)) for _ in range(9)]
    await asyncio.sleep(0)
    volume._attached._end(Fenced("taken over"))  # type: ignore[attr-defined]
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [Fenced] * 9
    links = [member.link for member in volume.groups[0].members]
    assert not any(link.reading or link.reads_waiting for link in links)
    await volume.detach()
    await client.pool.close()


async def test_a_caller_that_fails_in_its_callback_stops_no_clock(memory_cluster: Make) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))

    def careless(error: BaseException | None) -> None:
        raise RuntimeError("a mistake in a caller's callback")

    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach(io_timeout=0.1) as volume:
        for device in cluster.devices:
            device.set_mute(True)
        volume.read_nowait(0, memoryview(bytearray(BLOCK_SIZE)), careless)
        volume.write_nowait(0, memoryview(bytes(BLOCK_SIZE)), careless)
        await until(lambda: len(failures) == 2)
        async with asyncio.timeout(STALL_S):
            for attempt in (volume.read(0, 1), volume.write(0, b"x")):
                with pytest.raises(NoQuorum):
                    await attempt
        for device in cluster.devices:
            device.set_mute(False)
        await until(lambda: not volume.order.active)
    assert {str(context["exception"]) for context in failures} == {"a mistake in a caller's callback"}
    await client.pool.close()


async def test_full_devices_give_enospc_and_recover(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        for device in cluster.devices[:2]:
            device.full = True
        with pytest.raises(NoSpace, match="no room for volume 'db'"):
            async with asyncio.timeout(10):
                while True:
                    await asyncio.gather(*(volume.write(at << 20, b"x" * (1 << 20)) for at in range(32)))
        assert (await volume.read(0, 4096))[:1] in (b"x", b"\0")
        await volume.discard(0, 1 << 20)
        for device in cluster.devices[:2]:
            device.full = False
        async with asyncio.timeout(10):
            while True:
                try:
                    await volume.write(0, b"y" * 4096)
                    break
                except NoSpace:
                    await asyncio.sleep(0.01)
    await client.pool.close()


async def test_read_only_beside_a_writer(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=2)
    writer, reader = Client(cluster), Client(cluster)
    async with await writer.attach() as volume, await reader.attach(read_only=True) as copy:
        await volume.write(0, b"seen")
        await volume.write(CHUNK_SIZE, b"seen")
        async with asyncio.timeout(5):
            while await copy.read(0, 4) != b"seen":
                await asyncio.sleep(0.01)
        with pytest.raises(ReadOnly):
            await copy.write(0, b"x")
        with pytest.raises(ReadOnly):
            await copy.resize(128 << 20)
    await writer.pool.close()
    await reader.pool.close()


async def test_a_reader_hears_of_new_addresses_and_sizes(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "RENEW_S", 0.02)
    cluster = await memory_cluster(groups=2)
    client = Client(cluster)
    copy = await client.attach(read_only=True)
    for device in cluster.devices:
        await device.stop()
        await device.start()
    assert await copy.read(0, 3) == bytes(3)
    cluster.metadata_away = True
    cluster.size = 80 << 20
    calls = len(cluster.calls)
    await until(lambda: len(cluster.calls) > calls)
    cluster.metadata_away = False
    await until(lambda: copy.size == 80 << 20)
    await copy.detach()
    calls = len(cluster.calls)
    await asyncio.sleep(0.2)
    assert len(cluster.calls) == calls and cluster.epoch == 0
    await client.pool.close()


@pytest.mark.parametrize("sync", [True, False])
async def test_read_only_without_a_writer_shows_what_was_acknowledged_last(
    memory_cluster: Make, sync: bool
) -> None:
    """The writer is cut off before it could tell any member that its last writes are committed."""
    cluster = await memory_cluster(groups=2, sync=sync)
    cut_off = False

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        if cut_off:
            raise Unavailable("metadata is out of reach")
        return await cluster.call(method, params, timeout)

    dying, reader = Client(cluster, call), Client(cluster)
    volume = await dying.attach()
    await volume.write(0, b"old")
    await volume.write(CHUNK_SIZE, b"old")
    await until(cluster.agrees)
    acknowledged = asyncio.Event()

    def done(error: BaseException | None) -> None:
        assert error is None
        for session in volume.groups:
            session._send = lambda member: None  # type: ignore[attr-defined]
        acknowledged.set()

    volume.write_nowait(0, memoryview(b"new" + bytes(4093)), done)
    await acknowledged.wait()
    replicas = [device.replicas[at] for at, device in enumerate(cluster.devices, 1)]
    assert not any(data.startswith(b"new") for each in replicas for _, data in each.blocks.values())
    cluster.held, cut_off = False, True
    async with await reader.attach(read_only=True) as copy:
        assert await copy.read(0, 3) == b"new"
        assert await copy.read(CHUNK_SIZE, 3) == b"old"
        assert (copy.epoch, cluster.epoch, cluster.held) == (2, 2, False)
    await until(lambda: volume.groups[0].waiting_for() != "")
    assert "metadata is out of reach" in volume.groups[0].waiting_for()
    for session in volume.groups:
        del session._send  # type: ignore[attr-defined]
    cut_off = False
    await volume.write(0, b"goes on")
    assert volume.epoch == 3
    await volume.detach()
    await dying.pool.close()
    await reader.pool.close()


async def test_a_reader_does_not_see_what_the_recovery_of_the_writer_beside_it_has_lost(
    memory_cluster: Make,
) -> None:
    """In writeback: one member has applied what was lost everywhere else, and only the reader reaches it."""
    cluster = await memory_cluster(groups=1, sync=False)
    dying, writer, reader = Client(cluster), Client(cluster), Client(cluster)
    former = await dying.attach()
    await former.write(0, b"lost")
    await until(cluster.agrees)
    await former.detach()
    forked, *others = cluster.devices
    await forked.stop()
    for identity, device in enumerate(others, 2):
        device.create(identity, sync=False)  # as if nothing had been synced there
    volume = await writer.attach()
    await volume.write(0, b"kept")
    await volume.detach()
    await forked.start()
    cluster.held = True  # that writer is still there, and does not reach it
    commits = {device.replicas[at].core.state.commit for at, device in enumerate(cluster.devices, 1)}
    assert commits == {2}
    async with await reader.attach(read_only=True, io_timeout=0.3) as copy:
        assert await copy.read(0, 4) == b"kept"
        with pytest.raises(NoQuorum):
            await copy.read_from("host0", 0, 4096)
    for client in (dying, writer, reader):
        await client.pool.close()


async def test_a_read_waits_for_a_writer_that_died_before_it_had_begun(
    memory_cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "RENEW_S", 0.05)
    cluster = await memory_cluster(groups=1)
    writer, reader = Client(cluster), Client(cluster)
    volume = await writer.attach()
    await volume.write(0, b"seen")
    await until(cluster.agrees)
    await volume.detach()
    cluster.epoch += 1  # somebody has attached, and died before its first SEAL
    cluster.held = True
    async with await reader.attach(read_only=True) as copy:
        reading = asyncio.create_task(copy.read(0, 4))
        await asyncio.sleep(0.3)
        assert not reading.done()
        cluster.held = False  # its lease is over
        assert await reading == b"seen"
    await writer.pool.close()
    await reader.pool.close()


async def test_read_only_without_a_majority_says_whom_it_waits_for(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    await (await client.attach()).detach()
    for device in cluster.devices[1:]:
        await device.stop()
    with pytest.raises(Unavailable, match="waiting for 2 of 3: host"):
        await client.attach(read_only=True, timeout=1.0)
    await client.pool.close()


async def test_the_holder_hears_of_a_new_size(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        cluster.size = 80 << 20
        await until(lambda: volume.size == 80 << 20)
        await volume.resize("96M")
        assert volume.size == 96 << 20
    await client.pool.close()


async def test_members_hear_what_is_committed_before_the_end(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        await until(lambda: not volume._attached._fast)  # type: ignore[attr-defined]
        await volume.write(0, b"last")
    for index, device in enumerate(cluster.devices, 1):
        assert device.replicas[index].applied == volume.groups[0].writer.commit  # type: ignore[attr-defined]
    await client.pool.close()


async def test_attaching_and_detaching_leaves_nothing(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=2)
    client = Client(cluster)
    for _ in range(20):
        async with await client.attach() as volume:
            await volume.write(0, b"x")
        assert not volume._attached._tasks  # type: ignore[attr-defined]
    await client.pool.close()
    assert not len(client.pool)
    with pytest.raises(ShuttingDown):
        await volume.read(0, 1)
    await until(lambda: len(asyncio.all_tasks()) < 20)


async def test_a_zombie_that_the_seal_did_not_reach_reads_nothing_stale(memory_cluster: Make) -> None:
    """The new holder reaches hosts 0 and 1, the old one only host 2, which still serves it the old bytes.
    Nobody tells the old holder: what keeps it from handing out stale bytes is the end of its read leases
    alone."""
    cluster = await memory_cluster(groups=1)
    told = False

    async def call_of_old(method: str, params: dict[str, Any], timeout: float) -> Any:
        if method == "metadata.renew" and not told:
            raise Unavailable("metadata is away")
        return await cluster.call(method, params, timeout)

    async def call_of_new(method: str, params: dict[str, Any], timeout: float) -> Any:
        result = await cluster.call(method, params, timeout)
        for group in result.get("groups", []):
            group["members"][2]["address"] = "127.0.0.1:1"
        return result

    first, second = Client(cluster, call_of_old), Client(cluster, call_of_new)
    old = await first.attach()
    await old.write(0, b"old")
    for device in cluster.devices[:2]:
        device.set_mute(True)  # the connections that are open now: those of the old holder
    new = await second.attach()
    await new.write(0, b"new")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            assert await old.read(0, 3) == b"new", "a stale read"
    assert await new.read(0, 3) == b"new"
    told = True
    for device in cluster.devices[:2]:
        device.set_mute(False)
    with pytest.raises(Fenced):
        await old.read(0, 3)
    await old.detach()
    await new.detach()
    await first.pool.close()
    await second.pool.close()


async def test_a_heartbeat_sent_before_the_seal_was_answered_promises_nothing(memory_cluster: Make) -> None:
    """It may have reached the device before the SEAL did."""
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    async with await client.attach() as volume:
        member = volume.groups[0].members[0]
        peer = volume.groups[0].writer.peers[member.replica]
        await until(lambda: peer.lease_until_ms > 0)
        peer.lease_until_ms = 0
        member.lease_promised(member.sealed_ms)
        assert peer.lease_until_ms == 0
        member.lease_promised(member.sealed_ms + 1)
        assert peer.lease_until_ms > 0
    await client.pool.close()


@pytest.mark.parametrize("answer", [None, [1, 2], [1, [1, 2, 3, 4], 0, [], [1, 0, 0], 0, 0]])
async def test_a_member_that_answers_nonsense_is_asked_again(memory_cluster: Make, answer: Any) -> None:
    cluster = await memory_cluster(groups=1)
    device, asked = cluster.devices[2], 0

    async def nonsense(context: CallContext, params: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return await device.seal(context, params) if sane else answer

    sane = False
    device.router._methods["node.seal"] = nonsense
    client = Client(cluster)
    async with await client.attach() as volume:
        says = "host2 refuses (host2 answered node.seal with what cannot be understood: "
        await until(lambda: says in volume.groups[0].waiting_for())
        sane = True
        await until(lambda: bool(volume.groups[0].members[2].session))
        assert asked > 1
    await client.pool.close()


async def test_metadata_that_answers_nonsense_stops_no_lease(
    memory_cluster: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "RENEW_S", 0.02)
    cluster = await memory_cluster(groups=1)
    nonsense = 0

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        nonlocal nonsense
        result = await cluster.call(method, params, timeout)
        if method == "metadata.renew" and nonsense < 5:
            nonsense += 1
            result["groups"] = []
        return result

    client = Client(cluster, call)
    async with await client.attach() as volume:
        await until(lambda: nonsense == 5)
        cluster.size = 80 << 20
        await until(lambda: volume.size == 80 << 20)
    assert caplog.text.count("metadata answered what cannot be understood") == 1
    await client.pool.close()


async def test_nonsense_of_metadata_does_not_hide_that_another_is_the_holder(memory_cluster: Make) -> None:
    cluster = await memory_cluster(groups=1)

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        return None if method == "metadata.renew" else await cluster.call(method, params, timeout)

    client, other = Client(cluster, call), Client(cluster)
    old = await client.attach()
    new = await other.attach()
    with pytest.raises(Fenced, match="taken over by other on host9"):
        async with asyncio.timeout(5):
            await old.wait_lost()
    await old.detach()
    await new.detach()
    await client.pool.close()
    await other.pool.close()


@pytest.mark.parametrize("core", ["take_orders", "take_batch", "tick"])
@pytest.mark.parametrize("error", [InvariantViolation, ValueError])
async def test_a_mistake_in_the_core_ends_the_attachment(
    memory_cluster: Make, core: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any) -> Any:
        raise error("a mistake")

    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    cluster = await memory_cluster(groups=2)
    client = Client(cluster)
    volume = await client.attach(io_timeout=0)
    await volume.write(0, b"before")
    monkeypatch.setattr(volume.groups[0].writer, core, breaks)
    async with asyncio.timeout(5):
        [first] = await asyncio.gather(volume.write(0, b"x" * BLOCK_SIZE), return_exceptions=True)
        assert isinstance(first, Fatal) or core == "tick", "it comes before the next tick"
        with pytest.raises(Fatal, match="a mistake"):
            await volume.wait_lost()
        for attempt in (volume.write(0, b"x" * BLOCK_SIZE), volume.flush(), volume.read(0, 1)):
            with pytest.raises(Fatal, match="a mistake"):
                await attempt
    assert [type(context["exception"]) for context in reported] == [error]
    await volume.detach()
    await client.pool.close()


@pytest.mark.parametrize("error", [Fenced("taken over"), ShuttingDown("detached")])
async def test_the_outcome_of_what_was_sent_is_unknown_at_the_end(
    memory_cluster: Make, error: MoorageError
) -> None:
    cluster = await memory_cluster(groups=1)
    client = Client(cluster)
    volume = await client.attach()
    for device in cluster.devices[1:]:
        device.set_mute(True)
    sent = asyncio.create_task(volume.write(0, b"s" * BLOCK_SIZE))
    before = cluster.devices[0].records
    await until(lambda: cluster.devices[0].records > before)
    volume._attached._end(error)  # type: ignore[attr-defined]
    with pytest.raises(type(error), match=error.message) as caught:
        await sent
    assert caught.value.outcome == "unknown"
    with pytest.raises(type(error), match=error.message) as caught:
        await volume.write(0, b"later")
    assert caught.value.outcome == "not_done"
    await volume.detach()
    await client.pool.close()


async def _no_clone(name: str) -> Volume:
    raise AssertionError(name)
