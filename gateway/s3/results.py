"""The XML documents that answers bring, out of plain values.

Owns their elements and the order of them, and where ``encoding-type=url`` applies. ETags go in without their
quotes. After the "Response Syntax" of each operation in Amazon's API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from moorage.gateway.s3 import times
from moorage.gateway.s3.checksums import Algorithm, Kind
from moorage.gateway.s3.documents import LockRule, Retention
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.listing import Asked, Page, token_of
from moorage.gateway.s3.markup import branch, document, element, escape, maybe
from moorage.gateway.s3.names import percent

STANDARD: Final = "STANDARD"


@dataclass(frozen=True, slots=True)
class Owner:
    id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Checksum:
    """``text`` as it is told: base64, with the number of parts where it is a composite."""

    algorithm: Algorithm
    text: str
    kind: Kind = Kind.FULL_OBJECT


@dataclass(frozen=True, slots=True)
class Object:
    """Of a listing."""

    key: str
    etag: str
    size: int
    modified_ms: int
    owner: Owner | None = None
    storage_class: str = STANDARD
    checksum: Checksum | None = None

    @property
    def id(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Version:
    """Of a listing of versions. A delete marker has no ``etag`` (None)."""

    key: str
    id: str
    latest: bool
    modified_ms: int
    owner: Owner
    etag: str | None = None
    size: int = 0
    storage_class: str = STANDARD
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    key: str
    id: str
    initiated_ms: int
    owner: Owner
    storage_class: str = STANDARD
    algorithm: Algorithm | None = None
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    etag: str
    size: int
    modified_ms: int
    checksum: Checksum | None = None


def _etag(etag: str) -> str:
    return element("ETag", f'"{etag}"')


def _owner(owner: Owner | None, name: str = "Owner") -> str:
    if owner is None:
        return ""
    return branch(name, element("ID", owner.id), element("DisplayName", owner.name or owner.id))


def _checksum_names(checksum: Checksum | None) -> str:
    if checksum is None:
        return ""
    return element("ChecksumAlgorithm", checksum.algorithm) + element("ChecksumType", checksum.kind)


def _checksum(checksum: Checksum | None) -> str:
    return "" if checksum is None else element(checksum.algorithm.element, checksum.text)


# -- listings --------------------------------------------------------------------------------------------

Encode = Callable[[str], str]


def _encoding(asked: Asked) -> Encode:
    return percent if asked.url else str


def list_buckets(
    owner: Owner, buckets: Iterable[tuple[str, int]], prefix: str = "", token: str = ""
) -> bytes:
    """``buckets``: names, and when they were created. ``token``: where the next page begins."""
    rows = (
        branch("Bucket", element("Name", name), element("CreationDate", times.iso(created_ms)))
        for name, created_ms in buckets
    )
    return document(
        "ListAllMyBucketsResult",
        _owner(owner),
        branch("Buckets", *rows),
        maybe("Prefix", prefix or None),
        maybe("ContinuationToken", token or None),
    )


def list_objects(bucket: str, asked: Asked, page: Page[Object]) -> bytes:
    """Version 1. Without a delimiter the client goes on from the last key, so no marker is told."""
    encode = _encoding(asked)
    following = page.next.key if page.next is not None and asked.query.delimiter else None
    return document(
        "ListBucketResult",
        element("Name", bucket),
        element("Prefix", encode(asked.query.prefix)),
        element("Marker", encode(asked.marker)),
        maybe("NextMarker", None if following is None else encode(following)),
        *_common(asked, page, "MaxKeys"),
        *(_object(each, encode) for each in page.entries),
        *_prefixes(page.prefixes, encode),
    )


def list_objects_v2(bucket: str, asked: Asked, page: Page[Object]) -> bytes:
    encode = _encoding(asked)
    return document(
        "ListBucketResult",
        element("Name", bucket),
        element("Prefix", encode(asked.query.prefix)),
        maybe("StartAfter", encode(asked.start_after) or None),
        maybe("ContinuationToken", asked.token),
        maybe("NextContinuationToken", None if page.next is None else token_of(page.next)),
        element("KeyCount", page.count),
        *_common(asked, page, "MaxKeys"),
        *(_object(each, encode) for each in page.entries),
        *_prefixes(page.prefixes, encode),
    )


def list_versions(bucket: str, asked: Asked, page: Page[Version]) -> bytes:
    encode = _encoding(asked)
    return document(
        "ListVersionsResult",
        element("Name", bucket),
        element("Prefix", encode(asked.query.prefix)),
        element("KeyMarker", encode(asked.marker)),
        element("VersionIdMarker", asked.id_marker),
        *_next(page, encode, "NextVersionIdMarker"),
        *_common(asked, page, "MaxKeys"),
        *(_version(each, encode) for each in page.entries),
        *_prefixes(page.prefixes, encode),
    )


def list_uploads(bucket: str, asked: Asked, page: Page[Upload]) -> bytes:
    encode = _encoding(asked)
    return document(
        "ListMultipartUploadsResult",
        element("Bucket", bucket),
        element("KeyMarker", encode(asked.marker)),
        element("UploadIdMarker", asked.id_marker),
        *_next(page, encode, "NextUploadIdMarker"),
        element("Prefix", encode(asked.query.prefix)),
        *_common(asked, page, "MaxUploads"),
        *(_upload(each, encode) for each in page.entries),
        *_prefixes(page.prefixes, encode),
    )


def _common(asked: Asked, page: Page[Object] | Page[Version] | Page[Upload], limit: str) -> Sequence[str]:
    return (
        element(limit, asked.query.limit),
        maybe("Delimiter", _encoding(asked)(asked.query.delimiter) or None),
        maybe("EncodingType", "url" if asked.url else None),
        element("IsTruncated", page.next is not None),
    )


def _next(page: Page[Version] | Page[Upload], encode: Encode, name: str) -> Sequence[str]:
    if page.next is None:
        return ()
    return element("NextKeyMarker", encode(page.next.key)), maybe(name, page.next.id or None)


def _prefixes(prefixes: Iterable[str], encode: Encode) -> Iterable[str]:
    return (branch("CommonPrefixes", element("Prefix", encode(prefix))) for prefix in prefixes)


def _object(each: Object, encode: Encode) -> str:
    return branch(
        "Contents",
        element("Key", encode(each.key)),
        element("LastModified", times.iso(each.modified_ms)),
        _etag(each.etag),
        _checksum_names(each.checksum),
        element("Size", each.size),
        _owner(each.owner),
        element("StorageClass", each.storage_class),
    )


def _version(each: Version, encode: Encode) -> str:
    head = (
        element("Key", encode(each.key)),
        element("VersionId", each.id),
        element("IsLatest", each.latest),
        element("LastModified", times.iso(each.modified_ms)),
    )
    if each.etag is None:
        return branch("DeleteMarker", *head, _owner(each.owner))
    return branch(
        "Version",
        *head,
        _etag(each.etag),
        _checksum_names(each.checksum),
        element("Size", each.size),
        _owner(each.owner),
        element("StorageClass", each.storage_class),
    )


def _upload(each: Upload, encode: Encode) -> str:
    return branch(
        "Upload",
        element("Key", encode(each.key)),
        element("UploadId", each.id),
        _owner(each.owner, "Initiator"),
        _owner(each.owner),
        element("StorageClass", each.storage_class),
        element("Initiated", times.iso(each.initiated_ms)),
        maybe("ChecksumAlgorithm", each.algorithm),
        maybe("ChecksumType", each.kind),
    )


def list_parts(
    bucket: str,
    upload: Upload,
    parts: Sequence[Part],
    *,
    marker: int,
    limit: int,
    more: bool,
    url: bool = False,
) -> bytes:
    """``marker``: the number behind which the page begins."""
    encode = percent if url else str
    return document(
        "ListPartsResult",
        element("Bucket", bucket),
        element("Key", encode(upload.key)),
        element("UploadId", upload.id),
        _owner(upload.owner, "Initiator"),
        _owner(upload.owner),
        element("StorageClass", upload.storage_class),
        element("PartNumberMarker", marker),
        element("NextPartNumberMarker", parts[-1].number if parts else marker),
        element("MaxParts", limit),
        maybe("EncodingType", "url" if url else None),
        element("IsTruncated", more),
        maybe("ChecksumAlgorithm", upload.algorithm),
        maybe("ChecksumType", upload.kind),
        *(_part(each) for each in parts),
    )


def _part(each: Part) -> str:
    return branch(
        "Part",
        element("PartNumber", each.number),
        element("LastModified", times.iso(each.modified_ms)),
        _etag(each.etag),
        element("Size", each.size),
        _checksum(each.checksum),
    )


# -- writes ----------------------------------------------------------------------------------------------


def initiate_upload(bucket: str, key: str, id: str) -> bytes:
    parts = (element("Bucket", bucket), element("Key", key), element("UploadId", id))
    return document("InitiateMultipartUploadResult", *parts)


def complete_upload(
    location: str, bucket: str, key: str, etag: str, checksum: Checksum | None = None
) -> bytes:
    """``location``: the URL of the object."""
    return document(
        "CompleteMultipartUploadResult",
        element("Location", location),
        element("Bucket", bucket),
        element("Key", key),
        _etag(etag),
        _checksum(checksum),
        "" if checksum is None else element("ChecksumType", checksum.kind),
    )


def copy_object(etag: str, modified_ms: int, checksum: Checksum | None = None) -> bytes:
    kind = "" if checksum is None else element("ChecksumType", checksum.kind)
    return document("CopyObjectResult", *_copied(etag, modified_ms), kind, _checksum(checksum))


def copy_part(etag: str, modified_ms: int, checksum: Checksum | None = None) -> bytes:
    return document("CopyPartResult", *_copied(etag, modified_ms), _checksum(checksum))


def _copied(etag: str, modified_ms: int) -> Sequence[str]:
    return _etag(etag), element("LastModified", times.iso(modified_ms))


def post_object(location: str, bucket: str, key: str, etag: str) -> bytes:
    """For a form that wants status 201."""
    parts = (element("Location", location), element("Bucket", bucket), element("Key", key), _etag(etag))
    return document("PostResponse", *parts, namespace="")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of one key: gone, or ``error``. ``marker``: the version of a delete marker that was made or
    removed."""

    key: str
    version: str | None = None
    marker: str | None = None
    error: S3Error | None = None


def deleted(results: Iterable[Deleted], quiet: bool) -> bytes:
    shown = (each for each in results if each.error is not None or not quiet)
    return document("DeleteResult", *map(_deleted, shown))


def _deleted(each: Deleted) -> str:
    head = element("Key", each.key) + maybe("VersionId", each.version)
    if each.error is not None:
        return branch("Error", head, element("Code", each.error.code), element("Message", each.error.message))
    if each.marker is None:
        return branch("Deleted", head)
    marker = element("DeleteMarker", True) + element("DeleteMarkerVersionId", each.marker)
    return branch("Deleted", head, marker)


# -- reads of an object ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of GetObjectAttributes: what was not asked for is None. ``parts``: of the page, None where the object
    was not uploaded in parts; ``parts_count`` all of them."""

    etag: str | None = None
    checksum: Checksum | None = None
    storage_class: str | None = None
    size: int | None = None
    parts_count: int | None = None
    parts: Sequence[Part] = field(default_factory=tuple)
    parts_marker: int = 0
    parts_limit: int = 1000
    parts_more: bool = False


def attributes(found: Attributes) -> bytes:
    checksum = parts = ""
    if found.checksum is not None:
        kind = element("ChecksumType", found.checksum.kind)
        checksum = branch("Checksum", _checksum(found.checksum), kind)
    if found.parts_count is not None:
        parts = branch(
            "ObjectParts",
            element("PartsCount", found.parts_count),
            element("PartNumberMarker", found.parts_marker),
            element("NextPartNumberMarker", found.parts[-1].number if found.parts else found.parts_marker),
            element("MaxParts", found.parts_limit),
            element("IsTruncated", found.parts_more),
            *(
                branch(
                    "Part",
                    element("PartNumber", each.number),
                    element("Size", each.size),
                    _checksum(each.checksum),
                )
                for each in found.parts
            ),
        )
    return document(
        "GetObjectAttributesResponse",
        maybe("ETag", found.etag),  # the one place where S3 leaves the quotes out
        checksum,
        parts,
        maybe("StorageClass", found.storage_class),
        maybe("ObjectSize", found.size),
    )


def tagging(tags: dict[str, str]) -> bytes:
    rows = (branch("Tag", element("Key", key), element("Value", value)) for key, value in tags.items())
    return document("Tagging", branch("TagSet", *rows))


def retention(found: Retention) -> bytes:
    until = element("RetainUntilDate", times.iso(found.until_ms))
    return document("Retention", element("Mode", found.mode), until)


def legal_hold(on: bool) -> bytes:
    return document("LegalHold", element("Status", "ON" if on else "OFF"))


# -- buckets ---------------------------------------------------------------------------------------------


def location(region: str) -> bytes:
    """The oldest region is told by an empty element."""
    return document("LocationConstraint", "" if region == "us-east-1" else escape(region))


def versioning(status: str | None) -> bytes:
    """None: it was never set."""
    return document("VersioningConfiguration", maybe("Status", status))


def object_lock(rule: LockRule | None) -> bytes:
    default = ""
    if rule is not None:
        span = maybe("Days", rule.days) + maybe("Years", rule.years)
        default = branch("Rule", branch("DefaultRetention", element("Mode", rule.mode), span))
    return document("ObjectLockConfiguration", element("ObjectLockEnabled", "Enabled"), default)


def policy_status(public: bool) -> bytes:
    return document("PolicyStatus", element("IsPublic", public))


_UNSET: Final = {
    "GetBucketAccelerateConfiguration": document("AccelerateConfiguration"),
    "GetBucketLogging": document("BucketLoggingStatus"),
    "GetBucketNotificationConfiguration": document("NotificationConfiguration"),
    "GetBucketRequestPayment": document("RequestPaymentConfiguration", element("Payer", "BucketOwner")),
}
_UNSET_CODES: Final = {
    "GetBucketEncryption": "ServerSideEncryptionConfigurationNotFoundError",
    "GetBucketOwnershipControls": "OwnershipControlsNotFoundError",
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
    "GetBucketWebsite": "NoSuchWebsiteConfiguration",
    "GetPublicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
}


def unset(operation: str) -> bytes | None:
    """The answer to questions about what no bucket has here; None for all other operations. Raises S3Error
    where that is the answer."""
    if operation in _UNSET_CODES:
        raise S3Error(_UNSET_CODES[operation])
    return _UNSET.get(operation)
