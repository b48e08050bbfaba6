"""What an operator does to an agent on purpose: drain, deactivate, plan maintenance, mark gone."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from . import calls
from .conftest import MakeMesos, MakeScheduler
from .scheduler import (
    HOUR,
    Json,
    Scheduler,
    create,
    destroy,
    disk,
    from_agent,
    launch,
    persistent,
    reserve,
)


async def running(framework: Scheduler, name: str, agent_id: Json | None = None) -> Json:
    """Start a task; the id of its agent."""
    offer = await framework.offer(from_agent(agent_id) if agent_id else lambda _: True)
    await framework.accept(offer, launch(framework.task(offer, name, "sleep 1000")), filters=HOUR)
    await framework.update(name, "TASK_RUNNING")
    found: Json = offer["agent_id"]
    return found


async def test_a_drained_agent_has_no_tasks_and_makes_no_offers(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    cluster = await mesos(agents=2)
    framework = await scheduler(cluster.master)
    drained, other = [await running(framework, name) for name in ("a", "b")]
    body = {"agent_id": drained, "max_grace_period": {"seconds": 5}}
    assert cluster.api("DRAIN_AGENT", body)[0] == 200
    status = await framework.update("a", "TASK_KILLED")
    assert status["reason"] == "REASON_AGENT_DRAINING"
    end = time.monotonic() + 10
    while True:
        slaves = calls.get(cluster.master, "/slaves")["slaves"]
        shown = next(each for each in slaves if each["id"] == drained["value"])
        if shown["drain_info"]["state"] == "DRAINED" or time.monotonic() > end:
            break
        await asyncio.sleep(0.05)
    assert (shown["active"], shown["deactivated"], shown["drain_info"]["state"]) == (False, True, "DRAINED")

    await framework.call("REVIVE")
    await framework.offer(from_agent(other))
    with pytest.raises(TimeoutError):
        await framework.offer(from_agent(drained), timeout=1)
    assert cluster.api("REACTIVATE_AGENT", {"agent_id": drained})[0] == 200
    await framework.offer(from_agent(drained))


@pytest.mark.slow
async def test_draining_takes_offers_back(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    assert cluster.api("DRAIN_AGENT", {"agent_id": offer["agent_id"]})[0] == 200
    assert (await framework.wait("RESCIND"))["rescind"]["offer_id"] == offer["id"]


@pytest.mark.slow
async def test_a_deactivated_agent_keeps_its_tasks(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    agent = await running(framework, "a")
    assert cluster.api("DEACTIVATE_AGENT", {"agent_id": agent})[0] == 200
    await framework.call("REVIVE")
    with pytest.raises(TimeoutError):
        await framework.offer(timeout=1)
    await framework.call("RECONCILE", {"tasks": [{"task_id": {"value": "a"}, "agent_id": agent}]})
    assert (await framework.update("a"))["state"] == "TASK_RUNNING"
    assert cluster.api("REACTIVATE_AGENT", {"agent_id": agent})[0] == 200
    await framework.offer()


@pytest.mark.slow
async def test_an_agent_that_runs_can_be_marked_gone(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    agent = await running(framework, "a")
    assert cluster.api("MARK_AGENT_GONE", {"agent_id": agent})[0] == 200
    status = await framework.update("a", "TASK_GONE_BY_OPERATOR")
    assert status["reason"] == "REASON_AGENT_REMOVED_BY_OPERATOR"
    assert (await framework.wait("FAILURE"))["failure"]["agent_id"] == agent


@pytest.mark.slow
async def test_a_drain_can_end_with_gone(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    agent = await running(framework, "a")
    assert cluster.api("DRAIN_AGENT", {"agent_id": agent, "mark_gone": True})[0] == 200
    status = await framework.update("a", "TASK_GONE_BY_OPERATOR")
    assert status["reason"] == "REASON_AGENT_DRAINING"


async def test_the_disks_of_a_gone_agent_come_back_with_a_new_one(
    mesos: MakeMesos, scheduler: MakeScheduler, privileged: None
) -> None:
    cluster = await mesos(mount_disks=("64",))
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    mount = disk(offer, "MOUNT")
    assert mount is not None
    reserved = [framework.reserved(each) for each in (framework.scalar("disk", 16), mount)]
    pairs = zip(reserved, ("data", "m"), strict=True)
    volumes = [framework.volume(each, f"v-{path}", path) for each, path in pairs]
    task = framework.task(offer, "a", "echo 1 > data/x; echo 2 > m/y", *volumes)
    await framework.accept(offer, reserve(*reserved), create(*volumes), launch(task))
    await framework.update("a", "TASK_FINISHED")
    cluster.api("MARK_AGENT_GONE", {"agent_id": offer["agent_id"]})
    end = time.monotonic() + 10
    while cluster.pid("agent1") and time.monotonic() < end:
        await asyncio.sleep(0.02)
    assert not cluster.pid("agent1"), "an agent marked gone ends by itself"

    cluster.start("agent1", new_id=True)
    again = await framework.offer(persistent)
    assert again["agent_id"] != offer["agent_id"]
    assert (await framework.run(again, "b", "cat data/x m/y", *volumes))["state"] == "TASK_FINISHED"
    assert cluster.sandbox("b") == "1\n2\n"
    again = await framework.whole_offer(lambda offer: len(persistent(offer)) == 2)
    assert [state for state, _ in await framework.outcomes(again, destroy(*volumes))] == [
        "OPERATION_FINISHED"
    ]
    places = ("agents/1/work/volumes/roles/storage", "agents/1/disks/d1")
    while any(any((cluster.directory / place).iterdir()) for place in places):
        assert time.monotonic() < end + 10, "DESTROY left the data"
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_maintenance_is_announced(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    await running(framework, "a")
    ip = cluster.agent("agent1").address.partition(":")[0]
    start = {"nanoseconds": time.time_ns() + 3600 * 10**9}
    window = {
        "machine_ids": [{"hostname": ip, "ip": ip}],
        "unavailability": {"start": start, "duration": {"nanoseconds": 600 * 10**9}},
    }
    status, text = cluster.api("UPDATE_MAINTENANCE_SCHEDULE", {"schedule": {"windows": [window]}})
    assert status == 200, text
    event = await framework.wait("INVERSE_OFFERS")
    inverse = event["inverse_offers"]["inverse_offers"][0]
    assert inverse["unavailability"] == window["unavailability"]
    body = {"inverse_offer_ids": [inverse["id"]], "filters": {"refuse_seconds": 60}}
    await framework.call("ACCEPT_INVERSE_OFFERS", body)
    end = time.monotonic() + 10
    while '"ACCEPT"' not in (shown := cluster.api("GET_MAINTENANCE_STATUS")[1]):
        assert time.monotonic() < end, shown
        await asyncio.sleep(0.05)
    (draining,) = json.loads(shown)["get_maintenance_status"]["status"]["draining_machines"]
    assert draining["id"]["ip"] == ip
    await framework.call("REVIVE")
    offer = await framework.whole_offer(lambda offer: "unavailability" in offer)
    assert offer["unavailability"] == window["unavailability"]
