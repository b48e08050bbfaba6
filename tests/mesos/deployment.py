"""`moorage framework run` as tests use it: a process of its own, and what its cluster holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import yaml

import moorage
from moorage.framework.inventory import agent_from, reservations_in
from moorage.service.http import create_token
from moorage.wire.errors import MoorageError
from moorage.wire.secret import ClusterSecret

from .. import processes
from .cluster import Cluster

Json = dict[str, Any]
PROGRAM = (sys.executable, "-m", "moorage.cli.main")
RESOURCES = ("cpus:4;mem:4096;disk:10240;ports:[31000-31999]",)
TASKS = 9  # a member of each of two groups, and a device, on each of three hosts


class Framework:
    """A scheduler as a process of its own, and its spec. ``master``: by which way it goes to the master."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.master = cluster.master
        self.secret_file = directory / "secret"
        self.spec_file = directory / "spec.yaml"
        self.token_file = directory / "token"
        self.last: Json = {}
        ClusterSecret.create(self.secret_file)
        self.spec: Json = {
            "command": list(PROGRAM),
            "secret_file": str(self.secret_file),
            "principal": "moorage",
            "registry": {"cpus": 0.1, "mem": "64M", "disk": "64M"},
            "metadata": {"cpus": 0.1, "mem": "64M", "disk": "64M"},
            "devices": [{"source": "ROOT", "size": "2G", "cpus": 0.1, "mem": "64M"}],
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *options: str, with_spec: bool = True) -> None:
        self.spec_file.write_text(yaml.safe_dump(self.spec))
        spec = (str(self.spec_file),) if with_spec else ("--name", "moorage")
        self._process = await asyncio.create_subprocess_exec(
            *PROGRAM, "framework", "run", *spec, "--master", self.master, "--json",
            *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    def serve(self) -> tuple[str, ...]:
        """Options of start() for its JSON API, and of apply() for who may use it."""
        if not self.token_file.exists():
            create_token(self.token_file)
        return ("--http", "127.0.0.1:0", "--token-file", str(self.token_file))

    async def apply(self, *options: str, code: int = 0) -> Any:
        """Its answer, or the error."""
        self.spec_file.write_text(yaml.safe_dump(self.spec))
        return await self.tell("apply", str(self.spec_file), *options, code=code)

    async def tell(self, *arguments: str, code: int = 0) -> Any:
        """By a command to the scheduler that runs: its answer, or the error."""
        made = await asyncio.create_subprocess_exec(
            *PROGRAM, "framework", *arguments, "--address", self.last["http"],
            "--token-file", str(self.token_file), "--json",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, said = await made.communicate()
        assert made.returncode == code, said.decode()
        return json.loads(out or said)

    async def kill(self) -> str:
        """What it said on stderr."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return (await process.communicate())[1].decode()

    async def until(self, fits: Callable[[Json], object], timeout: float = 60) -> Json:
        """A line of it that fits."""
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                while line := await self._process.stdout.readline():
                    self.last = json.loads(line)
                    if fits(self.last):
                        return self.last
        except TimeoutError:
            raise AssertionError(f"not in {timeout:g} s; the last line is {self.last}") from None
        _, said = await self._process.communicate()
        raise AssertionError(f"the scheduler ended: {said.decode()}")

    async def until_all_run(self, count: int = TASKS, timeout: float = 60) -> Json:
        return await self.until(lambda line: len(line["running"]) == line["wanted"] == count, timeout)

    async def command(self, *arguments: str) -> Json:
        made = await asyncio.create_subprocess_exec(
            *PROGRAM, "framework", *arguments, str(self.spec_file), "--master", self.cluster.master,
            "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, said = await made.communicate()
        assert made.returncode == 0, said.decode()
        found: Json = json.loads(out)
        return found

    def connect(self) -> Any:
        return moorage.connect(registry=",".join(self.last["registry"]), secret_file=str(self.secret_file))

    def agents(self) -> list[Any]:
        return [agent_from("moorage", each) for each in self._agents()]

    def _agents(self) -> list[Json]:
        status, text = self.cluster.api("GET_AGENTS")
        assert status == 200
        found: list[Json] = json.loads(text)["get_agents"]["agents"]
        return found

    def reserved(self) -> list[str]:
        """The instance of each reservation; "" for a row that is no part of a whole one."""
        found = []
        for rows in (each.get("total_resources", []) for each in self._agents()):
            whole = [each for each in reservations_in("moorage", rows) if each.is_whole]
            parts = [row for each in whole for row in each.rows.values()]
            found += [str(each.instance) for each in whole]
            found += ["" for row in rows if row.get("reservations") and row not in parts]
        return sorted(found)

    def pids(self, instance: str) -> list[int]:
        """The process of a task: it works in its sandbox, where its executor does, too."""
        found = []
        for pid in processes.naming(PROGRAM[-1]):
            with contextlib.suppress(OSError):
                if f"/moorage.{instance}." in os.readlink(f"/proc/{pid}/cwd"):
                    found.append(pid)
        return found


MakeFramework = Callable[[Cluster], Framework]


async def settled(what: Callable[[], Any], timeout: float = 30) -> Any:
    """The first true value of ``what``; what the cluster does not answer yet is asked again."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(MoorageError):
                    if found := await what():
                        return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not in {timeout:g} s: {what}") from None


def install_moorage(directory: Path) -> Path:
    """A directory for a PATH, with `moorage` of this interpreter and this tree."""
    program = directory / "bin" / "moorage"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    return program.parent


async def all_up(cluster: Any, count: int = 3) -> bool:
    devices = (await cluster.status())["devices"].values()
    return [each["health"] for each in devices] == ["up"] * count


@contextlib.asynccontextmanager
async def volume_of(ours: Framework, devices: int = 3) -> AsyncIterator[tuple[Any, Any, bytes]]:
    """(cluster, volume, data): connected when all devices are up, a new volume, and what its first MiB is."""
    data = os.urandom(1 << 20)
    async with await settled(ours.connect) as connected:
        await settled(lambda: all_up(connected, devices))
        await settled(lambda: connected.create_volume("db", "64M", replicas=3))
        async with await connected.attach("db") as volume:
            await volume.write(0, data)
            yield connected, volume, data
