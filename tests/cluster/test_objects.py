"""Objects of buckets on real clusters: put, get, list; hosts that die meanwhile; what is collected and
repaired."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
import moorage.sync
from moorage.cli.local_cluster import LocalCluster
from moorage.client.objects.bucket import Bucket, Condition
from moorage.wire.errors import Busy, Invalid, Locked, NameTaken, NotFound, PreconditionFailed

SIZES = [0, 1, 4095, 4096, 4097, 100_000, 1 << 20, (1 << 20) + 1, 5_000_001]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def in_parts(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def aiter_ended(body: AsyncIterator[bytes]) -> bool:
    return isinstance(body, AsyncGenerator) and body.ag_frame is None


@pytest.fixture
async def bucket(cluster: moorage.Cluster) -> Bucket:
    return await cluster.buckets.create("photos")


async def test_a_bucket_is_the_same_one_each_time(cluster: moorage.Cluster, bucket: Bucket) -> None:
    assert await asyncio.gather(*(cluster.buckets.open("photos") for _ in range(2))) == [bucket] * 2
    for name in ("none", "other"):
        with pytest.raises(NotFound, match=name):
            await cluster.buckets.open(name)
    assert list(cluster.buckets._open) == ["photos"], "names that there are not take no memory"


async def test_objects_of_all_sizes_come_back(bucket: Bucket) -> None:
    await asyncio.gather(*(bucket.put(f"k{size}", content(size, size)) for size in SIZES))
    for size in SIZES:
        data = content(size, size)
        assert await bucket.get(f"k{size}") == data
        info = await bucket.head(f"k{size}")
        assert (info.size, info.key) == (size, f"k{size}")
        for offset, length in ((0, 1), (size // 2, 10_000), (max(size - 5, 0), None), (size, None)):
            expected = data[offset:] if length is None else data[offset : offset + length]
            assert await bucket.get(f"k{size}", offset, length) == expected
    body = in_parts(content(7, 3_000_000), 65_537)
    streamed = await bucket.put("streamed", body, attributes=lambda: {"ended": aiter_ended(body)})
    assert (streamed.size, streamed.attributes) == (3_000_000, {"ended": True}), "asked at the end"
    pieces = [bytes(piece) async for piece in bucket.stream("streamed")]
    assert b"".join(pieces) == content(7, 3_000_000) and len(pieces) >= 3
    shown = await bucket.show()
    assert (shown["objects"], shown["bytes"]) == (len(SIZES) + 1, sum(SIZES) + 3_000_000)


async def test_an_object_is_replaced_and_deleted_whole(bucket: Bucket) -> None:
    first = await bucket.put("k", b"one", attributes={"type": "text/plain"})
    assert first.etag == "f97c5d29941bfb1b2fdab0874906ab82"
    reader = bucket.stream("k")
    await bucket.put("k", b"another")
    assert [bytes(piece) async for piece in reader] == [b"another"]
    _, opened = await bucket.open("k")
    part = opened.range(2, 3)
    assert await bucket.delete("k", "absent") == [True, False]
    assert await opened.read() == b"another", "who has looked it up may go on"
    assert await part.read() == b"oth"
    with pytest.raises(NotFound, match="no object 'k'"):
        await bucket.get("k")
    copied = await bucket.copy((await bucket.put("s", content(1, 50_000), attributes={"a": 1})).key, "t")
    assert copied.attributes == {"a": 1} and await bucket.get("t") == content(1, 50_000)


@pytest.mark.slow
async def test_conditions_are_judged_with_the_put(bucket: Bucket) -> None:
    async def put(body: bytes, condition: Condition) -> Any:
        try:
            return (await bucket.put("k", body, condition=condition)).etag
        except PreconditionFailed:
            return None

    won = [
        each
        for each in await asyncio.gather(*(put(bytes([n]), Condition(absent=True)) for n in range(8)))
        if each
    ]
    assert len(won) == 1, "of several that must be the first, one is"
    assert await put(b"x", Condition(etags=["other"])) is None
    assert await put(b"x", Condition(etags=won)) is not None
    with pytest.raises(PreconditionFailed):
        await bucket.delete("k", condition=Condition(etags=won))


@pytest.mark.slow
async def test_listing_in_pages_with_common_prefixes(bucket: Bucket) -> None:
    keys = [f"a/{n:02}" for n in range(7)] + [
        "b",
        "b/",
        "c/x/1",
        "c/x/2",
        "c/y",
        "\U0001f4f7",
        "\ue000",
        "z" * 1000,
    ]
    keys += ["z" * 400, "z" * 401, "z" * 1000 + "é", "é" * 300]
    for key in keys:
        await bucket.put(key, key.encode())
    by_bytes = sorted(keys, key=str.encode)
    assert [each.key async for each in bucket.list()] == by_bytes
    for limit in (1, 2, 3, 1000):
        found, start = [], b""
        while True:
            page = await bucket.page(start=start, limit=limit)
            assert len(page.objects) <= limit
            found += [each.key for each in page.objects]
            if not (start := page.next):
                break
        assert found == by_bytes
    page = await bucket.page(delimiter="/")
    assert page.prefixes == ["a/", "b/", "c/"]
    assert [each.key for each in page.objects] == [key for key in by_bytes if "/" not in key]
    page = await bucket.page("c/", delimiter="/")
    assert (page.prefixes, [each.key for each in page.objects]) == (["c/x/"], ["c/y"])
    first = await bucket.page(delimiter="/", limit=1)
    assert first.prefixes == ["a/"] and not first.objects
    assert (await bucket.page(delimiter="/", after="a/", limit=1)).objects[0].key == "b"
    assert await bucket.get("z" * 1000 + "é") == ("z" * 1000 + "é").encode()
    assert await bucket.delete("z" * 1000, "z" * 1000 + "é") == [True, True]
    assert [each.key async for each in bucket.list("z")] == ["z" * 400, "z" * 401]


@pytest.mark.slow
async def test_uploads_in_parts(bucket: Bucket) -> None:
    upload = await bucket.create_upload("big", attributes={"type": "x"})
    parts = {number: content(number, 1_300_000) for number in (1, 2, 3)}
    stored = await asyncio.gather(*(bucket.put_part(upload, number, data) for number, data in parts.items()))
    again = await bucket.put_part(upload, 2, content(22, 5000))
    assert [each["upload"] for each in await bucket.list_uploads()] == [upload]
    shown = await bucket.show_upload(upload)
    assert [(each["number"], each["size"]) for each in shown["parts"]] == [
        (1, 1_300_000),
        (2, 5000),
        (3, 1_300_000),
    ]
    chosen = [(1, stored[0]["etag"]), (2, again["etag"])]
    with pytest.raises(NotFound, match="part 3 with etag"):
        await bucket.complete_upload(upload, "big", [*chosen, (3, "other")], etag="e")
    with pytest.raises(NotFound, match="no object"):
        await bucket.head("big")
    done = await bucket.complete_upload(upload, "big", chosen, etag="e-2", attributes=shown["attributes"])
    assert (done.size, done.etag, done.parts) == (1_305_000, "e-2", [[1_300_000, 1], [5000, 1]])
    expected = parts[1] + content(22, 5000)
    assert await bucket.get("big") == expected
    assert await bucket.get("big", 1_299_990, 20) == expected[1_299_990:1_300_010]
    assert await bucket.list_uploads() == []
    other = await bucket.create_upload("gone")
    await bucket.put_part(other, 1, b"x")
    await bucket.abort_upload(other)
    with pytest.raises(NotFound, match="was completed, or aborted"):
        await bucket.put_part(other, 2, b"x")


async def test_uploads_are_listed_however_many(bucket: Bucket) -> None:
    """A page has 1000; the next one begins behind the last."""
    begun = await asyncio.gather(*(bucket.create_upload(f"k{n % 3}") for n in range(1010)))
    listed = await bucket.list_uploads()
    assert sorted(each["upload"] for each in listed) == sorted(begun)
    assert [each["key"] for each in listed] == sorted(each["key"] for each in listed)


@pytest.mark.slow
async def test_versions_are_kept_got_removed_and_locked(cluster: moorage.Cluster, bucket: Bucket) -> None:
    old = await bucket.put("k", content(1, 100_000))
    await bucket.set_versioning("enabled", locks=True)
    new = await bucket.put("k", content(2, 5_000))
    assert [await bucket.get("k", version=each.version) for each in (old, new)] == [
        content(1, 100_000),
        content(2, 5_000),
    ]
    (gone,) = await bucket.delete_versions([("k", None)])
    assert (gone.existed, gone.marker) == (True, True)
    with pytest.raises(NotFound, match="was deleted, and has former versions") as refused:
        await bucket.get("k")
    assert refused.value.details["marker"] == gone.version
    page = await bucket.versions_page(limit=2)
    assert [(each.version, each.marker) for each in page.versions] == [
        (gone.version, True),
        (new.version, False),
    ]
    assert page.next is not None
    rest = await bucket.versions_page(after=page.next[0], after_version=page.next[1])
    assert ([each.version for each in rest.versions], rest.next) == (["null"], None)
    restored = await bucket.copy("k", "k", version="null")
    assert await bucket.get("k") == content(1, 100_000)
    lock = moorage.Lock("COMPLIANCE", restored.modified_ms + 3_600_000)
    assert (await bucket.set_retention(restored, lock.mode, lock.until_ms)).lock == lock
    with pytest.raises(Locked):
        await bucket.set_retention(restored, "", 0, bypass=True)
    held = await bucket.put("held", b"x", lock=moorage.Lock(hold=True))
    wanted = [("k", restored.version), ("held", held.version), ("k", new.version), ("k", "none")]
    done = await bucket.delete_versions([*wanted], bypass=True)
    assert [(each.existed, each.locked) for each in done] == [(True, True)] * 2 + [
        (True, False),
        (False, False),
    ]
    shown = await bucket.show()
    assert (shown["versioning"], shown["locks"]) == ("enabled", True)
    assert (shown["objects"], shown["former_versions"], shown["former_bytes"]) == (2, 2, 100_000)
    with pytest.raises(Busy, match="2 former versions"):
        await cluster.buckets.delete("photos")
    with pytest.raises(Invalid, match="cannot be suspended"):
        await bucket.set_versioning("suspended")


async def test_buckets_and_volumes_share_their_names(cluster: moorage.Cluster, bucket: Bucket) -> None:
    with pytest.raises(NameTaken):
        await cluster.create_volume("photos", "1MiB")
    with pytest.raises(Invalid, match="'photos' is a bucket, not a volume"):
        await cluster.attach("photos")
    with pytest.raises(Invalid, match="'photos' is a bucket, not a volume"):
        await cluster.delete("photos")
    await cluster.create_volume("db", "1MiB")
    with pytest.raises(Invalid, match="'db' is a volume, not a bucket"):
        await cluster.bucket("db")
    assert [volume.name for volume in await cluster.list_volumes()] == ["db"]
    assert [row["name"] for row in await cluster.buckets.list()] == ["photos"]
    mine = await cluster.buckets.create("mine", principal="team-a")
    assert (await mine.show())["principal"] == "team-a"
    await cluster.buckets.delete("mine")
    await bucket.put("k", b"x")
    with pytest.raises(Busy, match="has 1 objects of 1 bytes"):
        await cluster.buckets.delete("photos")
    await bucket.delete("k")
    await cluster.buckets.delete("photos")
    assert await cluster.buckets.list() == []
    await cluster.create_volume("photos", "1MiB")


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
