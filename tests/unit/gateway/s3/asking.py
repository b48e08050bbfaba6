"""Operations, asked for without a signature's proof and without a server, of a bucket in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from moorage.client.cluster import Cluster
from moorage.gateway.s3 import routing, signature
from moorage.gateway.s3.answer import Answer
from moorage.gateway.s3.call import Call, Place
from moorage.gateway.s3.credentials import Credentials
from moorage.gateway.s3.errors import S3Error
from moorage.gateway.s3.gateway import OPERATIONS
from moorage.gateway.s3.records import POLICY, Records
from moorage.gateway.s3.request import Request
from moorage.wire.errors import Invalid

from .support import NOW_MS

OWNER = "team-a"


class Kept:
    """What there is about a bucket; its objects are another matter."""

    name = "photos"

    def __init__(self) -> None:
        self.documents: dict[str, str] = {}
        self.versioning: str | None = "enabled"
        self.locks = False

    def set_policy(self, effect: str, *actions: str, **more: Any) -> None:
        """Of one statement, about everybody and everything unless more is said."""
        usual = {
            "Effect": effect,
            "Principal": "*",
            "Action": list(actions),
            "Resource": "arn:aws:s3:::photos*",
        }
        self.documents[POLICY] = json.dumps({"Version": "2012-10-17", "Statement": [usual | more]})

    async def show(self) -> dict[str, Any]:
        about = {"versioning": self.versioning, "locks": self.locks}
        return {"id": 1, "principal": OWNER, "documents": dict(self.documents), **about}

    async def set_document(self, name: str, text: str | None) -> None:
        self.documents.pop(name, None)
        if text is not None:
            self.documents[name] = text

    async def set_versioning(self, state: str, *, locks: bool = False) -> None:
        if state == "suspended" and self.locks:
            raise Invalid("versions stay on")
        self.versioning, self.locks = state, self.locks or locks


class _Cluster:
    def __init__(self, bucket: Kept) -> None:
        self._bucket = bucket

    async def bucket(self, name: str) -> Kept:
        return self._bucket


async def _bytes(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def ask(
    bucket: Kept,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    principal: str = OWNER,
) -> Answer:
    cluster = cast(Cluster, _Cluster(bucket))
    place = Place(cluster, cast(Credentials, None), Records(cluster, lambda: 0.0), "eu-test-1", 3)
    at, _, query = path.partition("?")
    usual = {"content-length": str(len(body)), "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    request = Request(method, at, query, (usual | (headers or {})).items())
    route = routing.route(request)
    call = Call(
        *(place, request, route.operation, route.bucket, route.key, route.action, principal),
        *(signature.anonymous(request), False, NOW_MS, _bytes(body)),
    )
    return await OPERATIONS[route.operation](call)


async def refused(bucket: Kept, method: str, path: str, *args: Any, **more: Any) -> S3Error:
    with pytest.raises(S3Error) as caught:
        await ask(bucket, method, path, *args, **more)
    return caught.value
