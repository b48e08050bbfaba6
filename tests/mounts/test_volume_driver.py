"""Volumes for those who ask for a path: Docker's protocol, `dvdcli` and DVDI variables, mounted for real."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moorage.cli.clients import ClientProcess, run_program
from moorage.gateway.mount import system
from tests.fsck import check_clean_at

from .agents import Agent, kill_processes

pytestmark = pytest.mark.usefixtures("mount")


@pytest.fixture
async def make_agent(up: dict[str, str]) -> AsyncIterator[Callable[[], Agent]]:
    made: list[Agent] = []

    def make() -> Agent:
        made.append(Agent(up))
        return made[-1]

    yield make
    for agent in made:
        await agent.clean()
        shutil.rmtree(agent.directory)


@pytest.fixture
def agent(make_agent: Callable[[], Agent]) -> Agent:
    return make_agent()


class Driver(ClientProcess):
    """`moorage docker` on an agent, spoken to as an engine does."""

    def __init__(self, agent: Agent, *options: str) -> None:
        self.socket = agent.directory / "plugin.sock"
        arguments = ["docker", "--socket", str(self.socket), "--json", *options]
        super().__init__(arguments, agent.environment, agent.directory / "driver.log")

    async def call(self, call: str, **params: Any) -> dict[str, Any]:
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post(f"http://d/VolumeDriver.{call}", data=json.dumps(params).encode()) as response,
        ):
            answer: dict[str, Any] = json.loads(await response.read())
            return answer

    async def kill(self) -> None:
        assert self._process is not None
        self.signal(signal.SIGKILL)
        await self._process.wait()


async def test_containers_share_a_mount_that_outlives_the_driver(agent: Agent) -> None:
    spec = agent.directory / "plugins" / "moorage.json"
    async with Driver(agent, "--discovery", str(spec)) as driver:
        assert json.loads(spec.read_text())["Addr"] == f"unix://{driver.socket}"
        assert await driver.call("Create", Name="web", Opts={"size": "64M"}) == {}
        path = str(agent.root / "web")
        both = await asyncio.gather(*(driver.call("Mount", Name="web", ID=user) for user in ("one", "two")))
        assert both == [{"Mountpoint": path}] * 2
        assert await driver.call("Mount", Name="web", ID="one") == {"Mountpoint": path}  # asked again
        (agent.root / "web" / "file").write_text("written")
        await driver.kill()
    async with Driver(agent, "--discovery", str(spec)) as driver:
        assert (await driver.call("Get", Name="web"))["Volume"]["Mountpoint"] == path
        assert "unmount it first" in (await driver.call("Remove", Name="web"))["Err"]
        assert await driver.call("Unmount", Name="web", ID="one") == {}
        assert await driver.call("Unmount", Name="web", ID="unheard") == {}
        assert await driver.call("Path", Name="web") == {"Mountpoint": path}
        assert (agent.root / "web" / "file").read_text() == "written"
        assert await driver.call("Unmount", Name="web", ID="two") == {}
        assert await driver.call("Path", Name="web") == {"Mountpoint": ""}
        assert agent.places() == []
        await check_clean_at(agent.environment, "web")
        assert await driver.call("Remove", Name="web") == {}
    assert not spec.exists() and not driver.socket.exists()


@pytest.mark.slow
async def test_what_a_crash_left_is_put_right(agent: Agent) -> None:
    """A mount without a user, a user without a mount, and a mount whose processes are gone."""
    entries = agent.state.path / "docker" / "volumes"
    async with Driver(agent) as driver:
        for name in ("unused", "lost"):
            await driver.call("Create", Name=name, Opts={"size": "64M", "replicas": "1"})
            await driver.call("Mount", Name=name, ID="one")
        (agent.root / "lost" / "file").write_text("written")
        await run_program("sync", "-f", str(agent.root / "lost"))
        await driver.kill()
    (entries / "unused.json").unlink()  # noted before the unmount, which did not come
    (entries / "never.json").write_text('{"users": ["one"], "options": {}, "engines": {}}')
    (lost,) = [place for place in agent.places() if place.load().volume == "lost"]
    kill_processes(lost)
    async with Driver(agent) as driver:
        async with asyncio.timeout(60):
            while agent.places() or list(entries.iterdir()):
                await asyncio.sleep(0.05)
        assert "Mountpoint" in await driver.call("Mount", Name="lost", ID="two")  # its old holder is dead
        assert (agent.root / "lost" / "file").read_text() == "written"
        await driver.call("Unmount", Name="lost", ID="two")
        await check_clean_at(agent.environment, "lost")
        # As dvdcli does: without an id.
        (path,) = (await driver.call("Mount", Name="lost")).values()
        assert (Path(path) / "file").read_text() == "written"
        assert await driver.call("Mount", Name="lost") == {"Mountpoint": path}
        assert await driver.call("Unmount", Name="lost") == {}
        assert await driver.call("Path", Name="lost") == {"Mountpoint": ""}


@pytest.mark.slow
async def test_dvdcli_keeps_the_agents_of_a_machine_apart(agent: Agent) -> None:
    """The same volume from one agent after the other; each asks as often as it likes, and without an id."""
    options = ("--volumedriver=moorage", "--volumename=db")
    one, two = {"LIBPROCESS_IP": "127.0.0.11"}, {"LIBPROCESS_IP": "127.0.0.12"}
    size = ("--volumeopts=size=64M", "--volumeopts=replicas=1")
    path = await agent.ok("dvdcli", "mount", *options, *size, **one)
    assert path == str(agent.root / "@127.0.0.11" / "db")
    assert await agent.ok("dvdcli", "mount", *options, *size, **one) == path
    Path(path, "file").write_text("written")
    code, _, error = await agent.run_with(two, "dvdcli", "unmount", *options)
    assert code == 0, error  # nothing is mounted for that agent
    assert await agent.ok("dvdcli", "path", *options, **one) == path
    await agent.ok("dvdcli", "unmount", *options, **one)
    await agent.ok("dvdcli", "unmount", *options, **one)
    there = await agent.ok("dvdcli", "mount", *options, **two)
    assert there == str(agent.root / "@127.0.0.12" / "db") and Path(there, "file").read_text() == "written"
    await agent.ok("dvdcli", "unmount", *options, **two)
    assert {"Name": "db", "Mountpoint": ""} in json.loads(await agent.ok("dvdcli", "list"))
    await agent.ok("dvdcli", "remove", *options)


@pytest.mark.slow
async def test_what_dvdcli_refuses_and_what_it_does_not(agent: Agent) -> None:
    async def says(code: int, words: str, *arguments: str) -> None:
        ended, out, error = await agent.run_with({}, "dvdcli", *arguments)
        assert ended == code and words in error and "Traceback" not in error, error
        assert len(error.splitlines()) == (code != 0) and not out

    await says(3, "there is no volume", "mount", "--volumedriver=moorage", "--volumename=none")
    await says(3, "'rexray' is not served", "mount", "--volumedriver=rexray", "--volumename=none")
    await says(3, "iops", "mount", "--volumename=none", "--volumeopts=iops=five")
    await says(3, "KEY=VALUE", "create", "--volumename=none", "--volumeopts=size")
    await says(3, "not mounted", "path", "--volumename=none")
    await says(0, "", "unmount", "--volumedriver=moorage", "--volumename=none")
    await says(0, "", "unmount", "--volumedriver=rexray", "--volumename=No such thing")
    assert [path for path in agent.root.rglob("*")] == []


@pytest.mark.slow
async def test_a_task_with_dvdi_variables(agent: Agent) -> None:
    variables = {
        "DVDI_VOLUME_NAME": "db2",
        "DVDI_VOLUME_DRIVER": "moorage",
        "DVDI_VOLUME_OPTS": "size=64M,replicas=1",
        "DVDI_VOLUME_CONTAINERPATH": "data",
        "DVDI_VOLUME_NAME9": "moorage:///logs2?size=64M&replicas=1",
    }
    script = 'echo row > data/table; echo line > "$DVDI_VOLUME_PATH9/log"; echo $DVDI_VOLUME_PATH; exit 7'
    code, out, error = await agent.run_with(variables, "dvdi", "run", "--", "sh", "-c", script)
    assert (code, out) == (7, str(agent.root / "db2")), error
    assert agent.places() == [] and not (agent.directory / "data").exists()
    assert await agent.ok("dvdi", "run", "cat", "data/table", **variables) == "row"


@pytest.mark.slow
async def test_a_task_that_is_killed_leaves_nothing_that_the_next_one_does_not_put_right(
    agent: Agent,
) -> None:
    variables = {"DVDI_VOLUME_NAME": "db3", "DVDI_VOLUME_OPTS": "size=64M,replicas=1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moorage.cli.main", "dvdi", "run", "sh", "-c"),
        'echo row > "$DVDI_VOLUME_PATH/table"; exec sleep 1000',
        env={**agent.environment, **variables},
    )

    async with asyncio.timeout(60):
        while not (agent.root / "db3" / "table").exists():
            await asyncio.sleep(0.05)
    process.kill()
    await process.wait()
    assert len(agent.places()) == 1  # its processes go on, for nobody
    other = {"DVDI_VOLUME_NAME": "otherdb3", "DVDI_VOLUME_OPTS": "size=64M,replicas=1"}
    await agent.ok("dvdi", "run", "true", **other)
    assert agent.places() == []
    await check_clean_at(agent.environment, "db3")


@pytest.mark.slow
async def test_a_mount_that_was_taken_over_is_replaced(make_agent: Callable[[], Agent]) -> None:
    """Another host took the volume by force, and let it go: who asks again here gets one that works."""
    one, two = make_agent(), make_agent()
    options = ("--volumename=db4", "--volumeopts=size=64M", "--volumeopts=replicas=1")
    path = Path(await one.ok("dvdcli", "mount", *options))
    await two.mount("db4", "--force")
    (two.point() / "file").write_text("written")
    await two.unmount("db4")
    code, out, _ = await one.run_with({}, "dvdcli", "path", "--volumename=db4")
    assert (code, out) == (3, "")  # no I/O there succeeds
    assert await one.ok("dvdcli", "mount", *options) == str(path)
    assert (path / "file").read_text() == "written"
    await one.ok("dvdcli", "unmount", "--volumename=db4")
    await check_clean_at(one.environment, "db4")


@pytest.mark.slow
async def test_a_container_of_another_volume_does_not_keep_a_mount(agent: Agent, tmp_path: Path) -> None:
    """It was made with a copy of the mount table, as Mesos makes one without an image."""
    for name in ("db5", "otherdb5"):
        await agent.ok(*("dvdcli", "mount", f"--volumename={name}", "--volumeopts=size=64M"))
    container = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "slave", "sh", "-c"),
        f"cd {agent.root}/otherdb5; echo there; exec sleep 1000",
        stdout=subprocess.PIPE,
    )
    assert container.stdout is not None
    try:
        assert await container.stdout.readline() == b"there\n"
        await agent.ok("dvdcli", "unmount", "--volumename=db5")
    finally:
        container.kill()
        await container.communicate()
    await agent.ok("dvdcli", "unmount", "--volumename=otherdb5")


async def test_one_who_listens_already_is_not_pushed_aside(agent: Agent, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "plugin.sock"))
        listening.listen()
        code, _, error = await agent.run_with({}, "docker", "--socket", str(tmp_path / "plugin.sock"))
    assert code == 9 and "another process listens" in error
    assert system.mounted_at(str(agent.root)) is None
