"""A flipped byte, wherever it is: noticed, and either repaired from another member or named at start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster, LocalHost
from moorage.wire.errors import Corrupt, Denied

MIB = 1 << 20
Until = Callable[..., Awaitable[Any]]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        assert byte, f"{path} has no byte {offset}"
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def find_bytes(directory: Path, pattern: str, needle: bytes) -> list[tuple[Path, int]]:
    found = []
    for path in sorted(path for path in directory.rglob(pattern) if path.is_file()):
        at = path.read_bytes().find(needle)
        if at >= 0:
            found.append((path, at))
    return found


@pytest.mark.parametrize("at", [0, 200 * 4096])
async def test_a_flipped_byte_of_data_is_read_from_another_replica_and_repaired(
    local: LocalCluster, cluster: moorage.Cluster, until: Until, at: int
) -> None:
    needle = b"a block that rots " * 300
    await cluster.create_volume("rot", size=16 * MIB, replicas=3)
    async with await cluster.attach("rot") as volume:
        content = (b"." * at + needle).ljust(MIB, b".")
        await volume.write(0, content)
        await volume.flush()

        def places(host: LocalHost) -> list[tuple[Path, int]]:
            return find_bytes(host.data, "*", b"a block that rots " * 20)

        async def written() -> bool:  # a flush waits for a majority only
            return all([places(host) for host in local.hosts[:2]])

        await until(written, "two hosts have the block")
        for path, place in [place for host in local.hosts[:2] for place in places(host)]:
            flip(path, place + 7)
        for _ in range(20):
            assert await volume.read(0, MIB) == content

        async def repaired() -> bool:
            # Each member alone must give the right bytes again.
            return all([await _reads_well(volume, host.name, content) for host in local.hosts])

        await until(repaired, "every replica is repaired")


async def _reads_well(volume: moorage.Volume, host: str, content: bytes) -> bool:
    try:
        return await volume.read_from(host, 0, MIB) == content
    except Corrupt:
        return False


async def _refuses_or_is_repaired(host: LocalHost, names: str) -> None:
    """Start a host whose state was tampered with: it must say so, or serve what is right."""
    await host.launch()
    try:
        await host.wait_ready()
    except Corrupt as error:
        assert names in str(error), error
        assert "Traceback" not in host.log.read_text()
        return
    assert "orrupt" in host.log.read_text() or "amaged" in host.log.read_text(), "nobody noticed"


@pytest.mark.parametrize("what", ["identity", "index", "raft", "segment head"])
async def test_a_flipped_byte_of_state_is_named_or_repaired(
    local: LocalCluster, cluster: moorage.Cluster, what: str, until: Until
) -> None:
    await cluster.create_volume("rot", size=16 * MIB, replicas=3)
    async with await cluster.attach("rot") as volume:
        for at in range(0, 8 * MIB, MIB):
            await volume.write(at, bytes([at // MIB + 1]) * MIB)
        victim = local.hosts[1]
        await victim.stop()
        path, offset = _place(victim, what)
        flip(path, offset)
        await _refuses_or_is_repaired(victim, path.name if what != "raft" else "raft")
        for at in range(0, 8 * MIB, MIB):
            assert bytes(await volume.read(at, MIB)) == bytes([at // MIB + 1]) * MIB
        if victim.running:

            async def settled() -> bool:
                return {member["state"] for member in volume.members()} == {"current"}

            await until(settled, "the tampered replica is whole again")


@pytest.mark.parametrize("durability", ["sync", pytest.param("writeback", marks=pytest.mark.slow)])
async def test_a_replica_that_may_have_lost_a_promise_asks_metadata_and_is_repaired(
    local: LocalCluster, cluster: moorage.Cluster, until: Until, durability: str
) -> None:
    """Its vote could be given twice: until it knows which epoch its volume is in, it counts as dead."""
    await cluster.create_volume("rot", size=16 * MIB, replicas=3, durability=durability)
    async with await cluster.attach("rot") as volume:
        await volume.write(0, b"x" * MIB)
        victim = local.hosts[1]
        await victim.stop()
        _flip_replicas(victim.data / "node" / "index")
        await victim.launch()
        await victim.wait_ready()

        async def repaired() -> bool:
            return {member["state"] for member in volume.members()} == {"current"}

        await until(repaired, "the replica promises again, and is copied")
        said = victim.log.read_text()
        assert "is withheld" in said and "promises epoch 1 again" in said
        await volume.write(MIB, b"y" * MIB)
        await volume.flush()
        await until(repaired, "nobody lags")
        assert await volume.read_from(victim.name, 0, MIB) == b"x" * MIB
        await victim.stop()
        await victim.launch()  # what it has promised since is its own again
        await victim.wait_ready()
        await until(repaired, "the replica is back")
        assert "is withheld" not in victim.log.read_text()[len(said) :]


def _flip_replicas(index: Path) -> None:
    """Nothing of an entry can be believed: not even whose replica it is."""
    with lmdb.open(str(index), max_dbs=8) as env:
        replicas = env.open_db(b"replicas")
        with env.begin(write=True, db=replicas) as txn:
            for key, value in list(txn.cursor()):
                txn.put(key, value[:-1] + bytes([value[-1] ^ 0x40]))


def _place(host: LocalHost, what: str) -> tuple[Path, int]:
    """The file that holds a kind of state, and a byte of it that matters."""
    node = host.data / "node"
    if what == "identity":
        return node / "superblock", 20
    if what == "segment head":
        first = sorted(node.rglob("*.seg"))[0]
        return first, 4096 + 100
    directory = node / "index" if what == "index" else host.data / "registry"
    path = max(directory.rglob("data.mdb"), key=lambda found: found.stat().st_size)
    # The middle of the used part: the meta pages at the start exist twice.
    return path, _used_middle(path)


def _used_middle(path: Path) -> int:
    data = path.read_bytes()
    used = [page for page in range(2, len(data) // 4096) if any(data[page * 4096 : page * 4096 + 64])]
    return used[len(used) // 2] * 4096 + 2048


async def test_a_cloned_device_is_refused(local: LocalCluster, tmp_path: Path) -> None:
    import shutil

    original = local.hosts[1]
    clone = LocalHost("clone", tmp_path / "clone", {**original.environment, "MOORAGE_PORT": "0"})
    clone.environment.update({"MOORAGE_HTTP_PORT": "0", "MOORAGE_DATA_DIR": str(clone.data)})
    shutil.copytree(original.data, clone.data)
    await clone.launch()
    try:
        with pytest.raises(Denied) as refused:
            await clone.wait_ready()
        assert "exit code 4" in str(refused.value)
    finally:
        await clone.kill()
    await asyncio.sleep(0)
    assert original.running
    assert json.dumps(original.ready)
