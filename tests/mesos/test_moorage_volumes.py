"""Volumes of Moorage under real agents, by the isolator docker/volume and our `dvdcli`.

A task names a volume and finds it; its whole host is killed; the same task on another agent reads what it
wrote.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from moorage.cli.local_cluster import LocalCluster
from moorage.gateway.docker.dvdi import SUFFIXES
from moorage.gateway.mount import system, unmounting
from moorage.gateway.mount.record import Place, StateDirectory
from tests.fsck import check_clean_at
from tests.prerequisites import no_mounts, require

from . import machine
from .cluster import Cluster
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, Scheduler, launch
from .test_docker_volume import container

ISOLATION = ("filesystem/linux,docker/volume",)
SIZE = {"size": "64M"}

pytestmark = [pytest.mark.usefixtures("privileged"), pytest.mark.timeout(300)]


@dataclass
class Storage:
    """A cluster of Moorage, and what its clients on this machine, agents of Mesos among them, need."""

    cluster: LocalCluster
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "v"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "MOORAGE_REGISTRY": self.cluster.registry,
            "MOORAGE_SECRET_FILE": str(self.cluster.secret_file),
            "MOORAGE_STATE_DIR": str(self.directory / "s"),
            "MOORAGE_MOUNT_ROOT": str(self.root),
        }

    def install_dvdcli(self) -> None:
        """As the package does, for this interpreter and this tree."""
        program = self.directory / "bin" / "dvdcli"
        program.parent.mkdir()
        call = "from moorage.cli.dvdcli import dvdcli; dvdcli(prog_name='dvdcli')"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{call}" "$@"\n')
        program.chmod(0o755)

    def states(self) -> list[StateDirectory]:
        """Of each agent that has mounted anything: agents on one machine are kept apart."""
        return [StateDirectory(path) for path in sorted((self.directory / "s").glob("@*"))]

    def places(self) -> list[Place]:
        return [place for state in self.states() for place in state.places()]

    def kill_mounts(self) -> None:
        """What a host that dies takes along beside its containers."""
        for place in self.places():
            for pid in (int(place.keeper_lock.read_text() or 0), place.status().pid):
                if pid and os.path.exists(f"/proc/{pid}"):
                    os.kill(pid, signal.SIGKILL)

    async def until_unmounted(self) -> None:
        async with asyncio.timeout(60):
            while self.places():
                await asyncio.sleep(0.05)

    async def clean(self) -> None:
        self.kill_mounts()
        async with asyncio.timeout(60):
            for state in self.states():
                while await unmounting.clean_up(state) or state.places():
                    await asyncio.sleep(0.1)
            while system.mounted_at(str(self.root)) is not None:  # busy while the kernel ends what was in it
                umount = ["umount", str(self.root)]
                await asyncio.to_thread(subprocess.run, umount, capture_output=True, check=False)
                await asyncio.sleep(0.1)
        assert machine.mounts_below(self.directory) == []


@pytest.fixture
async def storage() -> AsyncIterator[Storage]:
    require(no_mounts())
    directory = Path(tempfile.mkdtemp(prefix="moo"))  # short: sockets are below it
    made = Storage(LocalCluster(directory / "c", options={"MOORAGE_CAPACITY": "1G"}), directory)
    made.install_dvdcli()
    await made.cluster.start()
    yield made
    await made.clean()
    await made.cluster.kill()
    shutil.rmtree(directory)


async def start(
    framework: Scheduler, cluster: Cluster, task: str, agent: str, command: str, asked: Json
) -> None:
    offer = await framework.offer(lambda offer: cluster.agent_at(offer["hostname"]) == agent)
    await framework.accept(offer, launch(framework.task(offer, task, command, container=asked)))


@pytest.mark.slow
async def test_a_task_finds_on_another_agent_what_it_wrote_before_its_host_was_killed(
    mesos: MakeMesos, scheduler: MakeScheduler, storage: Storage
) -> None:
    cluster = await mesos(agents=2, isolation=ISOLATION, env=storage.env, agent_timeout=3)
    framework = await scheduler(cluster.master)
    asked = container("data", name="db", **SIZE)
    write = "mountpoint -q data && echo row > data/table && sync data/table && echo written && sleep 1000"
    await start(framework, cluster, "writer", "agent1", write, asked)
    await framework.update("writer", "TASK_RUNNING")
    async with asyncio.timeout(30):
        while cluster.sandbox("writer") != "written\n":
            await asyncio.sleep(0.05)
    (place,) = storage.places()
    assert place.load().target.startswith(f"{storage.root}/@")

    cluster.kill_host("agent1")
    storage.kill_mounts()
    await start(framework, cluster, "reader", "agent2", "cat data/table", asked)
    await framework.update("reader", "TASK_FINISHED", timeout=90)
    assert cluster.sandbox("reader") == "row\n"

    cluster.start("agent1", rebooted=True)  # Mesos does not unmount then; the next mount there does
    await start(framework, cluster, "back", "agent1", "cat data/table", asked)
    await framework.update("back", "TASK_FINISHED", timeout=90)
    assert cluster.sandbox("back") == "row\n"
    await storage.until_unmounted()
    await check_clean_at(storage.env, "db")


# Each of the ten volumes that variables can name: mounted, with what the task before wrote.
EACH = """set -e
for n in '' 1 2 3 4 5 6 7 8 9; do
    eval "at=\\$DVDI_VOLUME_PATH$n"
    mountpoint -q "$at"
    test "$(readlink "data$n")" = "$at"
    cat "data$n/table" 2>/dev/null || echo new
    echo "row$n" >"$at/table"
    sync "$at/table"
done
echo done
"""


def with_variables(env: dict[str, str], script: str) -> Json:
    """A command that has ten volumes: by options, and by the options of a URI."""
    variables = {**env}
    for suffix in SUFFIXES:
        variables |= {
            f"DVDI_VOLUME_NAME{suffix}": f"db{suffix}",
            f"DVDI_VOLUME_DRIVER{suffix}": "moorage",
            f"DVDI_VOLUME_OPTS{suffix}": "size=64M,replicas=3",
            f"DVDI_VOLUME_CONTAINERPATH{suffix}": f"data{suffix}",
        }
    variables |= {"DVDI_VOLUME_NAME9": "moorage:///db9?size=64M", "DVDI_VOLUME_OPTS9": ""}
    command = shlex.join([sys.executable, "-m", "moorage.cli.main", "dvdi", "run", "sh", "-c", script])
    environment = [{"name": name, "value": value} for name, value in variables.items()]
    return {"value": f"exec {command}", "environment": {"variables": environment}}


@pytest.mark.slow
async def test_a_task_without_docker_finds_the_volumes_that_its_variables_name(
    mesos: MakeMesos, scheduler: MakeScheduler, storage: Storage
) -> None:
    """No isolator is asked. Its whole host is killed; the same task on another agent has what it wrote."""
    cluster = await mesos(agents=2, env=storage.env, agent_timeout=3)
    framework = await scheduler(cluster.master)
    offer = await framework.offer(lambda offer: cluster.agent_at(offer["hostname"]) == "agent1")
    stays = with_variables(storage.env, f"{EACH}exec sleep 1000")
    await framework.accept(offer, launch(framework.task(offer, "writer", stays)))
    await framework.update("writer", "TASK_RUNNING")
    async with asyncio.timeout(90):
        while not cluster.sandbox("writer").endswith("done\n"):
            await asyncio.sleep(0.05)
    assert cluster.sandbox("writer") == "new\n" * 10 + "done\n"
    assert len(storage.places()) == 10

    cluster.kill_host("agent1")
    storage.kill_mounts()
    offer = await framework.offer(lambda offer: cluster.agent_at(offer["hostname"]) == "agent2")
    again = with_variables(storage.env, EACH)
    await framework.accept(offer, launch(framework.task(offer, "reader", again)))
    status = await framework.update("reader", "TASK_FINISHED", "TASK_FAILED", timeout=120)
    assert status["state"] == "TASK_FINISHED", (status, cluster.sandbox("reader", "stderr"))
    rows = [f"row{suffix}" for suffix in SUFFIXES]
    assert cluster.sandbox("reader").splitlines() == [*rows, "done"]
    for suffix in SUFFIXES:
        await check_clean_at(storage.env, f"db{suffix}")


@pytest.mark.slow
async def test_tasks_of_an_agent_share_a_volume_and_the_last_one_ends_its_mount(
    mesos: MakeMesos, scheduler: MakeScheduler, storage: Storage
) -> None:
    """One of another volume goes on, with its copy of the mount table."""
    cluster = await mesos(isolation=ISOLATION, env=storage.env)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    shared, other = container("data", name="db", **SIZE), container("data", name="other", **SIZE)
    tasks = [framework.task(offer, name, "sleep 1000", container=shared) for name in ("a", "b")]
    await framework.accept(offer, launch(*tasks, framework.task(offer, "c", "sleep 1000", container=other)))
    for name in ("a", "b", "c"):
        await framework.update(name, "TASK_RUNNING", timeout=90)
    assert len(storage.places()) == 2
    for name in ("a", "b"):
        assert len(storage.places()) == 2
        await framework.kill(name)
        await framework.update(name, "TASK_KILLED")
    async with asyncio.timeout(60):
        while len(storage.places()) > 1:
            await asyncio.sleep(0.05)
    await framework.kill("c")
    await framework.update("c", "TASK_KILLED")
    await storage.until_unmounted()


@pytest.mark.slow
async def test_what_a_volume_lacks_is_said_to_the_framework(
    mesos: MakeMesos, scheduler: MakeScheduler, storage: Storage
) -> None:
    cluster = await mesos(isolation=ISOLATION, env=storage.env)
    framework = await scheduler(cluster.master)
    wrong = {"none": ({}, "there is no volume or bucket"), "db": ({**SIZE, "iops": "five"}, "whole number")}
    for name, (options, words) in wrong.items():
        offer = await framework.offer()
        status = await framework.run(offer, name, "true", container=container(name=name, **options))
        assert status["reason"] == "REASON_CONTAINER_LAUNCH_FAILED" and words in status["message"]
    assert storage.places() == []
