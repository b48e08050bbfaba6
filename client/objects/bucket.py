"""A bucket as a program sees it: put, get, list and delete objects.

Owns one :class:`Space` to write in, and what is told to metadata. It holds nothing that matters: a program
that ends in the middle of a put leaves no object, and what it had written is collected."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from moorage.client.objects.devices import Devices
from moorage.client.objects.reading import ObjectReader
from moorage.client.objects.space import Space
from moorage.client.objects.writing import Body, ObjectWriter
from moorage.quorum.record import BLOCK_SIZE
from moorage.wire.errors import MoorageError, Stale, Unavailable

CALL_S = 10.0
PUT_S = 30.0  # for the record of an object: a leader may be elected meanwhile
RETRY_S = 0.1
PAGE = 1000
KEY_BYTES_AT_ONCE = 512 << 10
TRIES = 3  # of a put whose bytes are at hand, when members of its group have changed meanwhile

# What became of a deletion, as ``metadata.delete_objects`` tells it.
ABSENT, MARKER_DELETED, LOCKED = 0, 2, 3

Call = Callable[..., Awaitable[Any]]
Attributes = dict[str, Any] | Callable[[], dict[str, Any]] | None


@dataclass(frozen=True)
class Lock:
    """What keeps a version from being deleted. ``mode``: "GOVERNANCE", which who may can pass over, or
    "COMPLIANCE", which nobody can, until ``until_ms`` by the cluster's clock; or "". ``hold``: it stays until
    that is taken away."""

    mode: str = ""
    until_ms: int = 0
    hold: bool = False

    def to_wire(self) -> list[Any]:
        return [self.mode, self.until_ms, self.hold]


@dataclass(frozen=True)
class ObjectInfo:
    """An object. ``size`` in bytes; ``etag``: the MD5 of its bytes in hex, unless its writer chose another
    one; ``modified_ms``: since the epoch; ``attributes``: what its writer noted of it. ``version``: its name
    among those of its key, "null" where versions were not on; ``marker``: it stands for a deletion, and has
    nothing; ``latest``: there is no newer one."""

    key: str
    size: int
    etag: str
    modified_ms: int
    attributes: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    parts: list[list[int]] = field(default_factory=list)
    version: str = "null"
    marker: bool = False
    latest: bool = True
    lock: Lock = Lock()

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> ObjectInfo:
        return cls(
            value["key"],
            value["size"],
            value["etag"],
            value["at_ms"],
            value["attributes"],
            value["id"],
            value["parts"],
            value["version"],
            value["marker"],
            value.get("latest", True),
            Lock(*(value["lock"] or ())),
        )


@dataclass(frozen=True)
class Listing:
    """A page: objects, and what keys have in common up to the delimiter. ``next``: where the following page
    begins, empty for the last one."""

    objects: list[ObjectInfo]
    prefixes: list[str]
    next: bytes


@dataclass(frozen=True)
class VersionListing:
    """A page of versions, by key, of each the newest first; markers too. ``next``: ``after`` and
    ``after_version`` for the following page; None for the last one."""

    versions: list[ObjectInfo]
    prefixes: list[str]
    next: tuple[str, str] | None


@dataclass(frozen=True)
class Deletion:
    """What became of one key, or version. ``existed``: it was there. ``version``: that was removed, or of the
    ``marker`` that was made; ``marker``: one was made, or removed. ``locked``: it stays."""

    existed: bool
    version: str | None = None
    marker: bool = False
    locked: bool = False


@dataclass(frozen=True)
class Condition:
    """Of the object that is there: ``absent``: there is none; ``etags``: it has one of these; ``not_etags``:
    it has none of these."""

    absent: bool = False
    etags: Sequence[str] | None = None
    not_etags: Sequence[str] = ()

    def to_wire(self) -> dict[str, Any]:
        found: dict[str, Any] = {"absent": self.absent, "not_etags": list(self.not_etags)}
        return found if self.etags is None else found | {"etags": list(self.etags)}


class Bucket:
    """Made by ``await cluster.bucket(name)``. An async context manager; :meth:`close` gives back what it has
    not used. Any number of puts and gets at once.

    All methods raise NotFound (the bucket, the object), Invalid (an argument), and Unavailable, when a
    majority does not answer."""

    def __init__(self, name: str, call: Call, devices: Devices) -> None:
        """``call(method, params, timeout=s)``: asks metadata about this bucket."""
        self.name = name
        self._call = call
        self._devices = devices
        self._space: Space | None = None

    # -- one object ----------------------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: Body,
        *,
        attributes: Attributes = None,
        condition: Condition | None = None,
        etag: str | Callable[[], str] = "",
        lock: Lock | None = None,
    ) -> ObjectInfo:
        """Store an object, in place of one that has this key: whole, once this returns, or not at all.

        ``key``: 1 to 1024 bytes of UTF-8. ``body``: bytes, or an asynchronous iterable of bytes, of any
        length; at most 12 MiB of it are in memory. ``attributes``: a map, 32 KiB packed. ``etag``: in
        place of the MD5, which is not made then. A callable, for either, is asked when the body has ended.
        Raises PreconditionFailed, NoQuorum, NoSpace."""
        params: dict[str, Any] = {"key": key}
        if condition is not None:
            params["condition"] = condition.to_wire()
        if lock is not None:
            params["lock"] = lock.to_wire()
        found = await self._store(body, "metadata.put_object", params, attributes, etag)
        return ObjectInfo.from_wire(found)

    async def _store(
        self,
        body: Body,
        method: str,
        params: dict[str, Any],
        attributes: Attributes,
        etag: str | Callable[[], str],
    ) -> dict[str, Any]:
        tries = TRIES if isinstance(body, bytes | bytearray | memoryview) else 1
        for left in reversed(range(tries)):
            space = self._writing()
            writer = ObjectWriter(self._devices, space)
            try:
                written = await writer.store(body, with_md5=not etag)
                chosen = etag() if callable(etag) else etag
                noted = attributes() if callable(attributes) else attributes
                about = {**written.to_wire(), "etag": chosen or written.md5, "attributes": noted or {}}
                found: dict[str, Any] = await self._propose(method, {**params, **about})
                space.heard_at = asyncio.get_running_loop().time()
                return found
            except Stale as error:
                # Its groups have other members, or it was silent for too long: none of it is of use.
                if self._space is space:
                    self._space = None
                if not left or error.outcome == "unknown":
                    raise
            finally:
                await writer.end()
        raise AssertionError("unreachable")

    def _writing(self) -> Space:
        if self._space is None or self._space.is_old:
            loop = asyncio.get_running_loop()
            self._space = Space(lambda method, params: self._call(method, params, timeout=CALL_S), loop.time)
        return self._space

    async def _propose(self, method: str, params: dict[str, Any]) -> Any:
        """Sent again while it is not known whether it has happened: it is known by its id there."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PUT_S
        unsure = False
        while True:
            try:
                return await self._call(method, params, timeout=CALL_S)
            except MoorageError as error:
                unsure |= error.outcome == "unknown"
                again = error.outcome == "unknown" or isinstance(error, Unavailable)
                if not again or loop.time() + RETRY_S > end:
                    if unsure and error.outcome != "unknown":  # one that was sent before may come still
                        raise type(error)(error.message, **{**error.details, "outcome": "unknown"}) from error
                    raise
            await asyncio.sleep(RETRY_S)

    async def set_attributes(self, info: ObjectInfo, attributes: dict[str, Any]) -> ObjectInfo:
        """Note something else of this version than ``info.attributes``; PreconditionFailed when it is another
        object by now, or something else was noted meanwhile."""
        about = {"former": info.attributes, "attributes": attributes, "request": secrets.token_hex(16)}
        return ObjectInfo.from_wire(await self._propose("metadata.set_attributes", {**_named(info), **about}))

    async def set_retention(
        self, info: ObjectInfo, mode: str, until_ms: int, *, bypass: bool = False
    ) -> ObjectInfo:
        """Keep this version until then, by a mode of :class:`Lock`; with none ("", 0) no longer. ``bypass``:
        governance does not count. Raises Locked when a retention would end early; Invalid in a bucket
        without locks."""
        return await self._set_lock(info, {"retention": [mode, until_ms], "bypass": bypass})

    async def set_hold(self, info: ObjectInfo, hold: bool) -> ObjectInfo:
        """Keep this version until that is taken away."""
        return await self._set_lock(info, {"hold": hold})

    async def _set_lock(self, info: ObjectInfo, change: dict[str, Any]) -> ObjectInfo:
        params = {**_named(info), **change, "request": secrets.token_hex(16)}
        return ObjectInfo.from_wire(await self._propose("metadata.set_lock", params))

    async def head(self, key: str, *, version: str | None = None) -> ObjectInfo:
        """What there is of it, without its bytes. ``version``: a former one, not the current object. Where
        there is a delete marker, NotFound has its version in ``details["marker"]``."""
        return ObjectInfo.from_wire(await self._get_object(key, version))

    async def _get_object(self, key: str, version: str | None) -> dict[str, Any]:
        params = {"key": key} if version is None else {"key": key, "version": version}
        found: dict[str, Any] = await self._call("metadata.get_object", params, timeout=CALL_S)
        return found

    async def where(self, key: str) -> dict[str, int]:
        """By host, how many bytes of an object its replicas there have (or are about to be given)."""
        found = await self._get_object(key, None)
        hosts = {group["group"]: [each["host"] for each in group["members"]] for group in found["groups"]}
        held: dict[str, int] = {}
        for group, _, _, blocks in found["extents"]:
            for host in hosts[group]:
                held[host] = held.get(host, 0) + blocks * BLOCK_SIZE
        return {host: min(size, found["size"]) for host, size in held.items()}

    async def open(
        self, key: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> tuple[ObjectInfo, ObjectReader]:
        """An object, and an asynchronous iterator of its bytes (of ``length`` bytes from ``offset`` on)."""
        found = await self._get_object(key, version)
        return ObjectInfo.from_wire(found), ObjectReader(self._devices, found, offset, length)

    async def get(
        self, key: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> bytes:
        """Its bytes, all at once."""
        _, reader = await self.open(key, offset, length, version=version)
        return await reader.read()

    async def stream(
        self, key: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> AsyncIterator[memoryview]:
        """Its bytes, in pieces of at most 1 MiB."""
        _, reader = await self.open(key, offset, length, version=version)
        async for piece in reader:
            yield piece

    async def copy(
        self, source: str, key: str, *, bucket: Bucket | None = None, version: str | None = None
    ) -> ObjectInfo:
        """Copy object ``source`` (of another ``bucket``) to ``key`` of this one, with its attributes. A
        former version that is copied to its own key is the current object again."""
        info, reader = await (bucket or self).open(source, version=version)
        return await self.put(key, reader, attributes=info.attributes, etag=info.etag)

    async def delete(self, *keys: str, condition: Condition | None = None) -> list[bool]:
        """Up to 1000 objects: of each, whether it was there. Where versions are on, they stay, behind delete
        markers."""
        about = {} if condition is None else {"condition": condition.to_wire()}
        return [each.existed for each in await self._delete(keys, {}, about)]

    async def delete_these(self, objects: Sequence[ObjectInfo]) -> list[bool]:
        """Of each, whether it was there: one in whose place another one was put meanwhile stays."""
        ids = {"ids": [each.id for each in objects]}
        return [each.existed for each in await self._delete([each.key for each in objects], ids, {})]

    async def delete_versions(
        self,
        wanted: Sequence[tuple[str, str | None]],
        *,
        ids: Sequence[str] | None = None,
        condition: Condition | None = None,
        former: bool = False,
        bypass: bool = False,
    ) -> list[Deletion]:
        """Up to 1000 keys and versions: these go for good, and what was before the newest one is the current
        object again. Without a version (None) it is as :meth:`delete`. ``ids``: of each (``ObjectInfo.id``);
        what is something else by now stays. ``former``: so does what is the newest. ``bypass``: governance
        does not count."""
        about: dict[str, Any] = {"former": former, "bypass": bypass}
        if condition is not None:
            about["condition"] = condition.to_wire()
        beside: dict[str, list[Any]] = {"versions": [version for _, version in wanted]}
        if ids is not None:
            beside["ids"] = list(ids)
        return await self._delete([key for key, _ in wanted], beside, about)

    async def _delete(
        self, keys: Sequence[str], beside: dict[str, list[Any]], about: dict[str, Any]
    ) -> list[Deletion]:
        """``beside``: lists with something for each key."""
        deleted: list[Deletion] = []
        while (at := len(deleted)) < len(keys):
            some = _first(keys[at:])
            rows = {name: each[at : at + len(some)] for name, each in beside.items()}
            params = {"keys": some, **rows, **about, "request": secrets.token_hex(16)}
            done = await self._propose("metadata.delete_objects", params)
            names = rows.get("versions") or [None] * len(some)
            deleted += map(_deletion, names, done["outcomes"], done["markers"])
        return deleted

    # -- many ----------------------------------------------------------------------------------------------

    async def page(
        self, prefix: str = "", *, delimiter: str = "", after: str = "", start: bytes = b"", limit: int = PAGE
    ) -> Listing:
        """Up to ``limit`` (1 to 1000) objects and common prefixes, by the bytes of their keys; behind the
        key, or the common prefix, ``after``, or from ``start`` on, which is ``next`` of the page before."""
        params = {"prefix": prefix, "delimiter": delimiter, "after": after, "start": start, "limit": limit}
        found = await self._call("metadata.list_objects", params, timeout=CALL_S)
        return Listing(
            [ObjectInfo.from_wire(each) for each in found["objects"]], found["prefixes"], found["next"]
        )

    async def versions_page(
        self,
        prefix: str = "",
        *,
        delimiter: str = "",
        after: str = "",
        after_version: str = "",
        limit: int = PAGE,
    ) -> VersionListing:
        """Up to ``limit`` (1 to 1000) versions and common prefixes; behind ``after_version`` of the key
        ``after``, behind all of that key, or the common prefix, when there is none."""
        params = {"prefix": prefix, "delimiter": delimiter, "after": after, "version": after_version}
        found = await self._call("metadata.list_versions", {**params, "limit": limit}, timeout=CALL_S)
        rows = [ObjectInfo.from_wire(each) for each in found["versions"]]
        following = found["next"] and (found["next"][0], found["next"][1])
        return VersionListing(rows, found["prefixes"], following)

    # -- uploads in parts ----------------------------------------------------------------------------------

    async def create_upload(self, key: str, *, attributes: dict[str, Any] | None = None) -> str:
        """Begin an object that is put in parts; the id of the upload."""
        upload = secrets.token_hex(16)
        params = {"key": key, "upload": upload, "attributes": attributes or {}}
        await self._propose("metadata.create_upload", params)
        return upload

    async def put_part(
        self,
        upload: str,
        number: int,
        body: Body,
        *,
        attributes: Attributes = None,
        etag: str | Callable[[], str] = "",
    ) -> dict[str, Any]:
        """Part ``number`` (1 to 10000): ``{number, size, etag, at_ms, attributes}``. Parts may come at once
        and in any order; one that is put again is another one."""
        params = {"upload": upload, "number": number}
        found: dict[str, Any] = await self._store(body, "metadata.put_part", params, attributes, etag)
        return found

    async def complete_upload(
        self,
        upload: str,
        key: str,
        parts: Iterable[tuple[int, str]],
        *,
        etag: str,
        attributes: dict[str, Any] | None = None,
        condition: Condition | None = None,
        lock: Lock | None = None,
    ) -> ObjectInfo:
        """The object is these parts, ``(number, etag)`` each, in this order; the others are forgotten."""
        params: dict[str, Any] = {
            "upload": upload,
            "key": key,
            "parts": [list(each) for each in parts],
            "id": secrets.token_hex(16),
            "etag": etag,
            "attributes": attributes or {},
        }
        if condition is not None:
            params["condition"] = condition.to_wire()
        if lock is not None:
            params["lock"] = lock.to_wire()
        return ObjectInfo.from_wire(await self._propose("metadata.complete_upload", params))

    async def abort_upload(self, upload: str) -> None:
        await self._call("metadata.abort_upload", {"upload": upload}, timeout=CALL_S)

    async def show_upload(self, upload: str, *, after: int = 0, limit: int = PAGE) -> dict[str, Any]:
        """``{upload, key, attributes, created_ms, parts, more}``: up to ``limit`` parts behind number
        ``after``."""
        params = {"upload": upload, "after": after, "limit": limit}
        found: dict[str, Any] = await self._call("metadata.show_upload", params, timeout=CALL_S)
        return found

    async def list_uploads(self, prefix: str = "") -> list[dict[str, Any]]:
        """Those that are neither complete nor aborted, by key: ``{upload, key, attributes, created_ms}``."""
        params: dict[str, Any] = {"prefix": prefix}
        rows: list[dict[str, Any]] = []
        while True:
            found = await self._call("metadata.list_uploads", params, timeout=CALL_S)
            rows += found["uploads"]
            if not found["more"] or not found["uploads"]:
                return rows
            params["after"] = [rows[-1][name] for name in ("key", "created_ms", "upload")]

    # -- the bucket ----------------------------------------------------------------------------------------

    async def show(self) -> dict[str, Any]:
        """``{name, objects, bytes, replicas, groups, versioning, locks, ...}``; ``versioning``: "enabled",
        "suspended", or None: never on; ``former_versions``, ``former_bytes``: beside the objects."""
        found: dict[str, Any] = await self._call("metadata.show_bucket", {}, timeout=CALL_S)
        return found

    async def set_versioning(self, state: str, *, locks: bool = False) -> None:
        """``state``: "enabled", and what is replaced or deleted is kept as a former version; or "suspended":
        what is put has the version "null", and replaces that. ``locks``: versions can be locked; that stays
        on, and with it versions. Raises Invalid."""
        params = {"state": state, "locks": locks, "request": secrets.token_hex(16)}
        await self._propose("metadata.set_versioning", params)

    async def set_document(self, name: str, text: str | None) -> None:
        """Keep a text (64 KiB) about the bucket, which :meth:`show` has in ``documents``; None takes it
        away."""
        params = {"document": name, "text": text, "request": secrets.token_hex(16)}
        await self._propose("metadata.set_document", params)

    async def close(self) -> None:
        if self._space is not None:
            space, self._space = self._space, None
            await space.close()

    async def __aenter__(self) -> Bucket:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def list(self, prefix: str = "", *, after: str = "") -> AsyncIterator[ObjectInfo]:
        """All objects, by the bytes of their keys."""
        page = await self.page(prefix, after=after)
        while True:
            for each in page.objects:
                yield each
            if not page.next:
                return
            page = await self.page(prefix, start=page.next)


def _first(keys: Sequence[str]) -> list[str]:
    """As many as fit into one call; a key may be long."""
    found: list[str] = []
    size = 0
    for key in keys:
        size += len(key.encode())
        if found and size > KEY_BYTES_AT_ONCE:
            break
        found.append(key)
    return found


def _named(info: ObjectInfo) -> dict[str, str]:
    return {"key": info.key, "id": info.id, "version": info.version}


def _deletion(version: str | None, outcome: int, marker: str | None) -> Deletion:
    """``version``: that was to go; ``outcome``: as metadata has it (``versions.Outcome``)."""
    if version is None:
        return Deletion(outcome != ABSENT, marker, marker is not None)
    return Deletion(outcome != ABSENT, version, outcome == MARKER_DELETED, outcome == LOCKED)
