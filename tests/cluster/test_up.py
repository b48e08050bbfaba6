"""`moorage up` keeps its hosts running."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import moorage
from moorage.cli.clients import ClientProcess


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[ClientProcess]:
    arguments = ["up", "--json", "--data", str(tmp_path / "data"), "--capacity", "1G"]
    async with ClientProcess(arguments, {"HOME": str(tmp_path)}, tmp_path / "up.log") as started:
        yield started


async def test_a_host_that_was_killed_is_started_again(up: ClientProcess) -> None:
    ready = up.ready
    async with await moorage.connect(registry=ready["registry"], secret_file=ready["secret_file"]) as cluster:
        devices = (await cluster.status())["devices"]
        device, row = next(iter(devices.items()))
        before = (await cluster.describe_device(device))["process"]["pid"]
        os.kill(before, signal.SIGKILL)
        ended = await up.answer()
        assert ended == {"event": "ended", "host": row["host"], "code": -9, "again_in_s": 1.0}
        back = await up.answer()
        assert (back["event"], back["host"]) == ("back", row["host"])
        assert (await cluster.describe_device(device))["process"]["pid"] == back["pid"] != before


@pytest.mark.slow
async def test_a_host_that_a_restart_does_not_help_stays_down(up: ClientProcess, tmp_path: Path) -> None:
    async with await moorage.connect(
        registry=up.ready["registry"], secret_file=up.ready["secret_file"]
    ) as cluster:
        device, row = next(iter((await cluster.status())["devices"].items()))
        pid = (await cluster.describe_device(device))["process"]["pid"]
    identity = tmp_path / "data" / row["host"] / "data" / "identity.json"
    identity.write_text("damaged")
    os.kill(pid, signal.SIGKILL)
    assert (await up.answer())["code"] == -9
    last = await up.answer()
    assert (last["event"], last["code"], last["again_in_s"]) == ("ended", 5, None)
