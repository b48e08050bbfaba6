"""Objects of buckets on real clusters: put, get, list; hosts that die meanwhile; what is collected and
repaired."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
import moorage.sync
from moorage.cli.local_cluster import LocalCluster
from moorage.client.objects.bucket import Bucket, Condition
from moorage.wire.errors import NotFound
from tests.cluster.contents import content


@pytest.fixture
async def bucket(cluster: moorage.Cluster) -> Bucket:
    return await cluster.buckets.create("photos")


async def test_a_dead_host_costs_nothing_that_was_acknowledged(
    local: LocalCluster, cluster: moorage.Cluster, bucket: Bucket, until: Callable[..., Awaitable[Any]]
) -> None:
    acknowledged: dict[str, bytes] = {}

    async def load(first: int) -> None:
        for number in range(first, first + 40):
            data = content(number, number * 1111 % 300_000)
            await bucket.put(f"k{number:04}", data)
            acknowledged[f"k{number:04}"] = data

    loads = [asyncio.create_task(load(1000 * n)) for n in range(4)]
    while len(acknowledged) < 20:
        await asyncio.sleep(0.01)
    victim = local.host("h2")
    await victim.kill()
    await asyncio.gather(*loads)
    for key, data in acknowledged.items():
        assert await bucket.get(key) == data
    await victim.launch()
    await victim.wait_ready()

    async def repaired() -> bool:
        held = [await _holding(cluster, bucket, host) for host in ("h1", "h2", "h3")]
        return len(set(held)) == 1

    await until(repaired, "all members have all", timeout=60)
    await local.host("h1").kill()
    for key, data in acknowledged.items():
        assert await bucket.get(key) == data


async def _holding(cluster: moorage.Cluster, bucket: Bucket, host: str) -> int:
    """Bytes of its replica there."""
    shown = await bucket.show()
    view = await cluster.status()
    (device,) = [device for device, row in view["devices"].items() if row["host"] == host]
    rows = await cluster.list_replicas(device, volume=shown["id"])
    return sum(row["bytes"] for row in rows)


@pytest.mark.slow
async def test_the_commands_and_the_synchronous_twin(
    local: LocalCluster,
    cluster: moorage.Cluster,
    environment: dict[str, str],
    moorage_command: Callable[..., Awaitable[tuple[int, str, str]]],
    tmp_path: Path,
) -> None:
    async def run(*arguments: str) -> str:
        code, out, err = await moorage_command(*arguments, env=environment)
        assert code == 0, err
        return out

    file, back = tmp_path / "file", tmp_path / "back"
    file.write_bytes(content(5, 3_000_000))
    assert "created bucket photos: 3 replicas, 1 groups" in await run("bucket", "create", "photos")
    assert "put photos/a/b: 2.9 MiB" in await run("object", "put", str(file), "photos/a/b")
    await run("object", "get", "photos/a/b", str(back))
    assert back.read_bytes() == file.read_bytes()
    listed = json.loads(await run("object", "list", "photos", "--json"))
    assert listed == {"objects": [], "prefixes": ["a/"]}
    (row,) = json.loads(await run("object", "list", "photos/a/", "--json"))["objects"]
    assert (row["key"], row["size"], row["etag"]) == (
        "a/b",
        3_000_000,
        hashlib.md5(file.read_bytes()).hexdigest(),
    )
    assert "photos: 1 objects, 2.9 MiB" in await run("bucket", "show", "photos")
    code, _, err = await moorage_command("object", "get", "photos/none", str(back), env=environment)
    assert code != 0 and "bucket 'photos' has no object 'none'" in err
    assert "are enabled" in await run("bucket", "versions", "photos", "enabled")
    assert "deleted photos/a/b (version " in await run("object", "delete", "photos/a/b")
    marker, former = json.loads(await run("object", "versions", "photos", "--json"))
    assert (marker["marker"], former["version"], former["size"]) == (True, "null", 3_000_000)
    assert "deleted" in await run("object", "versions", "photos/a/")
    assert "versions: enabled; 2 former ones, 2.9 MiB" in await run("bucket", "show", "photos")
    back.unlink()
    await run("object", "get", "photos/a/b", str(back), "--version", "null")
    assert back.read_bytes() == file.read_bytes()
    for version in (marker["version"], "null"):
        assert "deleted photos/a/b" in await run("object", "delete", "photos/a/b", "--version", version)
    assert "photos" in await run("bucket", "list")
    made = json.loads(await run("key", "create", "team-a", "--json"))
    assert len(made["id"]) == 20 and len(made["secret"]) == 40
    (listed,) = json.loads(await run("key", "list", "--json"))
    assert (listed["id"], listed["principal"]) == (made["id"], "team-a") and "secret" not in listed
    assert made["secret"] == (await cluster.keys.find(made["id"])).secret
    assert "revoked" in await run("key", "revoke", made["id"])
    with pytest.raises(NotFound, match="there is no access key"):
        await cluster.keys.find(made["id"])
    assert "deleted bucket photos" in await run("bucket", "delete", "photos")
    await asyncio.to_thread(_use_synchronously, local, file)


def _use_synchronously(local: LocalCluster, file: Path) -> None:
    with moorage.sync.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        bucket = cluster.buckets.create("s")
        with file.open("rb") as body:
            info = bucket.put("k", body, attributes={"a": 1})
        assert bucket.put("l", b"x", condition=Condition(absent=True)).size == 1
        assert bucket.get("k", 5, 10) == file.read_bytes()[5:15]
        assert b"".join(bytes(piece) for piece in bucket.stream("k")) == file.read_bytes()
        assert [each.key for each in bucket.list()] == ["k", "l"]
        assert (bucket.head("k").etag, bucket.copy("k", "m").etag) == (info.etag, info.etag)
        assert bucket.delete("k", "l", "m", "n") == [True, True, True, False]
        assert bucket.page().objects == [] and bucket.show()["objects"] == 0
        bucket.set_versioning("enabled", locks=True)
        first, second = (bucket.put("k", each, lock=moorage.Lock(hold=True)) for each in (b"1", b"2"))
        assert (
            bucket.get("k", version=first.version) == bucket.open("k", version=first.version).read() == b"1"
        )
        assert b"".join(map(bytes, bucket.stream("k", version=first.version))) == b"1"
        assert bucket.set_hold(bucket.head("k", version=first.version), False).id == first.id
        bucket.set_retention(bucket.set_hold(second, False), "GOVERNANCE", 1)
        assert [each.version for each in bucket.versions_page().versions] == [second.version, first.version]
        done = bucket.delete_versions([("k", second.version), ("k", first.version)])
        assert [each.locked for each in done] == [False, False]
        cluster.buckets.delete("s")
        assert cluster.buckets.list() == []
