"""Hosts die, fall silent and return under a verifying load; a frozen holder is fenced; no majority."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

import moorage
from moorage import errors
from moorage.bench.verify import VerifyingLoad
from moorage.cli.local_cluster import LocalCluster
from moorage.client.session import GroupSession

# The aim is 100 ms on a quiet machine; tests run beside others.
GAP_MS = 3000  # below every timeout that a client without second reads would wait for


async def connect(hosts: LocalCluster) -> moorage.Cluster:
    return await moorage.connect(registry=hosts.registry, secret_file=hosts.secret_file, timeout=20)


def all_whole(volume: moorage.Volume) -> bool:
    return not any(group.waiting_for() for group in volume.groups if isinstance(group, GroupSession))


async def until_whole(volume: moorage.Volume, seconds: float = 30) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not all_whole(volume):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"members did not come back: {volume.describe()}")


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["sync", "writeback"])
async def test_a_dead_host_and_a_silent_one(
    hosts: LocalCluster, durability: str, record_property: pytest.RecordProperty
) -> None:
    async with await connect(hosts) as cluster:
        await cluster.create_volume("db", "64M", groups=3, durability=durability)
        async with await cluster.attach("db") as volume:
            load = VerifyingLoad(volume, blocks=8192, run=1, depth=16)
            load.start("before")
            await asyncio.sleep(0.7)
            figures = [load.next_phase("killed")]
            await hosts.hosts[0].kill()
            await asyncio.sleep(1.5)
            figures.append(load.next_phase("returning"))
            await hosts.hosts[0].launch()
            await hosts.hosts[0].wait_ready()
            await until_whole(volume)
            figures.append(load.next_phase("silent"))
            hosts.hosts[1].freeze()
            await asyncio.sleep(1.5)
            figures.append(load.next_phase("thawed"))
            hosts.hosts[1].thaw()
            await until_whole(volume)
            figures.append(await load.stop())
            record_property("figures", figures)
            assert not load.mismatches
            assert all(each["errors"] == 0 for each in figures), figures
            for each in figures:
                assert float(str(each["read_gap_ms"])) < GAP_MS, figures
                assert float(str(each["write_gap_ms"])) < GAP_MS, figures
            hosts.hosts[2].freeze()  # what came back must hold everything
            await load.verify_all()
            assert not load.mismatches
            hosts.hosts[2].thaw()


HOLDER = """
import asyncio, os, sys, moorage
from moorage import errors
async def main():
    async with await moorage.connect() as cluster:
        volume = await cluster.attach("db")
        print("attached", flush=True)
        version = 0
        try:
            while True:
                version += 1
                await volume.write(0, b"old %08d" % version)
                assert (await volume.read(0, 12)) == b"old %08d" % version
        except errors.Fenced as error:
            print("fenced:", error, flush=True)
asyncio.run(main())
"""


async def test_a_frozen_holder_is_fenced_by_force(hosts: LocalCluster) -> None:
    environment = {
        **os.environ,
        "MOORAGE_REGISTRY": hosts.registry,
        "MOORAGE_SECRET_FILE": str(hosts.secret_file),
    }
    async with await connect(hosts) as cluster:
        await cluster.create_volume("db", "8M")
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, env=environment, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            assert await holder.stdout.readline() == b"attached\n"
            holder.send_signal(signal.SIGSTOP)
            with pytest.raises(errors.Busy, match=str(holder.pid)):
                await cluster.attach("db")
            async with await cluster.attach("db", force=True) as volume:
                before = await volume.read(0, 12)
                assert before.startswith(b"old ") or before == bytes(12)
                await volume.write(0, b"new owner   ")
                holder.send_signal(signal.SIGCONT)
                line = await asyncio.wait_for(holder.stdout.readline(), 10)
                assert line.startswith(b"fenced:") and b"taken over" in line
                assert await volume.read(0, 12) == b"new owner   "
                await holder.wait()
                assert await volume.read(0, 12) == b"new owner   "
        finally:
            if holder.returncode is None:
                holder.kill()
                await holder.wait()


async def test_without_a_majority(hosts: LocalCluster) -> None:
    async with await connect(hosts) as cluster:
        await cluster.create_volume("db", "8M")
        async with await cluster.attach("db", io_timeout=1.5) as volume:
            await volume.write(0, b"1" * 4096)
            for host in hosts.hosts[1:]:
                host.freeze()
            with pytest.raises(errors.NoQuorum, match=r"waiting for 2 of 3: h\d silent for") as caught:
                await volume.write(0, b"2" * 4096)
            assert caught.value.outcome == "unknown"
            later = asyncio.create_task(volume.write(1, b"3"))
            await asyncio.sleep(0)
            for host in hosts.hosts[1:]:
                host.thaw()
            await later
            assert await volume.read(0, 4) == b"2322"  # the unknown write, and what came after it
            await until_whole(volume)


@pytest.mark.slow
async def test_no_metadata_no_problem(hosts: LocalCluster) -> None:
    """Two of three hosts lose registry and metadata at once when the third is gone: I/O needs neither."""
    async with await connect(hosts) as cluster:
        await cluster.create_volume("db", "8M")
        async with await cluster.attach("db") as volume:
            load = VerifyingLoad(volume, blocks=1024, run=2, depth=8)
            load.start("leader dies")
            await hosts.hosts[0].kill()
            await asyncio.sleep(6)  # longer than the lease
            figures = await load.stop()
            assert not load.mismatches and not figures["errors"], figures


@pytest.mark.slow
async def test_power_failure_of_everything(hosts: LocalCluster, tmp_path: Path) -> None:
    """SIGKILL to all at once in the middle of writes: every acknowledged one is there after the restart."""
    async with await connect(hosts) as cluster:
        await cluster.create_volume("db", "32M", groups=2)
        volume = await cluster.attach("db", io_timeout=0)
        load = VerifyingLoad(volume, blocks=4096, run=3, depth=32, read_share=0.1)
        load.start("writing")
        for _ in range(2):
            await asyncio.sleep(0.7)
            await hosts.kill()
            await hosts.start()
        await asyncio.sleep(0.5)
        figures = await load.stop()
        assert not load.mismatches and not figures["errors"], figures
        await load.verify_all()
        assert not load.mismatches
        await volume.detach()
