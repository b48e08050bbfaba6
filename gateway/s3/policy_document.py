"""The JSON document of a bucket policy, as values that ``policy.py`` evaluates.

Owns the reading, which refuses all that it does not understand: no ``Deny`` is ever passed over. After
Amazon's "Bucket policies".
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.policy import (
    ANYBODY,
    KEYS,
    NAMED_KEYS,
    OPERATORS,
    RESOURCE,
    Condition,
    Policy,
    Statement,
    like,
    moment,
)

SIZE_MAX: Final = 20 << 10
VERSIONS: Final = ("2012-10-17", "2008-10-17")
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:[.][0-9]{1,9})?", re.ASCII)
_NAME = re.compile(r"[^*?/:]+")
_ARN = re.compile(r"arn:aws:iam::([^:/]*):(?:root|user/(?:[^:]*/)?([^:/]+))")


def parse(body: bytes, bucket: str) -> Policy:
    """Raises MalformedPolicy, which says what is wrong."""
    if len(body) > SIZE_MAX:
        raise _malformed(f"it has more than {SIZE_MAX} bytes")
    try:
        value = json.loads(body.decode(), object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        raise _malformed("it is not JSON") from None
    document = _map(value, "the policy", {"Version", "Id", "Statement"})
    if document.get("Version", VERSIONS[1]) not in VERSIONS:
        raise _malformed(f"Version is one of {', '.join(VERSIONS)}")
    statements = document.get("Statement")
    statements = statements if isinstance(statements, list) else [statements]
    if not statements:
        raise _malformed("it has no Statement")
    found = Policy(tuple(_statement(each, bucket) for each in statements))
    sids = [each.sid for each in found.statements if each.sid]
    if len(set(sids)) != len(sids):
        raise _malformed("a Sid is given twice")
    return found


_STATEMENT: Final = {
    *("Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource"),
    "Condition",
}


def _statement(value: Any, bucket: str) -> Statement:
    stated = _map(value, "a Statement", _STATEMENT)
    if stated.get("Effect") not in ("Allow", "Deny"):
        raise _malformed("Effect is Allow or Deny")
    sid = stated.get("Sid", "")
    if not isinstance(sid, str):
        raise _malformed("Sid is a text")
    principals, others_principals = _either(stated, "Principal")
    actions, others_actions = _either(stated, "Action")
    resources, others_resources = _either(stated, "Resource")
    if others_principals and stated["Effect"] == "Allow":
        raise _malformed("NotPrincipal can only be denied: else whoever is new is let in")
    return Statement(
        stated["Effect"] == "Allow",
        _principals(principals),
        tuple(map(_action, _texts(actions, "Action"))),
        tuple(_resource(each, bucket) for each in _texts(resources, "Resource")),
        _conditions(stated.get("Condition", {})),
        others_principals,
        others_actions,
        others_resources,
        sid,
    )


def _either(stated: dict[str, Any], name: str) -> tuple[Any, bool]:
    """The value, and whether it is the negated one."""
    if (name in stated) == (f"Not{name}" in stated):
        raise _malformed(f"a Statement has either {name} or Not{name}")
    return (stated[name], False) if name in stated else (stated[f"Not{name}"], True)


def _principals(value: Any) -> tuple[str, ...]:
    if value == ANYBODY:
        return (ANYBODY,)
    named = _map(value, "Principal", {"AWS", "CanonicalUser"})
    texts = [text for each in named.values() for text in _texts(each, "Principal")]
    if not texts:
        raise _malformed("Principal names nobody")
    return tuple(map(principal_of, texts))


def principal_of(text: str) -> str:
    """The principal that a policy means: by its name, or by an ARN whose user, or account, has that name.
    Of a user's ARN the account and the path say nothing here: principals are of one cluster."""
    arn = _ARN.fullmatch(text)
    name = (arn[2] or arn[1]) if arn else text
    if name != ANYBODY and not _NAME.fullmatch(name):
        raise _malformed(f"{text!r} is not a principal")
    return name


def _action(text: str) -> str:
    action = text.lower()
    if action != "*" and not action.startswith("s3:"):
        raise _malformed(f"{text!r} is not an action of S3")
    # One that S3 has and we do not is of no use, but of no harm either: policies are written for both.
    if not all(each.isalnum() or each in "*?:" for each in action):
        raise _malformed(f"{text!r} is not an action")
    return action


def _resource(text: str, bucket: str) -> str:
    name, slash, _ = text.removeprefix(RESOURCE).partition("/")
    if not text.startswith(RESOURCE) or not (name == bucket or (like(name, bucket) and not slash)):
        raise _malformed(f"{text!r} is not {RESOURCE}{bucket}, or something in it")
    if "${" in text:
        raise _malformed("variables are not supported")
    return text


def _conditions(value: Any) -> tuple[Condition, ...]:
    found = []
    for operator, tests in _map(value, "Condition", None).items():
        for key, values in _map(tests, f"Condition {operator}", None).items():
            found.append(_condition(operator, key, tuple(_texts(values, key))))
    return tuple(found)


def _condition(operator: str, key: str, values: tuple[str, ...]) -> Condition:
    name = operator.lower()
    if_exists = name.endswith("ifexists") and name != "nullifexists"
    name = name.removesuffix("ifexists") if if_exists else name
    if name not in OPERATORS and name != "null":
        raise _malformed(f"the operator {operator!r} is not supported")
    prefix, slash, tag = key.partition("/")
    known = prefix.lower() + slash + tag  # the names of tags keep their case
    if known not in KEYS and prefix.lower() + slash not in NAMED_KEYS:
        raise _malformed(f"the key {key!r} is not supported")
    if any("${" in each for each in values):
        raise _malformed("variables are not supported")
    _check_values(name, key, values)
    negated = name != "null" and not OPERATORS[name][1]
    return Condition(name, known, values, if_exists or negated)


def _check_values(operator: str, key: str, values: tuple[str, ...]) -> None:
    """A value that can never be equal would make a Deny that never denies."""
    for value in values:
        if operator in ("bool", "null"):
            right = value.lower() in ("true", "false")
        elif operator.startswith("numeric"):
            right = _NUMBER.fullmatch(value) is not None
        elif operator.startswith("date"):
            right = moment(value) is not None
        elif operator.endswith("ipaddress"):
            right = _is_network(value)
        else:
            continue
        if not right:
            raise _malformed(f"{value!r} is not a value for {key}")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _texts(value: Any, name: str) -> Sequence[str]:
    """One text or many; numbers and booleans as JSON writes them."""
    values = value if isinstance(value, list) else [value]
    found = [json.dumps(each) if isinstance(each, bool | int | float) else each for each in values]
    if not found or not all(isinstance(each, str) for each in found):
        raise _malformed(f"{name} is a text, or a list of them")
    return found


def _map(value: Any, name: str, known: set[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(f"{name} is not an object")
    if known is not None and (unknown := sorted(value.keys() - known)):
        raise _malformed(f"{name} has {unknown[0]!r}, which is not known")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _malformed(why: str) -> S3Error:
    return S3Error("MalformedPolicy", f"The policy cannot be used: {why}.")
