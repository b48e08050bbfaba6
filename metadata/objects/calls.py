"""The methods ``metadata.*`` about objects: proposals, and replies.

Owns when a writer of objects counts as gone: it is heard of with each of its calls. Must never propose an
object whose bytes could have been taken for garbage: the command itself checks that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Final

import msgpack

from moorage.metadata import limits, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.directory import Directory
from moorage.metadata.objects import asked, layout, listing, locks, versions
from moorage.metadata.objects.layout import REGION_CHUNKS
from moorage.metadata.objects.listing import Place
from moorage.metadata.objects.room import Room
from moorage.metadata.objects.state import existing_bucket, existing_upload
from moorage.metadata.objects.writers import Writers
from moorage.metadata.params import check_known, remaining_s
from moorage.metadata.tasks.context import wall_ms
from moorage.quorum.record import BLOCKS_PER_CHUNK
from moorage.service.replicated import Replicated
from moorage.wire.errors import Invalid, LimitExceeded, NotFound, PreconditionFailed
from moorage.wire.rpc import CallContext

Params = dict[str, Any]
Reply = dict[str, Any]
Handler = Callable[[CallContext | None, Params], Awaitable[Reply]]

PAGE_MAX: Final = 1000
UPLOADS_PAGE: Final = 1000
AT_ONCE: Final = 50  # entries of a page, before others are served
REPLY_BYTES: Final = 512 << 10  # of entries: a page ends there, and what is one more fits into a frame too
FREED_AT_ONCE: Final = 2000  # extents, in one command
LONG_KEY_WEIGHT: Final = 100  # what it shares a record with is read and written
KEY_BYTES_AT_ONCE: Final = 128 << 10  # as well
LACKS_MAX: Final = 1000  # of a replica that are counted: what is more says no more, and would cost the leader


class ObjectCalls:
    def __init__(
        self,
        replicated: Replicated,
        directory: Directory,
        attachments: Attachments,
        writers: Writers,
        room: Room,
    ) -> None:
        self._replicated = replicated
        self._directory = directory
        self._attachments = attachments
        self._writers = writers
        self._room = room

    def methods(self) -> dict[str, Handler]:
        """By name, without ``metadata.``."""
        return {
            "show_bucket": self.show_bucket,
            "show_lacks": self.show_lacks,
            "open_region": self.open_region,
            "renew_regions": self.renew_regions,
            "close_regions": self.close_regions,
            "set_document": self.set_document,
            "set_attributes": self.set_attributes,
            "set_versioning": self.set_versioning,
            "set_lock": self.set_lock,
            "put_object": self.put_object,
            "get_object": self.get_object,
            "delete_objects": self.delete_objects,
            "list_objects": self.list_objects,
            "list_versions": self.list_versions,
            "create_upload": self.create_upload,
            "put_part": self.put_part,
            "complete_upload": self.complete_upload,
            "abort_upload": self.abort_upload,
            "show_upload": self.show_upload,
            "list_uploads": self.list_uploads,
        }

    async def _bucket(self, context: CallContext | None, params: Params) -> Params:
        """As of a barrier, by ``name``."""
        name = limits.check_name(params.get("name"))
        await self._replicated.read_barrier(remaining_s(context))
        found = records.volume_by_name(self._replicated.kv, name, records.BUCKET)
        return existing_bucket(self._replicated.kv, found["id"])

    async def show_bucket(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name")
        bucket = await self._bucket(context, params)
        objects, size, former, former_size = versions.usage(self._replicated.kv, bucket["id"])
        about = {"objects": objects, "bytes": size, "groups": self._attachments.groups(bucket)}
        about |= {"former_versions": former, "former_bytes": former_size}
        versioning = versions.of_bucket(self._replicated.kv, bucket["id"])
        about |= {
            "versioning": versioning and versioning.state,
            "locks": bool(versioning and versioning.locks),
        }
        about["documents"] = layout.documents(self._replicated.kv, bucket["id"])
        about["now_ms"] = wall_ms()  # by the clock that objects are put by
        return {**self._attachments.public(bucket), **about}

    async def show_lacks(self, context: CallContext | None, params: Params) -> Reply:
        """Its groups; members, and those that are to become one, with ``lacks``: extents that they are noted
        to lack, ``LACKS_MAX`` at most, and ``built``: how many per cent of its group were looked at for one
        that is to become a member, or was damaged. (Beside ``show_bucket``, which is asked much more often.)
        """
        check_known(params, "name")
        bucket = await self._bucket(context, params)
        groups = self._attachments.groups(bucket)
        for group in groups:
            for place in (*group["members"], *([group["wish"]] if group["wish"] else [])):
                place.update(self._noted(bucket["id"], group, place["replica"]))
                await asyncio.sleep(0)
        return {"id": bucket["id"], "groups": groups}

    def _noted(self, bucket: int, group: Params, replica: int) -> Reply:
        kv, number = self._replicated.kv, group["group"]
        lacks = sum(1 for _ in islice(layout.lacks(kv, bucket, number, replica), LACKS_MAX))
        address = kv.get(layout.built_key(bucket, replica))
        if address is None and (not group["wish"] or replica != group["wish"]["replica"]):
            return {"lacks": lacks}
        end = self._given(bucket, number) * BLOCKS_PER_CHUNK
        return {"lacks": lacks, "built": min(100, (address or 0) * 100 // end) if end else 100}

    async def set_document(self, context: CallContext | None, params: Params) -> Reply:
        """``text``: None takes it away."""
        check_known(params, "name", "document", "text", "request")
        text = params.get("text")
        about = {
            "document": limits.check_document(params.get("document")),
            "text": None if text is None else limits.check_text(text),
        }
        bucket = await self._bucket(context, params)
        await self._replicated.propose(
            {"do": "set_document", "bucket": bucket["id"], **about, **asked.request(params)}
        )
        return {}

    # -- writing -------------------------------------------------------------------------------------------

    async def open_region(self, context: CallContext | None, params: Params) -> Reply:
        """In the group of which least has been given, but for those in ``avoid``."""
        check_known(params, "name", "writer", "avoid")
        writer = limits.check_writer(params.get("writer"))
        avoid = params.get("avoid", [])
        if not isinstance(avoid, list | tuple) or not all(isinstance(each, int) for each in avoid):
            raise Invalid("avoid: use a list of numbers of groups")
        bucket = await self._bucket(context, params)
        self._writers.heard(writer)
        numbers = [group["group"] for group in bucket["groups"]]
        wanted = [number for number in numbers if number not in avoid] or numbers
        group = min(wanted, key=lambda number: self._given(bucket["id"], number))
        command = {"do": "open_region", "bucket": bucket["id"], "group": group, "writer": writer}
        chunk = await self._replicated.propose(command)
        await self._directory.know(records.devices(bucket))
        now = existing_bucket(self._replicated.kv, bucket["id"])
        return {
            "bucket": bucket["id"],
            "chunk": chunk,
            "chunks": REGION_CHUNKS,
            "group": self._attachments.groups(now)[group],
            "of": len(numbers),
        }

    def _given(self, bucket: int, group: int) -> int:
        return int(self._replicated.kv.get(layout.next_region_key(bucket, group)) or 0)

    async def renew_regions(self, context: CallContext | None, params: Params) -> Reply:
        """A writer that puts nothing for long says that it lives."""
        check_known(params, "name", "writer")
        await self._bucket(context, params)
        self._writers.heard(limits.check_writer(params.get("writer")))
        return {}

    async def close_regions(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "regions")
        regions = params.get("regions")
        if not isinstance(regions, list | tuple) or not all(asked.is_pair(each) for each in regions):
            raise Invalid("regions: use a list of [group, first chunk]")
        bucket = await self._bucket(context, params)
        command = {"do": "close_regions", "bucket": bucket["id"], "regions": [list(each) for each in regions]}
        await self._replicated.propose(command)
        return {}

    async def put_object(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "key", "condition", "lock", *asked.WRITTEN)
        key, written = limits.check_key(params.get("key")), asked.check_written(params)
        condition = asked.check_condition(params)
        bucket = await self._bucket(context, params)
        self._writers.heard(written["writer"])
        command = {"do": "put_object", "bucket": bucket["id"], "key": key, "condition": condition, **written}
        more = 0
        if self._room.is_charging():
            more = self._more(bucket["id"], key, written["object"]["size"])
        async with self._room.held(bucket, more, remaining_s(context)):
            return _shown(key, await self._replicated.propose(command))

    def _more(self, bucket: int, key: str, size: int) -> int:
        """Bytes that an object of this size adds to what there is: what it replaces goes, or is kept."""
        there = layout.find_object(self._replicated.kv, bucket, key)
        if there is None or versions.of_bucket(self._replicated.kv, bucket) is not None:
            return size
        return max(0, size - int(there["size"]))

    async def set_attributes(self, context: CallContext | None, params: Params) -> Reply:
        """Of the object with this ``id``, of this ``version`` where one is named; ``former``: what is noted
        of it is still that."""
        check_known(params, "name", "key", "id", "version", "former", "attributes", "request")
        about = {**asked.check_version(params), "attributes": asked.check_attributes(params)}
        if "former" in params:
            about["former"] = asked.check_attributes(params, "former")
        bucket = await self._bucket(context, params)
        command = {"do": "set_attributes", "bucket": bucket["id"], **about, **asked.request(params)}
        return await self._changed(bucket["id"], command)

    async def set_lock(self, context: CallContext | None, params: Params) -> Reply:
        """Of a version: ``retention``, [mode, until_ms], and ``hold``; one that is not given stays.
        ``bypass``: whether governance is passed over."""
        check_known(params, "name", "key", "id", "version", "retention", "hold", "bypass", "request")
        change = locks.check_change(params.get("retention"), params.get("hold"))
        about = {**asked.check_version(params), **change, "bypass": asked.flag(params, "bypass")}
        bucket = await self._bucket(context, params)
        now = {"now_ms": wall_ms()}
        command = {"do": "set_lock", "bucket": bucket["id"], **about, **now, **asked.request(params)}
        return await self._changed(bucket["id"], command)

    async def _changed(self, bucket: int, command: Params) -> Reply:
        """What the version is after a command about it, which may have been applied some time ago."""
        await self._replicated.propose(command)
        kv, key, name = self._replicated.kv, command["key"], command.get("version")
        current = layout.find_object(kv, bucket, key)
        found = current if name is None else versions.find(kv, bucket, key, name)
        if found is None or found["id"] != command["id"]:
            raise PreconditionFailed(f"object {key!r} was replaced, or deleted, meanwhile")
        return _shown(key, found)

    async def set_versioning(self, context: CallContext | None, params: Params) -> Reply:
        """``state``: enabled or suspended; ``locks``: versions can be locked, for good."""
        check_known(params, "name", "state", "locks", "request")
        state, with_locks = params.get("state"), asked.flag(params, "locks")
        if state not in (versions.ENABLED, versions.SUSPENDED):
            raise Invalid(f"set_versioning: state must be {versions.ENABLED} or {versions.SUSPENDED}")
        bucket = await self._bucket(context, params)
        about = {"state": state, "locks": with_locks, **asked.request(params)}
        await self._replicated.propose({"do": "set_versioning", "bucket": bucket["id"], **about})
        return {}

    async def delete_objects(self, context: CallContext | None, params: Params) -> Reply:
        """``versions``: of each key, the one that goes, or None: the current object; ``former``: those that
        are not the newest. Of each: ``outcomes`` (:class:`versions.Outcome`), and ``markers``: the version
        that a marker was given, or None."""
        known = ("name", "keys", "ids", "versions", "condition", "former", "bypass", "request")
        check_known(params, *known)
        keys, condition = params.get("keys"), asked.check_condition(params)
        if not isinstance(keys, list | tuple) or not keys:
            raise Invalid("keys: use a list of keys")
        if len(keys) > limits.KEYS_AT_ONCE:
            raise LimitExceeded(f"{len(keys)} keys in one call: {limits.KEYS_AT_ONCE} at most")
        checked = [limits.check_key(key) for key in keys]
        beside = {
            name: asked.beside(params, name, len(keys)) for name in ("ids", "versions") if name in params
        }
        names: list[str | None] = beside.get("versions") or [None] * len(keys)
        about: Params = {"do": "delete_objects", "condition": condition}
        about |= {name: asked.flag(params, name) for name in ("former", "bypass")}
        bucket = await self._bucket(context, params)
        outcomes: list[int] = []
        markers: list[str | None] = []
        while (at := len(outcomes)) < len(checked):
            # (a condition is judged of all of them at once)
            end = len(checked) if condition else at + self._few(bucket["id"], checked[at:], names[at:])
            # Sent again, each part is answered as before, whatever would be taken for a part by now.
            part = asked.request(params, f".{at}")
            part |= {name: each[at:end] for name, each in beside.items()}
            command = {**about, "bucket": bucket["id"], "keys": checked[at:end], "at_ms": wall_ms(), **part}
            done = await self._replicated.propose(command)
            outcomes += done["found"]
            answered = names[at : len(outcomes)]
            markers += [done["marker"] if name is None else None for name in answered]
        await self._room.shrink(bucket, remaining_s(context))
        return {"outcomes": outcomes, "markers": markers}

    def _few(self, bucket: int, keys: list[str], names: list[str | None]) -> int:
        """How many of them first, at least one: one command must not take long, and frees each extent."""
        kv = self._replicated.kv
        versioning = versions.of_bucket(kv, bucket)
        weight = size = 0
        for count, (key, name) in enumerate(zip(keys, names, strict=True)):
            if name is None and versioning is None:
                entry = layout.find_object(kv, bucket, key)
            elif name is None and versioning is not None and versioning.state == versions.ENABLED:
                entry = None
            else:
                entry = versions.find(kv, bucket, key, name or versions.NULL)
            weight += 1 + (len(entry["extents"]) if entry is not None else 0)
            weight += LONG_KEY_WEIGHT * layout.is_long(key)
            size += len(key.encode())
            if count and (weight > FREED_AT_ONCE or size > KEY_BYTES_AT_ONCE):
                return count
        return len(keys)

    # -- reading -------------------------------------------------------------------------------------------

    async def get_object(self, context: CallContext | None, params: Params) -> Reply:
        """With the members of the groups that it is in, to read it from. ``version``: that one, not the
        current one. Where there is a delete marker instead, NotFound has its version as ``marker``."""
        check_known(params, "name", "key", "version")
        key, name = limits.check_key(params.get("key")), params.get("version")
        bucket = await self._bucket(context, params)
        found = self._found(bucket, key, name)
        await self._directory.know(records.devices(bucket))
        groups = self._attachments.groups(bucket)
        used = sorted({extent[0] for extent in found["extents"]})
        return {**_shown(key, found), "extents": found["extents"], "groups": [groups[each] for each in used]}

    def _found(self, bucket: Params, key: str, name: Any) -> Params:
        kv = self._replicated.kv
        if name is None:
            found = versions.newest(kv, bucket["id"], key)
        else:
            found = versions.find(kv, bucket["id"], key, asked.text({"version": name}, "version", 64))
        if found is not None and not versions.is_marker(found):
            return found
        details: Params = {"key": key}
        if found is not None:
            details["marker"] = versions.name_of(found)
        elif name is not None:
            details["version"] = name
        of = "" if name is None else f" of version {name}"
        gone = ": it was deleted, and has former versions" if found is not None and name is None else ""
        raise NotFound(f"bucket {bucket['name']!r} has no object {key!r}{of}{gone}", **details)

    async def list_objects(self, context: CallContext | None, params: Params) -> Reply:
        """``start``: bytes, ``next`` of the page before, or ``after``: a key, or a common prefix."""
        check_known(params, "name", "prefix", "delimiter", "after", "start", "limit")
        prefix, delimiter, after = (asked.text(params, key) for key in ("prefix", "delimiter", "after"))
        start, limit = params.get("start", b""), params.get("limit", PAGE_MAX)
        if not isinstance(start, bytes) or type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise Invalid(f"list_objects: start must be bytes, limit 1 to {PAGE_MAX}")
        bucket = await self._bucket(context, params)
        begin = max(start, listing.start_after(after, prefix, delimiter))
        objects: list[Reply] = []
        prefixes: list[str] = []
        size = 0
        while (left := limit - len(objects) - len(prefixes)) > 0 and size < REPLY_BYTES:
            found = listing.page(
                self._replicated.kv,
                bucket["id"],
                prefix=prefix,
                delimiter=delimiter,
                start=begin,
                limit=min(left, AT_ONCE),
                size=REPLY_BYTES - size,
                size_of=_size_of,
            )
            objects += [_shown(key, entry) for key, entry in found.entries]
            prefixes += found.prefixes
            size += found.size
            begin = found.next
            if not begin:
                break
            await asyncio.sleep(0)
        return {"objects": objects, "prefixes": prefixes, "next": begin}

    async def list_versions(self, context: CallContext | None, params: Params) -> Reply:
        """All versions, delete markers as well, of each key the newest first; behind ``version`` of the key
        ``after``, behind all of it when there is none, or behind the common prefix ``after``. ``next``: these
        two for the page that follows."""
        check_known(params, "name", "prefix", "delimiter", "after", "version", "limit")
        prefix, delimiter, after, name = (
            asked.text(params, each) for each in ("prefix", "delimiter", "after", "version")
        )
        limit = params.get("limit", PAGE_MAX)
        if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise Invalid(f"list_versions: limit must be 1 to {PAGE_MAX}")
        bucket = await self._bucket(context, params)
        kv = self._replicated.kv
        place: Place | None = listing.place_behind(kv, bucket["id"], after, name, prefix, delimiter)
        rows: list[Reply] = []
        prefixes: list[str] = []
        size, last = 0, ["", ""]
        while place is not None and (left := limit - len(rows) - len(prefixes)) > 0 and size < REPLY_BYTES:
            found = listing.versions_page(
                *(kv, bucket["id"]),
                prefix=prefix,
                delimiter=delimiter,
                place=place,
                limit=min(left, AT_ONCE),
                size=REPLY_BYTES - size,
                size_of=_size_of,
            )
            rows += [{**_shown(key, entry), "latest": latest} for key, entry, latest in found.entries]
            prefixes += found.prefixes
            ends = [[key, listing.marker_of(entry)] for key, entry, _ in found.entries[-1:]]
            ends += [[each, ""] for each in found.prefixes[-1:]]
            last = max(ends, key=lambda end: str(end[0]).encode(), default=last)
            size += found.size
            place = found.next
            await asyncio.sleep(0)
        return {"versions": rows, "prefixes": prefixes, "next": last if place is not None else None}

    # -- uploads in parts ----------------------------------------------------------------------------------

    async def create_upload(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "key", "upload", "attributes")
        about = {
            "key": limits.check_key(params.get("key")),
            "upload": limits.check_upload(params.get("upload")),
            "attributes": asked.check_attributes(params),
        }
        bucket = await self._bucket(context, params)
        command = {"do": "create_upload", "bucket": bucket["id"], "now_ms": wall_ms(), **about}
        await self._replicated.propose(command)
        return {}

    async def put_part(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "upload", "number", *asked.WRITTEN)
        number = limits.check_part(params.get("number"))
        about = {"upload": limits.check_upload(params.get("upload")), "number": number}
        written = asked.check_written(params)
        bucket = await self._bucket(context, params)
        self._writers.heard(written["writer"])
        command = {"do": "put_part", "bucket": bucket["id"], **about, **written}
        async with self._room.held(bucket, written["object"]["size"], remaining_s(context)):
            return _shown_part(number, await self._replicated.propose(command))

    async def complete_upload(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "upload", "key", "parts", "condition", "id", "etag", "attributes", "lock")
        parts = params.get("parts")
        if not isinstance(parts, list | tuple) or not all(
            isinstance(each, list | tuple) and len(each) == 2 and isinstance(each[1], str) for each in parts
        ):
            raise Invalid("parts: use a list of [number, etag]")
        key = limits.check_key(params.get("key"))
        about = {
            "upload": limits.check_upload(params.get("upload")),
            "key": key,
            "parts": [[limits.check_part(number), etag] for number, etag in parts],
            "condition": asked.check_condition(params),
            "object": asked.check_object(params),
        }
        bucket = await self._bucket(context, params)
        command = {"do": "complete_upload", "bucket": bucket["id"], **about}
        more = 0
        if self._room.is_charging():
            more = self._more(bucket["id"], key, self._size_of_parts(bucket["id"], about))
        async with self._room.held(bucket, more, remaining_s(context)):
            return _shown(key, await self._replicated.propose(command))

    def _size_of_parts(self, bucket: int, about: Params) -> int:
        keys = (layout.part_key(bucket, about["upload"], number) for number, _ in about["parts"])
        parts = (self._replicated.kv.get(key) for key in keys)
        return sum(part["size"] for part in parts if part is not None)

    async def abort_upload(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "upload")
        upload = limits.check_upload(params.get("upload"))
        bucket = await self._bucket(context, params)
        command = {"do": "abort_upload", "bucket": bucket["id"], "upload": upload}
        await self._replicated.propose(command)
        return {}

    async def show_upload(self, context: CallContext | None, params: Params) -> Reply:
        """With its parts, ``limit`` of those behind ``after``."""
        check_known(params, "name", "upload", "after", "limit")
        upload = limits.check_upload(params.get("upload"))
        after, limit = params.get("after", 0), params.get("limit", PAGE_MAX)
        if type(after) is not int or type(limit) is not int or not after >= 0 or not 1 <= limit <= PAGE_MAX:
            raise Invalid(f"show_upload: after must be the number of a part, limit 1 to {PAGE_MAX}")
        bucket = await self._bucket(context, params)
        kv = self._replicated.kv
        found = existing_upload(kv, bucket, upload)
        prefix = layout.parts_prefix(bucket["id"], upload)
        parts: list[Reply] = []
        more = False
        size = 0
        for key, part in kv.scan(prefix, f"{prefix}{after + 1:05d}"):
            if len(parts) == limit or size >= REPLY_BYTES:
                more = True
                break
            parts.append(_shown_part(int(key[len(prefix) :]), part))
            size += _size_of(key, part)
        return {"upload": upload, **found, "parts": parts, "more": more}

    async def list_uploads(self, context: CallContext | None, params: Params) -> Reply:
        """In pages, by key and time: the first ones behind ``after``, which is key, time and id of the last
        one of the page before; whether there are more."""
        check_known(params, "name", "prefix", "after")
        prefix, after = asked.text(params, "prefix"), asked.check_after(params.get("after"))
        bucket = await self._bucket(context, params)
        base = layout.upload_key(bucket["id"], "")
        first: list[tuple[bytes, int, str]] = []  # and no more: there may be any number
        for number, (key, entry) in enumerate(self._replicated.kv.scan(base)):
            if number % UPLOADS_PAGE == UPLOADS_PAGE - 1:
                await asyncio.sleep(0)
            order = _upload_order({"upload": key[len(base) :], **entry})
            if entry["key"].startswith(prefix) and (after is None or order > after):
                first.append(order)
            if len(first) > 2 * UPLOADS_PAGE:
                first = sorted(first)[: UPLOADS_PAGE + 1]
        rows: list[Reply] = []
        size = 0
        for _, _, upload in sorted(first):
            if len(rows) == UPLOADS_PAGE or size >= REPLY_BYTES:
                return {"uploads": rows, "more": True}
            if (entry := self._replicated.kv.get(layout.upload_key(bucket["id"], upload))) is not None:
                rows.append({"upload": upload, **entry})
                size += len(msgpack.packb(entry)) + len(upload)
        return {"uploads": rows, "more": False}


def _upload_order(row: Params) -> tuple[bytes, int, str]:
    return row["key"].encode(), row["created_ms"], row["upload"]


def _shown(key: str, found: Params) -> Reply:
    shown = {name: found[name] for name in ("id", "size", "etag", "at_ms", "attributes")}
    shown |= {"version": versions.name_of(found), "marker": versions.is_marker(found)}
    return {"key": key, **shown, "parts": found.get("parts", []), "lock": found.get("lock")}


def _size_of(key: str, found: Params) -> int:
    """About as many bytes as it is shown in."""
    return 4 * len(key) + len(msgpack.packb(found["attributes"])) + 8 * len(found.get("parts", [])) + 200


def _shown_part(number: int, found: Params) -> Reply:
    return {"number": number, **{name: found[name] for name in ("size", "etag", "at_ms", "attributes")}}
