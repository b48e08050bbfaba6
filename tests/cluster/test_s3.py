"""The S3 gateway, a process before a real cluster: asked by boto3, and by hand for what that cannot send."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import random
import signal
import socket
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from moorage.gateway.s3.server import CONNECTIONS_MAX

from .s3_gateway import S3Gateway, Served, client, code_of, serve

MIB = 1 << 20
YESTERDAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serve(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def test_buckets(served: Served) -> None:
    s3 = served.s3
    name = served.bucket()
    assert name in [each["Name"] for each in s3.list_buckets()["Buckets"]]
    assert name not in [each["Name"] for each in served.other.list_buckets()["Buckets"]]
    assert s3.head_bucket(Bucket=name)["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] is None
    assert code_of(s3.create_bucket, Bucket=name) == "BucketAlreadyOwnedByYou"
    assert code_of(served.other.create_bucket, Bucket=name) == "BucketAlreadyExists"
    assert code_of(served.other.head_bucket, Bucket=name) == "403"
    assert code_of(s3.head_bucket, Bucket="no-such-bucket") == "404"
    assert code_of(s3.get_bucket_location, Bucket="no-such-bucket") == "NoSuchBucket"
    s3.put_object(Bucket=name, Key="k", Body=b"x")
    assert code_of(s3.delete_bucket, Bucket=name) == "BucketNotEmpty"
    assert code_of(served.other.delete_bucket, Bucket=name) == "AccessDenied"
    s3.delete_object(Bucket=name, Key="k")
    s3.delete_bucket(Bucket=name)
    assert code_of(s3.head_bucket, Bucket=name) == "404"
    served.raw("GET", "/")


def test_an_object_with_all_that_is_kept_of_it(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    key = "a b/../ü+%2F&?=#//x"
    data = content(1, 3 * MIB + 5)
    put = s3.put_object(
        **{"Bucket": name, "Key": key, "Body": data, "ContentType": "image/x", "CacheControl": "no-store"},
        **{"Metadata": {"Colour": "blue"}, "Tagging": "a=1&b=2", "ContentEncoding": "gzip"},
    )
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert put["ChecksumCRC32"] == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    got = s3.get_object(Bucket=name, Key=key, ChecksumMode="ENABLED")
    assert got["Body"].read() == data
    assert (got["ContentType"], got["CacheControl"], got["ContentEncoding"]) == (
        "image/x",
        "no-store",
        "gzip",
    )
    assert (got["Metadata"], got["TagCount"], got["ChecksumCRC32"]) == (
        {"colour": "blue"},
        2,
        put["ChecksumCRC32"],
    )
    for span, expected in (
        *(("bytes=0-0", data[:1]), ("bytes=5-1500000", data[5:1_500_001]), ("bytes=-7", data[-7:])),
        ("bytes=3145000-", data[3_145_000:]),
    ):
        part = s3.get_object(Bucket=name, Key=key, Range=span)
        assert part["Body"].read() == expected and part["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert code_of(s3.get_object, Bucket=name, Key=key, Range="bytes=9999999-") == "InvalidRange"
    head = s3.head_object(Bucket=name, Key=key)
    assert (head["ContentLength"], head["ETag"]) == (len(data), put["ETag"])
    assert code_of(s3.get_object, Bucket=name, Key=key, IfNoneMatch=put["ETag"]) == "304"
    assert code_of(s3.get_object, Bucket=name, Key=key, IfMatch='"other"') == "PreconditionFailed"
    shown = s3.get_object(Bucket=name, Key=key, ResponseContentType="text/plain")
    assert (shown["ContentType"], len(shown["Body"].read())) == ("text/plain", len(data))
    about = s3.get_object_attributes(
        Bucket=name, Key=key, ObjectAttributes=["ETag", "ObjectSize", "Checksum"]
    )
    assert (about["ObjectSize"], about["Checksum"]["ChecksumCRC32"]) == (len(data), put["ChecksumCRC32"])
    copied = s3.copy_object(Bucket=name, Key="copy", CopySource={"Bucket": name, "Key": key})
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
    assert s3.head_object(Bucket=name, Key="copy")["Metadata"] == {"colour": "blue"}
    assert (
        code_of(s3.copy_object, Bucket=name, Key=key, CopySource={"Bucket": name, "Key": key})
        == "InvalidRequest"
    )
    s3.copy_object(
        **{"Bucket": name, "Key": key, "CopySource": {"Bucket": name, "Key": key}},
        **{"MetadataDirective": "REPLACE", "Metadata": {"m": "2"}},
    )
    assert s3.head_object(Bucket=name, Key=key)["Metadata"] == {"m": "2"}
    s3.put_object_tagging(Bucket=name, Key=key, Tagging={"TagSet": [{"Key": "t", "Value": "v"}]})
    assert s3.get_object_tagging(Bucket=name, Key=key)["TagSet"] == [{"Key": "t", "Value": "v"}]
    s3.delete_object_tagging(Bucket=name, Key=key)
    assert s3.get_object_tagging(Bucket=name, Key=key)["TagSet"] == []
    s3.delete_object(Bucket=name, Key=key)
    assert code_of(s3.get_object, Bucket=name, Key=key) == "NoSuchKey"


def test_conditions_of_writes(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    first = s3.put_object(Bucket=name, Key="k", Body=b"one", IfNoneMatch="*")["ETag"]
    assert code_of(s3.put_object, Bucket=name, Key="k", Body=b"x", IfNoneMatch="*") == "PreconditionFailed"
    assert code_of(s3.put_object, Bucket=name, Key="n", Body=b"x", IfMatch=first) == "NoSuchKey"
    s3.put_object(Bucket=name, Key="k", Body=b"two", IfMatch=first)
    assert code_of(s3.delete_object, Bucket=name, Key="k", IfMatch=first) == "PreconditionFailed"
    assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"two"


def test_bodies_are_what_they_were_said_to_be(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    arguments: dict[str, Any] = {"Bucket": name, "Key": "k", "Body": b"some bytes"}
    wrong = base64.b64encode(bytes(16)).decode()
    assert code_of(s3.put_object, **arguments, ContentMD5=wrong) == "BadDigest"
    assert (
        code_of(s3.put_object, **arguments, ChecksumSHA256=base64.b64encode(bytes(32)).decode())
        == "BadDigest"
    )
    large: dict[str, Any] = {**arguments, "Body": content(6, 2 * MIB)}
    assert code_of(s3.put_object, **large, ContentMD5=wrong) == "BadDigest"
    assert code_of(s3.head_object, Bucket=name, Key="k") == "404"
    for algorithm in ("CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"):
        put = s3.put_object(**arguments, ChecksumAlgorithm=algorithm)
        got = s3.get_object(Bucket=name, Key="k", ChecksumMode="ENABLED")
        assert got["Body"].read() == b"some bytes"
        assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    assert code_of(s3.put_object, **arguments, ServerSideEncryption="AES256") == "NotImplemented"
    assert code_of(s3.put_object, **arguments, StorageClass="GLACIER") == "InvalidStorageClass"


def test_listings(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    keys = ["a/1", "a/2", "b", "c/x/1", "c/y", "d & <e>", "\U0001f4f7", "\ue000"]
    for key in keys:
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    by_bytes = sorted(keys, key=str.encode)
    for operation in ("list_objects_v2", "list_objects"):
        pages = s3.get_paginator(operation).paginate(Bucket=name, PaginationConfig={"PageSize": 3})
        assert [row["Key"] for page in pages for row in page["Contents"]] == by_bytes
        pages = s3.get_paginator(operation).paginate(
            Bucket=name, Delimiter="/", PaginationConfig={"PageSize": 1}
        )
        found = list(pages.search("[CommonPrefixes[].Prefix, Contents[].Key][][]"))
        assert [each for each in found if each] == ["a/", "b", "c/", *by_bytes[5:]]
    page = s3.list_objects_v2(Bucket=name, Prefix="c/", Delimiter="/", FetchOwner=True)
    assert [each["Prefix"] for each in page["CommonPrefixes"]] == ["c/x/"]
    assert [(row["Key"], row["Owner"]["ID"]) for row in page["Contents"]] == [("c/y", "team-a")]
    assert s3.list_objects_v2(Bucket=name, StartAfter="b", MaxKeys=1)["Contents"][0]["Key"] == "c/x/1"
    versions = s3.list_object_versions(Bucket=name, Prefix="b")["Versions"]
    assert [(row["Key"], row["VersionId"], row["IsLatest"]) for row in versions] == [("b", "null", True)]
    wanted = [{"Key": key} for key in [*keys, "absent"]]
    gone = s3.delete_objects(Bucket=name, Delete={"Objects": wanted})
    assert len(gone["Deleted"]) == len(wanted) and "Errors" not in gone
    assert s3.list_objects_v2(Bucket=name)["KeyCount"] == 0


def test_uploads_in_parts(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    parts = [content(1, 5 * MIB), content(2, 5 * MIB + 1), content(3, 1000)]
    made = s3.create_multipart_upload(
        Bucket=name, Key="big", Metadata={"m": "1"}, ChecksumAlgorithm="SHA256", ContentType="a/b"
    )
    upload: dict[str, Any] = {"Bucket": name, "Key": "big", "UploadId": made["UploadId"]}
    stored = [
        s3.upload_part(**upload, PartNumber=number, Body=part, ChecksumAlgorithm="SHA256")
        for number, part in enumerate(parts, start=1)
    ]
    listed = s3.list_parts(**upload, MaxParts=2)
    assert [row["Size"] for row in listed["Parts"]] == [5 * MIB, 5 * MIB + 1] and listed["IsTruncated"]
    assert [row["UploadId"] for row in s3.list_multipart_uploads(Bucket=name)["Uploads"]] == [
        made["UploadId"]
    ]
    chosen = [
        {"PartNumber": number, "ETag": each["ETag"], "ChecksumSHA256": each["ChecksumSHA256"]}
        for number, each in enumerate(stored, start=1)
    ]
    wrong = [{**chosen[0], "ETag": '"other"'}]
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": wrong}) == "InvalidPart"
    swapped = {"Parts": [chosen[1], chosen[0]]}
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload=swapped) == "InvalidPartOrder"
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": chosen})
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    sums = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    assert done["ChecksumSHA256"] == f"{base64.b64encode(sums).decode()}-3"
    again = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": chosen})
    assert again["ETag"] == done["ETag"], "the first answer may have been lost"
    whole = b"".join(parts)
    assert s3.get_object(Bucket=name, Key="big")["Body"].read() == whole
    second = s3.get_object(Bucket=name, Key="big", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (parts[1], 3)
    about = s3.get_object_attributes(Bucket=name, Key="big", ObjectAttributes=["ObjectParts"])["ObjectParts"]
    assert (about["TotalPartsCount"], [row["Size"] for row in about["Parts"]][2]) == (3, 1000)

    made = s3.create_multipart_upload(Bucket=name, Key="copied")
    upload = {"Bucket": name, "Key": "copied", "UploadId": made["UploadId"]}
    first = s3.upload_part_copy(
        **upload, PartNumber=1, CopySource=f"{name}/big", CopySourceRange=f"bytes=10-{6 * MIB - 1}"
    )["CopyPartResult"]["ETag"]
    last = s3.upload_part(**upload, PartNumber=7, Body=b"end")["ETag"]
    both = [{"PartNumber": 1, "ETag": first}, {"PartNumber": 7, "ETag": last}]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": both})
    assert s3.get_object(Bucket=name, Key="copied")["Body"].read() == whole[10 : 6 * MIB] + b"end"

    made = s3.create_multipart_upload(Bucket=name, Key="small")
    upload = {"Bucket": name, "Key": "small", "UploadId": made["UploadId"]}
    few = [
        {"PartNumber": n, "ETag": s3.upload_part(**upload, PartNumber=n, Body=b"x")["ETag"]} for n in (1, 2)
    ]
    assert code_of(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": few}) == "EntityTooSmall"
    s3.abort_multipart_upload(**upload)
    assert code_of(s3.upload_part, **upload, PartNumber=3, Body=b"x") == "NoSuchUpload"
    assert code_of(s3.list_parts, **upload) == "NoSuchUpload"
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=name)


def test_who_may(served: Served) -> None:
    s3, other, name = served.s3, served.other, served.bucket()
    s3.put_object(Bucket=name, Key="open/k", Body=b"for all")
    s3.put_object(Bucket=name, Key="k", Body=b"mine")
    assert code_of(other.get_object, Bucket=name, Key="k") == "AccessDenied"
    assert code_of(other.get_object, Bucket=name, Key="absent") == "AccessDenied", "nothing is told of keys"
    assert code_of(other.list_objects_v2, Bucket=name) == "AccessDenied"
    assert code_of(other.put_object, Bucket=name, Key="k", Body=b"x") == "AccessDenied"
    assert code_of(s3.get_bucket_policy, Bucket=name) == "NoSuchBucketPolicy"
    arn = f"arn:aws:s3:::{name}"
    allowed = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{arn}/open/*"}
    mine: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"AWS": "team-b"},
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/b/*"],
    }
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"{arn}/open/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed, mine, denied]})
    s3.put_bucket_policy(Bucket=name, Policy=document)
    assert s3.get_bucket_policy(Bucket=name)["Policy"] == document
    assert s3.get_bucket_policy_status(Bucket=name)["PolicyStatus"]["IsPublic"]
    assert served.raw("GET", f"/{name}/open/k")[:2] == (200, b"for all")
    assert served.raw("GET", f"/{name}/k")[0] == 403
    other.put_object(Bucket=name, Key="b/k", Body=b"theirs")
    assert code_of(other.get_object, Bucket=name, Key="absent") == "AccessDenied"
    assert code_of(other.get_object, Bucket=name, Key="b/absent") == "NoSuchKey"
    assert code_of(s3.delete_object, Bucket=name, Key="open/k") == "AccessDenied", "also for the owner"
    wanted = {"Objects": [{"Key": "open/k"}, {"Key": "k"}]}
    gone = s3.delete_objects(Bucket=name, Delete=wanted)
    assert [row["Key"] for row in gone["Deleted"]] == ["k"]
    assert [(row["Key"], row["Code"]) for row in gone["Errors"]] == [("open/k", "AccessDenied")]
    s3.delete_bucket_policy(Bucket=name)
    assert served.raw("GET", f"/{name}/open/k")[0] == 403
    s3.put_object_acl(Bucket=name, Key="open/k", ACL="public-read")
    assert served.raw("GET", f"/{name}/open/k")[:2] == (200, b"for all")
    assert len(s3.get_object_acl(Bucket=name, Key="open/k")["Grants"]) == 2
    s3.put_bucket_acl(Bucket=name, ACL="public-read")
    assert served.raw("GET", f"/{name}?list-type=2")[0] == 200
    assert served.raw("GET", f"/{name}?acl")[0] == 403
    assert [row["Permission"] for row in s3.get_bucket_acl(Bucket=name)["Grants"]] == ["FULL_CONTROL", "READ"]
    assert code_of(s3.head_bucket, Bucket=name, ExpectedBucketOwner="team-b") == "403"
    assert served.raw("GET", "/")[0] == 403


def test_configurations(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    assert code_of(s3.get_bucket_tagging, Bucket=name) == "NoSuchTagSet"
    tags = [{"Key": "a", "Value": "1"}]
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=name)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=name)
    assert code_of(s3.get_bucket_tagging, Bucket=name) == "NoSuchTagSet"
    assert code_of(s3.get_bucket_cors, Bucket=name) == "NoSuchCORSConfiguration"
    rule = {
        "AllowedOrigins": ["https://a.test"],
        "AllowedMethods": ["GET", "PUT"],
        "AllowedHeaders": ["x-amz-*"],
    }
    s3.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": [rule]})
    assert s3.get_bucket_cors(Bucket=name)["CORSRules"] == [rule]
    asked = {"Origin": "https://a.test", "Access-Control-Request-Method": "PUT"}
    status, _, headers = served.raw("OPTIONS", f"/{name}/k", headers=asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://a.test")
    assert served.raw("OPTIONS", f"/{name}/k", headers=asked | {"Origin": "https://b.test"})[0] == 403
    status, _, headers = served.raw("GET", f"/{name}/k", headers=asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (403, "https://a.test")
    s3.delete_bucket_cors(Bucket=name)

    for call, code in (
        (s3.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration"),
        (s3.get_object_lock_configuration, "ObjectLockConfigurationNotFoundError"),
        (s3.get_bucket_encryption, "ServerSideEncryptionConfigurationNotFoundError"),
        (s3.get_bucket_website, "NoSuchWebsiteConfiguration"),
        (s3.get_public_access_block, "NoSuchPublicAccessBlockConfiguration"),
    ):
        assert code_of(call, Bucket=name) == code


def test_objects_expire(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    for key in ("tmp/a", "tmp/b", "kept"):
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    rules = [
        {"ID": "now", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Date": YESTERDAY}},
        {"ID": "later", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}},
    ]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    assert s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"] == rules
    assert 'rule-id="later"' in s3.head_object(Bucket=name, Key="kept")["Expiration"]
    assert 'rule-id="later"' in s3.put_object(Bucket=name, Key="new", Body=b"")["Expiration"]
    for key in ("tmp/a", "tmp/b"):
        s3.get_waiter("object_not_exists").wait(
            Bucket=name, Key=key, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
        )
    assert [each["Key"] for each in s3.list_objects_v2(Bucket=name)["Contents"]] == ["kept", "new"]
    s3.delete_bucket_lifecycle(Bucket=name)
    assert code_of(s3.get_bucket_lifecycle_configuration, Bucket=name) == "NoSuchLifecycleConfiguration"
    assert "Expiration" not in s3.head_object(Bucket=name, Key="kept")
    moved = {**rules[0], "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}
    refused = code_of(
        s3.put_bucket_lifecycle_configuration, Bucket=name, LifecycleConfiguration={"Rules": [moved]}
    )
    assert refused == "NotImplemented"


def test_signatures_that_are_wrong(served: Served) -> None:
    name = served.bucket()
    key = served.keys[0]
    wrong = client(served.gateway.url, {**key, "secret": "x" * 40})
    assert code_of(wrong.list_objects_v2, Bucket=name) == "SignatureDoesNotMatch"
    unknown = client(served.gateway.url, {**key, "id": "A" * 20})
    assert code_of(unknown.list_objects_v2, Bucket=name) == "InvalidAccessKeyId"
    wrong.close()
    unknown.close()
    put = served.s3.generate_presigned_url("put_object", {"Bucket": name, "Key": "a b/ü"}, ExpiresIn=60)
    path = put.removeprefix(served.gateway.url)
    assert served.raw("PUT", path, b"by a URL")[0] == 200
    got = served.s3.generate_presigned_url("get_object", {"Bucket": name, "Key": "a b/ü"}, ExpiresIn=60)
    assert served.raw("GET", got.removeprefix(served.gateway.url))[:2] == (200, b"by a URL")
    assert served.raw("PUT", got.removeprefix(served.gateway.url), b"x")[0] == 403


def test_an_upload_by_a_form(served: Served) -> None:
    s3, name = served.s3, served.bucket()
    form = s3.generate_presigned_post(
        *(name, "up/${filename}"),
        Fields={"Content-Type": "text/plain", "success_action_status": "201"},
        Conditions=[
            *({"Content-Type": "text/plain"}, {"success_action_status": "201"}),
            ["content-length-range", 0, 3 * MIB],
        ],
    )

    def post(data: bytes, **more: str) -> tuple[int, bytes, Any]:
        boundary = "----boundary"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
            for field, value in {**form["fields"], **more}.items()
        ]
        disposition = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="C:\\dir\\f.txt"'
        )
        parts += [disposition.encode(), b"\r\nContent-Type: text/plain\r\n\r\n", data]
        body = b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()])
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return served.raw("POST", f"/{name}", body, headers)

    data = content(4, 2 * MIB + 3) + b"\r\n------boundarx\r\n"
    status, answer, _ = post(data)
    assert status == 201 and b"<Key>up/f.txt</Key>" in answer, answer
    got = s3.get_object(Bucket=name, Key="up/f.txt")
    assert (got["Body"].read(), got["ContentType"]) == (data, "text/plain")
    status, answer, _ = post(content(5, 3 * MIB + 1))
    assert (status, b"EntityTooLarge" in answer) == (400, True)
    status, answer, _ = post(b"x", acl="public-read")
    assert (status, b"AccessDenied" in answer) == (403, True), "the policy does not allow this field"
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=name)["Contents"]] == ["up/f.txt"]


def test_what_no_library_sends(served: Served) -> None:
    """Raw paths, bodies that wait to be asked for or end in the middle, and hosts that name a bucket."""
    s3, name = served.s3, served.bucket()
    s3.put_bucket_acl(Bucket=name, ACL="public-read-write")

    def send(head: str, body: bytes = b"", *, end: bool = False) -> bytes:
        host, _, port = served.gateway.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as link:
            link.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            if end:
                return b""
            answer = b""
            while data := link.recv(65536):
                answer += data
            return answer

    for path, key in (("a/../b", "a/../b"), ("%2e%2e//", "..//"), ("x%2Fy%25+z", "x/y%+z")):
        answer = send(f"PUT /{name}/{path} HTTP/1.1\nHost: x\nContent-Length: 1\nConnection: close", b"1")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert s3.head_object(Bucket=name, Key=key)["ContentLength"] == 1
    answer = send(f"PUT /v HTTP/1.1\nHost: {name}.s3.test:80\nContent-Length: 1\nConnection: close", b"1")
    assert answer.startswith(b"HTTP/1.1 200") and s3.head_object(Bucket=name, Key="v")["ContentLength"] == 1
    length = 2 * MIB
    waiting = f"HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: {length}\nConnection: close"
    answer = send(f"PUT /{name}/w {waiting}", bytes(length))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    answer = send(f"PUT /no-such-bucket/w {waiting}")
    assert answer.startswith(b"HTTP/1.1 404"), "before the body was sent"
    answer = send(
        f"PUT /{name}/w HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nConnection: close", b"0\r\n\r\n"
    )
    assert b"MissingContentLength" in answer
    send(f"PUT /{name}/cut HTTP/1.1\nHost: x\nContent-Length: {length}", bytes(length - 1), end=True)
    send(f"PUT /{name}/short HTTP/1.1\nHost: x\nContent-Length: 9", b"12345678", end=True)
    assert code_of(s3.head_object, Bucket=name, Key="cut") == "404"
    assert code_of(s3.head_object, Bucket=name, Key="short") == "404"
    assert b"InvalidURI" in send("GET /%ff HTTP/1.1\nHost: x\nConnection: close")
    assert b"NotImplemented" in send(f"GET /{name}?inventory HTTP/1.1\nHost: x\nConnection: close")


@pytest.mark.slow
def test_the_command(tmp_path: Path, served: Served) -> None:
    """With TLS and probes; and what it says of options that are wrong."""
    certificate, key = self_signed(tmp_path)
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--http", "127.0.0.1:0")
    gateway = S3Gateway(served.environment, *options)
    try:
        assert gateway.url.startswith("https://") and gateway.ready["event"] == "ready"
        s3 = client(gateway.url, served.keys[0], verify=str(certificate))
        assert s3.list_buckets()["Owner"]["ID"] == "team-a"
        s3.close()
        probes = f"http://{gateway.ready['http']}"
        for path, expected in (("/readyz", b'"ready": true'), ("/metrics", b'operation="ListBuckets"')):
            with urllib.request.urlopen(probes + path, timeout=20) as answer:
                assert expected in answer.read()
    finally:
        assert gateway.stop(signal.SIGINT) == 0
    for wrong, said in (
        (("--listen", "nowhere"), "nowhere"),
        (("--listen", served.gateway.address), "cannot listen for S3"),
        (("--tls-cert", str(certificate)), "belong together"),
        (("--tls-cert", str(key), "--tls-key", str(key)), "cannot use"),
        (("--region", "US East"), "--region"),
        (("--domain", "a:80"), "--domain"),
    ):
        ended = subprocess.run(
            (sys.executable, "-m", "moorage.cli.main", "s3", "--listen", "127.0.0.1:0", *wrong),
            env=served.environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert ended.returncode and said in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "cert.pem", directory / "key.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def test_who_never_sends_a_request_keeps_nobody_out(served: Served) -> None:
    host, _, port = served.gateway.address.rpartition(":")
    with contextlib.ExitStack() as links:
        for _ in range(CONNECTIONS_MAX + 50):
            links.enter_context(socket.create_connection((host, int(port)), timeout=20))
        assert served.s3.list_buckets()["Owner"]["ID"] == "team-a"
        assert served.raw("GET", "/")[0] == 403
