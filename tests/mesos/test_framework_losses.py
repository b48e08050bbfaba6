"""What a network loses between the scheduler and a real master, and offers that are gone when they are used.

Each time all tasks run in the end, none twice; what was written is read back; and when all is given back no
reservation is left, nor was there ever one too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .conftest import MakeMesos
from .deployment import RESOURCES, TASKS, Framework, Json, MakeFramework, settled, volume_of
from .proxy import Fate, Proxy

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def deployed(mesos: MakeMesos, framework: MakeFramework) -> AsyncIterator[tuple[Framework, Proxy]]:
    """A scheduler that has not been started yet; at the end what it has is checked, and given back."""
    cluster = await mesos(agents=3, resources=RESOURCES, agent_timeout=2)
    ours, proxy = framework(cluster), Proxy(cluster.master)
    await proxy.start()
    ours.master = proxy.address
    yield ours, proxy
    await ours.kill()
    await proxy.stop()
    assert len(set(ours.reserved())) == len(ours.reserved()) == TASKS and "" not in ours.reserved()
    await ours.command("release", "--yes")
    assert ours.reserved() == []
    assert [path for path in cluster.directory.glob("agents/*/*/volumes/roles/moorage/*")] == []


def launches(proxy: Proxy) -> list[Json]:
    accepts = [call["accept"] for call in proxy.heard if call["type"] == "ACCEPT"]
    operations = [each for accept in accepts for each in accept["operations"]]
    return [task for each in operations if each["type"] == "LAUNCH" for task in each["launch"]["task_infos"]]


@contextlib.asynccontextmanager
async def held(proxy: Proxy, kind: str) -> AsyncIterator[Any]:
    """Calls of that kind wait inside of it; it gives the first that does."""
    proxy.gate[kind] = asyncio.Event()

    async def first() -> Json | None:
        return proxy.waiting[0] if proxy.waiting else None

    try:
        yield await settled(first, 60)
    finally:
        proxy.gate.pop(kind).set()
        proxy.waiting.clear()


def kill_a_task(ours: Framework, host: str) -> None:
    (pid,) = ours.pids(f"node.{host}.root")
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
async def test_acknowledgements_are_lost(deployed: tuple[Framework, Proxy]) -> None:
    """So the master sends what it has sent once more, and what comes behind it later."""
    ours, proxy = deployed
    seen: Counter[str] = Counter()

    def fate(call: Json) -> Fate:
        if not call["type"].startswith("ACKNOWLEDGE"):
            return "arrives"
        uuid = call[call["type"].lower()]["uuid"]
        seen[uuid] += 1
        return "swallowed" if seen[uuid] == 1 else "arrives"

    proxy.fate = fate
    await ours.start()
    await ours.until_all_run(timeout=120)
    async with volume_of(ours) as (_, volume, data):
        host = ours.agents()[0].host
        kill_a_task(ours, host)
        await ours.until(lambda line: len(line["running"]) == TASKS - 1, 90)
        await ours.until_all_run(timeout=90)
        assert len(launches(proxy)) == TASKS + 1, "nothing was started twice"
        assert bytes(await volume.read(0, len(data))) == data

    async def all_arrived() -> bool:
        return min(seen.values()) > 1

    await settled(all_arrived, 90)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["lost", "unheard"])
async def test_calls_get_lost_or_their_answers(deployed: tuple[Framework, Proxy], fate: Fate) -> None:
    """Of each kind the first one, at the beginning and when a task has to be started again."""
    ours, proxy = deployed
    count: Counter[str] = Counter()

    def fate_of(call: Json) -> Fate:
        count[call["type"]] += 1
        return fate if call["type"] != "SUBSCRIBE" and count[call["type"]] == 1 else "arrives"

    proxy.fate = fate_of
    await ours.start()
    await ours.until_all_run(timeout=120)
    async with volume_of(ours) as (_, volume, data):
        count.clear()
        kill_a_task(ours, ours.agents()[0].host)
        await ours.until(lambda line: len(line["running"]) == TASKS - 1, 90)
        await ours.until_all_run(timeout=120)
        assert bytes(await volume.read(0, len(data))) == data
        assert {"ACCEPT", "ACKNOWLEDGE"} <= count.keys()
    assert len({task["task_id"]["value"] for task in launches(proxy)}) == len(launches(proxy))


@pytest.mark.slow
async def test_offers_are_gone_when_they_are_used(deployed: tuple[Framework, Proxy]) -> None:
    """Rescinded while the call is on its way: of reservations, of a launch, and of an agent that is dead."""
    ours, proxy = deployed
    cluster = ours.cluster
    await ours.start()
    async with held(proxy, "ACCEPT") as call:
        assert call["accept"]["operations"][0]["type"] == "RESERVE"
        for kind in ("DEACTIVATE_AGENT", "REACTIVATE_AGENT"):
            for agent in ours.agents():
                assert cluster.api(kind, {"agent_id": {"value": agent.id}})[0] == 200
    await ours.until_all_run(timeout=90)
    async with volume_of(ours) as (_, volume, data):
        agent = ours.agents()[0]
        kill_a_task(ours, agent.host)
        async with held(proxy, "ACCEPT") as call:
            assert call["accept"]["operations"][0]["type"] == "LAUNCH"
            for kind in ("DEACTIVATE_AGENT", "REACTIVATE_AGENT"):
                assert cluster.api(kind, {"agent_id": {"value": agent.id}})[0] == 200
        await ours.until_all_run(timeout=90)

        kill_a_task(ours, agent.host)
        name = cluster.agent_at(agent.hostname)
        async with held(proxy, "ACCEPT"):
            await asyncio.to_thread(cluster.kill_host, name)

            async def unreachable() -> bool:
                return agent.host not in {each.host for each in ours.agents() if each.active}

            await settled(unreachable)
        await volume.write(1 << 20, data)
        await asyncio.to_thread(cluster.start, name)
        await ours.until_all_run(timeout=120)
        assert bytes(await volume.read(0, 2 << 20)) == 2 * data


@pytest.mark.slow
async def test_every_event_comes_twice(deployed: tuple[Framework, Proxy]) -> None:
    """Offers, too: the second one is used up already."""
    ours, proxy = deployed
    proxy.repeating = True
    await ours.start()
    await ours.until_all_run(timeout=120)
    async with volume_of(ours) as (_, volume, data):
        kill_a_task(ours, ours.agents()[0].host)
        await ours.until(lambda line: len(line["running"]) == TASKS - 1)
        await ours.until_all_run(timeout=90)
        assert bytes(await volume.read(0, len(data))) == data
