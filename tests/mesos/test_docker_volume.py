"""The isolator docker/volume calls `dvdcli` (here a stand-in) to mount what a task asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import machine, run
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, create, disk, launch, reserve

STANDINS = Path(__file__).parent / "standins"
ISOLATION = ("filesystem/linux,docker/volume",)

pytestmark = pytest.mark.usefixtures("privileged")


@dataclass
class Driver:
    """Where the stand-in keeps its volumes, and what it was asked."""

    root: Path

    @property
    def env(self) -> dict[str, str]:
        return {"DVD_ROOT": str(self.root), "PATH": f"{STANDINS}:{os.environ['PATH']}"}

    def calls(self) -> list[str]:
        file = self.root / "calls"
        return [line.split("]")[0].partition("[")[2] for line in file.read_text().splitlines()]

    def mounted(self) -> list[str]:
        return machine.mounts_below(self.root)

    def wait_unmounted(self) -> None:
        end = time.monotonic() + 10
        while self.mounted():
            assert time.monotonic() < end, self.mounted()
            time.sleep(0.02)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path / "dvd")
    driver.root.mkdir()
    yield driver
    left = driver.mounted()
    for point in left:
        run.attempt(["umount", "--lazy", point])
    assert left == []


def container(path: str = "vol", mode: str = "RW", name: str = "share", **options: str) -> Json:
    parameters = [{"key": key, "value": value} for key, value in options.items()]
    volume = {"driver": "moorage", "name": name, "driver_options": {"parameter": parameters}}
    source = {"type": "DOCKER_VOLUME", "docker_volume": volume}
    return {"type": "MESOS", "volumes": [{"container_path": path, "mode": mode, "source": source}]}


async def test_a_task_finds_its_volume_mounted(
    mesos: MakeMesos, scheduler: MakeScheduler, driver: Driver
) -> None:
    cluster = await mesos(isolation=ISOLATION, env=driver.env)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    asked = container(size="10GiB", fs="ext4")
    status = await framework.run(offer, "a", "echo one > vol/f; mountpoint vol", container=asked)
    assert status["state"] == "TASK_FINISHED", status
    assert (driver.root / "vol" / "share" / "f").read_text() == "one\n"
    driver.wait_unmounted()
    first = (driver.root / "calls").read_text().splitlines()[0]
    assert first.startswith(f"dvdcli cwd={cluster.directory} uid=0 [mount] [--volumedriver=moorage]")
    assert {"[--volumename=share]", "[--volumeopts=size=10GiB]", "[--volumeopts=fs=ext4]"} <= set(
        first.split()
    )

    absolute = driver.root / "absolute"
    absolute.mkdir()
    offer = await framework.offer()
    command = f"cat {absolute}/f; touch {absolute}/g || echo read-only"
    await framework.run(offer, "b", command, container=container(str(absolute), "RO"))
    assert cluster.sandbox("b") == "one\nread-only\n"

    reserved = framework.reserved(framework.scalar("disk", 16))
    persistent = framework.volume(reserved, "pv", "state")
    offer = await framework.whole_offer(lambda offer: disk(offer) is not None)
    both = "echo both > state/x; cat vol/f state/x"
    task = framework.task(offer, "c", both, persistent, container=container())
    await framework.accept(offer, reserve(reserved), create(persistent), launch(task))
    await framework.update("c", "TASK_FINISHED")
    assert cluster.sandbox("c") == "one\nboth\n"
    driver.wait_unmounted()


@pytest.mark.slow
async def test_two_containers_share_one_mount(
    mesos: MakeMesos, scheduler: MakeScheduler, driver: Driver
) -> None:
    cluster = await mesos(isolation=ISOLATION, env=driver.env)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    tasks = [framework.task(offer, name, "sleep 1000", container=container()) for name in ("a", "b")]
    await framework.accept(offer, launch(*tasks))
    for name in ("a", "b"):
        await framework.update(name, "TASK_RUNNING")
    assert driver.calls() == ["mount", "mount"]
    await framework.kill("a")
    await framework.update("a", "TASK_KILLED")
    assert driver.mounted()
    await framework.kill("b")
    await framework.update("b", "TASK_KILLED")
    driver.wait_unmounted()
    assert driver.calls() == ["mount", "mount", "unmount"]


async def test_a_mount_that_fails_fails_the_task(
    mesos: MakeMesos, scheduler: MakeScheduler, driver: Driver
) -> None:
    cluster = await mesos(isolation=ISOLATION, env=driver.env)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    status = await framework.run(offer, "a", "true", container=container(fail="true"))
    assert (status["state"], status["reason"]) == ("TASK_FAILED", "REASON_CONTAINER_LAUNCH_FAILED")
    assert "no such share" in status["message"]


@pytest.mark.slow
async def test_an_agent_that_restarts_unmounts_for_containers_that_are_no_more(
    mesos: MakeMesos, scheduler: MakeScheduler, driver: Driver
) -> None:
    cluster = await mesos(isolation=ISOLATION, env=driver.env)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    await framework.accept(offer, launch(framework.task(offer, "a", "sleep 1000", container=container())))
    await framework.update("a", "TASK_RUNNING")
    cluster.kill_host("agent1")
    assert driver.mounted()
    cluster.start("agent1")
    # As the agent finds its executor: gone with the host, or not there any more when it looks.
    assert (await framework.update("a", timeout=60))["state"] in ("TASK_FAILED", "TASK_GONE")
    driver.wait_unmounted()
    assert driver.calls() == ["mount", "unmount"]
