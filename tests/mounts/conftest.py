"""A cluster for many tests, and mounts that are gone when a test ends, whatever it did to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.gateway.mount import system, unmounting
from moorage.gateway.mount.record import Place, StateDirectory
from tests.prerequisites import no_mounts, require


class Host:
    """What one host has mounted: a state directory and mount points of its own, and commands on it."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.state = StateDirectory(directory / "s")
        self.environment = {**environment, "MOORAGE_STATE_DIR": str(self.state.path)}

    def point(self, name: str = "m") -> Path:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "moorage.cli.main", *arguments],
            **{"env": self.environment, **options},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def run(self, *arguments: str, timeout: float = 60) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        process = self.start(*arguments)
        try:
            out, err = await asyncio.to_thread(process.communicate, timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return process.returncode, out, err

    async def mount(self, volume: str, *options: str, at: Path | None = None) -> dict[str, Any]:
        code, out, err = await self.run("mount", volume, str(at or self.point()), "--json", *options)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    async def unmount(self, what: str, *options: str) -> None:
        code, _, err = await self.run("umount", what, *options)
        assert code == 0, "\n".join([err, *(place.log.read_text() for place in self.state.places())])

    async def mounts(self) -> list[dict[str, Any]]:
        _, out, _ = await self.run("mounts", "--json")
        found: list[dict[str, Any]] = json.loads(out)
        return found

    def place(self) -> Place:
        (place,) = self.state.places()
        return place

    async def kill(self) -> None:
        """The host dies: every process of its mounts, at once."""
        for place in self.state.places():
            for pid in (unmounting._keeper_pid(place), place.status().pid):
                signalled(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while any(place.keeper_lives() for place in self.state.places()):
                await asyncio.sleep(0.01)

    async def clean(self) -> None:
        """However things stand: nothing stays."""
        await self.end()
        assert self.left() == []

    async def end(self) -> None:
        await self.kill()
        async with asyncio.timeout(60):
            while problems := await unmounting.clean_up(self.state):
                for entry in self.left():
                    await run_program("umount", "--lazy", entry.target)
                await asyncio.sleep(0.1)
                assert problems

    def left(self) -> list[system.MountEntry]:
        return [entry for entry in system.mount_table() if entry.target.startswith(f"{self.directory}/")]


def spawn(*command: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


async def run_program(*command: str, said: str = "") -> str:
    """Its output; the event loop goes on meanwhile. ``said``: what it reads."""
    process = spawn(*command, stdin=subprocess.PIPE)
    out, _ = await asyncio.to_thread(process.communicate, said)
    assert process.returncode == 0, f"{command}: {out}"
    return out


def signalled(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


@pytest.fixture(scope="session")
def mount() -> None:
    """For the tests that need root, FUSE and loop devices."""
    require(no_mounts())


@pytest.fixture(scope="session")
def up() -> Iterator[dict[str, str]]:
    """`moorage up`: three hosts, for all tests that do not kill any; what a client needs to find them."""
    directory = Path(tempfile.mkdtemp(prefix="moo"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")}
    command = [sys.executable, "-m", "moorage.cli.main", "up", "--data", str(directory / "d")]
    process = subprocess.Popen(
        [*command, "--capacity", "4G", "--json"],
        env={**environment, "XDG_CONFIG_HOME": str(directory / "c")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield {
            **environment,
            "MOORAGE_REGISTRY": ready["registry"],
            "MOORAGE_SECRET_FILE": ready["secret_file"],
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def make_host() -> AsyncIterator[Callable[[dict[str, str]], Host]]:
    made: list[Host] = []

    def make(environment: dict[str, str]) -> Host:
        host = Host(Path(tempfile.mkdtemp(prefix="moo")), environment)  # short: sockets are below it
        made.append(host)
        return host

    yield make
    for host in made:
        await host.clean()
        shutil.rmtree(host.directory)


@pytest.fixture
def host(up: dict[str, str], make_host: Callable[[dict[str, str]], Host]) -> Host:
    return make_host(up)


@pytest.fixture
def other(up: dict[str, str], make_host: Callable[[dict[str, str]], Host]) -> Host:
    return make_host(up)


@pytest.fixture
async def cluster(up: dict[str, str]) -> AsyncIterator[moorage.Cluster]:
    async with await moorage.connect(
        registry=up["MOORAGE_REGISTRY"], secret_file=up["MOORAGE_SECRET_FILE"]
    ) as connected:
        yield connected


@pytest.fixture
async def volume(
    cluster: moorage.Cluster, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Create volumes that are deleted at the end."""
    made: list[str] = []

    async def create(size: str = "64M", **options: Any) -> str:
        name = f"t{os.getpid()}-{abs(hash(request.node.name)) % 10**6}-{len(made)}"
        await cluster.create_volume(name, size, **options)
        made.append(name)
        return name

    yield create
    for name in made:
        await cluster.delete(name, force=True)
