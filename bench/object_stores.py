"""Buckets to measure, each a way to one: by the library, and by S3.

Owns what an operation is on each. A bucket is made by ``open`` and is gone, with all that is in it, after
``remove``; what others made is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import xml.etree.ElementTree as ElementTree
from typing import Protocol

from moorage.bench.s3_client import NOTHING, Payload, S3Client
from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import Bucket
from moorage.wire.errors import MoorageError, NotFound

PAGE_MAX = 1000
REMOVALS = 16  # by S3, at once
DEFAULT_REGION = "us-east-1"


class Store(Protocol):
    """A bucket. Each operation is one call to the server, and raises what it raises."""

    by: str
    """The way: ``library``, ``s3`` or ``endpoint``."""

    async def open(self) -> None: ...

    async def put(self, key: str, payload: Payload) -> None: ...

    async def get(self, key: str) -> int:
        """Read all of it, and forget it; how many bytes came."""

    async def page(self, prefix: str, limit: int) -> list[str]:
        """The first keys that begin so."""

    async def delete(self, key: str) -> None: ...

    async def remove(self) -> None:
        """All objects, and the bucket; nothing when there is none."""


class LibraryStore:
    by = "library"

    def __init__(self, cluster: Cluster, name: str, replicas: int) -> None:
        self._cluster = cluster
        self._name = name
        self._replicas = replicas
        self._bucket: Bucket | None = None
        self._may_exist = False

    @property
    def bucket(self) -> Bucket:
        assert self._bucket is not None, "not open"
        return self._bucket

    async def open(self) -> None:
        self._may_exist = True
        try:
            self._bucket = await self._cluster.buckets.create(self._name, replicas=self._replicas)
        except MoorageError as error:
            self._may_exist = error.outcome == "unknown"
            raise

    async def put(self, key: str, payload: Payload) -> None:
        await self.bucket.put(key, payload.data)

    async def get(self, key: str) -> int:
        size = 0
        async for piece in self.bucket.stream(key):
            size += len(piece)
        return size

    async def page(self, prefix: str, limit: int) -> list[str]:
        return [each.key for each in (await self.bucket.page(prefix, limit=limit)).objects]

    async def delete(self, key: str) -> None:
        await self.bucket.delete(key)

    async def remove(self) -> None:
        if not self._may_exist:
            return
        with contextlib.suppress(NotFound):
            bucket = await self._cluster.buckets.open(self._name)
            while page := (await bucket.page()).objects:
                await bucket.delete(*(each.key for each in page))
            await self._cluster.buckets.delete(self._name)


class S3Store:
    """The client stays its maker's."""

    def __init__(self, by: str, client: S3Client, name: str) -> None:
        self.by = by
        self._client = client
        self._path = f"/{name}"
        self._may_exist = False

    async def open(self) -> None:
        region = self._client.endpoint.region
        self._may_exist = True
        try:
            await self._client.ask("PUT", self._path, payload=_location(region))
        except MoorageError as error:
            self._may_exist = error.outcome == "unknown"
            raise

    async def put(self, key: str, payload: Payload) -> None:
        await self._client.ask("PUT", f"{self._path}/{key}", payload=payload)

    async def get(self, key: str) -> int:
        size = 0
        async for piece in self._client.stream("GET", f"{self._path}/{key}"):
            size += len(piece)
        return size

    async def page(self, prefix: str, limit: int) -> list[str]:
        query = (("list-type", "2"), ("max-keys", str(limit)), ("prefix", prefix))
        return keys_of(await self._client.ask("GET", self._path, query))

    async def delete(self, key: str) -> None:
        await self._client.ask("DELETE", f"{self._path}/{key}")

    async def remove(self) -> None:
        if not self._may_exist:
            return
        with contextlib.suppress(NotFound):
            while keys := await self.page("", PAGE_MAX):
                for at in range(0, len(keys), REMOVALS):
                    await asyncio.gather(*(self.delete(key) for key in keys[at : at + REMOVALS]))
            await self._client.ask("DELETE", self._path)


def _location(region: str) -> Payload:
    """Of a new bucket; where none is expected, none is accepted."""
    if region == DEFAULT_REGION:
        return NOTHING
    place = f"<LocationConstraint>{region}</LocationConstraint>"
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    made = f'<CreateBucketConfiguration xmlns="{namespace}">{place}</CreateBucketConfiguration>'
    return Payload.of(made.encode())


def keys_of(listing: bytes) -> list[str]:
    """Of an answer to ListObjectsV2. Servers differ in whether they name the namespace."""
    try:
        root = ElementTree.fromstring(listing)
    except ElementTree.ParseError as error:
        raise MoorageError(f"a listing is no XML ({error}): this is no S3 server") from None
    return [each.text or "" for each in root.iterfind("{*}Contents/{*}Key")]
