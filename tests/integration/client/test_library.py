"""The library against real services: the public interface, its errors, the examples of docs/client.md."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import threading
from pathlib import Path

import pytest

import moorage
import moorage.sync
from moorage import errors
from moorage.cli.local_cluster import LocalCluster

DOCS = Path(__file__).resolve().parents[3] / "docs" / "client.md"


async def connect(hosts: LocalCluster) -> moorage.Cluster:
    return await moorage.connect(registry=hosts.registry, secret_file=hosts.secret_file, timeout=20)


async def test_the_public_interface(hosts: LocalCluster, tmp_path: Path) -> None:
    await check_who_cannot_connect(hosts, tmp_path)
    async with await connect(hosts) as cluster:
        info = await cluster.create_volume("db", "64M", groups=2)
        assert (info.name, info.size, info.replicas, info.durability) == ("db", 64 << 20, 3, "sync")
        await cluster.create_volume("cache", 16 << 20, durability="writeback", replicas=1)
        assert [each.name for each in await cluster.list_volumes()] == ["cache", "db"]
        await check_io(cluster)
        await check_errors(cluster)
        async with await cluster.attach("cache") as volume:
            await volume.write(0, b"x" * 10000)
            await volume.flush()
            assert await volume.read(9999, 2) == b"x\0"
        await check_quotas(cluster, hosts)
        await cluster.delete("cache")
        with pytest.raises(errors.NotFound):
            await cluster.show("cache")
        view = await cluster.status()
        assert len(view["hosts"]) == 3


async def check_quotas(cluster: moorage.Cluster, hosts: LocalCluster) -> None:
    secret = {"registry": hosts.registry, "secret_file": hosts.secret_file}
    async with await moorage.connect(**secret, principal="team-a") as other:
        quota = await cluster.set_quota("team-a", capacity="40M", volumes=2)
        assert (quota.capacity, quota.volumes, quota.used_bytes) == (40 << 20, 2, 0)
        assert (await other.create_volume("web", "24M", replicas=1, iops=50)).principal == "team-a"
        words = "'team-a' has 1 volume of 24 MiB in sum, quota 40 MiB; 'logs' needs 20 MiB more"
        with pytest.raises(errors.LimitExceeded, match=words):
            await other.create_volume("logs", "20M", replicas=1)
        await cluster.create_volume("logs", "20M", replicas=1)
        with pytest.raises(errors.LimitExceeded, match="'web' needs 40 MiB more"):
            await cluster.resize("web", "64M")
        async with asyncio.timeout(10):  # those of before the first quota, when metadata has told of them
            while (await cluster.quotas())[0].used_volumes < 3:
                await asyncio.sleep(0.05)
        rows = {row.principal: (row.used_volumes, row.used_bytes) for row in await cluster.quotas()}
        assert rows == {"default": (3, 116 << 20), "team-a": (1, 24 << 20)}
        info = await other.set_volume("web", bw="1M")
        assert (info.iops, info.bw) == (50, 1 << 20)
        await cluster.delete("logs")
        await cluster.delete("web")
        assert (await cluster.remove_quota("team-a")).used_volumes == 0


async def check_holes(volume: moorage.Volume) -> None:
    """Two groups, so every second chunk is another one's; what is not whole blocks was written as data."""
    written = [(4095 + (9 << 20) + 4095) // 4096 * 4096, 64 << 20]
    extents = await volume.block_status(0, volume.size)
    ends = [sum(size for size, _ in extents[: at + 1]) for at in range(len(extents))]
    assert [is_hole for _, is_hole in extents] == [False, True, False, True, False, True]
    assert ends == [8192, 4096 * ((5000 + (4 << 20)) // 4096), 8 << 20, 9 << 20, *written]


async def check_io(cluster: moorage.Cluster) -> None:
    data = random.Random(1).randbytes(9 << 20)
    async with await cluster.attach("moorage:///db?io_timeout=30") as volume:
        assert (volume.size, volume.epoch, volume.read_only) == (64 << 20, 1, False)
        await volume.write(4095, data)
        assert await volume.read(4095, len(data)) == data
        await volume.write_zeroes(5000, 4 << 20)
        await volume.discard(8 << 20, 1 << 20)
        expected = bytearray(bytes(4095) + data)
        expected[5000 : 5000 + (4 << 20)] = bytes(4 << 20)
        expected[8 << 20 : 9 << 20] = bytes(1 << 20)
        assert await volume.read(0, len(expected)) == expected
        await check_holes(volume)
        await volume.resize("80M")
        await volume.write((80 << 20) - 3, b"end")
        holder = (await cluster.show("db")).holder
        assert holder is not None and holder["pid"] == os.getpid()
        async with await cluster.attach("db", read_only=True) as copy:
            assert await copy.read(0, 4096) == expected[:4096]
            with pytest.raises(errors.ReadOnly):
                await copy.write(0, b"x")
    async with await cluster.attach("db") as volume:
        assert volume.epoch == 2 and volume.size == 80 << 20
        assert await volume.read(0, len(expected)) == expected
        assert await volume.read((80 << 20) - 3, 3) == b"end"


async def check_errors(cluster: moorage.Cluster) -> None:
    with pytest.raises(errors.NameTaken):
        await cluster.create_volume("db", "1M")
    for attempt in (cluster.attach("nobody"), cluster.show("nobody"), cluster.delete("nobody")):
        with pytest.raises(errors.NotFound, match="nobody"):
            await attempt
    with pytest.raises(errors.NotEnoughHosts):
        await cluster.create_volume("five", "1M", replicas=5)
    with pytest.raises(errors.Invalid, match="is not in"):
        await cluster.attach("moorage://elsewhere/db")
    async with await cluster.attach("db") as volume:
        with pytest.raises(errors.Busy):
            await cluster.attach("db")
        with pytest.raises(errors.Busy):
            await cluster.delete("db")
        with pytest.raises(errors.Invalid):
            await volume.resize("1M")


async def test_the_synchronous_twin_and_the_examples_of_the_documentation(hosts: LocalCluster) -> None:
    await check_the_synchronous_twin(hosts)
    examples = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 5
    environment = {
        **os.environ,
        "MOORAGE_REGISTRY": hosts.registry,
        "MOORAGE_SECRET_FILE": str(hosts.secret_file),
    }
    for example in examples:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            example,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await process.communicate()
        assert process.returncode == 0, f"{example}\n{error.decode()}"


async def check_the_synchronous_twin(hosts: LocalCluster) -> None:
    def use() -> None:
        with moorage.sync.connect(registry=hosts.registry, secret_file=hosts.secret_file) as cluster:
            cluster.create_volume("s", "8M")
            with cluster.attach("s") as volume:
                volume.write(5, b"hello", fua=True)
                volume.flush()
                into = bytearray(5)
                volume.readinto(5, into)
                assert into == b"hello" == volume.read(5, 5)
                volume.discard(0, 4096)
                volume.write_zeroes(0, 1)
                assert volume.read(5, 5) == bytes(5)
                assert volume.describe()["epoch"] == volume.epoch == 1
                volume.resize("16M")
                assert (volume.name, volume.size, volume.durability) == ("s", 16 << 20, "sync")
            with pytest.raises(errors.ShuttingDown):
                volume.read(0, 1)
            assert cluster.show("s").epoch == 1
            cluster.delete("s")
            assert cluster.list_volumes() == []
        with pytest.raises(errors.ShuttingDown):
            cluster.status()

    before = threading.active_count()
    await asyncio.to_thread(use)
    assert threading.active_count() <= before + 1  # the worker of to_thread stays


async def check_who_cannot_connect(hosts: LocalCluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    moorage_secret = hosts.secret_file.read_text()
    other.write_text(moorage_secret[:17] + "0" * 64 + "\n")
    other.chmod(0o600)
    with pytest.raises(errors.MoorageError):
        await moorage.connect(registry=hosts.registry, secret_file=other, timeout=2)
    with pytest.raises(errors.MoorageError):
        await moorage.connect(registry="127.0.0.1:1", secret_file=hosts.secret_file, timeout=1)


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.slow)])
async def test_attaching_and_detaching_leaks_nothing(hosts: LocalCluster, rounds: int) -> None:
    async with await connect(hosts) as cluster:
        for index in range(4):
            await cluster.create_volume(f"v{index}", "8M")
        counts: list[tuple[int, int]] = []
        memory: list[int] = []
        for _ in range(rounds):
            for index in range(4):
                async with await cluster.attach(f"v{index}") as volume:
                    await volume.write(0, b"x")
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]))
        assert max(counts[1:]) <= counts[0], counts
        assert rounds <= 50 or memory[-1] < memory[50] * 1.05, memory
