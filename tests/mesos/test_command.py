"""``python -m tests.mesos``: a cluster that lives longer than the command that started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from . import machine, processes
from .cluster import Cluster


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="moorage-mesos-") as name:
        path = Path(name)
        yield path
        Cluster(path).down()
        assert machine.mounts_below(path) == []


@pytest.fixture
def addresses() -> list[str]:
    network = machine.free_network((5050, 5051))
    return ["--ip", f"{network}.1", "--agent-ip", f"{network}.11"]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.mesos", *arguments),
        cwd=machine.ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def command(*arguments: str) -> tuple[int, str, str]:
    process = await start(*arguments)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_up_detached_and_down(installed: Path, directory: Path, addresses: list[str]) -> None:
    there = ("--work-dir", str(directory))
    code, out, err = await command("up", *there, *addresses, "--agents", "2", "--detach", "--timeout", "30")
    assert code == 0, err
    ready = json.loads(out)
    assert ready["ready"] and list(ready["agents"]) == ["agent1", "agent2"]

    _, out, _ = await command("status", *there)
    assert [line.split()[0] for line in out.splitlines()] == ["master", "agent1", "agent2"]
    pids = [int(line.split()[3]) for line in out.splitlines()]
    assert all(map(processes.alive, pids))
    _, agent_id, _ = await command("agent-id", *there, "agent2")
    code, out, _ = await command("api", *there, '{"type": "GET_AGENTS"}')
    known = [each["agent_info"]["id"]["value"] for each in json.loads(out)["get_agents"]["agents"]]
    assert code == 0 and agent_id.strip() in known
    assert (await command("api", *there, '{"type": "NONSENSE"}'))[0] == 1

    code, _, err = await command("up", *there, *addresses)
    assert code == 1 and "already running" in err
    assert (await command("kill", *there, "agent2"))[0] == 0
    assert not processes.alive(pids[2])
    assert (await command("kill", *there, "agent2"))[0] == 1
    assert (await command("start", *there, "agent2"))[0] == 0
    assert (await command("down", *there))[0] == 0
    cluster = Cluster(directory)
    assert not any(map(cluster.pid, cluster.daemons)) and cluster.leftovers() == []


async def test_up_in_the_foreground_ends_with_a_signal(
    installed: Path, directory: Path, addresses: list[str]
) -> None:
    process = await start("up", "--work-dir", str(directory), *addresses)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert json.loads(await process.stdout.readline())["ready"]
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0
    cluster = Cluster(directory)
    assert not any(map(cluster.pid, cluster.daemons))


WITHOUT_CGROUPS_OF_VERSION_1 = """
set -e
for point in $(awk '$3 == "cgroup" { print $2 }' /proc/self/mounts | sort -r); do umount --lazy $point; done
for verb in "up --isolation filesystem/linux --detach $OPTIONS" "down"; do
    "$PYTHON" -m tests.mesos $verb --work-dir "$DIRECTORY"
    awk '$3 == "cgroup" { print "cgroups:", $4 }' /proc/self/mounts
done
"""


@pytest.mark.slow
async def test_the_linux_launcher_where_only_cgroups_of_version_2_are(
    installed: Path, privileged: None, directory: Path, addresses: list[str]
) -> None:
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "DIRECTORY": str(directory),
        "OPTIONS": " ".join(addresses),
    }
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", WITHOUT_CGROUPS_OF_VERSION_1),
        env=env,
        cwd=machine.ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    ready, *cgroups = out.decode().splitlines()
    assert process.returncode == 0 and json.loads(ready)["ready"]
    assert cgroups == ["cgroups: rw,relatime,freezer"], "mounted while it runs, and not afterwards"


async def test_a_flag_that_mesos_refuses_is_shown_with_its_reason(
    installed: Path, directory: Path, addresses: list[str]
) -> None:
    wrong = ("--agent-flag", "no_such_flag=1")
    code, _, err = await command("up", "--work-dir", str(directory), *addresses, *wrong)
    assert code == 1 and "agent1 ended" in err and "no_such_flag" in err
