"""Points in time as S3 writes them. Milliseconds since 1970, UTC, on our side.

Owns the formats. Must never ask what time it is: that is an argument everywhere.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

DAY_MS: Final = 86_400_000
LAST_MS: Final = 253_402_300_799_999  # in the year 9999: nothing later can be written
_BASIC = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z", re.ASCII)
_EXTENDED = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.]([0-9]{1,9}))?)?(?:Z|[+]00:?00)?)?",
    re.ASCII,
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
# The three that HTTP knows: of RFC 5322, of RFC 850, and of C's asctime.
_HTTP = (
    re.compile(
        r"[A-Z][a-z]{2}, ([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) "
        r"(?:GMT|UTC|[+-]0000)",
        re.ASCII,
    ),
    re.compile(
        r"[A-Z][a-z]{5,8}, ([0-9]{2})-([A-Z][a-z]{2})-([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT",
        re.ASCII,
    ),
    re.compile(
        r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) ([ 0-9][0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ([0-9]{4})", re.ASCII
    ),
)


def _ms(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    if second == 60:  # a leap second, which Python does not know
        second = 59
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return None


def parse_basic(text: str) -> int | None:
    """As in ``X-Amz-Date``: 20130524T000000Z. None for what is no such time, as in all of these."""
    match = _BASIC.fullmatch(text)
    return _ms(*map(int, match.groups())) if match else None


def parse_iso(text: str) -> int | None:
    """As in XML and in policies: 2013-05-24T00:00:00.000Z; a date alone is its midnight."""
    match = _EXTENDED.fullmatch(text.strip())
    if match is None:
        return None
    *numbers, fraction = match.groups("0")
    at = _ms(*map(int, numbers))
    return None if at is None else at + int(fraction[:3].ljust(3, "0"))


def parse_http(text: str) -> int | None:
    """As in ``If-Modified-Since``."""
    rfc5322, rfc850, asctime = (form.fullmatch(text.strip()) for form in _HTTP)
    if rfc5322:
        day, month, year, *clock = rfc5322.groups()
    elif rfc850:
        day, month, short, *clock = rfc850.groups()
        year = ("19" if int(short) >= 70 else "20") + short
    elif asctime:
        month, day, *clock, year = asctime.groups()
    else:
        return None
    if month not in _MONTHS:
        return None
    hour, minute, second = map(int, clock)
    return _ms(int(year), _MONTHS.index(month) + 1, int(day), hour, minute, second)


def _utc(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def basic(at_ms: int) -> str:
    return f"{_utc(at_ms):%Y%m%dT%H%M%SZ}"


def iso(at_ms: int) -> str:
    # Not by a format, which takes several times as long: a listing has a thousand of these.
    return f"{_utc(at_ms).isoformat()[:19]}.{at_ms % 1000:03d}Z"


def http(at_ms: int) -> str:
    """As in ``Last-Modified``; in English whatever the locale."""
    at = _utc(at_ms)
    return f"{_DAYS[at.weekday()]}, {at:%d} {_MONTHS[at.month - 1]} {at:%Y %H:%M:%S} GMT"
