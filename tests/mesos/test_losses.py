"""What a framework hears when a host is cut off, dies, reboots or never comes back."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from .cluster import Cluster
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, Scheduler, create, launch, persistent, reserve

pytestmark = pytest.mark.slow  # an agent is given up after more than a second


async def running_on_a_volume(framework: Scheduler) -> tuple[Json, Json]:
    """Start ``a``: (agent id, its volume)."""
    offer = await framework.offer()
    reserved = framework.reserved(framework.scalar("disk", 16))
    volume = framework.volume(reserved, "v")
    task = framework.task(offer, "a", "echo 1 >> data/x; sleep 1000", volume)
    await framework.accept(offer, reserve(reserved), create(volume), launch(task))
    await framework.update("a", "TASK_RUNNING")
    return offer["agent_id"], volume


@pytest.fixture
async def cluster(mesos: MakeMesos) -> Cluster:
    return await mesos(agent_timeout=3)


@pytest.fixture
async def framework(cluster: Cluster, scheduler: MakeScheduler) -> Scheduler:
    return await scheduler(cluster.master)


async def test_a_host_that_is_cut_off_returns_with_its_tasks(cluster: Cluster, framework: Scheduler) -> None:
    agent, _ = await running_on_a_volume(framework)
    await framework.offer()
    cluster.signal("agent1", signal.SIGSTOP)
    status = await framework.update("a")
    assert (status["state"], status["reason"]) == ("TASK_UNREACHABLE", "REASON_AGENT_REMOVED")
    assert "unreachable_time" in status
    await framework.wait("RESCIND")
    assert (await framework.wait("FAILURE"))["failure"]["agent_id"] == agent

    task = {"task_id": {"value": "a"}}
    await framework.call("RECONCILE", {"tasks": [task]})
    assert (await framework.update("a"))["state"] == "TASK_UNKNOWN", "without its agent's id"
    await framework.call("RECONCILE", {"tasks": [{**task, "agent_id": agent}]})
    assert (await framework.update("a"))["state"] == "TASK_UNREACHABLE"
    await framework.kill("a", agent_id=agent)
    assert (await framework.update("a"))["state"] == "TASK_UNREACHABLE"

    cluster.signal("agent1", signal.SIGCONT)
    status = await framework.update("a")
    assert (status["state"], status["reason"]) == ("TASK_RUNNING", "REASON_AGENT_REREGISTERED")


async def test_a_host_that_reboots_has_its_volumes_and_no_tasks(
    cluster: Cluster, framework: Scheduler
) -> None:
    agent, volume = await running_on_a_volume(framework)
    cluster.kill_host("agent1")
    assert cluster.leftovers() == []
    await framework.update("a", "TASK_UNREACHABLE")
    cluster.start("agent1", rebooted=True)
    status = await framework.update("a", "TASK_FAILED")
    assert status["reason"] == "REASON_AGENT_REREGISTERED"
    offer = await framework.whole_offer(lambda offer: bool(persistent(offer)))
    assert offer["agent_id"] == agent
    assert (await framework.run(offer, "b", "cat data/x", volume))["state"] == "TASK_FINISHED"
    assert cluster.sandbox("b") == "1\n"


async def test_a_host_that_dies_and_is_back_at_once(cluster: Cluster, framework: Scheduler) -> None:
    await running_on_a_volume(framework)
    cluster.kill_host("agent1")
    cluster.start("agent1")
    # An agent that looks for its executors longer than it waits for them says gone instead of failed.
    status = await framework.update("a", "TASK_FAILED", "TASK_GONE")
    assert status["reason"] in (
        *("REASON_EXECUTOR_TERMINATED", "REASON_EXECUTOR_REREGISTRATION_TIMEOUT"),
        "REASON_AGENT_REREGISTERED",
    )


async def test_a_lost_host_is_marked_gone_and_may_not_come_back(
    cluster: Cluster, framework: Scheduler
) -> None:
    agent, _ = await running_on_a_volume(framework)
    cluster.kill_host("agent1")
    await framework.update("a", "TASK_UNREACHABLE")
    assert cluster.api("MARK_AGENT_GONE", {"agent_id": agent})[0] == 200
    await framework.update("a", "TASK_GONE_BY_OPERATOR")
    cluster.start("agent1")
    end = time.monotonic() + 10
    while cluster.pid("agent1"):
        assert time.monotonic() < end, "a gone agent stays"
        await asyncio.sleep(0.02)


async def test_an_update_comes_again_until_it_is_acknowledged(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    framework = await scheduler((await mesos()).master)  # one that is called unreachable repeats it at once
    framework.acknowledging = False
    offer = await framework.offer()
    await framework.accept(offer, launch(framework.task(offer, "a", "sleep 1000")))
    first = await framework.update("a")
    began = time.monotonic()
    second = await framework.update("a")
    assert (first["state"], first["uuid"]) == (second["state"], second["uuid"])
    assert 8 < time.monotonic() - began < 15
    await framework.acknowledge(second)
    assert (await framework.update("a"))["state"] == "TASK_RUNNING"
