"""Access control lists: the canned ones, those in headers and documents, and what they allow.

Owns the grants. A principal of the cluster is a canonical user, its name is the ID.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from moorage.gateway.s3.documents import reading, tree
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.markup import Malformed, Node, branch, document, element
from moorage.gateway.s3.request import Request

GRANTS_MAX: Final = 100
_GROUPS: Final = "http://acs.amazonaws.com/groups/global/"
EVERYBODY: Final = f"{_GROUPS}AllUsers"
SIGNED_IN: Final = f"{_GROUPS}AuthenticatedUsers"
_INSTANCE: Final = ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
_GRANTEE = re.compile(r'[ \t]*(id|uri|emailAddress)=(?:"([^"]*)"|([^",\s]+))[ \t]*(?:,|$)', re.IGNORECASE)


class Permission(StrEnum):
    READ = "READ"
    WRITE = "WRITE"
    READ_ACP = "READ_ACP"
    WRITE_ACP = "WRITE_ACP"
    FULL_CONTROL = "FULL_CONTROL"


@dataclass(frozen=True, slots=True)
class Grant:
    """``grantee``: a principal, or the URI of a group."""

    grantee: str
    permission: Permission


@dataclass(frozen=True, slots=True)
class Acl:
    owner: str
    grants: tuple[Grant, ...] = ()

    def allows(self, principal: str | None, wanted: Permission) -> bool:
        """``principal`` None: who did not sign."""
        groups = {EVERYBODY} if principal is None else {EVERYBODY, SIGNED_IN, principal}
        return any(
            grant.grantee in groups and grant.permission in (wanted, Permission.FULL_CONTROL)
            for grant in self.grants
        )

    @property
    def is_public(self) -> bool:
        return any(grant.grantee in (EVERYBODY, SIGNED_IN) for grant in self.grants)


# What each gives beside everything to the owner; `*` stands for the owner of the bucket.
_CANNED: Final[dict[str, tuple[tuple[str, Permission], ...]]] = {
    "private": (),
    "public-read": ((EVERYBODY, Permission.READ),),
    "public-read-write": ((EVERYBODY, Permission.READ), (EVERYBODY, Permission.WRITE)),
    "authenticated-read": ((SIGNED_IN, Permission.READ),),
    "bucket-owner-read": (("*", Permission.READ),),
    "bucket-owner-full-control": (("*", Permission.FULL_CONTROL),),
}
_HEADERS: Final = {
    f"x-amz-grant-{permission.lower().replace('_', '-')}": permission for permission in Permission
}


def canned(name: str, owner: str, bucket_owner: str) -> Acl:
    """Raises InvalidArgument for a name that there is not."""
    if name not in _CANNED:
        raise S3Error("InvalidArgument", f"x-amz-acl is one of {', '.join(_CANNED)}.")
    given = ((bucket_owner if who == "*" else who, permission) for who, permission in _CANNED[name])
    more = (Grant(who, permission) for who, permission in given if who != owner)
    return Acl(owner, (Grant(owner, Permission.FULL_CONTROL), *more))


def of_headers(request: Request, owner: str, bucket_owner: str) -> Acl | None:
    """By ``x-amz-acl`` or ``x-amz-grant-...``; None without either. Raises S3Error."""
    name = request.header("x-amz-acl")
    stated = [(header, request.header(header)) for header in _HEADERS]
    grants = [
        Grant(grantee, _HEADERS[header])
        for header, text in stated
        if text is not None
        for grantee in _grantees(text)
    ]
    if name is not None and any(text is not None for _, text in stated):
        raise S3Error("InvalidRequest", "x-amz-acl and x-amz-grant-... exclude each other.")
    if name is not None:
        return canned(name, owner, bucket_owner)
    return _checked(Acl(owner, tuple(grants))) if grants else None


def _grantees(text: str) -> Iterable[str]:
    at = 0
    while at < len(text):
        match = _GRANTEE.match(text, at)
        if match is None:
            raise S3Error("InvalidArgument", 'A grant is written id="..." or uri="...", separated by commas.')
        at = match.end()
        yield _grantee(match[1].lower(), match[2] if match[2] is not None else match[3])


def _grantee(kind: str, value: str) -> str:
    if kind == "emailaddress":
        raise S3Error("NotImplemented", "Grants by e-mail address are not implemented here.")
    if kind == "uri" and value not in (EVERYBODY, SIGNED_IN):
        raise S3Error("InvalidArgument", "There is no such group of grantees.")
    if kind == "id" and (not value.isprintable() or value in ("", EVERYBODY, SIGNED_IN)):
        raise S3Error("InvalidArgument", "The ID of a grantee is the name of a principal.")
    return value


def _checked(acl: Acl) -> Acl:
    if len(acl.grants) > GRANTS_MAX:
        raise S3Error("MalformedACLError", f"A list has at most {GRANTS_MAX} grants.")
    return acl


# -- the document ----------------------------------------------------------------------------------------


def parse(body: bytes, owner: str) -> Acl:
    """``owner``: who has the bucket or the object; a document cannot give it to somebody else."""
    with reading("MalformedACLError"):
        root = tree(body, "AccessControlPolicy")
        root.expect("Owner", "AccessControlList")
        stated = root.maybe("Owner")
        if stated is not None and stated.one("ID").leaf() != owner:
            raise S3Error("AccessDenied", "The owner cannot be changed.")
        listed = root.one("AccessControlList")
        listed.expect("Grant")
        return _checked(Acl(owner, tuple(map(_grant, listed.children))))


def _grant(node: Node) -> Grant:
    node.expect("Grantee", "Permission")
    permission = Permission(node.word("Permission", *Permission))
    grantee = node.one("Grantee")
    grantee.expect("ID", "DisplayName", "URI", "EmailAddress")
    named = [child for child in grantee.children if child.name != "DisplayName"]
    if len(named) != 1:
        raise Malformed("a Grantee has one of ID and URI")
    return Grant(_grantee(named[0].name.lower(), named[0].leaf().strip()), permission)


def render(acl: Acl) -> bytes:
    owner = element("ID", acl.owner) + element("DisplayName", acl.owner)
    grants = map(_rendered, acl.grants)
    return document("AccessControlPolicy", branch("Owner", owner), branch("AccessControlList", *grants))


def _rendered(grant: Grant) -> str:
    if grant.grantee in (EVERYBODY, SIGNED_IN):
        kind, who = "Group", element("URI", grant.grantee)
    else:
        who = element("ID", grant.grantee) + element("DisplayName", grant.grantee)
        kind = "CanonicalUser"
    attributes = f'{_INSTANCE} xsi:type="{kind}"'
    return branch(
        "Grant", branch("Grantee", who, attributes=attributes), element("Permission", grant.permission)
    )
