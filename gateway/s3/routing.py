"""Which operation a request is, on which bucket and key.

Owns the table of operations and of the permissions they need. A sub-resource that S3 has and we do not is
NotImplemented, never taken for the object or the bucket itself: a PUT of something unknown must not become an
object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.names import check_bucket, check_key
from moorage.gateway.s3.request import Request, decode


class Level(StrEnum):
    SERVICE = "SERVICE"
    BUCKET = "BUCKET"
    OBJECT = "OBJECT"


@dataclass(frozen=True, slots=True)
class Row:
    """``sub``: the parameter of the query that makes it this operation. ``version_action``: the permission
    where the request names a version, "" where it cannot."""

    level: Level
    method: str
    sub: str
    operation: str
    action: str
    version_action: str = ""


def _rows(level: Level, *rows: tuple[str, ...]) -> list[Row]:
    return [Row(level, *row) for row in rows]


TABLE: Final = (
    *_rows(Level.SERVICE, ("GET", "", "ListBuckets", "s3:ListAllMyBuckets")),
    *_rows(
        Level.BUCKET,
        ("GET", "", "ListObjects", "s3:ListBucket"),
        ("GET", "list-type", "ListObjectsV2", "s3:ListBucket"),
        ("GET", "versions", "ListObjectVersions", "s3:ListBucketVersions"),
        ("GET", "uploads", "ListMultipartUploads", "s3:ListBucketMultipartUploads"),
        ("GET", "location", "GetBucketLocation", "s3:GetBucketLocation"),
        ("HEAD", "", "HeadBucket", "s3:ListBucket"),
        ("PUT", "", "CreateBucket", "s3:CreateBucket"),
        ("DELETE", "", "DeleteBucket", "s3:DeleteBucket"),
        ("POST", "delete", "DeleteObjects", "s3:DeleteObject"),
        ("POST", "", "PostObject", "s3:PutObject"),
        ("OPTIONS", "", "Preflight", ""),
        ("GET", "versioning", "GetBucketVersioning", "s3:GetBucketVersioning"),
        ("PUT", "versioning", "PutBucketVersioning", "s3:PutBucketVersioning"),
        ("GET", "lifecycle", "GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration"),
        ("PUT", "lifecycle", "PutBucketLifecycleConfiguration", "s3:PutLifecycleConfiguration"),
        ("DELETE", "lifecycle", "DeleteBucketLifecycle", "s3:PutLifecycleConfiguration"),
        ("GET", "cors", "GetBucketCors", "s3:GetBucketCORS"),
        ("PUT", "cors", "PutBucketCors", "s3:PutBucketCORS"),
        ("DELETE", "cors", "DeleteBucketCors", "s3:PutBucketCORS"),
        ("GET", "policy", "GetBucketPolicy", "s3:GetBucketPolicy"),
        ("PUT", "policy", "PutBucketPolicy", "s3:PutBucketPolicy"),
        ("DELETE", "policy", "DeleteBucketPolicy", "s3:DeleteBucketPolicy"),
        ("GET", "policyStatus", "GetBucketPolicyStatus", "s3:GetBucketPolicyStatus"),
        ("GET", "acl", "GetBucketAcl", "s3:GetBucketAcl"),
        ("PUT", "acl", "PutBucketAcl", "s3:PutBucketAcl"),
        ("GET", "tagging", "GetBucketTagging", "s3:GetBucketTagging"),
        ("PUT", "tagging", "PutBucketTagging", "s3:PutBucketTagging"),
        ("DELETE", "tagging", "DeleteBucketTagging", "s3:PutBucketTagging"),
        ("GET", "object-lock", "GetObjectLockConfiguration", "s3:GetBucketObjectLockConfiguration"),
        ("PUT", "object-lock", "PutObjectLockConfiguration", "s3:PutBucketObjectLockConfiguration"),
        # Tools ask this of every bucket; it is answered as of one where nothing was set (`results.unset`).
        ("GET", "accelerate", "GetBucketAccelerateConfiguration", "s3:GetAccelerateConfiguration"),
        ("GET", "encryption", "GetBucketEncryption", "s3:GetEncryptionConfiguration"),
        ("GET", "logging", "GetBucketLogging", "s3:GetBucketLogging"),
        ("GET", "notification", "GetBucketNotificationConfiguration", "s3:GetBucketNotification"),
        ("GET", "ownershipControls", "GetBucketOwnershipControls", "s3:GetBucketOwnershipControls"),
        ("GET", "publicAccessBlock", "GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock"),
        ("GET", "replication", "GetBucketReplication", "s3:GetReplicationConfiguration"),
        ("GET", "requestPayment", "GetBucketRequestPayment", "s3:GetBucketRequestPayment"),
        ("GET", "website", "GetBucketWebsite", "s3:GetBucketWebsite"),
    ),
    *_rows(
        Level.OBJECT,
        ("GET", "", "GetObject", "s3:GetObject", "s3:GetObjectVersion"),
        ("HEAD", "", "HeadObject", "s3:GetObject", "s3:GetObjectVersion"),
        ("PUT", "", "PutObject", "s3:PutObject"),
        ("DELETE", "", "DeleteObject", "s3:DeleteObject", "s3:DeleteObjectVersion"),
        ("OPTIONS", "", "Preflight", ""),
        ("GET", "attributes", "GetObjectAttributes", "s3:GetObject", "s3:GetObjectVersion"),
        ("GET", "acl", "GetObjectAcl", "s3:GetObjectAcl", "s3:GetObjectVersionAcl"),
        ("PUT", "acl", "PutObjectAcl", "s3:PutObjectAcl", "s3:PutObjectVersionAcl"),
        ("GET", "tagging", "GetObjectTagging", "s3:GetObjectTagging", "s3:GetObjectVersionTagging"),
        ("PUT", "tagging", "PutObjectTagging", "s3:PutObjectTagging", "s3:PutObjectVersionTagging"),
        (
            *("DELETE", "tagging", "DeleteObjectTagging"),
            *("s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging"),
        ),
        ("GET", "retention", "GetObjectRetention", "s3:GetObjectRetention", "s3:GetObjectRetention"),
        ("PUT", "retention", "PutObjectRetention", "s3:PutObjectRetention", "s3:PutObjectRetention"),
        ("GET", "legal-hold", "GetObjectLegalHold", "s3:GetObjectLegalHold", "s3:GetObjectLegalHold"),
        ("PUT", "legal-hold", "PutObjectLegalHold", "s3:PutObjectLegalHold", "s3:PutObjectLegalHold"),
        ("POST", "uploads", "CreateMultipartUpload", "s3:PutObject"),
        ("PUT", "uploadId", "UploadPart", "s3:PutObject"),
        ("POST", "uploadId", "CompleteMultipartUpload", "s3:PutObject"),
        ("GET", "uploadId", "ListParts", "s3:ListMultipartUploadParts"),
        ("DELETE", "uploadId", "AbortMultipartUpload", "s3:AbortMultipartUpload"),
    ),
)

# With the header x-amz-copy-source.
COPIES: Final = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}

# Those that S3 has beside the ones in the table.
_OTHERS: Final = {
    *("abac", "analytics", "intelligent-tiering", "inventory", "metadataConfiguration", "metadataTable"),
    *("metadataInventoryTable", "metadataJournalTable", "metrics", "renameObject", "restore", "select"),
    *("session", "torrent"),
}
_SUBS: Final = frozenset({row.sub for row in TABLE if row.sub} | _OTHERS)
_BY_PLACE: Final = {(row.level, row.method, row.sub): row for row in TABLE}
_METHODS: Final = {(row.level, row.sub) for row in TABLE}


@dataclass(frozen=True, slots=True)
class Route:
    """``bucket`` and ``key`` are "" above their level. ``action``: the permission that is needed, "" for the
    operations that anybody may ask for."""

    operation: str
    bucket: str
    key: str
    action: str


def route(request: Request, domains: Iterable[str] = ()) -> Route:
    """``domains``: in lower case, without ports; a bucket may be a label before one. Raises S3Error."""
    bucket, key = place(request, domains)
    level = Level.OBJECT if key else Level.BUCKET if bucket else Level.SERVICE
    if level is not Level.SERVICE:
        check_bucket(bucket)
    if level is Level.OBJECT:
        check_key(key)
    subs = {name for name, _ in request.parameters if name in _SUBS}
    if len(subs) > 1:
        named = ", ".join(sorted(subs))
        raise S3Error("InvalidArgument", f"These parameters exclude each other: {named}.")
    sub = subs.pop() if subs and request.method != "OPTIONS" else ""
    row = _BY_PLACE.get((level, request.method, sub))
    if row is None:
        raise _unknown(level, request.method, sub)
    return Route(_operation(row, request), bucket, key, _action(row, request))


def _action(row: Row, request: Request) -> str:
    """A version that is named where none can be is no matter to pass over: it was not put, or not read."""
    if row.level is not Level.OBJECT or not row.action or request.parameter("versionId") is None:
        return row.action
    if not row.version_action:
        raise S3Error("InvalidArgument", "This operation does not accept a version-id.")
    return row.version_action


def _operation(row: Row, request: Request) -> str:
    if row.operation == "UploadPart" and request.parameter("partNumber") is None:
        raise S3Error("InvalidArgument", "partNumber is missing beside uploadId.")
    if row.operation == "ListObjectsV2" and request.parameter("list-type") != "2":
        raise S3Error("InvalidArgument", "list-type is 2, or absent.")
    if row.operation == "PostObject" and not _is_form(request):
        raise S3Error("MethodNotAllowed", Method="POST", ResourceType=row.level)
    if request.header("x-amz-copy-source") is not None:
        return COPIES.get(row.operation, row.operation)
    return row.operation


def _is_form(request: Request) -> bool:
    kind = (request.header("content-type") or "").partition(";")[0]
    return kind.strip().lower() == "multipart/form-data"


def _unknown(level: Level, method: str, sub: str) -> S3Error:
    if sub in _OTHERS or (sub and (level, sub) in _METHODS and method in ("PUT", "POST", "DELETE")):
        return S3Error("NotImplemented", f"{method} of ?{sub} is not implemented here.")
    return S3Error("MethodNotAllowed", Method=method, ResourceType=level)


def place(request: Request, domains: Iterable[str] = ()) -> tuple[str, str]:
    """Bucket and key, "" for none, as host and path name them; not checked. Raises InvalidURI."""
    if not request.path.startswith("/"):
        raise S3Error("InvalidURI")
    rest = request.path[1:]
    bucket = _bucket_of_host(request.header("host") or "", domains)
    if not bucket:
        name, _, rest = rest.partition("/")
        bucket = _text(name)
    return bucket, _text(rest)


def _bucket_of_host(host: str, domains: Iterable[str]) -> str:
    name = re.sub(r":[0-9]*$", "", host.lower(), flags=re.ASCII)
    for domain in domains:
        if name.endswith(f".{domain}"):
            return name.removesuffix(f".{domain}")
    return ""


def _text(raw: str) -> str:
    try:
        return decode(raw).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "The path is not UTF-8 once decoded.") from None


# -- headers of the answer that the query asks for -------------------------------------------------------

_OVERRIDES: Final = {
    f"response-{name}": name
    for name in (
        *("cache-control", "content-disposition", "content-encoding", "content-language", "content-type"),
        "expires",
    )
}


def response_headers(request: Request, anonymous: bool) -> dict[str, str]:
    """Of a GetObject. Raises InvalidRequest for who did not sign, and for what is no header."""
    found = {}
    for parameter, header in _OVERRIDES.items():
        value = request.parameter(parameter)
        if value is None:
            continue
        if anonymous:
            raise S3Error("InvalidRequest", "Only signed requests may ask for headers of the answer.")
        if any(ord(each) < 32 or ord(each) == 127 for each in value):
            raise S3Error("InvalidArgument", f"{parameter} has control characters.")
        found[header] = value
    return found
