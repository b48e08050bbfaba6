"""Versions of objects and object lock, by S3: boto3 before a real gateway and cluster."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from .s3_gateway import Served, code_of, serve

MIB = 1 << 20
ENABLED, SUSPENDED = {"Status": "Enabled"}, {"Status": "Suspended"}
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serve(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def versioned(served: Served) -> str:
    name = served.bucket()
    served.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=ENABLED)
    return name


def locking(served: Served, name: str) -> str:
    served.s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


def put(served: Served, name: str, key: str, body: bytes = b"x", **more: Any) -> str:
    """Its version."""
    return str(served.s3.put_object(Bucket=name, Key=key, Body=body, **more)["VersionId"])


def error_of(call: Any, **arguments: Any) -> tuple[str, dict[str, str]]:
    """The code of the error that it ends with, and the headers of the answer."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response: Any = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPHeaders"]


def test_an_object_and_its_former_versions(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    assert "Status" not in s3.get_bucket_versioning(Bucket=name)
    assert "VersionId" not in s3.put_object(Bucket=name, Key="k", Body=b"null", ContentType="a/b")
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=ENABLED)
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    assert s3.head_object(Bucket=name, Key="k")["VersionId"] == "null"
    first, second = (put(served, name, "k", body) for body in (b"first", b"second"))
    bodies = {"null": b"null", first: b"first", second: b"second"}
    for version, body in bodies.items():
        got = s3.get_object(Bucket=name, Key="k", VersionId=version)
        assert (got["Body"].read(), got["VersionId"]) == (body, version)
        head = s3.head_object(Bucket=name, Key="k", VersionId=version)
        assert (head["ContentLength"], head["VersionId"]) == (len(body), version)
    about = s3.get_object_attributes(Bucket=name, Key="k", VersionId=first, ObjectAttributes=["ObjectSize"])
    assert (about["ObjectSize"], about["VersionId"]) == (5, first)
    assert s3.get_object(Bucket=name, Key="k")["VersionId"] == second

    gone = s3.delete_object(Bucket=name, Key="k")
    assert gone["DeleteMarker"] and gone["VersionId"] not in bodies
    for call in (s3.get_object, s3.head_object):
        code, headers = error_of(call, Bucket=name, Key="k")
        assert code in ("NoSuchKey", "404")
        assert (headers["x-amz-delete-marker"], headers["x-amz-version-id"]) == ("true", gone["VersionId"])
        code, headers = error_of(call, Bucket=name, Key="k", VersionId=gone["VersionId"])
        assert code in ("MethodNotAllowed", "405")
        assert (headers["x-amz-delete-marker"], headers["allow"]) == ("true", "DELETE")
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    assert code_of(s3.delete_bucket, Bucket=name) == "BucketNotEmpty"
    assert s3.get_object(Bucket=name, Key="k", VersionId=first)["Body"].read() == b"first"
    for version, code in (("0" * 16, "NoSuchVersion"), ("no version", "InvalidArgument")):
        assert code_of(s3.get_object, Bucket=name, Key="k", VersionId=version) == code
    put(served, name, "k", b"anew", IfNoneMatch="*")
    assert code_of(s3.put_object, Bucket=name, Key="k", Body=b"x", IfNoneMatch="*") == "PreconditionFailed"
    s3.delete_object(Bucket=name, Key="k", VersionId=s3.head_object(Bucket=name, Key="k")["VersionId"])

    removed = s3.delete_object(Bucket=name, Key="k", VersionId=gone["VersionId"])
    assert removed["DeleteMarker"] and removed["VersionId"] == gone["VersionId"]
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"second", "it is back"
    removed = s3.delete_object(Bucket=name, Key="k", VersionId=second)
    assert removed["VersionId"] == second and "DeleteMarker" not in removed
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"first"
    assert s3.delete_object(Bucket=name, Key="k", VersionId=second)["VersionId"] == second, "once more"
    for version in (first, "null"):
        s3.delete_object(Bucket=name, Key="k", VersionId=version)
    s3.delete_bucket(Bucket=name)


def test_what_is_kept_of_each_version(served: Served) -> None:
    s3, name = served.s3, versioned(served)
    first = put(served, name, "k", b"first", Metadata={"n": "1"})
    second = put(served, name, "k", b"second", Metadata={"n": "2"})
    tags = [{"Key": "t", "Value": "v"}]
    done = s3.put_object_tagging(Bucket=name, Key="k", VersionId=first, Tagging={"TagSet": tags})
    assert done["VersionId"] == first
    assert s3.get_object_tagging(Bucket=name, Key="k", VersionId=first)["TagSet"] == tags
    assert s3.get_object_tagging(Bucket=name, Key="k")["TagSet"] == []
    assert s3.delete_object_tagging(Bucket=name, Key="k", VersionId=first)["VersionId"] == first
    s3.put_object_acl(Bucket=name, Key="k", VersionId=first, ACL="public-read")
    assert served.raw("GET", f"/{name}/k?versionId={first}")[:2] == (200, b"first")
    assert served.raw("GET", f"/{name}/k?versionId={second}")[0] == 403
    assert len(s3.get_object_acl(Bucket=name, Key="k", VersionId=second)["Grants"]) == 1

    former = {"Bucket": name, "Key": "k", "VersionId": first}
    copied = s3.copy_object(Bucket=name, Key="k", CopySource=former)
    assert copied["CopySourceVersionId"] == first and copied["VersionId"] not in (first, second)
    got = s3.get_object(Bucket=name, Key="k")
    assert (got["Body"].read(), got["Metadata"], got["VersionId"]) == (
        *(b"first", {"n": "1"}),
        copied["VersionId"],
    )
    assert code_of(s3.copy_object, Bucket=name, Key="k", CopySource=f"{name}/k") == "InvalidRequest"
    marker = s3.delete_object(Bucket=name, Key="k")["VersionId"]
    assert code_of(s3.copy_object, Bucket=name, Key="n", CopySource=f"{name}/k") == "NoSuchKey"
    of_marker = {**former, "VersionId": marker}
    assert code_of(s3.copy_object, Bucket=name, Key="n", CopySource=of_marker) == "InvalidRequest"

    upload: dict[str, Any] = {"Bucket": name, "Key": "k"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    part = s3.upload_part_copy(**upload, PartNumber=1, CopySource=former)
    assert part["CopySourceVersionId"] == first
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]}
    done = s3.complete_multipart_upload(**upload, MultipartUpload=parts)
    assert s3.head_object(Bucket=name, Key="k")["VersionId"] == done["VersionId"]
    again = s3.complete_multipart_upload(**upload, MultipartUpload=parts)
    assert again["VersionId"] == done["VersionId"], "the first answer may have been lost"
    assert served.raw("PUT", f"/{name}/k?versionId={first}", b"x")[0] == 400, "a version cannot be put"


def test_versions_that_are_suspended(served: Served) -> None:
    s3, name = served.s3, versioned(served)
    first = put(served, name, "k", b"first")
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=SUSPENDED)
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Suspended"
    for body in (b"a", b"b"):
        assert put(served, name, "k", body) == "null"
    rows = s3.list_object_versions(Bucket=name)["Versions"]
    assert [(row["VersionId"], row["IsLatest"]) for row in rows] == [("null", True), (first, False)]
    gone = s3.delete_object(Bucket=name, Key="k")
    assert (gone["DeleteMarker"], gone["VersionId"]) == (True, "null")
    found = s3.list_object_versions(Bucket=name)
    assert [row["VersionId"] for row in found["Versions"]] == [first]
    assert [row["VersionId"] for row in found["DeleteMarkers"]] == ["null"]
    s3.delete_object(Bucket=name, Key="k", VersionId="null")
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"first"
    wrong = {"Status": "Enabled", "MFADelete": "Enabled"}
    assert code_of(s3.put_bucket_versioning, Bucket=name, VersioningConfiguration=wrong) == "NotImplemented"


def listed(served: Served, name: str, size: int, **more: Any) -> list[tuple[str, tuple[str, str]]]:
    """Kind, key and version of all, by pages of this size; in the order of the list, which boto3 loses."""
    pages = served.s3.get_paginator("list_object_versions").paginate(
        Bucket=name, **more, PaginationConfig={"PageSize": size}
    )
    found = [
        (kind, (row.get("Key") or row["Prefix"], row.get("VersionId", "")))
        for page in pages
        for kind in ("CommonPrefixes", "DeleteMarkers", "Versions")
        for row in page.get(kind, [])
    ]
    return sorted(found, key=lambda each: (each[1][0].encode(), [-ord(one) for one in each[1][1]]))


def test_lists_of_versions(served: Served) -> None:
    s3, name = served.s3, versioned(served)
    expected = []
    for key in ("a/1", "a/2", "b", "c & d", "é"):
        made = [put(served, name, key) for _ in range(2)]
        made.append(s3.delete_object(Bucket=name, Key=key)["VersionId"])
        expected += [(key, version) for version in reversed(made)]
    for size in (1, 2, 5, 1000):
        found = listed(served, name, size)
        assert [row for _, row in found] == expected
        assert [row for kind, row in found if kind == "DeleteMarkers"] == expected[::3]
    found = listed(served, name, 1, Delimiter="/")
    assert found[0] == ("CommonPrefixes", ("a/", "")) and [row for _, row in found[1:]] == expected[6:]
    page = s3.list_object_versions(Bucket=name, Prefix="b", KeyMarker="b", VersionIdMarker=expected[6][1])
    assert [row["VersionId"] for row in page["Versions"]] == [expected[7][1], expected[8][1]]
    assert s3.list_object_versions(Bucket=name, Prefix="b", KeyMarker="b").get("Versions") is None
    wrong: dict[str, Any] = {"Bucket": name, "KeyMarker": "b", "VersionIdMarker": "x"}
    assert code_of(s3.list_object_versions, **wrong) == "InvalidArgument"
    s3.put_bucket_acl(Bucket=name, ACL="public-read")
    _, body, _ = served.raw("GET", f"/{name}?versions")
    kinds = re.findall(rb"<(Version|DeleteMarker)>", body)
    assert kinds == [b"DeleteMarker", b"Version", b"Version"] * 5, "in the order of the list"


def test_many_are_deleted(served: Served) -> None:
    s3, name = served.s3, versioned(served)
    first, second = (put(served, name, "k", body) for body in (b"1", b"2"))
    wanted: list[dict[str, Any]] = [{"Key": "k"}, {"Key": "absent"}, {"Key": "k", "VersionId": first}]
    wanted.append({"Key": "k", "VersionId": "x"})
    found = s3.delete_objects(Bucket=name, Delete={"Objects": wanted})
    assert [(row["Key"], row["VersionId"], row["Code"]) for row in found["Errors"]] == [
        ("k", "x", "InvalidArgument")
    ]
    rows = {(row["Key"], row.get("VersionId")): row for row in found["Deleted"]}
    marker = rows["k", None]["DeleteMarkerVersionId"]
    assert rows["k", None]["DeleteMarker"] and rows["absent", None]["DeleteMarker"]
    assert rows["k", first] == {"Key": "k", "VersionId": first}
    found = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "k", "VersionId": marker}]})
    assert found["Deleted"] == [
        {"Key": "k", "VersionId": marker, "DeleteMarker": True, "DeleteMarkerVersionId": marker}
    ]
    assert s3.head_object(Bucket=name, Key="k")["VersionId"] == second
    conditional = [{"Key": "k", "VersionId": second, "Size": 2}, {"Key": "k", "Size": 1}]
    found = s3.delete_objects(Bucket=name, Delete={"Objects": conditional})
    assert [(row["VersionId"], row["Code"]) for row in found["Errors"]] == [(second, "PreconditionFailed")]
    assert [row["DeleteMarker"] for row in found["Deleted"]] == [True]


def test_who_may(served: Served) -> None:
    s3, other, name = served.s3, served.other, versioned(served)
    first, _ = (put(served, name, "k", body) for body in (b"1", b"2"))
    policy = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "team-b"},
        "Action": [%s], "Resource": ["arn:aws:s3:::%s", "arn:aws:s3:::%s/*"]}]}"""
    s3.put_bucket_policy(Bucket=name, Policy=policy % ('"s3:GetObject", "s3:DeleteObject"', name, name))
    assert other.get_object(Bucket=name, Key="k")["Body"].read() == b"2"
    assert code_of(other.get_object, Bucket=name, Key="k", VersionId=first) == "AccessDenied"
    assert code_of(other.list_object_versions, Bucket=name) == "AccessDenied"
    other.create_bucket(Bucket="of-team-b")
    former = {"Bucket": name, "Key": "k", "VersionId": first}
    other.copy_object(Bucket="of-team-b", Key="k", CopySource=f"{name}/k")
    assert code_of(other.copy_object, Bucket="of-team-b", Key="k", CopySource=former) == "AccessDenied"
    assert code_of(other.delete_object, Bucket=name, Key="k", VersionId=first) == "AccessDenied"
    wanted = {"Objects": [{"Key": "k"}, {"Key": "k", "VersionId": first}]}
    found = other.delete_objects(Bucket=name, Delete=wanted)
    assert (len(found["Deleted"]), found["Errors"][0]["VersionId"]) == (1, first)
    assert code_of(other.put_bucket_versioning, Bucket=name, VersioningConfiguration=SUSPENDED) == (
        "AccessDenied"
    )
    s3.put_bucket_policy(Bucket=name, Policy=policy % ('"s3:*Version*"', name, name))
    assert other.get_object(Bucket=name, Key="k", VersionId=first)["Body"].read() == b"1"
    assert len(other.list_object_versions(Bucket=name)["Versions"]) == 2
    copied = other.copy_object(Bucket="of-team-b", Key="k", CopySource=former)
    assert copied["CopySourceVersionId"] == first and "VersionId" not in copied
    other.delete_object(Bucket=name, Key="k", VersionId=first)


def test_what_expires(served: Served) -> None:
    s3, name = served.s3, versioned(served)
    put(served, name, "tmp/a")
    kept = put(served, name, "kept")
    for key in ("old/a", "old/b"):
        s3.delete_object(Bucket=name, Key=key)
    under = put(served, name, "old/c")
    s3.delete_object(Bucket=name, Key="old/c")
    rules = [
        {"ID": "a", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Date": TODAY - timedelta(days=1)}},
        {"ID": "b", "Filter": {"Prefix": "old/"}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
        {"ID": "c", "Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    ]
    enabled = [{**rule, "Status": "Enabled"} for rule in rules]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": enabled})
    s3.get_waiter("object_not_exists").wait(
        Bucket=name, Key="tmp/a", WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    for _ in range(30):
        found = s3.list_object_versions(Bucket=name)
        markers = [row["Key"] for row in found["DeleteMarkers"]]
        if markers == ["old/c", "tmp/a"]:
            break
        s3.get_waiter("object_exists").wait(Bucket=name, Key="kept")
    assert markers == ["old/c", "tmp/a"]
    rows = [(row["Key"], row["IsLatest"]) for row in found["Versions"]]
    assert rows == [("kept", True), ("old/c", False), ("tmp/a", False)], (kept, under)


# -- locks -----------------------------------------------------------------------------------------------


def test_versions_that_are_locked(served: Served) -> None:
    s3, name = served.s3, locking(served, "locked-1")
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    found = s3.get_object_lock_configuration(Bucket=name)["ObjectLockConfiguration"]
    assert found == {"ObjectLockEnabled": "Enabled"}
    assert code_of(s3.put_bucket_versioning, Bucket=name, VersioningConfiguration=SUSPENDED) == (
        "InvalidBucketState"
    )
    until = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    locked: dict[str, Any] = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until}
    version = put(served, name, "k", b"kept", **locked, ObjectLockLegalHoldStatus="ON")
    head = s3.head_object(Bucket=name, Key="k")
    told = head["ObjectLockMode"], head["ObjectLockRetainUntilDate"], head["ObjectLockLegalHoldStatus"]
    assert told == ("GOVERNANCE", until, "ON")
    one: dict[str, Any] = {"Bucket": name, "Key": "k", "VersionId": version}
    assert s3.get_object_retention(**one)["Retention"] == {"Mode": "GOVERNANCE", "RetainUntilDate": until}
    assert s3.get_object_legal_hold(**one)["LegalHold"] == {"Status": "ON"}

    free = put(served, name, "free")
    wanted = [{"Key": "k", "VersionId": version}, {"Key": "free", "VersionId": free}, {"Key": "k"}]
    gone = s3.delete_objects(Bucket=name, Delete={"Objects": wanted})
    assert [(row["Key"], row["Code"]) for row in gone["Errors"]] == [("k", "AccessDenied")]
    assert sorted(row["Key"] for row in gone["Deleted"]) == ["free", "k"], "one that is locked stops no other"
    assert code_of(s3.delete_object, **one) == "AccessDenied"
    assert code_of(s3.delete_object, **one, BypassGovernanceRetention=True) == "AccessDenied", "it is held"
    s3.put_object_legal_hold(**one, LegalHold={"Status": "OFF"})
    assert code_of(s3.get_object_legal_hold, **one) == "NoSuchObjectLockConfiguration"
    assert code_of(s3.delete_object, **one) == "AccessDenied"
    assert s3.delete_object(**one, BypassGovernanceRetention=True)["VersionId"] == version
    past = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": TODAY}
    assert code_of(s3.put_object, Bucket=name, Key="k", **past) == "InvalidArgument"


def test_retentions(served: Served) -> None:
    s3, other, name = served.s3, served.other, locking(served, "locked-2")
    one: dict[str, Any] = {"Bucket": name, "Key": "k", "VersionId": put(served, name, "k")}
    assert code_of(s3.get_object_retention, **one) == "NoSuchObjectLockConfiguration"
    hours = [(datetime.now(UTC) + timedelta(hours=each)).replace(microsecond=0) for each in range(4)]

    def retain(client: Any, mode: str, hour: int, **more: Any) -> None:
        wanted = {"Mode": mode, "RetainUntilDate": hours[hour]}
        client.put_object_retention(**one, Retention=wanted, **more)

    retain(s3, "GOVERNANCE", 2)
    retain(s3, "GOVERNANCE", 3)
    assert code_of(lambda: retain(s3, "GOVERNANCE", 1)) == "AccessDenied"
    assert code_of(lambda: retain(s3, "GOVERNANCE", 0)) == "InvalidArgument"
    policy = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "team-b"},
        "Action": ["s3:PutObjectRetention"%s], "Resource": "arn:aws:s3:::%s/*"}]}"""
    s3.put_bucket_policy(Bucket=name, Policy=policy % ("", name))
    assert code_of(lambda: retain(other, "GOVERNANCE", 1, BypassGovernanceRetention=True)) == "AccessDenied"
    s3.put_bucket_policy(Bucket=name, Policy=policy % (', "s3:BypassGovernanceRetention"', name))
    retain(other, "GOVERNANCE", 1, BypassGovernanceRetention=True)
    retain(s3, "COMPLIANCE", 2)
    for mode, hour in (("COMPLIANCE", 1), ("GOVERNANCE", 3)):
        assert code_of(retain, client=s3, mode=mode, hour=hour, BypassGovernanceRetention=True) == (
            "AccessDenied"
        )
    assert code_of(s3.delete_object, **one, BypassGovernanceRetention=True) == "AccessDenied"
    assert s3.delete_object(Bucket=name, Key="k")["DeleteMarker"], "what is put before it locks nothing up"


def test_locks_by_default(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    wanted = {"ObjectLockEnabled": "Enabled", "Rule": rule}
    refused = code_of(s3.put_object_lock_configuration, Bucket=name, ObjectLockConfiguration=wanted)
    assert refused == "InvalidBucketState"
    assert code_of(s3.put_object, Bucket=name, Key="k", ObjectLockLegalHoldStatus="ON") == "InvalidRequest"
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=ENABLED)
    assert code_of(s3.get_object_lock_configuration, Bucket=name) == "ObjectLockConfigurationNotFoundError"
    s3.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration=wanted)
    assert s3.get_object_lock_configuration(Bucket=name)["ObjectLockConfiguration"] == wanted
    version = put(served, name, "k")
    assert code_of(s3.delete_object, Bucket=name, Key="k", VersionId=version) == "AccessDenied"
    until = s3.head_object(Bucket=name, Key="k")["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(hours=23) < until < timedelta(hours=25)
    hold = {"ObjectLockLegalHoldStatus": "ON"}
    s3.copy_object(Bucket=name, Key="copy", CopySource=f"{name}/k", **hold)
    upload: dict[str, Any] = {"Bucket": name, "Key": "parts"}
    upload["UploadId"] = s3.create_multipart_upload(**upload, **hold)["UploadId"]
    part = s3.upload_part(**upload, PartNumber=1, Body=b"x")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    s3.complete_multipart_upload(**upload, MultipartUpload=parts)
    for key in ("copy", "parts"):
        head = s3.head_object(Bucket=name, Key=key)
        assert (head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]) == ("COMPLIANCE", "ON")
    s3.put_object_lock_configuration(Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
    version = put(served, name, "free")
    s3.delete_object(Bucket=name, Key="free", VersionId=version)
