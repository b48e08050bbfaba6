"""A scheduler, an agent or the master goes away and comes back; the tasks run on."""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import pytest

from . import calls
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Refused, Scheduler, launch


async def running(framework: Scheduler, name: str = "long") -> None:
    offer = await framework.offer()
    await framework.accept(offer, launch(framework.task(offer, name, "sleep 1000")))
    await framework.update(name, "TASK_RUNNING")


async def test_the_scheduler_that_subscribed_last_is_heard(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    cluster = await mesos()
    old = await scheduler(cluster.master)
    await running(old)
    new = await scheduler(cluster.master, framework_id=old.id)
    assert new.id == old.id
    assert (await old.wait("ERROR"))["error"]["message"] == "Framework failed over"
    with pytest.raises(Refused, match="400"):
        await old.call("REVIVE")

    known, unknown = {"task_id": {"value": "long"}}, {"task_id": {"value": "nope"}}
    await new.call("RECONCILE", {"tasks": [known, unknown]})
    assert (await new.update("long"))["state"] == "TASK_RUNNING"
    assert (await new.update("nope"))["state"] == "TASK_UNKNOWN"
    await new.call("RECONCILE", {"tasks": []})
    status = await new.update("long")
    assert (status["state"], status["reason"]) == ("TASK_RUNNING", "REASON_RECONCILIATION")
    assert "uuid" not in status


async def test_a_task_outlives_its_scheduler(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master, failover_timeout=30)
    await running(framework)
    await framework.close()
    async with asyncio.timeout(10):
        while (shown := calls.get(cluster.master, "/state")["frameworks"][0])["connected"]:
            await asyncio.sleep(0.05)
    assert not shown["active"] and shown["tasks"][0]["state"] == "TASK_RUNNING"
    framework = await scheduler(cluster.master, framework_id=framework.id)
    await framework.kill("long")
    await framework.update("long", "TASK_KILLED")


@pytest.mark.slow
async def test_after_its_failover_timeout_a_framework_is_gone_and_its_volumes_are_not(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master, failover_timeout=0.5)
    offer = await framework.offer()
    reserved = framework.reserved(framework.scalar("disk", 8))
    await framework.outcomes(offer, {"type": "RESERVE", "reserve": {"resources": [reserved]}})
    await running(framework)
    await framework.close()
    async with asyncio.timeout(10):
        while calls.get(cluster.master, "/state")["frameworks"]:
            await asyncio.sleep(0.05)
    (ended,) = calls.get(cluster.master, "/state")["completed_frameworks"]
    assert ended["completed_tasks"][0]["state"] == "TASK_KILLED"
    with pytest.raises(Refused, match="Framework has been removed"):
        await scheduler(cluster.master, framework_id=framework.id)
    offer = await (await scheduler(cluster.master, name="next")).offer()
    assert reserved in offer["resources"]


@pytest.mark.slow
async def test_a_task_outlives_the_process_of_its_agent(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos(agent_flags=("recovery_timeout=3secs",))
    framework = await scheduler(cluster.master)
    await running(framework)
    await asyncio.sleep(3.1)  # the timeout is for the time without an agent, not for the life of the task
    cluster.kill("agent1")
    await asyncio.sleep(0.5)
    cluster.start("agent1")
    status = {"state": ""}
    while not status["state"]:  # what is said before the executor has found the agent may be lost
        await framework.kill("long")
        with contextlib.suppress(TimeoutError):
            status = await framework.update("long", "TASK_KILLED", "TASK_FAILED", "TASK_LOST", timeout=1)
    assert status["state"] == "TASK_KILLED", status


@pytest.mark.slow
async def test_all_come_back_to_a_master_that_restarts(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos(agents=2, agent_timeout=2)
    framework = await scheduler(cluster.master)
    await running(framework)
    cluster.kill("master")
    await framework.wait("CLOSED")
    cluster.start("master")
    async with asyncio.timeout(20):
        while True:
            try:
                again = await scheduler(cluster.master, framework_id=framework.id)
                break
            except (aiohttp.ClientError, Refused):
                await asyncio.sleep(0.1)
    end = time.monotonic() + 30
    state = ""
    while state != "TASK_RUNNING" and time.monotonic() < end:  # agents notice when no ping comes
        await again.call("RECONCILE", {"tasks": [{"task_id": {"value": "long"}}]})
        try:
            state = (await again.update("long", timeout=1))["state"]
        except TimeoutError:
            state = "no answer"
    assert state == "TASK_RUNNING"
    await again.kill("long")
    await again.update("long", "TASK_KILLED")
