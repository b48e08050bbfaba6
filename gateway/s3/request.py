"""One HTTP request as the pure parts see it: the head, exactly as it was on the wire.

Owns how a path and a query are decoded, once for all: signatures, routing and permission checks must never
see two readings of the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Final
from urllib.parse import unquote_to_bytes

from moorage.gateway.s3.errors import S3Error

PARAMETERS_MAX: Final = 100  # a presigned request of S3 has some twenty


class Request:
    """``path`` and ``query`` (without its ``?``) are as sent, percent-encoded; ``headers`` with any case and
    repeated ones each by itself. ``secure``: it came through TLS."""

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: Iterable[tuple[str, str]],
        *,
        secure: bool = False,
        source_ip: str = "",
    ) -> None:
        self.method, self.path, self.query = method, path, query
        self.secure, self.source_ip = secure, source_ip
        self._headers: dict[str, list[str]] = {}
        for name, value in headers:
            self._headers.setdefault(name.lower(), []).append(value)

    def __repr__(self) -> str:
        # Queries and headers have signatures and keys of encryption.
        return f"<Request {self.method} {self.path!r}>"

    def header(self, name: str) -> str | None:
        """The one value of a header, or those of its repetitions as a list, as HTTP has it."""
        values = self._headers.get(name.lower())
        return None if values is None else ", ".join(value.strip() for value in values)

    def values(self, name: str) -> list[str]:
        return self._headers.get(name.lower(), [])

    @property
    def names(self) -> Iterable[str]:
        """Of the headers, in lower case."""
        return self._headers.keys()

    def with_headers(self, more: Iterable[tuple[str, str]]) -> Request:
        kept = [(name, value) for name, values in self._headers.items() for value in values]
        return Request(
            *(self.method, self.path, self.query, (*kept, *more)),
            secure=self.secure,
            source_ip=self.source_ip,
        )

    @cached_property
    def parameters(self) -> list[tuple[str, str]]:
        """Of the query, decoded, in order. A parameter without ``=`` has the value "". Bytes that are no
        UTF-8 are kept apart (``surrogateescape``), for the signature; what takes a text refuses them."""
        if not self.query:
            return []
        parts = self.query.split("&", PARAMETERS_MAX)
        if len(parts) > PARAMETERS_MAX:
            raise S3Error("InvalidURI", f"The query has more than {PARAMETERS_MAX} parameters.")
        return _pairs(parts)

    @cached_property
    def _first(self) -> dict[str, str]:
        return dict(reversed(self.parameters))

    def parameter(self, name: str) -> str | None:
        """The first value of a parameter of the query, as text. Raises InvalidURI for what is no UTF-8."""
        value = self._first.get(name)
        return None if value is None else text(value)


def decode(raw: str) -> bytes:
    """Percent-encoding undone. A plus stays one: in a path it stands for itself."""
    return unquote_to_bytes(raw.encode("utf-8", "surrogateescape"))


def form_pairs(raw: str, most: int) -> list[tuple[str, str]]:
    """Of a text that is written as a query is. Raises ValueError for more than ``most``, and for no UTF-8."""
    parts = raw.split("&", most)
    if len(parts) > most:
        raise ValueError("too many pairs")
    pairs = _pairs(parts)
    for name, value in pairs:
        (name + value).encode()  # a UnicodeEncodeError is a ValueError
    return pairs


def _pairs(parts: list[str]) -> list[tuple[str, str]]:
    split = (part.partition("=") for part in parts if part)
    return [(_plus(name), _plus(value)) for name, _, value in split]


def _plus(raw: str) -> str:
    return decode(raw.replace("+", " ")).decode("utf-8", "surrogateescape")


def text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise S3Error("InvalidURI", "The URI is not UTF-8 once decoded.") from None
    return value
