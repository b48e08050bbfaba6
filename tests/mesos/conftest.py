"""Real Mesos: masters and agents in a loopback network of their own, and schedulers that talk to them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ..prerequisites import require
from . import cgroups, machine, programs
from .cluster import Cluster
from .daemons import Options
from .deployment import Framework, MakeFramework
from .errors import MesosError
from .scheduler import Scheduler

MakeScheduler = Callable[..., Awaitable[Scheduler]]
MakeMesos = Callable[..., Awaitable[Cluster]]
PORT = 5050
AGENT_PORT = 5051


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whichever test is the first one waits for a download."""
    if "installed" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def installed() -> Path:
    """The programs; fetched and built if this machine has none. Without a network that fails: no skip."""
    require(machine.unusable())
    return programs.install(programs.default_cache())


@pytest.fixture(scope="session")
def privileged() -> None:
    """For tests that need mounts and the linux launcher."""
    require(machine.unprivileged() or cgroups.unusable())


@pytest.fixture
async def mesos(installed: Path, tmp_path: Path) -> AsyncIterator[MakeMesos]:
    """Start clusters: ``await mesos(agents=2, ...)`` takes the fields of :class:`Options`.

    They are gone when the test ends, with processes, mounts, cgroups and files. A test that fails keeps the
    logs.
    """
    made: list[Cluster] = []

    async def make(**options: Any) -> Cluster:
        network = machine.free_network((PORT, AGENT_PORT))
        options |= {"ip": f"{network}.1", "port": PORT, "agent_ip": f"{network}.11", "agent_port": AGENT_PORT}
        options["master_flags"] = ("allocation_interval=100ms", *options.get("master_flags", ()))
        # Not below tmp_path, which no other user can reach: tasks run as other users.
        directory = Path(tempfile.mkdtemp(prefix="moorage-mesos-"))
        directory.chmod(0o755)
        cluster = Cluster(directory)
        made.append(cluster)
        await asyncio.to_thread(cluster.up, Options(**options), installed)
        return cluster

    yield make
    left = [await asyncio.to_thread(_end, cluster, tmp_path / f"logs{at}") for at, cluster in enumerate(made)]
    assert not any(left), left


def _end(cluster: Cluster, logs: Path) -> list[str]:
    """What must not be there any more and is."""
    try:
        cluster.down()
    except MesosError as error:
        return [str(error)]
    shutil.copytree(cluster.directory / "logs", logs)
    left = [*machine.mounts_below(cluster.directory), *cluster.leftovers()]
    cluster.clean()
    return left


@pytest.fixture
async def scheduler() -> AsyncIterator[Callable[..., Awaitable[Scheduler]]]:
    """Subscribe: ``await scheduler(cluster.master, role=..., name=...)``."""
    made: list[Scheduler] = []

    async def make(master: str, role: str = "storage", **subscription: Any) -> Scheduler:
        made.append(Scheduler(master, role))
        return await made[-1].subscribe(**subscription)

    yield make
    for each in made:
        await each.close()


@pytest.fixture
async def framework(tmp_path: Path) -> AsyncIterator[MakeFramework]:
    made: list[Framework] = []

    def make(cluster: Cluster) -> Framework:
        made.append(Framework(cluster, tmp_path))
        return made[-1]

    yield make
    for each in made:
        await each.kill()
