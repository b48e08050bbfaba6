"""What strangers send to the S3 gateway: heads of requests, signatures, bodies in chunks, XML and JSON.

Owns the way from bytes to a request without a socket. Whatever is sent ends in a value or in an S3Error, and
no error has the secret in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from moorage.gateway.s3 import (
    acl,
    checksums,
    conditions,
    cors,
    documents,
    form,
    lifecycle,
    listing,
    names,
    policy,
    policy_document,
    ranges,
    results,
    routing,
    signature,
)
from moorage.gateway.s3.body import Body
from moorage.gateway.s3.errors import S3Error, render
from moorage.gateway.s3.multipart import FormReader
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import ChunkSigner, Payload, Proof, Scope

from .engine import Target

KEY, SECRET, REGION = "AKIDEXAMPLE", "a secret that nobody is told", "eu-1"
NOW_MS = 1_767_323_045_000
SCOPE = Scope("20260102", REGION)
AT = "20260102T030405Z"
CHUNKS: tuple[Payload, ...] = (Payload.CHUNKS, Payload.CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER)


def _told(work: Callable[[], Any]) -> Any:
    """Errors can be told, and tell no secret."""
    try:
        return work()
    except S3Error as error:
        assert SECRET.encode() not in render(error, "/", "1")
        raise


def _request(data: bytes) -> Request:
    """The first line, then headers, as on the wire."""
    first, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    pairs = (line.partition(":") for line in lines if line)
    return Request(method, path, query, [(name, value.strip()) for name, _, value in pairs])


def head(data: bytes) -> None:
    """Routing, and all that is read of headers and parameters once the operation is known."""
    _told(lambda: _head(_request(data)))


def _head(request: Request) -> None:
    found = routing.route(request, ["s3.example"])
    assert len(found.key.encode()) <= 1024 and (found.bucket or not found.key)
    if found.operation in ("ListObjects", "ListObjectsV2", "ListObjectVersions", "ListMultipartUploads"):
        asked = listing.asked(request, found.operation)
        assert listing._before(asked.query.prefix) <= asked.query.prefix
    routing.response_headers(request, anonymous=False)
    conditions.check_write(conditions.of_request(request), None)
    conditions.check_copy(conditions.of_request(request, of_source=True), "e", NOW_MS)
    conditions.range_applies(request, "e", NOW_MS)
    part = ranges.of_header(request.header("range"), 100)
    assert part is None or 0 <= part.first <= part.last < 100
    ranges.of_copy(request.header("x-amz-copy-source-range"), 100)
    names.copy_source(request.header("x-amz-copy-source") or "bucket/k")
    names.tags_of_header(request.header("x-amz-tagging"))
    names.metadata_of(request)
    acl.of_headers(request, "a", "b")
    checksums.announced(request)
    checksums.content_md5(request)


HEADS = [
    b"GET /bucket?list-type=2&prefix=a%2F&delimiter=/&max-keys=5&encoding-type=url&start-after=b\nHost: h",
    b"GET /bucket?versions&key-marker=a&version-id-marker=null\nHost: h",
    b"GET /a%20b/c?versionId=null&response-content-type=text/plain\nHost: bucket.s3.example:9000\n"
    b'Range: bytes=1-5\nIf-Range: "e"\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT',
    b"PUT /bucket/k?uploadId=u&partNumber=5\nHost: [::1]:1\nx-amz-copy-source: /bucket/k?versionId=null\n"
    b'x-amz-copy-source-range: bytes=0-9\nx-amz-copy-source-if-match: "e", W/"f"',
    b"PUT /bucket/k\nHost: h\nIf-None-Match: *\nx-amz-tagging: a=b&c=d\nx-amz-meta-a: b\nx-amz-acl: private\n"
    b"x-amz-checksum-crc32: AAAAAA==\nContent-MD5: AAAAAAAAAAAAAAAAAAAAAA==",
    b'PUT /bucket/k?acl\nHost: h\nx-amz-grant-read: id="a", '
    b'uri="http://acs.amazonaws.com/groups/global/AllUsers"',
]


def signatures(data: bytes) -> None:
    """Of the head of a request; an odd mode makes its signature right, wherever it has one."""
    mode, raw = (data[0] if data else 0), data[1:]
    request = _request(raw)
    claim = _told(lambda: signature.claim_of(request, REGION, NOW_MS))
    if claim is None:
        _told(lambda: signature.anonymous(request))
        return
    if mode & 1:
        canonical = signature._sha256(signature.canonical_request(claim, request))
        to_sign = "\n".join((signature.ALGORITHM, claim.at, str(claim.scope), canonical))
        right = signature._sign(signature.signing_key(SECRET, claim.scope), to_sign)
        claim = signature.Claim(
            *(claim.access_key, claim.scope, claim.at, claim.signed_headers, claim.content),
            presigned=claim.presigned,
            signature=right,
        )
    proof = _told(lambda: signature.prove(claim, request, SECRET))
    assert mode & 1 and proof.access_key == claim.access_key
    assert set(request.names) <= set(signature.unfolded(request).names)
    assert (proof.chunks is not None) == (proof.payload in CHUNKS[:2])


_SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY}/{SCOPE}, SignedHeaders=host;x-amz-content-sha256;x-amz-date"
_QUERY = (
    f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={KEY}/{SCOPE}&X-Amz-Date={AT}&X-Amz-Expires=60"
    f"&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
)
SIGNED = [
    f"PUT /b/a%20b?acl\nHost: h\nx-amz-date: {AT}\nx-amz-content-sha256: {content}\n"
    f"Authorization: {_SIGNED}, Signature={'0' * 64}"
    for content in (Payload.UNSIGNED, CHUNKS[1], signature.EMPTY_SHA256)
] + [
    f"GET /b/k?{_QUERY}\nHost: h",
    "GET /b/k?Signature=a&AWSAccessKeyId=b&Expires=1\nHost: h",
    "GET /b/k\nHost: h",
]


def chunks(data: bytes) -> None:
    """A body, at once and in small pieces: both ways it is the same, and what is signed cannot be changed."""
    mode, raw = (data[0] if data else 0), data[1:]
    kind = CHUNKS[mode % 3]
    try:
        whole = _body(kind, raw, len(raw) or 1)
    except S3Error as error:
        try:
            _body(kind, raw, 1 + mode % 7)
        except S3Error as other:
            assert other.code == error.code
            raise
        raise AssertionError("in pieces it was right") from None
    assert _body(kind, raw, 1 + mode % 7) == whole
    assert kind is Payload.UNSIGNED_CHUNKS_TRAILER or whole == PAYLOAD


def _body(kind: Payload, raw: bytes, step: int) -> bytes:
    headers = [("x-amz-decoded-content-length", "12")]
    if kind is not Payload.CHUNKS:
        headers.append(("x-amz-trailer", "x-amz-checksum-crc32"))
    proof = Proof("a", kind, "", _signer() if kind in CHUNKS[:2] else None)
    body = Body(Request("PUT", "/b/k", "", headers), proof)
    pieces = [bytes(piece) for at in range(0, len(raw), step) for piece in body.feed(raw[at : at + step])]
    found = b"".join(pieces)
    digests = body.finish()
    assert digests.length == len(found) == 12 and digests.md5 == hashlib.md5(found).digest()
    return found


PAYLOAD = b"hello, world"
_CRC = b"x-amz-checksum-crc32:/6tyOg=="


def _signer() -> ChunkSigner:
    return ChunkSigner(signature.signing_key(SECRET, SCOPE), AT, SCOPE, "0" * 64)


def _coded(trailer: bool) -> bytes:
    previous, found = "0" * 64, b""
    key = signature.signing_key(SECRET, SCOPE)
    begin = f"{signature.ALGORITHM}-PAYLOAD\n{AT}\n{SCOPE}\n"
    for chunk in (PAYLOAD, b""):
        hashes = f"{signature.EMPTY_SHA256}\n{hashlib.sha256(chunk).hexdigest()}"
        previous = signature._sign(key, f"{begin}{previous}\n{hashes}")
        found += b"%x;chunk-signature=%b\r\n%b" % (len(chunk), previous.encode(), chunk) + b"\r\n" * bool(
            chunk
        )
    if trailer:
        begin = begin.replace("PAYLOAD", "TRAILER")
        made = signature._sign(key, f"{begin}{previous}\n{hashlib.sha256(_CRC + bytes([10])).hexdigest()}")
        found += _CRC + b"\r\nx-amz-trailer-signature:" + made.encode() + b"\r\n"
    return found + b"\r\n"


BODIES = [
    b"\0" + _coded(False),
    b"\1" + _coded(True),
    b"\2c\r\nhello, world\r\n0\r\n" + _CRC + b"\r\n\r\n",
    b"\x055\r\nhello\r\n7\r\n, world\r\n0\r\n" + _CRC + b"\r\n\r\n",
]


def xml(data: bytes) -> None:
    """Which document by number, then the document; what can be written again is read as the same."""
    mode, raw = (data[0] if data else 0), data[1:]
    _told(lambda: DOCUMENTS[mode % len(DOCUMENTS)][0](raw))


def _again(read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> Callable[[bytes], None]:
    def both(raw: bytes) -> None:
        value = read(raw)
        assert read(write(value)) == value

    return both


def _object_tags(raw: bytes) -> dict[str, str]:
    return documents.tagging(raw, 10)


def _acl(raw: bytes) -> acl.Acl:
    return acl.parse(raw, "a")


_GRANTEE = (
    b'<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>b</ID>'
)
DOCUMENTS: list[tuple[Callable[[bytes], Any], bytes]] = [
    (
        documents.completed_parts,
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag>"
        b"<ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>",
    ),
    (
        documents.deletions,
        b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet><Object><Key>a&#10;</Key>'
        b"<VersionId>v</VersionId><ETag>e</ETag><Size>5</Size>"
        b"<LastModifiedTime>2026-01-02T03:04:05Z</LastModifiedTime></Object></Delete>",
    ),
    (
        documents.creation,
        b"<CreateBucketConfiguration><LocationConstraint>x</LocationConstraint>"
        b"<Tags><Tag><Key>a</Key><Value>b</Value></Tag></Tags></CreateBucketConfiguration>",
    ),
    (_again(documents.versioning, results.versioning), results.versioning("Enabled")),
    (_again(_object_tags, results.tagging), results.tagging({"a": "b"})),
    (
        _again(documents.object_lock, results.object_lock),
        results.object_lock(documents.LockRule("GOVERNANCE", 1)),
    ),
    (documents.retention, results.retention(documents.Retention("COMPLIANCE", NOW_MS))),
    (_again(documents.legal_hold, results.legal_hold), results.legal_hold(True)),
    (
        _again(cors.parse, cors.render),
        cors.render([cors.Rule(("*",), ("GET",), ("x-*",), ("ETag",), 5, "a")]),
    ),
    (
        _again(lifecycle.parse, lifecycle.render),
        lifecycle.render(
            [
                lifecycle.Rule(
                    "a", True, "p", {"k": "v"}, 5, 9, days=1, noncurrent_days=2, noncurrent_kept=3
                ),
                lifecycle.Rule("b", False, date_ms=0, abort_days=4),
                lifecycle.Rule("c", markers=True),
            ]
        ),
    ),
    (
        _again(_acl, acl.render),
        b"<AccessControlPolicy><Owner><ID>a</ID></Owner><AccessControlList><Grant>"
        + _GRANTEE
        + b"</Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>",
    ),
]


def policies(data: bytes) -> None:
    """Of a bucket, asked about some requests; or of a form."""
    mode, raw = (data[0] if data else 0), data[1:]
    if mode & 1:
        _told(lambda: _form(raw))
        return
    found = _told(lambda: policy_document.parse(raw, "bucket"))
    context = {
        "aws:sourceip": "10.0.0.1",
        "aws:securetransport": "true",
        "s3:prefix": "a/",
        "s3:max-keys": "5",
    }
    context["aws:currenttime"] = "2026-01-02T03:04:05Z"
    for who in (None, "team-a"):
        for action, key in (("s3:GetObject", "a/b"), ("s3:ListBucket", "")):
            ask = policy.Ask(who, action, "bucket", key, context)
            denied = policy.judge(found, ask) is policy.Verdict.DENY
            assert not (denied and policy.allowed(ask, "team-a", found))
    assert found.is_public in (True, False) and policy.asks_for_tags(found) in (True, False)


def multipart(data: bytes) -> None:
    """A form's body, at once and in small pieces: both ways it is the same."""
    mode, raw = (data[0] if data else 0), data[1:]
    try:
        whole = _parted(raw, len(raw) or 1)
    except S3Error as error:
        try:
            _parted(raw, 1 + mode % 7)
        except S3Error as other:
            assert error.code == other.code
            raise
        raise AssertionError("in pieces it was right") from None
    assert _parted(raw, 1 + mode % 7) == whole


def _parted(raw: bytes, step: int) -> tuple[list[tuple[str, str]], str, bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), step):
            yield raw[at : at + step]

    async def read() -> tuple[list[tuple[str, str]], str, bytes]:
        reader = FormReader("multipart/form-data; boundary=b", pieces())
        pairs, filename = await reader.fields()
        return pairs, filename, b"".join([piece async for piece in reader.file()])

    running = read()  # nothing in it waits for anything
    try:
        running.send(None)
    except StopIteration as ended:
        found: tuple[list[tuple[str, str]], str, bytes] = ended.value
        return found
    raise AssertionError("it waits")


MULTIPART = [
    b'\2--b\r\nContent-Disposition: form-data; name="key"\r\n\r\na/${filename}\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: a/b\r\n\r\n'
    b"some\r\n-data\r\n--b--\r\n",
]


def _form(raw: bytes) -> None:
    pairs = (line.partition(":") for line in raw.decode("utf-8", "surrogateescape").split("\n"))
    fields = form.fields_of((name, value) for name, _, value in pairs)
    if "policy" in fields and fields["policy"].startswith("{"):
        fields["policy"] = checksums.encode(fields["policy"].encode())
    form.claim_of(fields, REGION, NOW_MS)
    upload = form.upload_of(fields, "bucket", "f.txt", NOW_MS)
    assert upload.key and upload.size_min >= 0


_STATEMENT = {
    "Effect": "Deny",
    "Principal": {"AWS": ["arn:aws:iam::1:user/team-a", "*"]},
    "Action": ["s3:Get*", "s3:ListBucket"],
    "Resource": ["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/a/*"],
    "Condition": {
        "StringNotLike": {"s3:prefix": ["a/*", "b?"]},
        "IpAddress": {"aws:SourceIp": "10.0.0.0/8"},
        "BoolIfExists": {"aws:SecureTransport": "false"},
        "NumericLessThan": {"s3:max-keys": 10},
        "DateGreaterThan": {"aws:CurrentTime": "2026-01-01"},
        "Null": {"s3:x-amz-acl": True},
    },
}
_ALLOW = {"Effect": "Allow", "NotPrincipal": "*", "NotAction": "*", "NotResource": "arn:aws:s3:::bucket"}
_FORM_POLICY = {
    "expiration": "2026-02-01T00:00:00Z",
    "conditions": [
        {"bucket": "bucket"},
        ["starts-with", "$key", "a/"],
        ["content-length-range", 1, 9],
        *(["starts-with", f"${name}", ""] for name in ("x-amz-algorithm", "x-amz-credential", "x-amz-date")),
    ],
}
_FORM = (
    f"key:a/${{filename}}\npolicy:{json.dumps(_FORM_POLICY)}\nx-amz-algorithm:{signature.ALGORITHM}\n"
    f"x-amz-credential:{KEY}/{SCOPE}\nx-amz-date:{AT}\nx-amz-signature:{'0' * 64}"
)
POLICIES = [
    b"\0" + json.dumps({"Version": "2012-10-17", "Statement": [_STATEMENT]}).encode(),
    b"\0" + json.dumps({"Id": "x", "Statement": _ALLOW}).encode(),
    b"\1" + _FORM.encode(),
    b"\1key:k\nacl:private\nsuccess_action_status:201\nx-amz-meta-a:b",
]


def s3_targets() -> list[Target]:
    def memory(size: int) -> int:
        return (1 << 20) + 100 * size

    expected = (S3Error,)
    signed = [bytes([mode]) + each.encode() for each in SIGNED for mode in (0, 1)]
    documents_of_all = [bytes([at]) + each for at, (_, each) in enumerate(DOCUMENTS)]
    return [
        Target("s3-head", head, HEADS, expected, (), memory),
        Target("s3-signatures", signatures, signed, expected, (), memory),
        Target("s3-chunks", chunks, BODIES, expected, (), memory),
        Target("s3-multipart", multipart, MULTIPART, expected, (), memory),
        Target("s3-xml", xml, documents_of_all, expected, (), memory),
        Target("s3-policies", policies, POLICIES, expected, (), memory),
    ]
