"""Signature V4: what botocore and the Common Runtime sign is proved, as Amazon's examples are."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote

import botocore.auth
import botocore.crt.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3 import signature
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import Payload

from . import support
from .support import KEY, NOW_MS, REGION, SECRET, changed, claim_of, of_url, proved, request_of, sent

ODD_KEYS = [
    *("a", "a b", "a+b", "a//b", "/a", "a/", "./a", "a/../b", ".", "..", "a%2Fb", "100%", "%", "~a-b_c.d"),
    *(
        "ключ/é/日本",
        "\u0301e",
        "😀",
        "a?b=c&d",
        "a#b",
        "a;b:c@d,e$f",
        "!*'()",
        '"<>\\^`{|}',
        "tab\tline\n",
        "=",
    ),
]

SIGNERS = {
    "botocore": (botocore.auth.S3SigV4Auth, botocore.auth.S3SigV4QueryAuth),
    "crt": (botocore.crt.auth.CrtS3SigV4Auth, botocore.crt.auth.CrtS3SigV4QueryAuth),
}
CREDENTIALS = Credentials(KEY, SECRET)


def signed(signer: str, url: str, method: str = "GET", by_query: bool = False, **headers: str) -> Request:
    """By the signer alone, for requests that no client makes."""
    request = AWSRequest(
        method, url, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    auth = SIGNERS[signer][by_query](CREDENTIALS, "s3", REGION, *([300] if by_query else []))
    with support.at(NOW_MS):
        auth.add_auth(request)
    return request_of(request.prepare())


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(key: str) -> None:
    for operation in ("get_object", "delete_object"):
        assert proved(request_of(sent(operation, Bucket="bucket", Key=key))).access_key == KEY
    with support.at(NOW_MS):
        url = support.client().generate_presigned_url("get_object", {"Bucket": "bucket", "Key": key}, 60)
    assert proved(of_url("GET", url)).payload is Payload.UNSIGNED


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("by_query", [False, True])
@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    query=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        max_size=4,
    ),
)
def test_any_key_and_query(signer: str, by_query: bool, key: str, query: dict[str, str]) -> None:
    pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    url = f"http://s3.example/b/{quote(key, safe='/~')}" + ("?" + pairs) * bool(pairs)
    request = signed(signer, url, by_query=by_query)
    assert proved(request).access_key == KEY


def test_headers_are_folded_and_put_together() -> None:
    request = AWSRequest("GET", "http://s3.example/b/k")
    for name, value in [("x-amz-meta-a", "  one   two "), ("x-amz-meta-B", "b"), ("X-Amz-Meta-a", "three")]:
        request.headers.add_header(name, value)
    with support.at(NOW_MS):
        botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", REGION).add_auth(request)
    arrived = Request("GET", "/b/k", "", [("Host", "s3.example"), *request.headers.items()])
    assert proved(arrived).access_key == KEY


def test_a_date_header_is_as_good() -> None:
    request = signed("botocore", "http://s3.example/b", date="x")
    assert request.header("x-amz-date") is None
    assert proved(request).access_key == KEY


def test_query_without_values_and_in_any_order() -> None:
    request = signed("botocore", "http://s3.example/b?uploads&prefix=a%20b&max-keys=3&prefix=")
    assert proved(request).access_key == KEY
    plus = Request(
        "GET",
        request.path,
        "max-keys=3&prefix=&prefix=a+b&uploads=",
        [(n, v) for n in request.names for v in request.values(n)],
    )
    assert proved(plus).access_key == KEY


PAYLOADS: list[tuple[str, dict[str, Any], Payload]] = [
    ("http", {"Body": b"hello"}, Payload.SINGLE),
    ("https", {"Body": io.BytesIO(b"hello")}, Payload.UNSIGNED_CHUNKS_TRAILER),
]


@pytest.mark.parametrize(("scheme", "arguments", "payload"), PAYLOADS)
def test_what_is_said_of_the_body(scheme: str, arguments: dict[str, Any], payload: Payload) -> None:
    request = request_of(sent("put_object", scheme, Bucket="b", Key="k", Metadata={"a": "b"}, **arguments))
    proof = proved(request)
    assert proof.payload is payload and proof.chunks is None
    assert (len(proof.sha256) == 64) == (payload is Payload.SINGLE)


# -- Amazon's published examples -------------------------------------------------------------------------

EXAMPLE_KEY, EXAMPLE_SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
EXAMPLE_MS = 1_369_353_600_000
HOST = ("Host", "examplebucket.s3.amazonaws.com")
EXAMPLES = {
    "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41": (
        *("GET", "/test.txt", ""),
        {"range": "bytes=0-9", "x-amz-content-sha256": signature.EMPTY_SHA256},
    ),
    "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd": (
        *("PUT", "/test%24file.text", ""),
        {
            "date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
        },
    ),
    "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543": (
        *("GET", "/", "lifecycle"),
        {"x-amz-content-sha256": signature.EMPTY_SHA256},
    ),
    "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7": (
        *("GET", "/", "max-keys=2&prefix=J"),
        {"x-amz-content-sha256": signature.EMPTY_SHA256},
    ),
}


@pytest.mark.parametrize("expected", EXAMPLES)
def test_examples_of_amazon(expected: str) -> None:
    method, path, query, headers = EXAMPLES[expected]
    headers = {**headers, "x-amz-date": "20130524T000000Z"}
    names = ";".join(sorted([*headers, "host"]))
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={EXAMPLE_KEY}/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={expected}"
    )
    request = Request(method, path, query, [HOST, *headers.items()])
    claim = signature.claim_of(request, "us-east-1", EXAMPLE_MS)
    assert claim is not None
    assert signature.prove(claim, request, EXAMPLE_SECRET).access_key == EXAMPLE_KEY


def test_presigned_example_of_amazon() -> None:
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256"
        f"&X-Amz-Credential={EXAMPLE_KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    request = Request("GET", "/test.txt", query, [HOST])
    claim = signature.claim_of(request, "us-east-1", EXAMPLE_MS + 86_400_000)
    assert claim is not None
    assert signature.prove(claim, request, EXAMPLE_SECRET).payload is Payload.UNSIGNED


# -- what is refused -------------------------------------------------------------------------------------


def refused(request: Request, now_ms: int = NOW_MS, secret: str = SECRET) -> S3Error:
    with pytest.raises(S3Error) as caught:
        proved(request, secret, now_ms)
    assert secret not in str(caught.value) + repr(caught.value.details)
    return caught.value


@pytest.fixture
def good() -> Request:
    return request_of(sent("put_object", Bucket="b", Key="k", Body=b"x", Metadata={"a": "b"}))


def authorized(good: Request, old: str, new: str) -> Request:
    return changed(good, authorization=(good.header("authorization") or "").replace(old, new))


def test_every_changed_part_is_noticed(good: Request) -> None:
    headers = [(name, value) for name in good.names for value in good.values(name)]
    assert proved(good).access_key == KEY
    for wrong in (
        Request("GET", good.path, good.query, headers),
        Request("PUT", "/b/kk", good.query, headers),
        Request("PUT", good.path, "acl", headers),
        changed(good, x_amz_meta_a="c"),
        changed(good, x_amz_meta_a=None),
        changed(good, host="other"),
        changed(good, x_amz_date="20260102T030406Z"),
        changed(good, x_amz_content_sha256="0" * 64),
        changed(good, x_amz_content_sha256="UNSIGNED-PAYLOAD"),
    ):
        error = refused(wrong)
        assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    assert refused(good, secret="a secret of somebody else").code == "SignatureDoesNotMatch"


def test_the_computed_signature_is_not_told(good: Request) -> None:
    provided = claim_of(good).signature
    error = refused(changed(good, x_amz_meta_a="c"))
    assert error.details["SignatureProvided"] == provided
    assert set(error.details) == {"AWSAccessKeyId", "StringToSign", "SignatureProvided"}
    assert provided not in repr(claim_of(good)) and SECRET not in repr(proved(good))


def test_added_headers_must_be_signed(good: Request) -> None:
    error = refused(changed(good, x_amz_acl="public-read"))
    assert (error.code, error.details) == ("AccessDenied", {"HeadersNotSigned": "x-amz-acl"})
    assert proved(changed(good, x_other="a", range="bytes=0-1")).access_key == KEY


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Credential=", "Credential"),
        ("Credential=", "Credentials="),
        ("SignedHeaders=", "Signature="),
        ("/s3/", "/ec2/"),
        ("/aws4_request", "/aws5_request"),
        ("/aws4_request", ""),
        (REGION, "us-east-1"),
        ("/20260102/", "/2026010/"),
        ("/20260102/", "/20260103/"),
        ("host;", ""),
        ("host;", "Host;"),
        ("host;", "host;host;"),
        ("host;", "host;;"),
        ("Signature=", "Signature=Z"),
        (f"Credential={KEY}", "Credential="),
    ],
)
def test_malformed_authorization(good: Request, old: str, new: str) -> None:
    wrong = authorized(good, old, new)
    assert wrong.header("authorization") != good.header("authorization")
    error = refused(wrong)
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    if new == "us-east-1":
        assert error.details == {"Region": REGION}  # clients ask again with this one


def test_times(good: Request) -> None:
    limit = signature.SKEW_MS
    assert proved(good, now_ms=NOW_MS + limit) and proved(good, now_ms=NOW_MS - limit)
    for now_ms in (NOW_MS + limit + 1, NOW_MS - limit - 1):
        error = refused(good, now_ms)
        assert (error.code, error.status) == ("RequestTimeTooSkewed", 403)
    for wrong in ("", "yesterday", "20261302T030405Z"):
        assert refused(changed(good, x_amz_date=wrong)).code == "AccessDenied"
    assert refused(changed(good, x_amz_date=None)).code == "AccessDenied"


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("authorization", "AWS AKID:c2lnbmF0dXJl", "InvalidRequest"),
        ("authorization", "Basic YTpi", "InvalidArgument"),
        ("x_amz_date", "20250102T030405Z", "RequestTimeTooSkewed"),
        ("x_amz_content_sha256", None, "InvalidRequest"),
        ("x_amz_content_sha256", "abc", "InvalidArgument"),
        ("x_amz_content_sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "InvalidArgument"),
        ("x_amz_security_token", "session", "InvalidToken"),
    ],
)
def test_other_ways_to_be_wrong(good: Request, header: str, value: str | None, code: str) -> None:
    assert refused(changed(good, **{header: value})).code == code


PRESIGNED = {
    "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
    "X-Amz-Credential": f"{KEY}/20260102/{REGION}/s3/aws4_request",
    "X-Amz-Date": "20260102T030405Z",
    "X-Amz-Expires": "60",
    "X-Amz-SignedHeaders": "host",
    "X-Amz-Signature": "0" * 64,
}


def presigned(**changes: str | None) -> Request:
    given = {**PRESIGNED, **{f"X-Amz-{name}": value for name, value in changes.items()}}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items() if value is not None)
    return Request("GET", "/b/k", query, [("Host", "h")])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "SignatureDoesNotMatch"),
        *(
            ({name.removeprefix("X-Amz-"): None}, "AuthorizationQueryParametersError")
            for name in PRESIGNED
            if name != "X-Amz-Algorithm"
        ),
        ({"Expires": "0"}, "AuthorizationQueryParametersError"),
        ({"Expires": "-1"}, "AuthorizationQueryParametersError"),
        ({"Expires": "604801"}, "AuthorizationQueryParametersError"),
        ({"Expires": "604800"}, "SignatureDoesNotMatch"),
        ({"Expires": "x"}, "AuthorizationQueryParametersError"),
        ({"Date": "20260102"}, "AuthorizationQueryParametersError"),
        ({"Date": "20260103T030405Z"}, "AuthorizationQueryParametersError"),
        ({"Credential": f"{KEY}/20260102/us-east-1/s3/aws4_request"}, "AuthorizationQueryParametersError"),
        ({"Credential": f"{KEY}/20260102/{REGION}/sts/aws4_request"}, "AuthorizationQueryParametersError"),
        ({"Credential": KEY}, "AuthorizationQueryParametersError"),
        ({"SignedHeaders": "range"}, "AuthorizationQueryParametersError"),
        ({"Signature": "00"}, "AuthorizationQueryParametersError"),
        ({"Algorithm": "AWS4-ECDSA-P256-SHA256"}, "AuthorizationQueryParametersError"),
        ({"Algorithm": "MD5"}, "InvalidRequest"),
        ({"Security-Token": "t"}, "InvalidToken"),
        ({"Content-Sha256": "x"}, "InvalidArgument"),
        ({"Date": "20260102T032006Z"}, "AccessDenied"),
        ({"Date": "20260102T030304Z"}, "AccessDenied"),
        ({"Date": "20260102T030305Z"}, "SignatureDoesNotMatch"),
    ],
)
def test_presigned(changes: dict[str, str | None], code: str) -> None:
    assert refused(presigned(**changes)).code == code


def test_presigned_twice_or_beside_a_header() -> None:
    twice = presigned()
    twice = Request("GET", "/b/k", twice.query + "&X-Amz-Signature=1", [("Host", "h")])
    assert refused(twice).code == "AuthorizationQueryParametersError"
    assert refused(changed(presigned(), authorization="AWS4-HMAC-SHA256 x")).code == "InvalidArgument"


def test_old_presigned_is_refused_and_nobody_is_nobody() -> None:
    old = Request("GET", "/b/k", "AWSAccessKeyId=a&Expires=1&Signature=b", [("Host", "h")])
    assert refused(old).code == "InvalidRequest"
    nobody = Request("GET", "/b/k", "", [("Host", "h")])
    assert signature.claim_of(nobody, REGION, NOW_MS) is None
    assert signature.claim_of(changed(nobody, authorization=""), REGION, NOW_MS) is None
    assert signature.anonymous(nobody).access_key == ""
    with pytest.raises(S3Error, match="AccessDenied"):
        signature.anonymous(changed(nobody, x_amz_content_sha256="STREAMING-AWS4-HMAC-SHA256-PAYLOAD"))


def test_presigned_uploads() -> None:
    arguments = {"Bucket": "b", "Key": "k", "ContentType": "text/plain", "Metadata": {"a": "b"}}
    with support.at(NOW_MS):
        url = support.client().generate_presigned_url("put_object", arguments, 60)
    right = of_url("PUT", url, {"content-type": "text/plain", "x-amz-meta-a": "b"})
    assert proved(right).payload is Payload.UNSIGNED
    assert refused(changed(right, x_amz_meta_a="c")).code == "SignatureDoesNotMatch"
    assert refused(changed(right, x_amz_acl="public-read")).code == "AccessDenied"
    assert refused(right, NOW_MS + 60_001).code == "AccessDenied"


def test_headers_that_a_signer_put_into_the_url() -> None:
    more = "x-amz-acl=private&X-Amz-Meta-A=b%20c&x-amz-checksum-crc32=AAAAAA%3D%3D&prefix=x&x-amz-meta-h=url"
    url = f"http://s3.example/b/k?{more}"
    request = signed("botocore", url, "PUT", by_query=True)
    request = request.with_headers([("x-amz-meta-h", "sent")])
    with pytest.raises(S3Error, match="AccessDenied"):
        proved(request)
    found = signature.unfolded(request)
    assert (found.header("x-amz-acl"), found.header("x-amz-meta-a")) == ("private", "b c")
    assert found.header("x-amz-meta-h") == "sent"
    assert set(found.names) - set(request.names) == {"x-amz-acl", "x-amz-meta-a"}
