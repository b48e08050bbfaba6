"""Replicas that move between real hosts: a host is emptied, one is lost, and all is there afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

import moorage
from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalCluster
from moorage.quorum.record import BLOCK_SIZE
from moorage.wire.errors import Invalid, MoorageError

from .conftest import MakeCluster

SIZE = 16 << 20
BLOCKS = 1024
IMPATIENT = {
    "MOORAGE_HEARTBEAT_MS": "300",
    "MOORAGE_SUSPECT_MS": "700",
    "MOORAGE_DOWN_MS": "1500",
    "MOORAGE_REPAIR_AFTER_S": "2",
}
Command = Callable[..., Awaitable[tuple[int, str, str]]]
Awaiting = Callable[..., Awaitable[Any]]


@pytest.fixture
async def local(make_cluster: MakeCluster) -> LocalCluster:
    return await make_cluster(5, **IMPATIENT)


async def hosts_of(cluster: moorage.Cluster, name: str) -> list[set[str]]:
    """Of each group, where its members are."""
    return [{member["host"] for member in group["members"]} for group in (await cluster.show(name)).groups]


async def fill(cluster: moorage.Cluster, name: str, seed: int) -> dict[int, bytes]:
    """Write some blocks; what they are."""
    rng, written = random.Random(seed), {}
    async with await cluster.attach(name) as volume:
        for block in rng.sample(range(SIZE // BLOCK_SIZE), 200):
            written[block] = rng.randbytes(BLOCK_SIZE)
            await volume.write(block * BLOCK_SIZE, written[block])
    return written


async def check(cluster: moorage.Cluster, name: str, written: dict[int, bytes]) -> None:
    """Also each copy for itself."""
    async with await cluster.attach(name, wait=10) as volume:
        hosts = sorted(set().union(*await hosts_of(cluster, name)))
        for block, data in written.items():
            assert await volume.read(block * BLOCK_SIZE, BLOCK_SIZE) == data
        for host in hosts:
            copies = 0
            for block, data in written.items():
                with contextlib.suppress(Invalid):  # its group has none there
                    assert await volume.read_from(host, block * BLOCK_SIZE, BLOCK_SIZE) == data
                    copies += 1
            assert copies


@pytest.fixture
async def load(
    cluster: moorage.Cluster, environment: dict[str, str], tmp_path: Path
) -> AsyncIterator[ClientProcess]:
    """Writes and verifies the volume "busy", in a process of its own."""
    await cluster.create_volume("busy", size=SIZE)
    arguments = ["bench", "verify", "busy", "--steps", "--depth", "8", "--blocks", str(BLOCKS)]
    async with ClientProcess(arguments, environment, tmp_path / "load.log") as running:
        yield running


async def goes_on(load: ClientProcess) -> None:
    figures = await load.ask("phase move")
    assert figures["mismatches"] == [] and figures["errors"] == 0 and figures["writes"] > 0, figures


async def verified(load: ClientProcess) -> None:
    """The end of the load: every block is read."""
    figures = await load.ask("verify")
    assert figures["verified"] == BLOCKS and figures["mismatches"] == [], figures


async def test_a_host_is_emptied_under_load(
    local: LocalCluster,
    cluster: moorage.Cluster,
    load: ClientProcess,
    environment: dict[str, str],
    moorage_command: Command,
    until: Awaiting,
) -> None:
    """A volume that is held, and one that nobody holds: its groups are led by metadata."""
    await cluster.create_volume("idle", size=SIZE, groups=2)
    written = await fill(cluster, "idle", 1)
    (first,) = await hosts_of(cluster, "busy")
    (host, *_) = first & set.union(*await hosts_of(cluster, "idle"))
    code, out, err = await moorage_command("host", "drain", host, "--json", env=environment)
    assert code == 0, err
    told = json.loads(out)
    assert told["moved"] >= 2 and sum(told["left"].values()) == 0
    for name in ("busy", "idle"):
        assert all(host not in hosts and len(hosts) == 3 for hosts in await hosts_of(cluster, name))
    (device,) = await cluster.places.devices("host", host)

    async def dropped() -> bool:
        return not await cluster.list_replicas(device)

    await until(dropped, "the old replicas are dropped")
    await goes_on(load)
    await verified(load)
    await check(cluster, "idle", written)
    # Nothing new comes there until it is used again.
    await cluster.create_volume("other", size=SIZE, replicas=1, groups=8)
    assert {host} not in await hosts_of(cluster, "other")
    rows = json.loads((await moorage_command("host", "list", "--json", env=environment))[1])
    (row,) = [each for each in rows if each["host"] == host]
    assert row["replicas"] == 0 and " on " in row["drain"]["by"]
    assert (await moorage_command("host", "undrain", host, env=environment))[0] == 0
    assert (await cluster.status())["hosts"][host]["drain"] is None


async def test_what_cannot_be_placed_elsewhere_is_not_drained(
    local: LocalCluster, cluster: moorage.Cluster, environment: dict[str, str], moorage_command: Command
) -> None:
    await cluster.create_volume("wide", size=SIZE, replicas=5)
    code, _, err = await moorage_command("host", "drain", "h1", env=environment)
    assert code != 0 and "volume 'wide' group 0: needs a host besides h2, h3, h4, h5" in err
    assert (await cluster.status())["hosts"]["h1"]["drain"] is None
    code, _, err = await moorage_command("device", "evict", "nowhere", env=environment)
    assert code != 0 and "there is no device 'nowhere'" in err
    (device,) = await cluster.places.devices("host", "h1")
    code, _, err = await moorage_command("device", "evict", device, env=environment)
    assert code != 0 and "is up: drain it" in err


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_host_that_is_gone_is_replaced_by_itself(
    local: LocalCluster,
    cluster: moorage.Cluster,
    load: ClientProcess,
    until: Awaiting,
) -> None:
    await cluster.create_volume("idle", size=SIZE, groups=2)
    written = await fill(cluster, "idle", 2)
    host = local.host(sorted((await hosts_of(cluster, "busy"))[0])[0])
    (device,) = await cluster.places.devices("host", host.name)
    await host.kill()

    async def healed() -> bool:
        with contextlib.suppress(MoorageError):  # its member may have led metadata, or the registry
            placed = [*await hosts_of(cluster, "busy"), *await hosts_of(cluster, "idle")]
            return all(host.name not in hosts for hosts in placed)
        return False

    await until(healed, "no group has a member on the host that is gone", timeout=60)
    await goes_on(load)
    await verified(load)
    await check(cluster, "idle", written)
    await host.launch()
    await host.wait_ready()

    async def dropped() -> bool:
        return not await cluster.list_replicas(device)

    await until(dropped, "it drops what it has when it is back", timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_one_that_comes_back_in_the_middle_keeps_its_place(
    local: LocalCluster, cluster: moorage.Cluster, load: ClientProcess, until: Awaiting
) -> None:
    before = await hosts_of(cluster, "busy")
    away = local.host(sorted(before[0])[0])
    await away.kill()

    async def moving() -> str:
        with contextlib.suppress(MoorageError):
            for move in (await cluster.places.moves()).moves:
                return str(move["to"]["host"])
        return ""

    into = local.host(await until(moving, "its replica is about to be placed anew"))
    into.freeze()  # or it would be there too soon
    await away.launch()
    await away.wait_ready()

    async def called_off() -> bool:
        with contextlib.suppress(MoorageError):
            return not (await cluster.places.moves()).moves
        return False

    placed = await hosts_of(cluster, "busy")
    await until(called_off, "the move is called off", timeout=60)
    into.thaw()
    if placed == before:  # else the copy was faster than we
        assert await hosts_of(cluster, "busy") == before
    await goes_on(load)
    await verified(load)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_hosts_are_emptied_while_others_die(
    local: LocalCluster,
    cluster: moorage.Cluster,
    load: ClientProcess,
    until: Awaiting,
) -> None:
    """Leaders of metadata and of the registry among them, in the middle of moves."""
    rng = random.Random(3)
    await cluster.create_volume("idle", size=SIZE, groups=2)
    written = await fill(cluster, "idle", 3)
    for _ in range(6):
        leaving, dying = rng.sample(local.hosts, 2)
        (device,) = await cluster.places.devices("host", leaving.name)
        await cluster.places.drain("host", leaving.name, force=True)
        await asyncio.sleep(rng.uniform(0, 2))
        await dying.kill()
        await asyncio.sleep(rng.uniform(0, 2))
        await dying.launch()
        await dying.wait_ready()

        async def emptied(device: str = device) -> bool:
            with contextlib.suppress(MoorageError):
                return not await cluster.list_replicas(device)
            return False

        await until(emptied, f"{leaving.name} is empty", timeout=60)
        await cluster.places.undrain("host", leaving.name)
        await goes_on(load)
    await verified(load)
    await check(cluster, "idle", written)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_what_was_away_catches_up_though_nobody_holds_the_volume(
    make_cluster: MakeCluster, until: Awaiting
) -> None:
    local = await make_cluster(3)
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        await cluster.create_volume("idle", size=SIZE)
        away = local.hosts[0]
        written = await fill(cluster, "idle", 4)
        await away.kill()
        written |= await fill(cluster, "idle", 5)
        await away.launch()
        await away.wait_ready()

        async def in_step() -> bool:
            found = []
            with contextlib.suppress(MoorageError):
                for host in local.hosts:
                    for device in await cluster.places.devices("host", host.name):
                        found += await cluster.list_replicas(device)
            assert len(found) <= 3
            alike = {(row["whole"], row["commit"], row["last"], row["epoch"]) for row in found}
            let_go = (await cluster.show("idle")).holder is None
            return len(found) == 3 and len(alike) == 1 and let_go

        await until(in_step, "all three have the same, and nobody holds the volume", timeout=60)
        await check(cluster, "idle", written)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_replica_that_its_device_has_lost_is_placed_anew(
    make_cluster: MakeCluster, until: Awaiting
) -> None:
    """What created it rots in the log. There are no more hosts than copies: it comes to the same device."""
    local = await make_cluster(3)
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        await cluster.create_volume("idle", size=SIZE)
        written = await fill(cluster, "idle", 6)
        (member, *_) = (await cluster.show("idle")).groups[0]["members"]
        host = local.host(member["host"])
        await host.kill()  # before a checkpoint knows of it
        (segment,) = host.data.glob("node/**/segments/00000001.seg")
        with segment.open("r+b") as file:
            created = msgpack.packb([member["replica"], (await cluster.show("idle")).id, 0, "sync", 3])
            file.seek(file.read(1 << 20).index(created) + len(created) - 2)
            file.write(b"#")
        await host.launch()
        await host.wait_ready()
        assert not await cluster.list_replicas(member["device"])

        async def replaced() -> bool:
            with contextlib.suppress(MoorageError):
                (group,) = (await cluster.show("idle")).groups
                ids = {each["replica"] for each in group["members"]}
                return member["replica"] not in ids and len(ids) == 3
            return False

        await until(replaced, "another replica has taken its place", timeout=60)
        await check(cluster, "idle", written)
