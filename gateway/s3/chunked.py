"""The content coding ``aws-chunked``: a body in chunks that may be signed one by one, and what follows them.

Owns the framing. Bytes go in as they arrive, payload comes out as views of them; nothing of it is kept
here, and of a line not more than its limit. What came out is not to be believed before
:meth:`ChunkedDecoder.finish` has returned: the signature of a chunk can be checked at its end only.

    SIZE[;chunk-signature=HEX] CRLF DATA CRLF      any number of times, SIZE in hexadecimal
    0[;chunk-signature=HEX] CRLF
    NAME:VALUE CRLF                                with a trailer only
    x-amz-trailer-signature:HEX CRLF               with a signed trailer only
    CRLF
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import ChunkSigner

LINE_MAX: Final = 1024  # the longest that S3 has are 64 digits with a name
# But for the last one: a signature for each few bytes would be a way to tire us.
SIGNED_CHUNK_MIN: Final = 8192
_HEAD = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t\n]*", re.ASCII)
_SIGNATURE: Final = "x-amz-trailer-signature"


class _At(Enum):
    HEAD = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    END = auto()


class ChunkedDecoder:
    """``length``: of the payload, as ``x-amz-decoded-content-length`` says. ``signer`` for signed chunks.
    ``trailers``: the names that must follow, in lower case; None for the codings that have no trailer."""

    def __init__(self, length: int, signer: ChunkSigner | None, trailers: Collection[str] | None) -> None:
        self.trailers: dict[str, str] = {}
        self._length = length
        self._signer = signer
        self._expected = trailers
        self._at = _At.HEAD
        self._line = bytearray()
        self._received = 0
        self._chunk_left = 0
        self._chunk_size = SIGNED_CHUNK_MIN  # of the previous chunk, which must not be small if another comes
        self._signature = ""
        self._sha256 = hashlib.sha256()
        self._trailer_signed = False

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """Pieces of the payload, views of ``data``. Raises S3Error; the decoder is of no use then."""
        view, found = memoryview(data), []
        while view:
            if self._at is _At.DATA:
                piece, view = view[: self._chunk_left], view[self._chunk_left :]
                self._chunk_left -= len(piece)
                if self._signer is not None:
                    self._sha256.update(piece)
                if not self._chunk_left:
                    self._at = _At.DATA_END
                found.append(piece)
            elif self._at is _At.END:
                raise _malformed("bytes follow its end")
            else:
                view = self._collect(view)
        return found

    def finish(self) -> None:
        """The body has ended. ``trailers`` are whole and, where the chunks are signed, proved."""
        if self._at is not _At.END or self._received != self._length:
            raise S3Error("IncompleteBody")

    def _collect(self, view: memoryview) -> memoryview:
        """Take bytes up to the end of a line; the rest is left over."""
        before = len(self._line)
        self._line += view[: LINE_MAX + 2 - before]
        end = self._line.find(b"\r\n", max(0, before - 1))
        if end < 0:
            if len(self._line) >= LINE_MAX + 2:
                raise _malformed("a line is too long")
            return view[:0]  # all of it is in the line now
        line = bytes(self._line[:end])
        self._line.clear()
        self._take_line(line)
        return view[end + 2 - before :]

    def _take_line(self, line: bytes) -> None:
        match self._at:
            case _At.HEAD:
                self._head(line)
            case _At.DATA_END:
                if line:
                    raise _malformed("a chunk is longer than its size")
                self._check_chunk()
                self._at = _At.HEAD
            case _:
                self._trailer(line)

    def _head(self, line: bytes) -> None:
        match = _HEAD.fullmatch(line)
        if match is None or (match[2] is None) != (self._signer is None):
            raise _malformed("a chunk does not begin with its size" + " and signature" * bool(self._signer))
        size = int(match[1], 16)
        if size and self._signer is not None and self._chunk_size < SIGNED_CHUNK_MIN:
            raise S3Error("InvalidChunkSizeError")
        self._received += size
        if self._received > self._length:
            raise S3Error("InvalidRequest", "The body is longer than x-amz-decoded-content-length says.")
        self._signature = (match[2] or b"").decode()
        self._sha256 = hashlib.sha256()
        self._chunk_left = self._chunk_size = size
        self._at = _At.DATA
        if not size:
            self._check_chunk()
            self._at = _At.TRAILER

    def _check_chunk(self) -> None:
        if self._signer is not None:
            self._signer.check_chunk(self._signature, self._sha256.hexdigest())

    # -- what follows the chunks -----------------------------------------------------------------------

    def _trailer(self, line: bytes) -> None:
        if not line:
            self._end()
            return
        if self._expected is None:
            raise _malformed("it has a trailer that was not announced")
        match = _TRAILER.fullmatch(line.decode("latin-1"))
        if match is None or self._trailer_signed:
            raise S3Error("MalformedTrailerError")
        name, value = match[1].lower(), match[2]
        if name == _SIGNATURE and self._signer is not None:
            self._check_trailer(value)
        elif name in self._expected and name not in self.trailers:
            self.trailers[name] = value
        else:
            raise S3Error("MalformedTrailerError", "The trailer has what was not announced.")

    def _check_trailer(self, signature: str) -> None:
        assert self._signer is not None
        signed = "".join(f"{name}:{value}\n" for name, value in self.trailers.items())
        self._signer.check_trailer(signature, hashlib.sha256(signed.encode("latin-1")).hexdigest())
        self._trailer_signed = True

    def _end(self) -> None:
        if self._expected is not None:
            if self.trailers.keys() != set(self._expected):
                raise S3Error("MalformedTrailerError", "The trailer lacks what was announced.")
            if self._signer is not None and not self._trailer_signed:
                raise S3Error("MalformedTrailerError", "The trailer is not signed.")
        self._at = _At.END


def content_encoding(request: Request) -> str | None:
    """What is stored with the object: without this coding, which is one of the transport."""
    stated = request.header("content-encoding")
    if stated is None:
        return None
    kept = [each.strip() for each in stated.split(",") if each.strip().lower() != "aws-chunked"]
    return ", ".join(kept) or None


def _malformed(why: str) -> S3Error:
    return S3Error("InvalidRequest", f"The body is not well-formed aws-chunked: {why}.")
