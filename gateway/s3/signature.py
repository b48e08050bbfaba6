"""Signature Version 4: who says that they sent a request, and whether it is true.

Owns the canonical request, scopes, times and the comparison; after Amazon's "Authenticating Requests (AWS
Signature Version 4)". A request first makes a :class:`Claim`, which anybody can make; with the secret of its
access key the claim is proved (:func:`prove`), or S3Error says why not. Must never tell a secret, a derived
key or a signature that it computed: not in an error, not in a ``repr``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from moorage.gateway.s3 import times
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request, decode

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SKEW_MS: Final = 15 * 60 * 1000
EXPIRES_MAX_S: Final = 7 * 24 * 3600
EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+", re.ASCII)  # of a header, in lower case
_SIGNED_BY_QUERY: Final = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature")
_OF_QUERY: Final = (*_SIGNED_BY_QUERY, "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")


class Payload(StrEnum):
    """How the body is covered by the signature: values of ``x-amz-content-sha256``."""

    SINGLE = "a SHA-256"
    UNSIGNED = "UNSIGNED-PAYLOAD"
    CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


@dataclass(frozen=True, slots=True)
class Scope:
    date: str
    region: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/s3/aws4_request"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of who signed it, in reading order; nothing of it is proved yet. ``at`` as in
    ``X-Amz-Date``; ``content`` as in ``x-amz-content-sha256``."""

    access_key: str
    scope: Scope
    at: str
    signed_headers: tuple[str, ...]
    content: str
    presigned: bool
    signature: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """Who sent a request (``access_key`` "" for nobody in particular), and what is still to be checked while
    its body arrives: ``sha256`` for SINGLE, ``chunks`` for signed chunks."""

    access_key: str
    payload: Payload
    sha256: str = ""
    chunks: ChunkSigner | None = None


class ChunkSigner:
    """The chain of signatures over the chunks of a body. One for each body: it remembers the last link."""

    __slots__ = ("_at", "_key", "_previous", "_scope")

    def __init__(self, key: bytes, at: str, scope: Scope, seed: str) -> None:
        self._key, self._at, self._scope, self._previous = key, at, str(scope), seed

    def check_chunk(self, signature: str, sha256: str) -> None:
        self._check(signature, "PAYLOAD", f"{EMPTY_SHA256}\n{sha256}")

    def check_trailer(self, signature: str, sha256: str) -> None:
        self._check(signature, "TRAILER", sha256)

    def _check(self, signature: str, kind: str, hashes: str) -> None:
        to_sign = f"{ALGORITHM}-{kind}\n{self._at}\n{self._scope}\n{self._previous}\n{hashes}"
        made = _sign(self._key, to_sign)
        if not _same(made, signature):
            raise S3Error("SignatureDoesNotMatch", "The signature of a chunk or of the trailer is wrong.")
        self._previous = made


# -- what a request says ---------------------------------------------------------------------------------


def claim_of(request: Request, region: str, now_ms: int) -> Claim | None:
    """Who signed it, by its own word; None when nobody did. Its time is checked here: what is too old or too
    new needs no look at keys. Raises S3Error."""
    authorization = request.header("authorization") or None  # an empty one claims nothing
    count = Counter(name for name, _ in request.parameters)
    by_query = any(name in count for name in _SIGNED_BY_QUERY)
    if authorization is not None and (by_query or "Signature" in count):
        raise S3Error("InvalidArgument", "The request is signed twice, by header and by query: use one.")
    if by_query:
        if any(count[name] != 1 for name in _OF_QUERY):
            raise _query(f"Exactly one of each is needed: {', '.join(_OF_QUERY)}.")
        return _by_query(request, region, now_ms)
    if "Signature" in count and "AWSAccessKeyId" in count:
        raise _old_version()
    if authorization is None:
        return None
    return _by_header(request, authorization, region, now_ms)


def anonymous(request: Request) -> Proof:
    """For a request that makes no claim."""
    payload, sha256 = _payload(request.header("x-amz-content-sha256") or Payload.UNSIGNED)
    if payload in (Payload.CHUNKS, Payload.CHUNKS_TRAILER):
        raise S3Error("AccessDenied", "Signed chunks need a signed request.")
    return Proof("", payload, sha256)


def _by_header(request: Request, authorization: str, region: str, now_ms: int) -> Claim:
    scheme, _, rest = authorization.partition(" ")
    if scheme == "AWS":
        raise _old_version()
    if scheme != ALGORITHM:
        raise S3Error("InvalidArgument", f"Authorization is {ALGORITHM}, or absent.")
    fields = {}
    for part in rest.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name in fields:
            raise _header("It is a list of NAME=VALUE, each name once.")
        fields[name] = value
    if fields.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise _header("It has Credential, SignedHeaders and Signature.")
    try:
        access_key, scope = scope_of(fields["Credential"])
        signed_headers = _signed_headers(fields["SignedHeaders"])
        signature = signature_of(fields["Signature"])
    except ValueError as error:
        raise _header(str(error)) from None
    if scope.region != region:
        raise _header(f"The region {scope.region!r} is wrong; expecting {region!r}.", Region=region)
    at, at_ms = _time_of(request)
    if abs(now_ms - at_ms) > SKEW_MS:
        raise _skewed(at, now_ms)
    if at[:8] != scope.date:
        raise _header("The date of the credential is not that of the request.")
    content = request.header("x-amz-content-sha256")
    if content is None:
        raise S3Error("InvalidRequest", "The header x-amz-content-sha256 is missing.")
    _no_session(request.header("x-amz-security-token"))
    return Claim(access_key, scope, at, signed_headers, content, False, signature)


def _by_query(request: Request, region: str, now_ms: int) -> Claim:
    given = {name: request.parameter(name) or "" for name in _OF_QUERY}
    if given["X-Amz-Algorithm"] != ALGORITHM:
        if given["X-Amz-Algorithm"].startswith("AWS4-"):
            raise _query(f"X-Amz-Algorithm is {ALGORITHM}.")
        raise _old_version()
    try:
        access_key, scope = scope_of(given["X-Amz-Credential"])
        signed_headers = _signed_headers(given["X-Amz-SignedHeaders"])
        signature = signature_of(given["X-Amz-Signature"])
    except ValueError as error:
        raise _query(str(error)) from None
    if scope.region != region:
        raise _query(f"The region {scope.region!r} is wrong; expecting {region!r}.", Region=region)
    at, at_ms = given["X-Amz-Date"], times.parse_basic(given["X-Amz-Date"])
    if at_ms is None:
        raise _query("X-Amz-Date is a time such as 20130524T000000Z.")
    if at[:8] != scope.date:
        raise _query("The date of the credential is not that of the request.")
    _check_expiry(given["X-Amz-Expires"], at_ms, now_ms)
    _no_session(request.parameter("X-Amz-Security-Token") or request.header("x-amz-security-token"))
    content = request.parameter("X-Amz-Content-Sha256") or request.header("x-amz-content-sha256")
    return Claim(access_key, scope, at, signed_headers, content or Payload.UNSIGNED, True, signature)


def _check_expiry(expires: str, at_ms: int, now_ms: int) -> None:
    if not re.fullmatch(r"[0-9]{1,7}", expires, re.ASCII) or not 1 <= int(expires) <= EXPIRES_MAX_S:
        raise _query(f"X-Amz-Expires is a number of seconds from 1 to {EXPIRES_MAX_S}.")
    if at_ms - now_ms > SKEW_MS:
        raise S3Error("AccessDenied", "The request is not valid yet.", ServerTime=times.iso(now_ms))
    end_ms = at_ms + int(expires) * 1000
    if now_ms > end_ms:
        known = {"X-Amz-Expires": expires, "Expires": times.iso(end_ms), "ServerTime": times.iso(now_ms)}
        raise S3Error("AccessDenied", "The request has expired.", **known)


def scope_of(credential: str) -> tuple[str, Scope]:
    """Access key and scope. Raises ValueError. Access keys may have slashes."""
    access_key, *rest = credential.rsplit("/", 4)
    if len(rest) != 4 or not access_key:
        raise ValueError("The credential is KEY/DATE/REGION/s3/aws4_request.")
    date, region, service, terminal = rest
    if not re.fullmatch(r"[0-9]{8}", date, re.ASCII):
        raise ValueError("The date of the credential is eight digits.")
    if service != "s3":
        raise ValueError(f"The service {service!r} is wrong; expecting 's3'.")
    if terminal != "aws4_request":
        raise ValueError("The credential ends with aws4_request.")
    return access_key, Scope(date, region)


def signature_of(value: str) -> str:
    if not _HEX64.fullmatch(value):
        raise ValueError("The signature is 64 hexadecimal digits in lower case.")
    return value


def _signed_headers(value: str) -> tuple[str, ...]:
    names = tuple(value.split(";"))
    if not all(_NAME.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise ValueError("SignedHeaders are names in lower case, separated by semicolons.")
    if "host" not in names:
        raise ValueError("SignedHeaders must include host.")
    return names


def _time_of(request: Request) -> tuple[str, int]:
    stated = request.header("x-amz-date")
    if stated is not None:
        at_ms = times.parse_basic(stated)
    else:
        stated = request.header("date") or ""
        at_ms = times.parse_http(stated)
        at_ms = times.parse_basic(stated) if at_ms is None else at_ms
    if at_ms is None:
        raise S3Error("AccessDenied", "A signed request needs a valid x-amz-date or Date.")
    return times.basic(at_ms), at_ms


def _no_session(token: str | None) -> None:
    if token is not None:
        raise S3Error("InvalidToken")


def _payload(content: str) -> tuple[Payload, str]:
    if _HEX64.fullmatch(content):
        return Payload.SINGLE, content
    if content in tuple(Payload)[1:]:
        return Payload(content), ""
    known = ", ".join(tuple(Payload)[1:])
    raise S3Error("InvalidArgument", f"x-amz-content-sha256 is a SHA-256 in hexadecimal, or one of {known}.")


def _header(message: str, **details: str) -> S3Error:
    return S3Error("AuthorizationHeaderMalformed", message, **details)


def _query(message: str, **details: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", message, **details)


def _old_version() -> S3Error:
    return S3Error("InvalidRequest", f"This way to sign is not supported: use {ALGORITHM} (version 4).")


def _skewed(at: str, now_ms: int) -> S3Error:
    allowed = str(SKEW_MS)
    known = {"RequestTime": at, "ServerTime": times.iso(now_ms), "MaxAllowedSkewMilliseconds": allowed}
    return S3Error("RequestTimeTooSkewed", **known)


# -- whether it is true ----------------------------------------------------------------------------------


def prove(claim: Claim, request: Request, secret: str) -> Proof:
    """``secret``: of the access key of the claim. Raises S3Error where the claim is not true, and where the
    request has headers that it should have signed."""
    payload, sha256 = _payload(claim.content)
    _check_signed(claim, request)
    to_sign = "\n".join((ALGORITHM, claim.at, str(claim.scope), _sha256(canonical_request(claim, request))))
    key = signing_key(secret, claim.scope)
    if not _same(_sign(key, to_sign), claim.signature):
        raise S3Error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=claim.access_key,
            StringToSign=to_sign,
            SignatureProvided=claim.signature,
        )
    chunks = None
    if payload in (Payload.CHUNKS, Payload.CHUNKS_TRAILER):
        chunks = ChunkSigner(key, claim.at, claim.scope, claim.signature)
    return Proof(claim.access_key, payload, sha256, chunks)


# Of a presigned URL: those that are about the signature. Checksums are no conditions of the signer either:
# his library makes them, of the empty body that it has.
_STAYS: Final = (*(name.lower() for name in _OF_QUERY), "x-amz-content-sha256", "x-amz-security-token")
_CHECKSUMS: Final = ("x-amz-checksum-", "x-amz-sdk-checksum-")


def unfolded(request: Request) -> Request:
    """A proved, presigned request as it is meant: signers put headers of S3 into the URL, where they are to
    count as headers. One that is sent as a header as well stays as it was sent, and signed."""
    moved = [
        (name.lower(), value)
        for name, value in request.parameters
        if name.lower().startswith("x-amz-") and not name.lower().startswith(_CHECKSUMS)
        if name.lower() not in (*_STAYS, *request.names)
    ]
    return request.with_headers(moved)


def check_text(secret: str, scope: Scope, signed: str, signature: str) -> None:
    """Of a text that is signed as it stands: the policy of a form. Raises S3Error."""
    if not _same(_sign(signing_key(secret, scope), signed), signature):
        raise S3Error("SignatureDoesNotMatch", SignatureProvided=signature)


def _check_signed(claim: Claim, request: Request) -> None:
    """What changes the meaning of a request must not have been added by somebody else on the way."""
    signed = set(claim.signed_headers)
    loose = sorted(name for name in request.names if name.startswith("x-amz-") and name not in signed)
    if loose:
        names = ", ".join(loose)
        raise S3Error("AccessDenied", "Headers of the request are not signed.", HeadersNotSigned=names)


def canonical_request(claim: Claim, request: Request) -> str:
    headers = "".join(f"{name}:{_folded(request.values(name))}\n" for name in claim.signed_headers)
    return "\n".join(
        (
            request.method,
            quote(decode(request.path or "/"), safe="/~"),
            canonical_query(request.parameters),
            headers,
            ";".join(claim.signed_headers),
            claim.content,
        )
    )


def canonical_query(parameters: Iterable[tuple[str, str]]) -> str:
    """All but the signature, encoded anew and sorted by what came out."""
    encoded = sorted((_encoded(name), _encoded(value)) for name, value in parameters)
    return "&".join(f"{name}={value}" for name, value in encoded if name != "X-Amz-Signature")


def _encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="~")


def _folded(values: Iterable[str]) -> str:
    return ",".join(re.sub(r"[ \t\r\n]+", " ", value).strip() for value in values)


def signing_key(secret: str, scope: Scope) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (scope.date, scope.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode("utf-8", "surrogateescape"), "sha256")
    return key


def _sign(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), "sha256").hex()


def _same(made: str, given: str) -> bool:
    return hmac.compare_digest(made.encode(), given.encode("utf-8", "surrogateescape"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
