"""Planned maintenance of a real Mesos: hosts are emptied before it, and used again after it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from .cluster import Cluster
from .conftest import MakeMesos
from .deployment import RESOURCES, TASKS, Framework, Json, MakeFramework, settled, volume_of

pytestmark = pytest.mark.timeout(300)


def machine(cluster: Cluster, name: str) -> Json:
    ip = cluster.agent(name).address.partition(":")[0]
    return {"hostname": ip, "ip": ip}


def plan(cluster: Cluster, *names: str) -> None:
    """All of them are to be down in an hour, for ten minutes; and nobody else."""
    start = {"nanoseconds": time.time_ns() + 3600 * 10**9}
    when = {"start": start, "duration": {"nanoseconds": 600 * 10**9}}
    windows = [{"machine_ids": [machine(cluster, each) for each in names], "unavailability": when}]
    schedule = {"windows": windows if names else []}
    status, text = cluster.api("UPDATE_MAINTENANCE_SCHEDULE", {"schedule": schedule})
    assert status == 200, text


def answer(cluster: Cluster) -> str:
    """What was answered of the one machine that is to be down."""
    text = cluster.api("GET_MAINTENANCE_STATUS")[1]
    (found,) = json.loads(text)["get_maintenance_status"]["status"]["draining_machines"]
    return "".join(each["status"] for each in found.get("statuses", []))


async def drained(connected: Any) -> dict[str, str]:
    """By whom, by host."""
    hosts = (await connected.status())["hosts"]
    return {host: row["drain"]["by"] for host, row in hosts.items() if row["drain"]}


def with_members(ours: Framework) -> Any:
    return next(
        each for each in ours.agents() if {"registry", "metadata"} <= {name.service for name in each.bindings}
    )


@pytest.mark.slow
async def test_a_host_is_empty_before_its_maintenance_and_used_again_after_it(
    mesos: MakeMesos, framework: MakeFramework
) -> None:
    cluster = await mesos(agents=4, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start()
    await ours.until_all_run(TASKS + 1)
    async with volume_of(ours, 4) as (connected, volume, data):
        agent = with_members(ours)
        name = cluster.agent_at(agent.hostname)
        plan(cluster, name)
        await ours.until(lambda line: agent.host in line["maintenance"])
        await settled(lambda: asyncio.to_thread(lambda: answer(cluster) == "DECLINE"))
        await ours.until(lambda line: line["maintenance"] == {agent.host: "it is empty"}, 120)
        await settled(lambda: asyncio.to_thread(lambda: answer(cluster) == "ACCEPT"))
        assert await drained(connected) == {agent.host: "planned maintenance of Mesos"}
        members = {each["host"] for group in (await connected.show("db")).groups for each in group["members"]}
        assert agent.host not in members
        await volume.write(1 << 20, data)

        # The machine goes down and comes back; another scheduler has taken over meanwhile.
        down = {"machines": [machine(cluster, name)]}
        assert cluster.api("START_MAINTENANCE", down)[0] == 200
        await ours.until(lambda line: not [each for each in line["running"] if agent.host in each])
        await volume.write(2 << 20, data)
        await ours.kill()
        await ours.start()
        await ours.until(lambda line: line["maintenance"] == {agent.host: "it is empty"})
        assert await drained(connected) != {}
        assert cluster.api("STOP_MAINTENANCE", down)[0] == 200
        await settled(lambda: asyncio.to_thread(lambda: not cluster.pid(name)))  # it was told to shut down
        cluster.start(name)
        await ours.until(lambda line: not line["maintenance"])

        async def nobody() -> bool:
            return await drained(connected) == {}

        await settled(nobody)
        await ours.until_all_run(TASKS + 1)
        assert bytes(await volume.read(0, 3 << 20)) == 3 * data
    assert [each.host for each in ours.agents() if "node" not in {i.service for i in each.bindings}] == []


@pytest.mark.slow
async def test_what_cannot_be_emptied_is_said_and_what_an_operator_drains_is_left_to_them(
    mesos: MakeMesos, framework: MakeFramework
) -> None:
    """Of three hosts with three copies nobody can go."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    await ours.start()
    await ours.until_all_run()
    async with volume_of(ours) as (connected, volume, data):
        first = cluster.agent_at(ours.agents()[0].hostname)
        host = ours.agents()[0].host
        plan(cluster, first)
        line = await ours.until(lambda line: "cannot be emptied" in line["maintenance"].get(host, ""))
        assert any(f"{host}, planned maintenance" in problem for problem in line["problems"])
        assert "volume 'db'" in line["maintenance"][host]
        await settled(lambda: asyncio.to_thread(lambda: answer(cluster) == "DECLINE"))
        assert await drained(connected) == {}
        await connected.places.drain("host", host, force=True)
        by = await drained(connected)
        await ours.until(lambda line: "it holds" in line["maintenance"].get(host, ""))
        plan(cluster)
        await ours.until(lambda line: not line["maintenance"])
        await volume.write(1 << 20, data)
        assert await drained(connected) == by and "planned" not in by[host]
        assert bytes(await volume.read(0, 2 << 20)) == 2 * data
    assert len(ours.last["running"]) == TASKS
