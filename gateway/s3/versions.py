"""Versions of objects, as S3 speaks of them: what answers tell of one, or of one that is not there.

Owns when a version is told at all: where versions of the bucket were ever on. Pure.
"""

from __future__ import annotations

from moorage.client.objects.bucket import Deletion, ObjectInfo
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.records import Record
from moorage.wire.errors import NotFound

NULL = "null"
SOURCE = "x-amz-copy-source-version-id"
_ID, _MARKER = "x-amz-version-id", "x-amz-delete-marker"


def told(record: Record, info: ObjectInfo, header: str = _ID) -> dict[str, str]:
    """Headers of an answer about an object. ``record`` may be of a moment ago: an ID says that versions are
    on by now."""
    return {} if record.versioning is None and info.version == NULL else {header: info.version}


def deletion_told(done: Deletion) -> dict[str, str]:
    """Headers of an answer."""
    headers = {} if done.version is None else {_ID: done.version}
    return headers | {_MARKER: "true"} if done.marker else headers


def missing(key: str, named: str | None, error: NotFound) -> S3Error:
    """What is told of an object, or of its version ``named``, that is not there. In ``error`` is the delete
    marker that is there in its place."""
    marker = error.details.get("marker")
    if named is None:
        found = S3Error("NoSuchKey", Key=key)
    elif marker is None:
        found = S3Error("NoSuchVersion", Key=key, VersionId=named)
    else:
        found = S3Error(
            "MethodNotAllowed", "A delete marker can only be deleted.", ResourceType="DeleteMarker"
        )
        found.headers["Allow"] = "DELETE"
    if marker is not None:
        found.headers |= {_ID: marker, _MARKER: "true"}
    return found
