"""Pages of a bucket against a naive listing: any keys, prefixes, delimiters, sizes of pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.metadata.objects import layout, listing
from moorage.service import kv as kvs
from moorage.service.kv import KV

BUCKET = 7
ALPHABET = "a/-é\U0001f4f7\ue000\x00\U0010ffff"
SHORT = st.text(ALPHABET, min_size=1, max_size=6)
LONG = st.builds(
    lambda head, count, tail: (head * count)[:380] + tail,
    st.sampled_from(["a", "é", "a/", "\U0001f4f7"]),
    st.integers(90, 410),
    st.text("a/é\U0001f4f7", max_size=12),
)
KEYS = st.lists(st.one_of(SHORT, SHORT, LONG), max_size=25, unique=True)
PREFIXES = st.one_of(st.just(""), st.text(ALPHABET, max_size=3), LONG)
DELIMITERS = st.sampled_from(["", "/", "é", "a/", "//", "\U0001f4f7", "aa"])


def bucket(keys: list[str]) -> KV:
    kv = KV()
    for key in keys:
        layout.put_object(kv, BUCKET, key, {"key": key})
    # Its neighbours, of which nothing may be seen.
    layout.put_object(kv, BUCKET - 1, "a", {"key": "?"})
    layout.put_object(kv, BUCKET + 1, "a", {"key": "?"})
    kv.commit()
    return kv


def naive(keys: list[str], prefix: str, delimiter: str, after: str = "") -> list[str]:
    """Keys and common prefixes, in order."""
    found: list[str] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key if at < 0 else key[: at + len(delimiter)]
        if name not in found and not (after and name.encode() <= after.encode()):
            found.append(name)
    return found


def pages(kv: KV, limit: int, start: bytes = b"", **about: Any) -> list[str]:
    found: list[str] = []
    while True:
        page = listing.page(kv, BUCKET, start=start, limit=limit, **about)
        assert len(page.entries) + len(page.prefixes) <= limit
        for key, entry in page.entries:
            assert entry == {"key": key}
        # Within a page both are in order; together they are merged by their bytes.
        names = [*(key for key, _ in page.entries), *page.prefixes]
        assert [key for key, _ in page.entries] == sorted((key for key, _ in page.entries), key=str.encode)
        assert page.prefixes == sorted(page.prefixes, key=str.encode)
        found += sorted(names, key=str.encode)
        if not page.next:
            return found
        assert len(names) == limit and page.next > start
        start = page.next


@settings(max_examples=150)
@given(keys=KEYS, prefix=PREFIXES, delimiter=DELIMITERS, limit=st.sampled_from([1, 2, 3, 1000]))
def test_pages_together_are_the_listing(keys: list[str], prefix: str, delimiter: str, limit: int) -> None:
    kv = bucket(keys)
    assert pages(kv, limit, prefix=prefix, delimiter=delimiter) == naive(keys, prefix, delimiter)


@settings(max_examples=150)
@given(data=st.data(), keys=KEYS, delimiter=DELIMITERS, prefix=st.text("a/", max_size=2))
def test_a_listing_behind_a_key_or_a_common_prefix(
    data: st.DataObject, keys: list[str], delimiter: str, prefix: str
) -> None:
    """What a page has shown last is where one may go on, with the next one or much later."""
    kv = bucket(keys)
    for after in naive(keys, prefix, delimiter):
        start = listing.start_after(after, prefix, delimiter)
        assert pages(kv, 2, start=start, prefix=prefix, delimiter=delimiter) == naive(
            keys, prefix, delimiter, after
        )
    other = data.draw(SHORT)
    if not delimiter:
        start = listing.start_after(other, prefix, "")
        assert pages(kv, 2, start=start, prefix=prefix, delimiter="") == naive(keys, prefix, "", other)


@settings(max_examples=100)
@given(steps=st.lists(st.tuples(st.one_of(SHORT, LONG), st.booleans()), max_size=40))
def test_objects_are_found_by_their_keys(steps: list[tuple[str, bool]]) -> None:
    kv, model = KV(), {}
    for number, (key, there) in enumerate(steps):
        layout.put_object(kv, BUCKET, key, {"n": number} if there else None)
        if there:
            model[key] = {"n": number}
        else:
            model.pop(key, None)
        assert layout.find_object(kv, BUCKET, key) == model.get(key)
    assert dict(layout.scan_objects(kv, BUCKET, "", b"")) == model
    for key in model:
        layout.put_object(kv, BUCKET, key, None)
    assert not list(kv.scan("object/")), "nothing is left, not even what was shared"


def test_a_page_ends_when_it_has_its_size() -> None:
    kv = bucket(["a", "b/1", "b/2", "c"])
    page = listing.page(
        kv, BUCKET, prefix="", delimiter="/", start=b"", limit=10, size=10, size_of=lambda key, entry: 10
    )
    assert ([key for key, _ in page.entries], page.prefixes, page.next) == (["a"], [], b"b/1")
    page = listing.page(
        kv, BUCKET, prefix="", delimiter="/", start=page.next, limit=10, size=1, size_of=lambda k, e: 10
    )
    assert (page.entries, page.prefixes, page.next) == ([], ["b/"], b"c")


def test_what_has_a_prefix_in_common_is_passed_over_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{letter}/{number:04}" for letter in "abc" for number in range(400)]
    kv = bucket(keys)
    looked = 0
    unpackb = kvs.msgpack.unpackb

    def counted(raw: bytes, **more: Any) -> Any:
        nonlocal looked
        looked += 1
        return unpackb(raw, **more)

    monkeypatch.setattr(kvs.msgpack, "unpackb", counted)
    page = listing.page(kv, BUCKET, prefix="", delimiter="/", start=b"", limit=10)
    assert page.prefixes == ["a/", "b/", "c/"] and looked <= 4
