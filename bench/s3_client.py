"""A client of S3 that costs little: what is measured with it is the server, any server.

Owns the signing (version 4, the payload's SHA-256 included, as SDKs do it over plain HTTP) and a pool of
connections. It sends each request once: who measures has to see what fails. Must never show a secret: not in
an error, not in a ``repr``.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from moorage.gateway.s3 import times
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import (
    ALGORITHM,
    EMPTY_SHA256,
    Claim,
    Scope,
    canonical_query,
    canonical_request,
    signing_key,
)
from moorage.wire import errors

PIECE = 1 << 20
REQUEST_TIMEOUT_S = 120.0
EXCERPT = 200  # characters of an answer that is no S3
_KINDS: Mapping[int, type[errors.MoorageError]] = {
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Busy,
    503: errors.Unavailable,
    507: errors.NoSpace,
}

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url``: ``http(s)://HOST[:PORT]``; buckets are named in the path."""

    url: str
    region: str
    access_key: str
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise errors.Invalid(f"{self.url!r} is no endpoint of S3: use http://HOST:PORT or https://HOST")

    @property
    def host(self) -> str:
        """As clients write it into the header ``Host``: without a port that goes without saying."""
        parts = urlsplit(self.url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)
        return name if parts.port in (None, usual) else f"{name}:{parts.port}"

    @property
    def origin(self) -> str:
        return f"{urlsplit(self.url).scheme}://{self.host}"


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes to send, any number of times, with their SHA-256."""

    data: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Payload:
        return cls(data, hashlib.sha256(data).hexdigest())


NOTHING = Payload(b"", EMPTY_SHA256)


def signed_headers(
    endpoint: Endpoint, method: str, path: str, query: str, sha256: str, now_ms: int
) -> dict[str, str]:
    """All headers of a request; ``path`` and ``query`` are percent-encoded."""
    at = times.basic(now_ms)
    headers = {"host": endpoint.host, "x-amz-content-sha256": sha256, "x-amz-date": at}
    if endpoint.session_token:
        headers["x-amz-security-token"] = endpoint.session_token
    scope, names = Scope(at[:8], endpoint.region), tuple(sorted(headers))
    claim = Claim(endpoint.access_key, scope, at, names, sha256, False, "")
    request = canonical_request(claim, Request(method, path, query, headers.items()))
    to_sign = "\n".join((ALGORITHM, at, str(scope), hashlib.sha256(request.encode()).hexdigest()))
    made = hmac.digest(signing_key(endpoint.secret, scope), to_sign.encode(), "sha256").hex()
    credential = f"Credential={endpoint.access_key}/{scope}"
    headers["authorization"] = f"{ALGORITHM} {credential}, SignedHeaders={';'.join(names)}, Signature={made}"
    return headers


class S3Client:
    """An asynchronous context manager; any number of requests at once.

    Raises Denied, NotFound, Busy, Unavailable, NoSpace by the status of an answer, RemoteError for the rest
    of those that say no; CannotConnect, and ConnectionLost where none came.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            auto_decompress=False,
        )

    async def ask(self, method: str, path: str, query: Query = (), payload: Payload = NOTHING) -> bytes:
        """The body of the answer, in one piece; ``path``: ``/BUCKET[/KEY]``."""
        pieces = [piece async for piece in self.stream(method, path, query, payload)]
        return b"".join(pieces)

    async def stream(
        self, method: str, path: str, query: Query = (), payload: Payload = NOTHING
    ) -> AsyncIterator[bytes]:
        """The body of the answer, as it comes."""
        encoded, asked = quote(path, safe="/~"), canonical_query(query)
        headers = signed_headers(
            self.endpoint, method, encoded, asked, payload.sha256, time.time_ns() // 1_000_000
        )
        headers["content-length"] = str(len(payload.data))
        url = URL(f"{self.endpoint.origin}{encoded}{'?' if asked else ''}{asked}", encoded=True)
        data = _pieces(payload.data) if payload.data else None
        try:
            async with self._session.request(method, url, headers=headers, data=data) as answer:
                if answer.status >= 300:
                    raise _refusal(f"{method} {path}", answer.status, await answer.read())
                async for piece in answer.content.iter_any():
                    yield piece
        except aiohttp.ClientConnectorCertificateError as error:
            raise errors.CannotConnect(
                f"{self.endpoint.url}: {error.certificate_error}: name its root with SSL_CERT_FILE"
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise errors.CannotConnect(
                f"{self.endpoint.url}: {error.os_error}: is an S3 server there?"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            raise errors.ConnectionLost(
                f"{method} {path}: no answer of {self.endpoint.url}: {said}", outcome="unknown"
            ) from None

    async def __aenter__(self) -> S3Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


async def _pieces(data: bytes) -> AsyncIterator[memoryview]:
    """A long body that is written in one go is copied whole, and holds up the loop."""
    view = memoryview(data)
    for at in range(0, len(data), PIECE):
        yield view[at : at + PIECE]


def _refusal(what: str, status: int, body: bytes) -> errors.MoorageError:
    code, message = "", body[:EXCERPT].decode(errors="replace")
    try:
        said = ElementTree.fromstring(body)
        code, message = said.findtext("Code", ""), said.findtext("Message", "")
    except ElementTree.ParseError:
        pass
    kind = _KINDS.get(status, errors.RemoteError)
    return kind(f"{what}: answered with {status} {code}: {message}".rstrip(": "))
