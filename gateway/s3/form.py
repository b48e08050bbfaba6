"""Uploads by a browser's form: its policy, its signature, and what its fields come to.

Owns the conditions of the policy document. The fields arrive parsed, the file behind them; of a field that a
signed form has, each must be allowed by a condition. After Amazon's "Browser-Based Uploads Using POST".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moorage.gateway.s3 import names, signature, times
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.signature import ALGORITHM, SKEW_MS, Scope

FIELDS_BYTES_MAX: Final = 20 << 10  # of all fields before the file
POLICY_BYTES_MAX: Final = 20 << 10
# Fields that no condition has to allow.
_FREE: Final = {"policy", "x-amz-signature", "file", "bucket"}
_HEADERS: Final = {
    *("cache-control", "content-type", "content-disposition", "content-encoding", "content-language"),
    *("expires", "x-amz-storage-class", "x-amz-website-redirect-location"),
}
_PREFIXES: Final = (names.METADATA_PREFIX, "x-amz-checksum-", "x-amz-object-lock-")
_SIGNED: Final = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")


@dataclass(frozen=True, slots=True)
class Claim:
    """Who signed the form, by its own word. ``policy`` as it stands in the form, which is what is signed."""

    access_key: str
    scope: Scope
    policy: str
    signature: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upload:
    """What a form asks for. ``headers`` as PutObject would have them, names in lower case; ``tagging`` an XML
    document; ``status`` and ``redirect``: how success is told. The file has ``size_min`` to ``size_max``
    bytes."""

    key: str
    headers: dict[str, str]
    tagging: str | None
    status: int
    redirect: str | None
    size_min: int
    size_max: int

    def check_size(self, size: int) -> None:
        """Of the whole file; while it arrives, of what has arrived, as for too large."""
        if size < self.size_min:
            raise S3Error("EntityTooSmall", ProposedSize=str(size), MinSizeAllowed=str(self.size_min))
        self.check_size_so_far(size)

    def check_size_so_far(self, size: int) -> None:
        if size > self.size_max:
            raise S3Error("EntityTooLarge", ProposedSize=str(size), MaxSizeAllowed=str(self.size_max))


def fields_of(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names in lower case, each once. Raises S3Error."""
    fields: dict[str, str] = {}
    size = 0
    for name, value in pairs:
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise S3Error("InvalidArgument", "A field of the form is not UTF-8.") from None
        if size > FIELDS_BYTES_MAX:
            raise S3Error("MaxPostPreDataLengthExceeded")
        if name.lower() in fields:
            raise S3Error("InvalidArgument", f"The form has the field {name!r} twice.")
        fields[name.lower()] = value
    return fields


def claim_of(fields: Mapping[str, str], region: str, now_ms: int) -> Claim | None:
    """None for a form that nobody signed. Raises S3Error."""
    if "awsaccesskeyid" in fields or "signature" in fields:
        raise S3Error("InvalidRequest", f"This way to sign is not supported: use {ALGORITHM} (version 4).")
    if "policy" not in fields and not any(name in fields for name in _SIGNED):
        return None
    for name in ("policy", *_SIGNED):
        if name not in fields:
            raise S3Error("InvalidArgument", f"The signed form has no field {name}.")
    if "x-amz-security-token" in fields:
        raise S3Error("InvalidToken")
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise S3Error("InvalidArgument", f"x-amz-algorithm is {ALGORITHM}.")
    try:
        access_key, scope = signature.scope_of(fields["x-amz-credential"])
        signed = signature.signature_of(fields["x-amz-signature"])
    except ValueError as error:
        raise S3Error("InvalidArgument", str(error)) from None
    at_ms = times.parse_basic(fields["x-amz-date"])
    if at_ms is None or fields["x-amz-date"][:8] != scope.date or scope.region != region:
        raise S3Error("InvalidArgument", "x-amz-date and x-amz-credential do not fit together, or not here.")
    if at_ms - now_ms > SKEW_MS:
        raise S3Error("AccessDenied", "The form is not valid yet.")
    return Claim(access_key, scope, fields["policy"], signed)


def prove(claim: Claim, secret: str) -> None:
    """Raises SignatureDoesNotMatch."""
    signature.check_text(secret, claim.scope, claim.policy, claim.signature)


def upload_of(fields: Mapping[str, str], bucket: str, filename: str, now_ms: int) -> Upload:
    """``filename`` as the browser told it: it takes the place of ``${filename}`` in the key. A form with a
    policy must keep to it, signed or not. Raises S3Error."""
    if "key" not in fields:
        raise S3Error("UserKeyMustBeSpecified")
    size_min, size_max = 0, names.PUT_SIZE_MAX
    if "policy" in fields:
        size_min, size_max = _check_policy(fields, bucket, now_ms)
    base = filename.replace("\\", "/").rpartition("/")[2]
    headers = {
        name: value for name, value in fields.items() if name in _HEADERS or name.startswith(_PREFIXES)
    }
    if "acl" in fields:
        headers["x-amz-acl"] = fields["acl"]
    for name, value in headers.items():
        if any(ord(each) < 32 or ord(each) == 127 for each in value):
            raise S3Error("InvalidArgument", f"The field {name!r} has control characters.")
    status = fields.get("success_action_status", "204")
    return Upload(
        names.check_key(fields["key"].replace("${filename}", base)),
        headers,
        fields.get("tagging"),
        int(status) if status in ("200", "201") else 204,
        fields.get("success_action_redirect", fields.get("redirect")),
        size_min,
        size_max,
    )


# -- the policy ------------------------------------------------------------------------------------------


def _check_policy(fields: Mapping[str, str], bucket: str, now_ms: int) -> tuple[int, int]:
    """The bounds of the size. Raises AccessDenied for what the policy does not allow."""
    policy = _decoded(fields["policy"])
    expiration = policy.get("expiration")
    end_ms = times.parse_iso(expiration) if isinstance(expiration, str) else None
    conditions = policy.get("conditions")
    if end_ms is None or not isinstance(conditions, list):
        raise _invalid("it has an expiration, a time, and conditions, a list")
    if now_ms > end_ms:
        raise S3Error("AccessDenied", "The policy of the form has expired.")
    size_min, size_max = 0, names.PUT_SIZE_MAX
    named = {"bucket"}
    for kind, name, value in map(_condition, conditions):
        if kind == "content-length-range":
            size_min, size_max = max(size_min, int(name)), min(size_max, int(value))
            continue
        named.add(name)
        _check_condition(kind, name, value, bucket if name == "bucket" else fields.get(name))
    extra = sorted(name for name in fields if name not in named | _FREE and not name.startswith("x-ignore-"))
    if extra:
        raise S3Error("AccessDenied", f"The policy of the form does not allow the field {extra[0]!r}.")
    return size_min, size_max


def _check_condition(kind: str, name: str, wanted: str, found: str | None) -> None:
    if found is None:
        holds = False
    elif kind == "eq":
        holds = found == wanted
    elif name == "content-type":  # a list of them, as Amazon has it
        holds = all(each.strip().startswith(wanted) for each in found.split(","))
    else:
        holds = found.startswith(wanted)
    if not holds:
        raise S3Error("AccessDenied", f"A condition of the form's policy does not hold: {kind} ${name}.")


def _condition(value: Any) -> tuple[str, str, str]:
    """Kind, name without its dollar in lower case, and value; of a range both bounds."""
    if isinstance(value, dict) and len(value) == 1:
        ((name, wanted),) = value.items()
        if isinstance(wanted, str):
            return "eq", name.lower(), wanted
    elif isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        kind, name, wanted = value[0].lower(), value[1], value[2]
        if kind == "content-length-range":
            return kind, _bound(name), _bound(wanted)
        right = kind in ("eq", "starts-with") and isinstance(name, str) and isinstance(wanted, str)
        if right and name.startswith("$"):
            return kind, name[1:].lower(), wanted
    raise _invalid("a condition is an object of one text, or a list of three")


def _bound(value: Any) -> str:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _invalid("content-length-range has two numbers")
    return text


def _decoded(policy: str) -> dict[str, Any]:
    if len(policy) > POLICY_BYTES_MAX:
        raise _invalid("it is too large")
    try:
        value = json.loads(base64.b64decode("".join(policy.split()), validate=True).decode())
    except (binascii.Error, ValueError, RecursionError):
        raise _invalid("it is not the base64 of a JSON document") from None
    if not isinstance(value, dict):
        raise _invalid("it is not an object")
    return value


def _invalid(why: str) -> S3Error:
    return S3Error("InvalidPolicyDocument", f"The policy of the form cannot be used: {why}.")
