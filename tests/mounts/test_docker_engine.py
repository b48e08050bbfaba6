"""A real Docker engine on each of two hosts: what a container wrote is there for one on the other host."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from moorage.client.uri import parse
from moorage.gateway.docker.service import PERIOD_S
from tests.fsck import check_clean_at
from tests.prerequisites import no_programs, require
from tests.uris import EXISTING, MADE, Effect, effect

from .agents import Agent, kill_processes
from .conftest import run_program
from .engine import IMAGE, PROGRAMS, Engine
from .test_volume_driver import Driver

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mount"), pytest.mark.timeout(400)]
SPECS = Path("/etc/docker/plugins")
PLACES = (SPECS.parent, Path("/run/docker"))


class DockerHost:
    """An engine and its volume driver. Discovery files are the machine's, so each driver has another name."""

    def __init__(self, agent: Agent, number: int) -> None:
        self.agent = agent
        self.name = f"moorage-{os.getpid()}-{number}"
        self.spec = SPECS / f"{self.name}.{'spec' if number % 2 else 'json'}"
        self.engine = Engine(agent.directory / "e")
        self.driver = Driver(agent, "--discovery", str(self.spec))

    async def start(self) -> None:
        await self.driver.__aenter__()
        await self.engine.start()
        await self.engine.load_image()

    async def restart_driver(self) -> None:
        await self.driver.kill()
        await self.driver.__aexit__()
        self.driver = Driver(self.agent, "--discovery", str(self.spec))
        await self.driver.__aenter__()

    async def lose(self) -> None:
        """Everything that runs on it, at once, with nothing written back."""
        await asyncio.gather(self.engine.lose(), self.driver.kill())
        for place in self.agent.places():
            kill_processes(place)

    async def close(self) -> None:
        await self.driver.__aexit__()
        await self.engine.close()
        self.spec.unlink(missing_ok=True)  # a driver that was killed leaves it


@pytest.fixture
async def make_docker(up: dict[str, str]) -> AsyncIterator[Callable[[], DockerHost]]:
    require(no_programs(*PROGRAMS))
    made: list[DockerHost] = []
    before = _files_of_engines()

    def make() -> DockerHost:
        made.append(DockerHost(Agent(up), len(made)))
        return made[-1]

    yield make
    for host in made:
        await host.close()
        await host.agent.clean()
        shutil.rmtree(host.agent.directory)
    for path in sorted(_files_of_engines() - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _files_of_engines() -> set[Path]:
    """Those that no option puts elsewhere."""
    return {path for place in PLACES if place.exists() for path in (place, *place.rglob("*"))}


async def test_an_engine_has_volumes(make_docker: Callable[[], DockerHost]) -> None:
    host = make_docker()
    await host.start()
    docker, name = host.engine.docker, host.name
    assert "give its size" in await host.engine.refused("volume", "create", "-d", name, "web")
    assert "iops='many'" in await host.engine.refused(
        *("volume", "create", "-d", name, "-o", "size=64M", "-o", "iops=many", "web")
    )
    limited = ("-o", "iops=100000", "-o", "bw=1G")
    assert await docker("volume", "create", "-d", name, "-o", "size=64M", *limited, "web") == "web"
    assert await docker("volume", "ls", "-q", "-f", f"driver={name}", "-f", "name=web") == "web"
    assert await docker("volume", "inspect", "-f", "{{json .Status}}", "web") == '{"size":67108864}'
    await host.engine.run("web", "echo written > /data/file")
    assert host.agent.places() == []
    assert await host.engine.run("web", "cat /data/file") == "written"
    assert "Read-only" in await host.engine.refused(
        *("run", "--rm", "--network", "none", "-v", "web:/data:ro", IMAGE, "sh", "-c", "echo > /data/other")
    )
    long = await docker("run", "-d", "--network", "none", "-v", "web:/data", IMAGE, "sleep", "1000")
    await host.restart_driver()
    assert await host.engine.run("web", "cat /data/file") == "written"
    assert len(host.agent.places()) == 1  # the other container goes on
    assert "in use" in await host.engine.refused("volume", "rm", "web")
    await docker("rm", "-f", long)
    assert host.agent.places() == []
    uri = "moorage:///uri?size=64M"
    as_uri = f"type=volume,source={uri},target=/data,volume-driver={name}"
    container = ("run", "--rm", "--network", "none", "--mount", as_uri, IMAGE)
    await docker(*container, "sh", "-c", "echo uri > /data/file")
    assert await host.engine.run("uri", "cat /data/file") == "uri"
    await docker("volume", "rm", "web", "uri")
    assert await docker("volume", "ls", "-q", "-f", f"driver={name}", "-f", "name=web") == ""


async def test_a_uri_means_what_it_means_elsewhere(make_docker: Callable[[], DockerHost]) -> None:
    """As the name of a volume, and its options beside its name."""
    host = make_docker()
    await host.start()
    docker, name = host.engine.docker, host.name

    async def found(source: str, volume: str) -> Effect:
        mounted = f"type=volume,source={source},target=/data,volume-driver={name}"
        container = await docker("run", "-d", "--network", "none", "--mount", mounted, IMAGE, "sleep", "1000")
        info = json.loads(await host.agent.ok("volume", "show", volume, "--json"))
        (place,) = host.agent.places()
        at = str(host.agent.root / volume)
        seen = effect(
            info,
            json.loads(place.record_file.read_text()),
            await run_program("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", at),
        )
        await docker("rm", "-f", container)
        return seen

    for number, (options, expected) in enumerate(MADE.items()):
        assert await found(f"moorage:///made{number}?{options}", f"made{number}") == expected
        beside = (f"--opt={key}={value}" for key, value in parse(f"moorage:///x?{options}").options.items())
        await docker("volume", "create", "-d", name, *beside, f"beside{number}")
        assert await found(f"beside{number}", f"beside{number}") == expected
    for number, (options, expected) in enumerate(EXISTING.items()):
        volume = f"there{number}"
        await host.agent.ok("volume", "create", volume, "--size", "64M", "--replicas", "1")
        await host.agent.mount(volume)
        await host.agent.unmount(volume)
        assert await found(f"moorage:///{volume}{options}", volume) == expected
    wrong = {
        "moorage:///x?mode=wo": "mode='wo': write rw or ro",
        "moorage:///x?colour=red": "unknown option 'colour'",
        "moorage:///x/file": "moorage:///x/file names a file in a volume: write moorage:///x",
        "moorage://elsewhere/x?size=64M": "connect to 'elsewhere' for it",
    }
    for uri, words in wrong.items():
        assert words in await host.engine.refused("volume", "create", "-d", name, uri)


async def test_what_a_killed_engine_had_is_unmounted_once_its_containers_are_gone(
    make_docker: Callable[[], DockerHost],
) -> None:
    """An engine that was killed tells its driver of none of them, neither then nor later."""
    host = make_docker()
    await host.start()
    docker = host.engine.docker
    await docker("volume", "create", "-d", host.name, "-o", "size=64M", "back")
    started = await docker("run", "-d", "--network", "none", "-v", "back:/data", IMAGE, "sleep", "1000")
    await host.engine.kill()
    await asyncio.sleep(2.5 * PERIOD_S)
    assert len(host.agent.places()) == 1  # the container runs on
    await host.engine.lose()
    async with asyncio.timeout(60):
        while host.agent.places():
            await asyncio.sleep(0.1)
    await host.engine.start()
    await docker("start", started)
    await docker("exec", started, "sh", "-c", "echo again > /data/file")
    await docker("rm", "-f", started)
    assert host.agent.places() == []
    await check_clean_at(host.agent.environment, "back")


async def test_a_container_finds_on_another_host_what_it_wrote(make_docker: Callable[[], DockerHost]) -> None:
    one, two = make_docker(), make_docker()
    await asyncio.gather(one.start(), two.start())
    await one.engine.docker("volume", "create", "-d", one.name, "-o", "size=128M", "moving")
    script = "echo synced > /data/file; sync /data/file; echo ready; exec sleep 1000"
    started = await one.engine.docker(
        *("run", "-d", "--network", "none", "-v", "moving:/data", IMAGE, "sh", "-c", script)
    )
    async with asyncio.timeout(30):
        while await one.engine.docker("logs", started) != "ready":
            await asyncio.sleep(0.1)
    container = ("run", "--rm", "--network", "none", "-v", "moving:/data", "--volume-driver", two.name)
    held = await two.engine.refused(*container, IMAGE, "ls", "/data")
    assert "is held by" in held
    await one.lose()
    began = time.monotonic()
    assert await two.engine.run("moving", "cat /data/file", "--volume-driver", two.name) == "synced"
    assert time.monotonic() - began < 60  # the lease of the lost one is 4 s, the rest is this machine
    await two.engine.run("moving", "echo more >> /data/file", "--volume-driver", two.name)
    await check_clean_at(two.agent.environment, "moving")
    await two.engine.docker("volume", "rm", "moving")
