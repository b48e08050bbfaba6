"""Requests of Amazon's client find the operation that they were made by; names, ranges and conditions."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ParamValidationError
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3 import names, ranges, routing
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.ranges import Range
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.routing import Level, Route, route

from .support import client, request_of, sent

HASH = "0" * 64
EXTRA: dict[str, dict[str, Any]] = {
    "CopyObject": {"CopySource": {"Bucket": "bucket", "Key": "from"}},
    "UploadPartCopy": {"CopySource": {"Bucket": "bucket", "Key": "from"}},
    "DeleteObjects": {"Delete": {"Objects": [{"Key": "a"}]}},
    "PutBucketVersioning": {"VersioningConfiguration": {"Status": "Enabled"}},
    "PutBucketLifecycleConfiguration": {"LifecycleConfiguration": {"Rules": []}},
    "PutBucketCors": {"CORSConfiguration": {"CORSRules": []}},
    "PutBucketPolicy": {"Policy": "{}"},
    "PutBucketTagging": {"Tagging": {"TagSet": []}},
    "PutObjectTagging": {"Tagging": {"TagSet": []}},
    "GetObjectAttributes": {"ObjectAttributes": ["ETag"]},
}
USUAL = {"Bucket": "bucket", "Key": "a key/é", "UploadId": "u", "PartNumber": 1}
OPERATIONS = sorted({row.operation for row in routing.TABLE} | set(routing.COPIES.values()))
OPERATIONS = [name for name in OPERATIONS if name not in ("PostObject", "Preflight")]


def snake(name: str) -> str:
    return "".join("_" + each.lower() if each.isupper() else each for each in name)[1:]


def arguments_of(operation: str) -> dict[str, Any]:
    shape = client().meta.service_model.operation_model(operation).input_shape
    wanted = shape.required_members if shape is not None else []
    return {name: USUAL[name] for name in wanted if name in USUAL} | EXTRA.get(operation, {})


@pytest.mark.parametrize("style", ["path", "virtual"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_the_table(operation: str, style: str) -> None:
    arguments = arguments_of(operation)
    try:
        request = request_of(sent(snake(operation), "http", style, **arguments))
    except ParamValidationError as error:
        raise AssertionError(operation) from error
    found = route(request, ["s3.example"])
    assert (found.operation, found.bucket, found.key) == (
        operation,
        arguments.get("Bucket", ""),
        arguments.get("Key", ""),
    )
    assert found.action.startswith("s3:")


def of(method: str, path: str, query: str = "", host: str = "127.0.0.1:9000", **headers: str) -> Route:
    pairs = [("Host", host), *((name.replace("_", "-"), value) for name, value in headers.items())]
    return route(Request(method, path, query, pairs), ["s3.example", "s3"])


def test_rows_are_apart() -> None:
    places = [(row.level, row.method, row.sub) for row in routing.TABLE]
    assert len(set(places)) == len(places)
    assert all(row.action or row.operation == "Preflight" for row in routing.TABLE)


@pytest.mark.parametrize(
    ("host", "path", "bucket", "key"),
    [
        ("127.0.0.1:9000", "/", "", ""),
        ("127.0.0.1:9000", "/bucket", "bucket", ""),
        ("127.0.0.1:9000", "/bucket/", "bucket", ""),
        ("127.0.0.1:9000", "/bucket//", "bucket", "/"),
        ("127.0.0.1:9000", "/bucket/a//b/", "bucket", "a//b/"),
        ("127.0.0.1:9000", "/bucket/../x", "bucket", "../x"),
        ("127.0.0.1:9000", "/bucket/a+b%2B%20%2F%25", "bucket", "a+b+ /%"),
        ("127.0.0.1:9000", "/%62ucket/a", "bucket", "a"),
        ("[::1]:9000", "/bucket/k", "bucket", "k"),
        ("s3.example", "/bucket/k", "bucket", "k"),
        ("bucket.s3.example", "/", "bucket", ""),
        ("Bucket.S3.example:9000", "/other/k", "bucket", "other/k"),
        ("a.b.s3.example:9000", "/k", "a.b", "k"),
        ("bucket.s3", "/k", "bucket", "k"),
        ("elsewhere.example", "/bucket/k", "bucket", "k"),
    ],
)
def test_places(host: str, path: str, bucket: str, key: str) -> None:
    found = of("GET", path, host=host)
    assert (found.bucket, found.key) == (bucket, key)


@pytest.mark.parametrize(
    ("method", "path", "query", "code"),
    [
        ("GET", "bucket", "", "InvalidURI"),
        ("OPTIONS", "*", "", "InvalidURI"),
        ("GET", "/bucket/%ff", "", "InvalidURI"),
        ("GET", "/bucket", "versionId=%ff&list-type=%ff", "InvalidURI"),
        ("GET", "/bucket", "&".join("a" * 101), "InvalidURI"),
        ("GET", "/Bucket", "", "InvalidBucketName"),
        ("GET", "//key", "", "InvalidBucketName"),
        ("GET", "/ab/key", "", "InvalidBucketName"),
        ("GET", "/bucket/" + "a" * 1025, "", "KeyTooLongError"),
        ("PUT", "/bucket/k", "acl&tagging", "InvalidArgument"),
        ("PUT", "/bucket/k", "uploadId=a", "InvalidArgument"),
        ("GET", "/bucket", "list-type=3", "InvalidArgument"),
        ("PUT", "/bucket/k", "torrent", "NotImplemented"),
        ("GET", "/bucket/k", "torrent", "NotImplemented"),
        ("POST", "/bucket/k", "restore", "NotImplemented"),
        ("POST", "/bucket/k", "select&select-type=2", "NotImplemented"),
        ("PUT", "/bucket", "website", "NotImplemented"),
        ("PUT", "/bucket", "inventory&id=1", "NotImplemented"),
        ("PUT", "/bucket/k", "versioning", "MethodNotAllowed"),
        ("PUT", "/bucket/k", "versionId=null", "InvalidArgument"),
        ("POST", "/bucket/k", "uploads&versionId=null", "InvalidArgument"),
        ("POST", "/bucket/k", "", "MethodNotAllowed"),
        ("POST", "/bucket", "", "MethodNotAllowed"),
        ("PATCH", "/bucket/k", "", "MethodNotAllowed"),
        ("PUT", "/", "", "MethodNotAllowed"),
        ("DELETE", "/bucket", "location", "NotImplemented"),
    ],
)
def test_what_leads_nowhere(method: str, path: str, query: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        of(method, path, query)
    assert caught.value.code == code


def test_forms_preflights_and_versions() -> None:
    form = of("POST", "/bucket", content_type="Multipart/Form-Data; boundary=x")
    assert form.operation == "PostObject"
    assert of("OPTIONS", "/bucket/k", "acl").operation == "Preflight"
    assert of("OPTIONS", "/bucket/k", "versionId=a").operation == "Preflight"
    assert of("PUT", "/bucket/k", "retention&versionId=a").action == "s3:PutObjectRetention"
    assert of("GET", "/bucket/k", "versionId=a").action == "s3:GetObjectVersion"
    assert of("GET", "/bucket/k", "acl&versionId=a").action == "s3:GetObjectVersionAcl"
    assert of("GET", "/bucket/k", "x-id=GetObject&other=1").operation == "GetObject"


def test_levels_are_told() -> None:
    with pytest.raises(S3Error) as caught:
        of("PATCH", "/bucket/k")
    assert caught.value.details == {"Method": "PATCH", "ResourceType": Level.OBJECT}


def test_headers_that_the_query_asks_for() -> None:
    query = "response-content-type=text%2Fplain&response-expires=x"
    request = Request("GET", "/b/k", query, [])
    assert routing.response_headers(request, False) == {"content-type": "text/plain", "expires": "x"}
    with pytest.raises(S3Error, match="InvalidRequest"):
        routing.response_headers(request, True)
    with pytest.raises(S3Error, match="InvalidArgument"):
        routing.response_headers(Request("GET", "/b/k", "response-content-type=a%0d%0ab", []), False)
    assert routing.response_headers(Request("GET", "/b/k", "", []), True) == {}


# -- names and limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["abc", "a-b", "a.b.c", "0ab", "a" * 63, "1.2.3", "a--b", "my.bucket-1"])
def test_names_of_buckets(name: str) -> None:
    assert names.check_bucket(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "a" * 64, "Abc", "a_b", "-ab", "ab-", ".ab", "ab.", "a..b", "192.168.5.4", "xn--abc"),
        *("sthree-a", "amzn-s3-demo-a", "abc-s3alias", "abc--ol-s3", "abc.mrap", "abc--x-s3", "äbc", "abc\n"),
    ],
)
def test_no_names_of_buckets(name: str) -> None:
    with pytest.raises(S3Error, match="InvalidBucketName"):
        names.check_bucket(name)


def test_keys_and_metadata() -> None:
    assert names.check_key("é" * 512) == "é" * 512
    with pytest.raises(S3Error) as caught:
        names.check_key("é" * 513)
    assert caught.value.details == {"Size": "1026", "MaxSizeAllowed": "1024"}
    request = Request("PUT", "/b/k", "", [("X-Amz-Meta-A", "b"), ("x-amz-meta-a", "c"), ("x-amz-acl", "d")])
    assert names.metadata_of(request) == {"a": "b, c"}
    assert names.check_metadata({"a" * 1000: "é" * 524})
    with pytest.raises(S3Error, match="MetadataTooLarge"):
        names.check_metadata({"a" * 1000: "é" * 525})


def test_numbers() -> None:
    assert names.part_number("1") == 1 and names.part_number("10000") == 10000
    for wrong in ("0", "10001", "-1", "a", "", None, "１"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            names.part_number(wrong)
    assert names.part_marker(None) == 0 and names.part_marker("10000") == 10000
    names.check_put_size(names.PUT_SIZE_MAX)
    with pytest.raises(S3Error, match="EntityTooLarge"):
        names.check_put_size(names.PUT_SIZE_MAX + 1)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (None, {}),
        ("", {}),
        ("a=b&c=", {"a": "b", "c": ""}),
        ("a%20b=c%2Bd+e", {"a b": "c+d e"}),
        ("é=" + "x" * 256, {"é": "x" * 256}),
    ],
)
def test_tags(text: str | None, tags: dict[str, str]) -> None:
    assert names.tags_of_header(text) == tags


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a=b&a=c", "InvalidTag"),
        ("=b", "InvalidTag"),
        ("a" * 129 + "=", "InvalidTag"),
        ("a=" + "x" * 257, "InvalidTag"),
        ("aws:a=b", "InvalidTag"),
        ("a=%3Cb%3E", "InvalidTag"),
        ("a=%ff", "InvalidArgument"),
        ("&".join(f"a{number}=b" for number in range(11)), "BadRequest"),
        ("&".join(f"a{number}=b" for number in range(51)), "InvalidArgument"),
    ],
)
def test_tags_that_are_refused(text: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        names.tags_of_header(text)
    assert caught.value.code == code


VERSION = "00000000000000ff"


def test_versions() -> None:
    for text in (None, "null", VERSION):
        assert names.check_version(text) == text
    for text in ("", "NULL", VERSION.upper(), VERSION[1:], VERSION + "0", VERSION + "\n", "../../etc"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            names.check_version(text)


@given(key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_sources_of_copies_as_botocore_writes_them(key: str) -> None:
    source = {"Bucket": "from", "Key": key, "VersionId": VERSION}
    request = request_of(sent("copy_object", Bucket="b-1", Key="k", CopySource=source))
    assert names.copy_source(request.header("x-amz-copy-source") or "") == ("from", key, VERSION)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/bucket/a%20b", ("bucket", "a b", None)),
        ("bucket/a+b/c", ("bucket", "a+b/c", None)),
        ("bucket/a=b&c", ("bucket", "a=b&c", None)),
        ("bucket%2Fa", ("bucket", "a", None)),
        ("bucket//a?versionId=null", ("bucket", "/a", "null")),
    ],
)
def test_sources_of_copies(text: str, found: tuple[str, str, str | None]) -> None:
    assert names.copy_source(text) == found


@pytest.mark.parametrize(
    "text", ["", "/", "bucket", "bucket/", "/bucket/?versionId=a", "bucket/a?b=c", "%ff/a"]
)
def test_sources_of_copies_that_are_refused(text: str) -> None:
    with pytest.raises(S3Error, match="InvalidArgument"):
        names.copy_source(text)


# -- ranges ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "found"),
    [
        (None, 10, None),
        ("bytes=0-0", 10, (0, 0)),
        ("bytes=2-5", 10, (2, 5)),
        ("bytes=2-", 10, (2, 9)),
        ("bytes=2-99", 10, (2, 9)),
        ("bytes=-3", 10, (7, 9)),
        ("bytes=-99", 10, (0, 9)),
        ("Bytes= 1-2 ", 10, (1, 2)),
        ("bytes=5-2", 10, None),
        ("bytes=-", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("items=0-1", 10, None),
        ("bytes=１-2", 10, None),
        ("", 10, None),
    ],
)
def test_ranges(text: str | None, size: int, found: tuple[int, int] | None) -> None:
    assert ranges.of_header(text, size) == (None if found is None else Range(*found))


@pytest.mark.parametrize(
    ("text", "size"),
    [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)],
)
def test_ranges_outside(text: str, size: int) -> None:
    with pytest.raises(S3Error) as caught:
        ranges.of_header(text, size)
    assert (caught.value.code, caught.value.status) == ("InvalidRange", 416)
    assert caught.value.details == {"ActualObjectSize": str(size), "RangeRequested": text}


def test_ranges_of_copies_are_exact() -> None:
    assert ranges.of_copy(None, 5) is None
    found = ranges.of_copy("bytes=1-4", 5)
    assert found == Range(1, 4) and found.length == 4 and found.content_range(5) == "bytes 1-4/5"
    for wrong in ("bytes=1-5", "bytes=1-", "bytes=-1", "bytes=4-1", "x"):
        with pytest.raises(S3Error, match="InvalidArgument"):
            ranges.of_copy(wrong, 5)
