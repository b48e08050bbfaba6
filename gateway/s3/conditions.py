"""Conditional requests: whether an object, as it is now, is what the client wants to act on.

Owns the precedence: a condition on the ETag outweighs the one on the time beside it, as RFC 9110 (13.2.2) and
Amazon's GetObject have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from moorage.gateway.s3 import times
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request

_COPY: Final = "x-amz-copy-source-"
_TAG = re.compile(r'[ \t]*(W/)?(?:"([^"]*)"|([^",\s]+))[ \t]*(?:,|$)')
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Conditions:
    """ETags without their quotes, ``*`` for any; times in milliseconds. None: not asked."""

    match: frozenset[str] | None = None
    none_match: frozenset[str] | None = None
    modified_since_ms: int | None = None
    unmodified_since_ms: int | None = None

    @property
    def asked(self) -> bool:
        return self != Conditions()


def of_request(request: Request, of_source: bool = False) -> Conditions:
    """``of_source``: those about the source of a copy. A time that cannot be read is no condition."""
    prefix = _COPY if of_source else ""
    modified, unmodified = (
        request.header(f"{prefix}if-{name}") for name in ("modified-since", "unmodified-since")
    )
    return Conditions(
        _tags(request.header(f"{prefix}if-match"), strong=True),
        _tags(request.header(f"{prefix}if-none-match"), strong=False),
        None if modified is None else times.parse_http(modified),
        None if unmodified is None else times.parse_http(unmodified),
    )


def _tags(text: str | None, strong: bool) -> frozenset[str] | None:
    """A weak one is never the same for ``If-Match``."""
    if text is None:
        return None
    found, at = set(), 0
    while (match := _TAG.match(text, at)) is not None and match.end() > at:
        at = match.end()
        if not (strong and match[1]):
            found.add(match[2] if match[2] is not None else match[3])
    return frozenset(found)


def check_read(conditions: Conditions, etag: str, modified_ms: int) -> None:
    """Of an object that is there: raises NotModified, or PreconditionFailed that names the header."""
    failed = _failed(conditions, etag, modified_ms)
    if failed in ("If-None-Match", "If-Modified-Since"):
        raise S3Error("NotModified")
    if failed is not None:
        raise S3Error("PreconditionFailed", Condition=failed)


def check_copy(conditions: Conditions, etag: str, modified_ms: int) -> None:
    """Of the source of a copy: raises PreconditionFailed, also where a read would be NotModified."""
    failed = _failed(conditions, etag, modified_ms)
    if failed is not None:
        raise S3Error("PreconditionFailed", Condition=_COPY + failed)


def _failed(conditions: Conditions, etag: str, modified_ms: int) -> str | None:
    modified_ms -= modified_ms % 1000  # as precise as the client was told
    if conditions.match is not None:
        if not _same(conditions.match, etag):
            return "If-Match"
    elif conditions.unmodified_since_ms is not None and modified_ms > conditions.unmodified_since_ms:
        return "If-Unmodified-Since"
    if conditions.none_match is not None:
        if _same(conditions.none_match, etag):
            return "If-None-Match"
    elif conditions.modified_since_ms is not None and modified_ms <= conditions.modified_since_ms:
        return "If-Modified-Since"
    return None


def check_write(conditions: Conditions, etag: str | None) -> None:
    """Of a write or a delete; ``etag`` of the object that it would replace, None where there is none (or a
    delete marker). To be asked at the moment of the commit."""
    if conditions.none_match is not None:
        if conditions.none_match != {ANY}:
            raise S3Error("NotImplemented", "If-None-Match of a write can only be *.")
        if etag is not None:
            raise S3Error("PreconditionFailed", Condition="If-None-Match")
    if conditions.match is not None:
        if etag is None:
            raise S3Error("NoSuchKey")
        if not _same(conditions.match, etag):
            raise S3Error("PreconditionFailed", Condition="If-Match")


def _same(tags: frozenset[str], etag: str) -> bool:
    return ANY in tags or etag in tags


def range_applies(request: Request, etag: str, modified_ms: int) -> bool:
    """``If-Range``: a part is wanted only of the very object that it names."""
    stated = request.header("if-range")
    if stated is None:
        return True
    at_ms = times.parse_http(stated)
    if at_ms is not None:
        return modified_ms - modified_ms % 1000 == at_ms
    return etag in (_tags(stated, strong=True) or ())
