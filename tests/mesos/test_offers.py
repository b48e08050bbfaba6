"""When a framework is offered something, and when it is not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from .conftest import MakeMesos, MakeScheduler
from .daemons import parsed
from .scheduler import HOUR, Refused, create, disk, launch, persistent, reserve

pytestmark = pytest.mark.slow


async def test_filters(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    began = time.monotonic()
    await framework.decline(offer, filters={"refuse_seconds": 1})
    offer = await framework.offer()
    assert 0.8 < time.monotonic() - began < 5
    await framework.decline(offer, filters=HOUR)
    with pytest.raises(TimeoutError):
        await framework.offer(timeout=0.5)
    await framework.call("REVIVE")
    offer = await framework.offer()
    await framework.call("SUPPRESS", {"roles": ["storage"]})
    await framework.decline(offer)
    with pytest.raises(TimeoutError):
        await framework.offer(timeout=0.5)


async def test_a_mount_disk_is_indivisible(
    mesos: MakeMesos, scheduler: MakeScheduler, privileged: None
) -> None:
    cluster = await mesos(mount_disks=("64",))
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    whole = disk(offer, "MOUNT")
    assert whole is not None
    part = framework.reserved({**whole, "scalar": {"value": 32.0}})
    ((state, message),) = await framework.outcomes(offer, reserve(part))
    assert state == "OPERATION_ERROR" and "does not contain" in message


@pytest.mark.parametrize("flags", [(), ("min_allocatable_resources=disk:1|cpus:0.01|mem:32",)])
async def test_an_agent_without_free_cpus_and_mem(
    flags: tuple[str, ...], mesos: MakeMesos, scheduler: MakeScheduler, tmp_path: Path
) -> None:
    """By default it is not offered at all, not even its volumes; a flag of the master changes that."""
    root = {"disk": {"source": {"type": "PATH", "path": {"root": str(tmp_path)}}}}
    rows = [*parsed("cpus:1;mem:128"), {**parsed("disk:1000")[0], **root}]
    cluster = await mesos(resources=(json.dumps(rows),), master_flags=flags)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    path = disk(offer, "PATH")
    assert path is not None
    reserved = framework.reserved({**path, "scalar": {"value": 100.0}})
    volume = framework.volume(reserved, "v")
    hog = framework.task(offer, "hog", "sleep 1000")
    hog["resources"] = [framework.scalar("cpus", 1), framework.scalar("mem", 128)]
    await framework.accept(offer, reserve(reserved), create(volume), launch(hog))
    await framework.update("hog", "TASK_RUNNING")
    if flags:
        assert "v" in persistent(await framework.offer(persistent))
    else:
        with pytest.raises(TimeoutError):
            await framework.offer(timeout=1)


async def test_a_framework_changes_what_it_may_change(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    info = {**framework.info, "id": framework.id}
    roles = {**info, "roles": ["storage", "other"], "name": "renamed"}
    await framework.call("UPDATE_FRAMEWORK", {"framework_info": roles})
    await framework.decline(await framework.offer(), filters=HOUR)
    await framework.offer(lambda offer: offer["allocation_info"]["role"] == "other")
    with pytest.raises(Refused, match="400"):
        await framework.call("UPDATE_FRAMEWORK", {"framework_info": {**info, "principal": "other"}})


async def test_operations_that_nobody_knows(mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master)
    agent = {"value": cluster.agent_id("agent1")}
    asked = {"operation_id": {"value": "nosuch"}, "agent_id": agent}
    await framework.call("RECONCILE_OPERATIONS", {"operations": [asked]})
    assert (await framework.operation())["state"] == "OPERATION_UNKNOWN"
