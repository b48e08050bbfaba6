"""What programs do with a bucket: put, get, list, versions, uploads in parts. All of it in one cluster, a
bucket for each test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import moorage
from moorage.cli.local_cluster import LocalCluster
from moorage.client.objects.bucket import Bucket, Condition
from moorage.wire.errors import Busy, Invalid, LimitExceeded, Locked, NameTaken, NotFound, PreconditionFailed
from tests.cluster.contents import content, in_parts

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZES = [0, 1, 4095, 4096, 4097, 100_000, 1 << 20, (1 << 20) + 1, 5_000_001]
NUMBERS = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[moorage.Cluster]:
    local = LocalCluster(tmp_path_factory.mktemp("cluster"), hosts=3, options={})
    try:
        await local.start()
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as connected:
            yield connected
    finally:
        await local.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def bucket(cluster: moorage.Cluster) -> Bucket:
    return await cluster.buckets.create(f"photos{next(NUMBERS)}")


def aiter_ended(body: AsyncIterator[bytes]) -> bool:
    return isinstance(body, AsyncGenerator) and body.ag_frame is None


async def test_a_bucket_is_the_same_one_each_time(cluster: moorage.Cluster, bucket: Bucket) -> None:
    assert await asyncio.gather(*(cluster.buckets.open(bucket.name) for _ in range(2))) == [bucket] * 2
    for name in ("none", "other"):
        with pytest.raises(NotFound, match=name):
            await cluster.buckets.open(name)
    assert not {"none", "other"} & set(cluster.buckets._open), "names that there are not take no memory"


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
    noted = await bucket.set_attributes(new, {"n": 1})
    with pytest.raises(PreconditionFailed, match="has changed meanwhile"):
        await bucket.set_attributes(new, {"n": 2})
    assert (await bucket.set_attributes(noted, {})).attributes == {}
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
        await cluster.buckets.delete(bucket.name)
    with pytest.raises(Invalid, match="cannot be suspended"):
        await bucket.set_versioning("suspended")


async def test_buckets_and_volumes_share_their_names(cluster: moorage.Cluster, bucket: Bucket) -> None:
    with pytest.raises(NameTaken):
        await cluster.create_volume(bucket.name, "1MiB")
    with pytest.raises(Invalid, match="is a bucket, not a volume"):
        await cluster.attach(bucket.name)
    with pytest.raises(Invalid, match="is a bucket, not a volume"):
        await cluster.delete(bucket.name)
    await cluster.create_volume("db", "1MiB")
    with pytest.raises(Invalid, match="'db' is a volume, not a bucket"):
        await cluster.bucket("db")
    assert bucket.name not in [volume.name for volume in await cluster.list_volumes()]
    assert bucket.name in [row["name"] for row in await cluster.buckets.list()]
    mine = await cluster.buckets.create("mine", principal="team-a", locks=True)
    shown = await mine.show()
    assert (shown["principal"], shown["versioning"], shown["locks"]) == ("team-a", "enabled", True)
    await cluster.buckets.delete("mine")
    await bucket.put("k", b"x")
    with pytest.raises(Busy, match="has 1 objects of 1 bytes"):
        await cluster.buckets.delete(bucket.name)
    await bucket.delete("k")
    await cluster.buckets.delete(bucket.name)
    assert bucket.name not in [row["name"] for row in await cluster.buckets.list()]
    await cluster.create_volume(bucket.name, "1MiB")


async def test_objects_count_for_the_quota_of_a_principal(cluster: moorage.Cluster) -> None:
    await cluster.set_quota("team-q", capacity="80M", volumes=2)
    bucket = await cluster.buckets.create("q", principal="team-q")

    async def used() -> tuple[int, int]:
        (row,) = [row for row in await cluster.quotas() if row.principal == "team-q"]
        return row.used_volumes, row.used_bytes

    async with asyncio.timeout(30):
        while await used() != (1, 0):  # that there are quotas is heard of soon
            await asyncio.sleep(0.05)
        while await used() == (1, 0):
            await bucket.put("first", content(1, 1 << 20))
    assert await used() == (1, 64 << 20), "in steps"
    for number in range(3):
        await bucket.put(f"k{number}", content(number, 21 << 20))
    assert await used() == (1, 64 << 20)
    await bucket.put("last", content(4, 15 << 20))
    assert await used() == (1, 79 << 20), "and less where a step would be too much"
    with pytest.raises(LimitExceeded, match=r"'team-q' has 1 volume .* quota 80 MiB; 'q' needs"):
        await bucket.put("more", content(4, 2 << 20))
    assert await bucket.delete("k0", "k1", "k2", "last") == [True] * 4
    assert await used() == (1, 79 << 20), "less than a step"
    await bucket.put("more", content(4, 2 << 20))
    assert (await bucket.show())["bytes"] == 3 << 20
