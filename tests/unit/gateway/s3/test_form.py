"""Uploads by forms: those that botocore signs, and each field that a policy does not allow."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from moorage.gateway.s3 import form, names
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.form import Upload

from . import support
from .support import KEY, NOW_MS, REGION, SECRET

FIELDS = {"acl": "public-read", "Content-Type": "image/jpeg", "success_action_status": "201"}


def signed(conditions: list[Any] | None = None, key: str = "user/${filename}") -> dict[str, str]:
    listed = [*({name: value} for name, value in FIELDS.items()), *(conditions or [])]
    with support.at(NOW_MS):
        post = support.client().generate_presigned_post("bucket", key, FIELDS, listed, 3600)
    return form.fields_of(post["fields"].items())


def proved(fields: dict[str, str], now_ms: int = NOW_MS) -> Upload:
    claim = form.claim_of(fields, REGION, now_ms)
    assert claim is not None and claim.access_key == KEY
    assert claim.signature not in repr(claim)
    form.prove(claim, SECRET)
    return form.upload_of(fields, "bucket", "C:\\photos\\cat.jpg", now_ms)


def refused(fields: dict[str, str], code: str, now_ms: int = NOW_MS) -> None:
    with pytest.raises(S3Error) as caught:
        proved(fields, now_ms)
    assert caught.value.code == code


def test_what_botocore_signs() -> None:
    fields = signed([["content-length-range", 1, 10], ["starts-with", "$x-amz-meta-a", ""]])
    found = proved(fields | {"x-amz-meta-a": "b", "x-ignore-me": "c"})
    headers = {"x-amz-acl": "public-read", "content-type": "image/jpeg", "x-amz-meta-a": "b"}
    assert found == Upload("user/cat.jpg", headers, None, 201, None, 1, 10)
    found.check_size(1)
    found.check_size(10)
    found.check_size_so_far(0)
    for size, code in ((0, "EntityTooSmall"), (11, "EntityTooLarge")):
        with pytest.raises(S3Error, match=code):
            found.check_size(size)


def test_what_it_asks_for_of_locks() -> None:
    fields = signed([["starts-with", "$x-amz-object-lock-legal-hold", ""]])
    found = proved(fields | {"x-amz-object-lock-legal-hold": "ON"})
    assert found.headers["x-amz-object-lock-legal-hold"] == "ON"
    refused(fields | {"x-amz-object-lock-legal-hold": "ON", "x-amz-object-lock-mode": "G"}, "AccessDenied")


def test_what_its_policy_does_not_allow() -> None:
    fields = signed()
    refused(fields | {"x-amz-meta-a": "b"}, "AccessDenied")
    refused(fields | {"acl": "private"}, "AccessDenied")
    refused(fields | {"key": "other/x"}, "AccessDenied")
    refused({name: value for name, value in fields.items() if name != "acl"}, "AccessDenied")
    refused({name: value for name, value in fields.items() if name != "key"}, "UserKeyMustBeSpecified")
    refused(fields, "AccessDenied", NOW_MS + 3_600_001)
    refused(fields, "AccessDenied", NOW_MS - 900_001)
    with pytest.raises(S3Error, match="AccessDenied"):
        form.upload_of(fields, "other-bucket", "x", NOW_MS)
    assert proved(fields, NOW_MS + 3_600_000).key == "user/cat.jpg"


def test_signatures() -> None:
    fields = signed()
    refused(fields | {"policy": base64.b64encode(b"{}").decode()}, "SignatureDoesNotMatch")
    refused(fields | {"x-amz-signature": "0" * 64}, "SignatureDoesNotMatch")
    for name in ("policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"):
        refused({each: value for each, value in fields.items() if each != name}, "InvalidArgument")
    refused(fields | {"x-amz-signature": "x"}, "InvalidArgument")
    refused(fields | {"x-amz-algorithm": "MD5"}, "InvalidArgument")
    refused(fields | {"x-amz-credential": f"{KEY}/20260102/other/s3/aws4_request"}, "InvalidArgument")
    refused(fields | {"x-amz-date": "20260103T000000Z"}, "InvalidArgument")
    refused(fields | {"x-amz-security-token": "t"}, "InvalidToken")
    refused(fields | {"awsaccesskeyid": "a"}, "InvalidRequest")
    assert form.claim_of({"key": "a"}, REGION, NOW_MS) is None


def with_policy(policy: Any, **fields: str) -> Upload:
    raw = policy if isinstance(policy, bytes) else json.dumps(policy).encode()
    given = {"key": "k", "policy": base64.b64encode(raw).decode()}
    given |= {name.replace("_", "-"): value for name, value in fields.items()}
    return form.upload_of(given, "bucket", "f", NOW_MS)


def test_conditions() -> None:
    policy = {
        "expiration": "2026-01-02T03:04:06.000Z",
        "conditions": [
            ["eq", "$key", "k"],
            ["starts-with", "$Content-Type", "image/"],
            {"bucket": "bucket"},
            ["content-length-range", "5", 100],
            ["content-length-range", 0, 50],
        ],
    }
    found = with_policy(policy, content_type="image/png, image/gif")
    assert (found.size_min, found.size_max, found.status) == (5, 50, 204)
    for wrong in ("text/html", "image/png, text/html"):
        with pytest.raises(S3Error, match="AccessDenied"):
            with_policy(policy, content_type=wrong)


END = "2026-01-02T03:04:06Z"


@pytest.mark.parametrize(
    "policy",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 5000,
        {},
        {"expiration": END},
        {"expiration": "soon", "conditions": []},
        {"expiration": 5, "conditions": []},
        {"expiration": END, "conditions": {}},
        {"expiration": END, "conditions": [5]},
        {"expiration": END, "conditions": [{}]},
        {"expiration": END, "conditions": [{"a": 5}]},
        {"expiration": END, "conditions": [["eq", "key", "a"]]},
        {"expiration": END, "conditions": [["ends-with", "$key", "a"]]},
        {"expiration": END, "conditions": [["content-length-range", -1, 5]]},
        {"expiration": END, "conditions": [["content-length-range", True, 5]]},
        {"expiration": END, "conditions": [["content-length-range", 1]]},
    ],
)
def test_policies_that_are_refused(policy: Any) -> None:
    with pytest.raises(S3Error) as caught:
        with_policy(policy)
    assert (caught.value.code, caught.value.status) == ("InvalidPolicyDocument", 400)


def test_forms_that_nobody_signed() -> None:
    found = form.upload_of(
        {"key": "${filename}", "redirect": "http://a/", "tagging": "<T/>"}, "b", "ä.txt", 0
    )
    assert found == Upload("ä.txt", {}, "<T/>", 204, "http://a/", 0, names.PUT_SIZE_MAX)


def test_fields() -> None:
    assert form.fields_of([("Key", "a"), ("ACL", "b")]) == {"key": "a", "acl": "b"}
    for pairs, code in (
        ([("key", "a"), ("Key", "a")], "InvalidArgument"),
        ([("key", "\udcff")], "InvalidArgument"),
        ([("a", "b" * form.FIELDS_BYTES_MAX)], "MaxPostPreDataLengthExceeded"),
    ):
        with pytest.raises(S3Error, match=code):
            form.fields_of(pairs)
    with pytest.raises(S3Error, match="InvalidArgument"):
        form.upload_of({"key": "k", "content-type": "a\r\nb"}, "b", "f", 0)
    with pytest.raises(S3Error, match="KeyTooLongError"):
        form.upload_of({"key": "${filename}"}, "b", "f" * 1025, 0)
