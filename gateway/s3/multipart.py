"""``multipart/form-data`` as browsers send it: fields, and then one file.

Owns the framing, and how much of it may lie in memory: a field at most, or what has just arrived of the file.
Raises MalformedPOSTRequest.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.form import FIELDS_BYTES_MAX

HEADERS_MAX: Final = 8 << 10
FIELDS_MAX: Final = 200
_FILE: Final = "file"
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s";,]{1,70}))', re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(r';[ \t]*([A-Za-z*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', re.ASCII)


class FormReader:
    """``content_type``: of the request."""

    def __init__(self, content_type: str, incoming: AsyncIterator[bytes]) -> None:
        found = _BOUNDARY.search(content_type)
        if found is None:
            raise _malformed("its Content-Type has no boundary")
        self._mark = b"\r\n--" + (found[1] or found[2]).encode()
        self._incoming = incoming
        self._left = bytearray(b"\r\n")  # so that the first boundary is as the others

    async def fields(self) -> tuple[list[tuple[str, str]], str]:
        """Those before the file, and the file's name as the browser told it; then :meth:`file`."""
        pairs: list[tuple[str, str]] = []
        size = 0
        await self._until(self._mark, HEADERS_MAX)
        while True:
            if (await self._until(b"\r\n", HEADERS_MAX)).strip() == b"--":
                raise S3Error("InvalidArgument", "The form has no field `file`.")
            name, filename = _disposition(await self._until(b"\r\n\r\n", HEADERS_MAX))
            if name.lower() == _FILE:
                return pairs, filename
            value = await self._until(self._mark, FIELDS_BYTES_MAX)
            size += len(name) + len(value)
            if size > FIELDS_BYTES_MAX or len(pairs) == FIELDS_MAX:
                raise S3Error("MaxPostPreDataLengthExceeded")
            pairs.append((name, _text(value)))

    async def file(self) -> AsyncIterator[bytes]:
        """Its bytes; what follows it is not looked at."""
        kept = len(self._mark) - 1
        while True:
            end = self._left.find(self._mark)
            if end >= 0:
                yield bytes(self._left[:end])
                return
            if len(self._left) > kept:
                yield bytes(self._left[:-kept])
                del self._left[:-kept]
            await self._more()

    async def _until(self, mark: bytes, most: int) -> bytes:
        begin = 0
        while (end := self._left.find(mark, begin)) < 0:
            if len(self._left) > most + len(mark):
                raise S3Error("MaxPostPreDataLengthExceeded")
            begin = max(0, len(self._left) - len(mark) + 1)
            await self._more()
        if end > most:
            raise S3Error("MaxPostPreDataLengthExceeded")
        found = bytes(self._left[:end])
        del self._left[: end + len(mark)]
        return found

    async def _more(self) -> None:
        data = await anext(self._incoming, None)
        if data is None:
            raise _malformed("it ends in the middle")
        self._left += data


def _disposition(block: bytes) -> tuple[str, str]:
    """Name of the field, and of the file."""
    for line in _text(block).split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition":
            found = {match[1].lower(): match[2] or match[3] or "" for match in _PARAMETER.finditer(value)}
            if "name" in found:
                return found["name"], found.get("filename", "")
    raise _malformed("a part of it has no name")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidArgument", "A field of the form is not UTF-8.") from None


def _malformed(why: str) -> S3Error:
    return S3Error("MalformedPOSTRequest", f"The body is not well-formed multipart/form-data: {why}.")
