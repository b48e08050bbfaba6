"""Reservations and persistent volumes: what a task writes is there for the next one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from .conftest import MakeMesos
from .scheduler import (
    Scheduler,
    create,
    destroy,
    disk,
    from_agent,
    launch,
    persistent,
    reserve,
    unreserve,
)

MakeScheduler = Callable[..., Awaitable[Scheduler]]
FINISHED = ("OPERATION_FINISHED", "")


@pytest.mark.parametrize("source", [None, "MOUNT"])
async def test_a_volume_outlives_its_task(
    source: str | None, mesos: MakeMesos, scheduler: MakeScheduler, request: pytest.FixtureRequest
) -> None:
    if source:
        request.getfixturevalue("privileged")
    cluster = await mesos(mount_disks=("64",) if source else ())
    framework = await scheduler(cluster.master)
    offer = await framework.offer(lambda offer: disk(offer, source) is not None)
    free = disk(offer, source) if source else framework.scalar("disk", 64)
    assert free is not None
    reserved = framework.reserved(free)
    volume = framework.volume(reserved, "v")
    assert await framework.outcomes(offer, reserve(reserved), create(volume)) == [FINISHED, FINISHED]

    offer = await framework.offer(persistent)
    assert persistent(offer) == {"v": volume}, "not offered as created"
    assert (await framework.run(offer, "first", "echo 1 > data/x", volume))["state"] == "TASK_FINISHED"
    offer = await framework.offer(persistent)
    assert (await framework.run(offer, "second", "cat data/x", volume))["state"] == "TASK_FINISHED"
    assert cluster.sandbox("second") == "1\n"

    offer = await framework.offer(persistent)
    assert await framework.outcomes(offer, destroy(volume), unreserve(reserved)) == [FINISHED, FINISHED]
    offer = await framework.offer()
    assert not any("reservations" in resource for resource in offer["resources"])


async def test_a_volume_in_use_is_neither_offered_nor_destroyed(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    reserved = framework.reserved(framework.scalar("disk", 64))
    volume = framework.volume(reserved, "v")
    task = framework.task(offer, "user", "sleep 1000", volume)
    await framework.accept(offer, reserve(reserved), create(volume), launch(task))
    await framework.update("user", "TASK_RUNNING")

    offer = await framework.offer()
    assert not persistent(offer)
    ((state, message),) = await framework.outcomes(offer, destroy(volume))
    assert state == "OPERATION_ERROR" and "in use" in message
    plain = {key: value for key, value in volume.items() if key != "allocation_info"}
    status, text = cluster.api("DESTROY_VOLUMES", {"agent_id": offer["agent_id"], "volumes": [plain]})
    assert status == 400 and "in use" in text


@pytest.mark.slow
async def test_volumes_by_the_operator(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    where = {"agent_id": {"value": cluster.agent_id("agent1")}}
    reservation = {"type": "DYNAMIC", "role": "storage", "principal": "ops"}
    reserved = {"name": "disk", "type": "SCALAR", "scalar": {"value": 32}, "reservations": [reservation]}
    persistence = {"id": "op", "principal": "ops"}
    volume = {
        **reserved,
        "disk": {"persistence": persistence, "volume": {"mode": "RW", "container_path": "data"}},
    }
    assert cluster.api("RESERVE_RESOURCES", {**where, "resources": [reserved]})[0] == 202
    assert cluster.api("CREATE_VOLUMES", {**where, "volumes": [volume]})[0] == 202
    framework = await scheduler(cluster.master)
    offer = await framework.offer(persistent)
    assert list(persistent(offer)) == ["op"]
    assert cluster.api("UNRESERVE_RESOURCES", {**where, "resources": [reserved]})[0] == 409
    assert cluster.api("DESTROY_VOLUMES", {**where, "volumes": [volume]})[0] == 202
    await framework.wait("RESCIND")
    assert cluster.api("UNRESERVE_RESOURCES", {**where, "resources": [reserved]})[0] == 202


@pytest.mark.slow
async def test_a_volume_grows_and_shrinks(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    reserved = framework.reserved(framework.scalar("disk", 100))
    volume = framework.volume(reserved, "v")
    await framework.outcomes(offer, reserve(reserved), create(volume))
    extra = framework.reserved(framework.scalar("disk", 50))
    grow = {"type": "GROW_VOLUME", "grow_volume": {"volume": volume, "addition": extra}}
    offer = await framework.offer(persistent)
    assert await framework.outcomes(offer, reserve(extra), grow) == [FINISHED, FINISHED]
    offer = await framework.offer(persistent)
    larger = persistent(offer)["v"]
    assert larger["scalar"]["value"] == 150
    shrink = {"type": "SHRINK_VOLUME", "shrink_volume": {"volume": larger, "subtract": {"value": 120}}}
    assert await framework.outcomes(offer, shrink) == [FINISHED]
    assert persistent(await framework.offer(persistent))["v"]["scalar"]["value"] == 30


@pytest.mark.slow
async def test_a_shared_volume_has_two_users(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    capabilities = ("MULTI_ROLE", "RESERVATION_REFINEMENT", "SHARED_RESOURCES", "PARTITION_AWARE")
    framework = await scheduler(cluster.master, capabilities=capabilities)
    offer = await framework.offer()
    reserved = framework.reserved(framework.scalar("disk", 20))
    shared = {**framework.volume(reserved, "v"), "shared": {}}
    writer = framework.task(offer, "w", "echo hello > data/new && mv data/new data/a; sleep 1000", shared)
    reader = framework.task(offer, "r", "until cat data/a 2>/dev/null; do sleep 0.05; done", shared)
    await framework.accept(offer, reserve(reserved), create(shared), launch(writer, reader))
    await framework.update("r", "TASK_FINISHED")
    assert cluster.sandbox("r") == "hello\n"


@pytest.mark.slow
async def test_a_role_refines_what_is_reserved_for_its_parent(
    mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    cluster = await mesos()
    base = {"type": "DYNAMIC", "role": "storage", "principal": "ops"}
    row = {"name": "disk", "type": "SCALAR", "scalar": {"value": 40}, "reservations": [base]}
    agent = {"value": cluster.agent_id("agent1")}
    assert cluster.api("RESERVE_RESOURCES", {"agent_id": agent, "resources": [row]})[0] == 202
    framework = await scheduler(cluster.master, role="storage/a")
    offer = await framework.offer()
    (inherited,) = (each for each in offer["resources"] if each.get("reservations") == [base])
    labels = {"labels": [{"key": "export", "value": "e1"}]}
    own = {"type": "DYNAMIC", "role": "storage/a", "principal": "moorage", "labels": labels}
    refined = {**inherited, "reservations": [base, own]}
    assert await framework.outcomes(offer, reserve(refined)) == [FINISHED]
    offer = await framework.offer()
    assert refined in offer["resources"], "labels and both reservations come back"
    assert await framework.outcomes(offer, unreserve(refined)) == [FINISHED]
    assert inherited in (await framework.offer(from_agent(agent)))["resources"]


@pytest.mark.slow
async def test_what_is_refused(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    reserved = framework.reserved(framework.scalar("disk", 8))
    volume = framework.volume(reserved, "one")
    elsewhere = [{**reserved["reservations"][0], "role": "other"}]
    refused = [
        (reserve({**reserved, "reservations": elsewhere}), "role 'other'"),
        (create(framework.volume(framework.scalar("disk", 8), "two")), ""),
        (create(framework.volume(reserved, "a/b")), ""),
        (create(volume), "not unique"),
        (unreserve(volume), ""),
    ]
    offer = await framework.offer()
    assert await framework.outcomes(offer, reserve(reserved), create(volume)) == [FINISHED, FINISHED]
    offer = await framework.offer()
    assert await framework.outcomes(offer, reserve(reserved)) == [FINISHED]
    for operation, text in refused:
        offer = await framework.offer()
        ((state, message),) = await framework.outcomes(offer, operation)
        assert state == "OPERATION_ERROR" and text in message, operation
    offer = await framework.offer()
    missing = framework.volume(reserved, "never-created")
    assert (await framework.run(offer, "t", "true", missing))["state"] == "TASK_ERROR"
    stale = await framework.run(offer, "u", "true")
    assert (stale["state"], stale["reason"]) == ("TASK_DROPPED", "REASON_INVALID_OFFERS")
