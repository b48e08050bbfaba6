"""Addresses: ``HOST:PORT`` (IPv6 as ``[::1]:PORT``) or ``unix:/path``. Pure; resolves nothing."""

from __future__ import annotations

from typing import NamedTuple

from moorage.wire.errors import Invalid

UNIX_PATH_MAX = 107  # sun_path is 108 bytes with its final zero


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
    if text.startswith("unix:"):
        return _parse_unix(text)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _bad(text)
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise _bad(text)
    return Tcp(host, int(port))


def _parse_unix(text: str) -> Unix:
    path = text[len("unix:") :]
    if not path or "\0" in path:
        raise _bad(text)
    if len(path.encode()) > UNIX_PATH_MAX:
        raise Invalid(f"unix socket path is longer than {UNIX_PATH_MAX} bytes: {path}")
    return Unix(path)


def _bad(text: str) -> Invalid:
    return Invalid(f"bad address {text!r}: give HOST:PORT, [IPV6]:PORT or unix:/path")
