"""Requests as Amazon's own client makes them: signed by botocore, caught before they are sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import boto3
import botocore.auth
import botocore.crt.auth
import botocore.signers
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.parsers import ResponseParserFactory

from moorage.gateway.s3 import signature
from moorage.gateway.s3.request import Request
from moorage.gateway.s3.signature import Claim, Proof

KEY, SECRET, REGION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-test-1"
NOW_MS = 1_767_323_045_000  # 2026-01-02T03:04:05Z


@contextlib.contextmanager
def at(now_ms: int) -> Iterator[None]:
    """Botocore's clock, of all its signers."""

    def now(remove_tzinfo: bool = True) -> datetime:
        made = datetime.fromtimestamp(now_ms / 1000, UTC)
        return made.replace(tzinfo=None) if remove_tzinfo else made

    with (
        mock.patch.object(botocore.auth, "get_current_datetime", now),
        mock.patch.object(botocore.crt.auth, "get_current_datetime", now),
        mock.patch.object(botocore.signers, "get_current_datetime", now),
    ):
        yield


@cache
def client(scheme: str = "http", style: str = "path") -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"{scheme}://s3.example:9000",
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(
            s3={"addressing_style": style}, retries={"max_attempts": 1}, ignore_configured_endpoint_urls=True
        ),
    )


class _Caught(Exception):
    pass


def sent(operation: str, scheme: str = "http", style: str = "path", **arguments: Any) -> AWSPreparedRequest:
    """What the client would have sent."""
    found: list[AWSPreparedRequest] = []

    def catch(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        found.append(request)
        raise _Caught

    events = client(scheme, style).meta.events
    events.register("before-send.s3", catch)
    try:
        with at(NOW_MS), contextlib.suppress(_Caught):
            getattr(client(scheme, style), operation)(**arguments)
    finally:
        events.unregister("before-send.s3", catch)
    return found[0]


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def request_of(prepared: AWSPreparedRequest) -> Request:
    """As it arrives."""
    url = urlsplit(prepared.url)
    headers = [(name, _text(value)) for name, value in prepared.headers.items()]
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", url.netloc))
    return Request(prepared.method, url.path, url.query, headers)


def of_url(method: str, url: str, headers: dict[str, str] | None = None) -> Request:
    parts = urlsplit(url)
    return Request(method, parts.path, parts.query, [("Host", parts.netloc), *(headers or {}).items()])


def body_of(prepared: AWSPreparedRequest) -> bytes:
    body = prepared.body
    if body is None:
        return b""
    return bytes(body) if isinstance(body, bytes | bytearray) else bytes(body.read())


def claim_of(request: Request, now_ms: int = NOW_MS) -> Claim:
    claim = signature.claim_of(request, REGION, now_ms)
    assert claim is not None
    return claim


def proved(request: Request, secret: str = SECRET, now_ms: int = NOW_MS) -> Proof:
    return signature.prove(claim_of(request, now_ms), request, secret)


def changed(request: Request, **headers: str | None) -> Request:
    """With headers put, or left out; ``_`` for ``-``."""
    wanted = {name.replace("_", "-"): value for name, value in headers.items()}
    kept = [(name, value) for name in request.names for value in request.values(name) if name not in wanted]
    kept += [(name, value) for name, value in wanted.items() if value is not None]
    return Request(request.method, request.path, request.query, kept)


def read_by_botocore(operation: str, body: bytes, **headers: str) -> dict[str, Any]:
    """An answer as Amazon's client reads it."""
    model = client().meta.service_model.operation_model(operation)
    response = {"status_code": 200, "headers": headers, "body": body, "context": {}}
    found: dict[str, Any] = (
        ResponseParserFactory().create_parser("rest-xml").parse(response, model.output_shape)
    )
    del found["ResponseMetadata"]
    return found
