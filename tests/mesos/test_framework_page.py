"""docs/framework.md, "From empty agents to a mounted volume": its very commands, typed on a real Mesos.

What differs is what is the page's own world: addresses, /etc, /data, and where `moorage` is on the agents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.prerequisites import no_mounts, require

from .conftest import MakeMesos
from .deployment import RESOURCES, install_moorage

PAGE = Path(__file__).parents[2] / "docs" / "framework.md"
SECONDS = 120

pytestmark = pytest.mark.timeout(300)


def commands() -> tuple[str, str, str]:
    """What is typed before the scheduler runs, the command that runs it, and what is typed elsewhere."""
    section = PAGE.read_text().split("## From empty agents to a mounted volume")[1].split("\n## ")[0]
    here, elsewhere = re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    first, begin, rest = here.partition("moorage framework run")
    assert begin and rest.count("\n") == 1, "it is the last one there"
    return first, begin + rest, elsewhere


class Shell:
    """Commands in a directory, as a person at a terminal gives them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {**os.environ, "PATH": f"{install_moorage(directory)}:{os.environ['PATH']}"}
        self.env |= {"MOORAGE_STATE_DIR": str(directory / "s"), "COLUMNS": "200"}
        self._env_file = directory / "env"

    async def type(self, script: str) -> str:
        """All lines, one after the other; what they export is kept for the next ones."""
        made = await self.begin(f"set -e\n{script}\nenv -0 >{self._env_file}")
        async with asyncio.timeout(SECONDS):
            out, _ = await made.communicate()
        assert made.returncode == 0, out.decode()
        lines = self._env_file.read_bytes().decode().split("\0")
        self.env |= dict(line.split("=", 1) for line in lines if line.startswith("MOORAGE_"))
        return out.decode()

    async def begin(self, script: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "bash", "-c", script, env=self.env, cwd=self.directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def running(shell: Shell, command: str) -> AsyncIterator[str]:
    """The scheduler; gives what clients are told when all runs."""
    process = await shell.begin(f"exec {command}")
    assert process.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(SECONDS):
            while "for clients: " not in "".join(said[-1:]):
                line = (await process.stdout.readline()).decode()
                assert line, "".join(said)
                said.append(line)
        yield said[-1].strip().removeprefix("for clients: ")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.slow
async def test_from_empty_agents_to_a_mounted_volume(
    mesos: MakeMesos, privileged: None, tmp_path: Path
) -> None:
    require(no_mounts())
    cluster = await mesos(agents=3, resources=RESOURCES, mount_disks=("102400",))
    shell = Shell(tmp_path)
    first, run, elsewhere = commands()
    ours = {
        "/etc/moorage": str(tmp_path / "etc"),
        "/data": str(tmp_path / "data"),
        "10.0.0.1:5050": cluster.master,
        "secret_file: /etc": f"command: {tmp_path / 'bin' / 'moorage'}\nsecret_file: /etc",
    }
    for text, here in reversed(ours.items()):
        assert text in first + run + elsewhere, f"{text} is not on the page any more"
        first, run, elsewhere = (each.replace(text, here) for each in (first, run, elsewhere))
    (tmp_path / "etc").mkdir()
    (tmp_path / "data").mkdir()
    planned = await shell.type(first)
    assert planned.count("reserve, create volume, launch") == 9, planned
    async with running(shell, run) as told:
        assert told.startswith("MOORAGE_REGISTRY=")
        typed = re.sub(r"MOORAGE_REGISTRY=\S+", told, elsewhere, count=1)
        assert typed != elsewhere
        shown = await shell.type(typed)
        try:
            assert os.path.ismount(tmp_path / "data"), shown
            (tmp_path / "data" / "file").write_text("hello")
        finally:
            await shell.type(f"moorage umount {tmp_path / 'data'}")
        assert not (tmp_path / "data" / "file").exists()
        await shell.type(f"moorage mount db {tmp_path / 'data'}")
        assert (tmp_path / "data" / "file").read_text() == "hello"
        await shell.type(f"moorage umount {tmp_path / 'data'}")
