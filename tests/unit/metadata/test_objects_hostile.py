"""What a hostile reader of versions has found: rules that race with puts, pages, bounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moorage.client.objects.bucket import Deletion, ObjectInfo, VersionListing
from moorage.gateway.s3 import expiry, lifecycle
from moorage.gateway.s3.lifecycle import Rule
from moorage.gateway.s3.records import LIFECYCLE
from moorage.gateway.s3.times import DAY_MS
from moorage.metadata import limits
from moorage.metadata.objects import asked, calls, layout, state
from moorage.metadata.objects.calls import ObjectCalls, _shown
from moorage.service.kv import KV, VALUE_SIZE_MAX, MemoryBase
from moorage.service.raft_storage import CHUNK_SIZE
from moorage.wire import frame
from moorage.wire.errors import Invalid, LimitExceeded, MoorageError

from .conftest import AppliedGroup
from .photos import Photos
from .test_objects_calls import Rig
from .test_objects_versions import on


@pytest.fixture
def photos(metadata_group: AppliedGroup) -> Photos:
    made = Photos(metadata_group)
    made.open()
    return made


class RuledBucket:
    """What ``expiry`` asks of a bucket, by the real calls of metadata (without Raft)."""

    name = "photos"

    def __init__(self, rig: Rig, *rules: Rule, now_ms: int, page: int = 1000) -> None:
        self.rig, self.rules, self.now_ms, self.page = rig, rules, now_ms, page
        self.meanwhile: Any = None

    async def show(self) -> dict[str, Any]:
        shown = await self.rig.call("show_bucket")
        return {
            **shown,
            "documents": {LIFECYCLE: lifecycle.render(self.rules).decode()},
            "now_ms": self.now_ms,
        }

    async def versions_page(self, prefix: str, *, after: str, after_version: str) -> VersionListing:
        params = {"prefix": prefix, "after": after, "version": after_version, "limit": self.page}
        found = await self.rig.call("list_versions", **params)
        rows = [ObjectInfo.from_wire(each) for each in found["versions"]]
        return VersionListing(rows, [], found["next"] and tuple(found["next"]))

    async def delete_these(self, objects: list[ObjectInfo]) -> list[bool]:
        keys, ids = [each.key for each in objects], [each.id for each in objects]
        return [each != 0 for each in (await self.rig.call("delete_objects", keys=keys, ids=ids))["outcomes"]]

    async def delete_versions(
        self, wanted: list[tuple[str, str]], *, ids: list[str], former: bool
    ) -> list[Deletion]:
        if self.meanwhile is not None:
            await self.meanwhile()
            self.meanwhile = None
        params = {"keys": [key for key, _ in wanted], "versions": [name for _, name in wanted]}
        done = await self.rig.call("delete_objects", **params, ids=ids, former=former)
        return [Deletion(each != 0, name) for each, (_, name) in zip(done["outcomes"], wanted, strict=True)]

    async def set_document(self, name: str, text: str) -> None:
        pass


def at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    for module in (asked, calls):
        monkeypatch.setattr(module, "wall_ms", lambda: int(days * DAY_MS))


async def test_a_rule_for_markers_deletes_no_object_that_was_put_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    rig.photos.open()
    await rig.call("set_versioning", state="suspended")
    at(monkeypatch, 1)
    await rig.call("delete_objects", keys=["a"])  # a marker "null", alone
    bucket = RuledBucket(rig, Rule("m", markers=True), now_ms=100 * DAY_MS)

    async def meanwhile() -> None:
        await rig.put("a", [0, 0, 0, 1])  # acknowledged; it has the name "null" too

    bucket.meanwhile = meanwhile
    await expiry.see_to(bucket)  # type: ignore[arg-type]
    assert rig.photos.get("a") is not None, "an acknowledged object is gone, and nobody deleted it"


async def test_a_rule_for_former_versions_deletes_no_null_version_that_was_put_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    rig.photos.open()
    at(monkeypatch, 1)
    await rig.put("a", [0, 0, 0, 1])
    await rig.call("set_versioning", state="enabled")
    at(monkeypatch, 2)
    await rig.put("a", [0, 0, 1, 1])
    bucket = RuledBucket(rig, Rule("n", noncurrent_days=30), now_ms=100 * DAY_MS)

    async def meanwhile() -> None:
        at(monkeypatch, 100)
        await rig.call("set_versioning", state="suspended")
        await rig.put("a", [0, 0, 2, 1])
        await rig.call("set_versioning", state="enabled")
        await rig.put("a", [0, 0, 3, 1])

    bucket.meanwhile = meanwhile
    await expiry.see_to(bucket)  # type: ignore[arg-type]
    assert "null" in rig.photos.versions("a"), "a version that is noncurrent for no time is gone"


async def test_a_rule_that_keeps_some_versions_keeps_them_when_a_page_ends_with_a_null_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    rig.photos.open()
    at(monkeypatch, 1)
    for block, key in enumerate(("a", "b")):
        await rig.put(key, [0, 0, block, 1])
    await rig.call("set_versioning", state="enabled")
    at(monkeypatch, 2)
    kept = (await rig.put("a", [0, 0, 2, 1]))["version"]
    at(monkeypatch, 3)
    current = (await rig.put("a", [0, 0, 3, 1]))["version"]
    rule = Rule("n", noncurrent_days=30, noncurrent_kept=1)
    # Of "a": the current one, one that is kept, and "null", with which the first page ends.
    await expiry.see_to(RuledBucket(rig, rule, now_ms=100 * DAY_MS, page=3))  # type: ignore[arg-type]
    assert rig.photos.versions("a") == [current, kept]


async def test_a_page_goes_on_behind_a_null_version_that_is_gone_by_now() -> None:
    rig = Rig()
    rig.photos.open()
    await rig.put("a", [0, 0, 0, 1])
    await rig.call("set_versioning", state="enabled")
    one = (await rig.put("a", [0, 0, 1, 1]))["version"]
    await rig.put("b", [0, 0, 2, 1])
    page = await rig.call("list_versions", limit=2)
    assert [each["version"] for each in page["versions"]] == [one, "null"] and page["next"]
    await rig.call("delete_objects", keys=["a"], versions=["null"])
    after, version = page["next"]
    following = await rig.call("list_versions", after=after, version=version)
    assert [each["key"] for each in following["versions"]] == ["b"], "told twice"


def test_a_deletion_in_the_log_of_before_is_applied(photos: Photos) -> None:
    """An entry that an older leader put into the log, or sends now: it has no ``at_ms``."""
    photos.put("a", [0, 0, 0, 1])
    photos.do("delete_objects", keys=["a"], condition={}, request="r.0")
    assert photos.get("a") is None


def test_versions_that_come_back_keep_to_the_bounds_of_long_keys(photos: Photos) -> None:
    on(photos)
    much = {"n": b"x" * (limits.ATTRIBUTES_MAX - 10)}
    machine, kv = photos.group.machine, photos.group.kv  # (validated after each it would take long)

    def do(command: str, **fields: Any) -> Any:
        photos.group.index += 1
        done = machine.apply(kv, {"do": command, "bucket": photos.id, **fields}, photos.group.index)
        kv.commit()
        return done

    photos.do = do  # type: ignore[method-assign]
    keys = [f"{'k' * 401}{number}" for number in range(limits.LONG_KEYS_MAX)]
    markers = []
    for number, key in enumerate(keys):
        written = photos.written([0, number // 1024, number % 1024, 1])
        written["object"]["attributes"] = much
        do("put_object", key=key, **written)
        markers.append(photos.outcomes(key)["marker"])
    for key, marker in zip(keys, markers, strict=True):
        do("delete_objects", keys=[key], versions=[marker], at_ms=1)
    assert all(layout.find_object(kv, photos.id, key) for key in keys)
    assert max(len(raw) for _, raw in kv.scan_raw(b"")) < VALUE_SIZE_MAX


def test_the_number_of_long_keys_is_bounded(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LONG_KEYS_MAX", 2)
    on(photos)
    long = [f"{'k' * 500}{number}" for number in range(3)]
    for block, key in enumerate(long[:2]):
        photos.put(key, [0, 0, block, 1])
    marker = photos.outcomes(*long[:2])["marker"]
    with pytest.raises(LimitExceeded, match="2 keys begin"):
        photos.put(long[2], [0, 0, 2, 1])
    photos.outcomes(*long[:2], versions=[marker, marker])
    assert layout.long_keys_beside(photos.group.kv, photos.id, long[0]) == {key[401:] for key in long[:2]}


class CountingKV(KV):
    looked = 0

    def scan_raw(self, prefix: bytes, first: bytes = b"", batch: int = 128) -> Any:
        for each in super().scan_raw(prefix, first, batch):
            if each[0].startswith(b"version/"):
                self.looked += 1
            yield each


def test_a_completion_of_an_upload_that_is_not_there_looks_at_few_versions(photos: Photos) -> None:
    on(photos)
    kv = photos.group.kv
    for _ in range(300):
        photos.group.index += 1
        command = {"do": "delete_objects", "bucket": photos.id, "keys": ["a"], "at_ms": 1}
        photos.group.machine.apply(kv, command, photos.group.index)
        kv.commit()
    kv.__class__ = CountingKV
    with pytest.raises(MoorageError):
        about = {"id": "x", "etag": "e", "at_ms": 2000, "attributes": {}}
        command = {
            "do": "complete_upload",
            "bucket": photos.id,
            "upload": "u",
            "key": "a",
            "parts": [],
            "object": about,
        }
        photos.group.machine.apply(kv, command, photos.group.index + 1)
    assert kv.looked <= state.RECENT  # type: ignore[attr-defined]


def test_one_command_frees_as_many_extents_as_it_may(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FREED_AT_ONCE", 20)
    blocks = iter(range(1000))
    keys = [f"k{number}" for number in range(10)]
    for key in keys:
        photos.put(key, *([0, 0, 2 * next(blocks), 1] for _ in range(10)))
    on(photos)
    for key in keys:
        photos.put(key, [0, 0, 2 * next(blocks), 1])
    on(photos, "suspended")
    replicated: Any = SimpleNamespace(kv=photos.group.kv)
    some: Any = None
    few = ObjectCalls(replicated, some, some, some, some)._few(photos.id, keys, [None] * len(keys))
    photos.outcomes(*keys[:few])
    assert len(photos.frees()) <= 30


def test_a_put_that_comes_again_while_versions_are_suspended_has_its_name(
    photos: Photos,
) -> None:
    on(photos, "suspended")
    command = {"key": "a", **photos.written([0, 0, 0, 1])}
    first = _shown("a", photos.do("put_object", **command))
    photos.put("a", [0, 0, 1, 1])
    again = _shown("a", photos.do("put_object", **command))
    assert again["version"] == first["version"]


def test_a_record_of_the_state_fits_into_a_message_of_a_snapshot(photos: Photos) -> None:
    """By puts alone, all within their limits."""
    kv, machine = photos.group.kv, photos.group.machine
    for number in range(1000):
        written = photos.written([0, 0, number, 1])
        written["object"]["attributes"] = {"s3": b"x" * 2048}
        photos.group.index += 1
        command = {"do": "put_object", "bucket": photos.id, "key": f"{'k' * 401}{number}", **written}
        machine.apply(kv, command, photos.group.index)
        kv.commit()
    assert max(len(raw) for _, raw in kv.scan_raw(b"")) < frame.BODY_SIZE_MAX - CHUNK_SIZE


async def test_attributes_that_could_not_be_listed_are_refused() -> None:
    rig = Rig()
    rig.photos.open()
    deep: Any = 1
    for _ in range(1022):
        deep = {"n": deep}
    frame.unpack(frame.pack(["metadata.put_object", {"attributes": deep}]))  # the wire takes it
    with pytest.raises(Invalid, match="16 deep at most"):
        await rig.put("a", [0, 0, 0, 1], attributes=deep)


def test_the_removal_of_a_version_reads_a_few_records(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(photos)
    for _ in range(300):
        photos.group.index += 1
        command = {"do": "delete_objects", "bucket": photos.id, "keys": ["a"], "at_ms": 1}
        photos.group.machine.apply(photos.group.kv, command, photos.group.index)
        photos.group.kv.commit()
    read = 0
    page = MemoryBase.page

    def counted(self: MemoryBase, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        nonlocal read
        found = page(self, start, prefix, limit)
        read += len(found)
        return found

    monkeypatch.setattr(MemoryBase, "page", counted)
    command = {"do": "delete_objects", "bucket": photos.id, "keys": ["a"], "at_ms": 1}
    command["versions"] = [photos.versions("a")[150][1:]]
    read = 0
    photos.group.machine.apply(photos.group.kv, command, photos.group.index + 1)
    assert read < 20, f"{read} records were read, to remove one"
