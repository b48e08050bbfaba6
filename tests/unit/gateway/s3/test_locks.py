"""Locks: what a put asks for, what there is by default, and what answers tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage.client.objects.bucket import Lock, ObjectInfo
from moorage.gateway.s3 import documents, locks, results, times
from moorage.gateway.s3.documents import LockRule
from moorage.gateway.s3.errors import S3Error, error_of
from moorage.gateway.s3.records import OBJECT_LOCK
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.times import DAY_MS
from moorage.wire.errors import Locked

from .asking import Kept, ask, refused
from .support import NOW_MS, read_by_botocore

MODE, UNTIL = "x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"
HOLD = "x-amz-object-lock-legal-hold"
BYPASS = {"x-amz-bypass-governance-retention": "true"}
LATER_MS = NOW_MS + DAY_MS
LATER = times.iso(LATER_MS)
VERSION = f"{7:016x}"
NO_LOCK = Lock()


class Bucket(Kept):
    """Of one object, ``info``."""

    def __init__(self, lock: Lock = NO_LOCK) -> None:
        super().__init__()
        self.locks = True
        self.info = ObjectInfo("k", 1, "e", NOW_MS, version=VERSION, lock=lock)
        self.put_with: Lock | None = None

    async def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self.info

    async def set_retention(
        self, info: ObjectInfo, mode: str, until_ms: int, *, bypass: bool = False
    ) -> ObjectInfo:
        if info.lock.mode and not (info.lock.mode == "GOVERNANCE" and bypass):
            raise Locked("it is retained", key=info.key, version=info.version)
        self.info = replace(info, lock=replace(info.lock, mode=mode, until_ms=until_ms))
        return self.info

    async def set_hold(self, info: ObjectInfo, hold: bool) -> ObjectInfo:
        self.info = replace(info, lock=replace(info.lock, hold=hold))
        return self.info

    async def put(self, key: str, body: Any, *, lock: Lock | None, etag: Any, **more: Any) -> ObjectInfo:
        self.put_with = lock
        return replace(self.info, etag=etag(), lock=lock or Lock())


async def put(bucket: Bucket, **more: Any) -> Lock | None:
    await ask(bucket, "PUT", "/photos/k", b"x", **more)
    return bucket.put_with


@pytest.mark.parametrize(
    ("headers", "lock"),
    [
        ({}, None),
        ({MODE: "COMPLIANCE", UNTIL: LATER}, Lock("COMPLIANCE", LATER_MS)),
        ({MODE: "GOVERNANCE", UNTIL: LATER, HOLD: "ON"}, Lock("GOVERNANCE", LATER_MS, True)),
        ({HOLD: "ON"}, Lock(hold=True)),
        ({HOLD: "OFF"}, Lock()),
    ],
)
async def test_what_a_put_asks_for(headers: dict[str, str], lock: Lock | None) -> None:
    bucket = Bucket()
    assert await put(bucket, headers=headers) == lock
    bucket.documents[OBJECT_LOCK] = results.object_lock(LockRule("GOVERNANCE", days=2)).decode()
    wanted = lock if lock is not None and lock.mode else Lock("GOVERNANCE", NOW_MS + 2 * DAY_MS)
    assert await put(bucket, headers=headers) == replace(wanted, hold=headers.get(HOLD) == "ON")
    bucket.locks = False
    if headers:
        error = await refused(bucket, "PUT", "/photos/k", b"x", headers)
        assert (error.code, error.message) == (
            "InvalidRequest",
            "Bucket is missing Object Lock Configuration",
        )


@pytest.mark.parametrize(
    "headers",
    [
        {MODE: "COMPLIANCE"},
        {UNTIL: LATER},
        {MODE: "compliance", UNTIL: LATER},
        {MODE: "COMPLIANCE", UNTIL: "tomorrow"},
        {MODE: "COMPLIANCE", UNTIL: times.iso(NOW_MS)},
        {HOLD: "on"},
    ],
)
def test_what_cannot_be_asked_for(headers: dict[str, str]) -> None:
    with pytest.raises(S3Error, match="InvalidArgument"):
        locks.of_request(Request("PUT", "/b/k", "", headers.items()), NOW_MS)


async def test_who_may_lock() -> None:
    bucket, other = Bucket(), "team-b"
    both = {MODE: "GOVERNANCE", UNTIL: LATER, HOLD: "ON"}
    actions = "s3:PutObject", "s3:PutObjectRetention", "s3:PutObjectLegalHold"
    bucket.set_policy("Allow", *actions)
    assert await put(bucket, headers=both, principal=other) == Lock("GOVERNANCE", LATER_MS, True)
    for action in actions:
        bucket.set_policy("Allow", *(each for each in actions if each != action))
        assert (await refused(bucket, "PUT", "/photos/k", b"x", both, other)).code == "AccessDenied"


async def test_a_year_has_365_days() -> None:
    bucket = Bucket()
    bucket.documents[OBJECT_LOCK] = results.object_lock(LockRule("COMPLIANCE", years=2)).decode()
    assert await put(bucket) == Lock("COMPLIANCE", NOW_MS + 730 * DAY_MS)


async def test_what_is_told_and_to_whom() -> None:
    bucket = Bucket(Lock("GOVERNANCE", LATER_MS, True))
    told = {MODE: "GOVERNANCE", UNTIL: LATER, HOLD: "ON"}
    headers = (await ask(bucket, "HEAD", "/photos/k")).headers
    assert told.items() <= headers.items()
    bucket.set_policy("Allow", "s3:GetObject", "s3:GetObjectLegalHold")
    headers = (await ask(bucket, "HEAD", "/photos/k", principal="team-b")).headers
    assert [name for name in headers if "object-lock" in name] == [HOLD]
    bucket.info = replace(bucket.info, lock=Lock("COMPLIANCE", 1 << 62))
    assert (await ask(bucket, "HEAD", "/photos/k")).headers[UNTIL] == "9999-12-31T23:59:59.999Z"
    assert b">9999-12-31T" in (await ask(bucket, "GET", "/photos/k?retention")).body
    bucket.info = replace(bucket.info, lock=Lock())
    assert not told.keys() & (await ask(bucket, "HEAD", "/photos/k")).headers.keys()


def retention(mode: str, until_ms: int) -> bytes:
    return results.retention(documents.Retention(mode, until_ms))


async def test_retentions() -> None:
    bucket, path = Bucket(Lock(hold=True)), f"/photos/k?retention&versionId={VERSION}"
    assert (await refused(bucket, "GET", path)).code == "NoSuchObjectLockConfiguration"
    assert (await refused(bucket, "PUT", path, retention("COMPLIANCE", NOW_MS))).code == "InvalidArgument"
    answer = await ask(bucket, "PUT", path, retention("GOVERNANCE", LATER_MS))
    assert answer.headers == {"x-amz-version-id": VERSION}
    assert bucket.info.lock == Lock("GOVERNANCE", LATER_MS, True), "the hold is another matter"
    found = read_by_botocore("GetObjectRetention", (await ask(bucket, "GET", path)).body)["Retention"]
    assert found["Mode"] == "GOVERNANCE" and found["RetainUntilDate"].timestamp() * 1000 == LATER_MS
    with pytest.raises(Locked) as caught:
        await ask(bucket, "PUT", path, b"<Retention/>")
    assert error_of(caught.value).code == "AccessDenied"
    bucket.set_policy("Deny", "s3:BypassGovernanceRetention")
    assert (await refused(bucket, "PUT", path, b"<Retention/>", BYPASS)).code == "AccessDenied"
    bucket.documents.clear()
    await ask(bucket, "PUT", path, b"<Retention/>", BYPASS)
    assert bucket.info.lock == Lock(hold=True)
    bucket.locks = False
    assert (await refused(bucket, "GET", path)).code == "InvalidRequest"


async def test_holds() -> None:
    bucket, path = Bucket(), "/photos/k?legal-hold"
    assert (await refused(bucket, "GET", path)).code == "NoSuchObjectLockConfiguration"
    await ask(bucket, "PUT", path, results.legal_hold(True))
    assert bucket.info.lock == Lock(hold=True)
    found = read_by_botocore("GetObjectLegalHold", (await ask(bucket, "GET", path)).body)
    assert found == {"LegalHold": {"Status": "ON"}}
    await ask(bucket, "PUT", path, results.legal_hold(False))
    assert bucket.info.lock == Lock()
    bucket.info = replace(bucket.info, lock=Lock("GOVERNANCE", LATER_MS))
    await ask(bucket, "PUT", path, results.legal_hold(True))
    assert bucket.info.lock == Lock("GOVERNANCE", LATER_MS, True), "the retention is another matter"
    bucket.locks = False
    assert (await refused(bucket, "PUT", path, results.legal_hold(True))).code == "InvalidRequest"


async def test_configurations() -> None:
    bucket, path = Bucket(), "/photos?object-lock"
    rule = results.object_lock(LockRule("GOVERNANCE", days=1))
    bucket.locks, bucket.versioning = False, "suspended"
    assert (await refused(bucket, "GET", path)).code == "ObjectLockConfigurationNotFoundError"
    assert (await refused(bucket, "PUT", path, rule)).code == "InvalidBucketState"
    bucket.versioning = "enabled"
    await ask(bucket, "PUT", path, rule)
    assert bucket.locks and (await ask(bucket, "GET", path)).body == rule
    await ask(bucket, "PUT", path, results.object_lock(None))
    assert bucket.locks and (await ask(bucket, "GET", path)).body == results.object_lock(None)
