"""What an operation answers, before it is bytes on a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

XML = "application/xml"


@dataclass(slots=True)
class Answer:
    """``length``: of ``stream``, None where nobody knows it, or of what a HEAD request would have got; of a
    ``body`` nothing has to be said."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterator[memoryview] | None = None
    length: int | None = None


def xml(document: bytes, headers: dict[str, str] | None = None) -> Answer:
    return Answer(headers={"Content-Type": XML, **(headers or {})}, body=document)


def nothing(headers: dict[str, str] | None = None) -> Answer:
    """Done, and there is nothing to say."""
    return Answer(204, headers or {})
