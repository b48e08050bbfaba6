"""The body of a request: taken out of its coding, and checked against all that was said about it.

Owns the order of the checks: length, signature, ``Content-MD5``, then the checksum. What :meth:`Body.feed`
gives must not be committed before :meth:`Body.finish` has returned. Keeps no payload.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from moorage.gateway.s3 import checksums
from moorage.gateway.s3.checksums import Algorithm, Hasher
from moorage.gateway.s3.chunked import ChunkedDecoder
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import Payload, Proof

_CHUNKED: Final = (Payload.CHUNKS, Payload.CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER)


@dataclass(frozen=True, slots=True)
class Digests:
    """Of a whole payload. ``checksum`` of ``algorithm``, None when neither the request nor the caller had
    asked for one."""

    length: int
    md5: bytes
    algorithm: Algorithm | None
    checksum: bytes | None


class Body:
    """``length`` of the payload is known from the beginning. ``usual``: the checksum to make where the
    request asks for none. Raises S3Error for announcements that cannot be."""

    def __init__(self, request: Request, proof: Proof, usual: Algorithm | None = None) -> None:
        self._announced = checksums.announced(request)
        self._content_md5 = checksums.content_md5(request)
        self._proof = proof
        self._decoder: ChunkedDecoder | None = None
        follows = self._announced is not None and self._announced.trailer
        with_trailer = proof.payload in (Payload.CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER)
        if follows and not with_trailer:
            raise S3Error("InvalidRequest", "x-amz-trailer needs an x-amz-content-sha256 with TRAILER.")
        if proof.payload in _CHUNKED:
            self.length = _length(request, "x-amz-decoded-content-length")
            names = [self._announced.algorithm.header] if self._announced and follows else []
            self._decoder = ChunkedDecoder(self.length, proof.chunks, names if with_trailer else None)
        else:
            self.length = _length(request, "content-length")
        self._algorithm = self._announced.algorithm if self._announced else usual
        self._received = 0
        self._md5 = checksums.md5()
        self._hasher = None if self._algorithm is None else checksums.hasher(self._algorithm)
        self._sha256: Hasher | None = None
        if proof.payload is Payload.SINGLE:
            shared = self._algorithm is Algorithm.SHA256
            self._sha256 = self._hasher if shared else hashlib.sha256()

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """The payload in ``data``, as views of it."""
        pieces = [memoryview(data)] if self._decoder is None else self._decoder.feed(data)
        for piece in pieces:
            self._received += len(piece)
            self._md5.update(piece)
            if self._hasher is not None:
                self._hasher.update(piece)
            if self._sha256 is not None and self._sha256 is not self._hasher:
                self._sha256.update(piece)
        if self._received > self.length:
            raise S3Error("InvalidRequest", "The body is longer than Content-Length says.")
        return pieces

    def finish(self) -> Digests:
        """All has arrived. Raises S3Error if it is not what it was said to be."""
        if self._decoder is not None:
            self._decoder.finish()
        if self._received != self.length:
            raise S3Error("IncompleteBody")
        if self._sha256 is not None and not _same(self._sha256.digest(), bytes.fromhex(self._proof.sha256)):
            raise S3Error("XAmzContentSHA256Mismatch")
        md5 = self._md5.digest()
        if self._content_md5 is not None and not _same(md5, self._content_md5):
            raise S3Error("BadDigest", "Content-MD5 is not the MD5 of the bytes that arrived.")
        checksum = None if self._hasher is None else self._hasher.digest()
        expected = self._expected()
        if checksum is not None and expected is not None and not _same(checksum, expected):
            raise S3Error("BadDigest", f"The {self._algorithm} that was sent is not that of the bytes.")
        return Digests(self._received, md5, self._algorithm, checksum)

    def _expected(self) -> bytes | None:
        if self._announced is None or not self._announced.trailer:
            return self._announced.value if self._announced else None
        assert self._decoder is not None
        algorithm = self._announced.algorithm
        value = checksums.decode(self._decoder.trailers[algorithm.header], algorithm.size)
        if value is None:
            raise S3Error("MalformedTrailerError", f"{algorithm.header} is not a checksum.")
        return value


def _length(request: Request, header: str) -> int:
    stated = request.header(header)
    if stated is None:
        raise S3Error("MissingContentLength", f"The header {header} is missing.")
    if not re.fullmatch(r"[0-9]{1,18}", stated, re.ASCII):
        raise S3Error("InvalidArgument", f"{header} is not a number of bytes.")
    return int(stated)


def _same(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)
