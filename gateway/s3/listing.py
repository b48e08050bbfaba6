"""Pages of keys: prefix, delimiter and where to go on, over any source that gives keys in order.

Owns what a request asks for and how keys roll up into common prefixes. What a page costs grows with the
page and not with the bucket: behind each common prefix the source is asked anew, for what comes after all
its keys.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from moorage.gateway.s3 import names
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.wire.errors import invariant

# Of the first question behind a common prefix: most of what it gives may be under the next one.
_FEW: Final = 8
_LAST_CHARACTER: Final = "\U0010ffff"  # no text sorts behind it; four bytes


class Entry(Protocol):
    """``key`` orders entries, by its UTF-8; ``id`` tells those of one key apart (a version, an upload), and
    is "" where a key has one entry."""

    @property
    def key(self) -> str: ...

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place behind an entry. Without ``id``: behind all entries of ``key``, which need not exist."""

    key: str = ""
    id: str = ""


# What comes behind a place, at most so many, and whether there is more behind those.
Fetch = Callable[[Cursor, int], Awaitable[tuple[Sequence[E], bool]]]


@dataclass(frozen=True, slots=True)
class Query:
    prefix: str = ""
    delimiter: str = ""
    after: Cursor = Cursor()
    limit: int = names.PAGE_MAX


@dataclass(slots=True)
class Page(Generic[E]):
    """``next``: where the next page begins; None when there is none."""

    entries: list[E] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next: Cursor | None = None

    @property
    def count(self) -> int:
        return len(self.entries) + len(self.prefixes)


async def page(fetch: Fetch[E], query: Query) -> Page[E]:
    found: Page[E] = Page()
    if query.limit == 0:
        return found
    rolled, last = _common(query.after.key, query), query.after
    at = query.after if query.after.key >= query.prefix else Cursor(_before(query.prefix))
    at = _behind(rolled, at)
    ask = _FEW if query.delimiter else query.limit
    while True:
        entries, more = await fetch(at, min(ask, query.limit - found.count + 1))
        for entry in entries:
            at = Cursor(entry.key, entry.id)
            if not entry.key.startswith(query.prefix):
                if entry.key > query.prefix:
                    return found
                continue
            common = _common(entry.key, query)
            if common and common == rolled:
                continue
            if found.count == query.limit:
                found.next = last
                return found
            rolled = common
            if common:
                found.prefixes.append(common)
                last = Cursor(common)
            else:
                found.entries.append(entry)
                last = at
        if not more:
            return found
        invariant(bool(entries), "a source that has more gives something", after=at.key)
        ask = _FEW if rolled else 2 * ask
        at = _behind(rolled, at)


def _common(key: str, query: Query) -> str:
    """The common prefix that a key rolls up into; "" for none."""
    if not query.delimiter or not key.startswith(query.prefix):
        return ""
    end = key.find(query.delimiter, len(query.prefix))
    return "" if end < 0 else key[: end + len(query.delimiter)]


def _behind(prefix: str, at: Cursor) -> Cursor:
    """Behind all keys that have this prefix, if that is further than ``at``."""
    end = _ceiling(prefix) if prefix else ""
    return Cursor(end) if end > at.key else at


def _before(prefix: str) -> str:
    """Behind this there is nothing but what has the prefix or comes after it (or keys that have no right to
    be so odd: they are passed over one by one)."""
    if not prefix or prefix[-1] == "\0":
        return prefix[:-1]
    before = ord(prefix[-1]) - 1
    if 0xD800 <= before <= 0xDFFF:  # there are no such characters
        before = 0xD7FF
    return _ceiling(prefix[:-1] + chr(before))


def _ceiling(prefix: str) -> str:
    """As far behind the keys with that prefix as a key can be."""
    return prefix + _LAST_CHARACTER * ((names.KEY_BYTES_MAX - len(prefix.encode())) // 4)


# -- what a request asks for -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of a listing. ``marker`` and ``id_marker`` as sent, whatever they are called;
    ``token`` and ``start_after`` of V2 alone. ``url``: keys are to be percent-encoded in the answer."""

    query: Query
    url: bool = False
    marker: str = ""
    id_marker: str = ""
    token: str | None = None
    start_after: str = ""
    fetch_owner: bool = False


def asked(request: Request, operation: str) -> Asked:
    """``operation``: the name of one that lists keys. Raises S3Error."""

    def given(name: str) -> str:
        return request.parameter(name) or ""

    url = names.encoding_type(request.parameter("encoding-type"))
    size = "max-uploads" if operation == "ListMultipartUploads" else "max-keys"
    limit = names.page_size(size, request.parameter(size))
    prefix, delimiter = given("prefix"), given("delimiter")
    match operation:
        case "ListObjects":
            marker = given("marker")
            return Asked(Query(prefix, delimiter, Cursor(marker), limit), url, marker)
        case "ListObjectsV2":
            token, start = request.parameter("continuation-token"), given("start-after")
            after = Cursor(start) if token is None else cursor_of(token)
            owner = given("fetch-owner") == "true"
            query = Query(prefix, delimiter, after, limit)
            return Asked(query, url, token=token, start_after=start, fetch_owner=owner)
        case "ListObjectVersions" | "ListMultipartUploads":
            kind = "version" if operation == "ListObjectVersions" else "upload"
            marker, id_marker = given("key-marker"), given(f"{kind}-id-marker")
            if kind == "version":
                names.check_version_marker(id_marker)
            if id_marker and not marker:
                if kind == "version":
                    raise S3Error("InvalidArgument", "version-id-marker needs a key-marker.")
                id_marker = ""  # as Amazon's page says
            return Asked(Query(prefix, delimiter, Cursor(marker, id_marker), limit), url, marker, id_marker)
    raise AssertionError(f"{operation} lists no keys")


def token_of(cursor: Cursor) -> str:
    """A continuation token: opaque to clients, and no secret. The first byte is its version."""
    return base64.urlsafe_b64encode(f"1{cursor.id}\0{cursor.key}".encode()).decode()


def cursor_of(token: str) -> Cursor:
    """Raises InvalidArgument."""
    try:
        text = base64.b64decode(token, b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    id, zero, key = text[1:].partition("\0")
    if not text.startswith("1") or not zero:
        raise S3Error("InvalidArgument", "The continuation token is not one of ours.")
    return Cursor(key, id)
