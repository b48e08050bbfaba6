"""Lifecycle rules: what a bucket's configuration says, and what of an object is due at a given time.

Owns the reading and the decisions; deletes nothing, and asks no clock. Days are whole ones: what was made on
some day is due at the midnight (UTC) after so many days have passed, as Amazon's "Setting lifecycle
configuration" describes it. Transitions to other storage classes are NotImplemented: there is one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moorage.gateway.s3 import names, times
from moorage.gateway.s3.documents import reading, tag_pair, tree
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.markup import Malformed, Node, branch, document, element, maybe
from moorage.gateway.s3.times import DAY_MS

RULES_MAX: Final = 1000
SIZE_MAX: Final = 1 << 20
ID_MAX: Final = 255
_ACTIONS: Final = ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
_TRANSITIONS: Final = ("Transition", "NoncurrentVersionTransition")
_FILTERS: Final = ("Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan")


@dataclass(frozen=True, slots=True)
class Rule:
    """What it is about: ``prefix``, ``tags`` (all of them), ``larger_than`` and ``smaller_than`` bytes.
    What is to be done: the others; None or False for what is not."""

    id: str
    enabled: bool = True
    prefix: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    larger_than: int | None = None
    smaller_than: int | None = None
    days: int | None = None
    date_ms: int | None = None
    markers: bool = False  # delete markers that hide nothing
    noncurrent_days: int | None = None
    noncurrent_kept: int = 0  # of the newest, beside the current one
    abort_days: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An object, or one version of it, as rules look at it. ``bare``: a delete marker, or an upload, which
    has neither tags nor a size. ``former``: there is a newer version of its key."""

    key: str
    size: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    version: str = "null"
    id: str = ""
    bare: bool = False
    former: bool = False


# -- what is due -----------------------------------------------------------------------------------------


def expiry_ms(rules: Sequence[Rule], found: Found, modified_ms: int) -> tuple[int, str] | None:
    """When the current version expires, and by which rule: the one that comes first."""
    due = []
    for rule in rules:
        if not _about(rule, found):
            continue
        if rule.days is not None:
            due.append((_midnight_after(modified_ms, rule.days), rule.id))
        if rule.date_ms is not None:
            due.append((rule.date_ms, rule.id))
    return min(due, default=None)


def expiration_header(rules: Sequence[Rule], found: Found, modified_ms: int) -> str | None:
    """``x-amz-expiration`` of an answer about an object."""
    due = expiry_ms(rules, found, modified_ms)
    if due is None:
        return None
    return f'expiry-date="{times.http(due[0])}", rule-id="{names.percent(due[1])}"'


def current_due(rules: Sequence[Rule], found: Found, modified_ms: int, now_ms: int) -> bool:
    """Whether the current version, which is no delete marker, is to be deleted (with versioning: hidden)."""
    due = expiry_ms(rules, found, modified_ms)
    return due is not None and due[0] <= now_ms


def noncurrent_due(rules: Sequence[Rule], found: Found, superseded_ms: int, newer: int, now_ms: int) -> bool:
    """Of a version, also a delete marker, that another one followed at ``superseded_ms``. ``newer``: how many
    noncurrent versions of the key are newer than it."""
    return any(
        rule.noncurrent_days is not None
        and newer >= rule.noncurrent_kept
        and _midnight_after(superseded_ms, rule.noncurrent_days) <= now_ms
        for rule in rules
        if _about(rule, found)
    )


def marker_due(rules: Sequence[Rule], found: Found, modified_ms: int, now_ms: int) -> bool:
    """Of a delete marker that is the only version its key has: it goes as an object would, by its age too."""
    asked = any(rule.markers and _about(rule, found) for rule in rules)
    return asked or current_due(rules, found, modified_ms, now_ms)


class Succession:
    """Which versions are due to go for good. It is shown all of them, of each key the newest first, as a
    listing has them."""

    def __init__(self, rules: Sequence[Rule], now_ms: int) -> None:
        self._rules = rules
        self._now_ms = now_ms
        self._key = ""
        self._newer_ms = 0  # when the version that was shown before was made: the next is noncurrent since
        self._noncurrent = 0
        self._alone: Found | None = None  # a marker that is due, unless another version of its key follows

    def see(self, found: Found, modified_ms: int) -> list[Found]:
        """What is known by now to be due: at most one, this version or the one before."""
        if found.key != self._key:
            due = self.end()
            self._key, self._noncurrent = found.key, 0
            if found.bare and marker_due(self._rules, found, modified_ms, self._now_ms):
                self._alone = found
        else:
            self._alone = None
            is_due = noncurrent_due(self._rules, found, self._newer_ms, self._noncurrent, self._now_ms)
            due = [replace(found, former=True)] if is_due else []
            self._noncurrent += 1
        self._newer_ms = modified_ms
        return due

    def end(self) -> list[Found]:
        """Likewise, when there is no other one."""
        due, self._alone = self._alone, None
        return [] if due is None else [due]


def upload_due(rules: Sequence[Rule], key: str, initiated_ms: int, now_ms: int) -> bool:
    """Of a multipart upload that was not completed."""
    return any(
        rule.abort_days is not None and _midnight_after(initiated_ms, rule.abort_days) <= now_ms
        for rule in rules
        if _about(rule, Found(key, bare=True))
    )


def _about(rule: Rule, found: Found) -> bool:
    return (
        rule.enabled
        and not (found.bare and _narrow(rule))
        and found.key.startswith(rule.prefix)
        and (rule.larger_than is None or found.size > rule.larger_than)
        and (rule.smaller_than is None or found.size < rule.smaller_than)
        and all(found.tags.get(name) == value for name, value in rule.tags.items())
    )


def _narrow(rule: Rule) -> bool:
    """Whether it asks for what delete markers and uploads do not have: tags, or a size."""
    return bool(rule.tags) or rule.larger_than is not None or rule.smaller_than is not None


def _midnight_after(begin_ms: int, days: int) -> int:
    return min(-(-(begin_ms + days * DAY_MS) // DAY_MS) * DAY_MS, times.LAST_MS)


# -- the document ----------------------------------------------------------------------------------------


def parse(body: bytes) -> list[Rule]:
    """Rules without an ID get one from their place. Raises MalformedXML, InvalidArgument, InvalidRequest."""
    with reading():
        root = tree(body, "LifecycleConfiguration", SIZE_MAX, 40 * RULES_MAX)
        root.expect("Rule")
        if not 1 <= len(root.children) <= RULES_MAX:
            raise Malformed(f"it has 1 to {RULES_MAX} rules")
        rules = [_rule(node, number) for number, node in enumerate(root.children, 1)]
    if len({rule.id for rule in rules}) != len(rules):
        raise S3Error("InvalidArgument", "Each rule needs an ID of its own.")
    return rules


def _rule(node: Node, number: int) -> Rule:
    node.expect("ID", "Status", "Filter", "Prefix", *_ACTIONS, *_TRANSITIONS)
    if any(child.name in _TRANSITIONS for child in node.children):
        raise S3Error("NotImplemented", "There is one storage class: nothing can be moved to another.")
    if not any(child.name in _ACTIONS for child in node.children):
        raise S3Error("InvalidRequest", "A rule needs an action.")
    id = node.get("ID") or f"rule-{number}"
    if len(id) > ID_MAX:
        raise S3Error("InvalidArgument", f"An ID has at most {ID_MAX} characters.")
    scope = _filter(node)
    found = Rule(
        id,
        node.word("Status", "Enabled", "Disabled") == "Enabled",
        **scope,
        **_expiration(node.maybe("Expiration")),
        **_noncurrent(node.maybe("NoncurrentVersionExpiration")),
        **_abort(node.maybe("AbortIncompleteMultipartUpload")),
    )
    if _narrow(found) and (found.markers or found.abort_days is not None):
        raise S3Error("InvalidRequest", "Delete markers and uploads have no tags and no size to filter by.")
    return found


def _filter(node: Node) -> dict[str, Any]:
    outer = node.maybe("Filter")
    if outer is None:
        return {"prefix": node.one("Prefix").leaf()}
    if node.maybe("Prefix") is not None:
        raise Malformed("a rule has either a Filter or a Prefix")
    outer.expect("And", *_FILTERS)
    inner = outer.maybe("And")
    if len(outer.children) > 1:
        raise Malformed("a Filter has one condition, or And")
    if inner is not None:
        inner.expect(*_FILTERS)
        outer = inner
    tags = names.check_tags([tag_pair(each) for each in outer.every("Tag")], names.BUCKET_TAGS_MAX)
    larger, smaller = outer.number("ObjectSizeGreaterThan"), outer.number("ObjectSizeLessThan", 1)
    if larger is not None and smaller is not None and smaller <= larger + 1:
        raise S3Error("InvalidRequest", "No size is between these two.")
    prefix = outer.get("Prefix") or ""
    return {"prefix": prefix, "tags": tags, "larger_than": larger, "smaller_than": smaller}


def _expiration(node: Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    node.expect("Days", "Date", "ExpiredObjectDeleteMarker")
    if len(node.children) != 1:
        raise Malformed("Expiration has one of Days, Date and ExpiredObjectDeleteMarker")
    if node.maybe("ExpiredObjectDeleteMarker") is not None:
        return {"markers": node.word("ExpiredObjectDeleteMarker", "true", "false") == "true"}
    if node.maybe("Days") is not None:
        return {"days": _days(node, "Days")}
    date_ms = times.parse_iso(node.one("Date").leaf())
    if date_ms is None:
        raise Malformed("Date is not a time")
    if date_ms % DAY_MS:
        raise S3Error("InvalidArgument", "Date must be at midnight, UTC.")
    return {"date_ms": date_ms}


def _noncurrent(node: Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    node.expect("NoncurrentDays", "NewerNoncurrentVersions")
    kept = node.number("NewerNoncurrentVersions", 1)
    if kept is not None and kept > 100:
        raise S3Error("InvalidArgument", "NewerNoncurrentVersions is at most 100.")
    return {"noncurrent_days": _days(node, "NoncurrentDays"), "noncurrent_kept": kept or 0}


def _abort(node: Node | None) -> dict[str, Any]:
    if node is None:
        return {}
    node.expect("DaysAfterInitiation")
    return {"abort_days": _days(node, "DaysAfterInitiation")}


def _days(node: Node, name: str) -> int:
    days = node.number(name)
    if days is None:
        raise Malformed(f"{node.name} has no {name}")
    if not 1 <= days < 2**31:
        raise S3Error("InvalidArgument", f"{name} is a whole number of days from 1.")
    return days


def render(rules: Sequence[Rule]) -> bytes:
    return document("LifecycleConfiguration", *map(_rendered, rules))


def _rendered(rule: Rule) -> str:
    return branch(
        "Rule",
        element("ID", rule.id),
        _rendered_filter(rule),
        element("Status", "Enabled" if rule.enabled else "Disabled"),
        _action(
            "Expiration",
            maybe("Days", rule.days),
            maybe("Date", None if rule.date_ms is None else times.iso(rule.date_ms)),
            maybe("ExpiredObjectDeleteMarker", rule.markers or None),
        ),
        _action(
            "NoncurrentVersionExpiration",
            maybe("NewerNoncurrentVersions", rule.noncurrent_kept or None),
            maybe("NoncurrentDays", rule.noncurrent_days),
        ),
        _action("AbortIncompleteMultipartUpload", maybe("DaysAfterInitiation", rule.abort_days)),
    )


def _rendered_filter(rule: Rule) -> str:
    parts = [
        branch("Tag", element("Key", name), element("Value", value)) for name, value in rule.tags.items()
    ]
    parts += [
        each
        for each in (
            maybe("ObjectSizeGreaterThan", rule.larger_than),
            maybe("ObjectSizeLessThan", rule.smaller_than),
        )
        if each
    ]
    if rule.prefix or not parts:
        parts.insert(0, element("Prefix", rule.prefix))
    return branch("Filter", branch("And", *parts) if len(parts) > 1 else parts[0])


def _action(name: str, *parts: str) -> str:
    return branch(name, *parts) if any(parts) else ""
