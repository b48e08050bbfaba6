"""Addresses: ``HOST:PORT`` (IPv6 as ``[::1]:PORT``) or ``unix:/path``. Pure; resolves nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

from moorage.wire.errors import Invalid

UNIX_PATH_MAX = 107  # sun_path is 108 bytes with its final zero
_PORT = re.compile(r"[0-9]{1,5}")


class Tcp(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Unix(NamedTuple):
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = Tcp | Unix


def parse(text: str) -> Address:
    """Read an address; raises :class:`Invalid` that shows the accepted forms."""
    if not text.isascii() and not _encodable(text):
        raise _bad(text)
    if text.startswith("unix:"):
        return _parse_unix(text)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _bad(text)
    number = port_of(port)
    if not colon or not host or number is None:
        raise _bad(text)
    return Tcp(host, number)


def _encodable(text: str) -> bool:
    """Whether it is a text at all: bytes of an argument that are none become lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def port_of(text: str) -> int | None:
    """0 to 65535 in plain digits; None for all else, such as '²' (a digit too) and 5000 digits."""
    return int(text) if _PORT.fullmatch(text) and int(text) <= 65535 else None


def _parse_unix(text: str) -> Unix:
    path = text[len("unix:") :]
    if not path or "\0" in path:
        raise _bad(text)
    if len(path.encode()) > UNIX_PATH_MAX:
        raise Invalid(f"unix socket path is longer than {UNIX_PATH_MAX} bytes: {path}")
    return Unix(path)


def _bad(text: str) -> Invalid:
    return Invalid(f"bad address {text!r}: give HOST:PORT, [IPV6]:PORT or unix:/path")
