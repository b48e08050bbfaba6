"""CORS and lifecycle: the documents as botocore writes and reads them, and what they come to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from moorage.gateway.s3 import cors, lifecycle
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.lifecycle import Found, Rule
from moorage.gateway.s3.times import DAY_MS

from .support import body_of, read_by_botocore, sent

# -- CORS ------------------------------------------------------------------------------------------------

CORS: list[dict[str, Any]] = [
    {
        "ID": "uploads",
        "AllowedOrigins": ["https://*.example.com", "https://example.org"],
        "AllowedMethods": ["PUT", "POST"],
        "AllowedHeaders": ["x-amz-*", "Content-Type"],
        "ExposeHeaders": ["ETag", "x-amz-version-id"],
        "MaxAgeSeconds": 3000,
    },
    {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]},
]


def cors_rules() -> list[cors.Rule]:
    body = body_of(sent("put_bucket_cors", Bucket="bucket", CORSConfiguration={"CORSRules": CORS}))
    return cors.parse(body)


def test_cors_document() -> None:
    rules = cors_rules()
    assert read_by_botocore("GetBucketCors", cors.render(rules))["CORSRules"] == CORS
    assert cors.parse(cors.render(rules)) == rules


def test_preflight() -> None:
    asked = ["X-Amz-Date", " content-type", ""]
    found = cors.preflight(cors_rules(), "https://a.example.com", "PUT", asked)
    assert found == {
        "Access-Control-Allow-Origin": "https://a.example.com",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "PUT, POST",
        "Access-Control-Allow-Headers": "x-amz-date, content-type",
        "Access-Control-Expose-Headers": "ETag, x-amz-version-id",
        "Access-Control-Max-Age": "3000",
        "Vary": "Origin, Access-Control-Request-Headers, Access-Control-Request-Method",
    }
    everybody = cors.preflight(cors_rules(), "http://anywhere", "GET", [])
    assert everybody["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in everybody


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        ("https://a.example.com", "DELETE", []),
        ("https://example.com", "PUT", []),
        ("http://a.example.com", "PUT", []),
        ("https://a.example.com.evil", "PUT", []),
        ("https://example.org", "PUT", ["authorization"]),
        ("http://anywhere", "GET", ["range"]),
    ],
)
def test_preflight_that_is_refused(origin: str, method: str, headers: list[str]) -> None:
    with pytest.raises(S3Error) as caught:
        cors.preflight(cors_rules(), origin, method, headers)
    assert (caught.value.code, caught.value.status) == ("AccessForbidden", 403)


def test_headers_of_other_answers() -> None:
    assert cors.answer(cors_rules(), "http://anywhere", "GET")["Access-Control-Allow-Origin"] == "*"
    exposed = cors.answer(cors_rules(), "https://example.org", "PUT")["Access-Control-Expose-Headers"]
    assert exposed == "ETag, x-amz-version-id"
    assert cors.answer(cors_rules(), "http://anywhere", "PUT") == {}


def test_a_star_stands_for_nothing_too_and_for_no_overlap() -> None:
    rule = cors.Rule(("http://a*a",), ("GET",))
    assert cors.answer([rule], "http://aa", "GET") and cors.answer([rule], "http://aba", "GET")
    assert not cors.answer([rule], "http://a", "GET")


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("", "MalformedXML"),
        ("<AllowedOrigin>*</AllowedOrigin>", "MalformedXML"),
        ("<AllowedOrigin>*</AllowedOrigin><AllowedMethod>PATCH</AllowedMethod>", "InvalidRequest"),
        ("<AllowedOrigin>*.*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>", "InvalidRequest"),
        ("<AllowedOrigin>a&#10;b</AllowedOrigin><AllowedMethod>GET</AllowedMethod>", "InvalidRequest"),
        (
            "<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod><ID>" + "a" * 256 + "</ID>",
            "MalformedXML",
        ),
        ("<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod><A/>", "MalformedXML"),
    ],
)
def test_cors_that_is_refused(rule: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        cors.parse(f"<CORSConfiguration><CORSRule>{rule}</CORSRule></CORSConfiguration>".encode())
    assert caught.value.code == code


# -- lifecycle -------------------------------------------------------------------------------------------

LIFECYCLE: list[dict[str, Any]] = [
    {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}},
    {
        "ID": "b",
        "Status": "Disabled",
        "Filter": {
            "And": {
                "Prefix": "x/",
                "Tags": [{"Key": "k", "Value": "v"}, {"Key": "l", "Value": "w"}],
                "ObjectSizeGreaterThan": 100,
                "ObjectSizeLessThan": 1000,
            }
        },
        "Expiration": {"Date": datetime(2026, 3, 1, tzinfo=UTC)},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 3, "NewerNoncurrentVersions": 1},
    },
    {
        "ID": "c",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    },
    {"ID": "d", "Status": "Enabled", "Filter": {"Tag": {"Key": "t", "Value": ""}}, "Expiration": {"Days": 1}},
    {"ID": "e", "Status": "Enabled", "Filter": {"ObjectSizeLessThan": 5}, "Expiration": {"Days": 1}},
]


def test_lifecycle_document() -> None:
    operation = "put_bucket_lifecycle_configuration"
    body = body_of(sent(operation, Bucket="bucket", LifecycleConfiguration={"Rules": LIFECYCLE}))
    rules = lifecycle.parse(body)
    assert rules[0] == Rule("a", prefix="logs/", days=30)
    assert rules[1] == Rule(
        "b",
        enabled=False,
        prefix="x/",
        tags={"k": "v", "l": "w"},
        larger_than=100,
        smaller_than=1000,
        date_ms=1_772_323_200_000,
        noncurrent_days=3,
        noncurrent_kept=1,
    )
    found = read_by_botocore("GetBucketLifecycleConfiguration", lifecycle.render(rules))["Rules"]
    found[1]["Expiration"]["Date"] = found[1]["Expiration"]["Date"].astimezone(UTC)
    assert found == LIFECYCLE
    assert lifecycle.parse(lifecycle.render(rules)) == rules


def test_the_older_form_and_rules_without_names() -> None:
    rule = b"<Rule><Prefix>p</Prefix><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
    found = lifecycle.parse(b"<LifecycleConfiguration>" + 2 * rule + b"</LifecycleConfiguration>")
    assert found == [Rule("rule-1", prefix="p", days=1), Rule("rule-2", prefix="p", days=1)]


def test_there_are_rules_and_not_too_many() -> None:
    rule = b"<Rule><Prefix/><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
    for count in (0, 1001):
        with pytest.raises(S3Error, match="MalformedXML"):
            lifecycle.parse(b"<LifecycleConfiguration>" + count * rule + b"</LifecycleConfiguration>")
    assert (
        len(lifecycle.parse(b"<LifecycleConfiguration>" + 1000 * rule + b"</LifecycleConfiguration>")) == 1000
    )


DAYS = "<Expiration><Days>1</Days></Expiration>"
_UPLOADS = "AbortIncompleteMultipartUpload"
ABORT = f"<{_UPLOADS}><DaysAfterInitiation>1</DaysAfterInitiation></{_UPLOADS}>"
WHOLE = "<Status>Enabled</Status><Filter/>"
FULL = f"{WHOLE}{DAYS}"
TAG = "<Tag><Key>a</Key><Value>b</Value></Tag>"


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (f"<Filter/>{DAYS}", "MalformedXML"),  # no status
        ("<Status>Enabled</Status><Filter/>", "InvalidRequest"),
        (f"<Status>On</Status><Filter/>{DAYS}", "MalformedXML"),
        (f"<Status>Enabled</Status>{DAYS}", "MalformedXML"),
        (f"{WHOLE}<Prefix/>{DAYS}", "MalformedXML"),
        (f"<Status>Enabled</Status><Filter><Prefix/>{TAG}</Filter>{DAYS}", "MalformedXML"),
        (f"<Status>Enabled</Status><Filter><And>{TAG}{TAG}</And></Filter>{DAYS}", "InvalidTag"),
        (f"<Status>Enabled</Status><Filter>{TAG}</Filter>{ABORT}", "InvalidRequest"),
        (f"{WHOLE}<Expiration><Days>0</Days></Expiration>", "InvalidArgument"),
        (f"{WHOLE}<Expiration><Days>-1</Days></Expiration>", "MalformedXML"),
        (f"{WHOLE}<Expiration/>", "MalformedXML"),
        (f"{WHOLE}<Expiration><Date>2026-01-01T01:00:00Z</Date></Expiration>", "InvalidArgument"),
        (f"{WHOLE}<Expiration><Date>soon</Date></Expiration>", "MalformedXML"),
        (f"{WHOLE}{DAYS}<Transition/>", "NotImplemented"),
        (f"<ID>{'a' * 256}</ID><Status>Enabled</Status><Filter/>{DAYS}", "InvalidArgument"),
        (
            f"<Status>Enabled</Status><Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan>"
            f"<ObjectSizeLessThan>6</ObjectSizeLessThan></And></Filter>{DAYS}",
            "InvalidRequest",
        ),
        (
            f"{WHOLE}<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>"
            "<NewerNoncurrentVersions>101</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
            "InvalidArgument",
        ),
        (
            f"<ID>a</ID>{FULL}</Rule><Rule><ID>a</ID>{FULL}",
            "InvalidArgument",
        ),
    ],
)
def test_lifecycle_that_is_refused(rule: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        lifecycle.parse(f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>".encode())
    assert caught.value.code == code


NOON = 10 * DAY_MS + DAY_MS // 2


def test_days_end_at_midnight() -> None:
    rules = [Rule("a", days=1)]
    assert lifecycle.expiry_ms(rules, Found("k"), NOON) == (12 * DAY_MS, "a")
    assert not lifecycle.current_due(rules, Found("k"), NOON, 12 * DAY_MS - 1)
    assert lifecycle.current_due(rules, Found("k"), NOON, 12 * DAY_MS)
    assert lifecycle.expiry_ms(rules, Found("k"), 10 * DAY_MS) == (11 * DAY_MS, "a")


def test_the_first_rule_to_apply_counts() -> None:
    rules = [
        Rule("é", days=5),
        Rule("b", prefix="logs/", days=2),
        Rule("c", date_ms=11 * DAY_MS, enabled=False),
    ]
    assert lifecycle.expiry_ms(rules, Found("logs/a"), NOON) == (13 * DAY_MS, "b")
    header = lifecycle.expiration_header(rules, Found("k"), NOON)
    assert header == 'expiry-date="Sat, 17 Jan 1970 00:00:00 GMT", rule-id="%C3%A9"'
    assert lifecycle.expiration_header(rules[2:], Found("k"), NOON) is None


@pytest.mark.parametrize(
    ("rule", "found", "due"),
    [
        (Rule("a", days=1, prefix="p/"), Found("p/x"), True),
        (Rule("a", days=1, prefix="p/"), Found("q/x"), False),
        (Rule("a", days=1, tags={"t": "1"}), Found("k", tags={"t": "1", "u": "2"}), True),
        (Rule("a", days=1, tags={"t": "1", "u": "3"}), Found("k", tags={"t": "1", "u": "2"}), False),
        (Rule("a", days=1, larger_than=5), Found("k", 5), False),
        (Rule("a", days=1, larger_than=5), Found("k", 6), True),
        (Rule("a", days=1, smaller_than=5), Found("k", 5), False),
        (Rule("a", days=1, smaller_than=5), Found("k", 4), True),
        (Rule("a", days=1, enabled=False), Found("k"), False),
        (Rule("a", date_ms=10 * DAY_MS), Found("k"), True),
        (Rule("a", date_ms=100 * DAY_MS), Found("k"), False),
        (Rule("a", noncurrent_days=1, abort_days=1, markers=True), Found("k"), False),
    ],
)
def test_what_rules_are_about(rule: Rule, found: Found, due: bool) -> None:
    assert lifecycle.current_due([rule], found, 0, 50 * DAY_MS) is due


def test_noncurrent_versions() -> None:
    rules = [Rule("a", noncurrent_days=3, noncurrent_kept=2)]
    late = 20 * DAY_MS
    assert not lifecycle.noncurrent_due(rules, Found("k"), NOON, 1, late)
    assert lifecycle.noncurrent_due(rules, Found("k"), NOON, 2, late)
    assert not lifecycle.noncurrent_due(rules, Found("k"), NOON, 2, 14 * DAY_MS - 1)
    assert not lifecycle.noncurrent_due([Rule("b", days=1)], Found("k"), NOON, 9, late)
    narrow = [Rule("c", noncurrent_days=3, smaller_than=9)]
    assert lifecycle.noncurrent_due(narrow, Found("k", 5), NOON, 0, late)
    assert not lifecycle.noncurrent_due(narrow, Found("k", bare=True), NOON, 0, late)


@pytest.mark.parametrize(
    ("rule", "now_ms", "due"),
    [
        (Rule("a", markers=True), NOON, True),
        (Rule("a", markers=True, enabled=False), NOON, False),
        (Rule("a", markers=True, prefix="p"), NOON, False),
        (Rule("a", days=1), 12 * DAY_MS, True),
        (Rule("a", days=1), 12 * DAY_MS - 1, False),
        (Rule("a", abort_days=1, noncurrent_days=1), 99 * DAY_MS, False),
        (Rule("a", days=1, tags={"t": "1"}), 99 * DAY_MS, False),
        (Rule("a", days=1, smaller_than=9), 99 * DAY_MS, False),
        (Rule("a", days=1, larger_than=0), 99 * DAY_MS, False),
        (Rule("a", date_ms=NOON), NOON, True),
        (Rule("a", date_ms=NOON + 1), NOON, False),
    ],
)
def test_markers_that_hide_nothing(rule: Rule, now_ms: int, due: bool) -> None:
    assert lifecycle.marker_due([rule], Found("k", bare=True), NOON, now_ms) is due


def gone(rules: list[Rule], text: str, now_day: int = 20) -> str:
    """Of versions that are written as a key, the day on which each was made, and ``-`` for a marker."""
    succession = lifecycle.Succession(rules, now_day * DAY_MS)
    due: list[Found] = []
    for each in text.split():
        found = Found(each[0], version=each, bare=each.endswith("-"))
        due += succession.see(found, int(each[1:].rstrip("-")) * DAY_MS)
    return " ".join(each.version for each in due + succession.end())


def test_a_version_is_noncurrent_since_the_next_one_was_made() -> None:
    rules = [Rule("a", noncurrent_days=5)]
    assert gone(rules, "a9 a1 b17 b14 b2") == "a1 b2"
    assert gone(rules, "a16- a15 a1 b16 b1") == "a1", "a marker counts"
    assert gone(rules, "a19 a15- a14- a1") == "a14- a1", "markers go as well"
    assert gone(rules, "a15 a1", 19) == "" and gone(rules, "a15 a1", 20) == "a1"


def test_the_newest_noncurrent_versions_are_kept() -> None:
    rules = [Rule("a", noncurrent_days=1, noncurrent_kept=2), Rule("b", prefix="b", noncurrent_days=9)]
    assert gone(rules, "a9 a8 a7 a6 a5 b19 b18 b17 b3 b2 b1") == "a6 a5 b3 b2 b1"


def test_a_marker_goes_when_it_is_the_only_version() -> None:
    rules = [Rule("a", markers=True)]
    assert gone(rules, "a2- b2- b1 c9 d1-") == "a2- d1-"
    assert gone(rules, "a3- a2- b1") == ""
    assert gone(rules, "") == ""
    assert gone([Rule("b", days=3), Rule("c", noncurrent_days=1)], "a19- b3- c3- c2") == "b3- c2"


def test_uploads_that_are_due() -> None:
    assert lifecycle.upload_due([Rule("a", abort_days=7)], "k", NOON, 18 * DAY_MS)
    assert not lifecycle.upload_due([Rule("a", abort_days=7)], "k", NOON, 18 * DAY_MS - 1)
    assert not lifecycle.upload_due([Rule("a", days=1)], "k", NOON, 99 * DAY_MS)


def test_a_rule_of_any_length_can_be_told() -> None:
    """It is told with each put and get of what it is about: after the put was done."""
    rules = lifecycle.parse(lifecycle.render([lifecycle.Rule("r", days=2**31 - 1)]))
    lifecycle.expiration_header(rules, lifecycle.Found("k"), NOON)
