"""The synchronous twin of buckets: the same names and arguments, without ``await``; see
:mod:`moorage.sync`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol, TypeVar

from moorage.client.objects import bucket as asynchronous
from moorage.client.objects.bucket import (
    Attributes,
    Condition,
    Deletion,
    Listing,
    Lock,
    ObjectInfo,
    VersionListing,
)
from moorage.client.objects.buckets import Buckets as AsyncBuckets
from moorage.client.objects.reading import ObjectReader
from moorage.quorum.record import Buffer

T = TypeVar("T")
READ_BYTES = 1 << 20


class Loop(Protocol):
    def run(self, work: Coroutine[Any, Any, T]) -> T: ...


class OpenObject:
    """What :meth:`Bucket.open` found: it stays the same when something else is put under its key."""

    def __init__(self, info: ObjectInfo, reader: ObjectReader, loop: Loop) -> None:
        self.info = info
        self._reader = reader
        self._loop = loop

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        return self._loop.run(self._reader.range(offset, length).read())


class Bucket:
    """See :class:`moorage.client.objects.bucket.Bucket`."""

    def __init__(self, bucket: asynchronous.Bucket, loop: Loop) -> None:
        self._bucket = bucket
        self._loop = loop
        self.name = bucket.name

    def put(
        self,
        key: str,
        body: Buffer | BinaryIO,
        *,
        attributes: Attributes = None,
        condition: Condition | None = None,
        etag: str | Callable[[], str] = "",
        lock: Lock | None = None,
    ) -> ObjectInfo:
        """``body``: bytes, or a file that is read to its end; it blocks the cluster's loop while it is
        read."""
        data = body if isinstance(body, bytes | bytearray | memoryview) else _reading(body)
        putting = self._bucket.put(
            key, data, attributes=attributes, condition=condition, etag=etag, lock=lock
        )
        return self._loop.run(putting)

    def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self._loop.run(self._bucket.head(key, version=version))

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> bytes:
        return self._loop.run(self._bucket.get(key, offset, length, version=version))

    def open(self, key: str, *, version: str | None = None) -> OpenObject:
        """The object as it is now, to be read in pieces."""
        info, reader = self._loop.run(self._bucket.open(key, version=version))
        return OpenObject(info, reader, self._loop)

    def stream(
        self, key: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> Iterator[memoryview]:
        pieces = aiter(self._bucket.stream(key, offset, length, version=version))
        return self._iterate(pieces)

    def copy(
        self, source: str, key: str, *, bucket: Bucket | None = None, version: str | None = None
    ) -> ObjectInfo:
        of = bucket._bucket if bucket else None
        return self._loop.run(self._bucket.copy(source, key, bucket=of, version=version))

    def delete_these(self, objects: Sequence[ObjectInfo]) -> list[bool]:
        return self._loop.run(self._bucket.delete_these(objects))

    def delete(self, *keys: str, condition: Condition | None = None) -> list[bool]:
        return self._loop.run(self._bucket.delete(*keys, condition=condition))

    def delete_versions(
        self,
        wanted: Sequence[tuple[str, str | None]],
        *,
        ids: Sequence[str] | None = None,
        condition: Condition | None = None,
        former: bool = False,
        bypass: bool = False,
    ) -> list[Deletion]:
        deleting = self._bucket.delete_versions(
            wanted, ids=ids, condition=condition, former=former, bypass=bypass
        )
        return self._loop.run(deleting)

    def set_versioning(self, state: str, *, locks: bool = False) -> None:
        self._loop.run(self._bucket.set_versioning(state, locks=locks))

    def set_retention(
        self, info: ObjectInfo, mode: str, until_ms: int, *, bypass: bool = False
    ) -> ObjectInfo:
        return self._loop.run(self._bucket.set_retention(info, mode, until_ms, bypass=bypass))

    def set_hold(self, info: ObjectInfo, hold: bool) -> ObjectInfo:
        return self._loop.run(self._bucket.set_hold(info, hold))

    def page(
        self, prefix: str = "", *, delimiter: str = "", after: str = "", start: bytes = b"", limit: int = 1000
    ) -> Listing:
        paging = self._bucket.page(prefix, delimiter=delimiter, after=after, start=start, limit=limit)
        return self._loop.run(paging)

    def versions_page(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        after: str = "",
        after_version: str = "",
        limit: int = 1000,
    ) -> VersionListing:
        about = {"delimiter": delimiter, "after": after, "after_version": after_version}
        return self._loop.run(self._bucket.versions_page(prefix, **about, limit=limit))

    def create_upload(self, key: str, *, attributes: dict[str, Any] | None = None) -> str:
        return self._loop.run(self._bucket.create_upload(key, attributes=attributes))

    def put_part(self, upload: str, number: int, body: Buffer) -> dict[str, Any]:
        return self._loop.run(self._bucket.put_part(upload, number, body))

    def complete_upload(
        self,
        upload: str,
        key: str,
        parts: Iterable[tuple[int, str]],
        *,
        etag: str,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        return self._loop.run(
            self._bucket.complete_upload(upload, key, parts, etag=etag, condition=condition)
        )

    def list_uploads(self, prefix: str = "") -> list[dict[str, Any]]:
        return self._loop.run(self._bucket.list_uploads(prefix))

    def abort_upload(self, upload: str) -> None:
        self._loop.run(self._bucket.abort_upload(upload))

    def show(self) -> dict[str, Any]:
        return self._loop.run(self._bucket.show())

    def close(self) -> None:
        self._loop.run(self._bucket.close())

    def __enter__(self) -> Bucket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> list[T]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        while found := self._loop.run(following()):
            yield from found

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._iterate(aiter(self._bucket.list(prefix, after=after)))


class Buckets:
    """See :class:`moorage.client.objects.buckets.Buckets`."""

    def __init__(self, buckets: AsyncBuckets, loop: Loop) -> None:
        self._buckets = buckets
        self._loop = loop

    def create(
        self,
        name: str,
        *,
        replicas: int = 3,
        groups: int = 0,
        principal: str | None = None,
        locks: bool = False,
    ) -> Bucket:
        making = self._buckets.create(
            name, replicas=replicas, groups=groups, principal=principal, locks=locks
        )
        return Bucket(self._loop.run(making), self._loop)

    def open(self, name: str) -> Bucket:
        return Bucket(self._loop.run(self._buckets.open(name)), self._loop)

    def delete(self, name: str) -> None:
        self._loop.run(self._buckets.delete(name))

    def list(self) -> list[dict[str, Any]]:
        return self._loop.run(self._buckets.list())


async def _reading(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := file.read(READ_BYTES):
        yield piece
