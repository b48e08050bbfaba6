"""Pages of keys against a plain list of them, and what they cost."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.listing import Asked, Cursor, Page, Query, asked, cursor_of, page, token_of
from moorage.gateway.s3.request import Request


@dataclass(frozen=True)
class Key:
    key: str
    id: str = ""


class Source:
    """Keys in order; ``ids`` of each, newest first. Counts what it is asked for."""

    def __init__(self, keys: Sequence[str], ids: Sequence[str] = ("",), most: int = 1 << 60) -> None:
        self.entries = [Key(key, id) for key in sorted(keys) for id in ids]
        self.ids = list(ids)
        self.most = most
        self.asked = self.given = 0

    async def fetch(self, after: Cursor, limit: int) -> tuple[Sequence[Key], bool]:
        assert limit > 0 and len(after.key.encode()) <= 1024
        keys = [entry.key for entry in self.entries]
        if after.id:
            at = keys.index(after.key) + self.ids.index(after.id) + 1
        else:
            at = bisect_right(keys, after.key) if after.key else 0
        found = self.entries[at : at + min(limit, self.most)]
        self.asked += 1
        self.given += len(found)
        return found, at + len(found) < len(self.entries)

    def page(self, query: Query) -> Page[Key]:
        return asyncio.run(page(self.fetch, query))


def expected(keys: list[str], query: Query) -> tuple[list[str], list[str], bool]:
    """As Amazon describes it, over all keys."""
    items: dict[str, bool] = {}
    for key in sorted(keys):
        if not key.startswith(query.prefix):
            continue
        end = key.find(query.delimiter, len(query.prefix)) if query.delimiter else -1
        name = key if end < 0 else key[: end + len(query.delimiter)]
        if name > query.after.key:
            items.setdefault(name, end >= 0)
    listed = list(items)[: query.limit]
    plain = [name for name in listed if not items[name]]
    return plain, [name for name in listed if items[name]], bool(listed) and len(items) > len(listed)


ALPHABET = "ab/\0\ud7ff\ue000\U0010ffff"
NAMES = st.text(ALPHABET, min_size=1, max_size=6)
QUERIES = st.builds(
    Query,
    prefix=st.text(ALPHABET, max_size=3),
    delimiter=st.sampled_from(["", "/", "a", "/a"]),
    after=st.builds(Cursor, st.text(ALPHABET, max_size=4)),
    limit=st.integers(0, 6),
)


@given(keys=st.lists(NAMES, unique=True, max_size=40), query=QUERIES, most=st.integers(1, 5))
def test_a_page_is_what_a_plain_list_gives(keys: list[str], query: Query, most: int) -> None:
    found = Source(keys, most=most).page(query)
    plain, prefixes, more = expected(keys, query)
    assert [entry.key for entry in found.entries] == plain
    assert found.prefixes == prefixes
    assert (found.next is not None) == more
    if found.next is not None:
        assert found.next == Cursor(max(plain + prefixes))


@given(keys=st.lists(NAMES, unique=True, max_size=40), query=QUERIES)
def test_pages_together_are_the_whole(keys: list[str], query: Query) -> None:
    source = Source(keys)
    query = Query(query.prefix, query.delimiter, query.after, max(1, query.limit))
    plain: list[str] = []
    prefixes: list[str] = []
    after: Cursor | None = query.after
    while after is not None:
        found = source.page(Query(query.prefix, query.delimiter, after, query.limit))
        plain += [entry.key for entry in found.entries]
        prefixes += found.prefixes
        after = found.next
    whole = Query(query.prefix, query.delimiter, query.after, 1000)
    assert (plain, prefixes, False) == expected(keys, whole)


@given(
    keys=st.lists(NAMES, unique=True, max_size=12),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 5),
)
def test_versions_of_a_key_are_apart(keys: list[str], delimiter: str, limit: int) -> None:
    source = Source(keys, ("v3", "v2", "v1"))
    found: list[Key] = []
    after: Cursor | None = Cursor()
    while after is not None:
        part = source.page(Query(delimiter=delimiter, after=after, limit=limit))
        found += part.entries
        after = part.next
    plain, _, _ = expected(keys, Query(delimiter=delimiter))
    assert found == [entry for entry in source.entries if entry.key in plain]


def test_cost_grows_with_the_page() -> None:
    keys = [f"d{folder:03d}/{file:04d}" for folder in range(30) for file in range(300)]
    source = Source(keys)
    found = source.page(Query(delimiter="/"))
    assert found.prefixes == [f"d{folder:03d}/" for folder in range(30)]
    assert source.asked <= 31 and source.given <= 31 * 8
    source = Source(keys)
    assert len(source.page(Query(prefix="d020/", delimiter="/", limit=100)).entries) == 100
    assert source.given <= 2 * 101 and source.asked <= 8
    source = Source(keys)
    assert len(source.page(Query(prefix="d02", limit=100)).entries) == 100
    assert source.given == 101  # and nothing of what is before
    source = Source(keys)
    assert source.page(Query(limit=1000)).next == Cursor(keys[999])
    assert source.asked == 2 and source.given == 1001


def test_nothing_is_asked_for_an_empty_page() -> None:
    source = Source(["a"])
    assert source.page(Query(limit=0)) == Page() and source.asked == 0


@given(key=st.text(st.characters(exclude_categories=["Cs"]), max_size=8), id=st.text("abc123", max_size=5))
def test_tokens(key: str, id: str) -> None:
    assert cursor_of(token_of(Cursor(key, id))) == Cursor(key, id)


@pytest.mark.parametrize("token", ["", "a", "====", "MQ==", "é", "YWJj", "gICA", "+/+/"])
def test_tokens_of_others(token: str) -> None:
    with pytest.raises(S3Error, match="InvalidArgument"):
        cursor_of(token)


def of(query: str, operation: str) -> Asked:
    return asked(Request("GET", "/b", query, []), operation)


def test_what_is_asked_for() -> None:
    found = of("prefix=a%2F&delimiter=%2F&marker=a%2Fb&max-keys=5&encoding-type=url", "ListObjects")
    assert found == Asked(Query("a/", "/", Cursor("a/b"), 5), True, "a/b")
    token = token_of(Cursor("x"))
    found = of(f"list-type=2&start-after=a&continuation-token={token}&fetch-owner=true", "ListObjectsV2")
    assert found.query.after == Cursor("x")  # goes on where it was, whatever start-after says
    assert (found.start_after, found.token, found.fetch_owner) == ("a", token, True)
    assert of("list-type=2&start-after=a", "ListObjectsV2").query.after == Cursor("a")
    assert of("versions&key-marker=a&version-id-marker=null", "ListObjectVersions").query.after == Cursor(
        "a", "null"
    )
    assert of("uploads&upload-id-marker=v&max-uploads=2", "ListMultipartUploads").query == Query(limit=2)
    assert of("max-keys=5000", "ListObjects").query.limit == 1000
    assert of("max-keys=", "ListObjects").query.limit == 1000
    assert of("max-keys=0", "ListObjects").query.limit == 0


@pytest.mark.parametrize(
    ("query", "operation"),
    [
        ("max-keys=-1", "ListObjects"),
        ("max-keys=x", "ListObjects"),
        ("max-keys=2147483648", "ListObjects"),
        ("encoding-type=base64", "ListObjects"),
        ("continuation-token=", "ListObjectsV2"),
        ("version-id-marker=null", "ListObjectVersions"),
        ("key-marker=a&version-id-marker=v", "ListObjectVersions"),
    ],
)
def test_what_cannot_be_asked_for(query: str, operation: str) -> None:
    with pytest.raises(S3Error) as caught:
        of(query, operation)
    assert (caught.value.code, caught.value.status) == ("InvalidArgument", 400)
