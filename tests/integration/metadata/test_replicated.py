"""A metadata group on its real replication: three members, each with its directory, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from moorage.metadata import records
from moorage.metadata.invariants import validate
from moorage.wire.errors import Busy, Fenced, NameTaken

MEMBERS = ("host1", "host2", "host3")
pytestmark = pytest.mark.timeout(60)


async def until(reached: Any, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not reached():
            await asyncio.sleep(0.01)


@pytest.fixture
async def real(real_cluster: Any) -> AsyncIterator[Any]:
    await until(real_cluster.has_leader)
    yield real_cluster
    for service in real_cluster.services.values():
        validate(service.replicated.kv)


async def renew(real: Any, held: Any, writer: int) -> Any:
    return await real.call("renew", volume=held["volume"]["id"], epoch=held["epoch"], writer=writer)


async def test_life_of_a_volume(real: Any) -> None:
    volume = await real.create("db", groups=2)
    assert volume["state"] == "ready"
    with pytest.raises(NameTaken):
        await real.create("db", request="other")
    held = await real.attach("db", 7)
    assert (await renew(real, held, 7))["size"] == volume["size"]
    with pytest.raises(Busy, match="held by fio"):
        await real.attach("db", 8)
    taken = await real.attach("db", 8, force=True)
    assert taken["epoch"] == 2
    with pytest.raises(Fenced, match="taken over by fio"):
        await renew(real, held, 7)
    assert await real.call("detach", volume=volume["id"], epoch=2, writer=8) == {}
    assert (await real.call("delete_volume", name="db"))["left"] == []
    assert real.replicas() == []


async def test_metrics_are_read_only_while_the_state_is_open(real: Any) -> None:
    registry = CollectorRegistry()
    service = real.leader()
    service.register_metrics(registry)
    assert b"moorage_metadata_leader" in generate_latest(registry)
    await real.stop_member(service.config.name)
    assert b"moorage_metadata_leader" not in generate_latest(registry)


async def test_change_of_leader_during_a_creation(real: Any) -> None:
    real.nodes[0].gate.clear()
    creation = asyncio.create_task(real.create("db", timeout=20))
    await until(lambda: real.nodes[0].waiting)
    old = real.leader().config.name
    await real.stop_member(old)
    real.nodes[0].gate.set()
    assert (await creation)["state"] == "ready"
    assert real.leader().config.name != old
    assert len(real.replicas()) == 3
    await real.restart_member(old)
    volume = (await real.call("show_volume", name="db"))["id"]
    await until(lambda: records.volume_by_id(real.services[old].replicated.kv, volume) is not None)


async def test_change_of_leader_while_attached(real: Any) -> None:
    await real.create("db")
    held = await real.attach("db", 7)
    await real.stop_member(real.leader().config.name)
    with pytest.raises(Busy):
        await real.attach("db", 8, timeout=20)
    assert (await renew(real, held, 7))["lease_ms"] == 2000
    assert (await real.attach("db", 8, force=True))["epoch"] == 2
    with pytest.raises(Fenced):
        await renew(real, held, 7)


async def test_holder_that_went_away_is_followed_when_its_lease_is_over(real: Any) -> None:
    await real.create("db")
    await real.attach("db", 7)
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            held = await real.attach("db", 8)
            break
        except Busy:
            await asyncio.sleep(0.05)
    assert held["epoch"] == 2
    assert 1.5 < loop.time() - began < 6


async def test_everything_is_there_after_all_members_stopped(real: Any) -> None:
    await real.create("db")
    held = await real.attach("db", 7)
    for name in MEMBERS:
        await real.stop_member(name)
    for name in MEMBERS:
        await real.restart_member(name)
    assert (await renew(real, held, 7))["lease_ms"] == 2000
    shown = await real.call("show_volume", name="db")
    assert (shown["epoch"], shown["holder"]["writer"]) == (1, 7)


async def test_deletion_is_resumed_after_all_members_stopped(real: Any) -> None:
    await real.create("db")
    for node in real.nodes:
        node.gate.clear()
    deletion = asyncio.create_task(real.call("delete_volume", name="db"))
    await until(lambda: sum(node.waiting for node in real.nodes) == 3)
    deletion.cancel()
    for name in MEMBERS:
        await real.stop_member(name)
    assert len(real.replicas()) == 3
    for node in real.nodes:
        node.gate.set()
    for name in MEMBERS:
        await real.restart_member(name)
    await until(real.has_leader)
    await until(lambda: not real.replicas() and not real.registry.names)


async def test_without_a_majority_nothing_is_promised(real: Any, tmp_path: Path) -> None:
    await real.create("db")
    await real.attach("db", 7)
    stopped = [name for name in MEMBERS if name != real.leader().config.name]
    for name in stopped:
        await real.stop_member(name)
    with pytest.raises(Exception, match="metadata") as caught:
        await real.attach("db", 8, force=True, timeout=2)
    assert type(caught.value).__name__ in ("DeadlineExceeded", "Unavailable", "NoQuorum")
    for name in stopped:
        await real.restart_member(name)
    await until(real.has_leader)
    shown = await real.call("show_volume", name="db")
    # its outcome was unknown: wholly there, or wholly not
    assert (shown["epoch"], shown["holder"]["writer"]) in ((1, 7), (2, 8))
