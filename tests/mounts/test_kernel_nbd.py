"""A mount through the kernel's nbd driver, in a guest whose kernel has it, of a volume of a cluster here."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moorage.cli.network import Network
from moorage.cli.network_cluster import NetworkCluster
from moorage.gateway.mount import system

from ..cluster import netns
from ..prerequisites import require
from . import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GUEST_TIMEOUT_S = 540


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[NetworkCluster]:
    require(guest.unusable() or netns.unusable())
    cluster = NetworkCluster(tmp_path / "cluster", Network(), clients=("c1", "c2"))
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()


async def test_mount_through_the_kernels_nbd(net: NetworkCluster, tmp_path: Path) -> None:
    await net.command("c2", "volume", "create", "data", "--size", "64M")
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    said = await guest.run(
        tmp_path,
        [sys.executable, str(Path(__file__).with_name("in_guest.py"))],
        net.prefix("c1"),
        {**inherited, **net.environment("c1"), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=GUEST_TIMEOUT_S,
    )
    assert "GUEST EXIT 0" in said, f"the guest's console:\n{said}"
    content = re.search("CONTENT ([0-9a-f]{64})", said)
    assert content is not None

    image, load = tmp_path / "image", tmp_path / "load"
    async with net.client("c2", "attach", "data", "--nbd", f"unix:{tmp_path}/sock", "--json"):
        await system.run("nbdcopy", f"nbd+unix:///data?socket={tmp_path}/sock", str(image))
    # The last unmount was by force: the journal is replayed, as a mount would, and nothing is mended.
    await system.run("e2fsck", "-p", "-E", "journal_only", str(image))
    await system.run("e2fsck", "-fn", str(image))
    await system.run("debugfs", "-R", f"dump /load {load}", str(image))
    assert hashlib.sha256(load.read_bytes()).hexdigest() == content[1]
