"""fio, with its own NBD client and its own checksums, through the death and return of a host."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalCluster

SIZE = 64 << 20


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["kill", pytest.param("freeze", marks=pytest.mark.slow)])
async def test_fio_verifies_through_the_death_of_a_host(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    tmp_path: Path,
    how: str,
    until: Callable[..., Awaitable[Any]],
) -> None:
    await cluster.create_volume("fio", size=SIZE, replicas=3)
    path = tmp_path / "nbd"
    arguments = ["attach", "fio", "--nbd", f"unix:{path}", "--json"]
    async with ClientProcess(arguments, environment, tmp_path / "attach.log"):
        fio = await asyncio.create_subprocess_exec(
            "fio",
            "--name=verify",
            "--ioengine=nbd",
            f"--uri=nbd+unix:///fio?socket={path}",
            "--rw=randwrite",
            "--bs=4k",
            f"--size={SIZE}",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--loops=2",
            "--output-format=json",
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        ended = asyncio.create_task(fio.communicate())
        host = local.hosts[1]

        async def written() -> bool:
            devices = (await cluster.status())["devices"].values()
            return ended.done() or min(device["used"] for device in devices) > SIZE // 4

        await until(written, "a quarter of the first pass is written")
        assert not ended.done(), "fio ended before the host died: the test shows nothing"
        if how == "kill":
            await host.kill()
            await host.launch()
            await host.wait_ready()
        else:
            host.freeze()
            await asyncio.sleep(2)  # how long the host is silent, not a wait for something
            host.thaw()
        out, err = await ended
        assert fio.returncode == 0, err.decode() + out.decode()
        job = json.loads(out[out.index(b"{") :])["jobs"][0]
        assert job["error"] == 0
        assert job["write"]["total_ios"] >= SIZE // 4096
        assert job["read"]["total_ios"] >= SIZE // 4096, "nothing was verified"
