"""Hosts that die whole: their mounts, databases and programs with them, and what is found on another host."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.machine_mounts import unmount
from moorage.cli.machines import Machine, MachineCluster
from moorage.cli.network import Network, check_usable
from moorage.wire.errors import MoorageError
from tests.prerequisites import no_mounts, require

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def possible() -> None:
    try:
        check_usable()
    except MoorageError as error:
        require(str(error))


@pytest.fixture(scope="module")
def mountable(possible: None) -> None:
    require(no_mounts())


@pytest.fixture
async def machine(possible: None, tmp_path: Path) -> AsyncIterator[Machine]:
    network = Network()
    try:
        network.add("h1")
        made = Machine("h1", network, tmp_path / "run")
        await made.power_on()
        yield made
        await made.cut_power()
    finally:
        network.close()


async def told(machine: Machine, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(*machine.prefix, *command, stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode().strip()


async def test_all_that_a_machine_runs_dies_with_it(machine: Machine, tmp_path: Path) -> None:
    (machine.run / "note").touch()
    # A daemon: nobody's child here, in a session of its own, and deaf to what could be sent to it.
    daemon = "trap '' TERM HUP INT; exec sleep 1000 >/dev/null"
    await told(machine, "sh", "-c", f"setsid sh -c '{daemon}' & true")
    inside = os.readlink(f"/proc/{machine.pid}/ns/pid")
    before = members(inside)
    assert len(before) == 2, "the first process and the daemon"
    await machine.cut_power()
    assert members(inside) == []
    await machine.power_on()
    assert not (machine.run / "note").exists()


def members(namespace: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        try:
            if os.readlink(path) == namespace:
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


async def test_a_mount_of_a_machine_is_its_own(machine: Machine, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    await told(machine, "mount", "-t", "tmpfs", "none", str(where))
    assert str(where) in await told(machine, "cat", "/proc/self/mounts")
    assert str(where) not in Path("/proc/self/mounts").read_text()


async def moorage(*arguments: str) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moorage.cli.main", *arguments, "--json"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        printed, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert printed, said.decode()
    return process.returncode or 0, json.loads(printed)


def left(directory: Path) -> list[str]:
    """Namespaces, loop devices and mounts below ``directory`` that a command left."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    loops = [
        str(path)
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if str(directory) in path.read_text()
    ]
    return mounts + loops


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_takeovers(mountable: None, tmp_path: Path) -> None:
    """How long they take is for a quiet machine to tell; that nothing is lost, and each phase, for any."""
    _, found = await moorage("bench", "takeover", "--runs", "3", "--data", str(tmp_path))
    assert [run["lost"] + run["wrong"] for run in found["runs"]] == [0, 0, 0]
    assert [run["victim"] for run in found["runs"]] == ["h1", "h2", "h3"]
    assert all(seconds >= 0 for run in found["runs"] for seconds in run["phases"].values())
    assert found["phases"]["in all"]["p99_s"] < 60
    assert found["clean"]
    assert left(tmp_path) == []


async def run_at(machine: Machine, script: str) -> int:
    process = await asyncio.create_subprocess_exec(*machine.prefix, "sh", "-c", script)
    return await process.wait()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_mount_that_was_cut_off_is_fenced_and_says_by_whom(mountable: None, tmp_path: Path) -> None:
    """Its host lives, and hears nothing of the takeover until the cable is plugged in again."""
    network = Network()
    cluster = MachineCluster(tmp_path / "cluster", network)
    where, (old, new) = cluster.volumes / "db", (cluster.machines["h1"], cluster.machines["h2"])
    where.mkdir()
    try:
        await cluster.start()
        await cluster.command("h1", "mount", "moorage:///db?size=64M", str(where))
        assert await run_at(old, f"echo before > {where}/file && sync -f {where}") == 0
        network.plug("h1", plugged=False)
        await cluster.command("h2", "mount", "db", str(where), "--wait", "30")
        assert await told(new, "cat", f"{where}/file") == "before"
        assert await run_at(new, f"echo after > {where}/file && sync -f {where}") == 0
        network.plug("h1", plugged=True)
        async with asyncio.timeout(60):
            while (mount := json.loads(await cluster.command("h1", "mounts", "--json"))[0])[
                "state"
            ] != "lost":
                await asyncio.sleep(0.2)
        assert "was taken over by moorage mount on h2" in mount["reason"]
        assert await run_at(old, f"echo zombie > {where}/file && sync -f {where} 2>/dev/null") != 0
        await cluster.command("h1", "umount", str(where))
        await cluster.command("h2", "umount", str(where))
        await cluster.command("h1", "mount", "db", str(where))
        assert await told(old, "cat", f"{where}/file") == "after"
        clean, said = await unmount(cluster, "h1", "db")
        assert clean, said
    finally:
        await cluster.close()
    assert left(tmp_path) == []


@pytest.fixture
def packages(mountable: None) -> None:
    """The databases' programs: on a bare machine they are installed now."""
    command = ["make", "--no-print-directory", "-C", str(ROOT), "demo-packages"]
    ensured = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ensured.returncode == 0, ensured.stdout + ensured.stderr


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Where other users may pass through: those of pytest are for one only."""
    with tempfile.TemporaryDirectory(prefix="moorage-test-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_databases_and_a_web_site(packages: None, open_directory: Path) -> None:
    code, found = await moorage("demo-mysql", "--data", str(open_directory))
    assert [promise for promise in found["promises"] if not promise["kept"]] == []
    assert code == 0 and found["kept"]
    told = [{event["what"] for event in timeline["events"]} for timeline in found["timelines"]]
    assert {"the page is served", "the first row is committed"} <= told[0]
    assert "the first transaction is committed" in told[1]
    assert left(open_directory) == []
