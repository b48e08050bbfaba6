"""Moorage's own CSI driver under real agents: what a task wrote is there on another agent when its host is
gone."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from moorage.cli.local_cluster import LocalCluster

from ..fsck import check_clean_at
from ..integration.csi.support import Driver, own_mounts
from ..prerequisites import no_mounts, require
from .cluster import Cluster
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, Scheduler, from_agent, launch

NAME = "org.moorage.csi"
LIMITS = [
    {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}},
    {"name": "mem", "type": "SCALAR", "scalar": {"value": 256}},
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("privileged", "apart"),
]


@pytest.fixture
def apart() -> Iterator[None]:
    require(no_mounts())
    with own_mounts():
        yield


@pytest.fixture
async def local(apart: None, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(tmp_path / "cluster", hosts=3)
    await cluster.start()
    yield cluster
    await cluster.kill()


class Agents:
    """The drivers of two agents, and how each agent finds its own. The paths of sockets must be short."""

    def __init__(self, directory: Path, local: LocalCluster) -> None:
        self.directory = directory
        self.environment = {
            "PATH": os.environ["PATH"],
            "MOORAGE_REGISTRY": local.registry,
            "MOORAGE_SECRET_FILE": str(local.secret_file),
        }
        self.drivers = {
            f"agent{i}": Driver(directory / str(i), self.environment, node=f"agent{i}") for i in (1, 2)
        }

    def configure(self, agent: str, how: Json) -> None:
        conf = self.directory / agent.removeprefix("agent") / "conf"
        conf.mkdir()
        (conf / "moorage.json").write_text(json.dumps({"type": NAME, **how}))

    async def run_already(self) -> None:
        for agent, driver in self.drivers.items():
            await driver.start()
            endpoint = {"csi_service": "NODE_SERVICE", "endpoint": driver.endpoint}
            self.configure(agent, {"endpoints": [endpoint], "target_path_root": f"{driver.state}.targets"})

    def are_started_by_the_agents(self) -> None:
        for agent, driver in self.drivers.items():
            env = {**self.environment, "MOORAGE_STATE_DIR": str(driver.state)}
            command = {
                "shell": True,
                "value": f"exec {shlex.join(driver.command('--stage'))} 2>>{driver.log}",
                "environment": {"variables": [{"name": key, "value": env[key]} for key in env]},
            }
            container = {"services": ["NODE_SERVICE"], "command": command, "resources": LIMITS}
            self.configure(agent, {"containers": [container]})


@pytest.fixture
async def agents(local: LocalCluster) -> AsyncIterator[Agents]:
    found = Agents(Path(tempfile.mkdtemp(prefix="moorage-csi-")), local)
    yield found
    for driver in found.drivers.values():
        await driver.close()
    shutil.rmtree(found.directory)


def asked(mode: str = "RW") -> Json:
    capability = {"mount": {}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}}
    static = {"volume_id": "db", "volume_context": {"size": "256M"}, "volume_capability": capability}
    source = {"type": "CSI_VOLUME", "csi_volume": {"plugin_name": NAME, "static_provisioning": static}}
    return {"type": "MESOS", "volumes": [{"container_path": "vol", "mode": mode, "source": source}]}


async def start(mesos: MakeMesos, agents: Agents) -> Cluster:
    flags = (f"csi_plugin_config_dir={agents.directory}/{{i}}/conf",)
    return await mesos(agents=2, isolation=("filesystem/linux,volume/csi",), agent_flags=flags)


async def lose_the_host_of_a_writer(
    cluster: Cluster, framework: Scheduler, local: LocalCluster, agents: Agents, stopped: bool
) -> None:
    """A task writes and syncs; its host dies with all that it ran; the same task runs elsewhere."""
    ids = {name: {"value": cluster.agent_id(name)} for name in cluster.agents}
    offer = await framework.offer(from_agent(ids["agent1"]))
    writes = "mountpoint -q vol && echo written > vol/f && sync -f vol/f && echo synced && sleep 1000"
    await framework.accept(offer, launch(framework.task(offer, "writer", writes, container=asked())))
    assert (await framework.update("writer", "TASK_RUNNING", "TASK_FAILED", timeout=60))[
        "state"
    ] == "TASK_RUNNING"
    async with asyncio.timeout(30):
        while "synced" not in cluster.sandbox("writer"):
            await asyncio.sleep(0.05)

    began = time.monotonic()
    await asyncio.to_thread(cluster.kill_host, "agent1")
    if stopped:
        await agents.drivers["agent1"].kill_host()
    await local.hosts[0].kill()
    offer = await framework.offer(from_agent(ids["agent2"]))
    reads = "mountpoint -q vol && cat vol/f && echo more >> vol/f"
    status = await framework.run(offer, "reader", reads, container=asked())
    assert status["state"] == "TASK_FINISHED", status
    assert cluster.sandbox("reader") == "written\n"
    took = time.monotonic() - began
    assert took < 30, "the lease of a dead holder (4 s) is waited for, and no more"


async def read_again(framework: Scheduler, cluster: Cluster, agents: Agents) -> None:
    """Once the reader's container has let the volume go, a third task has it read-only."""
    async with asyncio.timeout(30):
        while "NodeUnpublishVolume db" not in agents.drivers["agent2"].log.read_text():
            await asyncio.sleep(0.05)
    offer = await framework.offer()
    status = await framework.run(
        offer, "third", "cat vol/f; touch vol/g || echo read-only", container=asked("RO")
    )
    assert status["state"] == "TASK_FINISHED", status
    assert cluster.sandbox("third") == "written\nmore\nread-only\n"
    await check_clean(agents, "agent2")


async def check_clean(agents: Agents, *alive: str) -> None:
    """`fsck -f`, once the containers have let the volume go."""
    async with asyncio.timeout(60):
        while any(agents.drivers[name].mounts() for name in alive):
            await asyncio.sleep(0.05)
    await check_clean_at(agents.environment, "db")


async def test_a_task_finds_what_it_wrote_when_its_host_died(
    local: LocalCluster, agents: Agents, mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    await agents.run_already()
    cluster = await start(mesos, agents)
    framework = await scheduler(cluster.master)
    await lose_the_host_of_a_writer(cluster, framework, local, agents, stopped=True)
    await read_again(framework, cluster, agents)


async def test_the_same_with_drivers_that_the_agents_start(
    local: LocalCluster, agents: Agents, mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    agents.are_started_by_the_agents()
    cluster = await start(mesos, agents)
    framework = await scheduler(cluster.master)
    await lose_the_host_of_a_writer(cluster, framework, local, agents, stopped=False)
    await read_again(framework, cluster, agents)

    # The agent comes back in the same boot, with what its dead driver left.
    cluster.start("agent1")
    async with asyncio.timeout(60):  # a publish beside that of its recovery is the end of a Mesos 1.11 agent
        while "Removed the container directory" not in cluster.log("agent1"):
            await asyncio.sleep(0.1)
    offer = await framework.offer(from_agent({"value": cluster.agent_id("agent1")}), timeout=60)
    status = await framework.run(offer, "fourth", "cat vol/f && touch vol/h", container=asked())
    assert status["state"] == "TASK_FINISHED", status
    assert cluster.sandbox("fourth") == "written\nmore\n"
    await check_clean(agents, "agent1", "agent2")
