"""Checksums of objects, of parts and of what is made of parts.

Owns the algorithms, their headers, and which of them a request announces. CRC-32C and CRC-64/NVME come from
the AWS Common Runtime: the code that S3's own clients use, for every machine that Python has wheels for.
After Amazon's "Checking object integrity".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from awscrt import checksums as crt

from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.request import Request

MD5_SIZE: Final = 16
_PREFIX: Final = "x-amz-checksum-"


class Algorithm(StrEnum):
    """As ``x-amz-checksum-algorithm`` names them."""

    CRC32 = "CRC32"
    CRC32C = "CRC32C"
    CRC64NVME = "CRC64NVME"
    SHA1 = "SHA1"
    SHA256 = "SHA256"

    @property
    def header(self) -> str:
        return _PREFIX + self.value.lower()

    @property
    def element(self) -> str:
        """Of XML documents."""
        return f"Checksum{self.value}"

    @property
    def size(self) -> int:
        return {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}[self.value]


class Kind(StrEnum):
    """Of a checksum of many parts: over the parts' checksums, or over all bytes."""

    COMPOSITE = "COMPOSITE"
    FULL_OBJECT = "FULL_OBJECT"


BY_HEADER: Final = {each.header: each for each in Algorithm}


class Hasher(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc:
    __slots__ = ("_function", "_size", "_value")

    def __init__(self, function: Callable[[bytes | bytearray | memoryview, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def hasher(algorithm: Algorithm) -> Hasher:
    match algorithm:
        case Algorithm.CRC32:
            return _Crc(zlib.crc32, 4)
        case Algorithm.CRC32C:
            return _Crc(crt.crc32c, 4)
        case Algorithm.CRC64NVME:
            return _Crc(crt.crc64nvme, 8)
        case Algorithm.SHA1:
            return hashlib.sha1(usedforsecurity=False)
        case Algorithm.SHA256:
            return hashlib.sha256()


def md5() -> Hasher:
    """For ETags and ``Content-MD5``, which are checksums, not proofs."""
    return hashlib.md5(usedforsecurity=False)


def encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def decode(text: str, size: int) -> bytes | None:
    """None for what is not the base64 of ``size`` bytes."""
    try:
        digest = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest if len(digest) == size else None


# -- what a request announces ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announced:
    """``value`` None: it follows in the trailer, or, where ``trailer`` is not set, the server makes it."""

    algorithm: Algorithm
    value: bytes | None = None
    trailer: bool = False


def announced(request: Request) -> Announced | None:
    """The checksum that comes with the body. Raises InvalidRequest for more than one, or a wrong one."""
    named = [BY_HEADER[name] for name in request.names if name in BY_HEADER]
    followed = [name.strip().lower() for name in (request.header("x-amz-trailer") or "").split(",")]
    followed = [name for name in followed if name]
    if unknown := [name for name in followed if name not in BY_HEADER]:
        raise S3Error("InvalidRequest", f"x-amz-trailer names {unknown[0]!r}: only checksums may follow.")
    if len(named) + len(followed) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum-... header or trailer.")
    wished = request.header("x-amz-sdk-checksum-algorithm")
    found: Announced | None = None
    if named:
        found = Announced(named[0], _value(named[0], request.header(named[0].header) or ""))
    elif followed:
        found = Announced(BY_HEADER[followed[0]], trailer=True)
    elif wished is not None:
        return Announced(algorithm_of(wished))
    if found is not None and wished is not None and algorithm_of(wished) is not found.algorithm:
        raise S3Error("InvalidRequest", "x-amz-sdk-checksum-algorithm names another one than the one sent.")
    return found


def _value(algorithm: Algorithm, text: str) -> bytes:
    value = decode(text, algorithm.size)
    if value is None:
        raise S3Error("InvalidRequest", f"{algorithm.header} is not the base64 of {algorithm.size} bytes.")
    return value


def algorithm_of(text: str) -> Algorithm:
    try:
        return Algorithm(text.upper())
    except ValueError:
        known = ", ".join(Algorithm)
        raise S3Error("InvalidRequest", f"The checksum algorithm is one of {known}.") from None


def kind_of(text: str | None, algorithm: Algorithm) -> Kind:
    """For ``x-amz-checksum-type`` of a multipart upload. Raises InvalidRequest for what cannot be
    combined."""
    usual = Kind.FULL_OBJECT if algorithm is Algorithm.CRC64NVME else Kind.COMPOSITE
    if text is None:
        return usual
    possible = {Kind.COMPOSITE, Kind.FULL_OBJECT}
    if algorithm is Algorithm.CRC64NVME:
        possible = {Kind.FULL_OBJECT}
    elif algorithm in (Algorithm.SHA1, Algorithm.SHA256):
        possible = {Kind.COMPOSITE}
    if text.upper() not in possible:
        raise S3Error("InvalidRequest", f"The checksum type {text!r} cannot be used with {algorithm}.")
    return Kind(text.upper())


def content_md5(request: Request) -> bytes | None:
    """Raises InvalidDigest."""
    text = request.header("content-md5")
    if text is None:
        return None
    digest = decode(text, MD5_SIZE)
    if digest is None:
        raise S3Error("InvalidDigest")
    return digest


# -- of parts --------------------------------------------------------------------------------------------


def multipart_etag(parts: Sequence[bytes]) -> str:
    """Of the MD5s of the parts, in order; without quotes."""
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def composite(algorithm: Algorithm, parts: Sequence[bytes]) -> str:
    """As headers and documents write it: the checksum of the parts' checksums, and how many they are."""
    made = hasher(algorithm)
    made.update(b"".join(parts))
    return f"{encode(made.digest())}-{len(parts)}"


def full_object(algorithm: Algorithm, parts: Iterable[tuple[bytes, int]]) -> bytes:
    """Of all bytes, from the checksum and the size of each part, without reading one again. A CRC only."""
    combine = {
        Algorithm.CRC32: crt.combine_crc32,
        Algorithm.CRC32C: crt.combine_crc32c,
        Algorithm.CRC64NVME: crt.combine_crc64nvme,
    }[algorithm]
    value = 0
    for digest, size in parts:
        value = combine(value, int.from_bytes(digest, "big"), size)
    return value.to_bytes(algorithm.size, "big")
