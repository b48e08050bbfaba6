"""Who may: policies, access control lists, and both together; written after Amazon's examples."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.gateway.s3 import acl, policy, policy_document
from moorage.gateway.s3.acl import EVERYBODY, SIGNED_IN, Acl, Grant, Permission
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.policy import Ask, Policy, Verdict
from moorage.gateway.s3.request import Request

from .support import body_of, read_by_botocore, sent

NOW_MS = 1_767_323_045_000


def statement(**changes: Any) -> dict[str, Any]:
    usual = {
        "Effect": "Allow",
        "Principal": {"AWS": "team-a"},
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::bucket/*",
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def document(*statements: Any, **more: Any) -> bytes:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements), **more}).encode()


def parsed(*statements: Any) -> Policy:
    return policy_document.parse(document(*statements), "bucket")


def ask(
    action: str = "s3:GetObject", principal: str | None = "team-a", key: str = "k", **context: str
) -> Ask:
    return Ask(
        principal, action, "bucket", key, {name.replace("__", ":"): each for name, each in context.items()}
    )


def verdict(asked: Ask, *statements: Any) -> Verdict:
    return policy.judge(parsed(*statements), asked)


@pytest.mark.parametrize(
    ("changes", "asked", "allowed"),
    [
        ({}, ask(), True),
        ({}, ask("s3:PutObject"), False),
        ({}, ask(principal="team-b"), False),
        ({}, ask(principal=None), False),
        ({}, ask(key=""), False),
        ({"Principal": "*"}, ask(principal=None), True),
        ({"Principal": {"AWS": "*"}}, ask(principal="team-b"), True),
        ({"Principal": {"AWS": ["a", "arn:aws:iam:::user/team-a"]}}, ask(), True),
        ({"Principal": {"AWS": "arn:aws:iam::123456789012:user/division/team-a"}}, ask(), True),
        ({"Principal": {"AWS": "arn:aws:iam::team-a:root"}}, ask(), True),
        ({"Principal": {"CanonicalUser": "team-a"}}, ask(), True),
        ({"Action": "*"}, ask("s3:DeleteBucket"), True),
        ({"Action": "s3:*"}, ask("s3:PutObject"), True),
        ({"Action": ["s3:Get*", "s3:ListBucket"]}, ask(), True),
        ({"Action": "S3:getobject"}, ask(), True),
        ({"Action": "s3:Get?bject"}, ask(), True),
        ({"Action": None, "NotAction": "s3:GetObject"}, ask(), False),
        ({"Action": None, "NotAction": "s3:Delete*"}, ask(), True),
        ({"Resource": "arn:aws:s3:::bucket"}, ask(key=""), True),
        ({"Resource": "arn:aws:s3:::bucket"}, ask(), False),
        ({"Resource": ["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/a/*"]}, ask(key="a/b/c"), True),
        ({"Resource": "arn:aws:s3:::bucket/a/?"}, ask(key="a/bc"), False),
        ({"Resource": "arn:aws:s3:::buck*"}, ask(), True),
        ({"Resource": None, "NotResource": "arn:aws:s3:::bucket/secret/*"}, ask(key="secret/a"), False),
        ({"Resource": None, "NotResource": "arn:aws:s3:::bucket/secret/*"}, ask(), True),
    ],
)
def test_principals_actions_and_resources(changes: dict[str, Any], asked: Ask, allowed: bool) -> None:
    assert verdict(asked, statement(**changes)) is (Verdict.ALLOW if allowed else Verdict.SILENT)


@pytest.mark.parametrize(
    ("condition", "context", "holds"),
    [
        ({"StringEquals": {"s3:prefix": ["a/", "b/"]}}, {"s3__prefix": "b/"}, True),
        ({"StringEquals": {"s3:prefix": "a/"}}, {"s3__prefix": "A/"}, False),
        ({"StringEquals": {"s3:prefix": "a/"}}, {}, False),
        ({"StringEqualsIfExists": {"s3:prefix": "a/"}}, {}, True),
        ({"StringNotEquals": {"s3:prefix": ["a/", "b/"]}}, {"s3__prefix": "b/"}, False),
        ({"StringNotEquals": {"s3:prefix": ["a/", "b/"]}}, {"s3__prefix": "c/"}, True),
        ({"StringNotEquals": {"s3:prefix": "a/"}}, {}, True),
        ({"StringEqualsIgnoreCase": {"S3:Prefix": "a/"}}, {"s3__prefix": "A/"}, True),
        ({"StringLike": {"s3:prefix": "home/*"}}, {"s3__prefix": "home/x/y"}, True),
        ({"StringNotLike": {"aws:Referer": "http://a/*"}}, {"aws__referer": "http://b/"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "10.1.2.3"}, True),
        ({"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "::1"]}}, {"aws__sourceip": "::1"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "::ffff:10.1.2.3"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "11.1.2.3"}, False),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "a socket"}, False),
        ({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "11.1.2.3"}, True),
        ({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws__sourceip": "10.1.2.3"}, False),
        ({"Bool": {"aws:SecureTransport": "true"}}, {"aws__securetransport": "true"}, True),
        ({"Bool": {"aws:SecureTransport": False}}, {"aws__securetransport": "true"}, False),
        ({"Null": {"s3:x-amz-acl": "true"}}, {}, True),
        ({"Null": {"s3:x-amz-acl": False}}, {}, False),
        ({"NumericLessThanEquals": {"s3:max-keys": 10}}, {"s3__max-keys": "10"}, True),
        ({"NumericLessThanEquals": {"s3:max-keys": 10}}, {"s3__max-keys": "11"}, False),
        ({"NumericLessThan": {"s3:max-keys": 10}}, {"s3__max-keys": "x"}, False),
        (
            {"DateLessThan": {"aws:CurrentTime": "2026-02-01"}},
            {"aws__currenttime": "2026-01-02T03:04:05Z"},
            True,
        ),
        ({"DateEquals": {"aws:EpochTime": "2026-01-02T03:04:05Z"}}, {"aws__epochtime": "1767323045"}, True),
        ({"DateGreaterThan": {"aws:EpochTime": 1767323046}}, {"aws__epochtime": "1767323045"}, False),
        ({"StringEquals": {"s3:ExistingObjectTag/Team": "a"}}, {"s3__existingobjecttag/Team": "a"}, True),
        ({"StringEquals": {"s3:ExistingObjectTag/Team": "a"}}, {"s3__existingobjecttag/team": "a"}, False),
        (
            {"StringEquals": {"s3:prefix": "a"}, "Bool": {"aws:SecureTransport": "true"}},
            {"s3__prefix": "a", "aws__securetransport": "false"},
            False,
        ),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, str], holds: bool) -> None:
    found = verdict(ask(**context), statement(Condition=condition))
    assert found is (Verdict.ALLOW if holds else Verdict.SILENT)


def test_an_explicit_deny_wins() -> None:
    insecure = {"Bool": {"aws:SecureTransport": "false"}}
    deny = statement(Effect="Deny", Principal="*", Action="s3:*", Condition=insecure)
    for order in ((statement(), deny), (deny, statement())):
        assert verdict(ask(aws__securetransport="false"), *order) is Verdict.DENY
        assert verdict(ask(aws__securetransport="true"), *order) is Verdict.ALLOW
    others = statement(Effect="Deny", Principal=None, NotPrincipal={"AWS": "team-a"}, Action="*")
    assert verdict(ask(principal="team-b"), others) is Verdict.DENY
    assert verdict(ask(principal=None), others) is Verdict.DENY
    assert verdict(ask(), others) is Verdict.SILENT


@pytest.mark.parametrize(
    "changes",
    [
        {"Effect": "Maybe"},
        {"Effect": None},
        {"Principal": None},
        {"Principal": {}},
        {"Principal": {"AWS": []}},
        {"Principal": {"Service": "logs"}},
        {"Principal": "team-a"},
        {"Principal": {"AWS": "team-*"}},
        {"Principal": {"AWS": "arn:aws:iam::1:role/a"}},
        {"Principal": {"AWS": "arn:aws:s3:::x"}},
        {"NotPrincipal": "*"},
        {"Principal": None, "NotPrincipal": {"AWS": "a"}},
        {"Action": []},
        {"Action": "ec2:RunInstances"},
        {"Action": "s3:Get Object"},
        {"Action": {"a": 1}},
        {"NotAction": "s3:*"},
        {"Resource": "arn:aws:s3:::other/*"},
        {"Resource": "arn:aws:s3:::*/*"},
        {"Resource": "bucket/*"},
        {"Resource": "*"},
        {"Resource": "arn:aws:s3:::bucket/${aws:username}/*"},
        {"Condition": []},
        {"Condition": {"StringEquals": {}, "Sometimes": {"s3:prefix": "a"}}},
        {"Condition": {"ForAllValues:StringEquals": {"s3:prefix": "a"}}},
        {"Condition": {"StringEquals": {"aws:UnknownKey": "a"}}},
        {"Condition": {"StringEquals": {"s3:prefix": []}}},
        {"Condition": {"StringEquals": {"s3:prefix": "${aws:username}"}}},
        {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/99"}}},
        {"Condition": {"Bool": {"aws:SecureTransport": "yes"}}},
        {"Condition": {"NumericEquals": {"s3:max-keys": "--5"}}},
        {"Condition": {"DateLessThan": {"aws:CurrentTime": "soon"}}},
        {"Condition": {"NullIfExists": {"s3:prefix": "true"}}},
        {"Sid": 5},
        {"Comment": "x"},
    ],
)
def test_policies_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(S3Error) as caught:
        parsed(statement(**changes))
    assert (caught.value.code, caught.value.status) == ("MalformedPolicy", 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        b'{"Statement": []}',
        b'{"Statement": [], "Statement": []}',
        document(statement(), Version="2020-01-01"),
        document(statement(), Other=1),
        document(statement(Sid="a"), statement(Sid="a")),
        document(statement(Resource=["arn:aws:s3:::bucket/" + "a" * (20 << 10)])),
    ],
)
def test_documents_that_are_refused(body: bytes) -> None:
    with pytest.raises(S3Error, match="MalformedPolicy"):
        policy_document.parse(body, "bucket")


def test_one_statement_alone_and_names() -> None:
    body = json.dumps({"Id": "x", "Statement": statement(Sid="a")}).encode()
    assert policy_document.parse(body, "bucket").statements[0].sid == "a"


# -- together --------------------------------------------------------------------------------------------

OPEN = acl.canned("public-read", "owner", "owner")
PRIVATE = acl.canned("private", "owner", "owner")


def test_who_may() -> None:
    deny_all = parsed(statement(Effect="Deny", Principal="*", Action="s3:*"), statement(Action="s3:*"))
    rows = [
        (ask(principal="owner"), None, PRIVATE, None, True),
        (ask(principal="team-a"), None, PRIVATE, PRIVATE, False),
        (ask(principal=None), None, PRIVATE, PRIVATE, False),
        (ask(principal="team-a"), parsed(statement()), PRIVATE, PRIVATE, True),
        (ask(principal=None), parsed(statement()), PRIVATE, PRIVATE, False),
        (ask(principal=None), parsed(statement(Principal="*")), PRIVATE, PRIVATE, True),
        (ask(principal=None), None, PRIVATE, OPEN, True),
        (ask(principal=None), None, OPEN, PRIVATE, False),
        (ask("s3:ListBucket", None, ""), None, OPEN, None, True),
        (ask("s3:PutObject", None), None, OPEN, OPEN, False),
        (ask("s3:PutObject", None), None, acl.canned("public-read-write", "owner", "owner"), None, True),
        (
            ask("s3:DeleteBucket", None, ""),
            None,
            acl.canned("public-read-write", "owner", "owner"),
            None,
            False,
        ),
        (ask(principal="owner"), deny_all, OPEN, OPEN, False),
        (ask("s3:PutBucketPolicy", "owner", ""), deny_all, OPEN, OPEN, True),
        (ask("s3:PutBucketPolicy", None, ""), None, OPEN, OPEN, False),
        (ask(principal="team-a"), deny_all, OPEN, OPEN, False),
    ]
    for asked, found, bucket_acl, object_acl, may in rows:
        assert policy.allowed(asked, "owner", found, bucket_acl, object_acl) is may, asked
        if not may:
            with pytest.raises(S3Error, match="AccessDenied"):
                policy.check(asked, "owner", found, bucket_acl, object_acl)


def test_contexts() -> None:
    headers = [("User-Agent", "curl"), ("x-amz-acl", "private"), ("Referer", "http://a/")]
    request = Request("GET", "/b", "prefix=a%2F&max-keys=5", headers, secure=True, source_ip="10.0.0.1")
    found = policy.context_of(
        request, "team-a", NOW_MS, presigned=True, object_tags={"Team": "a"}, version="null"
    )
    assert found == {
        "aws:currenttime": "2026-01-02T03:04:05.000Z",
        "aws:epochtime": "1767323045",
        "aws:referer": "http://a/",
        "aws:securetransport": "true",
        "aws:sourceip": "10.0.0.1",
        "aws:useragent": "curl",
        "aws:username": "team-a",
        "s3:prefix": "a/",
        "s3:max-keys": "5",
        "s3:x-amz-acl": "private",
        "s3:authtype": "REST-QUERY-STRING",
        "s3:signatureversion": "AWS4-HMAC-SHA256",
        "s3:existingobjecttag/Team": "a",
        "s3:versionid": "null",
    }
    nobody = policy.context_of(Request("GET", "/b", "", []), None, NOW_MS, request_tags={"a": "b"})
    assert set(nobody) == {"aws:currenttime", "aws:epochtime", "aws:securetransport", "s3:requestobjecttag/a"}


def test_what_is_public() -> None:
    assert parsed(statement(Principal="*")).is_public
    assert not parsed(statement()).is_public
    assert not parsed(statement(Principal="*", Effect="Deny")).is_public
    within = {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}
    assert not parsed(statement(Principal="*", Condition=within)).is_public
    for wide in ("NotIpAddress", "IpAddressIfExists"):
        assert parsed(statement(Principal="*", Condition={wide: {"aws:SourceIp": "10.0.0.0/8"}})).is_public
    tags = {"StringEquals": {"s3:ExistingObjectTag/a": "b"}}
    assert policy.asks_for_tags(parsed(statement(Condition=tags)))
    assert not policy.asks_for_tags(parsed(statement(Condition=within)))
    assert OPEN.is_public and not PRIVATE.is_public


@given(pattern=st.text("ab*?", max_size=8), text=st.text("ab", max_size=8))
def test_patterns(pattern: str, text: str) -> None:
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    assert policy.like(pattern, text) == (re.fullmatch(expression, text, re.DOTALL) is not None)


def test_patterns_take_no_time() -> None:
    begin = time.process_time()
    assert not policy.like("*a" * 100 + "b", "a" * 1024)
    assert time.process_time() - begin < 1


# -- access control lists --------------------------------------------------------------------------------

MINE = Grant("owner", Permission.FULL_CONTROL)


@pytest.mark.parametrize(
    ("name", "grants"),
    [
        ("private", ()),
        ("public-read", (Grant(EVERYBODY, Permission.READ),)),
        ("authenticated-read", (Grant(SIGNED_IN, Permission.READ),)),
        ("bucket-owner-read", (Grant("landlord", Permission.READ),)),
        ("bucket-owner-full-control", (Grant("landlord", Permission.FULL_CONTROL),)),
    ],
)
def test_canned(name: str, grants: tuple[Grant, ...]) -> None:
    assert acl.canned(name, "owner", "landlord") == Acl("owner", (MINE, *grants))


def test_what_lists_allow() -> None:
    signed = acl.canned("authenticated-read", "owner", "owner")
    assert signed.allows("anyone", Permission.READ) and not signed.allows(None, Permission.READ)
    assert signed.allows("owner", Permission.WRITE_ACP) and not signed.allows("anyone", Permission.WRITE)


def headers(**given: str) -> Request:
    return Request(
        "PUT", "/b/k", "", [(f"x-amz-{name.replace('_', '-')}", each) for name, each in given.items()]
    )


def test_lists_in_headers() -> None:
    assert acl.of_headers(headers(), "owner", "owner") is None
    assert acl.of_headers(headers(acl="private"), "owner", "owner") == Acl("owner", (MINE,))
    request = headers(grant_read=f'id="a", uri="{EVERYBODY}"', grant_write_acp="id=b")
    assert acl.of_headers(request, "owner", "owner") == Acl(
        "owner",
        (
            Grant("a", Permission.READ),
            Grant(EVERYBODY, Permission.READ),
            Grant("b", Permission.WRITE_ACP),
        ),
    )


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"acl": "open"}, "InvalidArgument"),
        ({"acl": "private", "grant_read": "id=a"}, "InvalidRequest"),
        ({"grant_read": "a"}, "InvalidArgument"),
        ({"grant_read": 'id="a" id="b"'}, "InvalidArgument"),
        ({"grant_read": 'uri="http://x/"'}, "InvalidArgument"),
        ({"grant_read": 'emailAddress="a@b"'}, "NotImplemented"),
        ({"grant_read": ",".join(["id=a"] * 101)}, "MalformedACLError"),
    ],
)
def test_lists_that_are_refused(given: dict[str, str], code: str) -> None:
    with pytest.raises(S3Error) as caught:
        acl.of_headers(headers(**given), "owner", "owner")
    assert caught.value.code == code


def test_lists_in_documents() -> None:
    wanted = Acl("owner", (MINE, Grant(EVERYBODY, Permission.READ)))
    found = read_by_botocore("GetBucketAcl", acl.render(wanted))
    assert [each["Grantee"]["Type"] for each in found["Grants"]] == ["CanonicalUser", "Group"]
    body = body_of(sent("put_bucket_acl", Bucket="bucket", AccessControlPolicy=found))
    assert acl.parse(body, "owner") == wanted
    with pytest.raises(S3Error, match="AccessDenied"):
        acl.parse(body, "somebody else")


@pytest.mark.parametrize(
    "grant",
    [
        "<Grant/>",
        "<Grant><Grantee/><Permission>READ</Permission></Grant>",
        "<Grant><Grantee><ID>a</ID></Grantee><Permission>ALL</Permission></Grant>",
        "<Grant><Grantee><ID>a</ID><URI>b</URI></Grantee><Permission>READ</Permission></Grant>",
        "<Other/>",
    ],
)
def test_documents_of_lists_that_are_refused(grant: str) -> None:
    body = f"<AccessControlPolicy><AccessControlList>{grant}</AccessControlList></AccessControlPolicy>"
    with pytest.raises(S3Error, match="MalformedACLError"):
        acl.parse(body.encode(), "owner")
