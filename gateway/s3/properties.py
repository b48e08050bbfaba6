"""What S3 keeps of an object beside its bytes, as attributes of the object.

Owns the entry ``s3`` of an object's attributes; what other programs note beside it stays as it is. An object
that was put by another way has no such entry, and the properties of one that was put without any headers.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moorage.client.objects.bucket import Lock
from moorage.gateway.s3 import names
from moorage.gateway.s3.acl import Acl, Grant, Permission
from moorage.gateway.s3.body import Digests
from moorage.gateway.s3.checksums import Algorithm, Kind, encode
from moorage.gateway.s3.chunked import content_encoding
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.results import Checksum

ENTRY: Final = "s3"
_HEADERS: Final = ("cache-control", "content-disposition", "content-language", "content-type", "expires")
_USUAL_TYPE: Final = "binary/octet-stream"
# Headers of requests that ask for what there is not: to pass over them would be a promise that is not kept.
_REFUSED: Final = (
    *("x-amz-server-side-encryption", "x-amz-website-redirect-location", "x-amz-write-offset-bytes"),
    "x-amz-copy-source-server-side-encryption",
)


@dataclass(frozen=True, slots=True)
class Properties:
    """``headers``: of the content, names in lower case. ``grants``: None where nobody has set a list.
    ``algorithm`` and ``kind``: of the checksum that an upload in parts is to have, and the ``lock`` that was
    asked for; ``upload``: the one that the object was made by."""

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    grants: tuple[Grant, ...] | None = None
    checksum: Checksum | None = None
    algorithm: Algorithm | None = None
    kind: Kind | None = None
    upload: str = ""
    lock: Lock | None = None

    def with_digests(self, digests: Digests) -> Properties:
        if digests.algorithm is None or digests.checksum is None:
            return self
        return replace(self, checksum=Checksum(digests.algorithm, encode(digests.checksum)))

    def acl(self, owner: str) -> Acl:
        """``owner``: of the bucket, who has all objects in it."""
        everything = (Grant(owner, Permission.FULL_CONTROL),)
        return Acl(owner, everything if self.grants is None else self.grants)

    def told(self) -> dict[str, str]:
        """As headers of an answer, names in lower case."""
        found = {"content-type": _USUAL_TYPE, **self.headers}
        found |= {names.METADATA_PREFIX + name: value for name, value in self.metadata.items()}
        if self.tags:
            found["x-amz-tagging-count"] = str(len(self.tags))
        return found


def checksum_headers(checksum: Checksum | None) -> dict[str, str]:
    if checksum is None:
        return {}
    return {checksum.algorithm.header: checksum.text, "x-amz-checksum-type": checksum.kind}


# -- of a request ----------------------------------------------------------------------------------------


def of_request(request: Request) -> Properties:
    """What is to be kept of an object that it puts, but for lists of access. Raises S3Error."""
    check_supported(request)
    headers = {name: value for name in _HEADERS if (value := request.header(name)) is not None}
    if (encoding := content_encoding(request)) is not None:
        headers["content-encoding"] = encoding
    metadata = names.metadata_of(request)
    for name, value in (*headers.items(), *metadata.items()):
        _check_text(name, value)
    return Properties(headers, metadata, names.tags_of_header(request.header("x-amz-tagging")))


def check_supported(request: Request) -> None:
    """Raises NotImplemented for headers that ask for what there is not."""
    for name in request.names:
        if name.startswith(_REFUSED):
            raise S3Error("NotImplemented", f"The header {name} asks for what is not implemented here.")
    if request.header("x-amz-storage-class") not in (None, "STANDARD"):
        raise S3Error("InvalidStorageClass", "There is one storage class here: STANDARD.")


def _check_text(name: str, value: str) -> None:
    try:
        (name + value).encode()
    except UnicodeEncodeError:
        raise S3Error("InvalidArgument", f"The header {name!a} is not UTF-8.") from None


# -- as attributes ---------------------------------------------------------------------------------------


def to_attributes(found: Properties, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``beside``: the attributes that are there, of which those of others are kept."""
    entry: dict[str, Any] = {
        "headers": dict(found.headers),
        "metadata": dict(found.metadata),
        "tags": dict(found.tags),
        "grants": None
        if found.grants is None
        else [[each.grantee, str(each.permission)] for each in found.grants],
        "checksum": _packed(found.checksum),
        "algorithm": None if found.algorithm is None else str(found.algorithm),
        "kind": None if found.kind is None else str(found.kind),
        "upload": found.upload,
        "lock": None if found.lock is None else [found.lock.mode, found.lock.until_ms, found.lock.hold],
    }
    return {**(beside or {}), ENTRY: {name: value for name, value in entry.items() if value or value == []}}


def _packed(checksum: Checksum | None) -> list[str] | None:
    return None if checksum is None else [str(checksum.algorithm), checksum.text, str(checksum.kind)]


def of_attributes(attributes: Mapping[str, Any]) -> Properties:
    entry = attributes.get(ENTRY)
    if not isinstance(entry, dict):
        return Properties()
    grants, algorithm, kind = entry.get("grants"), entry.get("algorithm"), entry.get("kind")
    lock = entry.get("lock")
    return Properties(
        entry.get("headers", {}),
        entry.get("metadata", {}),
        entry.get("tags", {}),
        None if grants is None else tuple(Grant(who, Permission(what)) for who, what in grants),
        checksum_of(attributes),
        None if algorithm is None else Algorithm(algorithm),
        None if kind is None else Kind(kind),
        entry.get("upload", ""),
        None if lock is None else Lock(*lock),
    )


def checksum_of(attributes: Mapping[str, Any]) -> Checksum | None:
    entry = attributes.get(ENTRY)
    packed = entry.get("checksum") if isinstance(entry, dict) else None
    return None if packed is None else Checksum(Algorithm(packed[0]), packed[1], Kind(packed[2]))
