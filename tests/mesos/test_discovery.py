"""DiscoveryInfo of a task is in the master's state, where Mesos-DNS and others read it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from . import calls
from .conftest import MakeMesos
from .scheduler import Scheduler, launch


async def test_discovery_is_in_the_state(
    mesos: MakeMesos, scheduler: Callable[..., Awaitable[Scheduler]]
) -> None:
    cluster = await mesos()
    framework = await scheduler(cluster.master, name="storage")
    labels = {"labels": [{"key": "VIP_0", "value": "/nfs:2049"}]}
    port = {"number": 31005, "name": "nfs", "protocol": "tcp", "labels": labels}
    discovery = {"visibility": "FRAMEWORK", "name": "export-a", "ports": {"ports": [port]}}
    ports = {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": 31005, "end": 31005}]}}
    resource = {**ports, "allocation_info": {"role": framework.role}}
    offer = await framework.offer()
    tier = {"labels": [{"key": "tier", "value": "gold"}]}
    task = framework.task(offer, "export-a.1", "sleep 1000", resource, discovery=discovery, labels=tier)
    await framework.accept(offer, launch(task))
    await framework.update("export-a.1", "TASK_RUNNING")
    for path in ("/state", "/master/state"):
        (shown,) = calls.get(cluster.master, path)["frameworks"]
        assert (shown["name"], shown["active"], shown["id"]) == ("storage", True, framework.id["value"])
        (task,) = shown["tasks"]
        assert task["discovery"] == discovery
        assert task["labels"] == tier["labels"]
        assert (task["state"], task["resources"]["ports"]) == ("TASK_RUNNING", "[31005-31005]")
