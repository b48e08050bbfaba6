"""Names, numbers and small texts of requests: which are accepted, and the error for each that is not.

Owns the limits. After Amazon's "Bucket naming rules", "Object key naming", "Object metadata", "Multipart
upload limits" and "Object tags".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request, form_pairs

KEY_BYTES_MAX: Final = 1024
METADATA_BYTES_MAX: Final = 2048
PARTS_MAX: Final = 10_000
PART_SIZE_MIN: Final = 5 << 20  # of every part but the last
PUT_SIZE_MAX: Final = 5 << 30  # of one request, a part or an object
OBJECT_SIZE_MAX: Final = 5 << 40
PAGE_MAX: Final = 1000
DELETES_MAX: Final = 1000
OBJECT_TAGS_MAX: Final = 10
BUCKET_TAGS_MAX: Final = 50
METADATA_PREFIX: Final = "x-amz-meta-"

_BUCKET = re.compile(r"(?=.{3,63}\Z)[a-z0-9](?:[a-z0-9-]|[.](?![.]))*[a-z0-9]", re.ASCII)
_VERSION = re.compile(r"null|[0-9a-f]{16}", re.ASCII)
_IP = re.compile(r"[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+", re.ASCII)
_TAKEN_PREFIXES: Final = ("xn--", "sthree-", "amzn-s3-demo-")
_TAKEN_SUFFIXES: Final = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_bucket(name: str) -> str:
    """Raises InvalidBucketName."""
    taken = name.startswith(_TAKEN_PREFIXES) or name.endswith(_TAKEN_SUFFIXES)
    if not _BUCKET.fullmatch(name) or _IP.fullmatch(name) or taken:
        raise S3Error("InvalidBucketName", BucketName=name)
    return name


def check_key(key: str) -> str:
    size = len(key.encode())
    if size > KEY_BYTES_MAX:
        raise S3Error("KeyTooLongError", Size=str(size), MaxSizeAllowed=str(KEY_BYTES_MAX))
    if not key:
        raise S3Error("InvalidArgument", "A key has at least one character.")
    return key


def metadata_of(request: Request) -> dict[str, str]:
    """The user's metadata, names in lower case and without their prefix. Raises MetadataTooLarge."""
    found = {
        name.removeprefix(METADATA_PREFIX): request.header(name) or ""
        for name in request.names
        if name.startswith(METADATA_PREFIX)
    }
    return check_metadata(found)


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    size = sum(len(_bytes(name)) + len(_bytes(value)) for name, value in metadata.items())
    if size > METADATA_BYTES_MAX:
        raise S3Error("MetadataTooLarge", Size=str(size), MaxSizeAllowed=str(METADATA_BYTES_MAX))
    return metadata


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def number(name: str, text: str | None, least: int, most: int, default: int) -> int:
    """Of a parameter. Raises InvalidArgument that names it."""
    if text is None or text == "":
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or not least <= int(text) <= most:
        known = {"ArgumentName": name, "ArgumentValue": text}
        raise S3Error("InvalidArgument", f"{name} is a number from {least} to {most}.", **known)
    return int(text)


def part_number(text: str | None) -> int:
    return number("partNumber", text or "0", 1, PARTS_MAX, 0)


def page_size(name: str, text: str | None) -> int:
    """``max-keys`` and the like: what is more than a page is a page."""
    return min(number(name, text, 0, 2**31 - 1, PAGE_MAX), PAGE_MAX)


def part_marker(text: str | None) -> int:
    return number("part-number-marker", text, 0, 2**31 - 1, 0)


def check_put_size(size: int) -> None:
    if size > PUT_SIZE_MAX:
        known = {"ProposedSize": str(size), "MaxSizeAllowed": str(PUT_SIZE_MAX)}
        raise S3Error("EntityTooLarge", **known)


def percent(text: str) -> str:
    """As keys are told with ``encoding-type=url``."""
    return quote(text, safe="/")


def encoding_type(text: str | None) -> bool:
    """Whether keys are to be percent-encoded in a listing."""
    if text not in (None, "", "url"):
        raise S3Error("InvalidArgument", "encoding-type is url, or absent.")
    return text == "url"


# -- tags ------------------------------------------------------------------------------------------------


def tags_of_header(text: str | None) -> dict[str, str]:
    """``x-amz-tagging``: as a query is written."""
    if not text:
        return {}
    try:
        pairs = form_pairs(text, BUCKET_TAGS_MAX)
    except ValueError:
        raise S3Error("InvalidArgument", "x-amz-tagging is written as a query: a=b&c=d.") from None
    return check_tags(pairs, OBJECT_TAGS_MAX)


def check_tags(pairs: Iterable[tuple[str, str]], most: int) -> dict[str, str]:
    """Raises InvalidTag."""
    tags: dict[str, str] = {}
    for key, value in pairs:
        if not 1 <= len(key) <= 128 or len(value) > 256:
            raise S3Error("InvalidTag", "A tag's key has 1 to 128 characters, its value at most 256.")
        if not (_fit(key) and _fit(value)) or key.startswith("aws:"):
            raise S3Error("InvalidTag", "Tags have letters, digits, spaces and _.:/=+-@, and no key aws:...")
        if key in tags:
            raise S3Error("InvalidTag", "A tag's key is given twice.")
        tags[key] = value
    if len(tags) > most:
        # The words are ours, the code is Amazon's: it has none of its own for this.
        raise S3Error("BadRequest" if most == OBJECT_TAGS_MAX else "InvalidTag", f"At most {most} tags.")
    return tags


def _fit(text: str) -> bool:
    return all(each in "_.:/=+-@" or unicodedata.category(each)[0] in "LNZM" for each in text)


# -- versions --------------------------------------------------------------------------------------------


def check_version(text: str | None) -> str | None:
    """None: none is named. Raises InvalidArgument for what can be no version's id."""
    if text is not None and not _VERSION.fullmatch(text):
        known = {"ArgumentName": "versionId", "ArgumentValue": text}
        raise S3Error("InvalidArgument", "Invalid version id specified", **known)
    return text


def check_version_marker(text: str) -> None:
    """Of a page: a version's id, or what NextVersionIdMarker told. Raises InvalidArgument."""
    check_version(text.removeprefix("null.") or None)


# -- the source of a copy --------------------------------------------------------------------------------


def copy_source(text: str) -> tuple[str, str, str | None]:
    """Bucket, key and version of ``x-amz-copy-source``. Raises InvalidArgument."""
    path, _, query = text.partition("?")
    try:
        pairs = form_pairs(query, 1) if query else []
        ((whole, _),) = form_pairs(path.replace("+", "%2B").replace("=", "%3D").replace("&", "%26"), 1)
    except ValueError:
        raise _bad_source() from None
    bucket, _, key = whole.removeprefix("/").partition("/")
    if not bucket or not key or (pairs and pairs[0][0] != "versionId"):
        raise _bad_source()
    return check_bucket(bucket), check_key(key), check_version(pairs[0][1] if pairs else None)


def _bad_source() -> S3Error:
    wanted = "x-amz-copy-source is BUCKET/KEY, percent-encoded, and ?versionId=ID where one is meant."
    return S3Error("InvalidArgument", wanted)
