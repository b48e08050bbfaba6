"""Parameters of a call: what is common to all of metadata's methods."""

from __future__ import annotations

from typing import Any, Final

from moorage.wire.errors import Invalid
from moorage.wire.rpc import CallContext

TIMEOUT_S: Final = 10.0  # when the caller sets no deadline
REPLY_MARGIN_S: Final = 0.2  # answer before the caller's deadline, so that it hears why


def check_known(params: dict[str, Any], *keys: str) -> None:
    """A misspelt parameter is an error, not a default."""
    unknown = sorted(set(params) - set(keys))
    if unknown:
        raise Invalid(f"unknown parameter {', '.join(map(repr, unknown))}: known are {', '.join(keys)}")


def number_of(params: dict[str, Any], key: str) -> int:
    value = params.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Invalid(f"{key} {value!r} must be a number from 0 to 2^63 - 1")
    return value


def flag_of(params: dict[str, Any], key: str) -> bool:
    """False when it is not given. The truth of another value is never guessed: the JSON API's query is text,
    and ``force=false`` there would be true."""
    value = params.get(key, False)
    if not isinstance(value, bool):
        raise Invalid(f'{key} {value!r} is not accepted: write {{"{key}": true}} or false, in a JSON body')
    return value


def remaining_s(context: CallContext | None) -> float:
    """Seconds to work; the JSON API has no context."""
    return TIMEOUT_S if context is None else context.remaining(TIMEOUT_S)
