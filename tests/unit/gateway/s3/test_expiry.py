"""Lifecycle rules are acted on: against a bucket in memory, of which metadata's clock is a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.client.objects.bucket import Listing, ObjectInfo
from moorage.gateway.s3 import expiry, lifecycle, properties
from moorage.gateway.s3.expiry import DONE, prefixes
from moorage.gateway.s3.lifecycle import Rule
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.records import LIFECYCLE
from moorage.gateway.s3.times import DAY_MS
from moorage.wire.errors import NotFound

PAGE = 3


class Bucket:
    name = "photos"

    def __init__(self, *rules: Rule) -> None:
        self.now_ms = 100 * DAY_MS
        self.documents = {LIFECYCLE: lifecycle.render(rules).decode()}
        self.objects: dict[str, ObjectInfo] = {}
        self.uploads: list[dict[str, Any]] = []
        self.pages: list[str] = []
        self.meanwhile = ""

    def put(self, key: str, days_ago: float = 0.0, size: int = 1, **tags: str) -> None:
        attributes = properties.to_attributes(Properties(tags=tags))
        at_ms = self.now_ms - int(days_ago * DAY_MS)
        self.objects[key] = ObjectInfo(key, size, "e", at_ms, attributes, f"id-{key}")

    async def show(self) -> dict[str, Any]:
        return {"documents": dict(self.documents), "now_ms": self.now_ms}

    async def page(self, prefix: str, *, start: bytes) -> Listing:
        self.pages.append(prefix)
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start.decode())
        more = keys[PAGE - 1].encode() if len(keys) > PAGE else b""
        return Listing([self.objects[key] for key in keys[:PAGE]], [], more)

    async def delete_these(self, objects: list[ObjectInfo]) -> list[bool]:
        if self.meanwhile in self.objects:
            self.objects[self.meanwhile] = replace(self.objects[self.meanwhile], id="another")
        there = [self.objects.get(each.key) == each for each in objects]
        for info, is_there in zip(objects, there, strict=True):
            if is_there:
                del self.objects[info.key]
        return there

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
    return sorted(bucket.objects)


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


def test_only_what_may_expire_is_looked_at() -> None:
    rules = [Rule(each, prefix=each, days=1) for each in ("a/b", "a/", "c", "a/b/c")]
    rules += [Rule("d", prefix="d", abort_days=1), Rule("e", enabled=False, days=1)]
    rules.append(Rule("f", prefix="f", date_ms=0))
    assert prefixes(rules) == ["a/", "c", "f"]
    assert prefixes([*rules, Rule("all", days=1)]) == [""]
    assert prefixes([]) == []
