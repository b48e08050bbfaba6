"""The XML documents that requests bring, as values; ``cors.py``, ``lifecycle.py`` and ``acl.py`` have theirs.

Owns how large they may be. What cannot be read is MalformedXML; a value that S3 has a code for has that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from moorage.gateway.s3 import checksums, names, times
from moorage.gateway.s3.checksums import Algorithm
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.markup import Malformed, Node, integer, parse

SMALL_MAX: Final = 64 << 10
# 10000 parts with each checksum, 1000 keys of 1024 bytes that are all references: some megabytes are right.
COMPLETE_MAX: Final = 4 << 20
DELETE_MAX: Final = 8 << 20
_NODES_MAX: Final = 10_000


@contextlib.contextmanager
def reading(code: str = "MalformedXML") -> Iterator[None]:
    try:
        yield
    except Malformed as error:
        raise S3Error(code, f"The XML cannot be used: {error}.") from None


def tree(body: bytes, root: str, size_max: int = SMALL_MAX, nodes_max: int = _NODES_MAX) -> Node:
    if not body:
        raise S3Error("MissingRequestBodyError")
    return parse(body, root, size_max=size_max, nodes_max=nodes_max)


# -- multipart uploads -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompletedPart:
    number: int
    etag: str
    checksums: dict[Algorithm, bytes] = field(default_factory=dict)


def completed_parts(body: bytes) -> list[CompletedPart]:
    """In ascending order of their numbers, one at least. Raises InvalidPartOrder for another one."""
    with reading():
        root = tree(body, "CompleteMultipartUpload", COMPLETE_MAX, 8 * names.PARTS_MAX)
        root.expect("Part")
        parts = [_part(node) for node in root.children]
        if not 1 <= len(parts) <= names.PARTS_MAX:
            raise Malformed(f"it lists 1 to {names.PARTS_MAX} parts")
    if any(one.number >= other.number for one, other in pairwise(parts)):
        raise S3Error("InvalidPartOrder")
    return parts


def _part(node: Node) -> CompletedPart:
    node.expect("PartNumber", "ETag", *(each.element for each in Algorithm))
    number = integer("PartNumber", node.one("PartNumber").leaf(), 1)
    if number > names.PARTS_MAX:
        raise Malformed(f"PartNumber is at most {names.PARTS_MAX}")
    found = {}
    for algorithm in Algorithm:
        text = node.get(algorithm.element)
        if text is not None:
            value = checksums.decode(text, algorithm.size)
            if value is None:
                raise Malformed(f"{algorithm.element} is not the base64 of {algorithm.size} bytes")
            found[algorithm] = value
    return CompletedPart(number, node.one("ETag").leaf().strip().strip('"'), found)


# -- deletes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deletion:
    """One of many. ``etag``, ``modified_ms`` and ``size`` are conditions."""

    key: str
    version: str | None = None
    etag: str | None = None
    modified_ms: int | None = None
    size: int | None = None


def deletions(body: bytes) -> tuple[list[Deletion], bool]:
    """And whether only failures are to be told."""
    with reading():
        root = tree(body, "Delete", DELETE_MAX, 8 * names.DELETES_MAX)
        root.expect("Object", "Quiet")
        found = [_deletion(node) for node in root.every("Object")]
        if not 1 <= len(found) <= names.DELETES_MAX:
            raise Malformed(f"it lists 1 to {names.DELETES_MAX} objects")
        return found, _flag(root, "Quiet")


def _deletion(node: Node) -> Deletion:
    node.expect("Key", "VersionId", "ETag", "LastModifiedTime", "Size")
    key = node.one("Key").leaf()
    if not key:
        raise Malformed("a Key is empty")
    stated = node.get("LastModifiedTime")
    modified_ms = None
    if stated is not None:
        modified_ms = times.parse_http(stated)
        modified_ms = times.parse_iso(stated) if modified_ms is None else modified_ms
        if modified_ms is None:
            raise Malformed("LastModifiedTime is not a time")
    etag = node.get("ETag")
    return Deletion(
        names.check_key(key),
        node.get("VersionId") or None,
        None if etag is None else etag.strip().strip('"'),
        modified_ms,
        node.number("Size"),
    )


def _flag(node: Node, name: str) -> bool:
    return node.maybe(name) is not None and node.word(name, "true", "false") == "true"


# -- buckets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Creation:
    """``location``: the region that was asked for, "" for any."""

    location: str = ""
    tags: dict[str, str] = field(default_factory=dict)


def creation(body: bytes) -> Creation:
    """Of CreateBucket, whose body may be empty."""
    if not body:
        return Creation()
    with reading():
        root = tree(body, "CreateBucketConfiguration")
        root.expect("LocationConstraint", "Tags")
        tags = root.maybe("Tags")
        found = {} if tags is None else names.check_tags(_tag_pairs(tags), names.BUCKET_TAGS_MAX)
        return Creation((root.get("LocationConstraint") or "").strip(), found)


def versioning(body: bytes) -> str:
    """``Enabled`` or ``Suspended``."""
    with reading():
        root = tree(body, "VersioningConfiguration")
        root.expect("Status", "MfaDelete")
        if root.maybe("MfaDelete") is not None and root.word("MfaDelete", "Enabled", "Disabled") == "Enabled":
            raise S3Error("NotImplemented", "MFA Delete is not implemented here.")
        if root.maybe("Status") is None:
            raise S3Error("IllegalVersioningConfigurationException", "Status is missing.")
        return root.word("Status", "Enabled", "Suspended")


def tagging(body: bytes, most: int) -> dict[str, str]:
    """``most``: tags, of an object or of a bucket."""
    with reading():
        root = tree(body, "Tagging")
        root.expect("TagSet")
        return names.check_tags(_tag_pairs(root.one("TagSet")), most)


def _tag_pairs(node: Node) -> list[tuple[str, str]]:
    node.expect("Tag")
    return [tag_pair(each) for each in node.children]


def tag_pair(node: Node) -> tuple[str, str]:
    node.expect("Key", "Value")
    return node.one("Key").leaf(), node.one("Value").leaf()


# -- locks -----------------------------------------------------------------------------------------------

MODES: Final = ("GOVERNANCE", "COMPLIANCE")
_DAYS_MAX: Final = 36_500
_YEARS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class LockRule:
    """What a new object gets. One of ``days`` and ``years`` is set."""

    mode: str
    days: int | None = None
    years: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    mode: str
    until_ms: int


def object_lock(body: bytes) -> LockRule | None:
    """The bucket's default; None: locks are possible, and no object gets one by itself."""
    with reading():
        root = tree(body, "ObjectLockConfiguration")
        root.expect("ObjectLockEnabled", "Rule")
        root.word("ObjectLockEnabled", "Enabled")
        rule = root.maybe("Rule")
        if rule is None:
            return None
        rule.expect("DefaultRetention")
        default = rule.one("DefaultRetention")
        default.expect("Mode", "Days", "Years")
        found = LockRule(default.word("Mode", *MODES), default.number("Days", 1), default.number("Years", 1))
        if (found.days is None) == (found.years is None):
            raise Malformed("DefaultRetention has either Days or Years")
    if (found.days or 0) > _DAYS_MAX or (found.years or 0) > _YEARS_MAX:
        raise S3Error("InvalidArgument", f"At most {_DAYS_MAX} days, or {_YEARS_MAX} years.")
    return found


def retention(body: bytes) -> Retention | None:
    """None: it is to be taken away."""
    with reading():
        root = tree(body, "Retention")
        root.expect("Mode", "RetainUntilDate")
        if not root.children:
            return None
        until_ms = times.parse_iso(root.one("RetainUntilDate").leaf())
        if until_ms is None:
            raise Malformed("RetainUntilDate is not a time")
        return Retention(root.word("Mode", *MODES), until_ms)


def legal_hold(body: bytes) -> bool:
    with reading():
        root = tree(body, "LegalHold")
        root.expect("Status")
        return root.word("Status", "ON", "OFF") == "ON"
