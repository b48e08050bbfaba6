"""Cross-origin requests: a bucket's rules, and the headers that they allow.

Owns the first-match rule of S3. After Amazon's "Using cross-origin resource sharing".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moorage.gateway.s3.documents import reading, tree
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.markup import Malformed, Node, branch, document, element, maybe

RULES_MAX: Final = 100
METHODS: Final = ("GET", "PUT", "POST", "DELETE", "HEAD")
_VARY: Final = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


@dataclass(frozen=True, slots=True)
class Rule:
    """``origins`` and ``headers`` may have one ``*`` each."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age_s: int | None = None
    id: str | None = None


def parse(body: bytes) -> list[Rule]:
    with reading():
        root = tree(body, "CORSConfiguration")
        root.expect("CORSRule")
        if not 1 <= len(root.children) <= RULES_MAX:
            raise Malformed(f"it has 1 to {RULES_MAX} rules")
        return [_rule(node) for node in root.children]


def _rule(node: Node) -> Rule:
    node.expect("AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader", "MaxAgeSeconds", "ID")

    def texts(name: str) -> tuple[str, ...]:
        return tuple(each.leaf().strip() for each in node.every(name))

    found = Rule(
        texts("AllowedOrigin"),
        texts("AllowedMethod"),
        texts("AllowedHeader"),
        texts("ExposeHeader"),
        node.number("MaxAgeSeconds"),
        node.get("ID"),
    )
    if not found.origins or not found.methods:
        raise Malformed("a rule has an AllowedOrigin and an AllowedMethod")
    if wrong := [method for method in found.methods if method not in METHODS]:
        raise S3Error("InvalidRequest", f"AllowedMethod {wrong[0]!r} is not one of {', '.join(METHODS)}.")
    if wrong := [each for each in (*found.origins, *found.headers) if each.count("*") > 1]:
        raise S3Error("InvalidRequest", f"{wrong[0]!r} has more than one *.")
    for each in (*found.exposed, *found.headers, *found.origins):
        if not each.isascii() or not each.isprintable() or "," in each:  # it becomes a header
            raise S3Error("InvalidRequest", f"{each!r} cannot be in a header.")
    if found.id is not None and len(found.id) > 255:
        raise Malformed("an ID has at most 255 characters")
    return found


def render(rules: Sequence[Rule]) -> bytes:
    return document("CORSConfiguration", *map(_rendered, rules))


def _rendered(rule: Rule) -> str:
    return branch(
        "CORSRule",
        maybe("ID", rule.id),
        *(element("AllowedHeader", each) for each in rule.headers),
        *(element("AllowedMethod", each) for each in rule.methods),
        *(element("AllowedOrigin", each) for each in rule.origins),
        *(element("ExposeHeader", each) for each in rule.exposed),
        maybe("MaxAgeSeconds", rule.max_age_s),
    )


def preflight(rules: Sequence[Rule], origin: str, method: str, headers: Sequence[str]) -> dict[str, str]:
    """The headers of the answer to OPTIONS; ``headers``: those that the client wants to send. Raises
    AccessForbidden where no rule allows it."""
    wanted = [each.strip().lower() for each in headers if each.strip()]
    for rule in rules:
        allowed = [each for each in wanted if any(_fits(one.lower(), each) for one in rule.headers)]
        if allowed == wanted and _applies(rule, origin, method):
            found = _headers(rule, origin)
            found["Access-Control-Allow-Methods"] = ", ".join(rule.methods)
            if wanted:
                found["Access-Control-Allow-Headers"] = ", ".join(wanted)
            if rule.max_age_s is not None:
                found["Access-Control-Max-Age"] = str(rule.max_age_s)
            return found
    raise S3Error("AccessForbidden")


def answer(rules: Sequence[Rule], origin: str, method: str) -> dict[str, str]:
    """The headers to add to the answer to any other request; none where no rule applies."""
    return next((_headers(rule, origin) for rule in rules if _applies(rule, origin, method)), {})


def _applies(rule: Rule, origin: str, method: str) -> bool:
    return method in rule.methods and any(_fits(each, origin) for each in rule.origins)


def _headers(rule: Rule, origin: str) -> dict[str, str]:
    found = {"Access-Control-Allow-Origin": "*", "Vary": _VARY}
    if "*" not in rule.origins:
        found["Access-Control-Allow-Origin"] = origin
        found["Access-Control-Allow-Credentials"] = "true"
    if rule.exposed:
        found["Access-Control-Expose-Headers"] = ", ".join(rule.exposed)
    return found


def _fits(pattern: str, text: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
