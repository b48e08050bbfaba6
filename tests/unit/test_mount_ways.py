"""Which way to a block device is taken, and what is said where there is none."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from moorage.gateway.mount import fuse_device, nbd_device, system, ways
from moorage.wire.errors import Invalid


@pytest.fixture
def without_nbd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No driver, and no modprobe that could load one."""
    monkeypatch.setattr(nbd_device.kernel_nbd, "available", lambda: False)
    monkeypatch.setattr(nbd_device.system, "PATH", str(tmp_path))


def test_nbd_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_device.kernel_nbd, "available", lambda: True)
    monkeypatch.setattr(fuse_device, "FUSE", Path("/dev/nothing"))
    assert ways.choose().name == "nbd"


def test_a_module_that_can_be_loaded_is(
    without_nbd: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modprobe, loaded = tmp_path / "modprobe", tmp_path / "loaded"
    modprobe.write_text(f'#!/bin/sh\necho "$@" >{loaded}\n')
    modprobe.chmod(0o755)
    monkeypatch.setattr(nbd_device.kernel_nbd, "available", loaded.exists)
    assert ways.choose().name == "nbd"
    assert loaded.read_text() == "--quiet nbd\n"


def test_fuse_is_taken_else(without_nbd: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fuse").touch()
    (tmp_path / "losetup").touch(mode=0o755)
    monkeypatch.setattr(fuse_device, "FUSE", tmp_path / "fuse")
    assert ways.choose().name == "fuse"


def test_neither(without_nbd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_device, "FUSE", Path("/dev/nothing"))
    with pytest.raises(Invalid, match="modprobe fuse"):
        ways.choose()


async def test_a_program_that_leaves_another_one_behind_is_not_waited_for() -> None:
    """As s3fs does, which goes to the background with all that it has open."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    left = await system.run("sh", "-c", "sleep 60 & echo $!")
    os.kill(int(left), signal.SIGKILL)
    assert loop.time() - began < 30
    with pytest.raises(system.ProgramFailed, match=r"sh -c .*: what is wrong") as raised:
        await system.run("sh", "-c", "echo what is wrong >&2; exit 3")
    assert raised.value.details["status"] == 3
