"""Lifecycle rules are acted on: against a bucket in memory, of which metadata's clock is a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.client.objects.bucket import Deletion, ObjectInfo, VersionListing
from moorage.gateway.s3 import expiry, lifecycle, properties
from moorage.gateway.s3.expiry import DONE, prefixes
from moorage.gateway.s3.lifecycle import Rule
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.records import LIFECYCLE
from moorage.gateway.s3.times import DAY_MS
from moorage.wire.errors import NotFound

PAGE = 3


class Bucket:
    """``kept``: of each key its versions, the newest first; one where versions are not on."""

    name = "photos"

    def __init__(self, *rules: Rule, versioning: str | None = None) -> None:
        self.now_ms = 100 * DAY_MS
        self.documents = {LIFECYCLE: lifecycle.render(rules).decode()}
        self.versioning = versioning
        self.kept: dict[str, list[ObjectInfo]] = {}
        self.uploads: list[dict[str, Any]] = []
        self.pages: list[str] = []
        self.meanwhile = ""
        self.locked: set[str] = set()
        self._versions = 0

    @property
    def objects(self) -> list[str]:
        return sorted(key for key, rows in self.kept.items() if not rows[0].marker)

    def put(
        self, key: str, days_ago: float = 0.0, size: int = 1, *, marker: bool = False, **tags: str
    ) -> str:
        """Its version."""
        attributes = properties.to_attributes(Properties(tags=tags))
        at_ms = self.now_ms - int(days_ago * DAY_MS)
        self._versions += 1
        version = "null" if self.versioning is None else f"{self._versions:016x}"
        info = ObjectInfo(key, size, "e", at_ms, attributes, f"id-{key}", [], version, marker)
        self.kept[key] = [info] if self.versioning is None else [info, *self.kept.get(key, [])]
        return version

    def versions(self, key: str) -> list[str]:
        return [each.version for each in self.kept.get(key, [])]

    async def show(self) -> dict[str, Any]:
        return {"documents": dict(self.documents), "now_ms": self.now_ms, "versioning": self.versioning}

    async def versions_page(self, prefix: str, *, after: str, after_version: str) -> VersionListing:
        self.pages.append(prefix)
        rows = [
            replace(each, latest=each is self.kept[key][0])
            for key in sorted(self.kept)
            for each in self.kept[key]
            if key.startswith(prefix) and (key > after or (key == after and each.version < after_version))
        ]
        last = (rows[PAGE - 1].key, rows[PAGE - 1].version) if len(rows) > PAGE else None
        return VersionListing(rows[:PAGE], [], last)

    async def delete_these(self, objects: list[ObjectInfo]) -> list[bool]:
        if self.meanwhile in self.kept:
            self.kept[self.meanwhile][0] = replace(self.kept[self.meanwhile][0], id="another")
        there = [self.kept[each.key][0] == each for each in objects]
        for info in (each for each, is_there in zip(objects, there, strict=True) if is_there):
            if self.versioning is None:
                del self.kept[info.key]
            else:
                self.put(info.key, marker=True)
        return there

    async def delete_versions(
        self, wanted: list[tuple[str, str]], *, ids: list[str], former: bool
    ) -> list[Deletion]:
        if self.meanwhile in self.kept:
            del self.kept[self.meanwhile][0]
        assert all(
            each.id in ids for key, version in wanted for each in self.kept[key] if each.version == version
        )
        return [self._deleted(*each, former) for each in wanted]

    def _deleted(self, key: str, version: str, former: bool) -> Deletion:
        if former == (self.kept[key][0].version == version):
            return Deletion(False, version)
        if version in self.locked:
            return Deletion(True, version, locked=True)
        self.kept[key] = [each for each in self.kept[key] if each.version != version]
        if not self.kept[key]:
            del self.kept[key]
        return Deletion(True, version)

    async def list_uploads(self) -> list[dict[str, Any]]:
        return list(self.uploads)

    async def abort_upload(self, upload: str) -> None:
        if upload == "completed":
            raise NotFound("it was completed")
        self.uploads = [each for each in self.uploads if each["upload"] != upload]

    async def set_document(self, name: str, text: str) -> None:
        self.documents[name] = text


async def act(bucket: Any) -> list[str]:
    await expiry.see_to(bucket)
    found: list[str] = bucket.objects
    return found


async def test_what_is_due_goes_once_a_day() -> None:
    bucket = Bucket(Rule("tmp", prefix="tmp/", days=7), Rule("t", tags={"keep": "no"}, days=1))
    for number in range(2 * PAGE + 1):
        bucket.put(f"tmp/{number}", 8)
    bucket.put("tmp/new", 6)
    bucket.put("kept", 50)
    bucket.put("tagged", 3, keep="no")
    assert await act(bucket) == ["kept", "tmp/new"]
    looks = len(bucket.pages)
    bucket.now_ms += DAY_MS - 1
    assert await act(bucket) == ["kept", "tmp/new"] and len(bucket.pages) == looks, "that was done today"
    bucket.now_ms += 1
    assert await act(bucket) == ["kept"]


async def test_new_rules_count_at_once() -> None:
    bucket = Bucket(Rule("a", prefix="a", days=1))
    bucket.put("b", 9)
    assert await act(bucket) == ["b"]
    bucket.documents[LIFECYCLE] = lifecycle.render([Rule("b", prefix="b", days=1)]).decode()
    assert await act(bucket) == []
    del bucket.documents[LIFECYCLE]
    bucket.put("b", 9)
    assert await act(bucket) == ["b"]


async def test_what_was_put_since_stays() -> None:
    bucket = Bucket(Rule("a", days=1))
    bucket.put("a", 9)
    bucket.put("b", 9)
    bucket.meanwhile = "a"
    assert await act(bucket) == ["a"]


async def test_what_fails_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(Rule("a", days=1))
    bucket.put("a", 9)

    async def fail(objects: list[ObjectInfo]) -> list[bool]:
        raise NotFound("it is deleted")

    with monkeypatch.context() as patched, pytest.raises(NotFound):
        patched.setattr(bucket, "delete_these", fail)
        await act(bucket)
    assert DONE not in bucket.documents
    assert await act(bucket) == []


async def test_uploads_that_nobody_ends_are_aborted() -> None:
    bucket = Bucket(Rule("u", prefix="big/", abort_days=3))
    for name, key, days in (
        ("old", "big/a", 5),
        ("completed", "big/b", 5),
        ("new", "big/a", 2),
        ("x", "a", 9),
    ):
        bucket.uploads.append({"upload": name, "key": key, "created_ms": bucket.now_ms - days * DAY_MS})
    assert await act(bucket) == []
    assert [each["upload"] for each in bucket.uploads] == ["completed", "new", "x"] and not bucket.pages


async def test_former_versions_go() -> None:
    rules = Rule("a", noncurrent_days=3), Rule("b", prefix="b", noncurrent_days=1, noncurrent_kept=2)
    bucket = Bucket(*rules, versioning="enabled")
    old = [bucket.put("a", days) for days in (90, 80, 70, 60, 9, 5, 2)]
    few = [bucket.put("b", days) for days in (9, 8, 7.5, 7.2, 1)]
    bucket.locked = {old[1]}
    assert await act(bucket) == ["a", "b"]
    assert bucket.versions("a") == [old[6], old[5], old[1]], (
        "one became noncurrent two days ago, one is locked"
    )
    assert bucket.versions("b") == [few[4], few[3]]
    assert len(bucket.pages) == 4


async def test_a_former_version_that_is_current_by_then_stays() -> None:
    bucket = Bucket(Rule("a", noncurrent_days=1), versioning="enabled")
    first, _ = bucket.put("a", 9), bucket.put("a", 5)
    bucket.meanwhile = "a"  # the newer one goes
    assert await act(bucket) == ["a"]
    assert bucket.versions("a") == [first]


async def test_what_expires_where_versions_are_on_is_behind_a_marker() -> None:
    bucket = Bucket(Rule("a", days=3), versioning="enabled")
    first, second = bucket.put("a", 9), bucket.put("a", 8)
    lone = [bucket.put(f"m{number}", 9, marker=True) for number in range(2 * PAGE)]
    new = bucket.put("new", 1, marker=True)
    assert await act(bucket) == []
    assert bucket.versions("a")[1:] == [second, first] and bucket.kept["a"][0].marker
    assert sorted(bucket.kept) == ["a", "new"] and bucket.versions("new") == [new], lone
    bucket.now_ms += DAY_MS
    assert await act(bucket) == [] and len(bucket.versions("a")) == 3, "it is hidden once"


async def test_markers_that_hide_nothing_go() -> None:
    bucket = Bucket(Rule("a", prefix="m", markers=True), versioning="suspended")
    for key in ("m1", "m2", "n"):
        bucket.put(key, marker=True)
    bucket.put("m3", 5)
    bucket.put("m3", 4, marker=True)
    bucket.put("m4", marker=True)
    await act(bucket)
    assert sorted(bucket.kept) == ["m3", "n"]


def test_only_what_may_expire_is_looked_at() -> None:
    rules = [Rule(each, prefix=each, days=1) for each in ("a/b", "a/", "c", "a/b/c")]
    rules += [Rule("d", prefix="d", abort_days=1), Rule("e", enabled=False, days=1)]
    rules.append(Rule("f", prefix="f", date_ms=0))
    rules += [Rule("g", prefix="g", noncurrent_days=1), Rule("h", prefix="h", markers=True)]
    assert prefixes(rules, with_versions=False) == ["a/", "c", "f"]
    assert prefixes(rules, with_versions=True) == ["a/", "c", "f", "g", "h"]
    assert prefixes([*rules, Rule("all", days=1)], with_versions=False) == [""]
    assert prefixes([], with_versions=True) == []
