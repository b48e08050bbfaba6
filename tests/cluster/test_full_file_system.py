"""The file system under a host runs full of something else: what it cannot allocate is said, nothing is lost.

Each data directory is an ext4 of its own in a loop-mounted file; a filler beside the host's files takes all
the room, so that segments, LMDB (of the index and of both Raft groups) and the superblock meet ENOSPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.bench.verify import VerifyingLoad
from moorage.cli.local_cluster import LocalCluster, LocalHost
from moorage.wire.errors import MoorageError
from tests.prerequisites import PATH, no_mounts, no_programs, require

MIB = 1 << 20
SIZE = 320 * MIB
TOOLS = ("mkfs.ext4", "mount", "umount")
BLOCKS = 4096
Awaiting = Callable[..., Awaitable[Any]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": PATH}
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class Mounts:
    def __init__(self) -> None:
        self._mounted: list[Path] = []

    def mount(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        image = directory.with_name(f"{directory.name}.ext4")
        with image.open("wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        try:
            run("mount", "-o", "loop", str(image), str(directory))
        except OSError as error:
            require(f"no loop device can be mounted here: {error}")
        self._mounted.append(directory)

    def close(self) -> None:
        for directory in reversed(self._mounted):
            try:
                run("umount", str(directory))
            except OSError:
                run("umount", "--lazy", str(directory))  # some process still looks at it


def fill(host: LocalHost) -> None:
    """Not one byte is left."""
    with (host.data / "filler").open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def clear(host: LocalHost) -> None:
    (host.data / "filler").unlink()


@pytest.fixture
async def mounted(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    require(no_mounts(("/dev/loop-control",)) or no_programs(*TOOLS))
    local, mounts = LocalCluster(tmp_path / "c", options={"MOORAGE_CAPACITY": "240M"}), Mounts()
    try:
        for host in local.hosts:
            mounts.mount(host.data)
        await local.start()
        yield local
    finally:
        try:
            await local.kill()
        finally:
            mounts.close()


async def connect(local: LocalCluster) -> moorage.Cluster:
    return await moorage.connect(registry=local.registry, secret_file=local.secret_file, timeout=30)


async def revive(host: LocalHost) -> None:
    """It may have ended, which is its right when it cannot remember anything any more: then it is started."""
    if not host.running:
        await host.launch()
        await host.wait_ready()


async def until_current(volume: moorage.Volume, until: Awaiting) -> None:
    async def current() -> bool:
        return all(member["state"] == "current" for member in volume.members())

    await until(current, "all members are current", timeout=60)


async def test_one_file_system_is_full(mounted: LocalCluster, until: Awaiting) -> None:
    """The others go on; it says what is wrong; it is current again when there is room."""
    victim = mounted.hosts[2]
    async with await connect(mounted) as cluster:
        await cluster.create_volume("data", size=BLOCKS * 4096, replicas=3)
        async with await cluster.attach("data") as volume:
            load = VerifyingLoad(volume, blocks=BLOCKS, run=1, depth=16)
            load.start("before")
            await asyncio.sleep(1)
            fill(victim)
            load.next_phase("full")
            await asyncio.sleep(10)
            figures = load.next_phase("room")
            assert figures["errors"] == 0 and int(str(figures["writes"])) > 500, figures
            assert "No space left on device" in victim.log.read_text() or not victim.running
            clear(victim)
            await revive(victim)
            await until_current(volume, until)
            figures = await load.stop()
            assert figures["errors"] == 0, figures
            await load.verify_all()
            assert load.mismatches == []
            assert await volume.read_from(victim.name, 0, 4096) == await volume.read(0, 4096)


async def test_all_file_systems_are_full(mounted: LocalCluster, until: Awaiting) -> None:
    """Writes wait, or fail with a reason; what was acknowledged is there when there is room again."""
    async with await connect(mounted) as cluster:
        await cluster.create_volume("data", size=BLOCKS * 4096, replicas=3)
        async with await cluster.attach("data", io_timeout=20) as volume:
            load = VerifyingLoad(volume, blocks=BLOCKS, run=2, depth=16)
            load.start("before")
            await asyncio.sleep(1)
            for host in mounted.hosts:
                fill(host)
            load.next_phase("full")
            await asyncio.sleep(10)
            load.next_phase("room")
            for host in mounted.hosts:
                clear(host)
            for host in mounted.hosts:
                await revive(host)
            await until_current(volume, until)
            await asyncio.sleep(1)
            figures = load.next_phase("after")
            await asyncio.sleep(1)
            figures = await load.stop()
            assert int(str(figures["writes"])) > 50 and figures["errors"] == 0, figures
            await load.verify_all()
            assert load.mismatches == []


async def test_a_start_on_a_full_file_system_says_so(mounted: LocalCluster, until: Awaiting) -> None:
    victim = mounted.hosts[1]
    async with await connect(mounted) as cluster:
        await cluster.create_volume("data", size=BLOCKS * 4096, replicas=3)
        async with await cluster.attach("data") as volume:
            await volume.write(0, b"before" * 1000)
            await victim.kill()
            fill(victim)
            size = victim.log.stat().st_size
            await victim.launch()
            with contextlib.suppress(MoorageError):
                await victim.wait_ready(timeout=10)
            said = victim.log.read_text()[size:]
            assert os.strerror(errno.ENOSPC) in said, said
            assert "Traceback" not in said, said
            await volume.write(0, b"during" * 1000)
            await victim.kill()
            clear(victim)
            await revive(victim)
            await until_current(volume, until)
            assert await volume.read(0, 6000) == b"during" * 1000
