"""What stands in examples/, on a real Mesos."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from moorage.gateway.mount import unmounting
from moorage.gateway.mount.record import StateDirectory
from moorage.service.http import create_token, load_token
from tests.prerequisites import no_mounts, require

from . import machine, run
from .conftest import MakeMesos, MakeScheduler
from .deployment import (
    PROGRAM,
    RESOURCES,
    TASKS,
    MakeFramework,
    all_up,
    install_moorage,
    settled,
)
from .scheduler import launch

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(300)


def write_token(path: Path) -> dict[str, str]:
    create_token(path)
    return {"Authorization": f"Bearer {load_token(path)}"}


@pytest.mark.slow
async def test_a_scheduler_launches_a_task_beside_the_data_of_its_volume(
    mesos: MakeMesos, framework: MakeFramework, privileged: None, tmp_path: Path, mount_directory: Path
) -> None:
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    write_token(tmp_path / "token")
    await ours.start("--http", "127.0.0.1:0", "--token-file", str(tmp_path / "token"))
    await ours.until_all_run()

    async def example(command: str, volume: str = "moorage:///db") -> str:
        at = f"env MOORAGE_STATE_DIR={mount_directory / 's'} MOORAGE_MOUNT_ROOT={mount_directory / 'v'}"
        made = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLES / "scheduler.py"), "--master", cluster.master,
            "--moorage", f"http://{ours.last['http']}", "--token-file", str(tmp_path / "token"),
            "--secret-file", str(ours.secret_file), "--volume", volume, "--program",
            f"{at} {' '.join(PROGRAM)}", command, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await made.communicate()
        assert made.returncode == 0, out.decode()
        return out.decode()

    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected))
        await settled(lambda: connected.create_volume("db", "64M", replicas=1, groups=1))
        (member,) = (await connected.show("db")).groups[0]["members"]
        there = next(each for each in ours.agents() if each.host == member["host"])
        shown = await example("mountpoint -q $DVDI_VOLUME_PATH && echo row > data/table && sync data/table")
        assert shown.splitlines()[0] == f"launched on {there.hostname}"
        await example("test $(cat data/table) = row")
        tasks = json.loads(cluster.api("GET_TASKS")[1])["get_tasks"]["completed_tasks"]
        assert {each["agent_id"]["value"] for each in tasks if each["name"] == "beside-its-data"} == {
            there.id
        }
        await example("mountpoint $DVDI_VOLUME_PATH", "moorage:///new?size=64M")


@pytest.fixture
async def mount_directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For what agents mount of volumes; nothing is mounted there in the end."""
    require(no_mounts())
    directory = tmp_path_factory.mktemp("m")
    yield directory
    async with asyncio.timeout(60):
        for state in map(StateDirectory, sorted((directory / "s").glob("@*"))):
            while await unmounting.clean_up(state) or state.places():
                await asyncio.sleep(0.1)
    for point in machine.mounts_below(directory):
        run.output(["umount", point])


@pytest.mark.slow
async def test_the_scheduler_as_an_app_of_marathon(
    mesos: MakeMesos, framework: MakeFramework, scheduler: MakeScheduler, tmp_path: Path
) -> None:
    """Its command, files, port and check as Marathon hands them to Mesos; the paths are of this test."""
    cluster = await mesos(agents=3, resources=RESOURCES)
    ours = framework(cluster)
    headers = write_token(tmp_path / "token")
    ours.spec_file.write_text(yaml.safe_dump(ours.spec))
    text = (EXAMPLES / "marathon.json").read_text().replace("/etc/moorage", str(tmp_path))
    app = json.loads(text)
    (fetched,) = app["fetch"]
    assert fetched["uri"] == f"file://{ours.spec_file}"
    (check,) = app["healthChecks"]
    assert check["protocol"] == "MESOS_HTTP" and app["portDefinitions"][check["portIndex"]]["port"] == 0

    marathon = await scheduler(cluster.master, role="*", name="marathon")
    offer = await marathon.offer()
    (ports,) = [row for row in offer["resources"] if row["name"] == "ports"]
    port = ports["ranges"]["range"][-1]["end"]
    one = {"ranges": {"range": [{"begin": port, "end": port}]}}
    variables = {
        **app["env"],
        "MOORAGE_MESOS_MASTER": cluster.master,
        "PORT0": str(port),
        "PATH": f"{install_moorage(tmp_path)}:{os.environ['PATH']}",
    }
    command = {
        "value": app["cmd"],
        "user": app["user"],
        "uris": [{"value": fetched["uri"], **{k: v for k, v in fetched.items() if k != "uri"}}],
        "environment": {"variables": [{"name": key, "value": value} for key, value in variables.items()]},
    }
    health = {
        "type": "HTTP",
        "http": {"port": port, "path": check["path"]},
        "grace_period_seconds": check["gracePeriodSeconds"],
        "interval_seconds": 0.5,
    }
    resources = [marathon.scalar("cpus", app["cpus"]), marathon.scalar("mem", app["mem"]), {**ports, **one}]
    task = {**marathon.task(offer, "app", command), "resources": resources, "health_check": health}
    await marathon.accept(offer, launch(task))
    await marathon.call("SUPPRESS", {"roles": ["*"]})
    await marathon.decline(*marathon.offers.values())
    await marathon.update("app", "TASK_RUNNING")
    assert (await marathon.update("app", "TASK_RUNNING"))["healthy"] is True

    async with aiohttp.ClientSession(f"http://{offer['hostname']}:{port}", headers=headers) as session:

        async def all_run() -> bool:
            async with session.get("/v1/framework.status") as answer:
                instances = (await answer.json())["instances"]
            return [each["state"] for each in instances] == ["TASK_RUNNING"] * TASKS

        await settled(all_run, 60)
    await marathon.kill("app")
    await marathon.update("app", "TASK_KILLED")
    await ours.command("release", "--yes")
    assert ours.reserved() == []
