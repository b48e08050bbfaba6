"""Bucket policies and lists together: whether a request is allowed. ``policy_document.py`` reads policies.

Owns the evaluation. The order of things: an explicit ``Deny`` wins; then the bucket's owner may all, others
what a policy or an access control list allows; what nobody allows is denied. After Amazon's "Policy
evaluation logic".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from moorage.gateway.s3 import times
from moorage.gateway.s3.acl import Acl, Permission
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request

ANYBODY: Final = "*"
RESOURCE: Final = "arn:aws:s3:::"

# Keys of conditions, in lower case; and those that have the name of a tag behind them.
KEYS: Final = {
    *("aws:currenttime", "aws:epochtime", "aws:referer", "aws:securetransport", "aws:sourceip"),
    *("aws:useragent", "aws:username", "s3:authtype", "s3:delimiter", "s3:max-keys", "s3:prefix"),
    *("s3:signatureversion", "s3:versionid", "s3:x-amz-acl", "s3:x-amz-content-sha256"),
    *("s3:x-amz-copy-source", "s3:x-amz-metadata-directive", "s3:x-amz-storage-class"),
}
NAMED_KEYS: Final = ("s3:existingobjecttag/", "s3:requestobjecttag/")


@dataclass(frozen=True, slots=True)
class Condition:
    """``operator`` in lower case and without its suffix; ``absent``: the answer for a request that has no
    such key."""

    operator: str
    key: str
    values: tuple[str, ...]
    absent: bool


@dataclass(frozen=True, slots=True)
class Statement:
    """``principals`` of names, or :data:`ANYBODY`; patterns of actions are in lower case. ``others_...``:
    it is about all but those."""

    allow: bool
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    others_principals: bool = False
    others_actions: bool = False
    others_resources: bool = False
    sid: str = ""


# Conditions that leave a part of the world: what is open under them is not public.
_NARROWING: Final = {("aws:sourceip", "ipaddress", False), ("aws:username", "stringequals", False)}


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]

    @property
    def is_public(self) -> bool:
        """Whether it opens the bucket to anybody, wherever he is."""
        return any(
            each.allow
            and ANYBODY in each.principals
            and not any((one.key, one.operator, one.absent) in _NARROWING for one in each.conditions)
            for each in self.statements
        )


class Verdict(Enum):
    ALLOW = auto()
    DENY = auto()
    SILENT = auto()


@dataclass(frozen=True, slots=True)
class Ask:
    """Who (None: nobody in particular) wants to do what. ``context``: of conditions, keys in lower case."""

    principal: str | None
    action: str
    bucket: str
    key: str
    context: Mapping[str, str]


def context_of(
    request: Request,
    principal: str | None,
    now_ms: int,
    *,
    presigned: bool = False,
    request_tags: Mapping[str, str] | None = None,
    object_tags: Mapping[str, str] | None = None,
    version: str | None = None,
) -> dict[str, str]:
    """``object_tags``: of the object that is there, where a policy may ask for them
    (:func:`asks_for_tags`). ``version``: that it is about, which not only a query can name."""
    found: dict[str, str | None] = {
        "aws:currenttime": times.iso(now_ms),
        "aws:epochtime": str(now_ms // 1000),
        "aws:referer": request.header("referer"),
        "aws:securetransport": "true" if request.secure else "false",
        "aws:sourceip": request.source_ip or None,
        "aws:useragent": request.header("user-agent"),
        "aws:username": principal,
        "s3:versionid": version,
    }
    for name in ("delimiter", "max-keys", "prefix"):
        found[f"s3:{name}"] = request.parameter(name)
    for name in ("acl", "content-sha256", "copy-source", "metadata-directive", "storage-class"):
        found[f"s3:x-amz-{name}"] = request.header(f"x-amz-{name}")
    if principal is not None:
        found["s3:authtype"] = "REST-QUERY-STRING" if presigned else "REST-HEADER"
        found["s3:signatureversion"] = "AWS4-HMAC-SHA256"
    for prefix, tags in zip(NAMED_KEYS, (object_tags, request_tags), strict=True):
        found |= {prefix + name: value for name, value in (tags or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def asks_for_tags(policy: Policy) -> bool:
    """Whether it can be evaluated only with the tags of the object."""
    return any(
        condition.key.startswith(NAMED_KEYS[0]) for each in policy.statements for condition in each.conditions
    )


# -- evaluation ------------------------------------------------------------------------------------------


def judge(policy: Policy, ask: Ask) -> Verdict:
    """What the policy alone says."""
    about = [each for each in policy.statements if _about(each, ask)]
    if any(not each.allow for each in about):
        return Verdict.DENY
    return Verdict.ALLOW if about else Verdict.SILENT


# The owner keeps these whatever the policy says: nobody shuts himself out for ever.
_OWNERS: Final = ("s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy")

# What a list allows: whether that of the bucket or of the object is asked, and for what.
_BY_ACL: Final[dict[str, tuple[bool, Permission]]] = {
    "s3:ListBucket": (True, Permission.READ),
    "s3:ListBucketVersions": (True, Permission.READ),
    "s3:ListBucketMultipartUploads": (True, Permission.READ),
    "s3:PutObject": (True, Permission.WRITE),
    "s3:DeleteObject": (True, Permission.WRITE),
    "s3:GetBucketAcl": (True, Permission.READ_ACP),
    "s3:PutBucketAcl": (True, Permission.WRITE_ACP),
    "s3:GetObject": (False, Permission.READ),
    "s3:GetObjectVersion": (False, Permission.READ),
    "s3:GetObjectAcl": (False, Permission.READ_ACP),
    "s3:GetObjectVersionAcl": (False, Permission.READ_ACP),
    "s3:PutObjectAcl": (False, Permission.WRITE_ACP),
    "s3:PutObjectVersionAcl": (False, Permission.WRITE_ACP),
}


def allowed(
    ask: Ask,
    owner: str,
    policy: Policy | None = None,
    bucket_acl: Acl | None = None,
    object_acl: Acl | None = None,
) -> bool:
    """``owner`` of the bucket. Lists are None where there are none, or where the object is not there."""
    is_owner = ask.principal == owner
    if is_owner and ask.action in _OWNERS:
        return True
    verdict = Verdict.SILENT if policy is None else judge(policy, ask)
    if verdict is not Verdict.SILENT:
        return verdict is Verdict.ALLOW
    if is_owner:
        return True
    of_bucket, wanted = _BY_ACL.get(ask.action, (True, None))
    acl = bucket_acl if of_bucket else object_acl
    return wanted is not None and acl is not None and acl.allows(ask.principal, wanted)


def check(
    ask: Ask,
    owner: str,
    policy: Policy | None = None,
    bucket_acl: Acl | None = None,
    object_acl: Acl | None = None,
) -> None:
    """Raises AccessDenied, without a word why: who may not has no right to know."""
    if not allowed(ask, owner, policy, bucket_acl, object_acl):
        raise S3Error("AccessDenied")


def _about(statement: Statement, ask: Ask) -> bool:
    resource = f"{RESOURCE}{ask.bucket}/{ask.key}" if ask.key else f"{RESOURCE}{ask.bucket}"
    action = ask.action.lower()
    principal = ANYBODY in statement.principals or ask.principal in statement.principals
    return (
        principal != statement.others_principals
        and any(like(each, action) for each in statement.actions) != statement.others_actions
        and any(like(each, resource) for each in statement.resources) != statement.others_resources
        and all(_holds(each, ask.context) for each in statement.conditions)
    )


def _holds(condition: Condition, context: Mapping[str, str]) -> bool:
    value = context.get(condition.key)
    if condition.operator == "null":
        return (value is None) == (condition.values[0].lower() == "true")
    if value is None:
        return condition.absent
    test, wanted = OPERATORS[condition.operator]
    return any(test(value, each) for each in condition.values) == wanted


def like(pattern: str, text: str) -> bool:
    """``*`` for any characters, ``?`` for one. In time proportional to both, whoever wrote the pattern."""
    at = in_text = 0
    star, kept = -1, 0
    while in_text < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, kept = at, in_text
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[in_text]):
            at, in_text = at + 1, in_text + 1
        elif star >= 0:
            kept += 1
            at, in_text = star + 1, kept
        else:
            return False
    return all(each == "*" for each in pattern[at:])


def _same_case(value: str, wanted: str) -> bool:
    return value.lower() == wanted.lower()


def _within(value: str, network: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address) in ipaddress.ip_network(network, strict=False)


def _number(compare: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def test(value: str, wanted: str) -> bool:
        try:
            return compare(float(value), float(wanted))
        except ValueError:
            return False

    return test


def _date(compare: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def test(value: str, wanted: str) -> bool:
        one, other = moment(value), moment(wanted)
        return one is not None and other is not None and compare(one, other)

    return test


def moment(text: str) -> int | None:
    """An ISO time, or seconds since 1970."""
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text) * 1000
    return times.parse_iso(text)


_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "lessthan": lambda one, other: one < other,
    "lessthanequals": lambda one, other: one <= other,
    "greaterthan": lambda one, other: one > other,
    "greaterthanequals": lambda one, other: one >= other,
    "equals": lambda one, other: one == other,
}
# The test of one value, and whether it must be so for one of them, or for none.
OPERATORS: Final[dict[str, tuple[Callable[[str, str], bool], bool]]] = {
    "stringequals": (str.__eq__, True),
    "stringnotequals": (str.__eq__, False),
    "stringequalsignorecase": (_same_case, True),
    "stringnotequalsignorecase": (_same_case, False),
    "stringlike": (lambda value, wanted: like(wanted, value), True),
    "stringnotlike": (lambda value, wanted: like(wanted, value), False),
    "bool": (_same_case, True),
    "ipaddress": (_within, True),
    "notipaddress": (_within, False),
    **{f"numeric{name}": (_number(compare), True) for name, compare in _COMPARISONS.items()},
    "numericnotequals": (_number(_COMPARISONS["equals"]), False),
    **{f"date{name}": (_date(compare), True) for name, compare in _COMPARISONS.items()},
    "datenotequals": (_date(_COMPARISONS["equals"]), False),
}
