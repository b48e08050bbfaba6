"""Snapshots, sets, clones and rollback on real hosts, under writers that go on, and hosts that die."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage import errors
from moorage.cli.local_cluster import LocalCluster
from moorage.client.volume import Volume

from .conftest import MakeCluster

MIB = 1 << 20
Command = Callable[..., Awaitable[tuple[int, str, str]]]
Awaiting = Callable[..., Awaitable[Any]]


async def churn(rng: random.Random, volume: Volume, model: bytearray, times: int) -> None:
    """Writes and discards of all kinds, one after the other; ``model`` is what the volume holds then."""
    for _ in range(times):
        length = rng.choice([1, 100, 4096, 8192, 65536])
        offset = rng.randrange(0, len(model) - length)
        if rng.random() < 0.5:
            offset &= ~4095
        if rng.random() < 0.75:
            data = rng.randbytes(length)
            await volume.write(offset, data)
        else:
            data = bytes(length)
            await volume.discard(offset, length)
        model[offset : offset + length] = data


async def is_same(volume: Volume, model: bytes | bytearray) -> None:
    for offset in range(0, len(model), MIB):
        length = min(MIB, len(model) - offset)
        assert await volume.read(offset, length) == model[offset : offset + length], offset
    at = 0
    for size, is_hole in await volume.block_status(0, len(model)):
        assert not is_hole or not any(model[at : at + size]), at
        at += size


async def test_snapshots_clones_and_rollback(cluster: moorage.Cluster, local: LocalCluster) -> None:
    rng = random.Random(7)
    await cluster.create_volume("db", 16 * MIB, groups=2)
    volume, model = await cluster.attach("db"), bytearray(16 * MIB)
    await churn(rng, volume, model, 60)
    await cluster.snapshots.create("one", "db")
    one = bytes(model)
    await churn(rng, volume, model, 40)
    await cluster.snapshots.create("two", "db")
    two = bytes(model)
    await churn(rng, volume, model, 40)
    async with await cluster.attach("db@one") as first, await cluster.attach("moorage:///db@two") as second:
        await is_same(first, one)
        await is_same(second, two)
        with pytest.raises(errors.ReadOnly):
            await first.write(0, b"x")
    await cluster.create_volume("clone", 20 * MIB, parent="db@one", groups=3)
    clone, cloned = await cluster.attach("clone"), bytearray(one + bytes(4 * MIB))
    await is_same(clone, cloned)
    await churn(rng, clone, cloned, 60)
    await is_same(clone, cloned)
    async with await cluster.attach("clone", read_only=True) as reader:
        await is_same(reader, cloned)
    await cluster.snapshots.create("own", "clone")
    own = bytes(cloned)
    await cluster.create_volume("grand", parent="clone@own")
    await churn(rng, clone, cloned, 20)
    async with await cluster.attach("grand") as grand:
        await is_same(grand, own)
    await local.hosts[1].kill()
    await churn(rng, clone, cloned, 20)
    await is_same(clone, cloned)
    await is_same(volume, model)
    with pytest.raises(errors.Busy, match="grand"):
        await cluster.snapshots.delete("clone@own")
    await clone.detach()
    await cluster.snapshots.rollback("clone@own")
    async with await cluster.attach("clone") as clone:
        await is_same(clone, own + bytes(len(cloned) - len(own)))
    with pytest.raises(errors.Busy, match="is held by"):
        await cluster.snapshots.rollback("db@two")
    await volume.detach()
    assert await cluster.snapshots.rollback("db@two") > 0
    async with await cluster.attach("db@one") as first, await cluster.attach("db") as volume:
        await is_same(first, one)
        await is_same(volume, two)


@asynccontextmanager
async def counting(*volumes: Volume) -> AsyncIterator[list[int]]:
    """Writes 1, 2, 3... to one after the other of some volumes, each when the one before was acknowledged."""
    counted = [0]

    async def run() -> None:
        while True:
            number = counted[0] + 1
            await volumes[number % len(volumes)].write(0, number.to_bytes(8, "little"))
            counted[0] = number

    task = asyncio.create_task(run())
    yield counted
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def number_in(cluster: moorage.Cluster, name: str) -> int:
    async with await cluster.attach(name) as volume:
        return int.from_bytes(await volume.read(0, 8), "little")


async def test_a_set_is_of_one_moment(cluster: moorage.Cluster, local: LocalCluster) -> None:
    names = ["a", "b", "c"]
    for name in names:
        await cluster.create_volume(name, 8 * MIB, durability="writeback" if name == "b" else "sync")
    kwargs = {"registry": local.registry, "secret_file": local.secret_file}
    async with await moorage.connect(**kwargs) as other:
        volumes = [await cluster.attach("a"), await other.attach("b"), await other.attach("c")]
        async with counting(*volumes) as counted:
            while counted[0] < 20:
                await asyncio.sleep(0.01)
            for number in range(5):
                before = counted[0]
                await cluster.snapshots.create(f"s{number}", *names)
                after = counted[0]
                found = sorted([await number_in(cluster, f"{name}@s{number}") for name in names])
                # three in a row, whoever has which: none is there without the one before it
                assert found == list(range(found[0], found[0] + 3)), found
                assert before <= found[2] <= after + 1
        for volume in volumes:
            await volume.detach()
        await cluster.snapshots.create("idle", *names)  # nobody has them
        listed = await cluster.snapshots.list("b")
        assert [each.name for each in listed] == ["s0", "s1", "s2", "s3", "s4", "idle"]
        assert len({each.set for each in listed}) == 6


async def test_the_commands(
    cluster: moorage.Cluster, environment: dict[str, str], moorage_command: Command, tmp_path: Path
) -> None:
    async def run(*arguments: str) -> str:
        code, out, err = await moorage_command(*arguments, env=environment)
        assert code == 0, err
        return out

    await cluster.create_volume("db", 8 * MIB)
    await cluster.create_volume("logs", 8 * MIB)
    async with await cluster.attach("db") as volume:
        await volume.write(0, b"before")
        await run("snapshot", "create", "db@s")
        await volume.write(0, b"behind")
    await run("snapshot", "create", "--group", "both", "db", "logs")
    listed = json.loads(await run("snapshot", "list", "--json"))
    assert [(row["volume"], row["name"]) for row in listed] == [("db", "s"), ("db", "both"), ("logs", "both")]
    assert "db@both" in await run("snapshot", "list", "db")
    await run("snapshot", "clone", "db@s", "test")
    async with await cluster.attach("test") as volume:
        assert await volume.read(0, 6) == b"before"
    rolled = json.loads(await run("snapshot", "rollback", "db@s", "--json"))
    assert rolled == {"rolled_back": "db@s", "written": 4096}
    async with await cluster.attach("db") as volume:
        assert await volume.read(0, 6) == b"before"
    code, _, err = await moorage_command("snapshot", "delete", "db@s", env=environment)
    assert code != 0 and "test" in err and "Traceback" not in err
    code, _, err = await moorage_command("volume", "delete", "logs", env=environment)
    assert code != 0 and "moorage snapshot delete" in err
    code, _, err = await moorage_command(
        "attach", "db@nothing", "--nbd", f"unix:{tmp_path}/s", env=environment
    )
    assert code != 0 and "has no snapshot" in err
    code, _, err = await moorage_command("volume", "show", "db@s", env=environment)
    assert code != 0 and "name the volume alone" in err
    await run("volume", "delete", "test")
    for row in listed:
        await run("snapshot", "delete", f"{row['volume']}@{row['name']}")
    assert json.loads(await run("snapshot", "list", "--json")) == []


@pytest.mark.slow
async def test_space_comes_back(make_cluster: MakeCluster, until: Awaiting) -> None:
    local = await make_cluster(3, MOORAGE_CAPACITY="256M")
    kwargs = {"registry": local.registry, "secret_file": local.secret_file}
    async with await moorage.connect(**kwargs) as cluster:
        await cluster.create_volume("db", 48 * MIB)
        async with await cluster.attach("db") as volume:

            async def fill(value: int) -> None:
                data = bytes([value]) * MIB
                for offset in range(0, 48 * MIB, MIB):
                    await volume.write(offset, data)

            async def used() -> int:
                view = await cluster.status()
                return max(int(row["used"]) for row in view["devices"].values())

            await fill(1)
            for number in range(2, 12):  # far more than there is room for
                await cluster.snapshots.create("s", "db")
                await fill(number)
                async with await cluster.attach("db@s") as before:
                    assert await before.read(47 * MIB, MIB) == bytes([number - 1]) * MIB
                assert await used() >= 0
                await cluster.snapshots.delete("db@s")

            async def is_back() -> bool:
                return await used() < 60 * MIB

            await until(is_back, "the space of snapshots is back", timeout=60)
