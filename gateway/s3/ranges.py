"""Byte ranges of objects. One range, or the whole: S3 does not answer several at once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moorage.gateway.s3.errors import S3Error

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Range:
    """``last`` is the offset of the last byte, as in HTTP."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1

    def content_range(self, size: int) -> str:
        return f"bytes {self.first}-{self.last}/{size}"


def of_header(text: str | None, size: int) -> Range | None:
    """None: the whole object, also for what is no range that could be answered. Raises InvalidRange for one
    that lies outside of the object."""
    match = _RANGE.fullmatch(text or "")
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:  # the last so many bytes
        length = min(int(match[2]), size)
        found = Range(size - length, size - 1)
    else:
        first = int(match[1])
        if match[2] and int(match[2]) < first:
            return None
        found = Range(first, min(int(match[2]) if match[2] else size - 1, size - 1))
    if found.length < 1:
        raise S3Error("InvalidRange", ActualObjectSize=str(size), RangeRequested=text or "")
    return found


def of_copy(text: str | None, size: int) -> Range | None:
    """``x-amz-copy-source-range``: exact, or an error."""
    if text is None:
        return None
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] and match[2]) or int(match[2]) < int(match[1]):
        raise S3Error("InvalidArgument", "x-amz-copy-source-range is bytes=FIRST-LAST.")
    found = Range(int(match[1]), int(match[2]))
    if found.last >= size:
        raise S3Error("InvalidArgument", f"The range is not within the source, which has {size} bytes.")
    return found
