"""XML that comes in, as botocore writes it and as strangers do; XML that goes out, as botocore reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3 import documents, errors, markup, results
from moorage.gateway.s3.checksums import Algorithm, Kind, encode
from moorage.gateway.s3.documents import CompletedPart, Creation, Deletion, LockRule, Retention
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.listing import Asked, Cursor, Page, Query, token_of
from moorage.gateway.s3.markup import NAMESPACE
from moorage.gateway.s3.results import Checksum, Deleted, Object, Owner, Part, Upload, Version
from moorage.wire import errors as ours

from .support import body_of, read_by_botocore, sent

AT_MS = 1_767_323_045_000
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def written(operation: str, **arguments: Any) -> bytes:
    return body_of(sent(operation, Bucket="bucket", **arguments))


# -- those that come in ----------------------------------------------------------------------------------


def test_completed_parts() -> None:
    parts = [
        {"PartNumber": 1, "ETag": '"aa"', "ChecksumCRC32": "AAAAAA=="},
        {"PartNumber": 3, "ETag": "bb"},
    ]
    body = written("complete_multipart_upload", Key="k", UploadId="u", MultipartUpload={"Parts": parts})
    assert documents.completed_parts(body) == [
        CompletedPart(1, "aa", {Algorithm.CRC32: bytes(4)}),
        CompletedPart(3, "bb"),
    ]


def part(number: str, etag: str = "<ETag>a</ETag>") -> str:
    return f"<Part><PartNumber>{number}</PartNumber>{etag}</Part>"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ("", "MalformedXML"),
        (part("0"), "MalformedXML"),
        (part("10001"), "MalformedXML"),
        (part("x"), "MalformedXML"),
        (part("1", ""), "MalformedXML"),
        (part("1", "<ETag>a</ETag><Other/>"), "MalformedXML"),
        (part("1", "<ETag>a</ETag><ChecksumSHA1>x</ChecksumSHA1>"), "MalformedXML"),
        (part("1", "<ETag><b/></ETag>"), "MalformedXML"),
        (part("1") + "<Part/>", "MalformedXML"),
        (part("2") + part("1"), "InvalidPartOrder"),
        (part("1") + part("1"), "InvalidPartOrder"),
    ],
)
def test_parts_that_are_refused(parts: str, code: str) -> None:
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    refused(documents.completed_parts, body, code)


def refused(read: Callable[[bytes], object], body: bytes, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        read(body)
    assert caught.value.code == code


def test_as_many_parts_as_there_may_be() -> None:
    text = "".join(part(str(number)) for number in range(1, 10_001))
    body = f'<CompleteMultipartUpload xmlns="{NAMESPACE}">{text}</CompleteMultipartUpload>'.encode()
    assert len(documents.completed_parts(body)) == 10_000


def test_deletions() -> None:
    wanted = {
        "Objects": [
            {"Key": " a&<é\n"},
            {"Key": "b", "VersionId": "v", "ETag": '"e"', "Size": 5, "LastModifiedTime": AT},
        ],
        "Quiet": True,
    }
    found, quiet = documents.deletions(written("delete_objects", Delete=wanted))
    assert quiet
    assert found == [Deletion(" a&<é\n"), Deletion("b", "v", "e", AT_MS, 5)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<Object/>",
        "<Object><Key></Key></Object>",
        "<Object><Key>a</Key><Key>b</Key></Object>",
        "<Object><Key>a</Key><Size>x</Size></Object>",
        "<Object><Key>a</Key><LastModifiedTime>x</LastModifiedTime></Object>",
        "<Quiet>perhaps</Quiet><Object><Key>a</Key></Object>",
        "<Object><Key>a</Key></Object>" * 1001,
        "<Object><Key>a&#1;</Key></Object>",
    ],
)
def test_deletions_that_are_refused(text: str) -> None:
    refused(documents.deletions, f"<Delete>{text}</Delete>".encode(), "MalformedXML")


def test_small_ones() -> None:
    configuration = {"LocationConstraint": "eu-test-1", "Tags": [{"Key": "a", "Value": "b"}]}
    body = written("create_bucket", CreateBucketConfiguration=configuration)
    assert documents.creation(body) == Creation("eu-test-1", {"a": "b"})
    assert documents.creation(b"") == Creation()
    for status in ("Enabled", "Suspended"):
        body = written("put_bucket_versioning", VersioningConfiguration={"Status": status})
        assert documents.versioning(body) == status
        assert read_by_botocore("GetBucketVersioning", results.versioning(status)) == {"Status": status}
    tags = {"TagSet": [{"Key": "a", "Value": ""}, {"Key": "b", "Value": "c"}]}
    assert documents.tagging(written("put_object_tagging", Key="k", Tagging=tags), 10) == {"a": "", "b": "c"}
    refused(documents.versioning, b"<VersioningConfiguration/>", "IllegalVersioningConfigurationException")
    mfa = "<MfaDelete>Enabled</MfaDelete><Status>Enabled</Status>"
    refused(
        documents.versioning,
        f"<VersioningConfiguration>{mfa}</VersioningConfiguration>".encode(),
        "NotImplemented",
    )
    refused(documents.versioning, b"", "MissingRequestBodyError")


def test_locks() -> None:
    retention = {"Mode": "GOVERNANCE", "RetainUntilDate": AT}
    body = written("put_object_retention", Key="k", Retention=retention)
    assert documents.retention(body) == Retention("GOVERNANCE", AT_MS)
    rendered = results.retention(Retention("GOVERNANCE", AT_MS))
    assert read_by_botocore("GetObjectRetention", rendered)["Retention"]["Mode"] == "GOVERNANCE"
    assert documents.retention(b"<Retention/>") is None
    refused(documents.retention, b"<Retention><Mode>GOVERNANCE</Mode></Retention>", "MalformedXML")
    for on in (True, False):
        body = written("put_object_legal_hold", Key="k", LegalHold={"Status": "ON" if on else "OFF"})
        assert documents.legal_hold(body) is on
        assert documents.legal_hold(results.legal_hold(on)) is on
    for rule in (LockRule("COMPLIANCE", days=3), LockRule("GOVERNANCE", years=1), None):
        rendered = results.object_lock(rule)
        found = read_by_botocore("GetObjectLockConfiguration", rendered)["ObjectLockConfiguration"]
        body = written("put_object_lock_configuration", ObjectLockConfiguration=found)
        assert documents.object_lock(body) == rule


@pytest.mark.parametrize(
    ("default", "code"),
    [
        ("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>", "MalformedXML"),
        ("<Mode>GOVERNANCE</Mode>", "MalformedXML"),
        ("<Mode>A</Mode><Days>1</Days>", "MalformedXML"),
        ("<Mode>COMPLIANCE</Mode><Days>0</Days>", "MalformedXML"),
        ("<Mode>COMPLIANCE</Mode><Days>36501</Days>", "InvalidArgument"),
        ("<Mode>COMPLIANCE</Mode><Years>101</Years>", "InvalidArgument"),
    ],
)
def test_defaults_of_locks_that_are_refused(default: str, code: str) -> None:
    begin = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
    end = "</DefaultRetention></Rule></ObjectLockConfiguration>"
    refused(documents.object_lock, f"{begin}{default}{end}".encode(), code)


BOMB = (
    b'<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;">]><Tagging><TagSet>&c;</TagSet></Tagging>'
)
OUTSIDE = b'<!DOCTYPE t [<!ENTITY x SYSTEM "file:///etc/passwd">]><Tagging><TagSet>&x;</TagSet></Tagging>'


@pytest.mark.parametrize(
    "body",
    [
        BOMB,
        OUTSIDE,
        b"<!DOCTYPE t SYSTEM 'http://h/t.dtd'><Tagging><TagSet/></Tagging>",
        b"<Tagging><TagSet/>",
        b"<Tagging><TagSet/></Tagging><x/>",
        b"<Other/>",
        b"x",
        b"\xff\xfe",
        b"<Tagging><TagSet>&nbsp;</TagSet></Tagging>",
        b'<Tagging xmlns="http://other/"><TagSet/></Tagging>',
        b'<?xml version="1.0" encoding="latin-1"?><Tagging><TagSet><Tag>\xe9</Tag></TagSet></Tagging>',
        b"<Tagging>" * 20 + b"</Tagging>" * 20,
        b"<Tagging><TagSet>" + b"<Tag/>" * 20_000 + b"</TagSet></Tagging>",
        b"<Tagging><TagSet>" + b" " * (64 << 10) + b"</TagSet></Tagging>",
        b"<Tagging/>",
        b"<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
    ],
)
def test_what_is_no_document(body: bytes) -> None:
    refused(lambda body: documents.tagging(body, 10), body, "MalformedXML")


# -- those that go out -----------------------------------------------------------------------------------

OWNER = Owner("team-a")
ENTRIES = [
    Object("a b/é+", "e1", 5, AT_MS, OWNER, checksum=Checksum(Algorithm.CRC32, "AAAAAA==")),
    Object("c\x01\r\n\ufffe", "e2-2", 0, AT_MS),
]


def test_objects() -> None:
    asked = Asked(Query("p", "/", Cursor(), 7), url=True, marker="m")
    body = results.list_objects("bucket", asked, Page(list(ENTRIES), ["p/ä/"], Cursor("n\0")))
    found = read_by_botocore("ListObjects", body)
    first, second = found.pop("Contents")
    assert first == {
        "Key": "a%20b/%C3%A9%2B",
        "LastModified": AT.replace(tzinfo=first["LastModified"].tzinfo),
        "ETag": '"e1"',
        "ChecksumAlgorithm": ["CRC32"],
        "ChecksumType": "FULL_OBJECT",
        "Size": 5,
        "StorageClass": "STANDARD",
        "Owner": {"DisplayName": "team-a", "ID": "team-a"},
    }
    assert second["Key"] == "c%01%0D%0A%EF%BF%BE"
    assert found == {
        "IsTruncated": True,
        "Marker": "m",
        "NextMarker": "n%00",
        "Name": "bucket",
        "Prefix": "p",
        "Delimiter": "/",
        "MaxKeys": 7,
        "CommonPrefixes": [{"Prefix": "p/%C3%A4/"}],
        "EncodingType": "url",
    }
    plain = Asked(Query(), marker="")
    last = read_by_botocore("ListObjects", results.list_objects("bucket", plain, Page([], [], Cursor("n"))))
    assert "NextMarker" not in last and last["IsTruncated"] is True


def test_control_characters_become_references() -> None:
    body = results.list_objects("bucket", Asked(Query()), Page(list(ENTRIES)))
    assert b"<Key>c&#x1;&#xD;&#xA;&#xFFFE;</Key>" in body
    body = results.list_objects("bucket", Asked(Query()), Page([Object("\r\n\t &<>\"'", "e", 0, AT_MS)]))
    assert read_by_botocore("ListObjects", body)["Contents"][0]["Key"] == "\r\n\t &<>\"'"


@given(
    key=st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"))
)
def test_any_legal_text_comes_back(key: str) -> None:
    body = markup.document("A", markup.element("B", key))
    assert (ElementTree.fromstring(body)[0].text or "") == key
    assert markup.parse(body, "A", size_max=1 << 20, nodes_max=9).one("B").leaf() == key


def test_objects_v2() -> None:
    asked = Asked(Query("", "", Cursor("x"), 2), token="t", start_after="s é")
    found = read_by_botocore(
        "ListObjectsV2", results.list_objects_v2("bucket", asked, Page(ENTRIES[:1], [], Cursor("k")))
    )
    assert len(found.pop("Contents")) == 1
    assert found == {
        "IsTruncated": True,
        "Name": "bucket",
        "Prefix": "",
        "MaxKeys": 2,
        "KeyCount": 1,
        "StartAfter": "s é",
        "ContinuationToken": "t",
        "NextContinuationToken": token_of(Cursor("k")),
    }


def test_versions() -> None:
    entries = [
        Version("a", "v2", True, AT_MS, OWNER),
        Version("a", "v1", False, AT_MS, OWNER, "e", 3),
    ]
    asked = Asked(Query("", "/", Cursor("k", "i")), marker="k", id_marker="i")
    body = results.list_versions("bucket", asked, Page(entries, ["b/"], Cursor("a", "v1")))
    found = read_by_botocore("ListObjectVersions", body)
    assert [each["VersionId"] for each in found["Versions"]] == ["v1"]
    assert [(each["VersionId"], each["IsLatest"]) for each in found["DeleteMarkers"]] == [("v2", True)]
    assert (found["NextKeyMarker"], found["NextVersionIdMarker"]) == ("a", "v1")
    assert (found["KeyMarker"], found["VersionIdMarker"]) == ("k", "i")
    assert body.index(b"DeleteMarker") < body.index(b"<Version>")


def test_uploads_and_parts() -> None:
    upload = Upload("a", "u1", AT_MS, OWNER, "STANDARD", Algorithm.CRC32, Kind.COMPOSITE)
    asked = Asked(Query(limit=3))
    found = read_by_botocore(
        "ListMultipartUploads", results.list_uploads("bucket", asked, Page([upload], [], Cursor("a", "u1")))
    )
    assert found["Uploads"][0]["UploadId"] == "u1" and found["NextUploadIdMarker"] == "u1"
    assert found["MaxUploads"] == 3 and found["Uploads"][0]["ChecksumAlgorithm"] == "CRC32"
    parts = [Part(2, "e", 5, AT_MS, results.Checksum(Algorithm.CRC32, encode(bytes(4))))]
    found = read_by_botocore(
        "ListParts", results.list_parts("bucket", upload, parts, marker=1, limit=1, more=True)
    )
    assert found["Parts"][0]["ChecksumCRC32"] == "AAAAAA==" and found["Parts"][0]["PartNumber"] == 2
    assert (found["PartNumberMarker"], found["NextPartNumberMarker"], found["MaxParts"]) == (1, 2, 1)
    assert found["IsTruncated"] is True and found["ChecksumType"] == "COMPOSITE"


def test_writes() -> None:
    found = read_by_botocore("CreateMultipartUpload", results.initiate_upload("bucket", "k\né", "u"))
    assert found == {"Bucket": "bucket", "Key": "k\né", "UploadId": "u"}
    checksum = Checksum(Algorithm.SHA1, "abc=-2", Kind.COMPOSITE)
    body = results.complete_upload("http://h/bucket/k", "bucket", "k", "e-2", checksum)
    found = read_by_botocore("CompleteMultipartUpload", body)
    assert (found["ETag"], found["ChecksumSHA1"], found["ChecksumType"]) == ('"e-2"', "abc=-2", "COMPOSITE")
    copied = read_by_botocore("CopyObject", results.copy_object("e", AT_MS, checksum))["CopyObjectResult"]
    assert copied["ETag"] == '"e"' and copied["LastModified"].timestamp() * 1000 == AT_MS
    copied = read_by_botocore("UploadPartCopy", results.copy_part("e", AT_MS))["CopyPartResult"]
    assert copied["ETag"] == '"e"'
    assert b"<Key>k</Key>" in results.post_object("http://h/b/k", "b", "k", "e")


def test_what_was_deleted() -> None:
    told = [
        Deleted("a"),
        Deleted("b", "v", marker="v"),
        Deleted("c", marker="m"),
        Deleted("d", error=S3Error("AccessDenied")),
    ]
    found = read_by_botocore("DeleteObjects", results.deleted(told, quiet=False))
    assert found["Deleted"] == [
        {"Key": "a"},
        {"Key": "b", "VersionId": "v", "DeleteMarker": True, "DeleteMarkerVersionId": "v"},
        {"Key": "c", "DeleteMarker": True, "DeleteMarkerVersionId": "m"},
    ]
    assert found["Errors"] == [{"Key": "d", "Code": "AccessDenied", "Message": "Access denied."}]
    assert list(read_by_botocore("DeleteObjects", results.deleted(told, quiet=True))) == ["Errors"]


def test_of_buckets() -> None:
    body = results.list_buckets(OWNER, [("a", AT_MS), ("b", AT_MS)], "p", "next")
    found = read_by_botocore("ListBuckets", body)
    assert [each["Name"] for each in found["Buckets"]] == ["a", "b"]
    assert (found["Owner"]["ID"], found["ContinuationToken"], found["Prefix"]) == ("team-a", "next", "p")
    assert b">eu-test-1</LocationConstraint>" in results.location("eu-test-1")
    assert read_by_botocore("GetBucketVersioning", results.versioning(None)) == {}
    assert read_by_botocore("GetObjectTagging", results.tagging({"a": "<"}))["TagSet"] == [
        {"Key": "a", "Value": "<"}
    ]
    assert read_by_botocore("GetBucketPolicyStatus", results.policy_status(True)) == {
        "PolicyStatus": {"IsPublic": True}
    }
    assert results.location("us-east-1").endswith(b"></LocationConstraint>")


def test_attributes() -> None:
    parts = [Part(1, "e", 5, AT_MS, results.Checksum(Algorithm.SHA1, encode(bytes(20))))]
    wanted = results.Attributes(
        "e-1", Checksum(Algorithm.SHA1, "x-1", Kind.COMPOSITE), "STANDARD", 5, 1, parts
    )
    found = read_by_botocore("GetObjectAttributes", results.attributes(wanted))
    assert (found["ETag"], found["ObjectSize"], found["StorageClass"]) == ("e-1", 5, "STANDARD")
    assert found["Checksum"] == {"ChecksumSHA1": "x-1", "ChecksumType": "COMPOSITE"}
    assert found["ObjectParts"]["TotalPartsCount"] == 1
    assert found["ObjectParts"]["Parts"][0]["Size"] == 5
    assert read_by_botocore("GetObjectAttributes", results.attributes(results.Attributes())) == {}


def test_what_no_bucket_has() -> None:
    payer = results.unset("GetBucketRequestPayment")
    assert payer is not None
    assert read_by_botocore("GetBucketRequestPayment", payer) == {"Payer": "BucketOwner"}
    assert results.unset("GetObject") is None
    with pytest.raises(S3Error, match="NoSuchWebsiteConfiguration"):
        results.unset("GetBucketWebsite")


# -- errors ----------------------------------------------------------------------------------------------


def test_errors() -> None:
    error = S3Error("NoSuchKey", Key="a\x01<")
    body = errors.render(error, "/bucket/a", "r1")
    assert b"<Key>a&#x1;&lt;</Key>" in body
    root = ElementTree.fromstring(errors.render(S3Error("NoSuchKey", "Gone \udcff.", Key="k"), "/b", "r1"))
    assert {child.tag: child.text for child in root} == {
        "Code": "NoSuchKey",
        "Message": "Gone ?.",
        "Key": "k",
        "Resource": "/b",
        "RequestId": "r1",
        "HostId": "r1",
    }
    assert errors.reason(error) == "Not Found"


def test_the_table_of_errors() -> None:
    for code, (status, message) in errors.TABLE.items():
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", code) and message.endswith((".", "again.")), code
        assert errors.reason(S3Error(code)) and 301 <= status <= 507


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ours.Overloaded("h1:7000 is busy"), "SlowDown"),
        (ours.NoQuorum("h1:7000"), "ServiceUnavailable"),
        (ours.Denied("x"), "AccessDenied"),
        (ours.LimitExceeded("x"), "QuotaExceeded"),
        (ours.Corrupt("file /x"), "InternalError"),
        (ValueError("secret"), "InternalError"),
        (S3Error("NoSuchKey", "Gone."), "NoSuchKey"),
    ],
)
def test_our_errors_are_told_without_their_words(error: BaseException, code: str) -> None:
    found = errors.error_of(error)
    assert found.code == code
    assert found is error or str(error) not in found.message


# -- the tree --------------------------------------------------------------------------------------------


def parsed(body: bytes, size_max: int = 1000, nodes_max: int = 100) -> markup.Node:
    return markup.parse(body, "a", size_max=size_max, nodes_max=nodes_max)


def test_bounds_of_the_tree() -> None:
    deep = markup.DEPTH_MAX
    assert parsed(b"<a>" * deep + b"</a>" * deep).name == "a"
    with pytest.raises(markup.Malformed, match="too many"):
        parsed(b"<a>" * (deep + 1) + b"</a>" * (deep + 1))
    assert len(parsed(b"<a><b/><b/></a>", nodes_max=3).children) == 2
    with pytest.raises(markup.Malformed, match="too many"):
        parsed(b"<a><b/><b/></a>", nodes_max=2)
    assert parsed(b"<a></a>", size_max=7).text == ""
    with pytest.raises(markup.Malformed, match="more than 6 bytes"):
        parsed(b"<a></a>", size_max=6)


def test_reading_of_the_tree() -> None:
    node = parsed(b"<a> x <b>1</b><b>2</b><c> 007 </c><!-- no --><d><![CDATA[<e>]]>&lt;</d> y</a>")
    assert node.text == " x  y" and [each.leaf() for each in node.every("b")] == ["1", "2"]
    assert (node.number("c"), node.number("none"), node.get("d")) == (7, None, "<e><")
    for wrong in (lambda: node.one("b"), lambda: node.one("e"), node.leaf, lambda: node.number("c", 8)):
        with pytest.raises(markup.Malformed):
            wrong()
    with pytest.raises(markup.Malformed, match="has no place"):
        node.expect("b", "c")
    assert markup.element("a", True) == "<a>true</a>" and markup.maybe("a", None) == ""
