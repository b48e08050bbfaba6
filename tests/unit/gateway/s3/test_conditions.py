"""Conditional headers: the table of Amazon's GetObject page, and the ways they are written. And times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3 import conditions, times
from moorage.gateway.s3.conditions import Conditions, check_copy, check_read, check_write, of_request
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request

AT_MS = 1_767_323_045_000
ETAG = "5d41402abc4b2a76b9719d911017c592"
BEFORE, SAME, AFTER = (times.http(AT_MS + seconds * 1000) for seconds in (-1, 0, 1))
RIGHT, WRONG = f'"{ETAG}"', '"other"'


def asked(prefix: str = "", **headers: str) -> Conditions:
    pairs = [(prefix + name.replace("_", "-"), value) for name, value in headers.items()]
    return of_request(Request("GET", "/b/k", "", pairs), bool(prefix))


ROWS: list[tuple[dict[str, str], int]] = [
    ({}, 200),
    ({"if_match": RIGHT}, 200),
    ({"if_match": WRONG}, 412),
    ({"if_match": "*"}, 200),
    ({"if_match": f"{WRONG}, {RIGHT}"}, 200),
    ({"if_match": ETAG}, 200),
    ({"if_match": f"W/{RIGHT}"}, 412),
    ({"if_match": ""}, 412),
    ({"if_none_match": RIGHT}, 304),
    ({"if_none_match": f"W/{RIGHT}"}, 304),
    ({"if_none_match": WRONG}, 200),
    ({"if_none_match": "*"}, 304),
    ({"if_modified_since": BEFORE}, 200),
    ({"if_modified_since": SAME}, 304),
    ({"if_modified_since": AFTER}, 304),
    ({"if_modified_since": "yesterday"}, 200),
    ({"if_unmodified_since": BEFORE}, 412),
    ({"if_unmodified_since": SAME}, 200),
    ({"if_unmodified_since": "yesterday"}, 200),
    # The two that Amazon's page names, and their opposites.
    ({"if_match": RIGHT, "if_unmodified_since": BEFORE}, 200),
    ({"if_match": WRONG, "if_unmodified_since": AFTER}, 412),
    ({"if_none_match": RIGHT, "if_modified_since": BEFORE}, 304),
    ({"if_none_match": WRONG, "if_modified_since": AFTER}, 200),
    ({"if_match": RIGHT, "if_none_match": RIGHT}, 304),
    ({"if_match": WRONG, "if_none_match": WRONG}, 412),
    ({"if_unmodified_since": BEFORE, "if_none_match": RIGHT}, 412),
]


@pytest.mark.parametrize(("headers", "status"), ROWS)
def test_reads_and_copies(headers: dict[str, str], status: int) -> None:
    def outcome(check: object, prefix: str) -> int:
        try:
            check(asked(prefix, **headers), ETAG, AT_MS + 999)  # type: ignore[operator]
        except S3Error as error:
            return error.status
        return 200

    assert outcome(check_read, "") == status
    assert outcome(check_copy, "x-amz-copy-source-") == (412 if status == 304 else status)


def test_conditions_about_the_source_are_others() -> None:
    request = Request("PUT", "/b/k", "", [("x-amz-copy-source-if-match", RIGHT), ("if-none-match", "*")])
    assert of_request(request, of_source=True) == Conditions(match=frozenset({ETAG}))
    assert of_request(request) == Conditions(none_match=frozenset("*"))
    assert of_request(request).asked and not Conditions().asked
    with pytest.raises(S3Error) as caught:
        check_copy(of_request(request, of_source=True), "x", 0)
    assert caught.value.details == {"Condition": "x-amz-copy-source-If-Match"}


@pytest.mark.parametrize(
    ("headers", "etag", "code"),
    [
        ({}, None, ""),
        ({}, ETAG, ""),
        ({"if_none_match": "*"}, None, ""),
        ({"if_none_match": "*"}, ETAG, "PreconditionFailed"),
        ({"if_none_match": RIGHT}, None, "NotImplemented"),
        ({"if_match": RIGHT}, ETAG, ""),
        ({"if_match": WRONG}, ETAG, "PreconditionFailed"),
        ({"if_match": RIGHT}, None, "NoSuchKey"),
        ({"if_match": "*"}, ETAG, ""),
    ],
)
def test_writes(headers: dict[str, str], etag: str | None, code: str) -> None:
    if not code:
        check_write(asked(**headers), etag)
        return
    with pytest.raises(S3Error) as caught:
        check_write(asked(**headers), etag)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("stated", "applies"),
    [(None, True), (RIGHT, True), (WRONG, False), (f"W/{RIGHT}", False), (SAME, True), (BEFORE, False)],
)
def test_if_range(stated: str | None, applies: bool) -> None:
    headers = [] if stated is None else [("If-Range", stated)]
    assert conditions.range_applies(Request("GET", "/b/k", "", headers), ETAG, AT_MS + 5) == applies


@given(text=st.text('W/"*,ab \t', max_size=20))
def test_any_list_of_tags_is_read(text: str) -> None:
    found = asked(if_none_match=text).none_match
    assert found is not None and not any('"' in each for each in found)


# -- times -----------------------------------------------------------------------------------------------


@given(at_ms=st.integers(0, 4_102_444_800_000))
def test_times_come_back(at_ms: int) -> None:
    assert times.parse_iso(times.iso(at_ms)) == at_ms
    assert (
        times.parse_http(times.http(at_ms)) == times.parse_basic(times.basic(at_ms)) == at_ms // 1000 * 1000
    )


def test_forms_of_times() -> None:
    for text in (
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
    ):
        assert times.parse_http(text) == 784_111_777_000
    assert times.parse_iso("1994-11-06") == 784_080_000_000
    assert times.parse_iso("1994-11-06T08:49:37Z") == 784_111_777_000
    assert times.parse_iso("1994-11-06T08:49:37.5+00:00") == 784_111_777_500
    assert times.parse_http("Sat, 31 Dec 2016 23:59:60 GMT") == 1_483_228_799_000
    assert times.iso(784_111_777_005) == "1994-11-06T08:49:37.005Z"


@pytest.mark.parametrize(
    "text", ["", "x", "1994-13-01", "1994-11-06T25:00:00Z", "Sun, 06 Foo 1994 08:49:37 GMT"]
)
def test_no_times(text: str) -> None:
    assert times.parse_iso(text) is times.parse_http(text) is times.parse_basic(text) is None
