"""A node as its peers see it: sessions, records, reads, leases, copies, restarts."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest

from moorage.quorum.lease import LEASE_MS
from moorage.quorum.member import FENCED, NO_SESSION
from moorage.quorum.record import CHUNKS_MAX, decode_batch
from moorage.wire.errors import (
    Behind,
    ConnectionLost,
    Denied,
    Fenced,
    IdentityConflict,
    Invalid,
    MoorageError,
    NoReplica,
    ShuttingDown,
    Stale,
)
from moorage.wire.frame import APPEND, ONEWAY


def block(number: int, count: int = 1) -> bytes:
    return number.to_bytes(4, "little") * 1024 * count


@pytest.mark.parametrize("durability", ["sync", "writeback"])
async def test_write_and_read(site: Any, durability: str) -> None:
    node = await site.node()
    await site.create(node, durability=durability)
    await site.create(node, durability=durability)  # the order again: nothing changes
    writer = await site.writer(node, epoch=1)
    answer = await writer.seal()
    assert (tuple(answer.last), answer.commit, answer.whole) == ((0, 0), 0, True)
    assert answer.space_limit > 0
    writer.barrier()
    for number in range(50):
        writer.write(number % 3, number, block(number))
    last = writer.write(9, 0, block(99, 256))
    replica, epoch, received, durable, _, _, session, _ = await writer.durable(last)
    assert (replica, epoch, received, durable, session) == (7, 1, last, last, 1)
    writer.notice(commit=last)
    for number in range(50):
        assert await writer.read(number % 3, number) == block(number)
    assert await writer.read(9, 0, 256) == block(99, 256)
    assert await writer.read(9, 256, 4) == bytes(4 * 4096), "never written"
    with pytest.raises(Invalid):
        await writer.read(0, 1000, 25)
    with pytest.raises(Invalid):
        await writer.read(CHUNKS_MAX, 0)
    with pytest.raises(Behind):
        await writer.read(0, 0, lsn=last + 1)


async def test_a_read_of_a_record_that_is_not_synced_yet_waits_for_it(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    writer.barrier()
    for number in range(20):
        lsn = writer.write(0, number, block(number))
        assert await writer.read(0, number, lsn=lsn) == block(number)


async def test_a_node_that_has_stopped_serves_nobody(site: Any) -> None:
    """Its connections may outlast it by a moment: they belong to the process."""
    node = await site.node()
    await site.create(node)
    writer, late = await site.writer(node, epoch=1), await site.writer(node, epoch=2)
    await writer.seal()
    writer.barrier()
    last = writer.write(0, 0, block(1))
    await writer.durable(last)
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    await node.stop_service()
    for refused in (late.read(0, 0), late.seal(), late.call("pull", {}), late.heartbeat()):
        with pytest.raises(ShuttingDown):
            await refused
    writer.write(5, 0, block(2), commit=last)
    await site.until(lambda: writer.conn.closed)
    assert isinstance(writer.conn.close_reason, ShuttingDown)
    assert not failures


async def test_an_order_for_another_volume_under_the_same_id_is_refused(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    other = {"replica": 7, "volume": 2, "group": 0, "durability": "sync", "members": 3}
    with pytest.raises(Invalid, match="replica id 7 is in use"):
        await site.order(node, "create_replica", other)
    with pytest.raises(Invalid, match="of volume 1, not of 2"):
        await site.order(node, "drop_replica", {"replica": 7, "volume": 2})
    assert len(await site.order(node, "list_replicas", {})) == 1


async def test_an_order_of_a_former_leader_is_refused(site: Any) -> None:
    node = await site.node()
    made = {"replica": 7, "volume": 1, "group": 0, "durability": "sync", "members": 3}
    await site.order(node, "create_replica", {**made, "term": 4})
    await site.order(node, "drop_replica", {"replica": 7, "volume": 1, "term": 5})
    with pytest.raises(Stale, match="group m1 is led in term 5, not 4"):
        await site.order(node, "create_replica", {**made, "term": 4})
    await site.order(node, "create_replica", {**made, "replica": 8, "metadata": "m2", "term": 1})
    assert [row["replica"] for row in await site.order(node, "list_replicas", {})] == [8]


async def test_an_order_to_create_what_was_dropped_comes_late(site: Any) -> None:
    """Of the same leader, on another connection: it gave that replica up before it was there."""
    node = await site.node()
    made = {"replica": 7, "volume": 1, "group": 0, "durability": "sync", "members": 3}
    with pytest.raises(NoReplica):
        await site.order(node, "drop_replica", {"replica": 7, "volume": 1})
    with pytest.raises(Stale, match="an order to create it comes late"):
        await site.order(node, "create_replica", made)
    await site.order(node, "create_replica", {**made, "replica": 8})
    await site.order(node, "drop_replica", {"replica": 8, "volume": 1})
    with pytest.raises(Stale, match="comes late"):
        await site.order(node, "create_replica", {**made, "replica": 8})
    assert await site.order(node, "list_replicas", {}) == []


async def test_everything_is_there_after_a_restart(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    writer.barrier()
    for number in range(30):
        last = writer.write(0, number, block(number), commit=max(0, writer.prev[1] - 5))
    await writer.durable(last)
    await writer.close()
    await node.stop()
    await node.start()
    again = await site.writer(node, epoch=2)
    started = asyncio.get_running_loop().time()
    answer = await again.seal()
    waited_ms = (asyncio.get_running_loop().time() - started) * 1000
    assert waited_ms > LEASE_MS / 3, "promises of its former life may still run"
    assert tuple(answer.last) == (1, last) and answer.history == [(1, 1)]
    params = {"from_lsn": answer.commit + 1, "to_lsn": last, "max_bytes": 20_000}
    found = []
    while params["from_lsn"] <= last:
        heads, data = await again.call("tail", params)
        found += decode_batch(heads, data)
        params["from_lsn"] = found[-1].lsn + 1
    assert [record.lsn for record in found] == list(range(answer.commit + 1, last + 1))
    assert bytes(found[-1].data) == block(29)
    barrier = again.barrier()
    await again.durable(barrier)
    again.notice(commit=barrier)
    for number in range(30):
        assert await again.read(0, number, lsn=barrier) == block(number)


async def test_a_higher_epoch_fences(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    old, new = await site.writer(node, epoch=1), await site.writer(node, epoch=2, writer=2)
    await old.seal()
    old.barrier()
    await old.durable(1)
    await new.seal()
    await site.until(lambda: bool(old.nacks))
    assert old.nacks[0][5] == FENCED and old.nacks[0][2] == 2, "told at once, unasked"
    old.write(0, 0, block(1))
    await site.until(lambda: len(old.nacks) > 1)
    with pytest.raises(Fenced):
        await old.read(0, 0, lsn=1)
    with pytest.raises(Fenced):
        await old.seal()
    same = await site.writer(node, epoch=2, writer=3)
    with pytest.raises(Fenced):
        await same.seal()


async def test_a_seal_waits_for_read_leases_unless_released(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    clock = asyncio.get_running_loop().time
    first = await site.writer(node, epoch=1)
    await first.seal()
    await first.heartbeat()
    started = clock()
    second = await site.writer(node, epoch=2, writer=2)
    await second.seal()
    assert clock() - started > LEASE_MS / 1000 * 0.6
    await second.heartbeat()
    await second.call("release", {})
    started = clock()
    third = await site.writer(node, epoch=3, writer=3)
    await third.seal()
    assert clock() - started < LEASE_MS / 1000 * 0.6


async def test_capabilities(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=4)
    for changes in (
        {"epoch": 5},
        {"writer": 9},
        {"replicas": [8]},
        {"rights": "ro"},
        {"expires_ms": 1000},
    ):
        with pytest.raises(Denied):
            await writer.seal(**changes)
    with pytest.raises(Denied):
        await writer.call("seal", {"capability": b"x" * 100})
    await writer.seal()
    await writer.seal(expires_ms=1000)  # it bounds the first use only


async def test_a_device_without_the_replica_says_so(site: Any) -> None:
    node = await site.node()
    writer = await site.writer(node, epoch=1)
    with pytest.raises(NoReplica):
        await writer.seal()
    with pytest.raises(NoReplica):
        await writer.read(0, 0)
    writer.barrier()
    await site.until(lambda: bool(writer.nacks))
    assert writer.nacks[0][5] == NO_SESSION
    with pytest.raises(Denied):
        await site.order(node, "create_replica", {"replica": 7}, service="client")
    await site.create(node)
    await writer.seal()
    await site.order(node, "drop_replica", {"replica": 7, "volume": 1})
    with pytest.raises(NoReplica):
        await writer.read(0, 0)
    with pytest.raises(NoReplica):
        await site.order(node, "drop_replica", {"replica": 7, "volume": 1})
    await node.stop()
    await node.start()
    assert await site.order(node, "list_replicas", {}) == []


async def test_bytes_that_changed_on_the_way_end_the_connection(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    send = writer.conn.send

    def spoil(kind: int, op: int, request_id: int, body: bytes, payload: Any = ()) -> None:
        if (kind, op) == (ONEWAY, APPEND) and payload:
            payload = [b"?" + bytes(payload[0])[1:]]
        send(kind, op, request_id, body, payload)

    writer.conn.send = spoil
    writer.write(0, 0, block(1))
    await site.until(lambda: writer.conn.closed)
    other = await site.writer(node, epoch=1)
    other.session = 1
    assert tuple((await other.seal()).last) == (0, 0)


async def test_copy_from_another_node(site: Any) -> None:
    source, target = await site.node("h1"), await site.node("h2")
    await site.create(source, 1)
    await site.create(target, 2)
    full, late = await site.writer(source, 1, replica=1), await site.writer(target, 1, replica=2)
    await full.seal()
    await late.seal()
    full.barrier()
    late.barrier()
    for number in range(600):
        last = full.write(number % 5, number, block(number, 4))
    await full.durable(last)
    full.notice(commit=last)
    late.notice(commit=1)
    await site.until(lambda: full.acks[-1][4] == last)
    where = {"address": source.address, "device": source.service.device, "replica": 1}
    late.session += 1
    await late.call("copy", {"base": [1, last], "fresh": False, "source": where})
    await site.until(lambda: bool(late.acks) and late.acks[-1][7] & 1 and late.acks[-1][6] == late.session)
    late.prev, late.commit = (1, last), last
    for number in range(600):
        assert await late.read(number % 5, number) == block(number)
    lsn = late.write(0, 0, block(4711))
    await late.durable(lsn)
    with pytest.raises(Stale):
        await late.call("copy", {"base": [1, lsn + 5], "fresh": False, "source": where})
    assert target.store.metrics.copied_bytes >= 600 * 4096


async def test_a_dead_source_is_reported(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    writer.session += 1
    where = {"address": "127.0.0.1:1", "device": "ab" * 16, "replica": 3}
    await writer.call("copy", {"base": [1, 50], "fresh": False, "source": where})
    await site.until(lambda: any(nack[5] == 6 for nack in writer.nacks))


@pytest.mark.parametrize(
    "wrong", [{"base": [1]}, {"base": [-1, -5]}, {"history": 5}, {"history": [5]}, {"floor": [2, "x"]}]
)
async def test_an_order_to_copy_that_makes_no_sense_is_refused(site: Any, wrong: dict[str, Any]) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    where = {"address": "127.0.0.1:1", "device": "ab" * 16, "replica": 3}
    writer.session += 1
    with pytest.raises(Invalid):
        await writer.call("copy", {"base": [1, 50], "fresh": True, "source": where} | wrong)
    assert (await writer.seal()).whole, "the member is as it was"


async def test_a_full_device_grants_nothing_more(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    answer = await writer.seal()
    limit, spent, last = answer.space_limit, 0, writer.barrier()
    for number in range(200):
        cost = 48 + 256 * 8 + (1 << 20)
        if spent + cost > limit:
            limit = await _more_room(site, writer, limit)
            if spent + cost > limit:
                break
        last = writer.write(number // 4, number % 4 * 256, block(number, 256))
        spent += cost
        await writer.durable(last)
        limit = max(limit, writer.acks[-1][5])
        writer.notice(commit=last)
    assert (16 << 20) < spent < (64 << 20)
    assert writer.acks[-1][7] & 2, "and says that it is full"
    assert await writer.read(0, 0, 256, lsn=last) == block(0, 256)


async def _more_room(site: Any, writer: Any, limit: int) -> int:
    """Wait until there is more, or the device says that it is full."""
    await site.until(lambda: writer.acks[-1][5] > limit or writer.acks[-1][7] & 2)
    return int(writer.acks[-1][5])


async def test_a_copy_of_the_directory_is_refused(site: Any) -> None:
    node = await site.node("h1")
    await node.stop()
    shutil.copytree(node.directory, site.directory / "copy")
    await node.start()
    await node.stop()
    from moorage.node.service import NodeService

    original, node.directory = node.directory, site.directory / "copy"
    with pytest.raises(IdentityConflict):
        await node.start()
    await node.stop()
    node.directory = original
    await node.start()
    assert isinstance(node.service, NodeService)


async def test_a_refusal_by_the_registry_is_fatal_and_its_absence_is_not(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    await site.until(lambda: len(site.registry.beats) > 3)
    counts = [beat["count"] for beat in site.registry.beats]
    assert counts == sorted(set(counts))
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    site.registry.server.close()
    await site.registry.server.wait_closed()
    lsn = writer.barrier()
    await writer.durable(lsn)
    await site.registry.start()  # elsewhere: the node does not find it, and does not mind
    assert not node.failures


async def test_a_refused_device_ends(site: Any) -> None:
    node = await site.node()
    site.registry.refusing = True
    await site.until(lambda: bool(node.failures))
    assert isinstance(node.failures[0], IdentityConflict)


async def test_a_failed_device_says_so(site: Any) -> None:
    node = await site.node()
    await site.create(node)
    writer = await site.writer(node, epoch=1)
    await writer.seal()
    writer.barrier()
    await writer.durable(1)
    segment = node.store.log.current

    class Broken:
        def pwritev(self, *_: Any) -> None:
            raise OSError(5, "bad sector")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    broken = Broken()
    broken.file, segment.file = segment.file, broken  # type: ignore[attr-defined]
    writer.write(0, 0, block(1))
    await site.until(lambda: any(beat["failed"] for beat in site.registry.beats))
    with pytest.raises(MoorageError, match="bad sector"):
        await writer.seal()
    assert node.service.not_ready()
    assert not isinstance(writer.conn.close_reason, ConnectionLost)
