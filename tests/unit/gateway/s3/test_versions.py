"""What answers tell of versions, and of what is not there: operations on a bucket in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from moorage.client.objects.bucket import Deletion, ObjectInfo, VersionListing
from moorage.gateway.s3 import acl, properties
from moorage.gateway.s3.properties import Properties
from moorage.gateway.s3.records import ACL
from moorage.wire.errors import NotFound

from .asking import Kept, ask, refused
from .support import NOW_MS, read_by_botocore

V1, V2, V3 = (f"{number:016x}" for number in (1, 2, 3))


class Bucket(Kept):
    """``versions``: of each key the newest first."""

    def __init__(self, *versions: ObjectInfo) -> None:
        super().__init__()
        self.versions = list(versions)
        self.locked: set[str] = set()
        self.bypassed = False
        self.pages: list[dict[str, Any]] = []

    async def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        for each in self.versions:
            if each.key == key and version in (None, each.version):
                if each.marker:
                    raise NotFound("it was deleted", key=key, marker=each.version)
                return each
        raise NotFound("it is not there", key=key, **({} if version is None else {"version": version}))

    async def open(self, key: str, *, version: str | None = None) -> tuple[ObjectInfo, Any]:
        return await self.head(key, version=version), None

    async def delete_versions(
        self, wanted: Sequence[tuple[str, str | None]], *, condition: Any = None, bypass: bool = False
    ) -> list[Deletion]:
        self.bypassed = bypass
        return [self._deleted(key, version) for key, version in wanted]

    def _deleted(self, key: str, version: str | None) -> Deletion:
        if version is None:
            return Deletion(True, V3, True)
        there = [each for each in self.versions if (each.key, each.version) == (key, version)]
        is_marker = any(each.marker for each in there)
        return Deletion(bool(there), version, is_marker, version in self.locked)

    async def versions_page(self, prefix: str, **asked: Any) -> VersionListing:
        self.pages.append(asked)
        return VersionListing(self.versions[: asked["limit"]], [], ("k", self.versions[0].version))


NEWEST = ObjectInfo("k", 1, "e2", NOW_MS, version=V2)
OLD = ObjectInfo("k", 2, "e1", NOW_MS, version=V1, latest=False)
MARKER = ObjectInfo("gone", 0, "", NOW_MS, version=V2, marker=True)
BEFORE = ObjectInfo("gone", 2, "e1", NOW_MS, version=V1, latest=False)


async def test_which_version_it_is() -> None:
    bucket = Bucket(NEWEST, OLD)
    for method in ("GET", "HEAD"):
        for query, etag, version in (("", "e2", V2), (f"?versionId={V1}", "e1", V1)):
            answer = await ask(bucket, method, f"/photos/k{query}")
            assert (answer.headers["ETag"], answer.headers["x-amz-version-id"]) == (f'"{etag}"', version)
    answer = await ask(bucket, "GET", f"/photos/k?tagging&versionId={V1}")
    assert answer.headers["x-amz-version-id"] == V1


async def test_a_version_is_told_where_there_are_any() -> None:
    plain = Bucket(replace(NEWEST, version="null"))
    for versioning, told in ((None, None), ("enabled", "null"), ("suspended", "null")):
        plain.versioning = versioning
        answer = await ask(plain, "HEAD", "/photos/k?versionId=null")
        assert answer.headers.get("x-amz-version-id") == told
    late = Bucket(NEWEST)
    late.versioning = None
    answer = await ask(late, "HEAD", "/photos/k")
    assert answer.headers["x-amz-version-id"] == V2, "versions were switched on a moment ago"


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        (f"k?versionId={V3}", "NoSuchVersion", {}),
        ("k?versionId=", "InvalidArgument", {}),
        ("k?versionId=x", "InvalidArgument", {}),
        ("absent", "NoSuchKey", {}),
        ("gone", "NoSuchKey", {"x-amz-delete-marker": "true", "x-amz-version-id": V2}),
        (
            f"gone?versionId={V2}",
            "MethodNotAllowed",
            {"x-amz-delete-marker": "true", "x-amz-version-id": V2, "Allow": "DELETE"},
        ),
    ],
)
async def test_what_is_not_there(path: str, code: str, told: dict[str, str]) -> None:
    bucket = Bucket(MARKER, BEFORE, NEWEST)
    for method in ("GET", "HEAD"):
        error = await refused(bucket, method, f"/photos/{path}")
        assert (error.code, error.headers) == (code, told)
    assert (await ask(bucket, "GET", f"/photos/gone?versionId={V1}")).headers["ETag"] == '"e1"'


async def test_who_may_read_versions() -> None:
    bucket, other = Bucket(MARKER, BEFORE, NEWEST), "team-b"
    bucket.set_policy("Allow", "s3:GetObject")
    assert (await ask(bucket, "GET", "/photos/k", principal=other)).headers["x-amz-version-id"] == V2
    error = await refused(bucket, "GET", f"/photos/k?versionId={V2}", principal=other)
    assert error.code == "AccessDenied"
    error = await refused(bucket, "GET", "/photos/gone", principal=other)
    assert (error.code, error.headers) == ("AccessDenied", {}), "who may not list is told nothing"
    bucket.set_policy("Allow", "s3:GetObjectVersion", Condition={"StringEquals": {"s3:VersionId": V2}})
    assert (await ask(bucket, "GET", f"/photos/k?versionId={V2}", principal=other)).status == 200
    error = await refused(bucket, "GET", f"/photos/k?versionId={V1}", principal=other)
    assert error.code == "AccessDenied"


async def test_deletions() -> None:
    bucket = Bucket(NEWEST, OLD, MARKER)
    answer = await ask(bucket, "DELETE", "/photos/k")
    assert answer.headers == {"x-amz-version-id": V3, "x-amz-delete-marker": "true"}
    answer = await ask(bucket, "DELETE", f"/photos/k?versionId={V1}")
    assert answer.headers == {"x-amz-version-id": V1}
    answer = await ask(bucket, "DELETE", f"/photos/gone?versionId={V2}")
    assert answer.headers == {"x-amz-version-id": V2, "x-amz-delete-marker": "true"}
    bucket.locked = {V1}
    assert (await refused(bucket, "DELETE", f"/photos/k?versionId={V1}")).code == "AccessDenied"


async def test_many_deletions() -> None:
    bucket = Bucket(NEWEST, OLD, MARKER)
    bucket.locked = {V1}
    rows = (("k", V1), ("gone", V2), ("k", V2), ("k", ""), ("k", "x"), ("kept", V3), ("kept", ""))
    items = "".join(
        f"<Object><Key>{key}</Key>{f'<VersionId>{version}</VersionId>' if version else ''}</Object>"
        for key, version in rows
    )
    bucket.set_policy("Deny", "s3:DeleteObjectVersion", Resource="arn:aws:s3:::photos/kept")
    answer = await ask(bucket, "POST", "/photos?delete", f"<Delete>{items}</Delete>".encode())
    found = read_by_botocore("DeleteObjects", answer.body)
    errors = {(row["Key"], row["VersionId"]): row["Code"] for row in found["Errors"]}
    assert errors == {("k", V1): "AccessDenied", ("k", "x"): "InvalidArgument", ("kept", V3): "AccessDenied"}
    assert found["Deleted"] == [
        {"Key": "gone", "VersionId": V2, "DeleteMarker": True, "DeleteMarkerVersionId": V2},
        {"Key": "k", "VersionId": V2},
        {"Key": "k", "DeleteMarker": True, "DeleteMarkerVersionId": V3},
        {"Key": "kept", "DeleteMarker": True, "DeleteMarkerVersionId": V3},
    ]


async def test_who_may_pass_over_governance() -> None:
    bucket, wanted = Bucket(NEWEST, OLD), {"x-amz-bypass-governance-retention": "true"}
    one = "DELETE", f"/photos/k?versionId={V1}", b""
    row = f"<Delete><Object><Key>k</Key><VersionId>{V1}</VersionId></Object></Delete>"
    many = "POST", "/photos?delete", row.encode()
    for method, path, body in (one, many):
        await ask(bucket, method, path, body)
        assert not bucket.bypassed
        await ask(bucket, method, path, body, wanted)
        assert bucket.bypassed
    bucket.set_policy("Deny", "s3:BypassGovernanceRetention")
    bucket.bypassed = False
    assert (await refused(bucket, *one, wanted)).code == "AccessDenied"
    assert b"<Code>AccessDenied</Code>" in (await ask(bucket, *many, wanted)).body and not bucket.bypassed
    await ask(bucket, *one)


async def test_lists() -> None:
    bucket = Bucket(MARKER, NEWEST, OLD)
    answer = await ask(bucket, "GET", f"/photos?versions&key-marker=a&version-id-marker={V3}&max-keys=3")
    assert bucket.pages == [{"delimiter": "", "after": "a", "after_version": V3, "limit": 3}]
    found = read_by_botocore("ListObjectVersions", answer.body)
    rows = [(row["Key"], row["VersionId"], row["IsLatest"], row["Size"]) for row in found["Versions"]]
    assert rows == [("k", V2, True, 1), ("k", V1, False, 2)]
    assert [(row["Key"], row["VersionId"]) for row in found["DeleteMarkers"]] == [("gone", V2)]
    assert (found["NextKeyMarker"], found["NextVersionIdMarker"]) == ("k", V2)
    answer = await ask(bucket, "GET", "/photos?versions&max-keys=0")
    assert "Versions" not in read_by_botocore("ListObjectVersions", answer.body) and len(bucket.pages) == 1


async def test_versions_are_switched_on_and_off() -> None:
    bucket = Bucket()
    bucket.versioning = None

    async def state() -> dict[str, Any]:
        return read_by_botocore("GetBucketVersioning", (await ask(bucket, "GET", "/photos?versioning")).body)

    assert await state() == {}
    for status in ("Enabled", "Suspended"):
        body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>".encode()
        error = await refused(bucket, "PUT", "/photos?versioning", body, principal="team-b")
        assert error.code == "AccessDenied"
        await ask(bucket, "PUT", "/photos?versioning", body)
        assert await state() == {"Status": status}
    bucket.locks = True
    assert (await refused(bucket, "PUT", "/photos?versioning", body)).code == "InvalidBucketState"
    assert (await refused(bucket, "PUT", "/photos?versioning", b"<a/>")).code == "MalformedXML"


async def test_who_may_write_may_not_delete_versions_for_good() -> None:
    """By Amazon's table, WRITE of a list allows that to nobody but the bucket's owner."""
    bucket = Bucket(NEWEST, OLD)
    bucket.documents[ACL] = acl.render(acl.canned("public-read-write", "team-a", "team-a")).decode()
    error = await refused(bucket, "DELETE", f"/photos/k?versionId={V1}", principal="a-stranger")
    assert error.code == "AccessDenied"


async def test_an_upload_is_answered_as_before_when_something_was_put_over_it() -> None:
    made = replace(OLD, attributes=properties.to_attributes(Properties(upload="u" * 32)))

    class Uploads(Bucket):
        async def show_upload(self, id: str, **more: Any) -> dict[str, Any]:
            raise NotFound("it was completed")

    part = b"<Part><PartNumber>1</PartNumber><ETag>e</ETag></Part>"
    body = b"<CompleteMultipartUpload>" + part + b"</CompleteMultipartUpload>"
    headers = {"content-length": str(len(body))}
    answer = await ask(Uploads(NEWEST, made), "POST", f"/photos/k?uploadId={'u' * 32}", body, headers)
    assert answer.headers["x-amz-version-id"] == V1
