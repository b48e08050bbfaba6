"""Commands of the replicated state about objects of buckets.

Owns what objects there are, and which addresses are theirs (layout.py). An object is visible with the command
that puts it, whole, or not at all; its bytes are durable at a majority of each group that they are in before
that. It must never read a clock, draw a random number or do I/O.

An object: ``{id, size, etag, at_ms, extents, attributes}``. ``id``: drawn by who puts it, so that a command
that is sent again is known; ``attributes``: what its writer notes of it, a map that is not looked into. More
is noted where objects have versions (versions.py), or are locked (locks.py).

Who writes objects is a *writer*, an id drawn at random; it is given regions, and is the only one to write
there. A region is closed when its writer says so, or has not been heard of for long: from then on no object
that is in it can be put. So what nothing refers to in a closed region is garbage for good, and what is in an
open one is left alone. Each address is put once: an open region remembers what was discarded of it, so a
command that comes late, or again, brings nothing back.

Invariants (``validate``): extents are in regions, disjoint, and each is referred to by one object or part;
what is free is no extent; what a member lacks, or who is about to be one, is an extent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, repeat
from typing import Any, Final

from moorage.metadata import limits, records
from moorage.metadata.objects import layout, locks, versions
from moorage.metadata.objects.answers import once
from moorage.metadata.objects.layout import CLOSED, OPEN, REGION_CHUNKS, SWEPT, Extent
from moorage.metadata.objects.versions import Outcome
from moorage.quorum.majority import is_majority
from moorage.quorum.record import CHUNKS_MAX
from moorage.service.kv import KV
from moorage.wire.errors import (
    Busy,
    Invalid,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    Stale,
    StaleConfiguration,
)

PURGED_AT_ONCE: Final = 1000  # keys, in one command
RECENT: Final = 100  # versions of a key, among which one is looked for that was put some seconds ago
LACKED_AT_CHANGE: Final = 1000  # extents, of who becomes a member

Command = dict[str, Any]
Bucket = dict[str, Any]
Object = dict[str, Any]


class Objects:
    """Part of the state machine."""

    def commands(self) -> dict[str, Callable[[KV, Command, int], Any]]:
        return {
            "open_region": self._open_region,
            "close_regions": self._close_regions,
            "region_swept": self._region_swept,
            "forget_region": self._forget_region,
            "put_object": self._put_object,
            "delete_objects": once(self._delete_objects),
            "create_upload": self._create_upload,
            "put_part": self._put_part,
            "complete_upload": self._complete_upload,
            "abort_upload": self._abort_upload,
            "set_document": once(self._set_document),
            "set_attributes": once(self._set_attributes),
            "set_versioning": once(self._set_versioning),
            "set_lock": once(self._set_lock),
            "next_generation": self._next_generation,
            "discarded": self._discarded,
            "repaired": self._repaired,
            "note_lack": self._note_lack,
            "built": self._built,
            "rebuild": self._rebuild,
            "rebuilt": self._rebuilt,
            "purge_bucket": self._purge_bucket,
        }

    # -- regions -------------------------------------------------------------------------------------------

    def _open_region(self, kv: KV, command: Command, index: int) -> int:
        """``{bucket, group, writer}`` -> its first chunk."""
        bucket = existing_bucket(kv, command["bucket"])
        group = _group(bucket, command["group"])["group"]
        key = layout.next_region_key(bucket["id"], group)
        first = int(kv.get(key) or 0)
        if first + REGION_CHUNKS > CHUNKS_MAX:
            raise LimitExceeded(f"group {group} of bucket {bucket['name']!r} has given out all its addresses")
        kv.put(key, first + REGION_CHUNKS)
        kv.put(layout.region_key(bucket["id"], group, first), {"owner": command["writer"], "state": OPEN})
        return first

    def _close_regions(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, regions: [[group, first chunk]]}``: nothing is put there any more."""
        for group, first in command["regions"]:
            key = layout.region_key(command["bucket"], group, first)
            region = kv.get(key)
            if region is not None and region["state"] == OPEN:
                kv.put(key, {"owner": region["owner"], "state": CLOSED})

    def _region_swept(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, group, chunk}``: all members have discarded what nothing refers to in a closed
        region."""
        key = layout.region_key(command["bucket"], command["group"], command["chunk"])
        region = kv.get(key)
        if region is not None and region["state"] == CLOSED:
            kv.put(key, {**region, "state": SWEPT})

    def _forget_region(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, group, chunk}``: all members have discarded all of it, of which nothing was referred
        to."""
        bucket, group, first = command["bucket"], command["group"], command["chunk"]
        region = kv.get(layout.region_key(bucket, group, first))
        if region is None or region["state"] == OPEN:
            return
        if next(layout.extents(kv, bucket, group, first, first + REGION_CHUNKS), None) is not None:
            raise Busy(f"region {group}/{first} is in use")
        for extent in list(layout.frees_of_region(kv, bucket, group, first)):
            kv.delete(layout.free_key(bucket, extent))
        kv.delete(layout.region_key(bucket, group, first))

    # -- objects -------------------------------------------------------------------------------------------

    def _put_object(self, kv: KV, command: Command, index: int) -> Object:
        """``{bucket, key, writer, object: {id, size, etag, at_ms, attributes, lock}, extents, stored,
        condition}``. ``stored``: of each extent, the replicas that have it durably. ``condition``: of the
        object that is there now, see :func:`check_condition`."""
        bucket = existing_bucket(kv, command["bucket"])
        key = limits.check_key(command["key"])
        there = layout.find_object(kv, bucket["id"], key)
        if there is not None and there["id"] == command["object"]["id"]:
            return there  # sent again
        if (former := self._put_before(kv, bucket, command)) is not None:
            return former
        check_condition(there, command.get("condition") or {}, key)
        return self._put(kv, bucket, key, there, self._stored(kv, bucket, command), index)

    def _put_before(self, kv: KV, bucket: Bucket, command: Command) -> Object | None:
        """What this very command has put, when it is sent again and that is not the current object any more:
        its addresses are of a former version, or were of an object that is gone."""
        extents = [Extent(*each) for each in command["extents"]]
        are_put = []
        for extent in extents:
            region = kv.get(layout.region_key(bucket["id"], extent.group, extent.region))
            if not _is_open(region, command["writer"]):
                return None
            are_put.append(_was_put(kv, bucket, extent, region))
        if extents and all(are_put):
            found = {**command["object"], "extents": command["extents"]}
            return {**found, **_name_of_none(kv, bucket)}
        if extents and "key" in command and kv.get(layout.extent_key(bucket["id"], extents[0])):
            return _former(kv, bucket, command["key"], command["object"]["id"])
        return None

    def _put(
        self, kv: KV, bucket: Bucket, key: str, there: Object | None, found: Object, index: int
    ) -> Object:
        if versions.is_full(kv, bucket["id"], key):
            raise LimitExceeded(
                f"{limits.LONG_KEYS_MAX} keys begin with the same {layout.DIRECT_BYTES} bytes as this one"
            )
        if found.get("lock") is not None:
            _check_locks(kv, bucket)
        for gone in versions.put(kv, bucket["id"], key, found, index):
            self._free(kv, bucket, gone)
        return found

    def _stored(self, kv: KV, bucket: Bucket, command: Command) -> Object:
        """The object, or part, with its extents: they are taken."""
        extents = [Extent(*each) for each in command["extents"]]
        for extent, holders in zip(extents, command["stored"], strict=True):
            _check_taken(kv, bucket, extent, command["writer"])
            self._note_holders(kv, bucket, extent, set(holders))
            kv.put(layout.extent_key(bucket["id"], extent), extent.blocks)
        found: Object = {**command["object"], "extents": [list(extent) for extent in extents]}
        return found

    def _note_holders(self, kv: KV, bucket: Bucket, extent: Extent, holders: set[int]) -> None:
        """Raises StaleConfiguration when these are no majority of those that are members now."""
        group = _group(bucket, extent.group)
        members = [member["replica"] for member in group["members"]]
        if not is_majority(replica in holders for replica in members):
            raise StaleConfiguration(
                f"group {extent.group} of bucket {bucket['name']!r} has other members than those that were"
                " written to: put the object again"
            )
        for replica in set(replicas_of(group)) - holders:
            kv.put(layout.lack_key(bucket["id"], replica, extent), extent.blocks)

    def _delete_objects(self, kv: KV, command: Command, index: int) -> dict[str, Any]:
        """``{bucket, keys, at_ms, condition}`` -> ``{found, marker}``: of each key an :class:`Outcome`, and
        the version of the markers that were made, where versions are on. ``ids``: of each key; one that is
        another by now is absent. ``versions``: of each key; that one goes, or, None, the current object.
        ``former``: only if it is not the newest of its key. ``bypass``: see locks.py."""
        bucket = existing_bucket(kv, command["bucket"])
        ids = command.get("ids") or repeat(None)
        names = command.get("versions") or repeat(None)
        found = []
        for key, wanted, name in zip(command["keys"], ids, names, strict=False):
            limits.check_key(key)
            if name is None:
                found.append(self._delete(kv, bucket, command, key, wanted, index))
            else:
                found.append(self._remove(kv, bucket, command, key, wanted, name))
        return {"found": found, "marker": _marker_of(kv, bucket, index)}

    def _delete(
        self, kv: KV, bucket: Bucket, command: Command, key: str, wanted: str | None, index: int
    ) -> Outcome:
        there = layout.find_object(kv, bucket["id"], key)
        if command.get("condition"):
            check_condition(there, command["condition"], key)
        if wanted is not None and (there is None or there["id"] != wanted):
            return Outcome.ABSENT
        if there is None and (_is_marked(kv, bucket, key, index) or versions.is_full(kv, bucket["id"], key)):
            return Outcome.ABSENT  # the same key, once more in one command; or no marker has room there
        for gone in versions.delete(kv, bucket["id"], key, index, command.get("at_ms", 0)):
            self._free(kv, bucket, gone)
        return Outcome.ABSENT if there is None else Outcome.DELETED

    def _remove(
        self, kv: KV, bucket: Bucket, command: Command, key: str, wanted: str | None, name: str
    ) -> Outcome:
        record = versions.find(kv, bucket["id"], key, name)
        if command.get("condition"):
            check_condition(record, command["condition"], key)
        if record is None or wanted not in (None, record["id"]):
            return Outcome.ABSENT
        newest = versions.newest(kv, bucket["id"], key) if command.get("former") else None
        if newest is not None and versions.name_of(newest) == name:
            return Outcome.ABSENT
        if locks.is_locked(record.get("lock"), command.get("at_ms", 0), command.get("bypass", False)):
            return Outcome.LOCKED
        for gone in versions.remove(kv, bucket["id"], key, record):
            self._free(kv, bucket, gone)
        return Outcome.MARKER_DELETED if versions.is_marker(record) else Outcome.DELETED

    def _free(self, kv: KV, bucket: Bucket, gone: Object) -> None:
        """Nobody refers to its bytes any more; who reads them still may for a while."""
        for each in gone["extents"]:
            extent = Extent(*each)
            kv.delete(layout.extent_key(bucket["id"], extent))
            kv.put(layout.free_key(bucket["id"], extent), [extent.blocks, layout.generation(kv)])
            for replica in replicas_of(_group(bucket, extent.group)):
                kv.delete(layout.lack_key(bucket["id"], replica, extent))

    def _set_attributes(self, kv: KV, command: Command, index: int) -> Object:
        """``{bucket, key, id, version, former, attributes}``: of the object with this id, if it is still
        there and ``former`` is what is noted of it; without ``version`` it is the current one."""
        bucket = existing_bucket(kv, command["bucket"])
        found = _existing_version(kv, bucket, command)
        if command.get("former", found["attributes"]) != found["attributes"]:
            raise PreconditionFailed(f"what is noted of object {command['key']!r} has changed meanwhile")
        found["attributes"] = command["attributes"]
        versions.rewrite(kv, bucket["id"], command["key"], found)
        return found

    def _set_versioning(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, state, locks}``: locks that are on stay on, and with them versions."""
        bucket = existing_bucket(kv, command["bucket"])
        there = versions.of_bucket(kv, bucket["id"])
        with_locks = command["locks"] or (there is not None and there.locks)
        if with_locks and command["state"] != versions.ENABLED:
            raise Invalid(f"versions of bucket {bucket['name']!r} can be locked: they cannot be suspended")
        versions.switch(kv, bucket["id"], command["state"], with_locks=with_locks)

    def _set_lock(self, kv: KV, command: Command, index: int) -> Object:
        """``{bucket, key, id, version, retention, hold, now_ms, bypass}``: see locks.py."""
        bucket = existing_bucket(kv, command["bucket"])
        _check_locks(kv, bucket)
        found = _existing_version(kv, bucket, command)
        found["lock"] = locks.changed(found.get("lock"), command, command["now_ms"], command["bypass"])
        versions.rewrite(kv, bucket["id"], command["key"], found)
        return found

    def _set_document(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, document, text}``; None: it goes."""
        bucket = existing_bucket(kv, command["bucket"])
        key = layout.document_key(bucket["id"], limits.check_document(command["document"]))
        if command["text"] is None:
            kv.delete(key)
        else:
            others = layout.documents(kv, bucket["id"]) | {command["document"]: ""}
            size = sum(len(text.encode()) for text in [*others.values(), limits.check_text(command["text"])])
            if size > limits.DOCUMENTS_MAX:
                raise LimitExceeded(f"documents of {size} bytes: {limits.DOCUMENTS_MAX} at most")
            kv.put(key, command["text"])

    # -- uploads in parts ----------------------------------------------------------------------------------

    def _create_upload(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, upload, key, attributes, now_ms}``"""
        bucket = existing_bucket(kv, command["bucket"])
        at = layout.upload_key(bucket["id"], limits.check_upload(command["upload"]))
        if kv.get(at) is None:
            key, attributes = limits.check_key(command["key"]), command["attributes"]
            kv.put(at, {"key": key, "attributes": attributes, "created_ms": command["now_ms"]})

    def _put_part(self, kv: KV, command: Command, index: int) -> Object:
        """As ``put_object``, with ``upload`` and ``number`` in place of ``key``."""
        bucket = existing_bucket(kv, command["bucket"])
        existing_upload(kv, bucket, command["upload"])
        at = layout.part_key(bucket["id"], command["upload"], limits.check_part(command["number"]))
        there: Object | None = kv.get(at)
        if there is not None and there["id"] == command["object"]["id"]:
            return there
        if (former := self._put_before(kv, bucket, command)) is not None:
            return former
        found = self._stored(kv, bucket, command)
        if there is not None:
            self._free(kv, bucket, there)
        kv.put(at, found)
        return found

    def _complete_upload(self, kv: KV, command: Command, index: int) -> Object:
        """``{bucket, upload, parts: [[number, etag]], object: {id, etag, at_ms, attributes, lock},
        condition}``: the object is these parts, one after the other; the others are not kept."""
        bucket = existing_bucket(kv, command["bucket"])
        upload = kv.get(layout.upload_key(bucket["id"], command["upload"]))
        if upload is None and (done := self._completed(kv, bucket, command)) is not None:
            return done
        upload = existing_upload(kv, bucket, command["upload"])
        if upload["key"] != command["key"]:
            raise Invalid(f"upload {command['upload']} is of key {upload['key']!r}, not {command['key']!r}")
        parts = dict(_parts(kv, bucket["id"], command["upload"]))
        chosen = [_chosen(parts, number, etag) for number, etag in command["parts"]]
        numbers = [number for number, _ in command["parts"]]
        if not numbers or numbers != sorted(set(numbers)):
            raise Invalid("parts of an upload are completed in the order of their numbers, each once")
        there = layout.find_object(kv, bucket["id"], upload["key"])
        check_condition(there, command.get("condition") or {}, upload["key"])
        found = {
            **command["object"],
            "size": sum(part["size"] for part in chosen),
            "extents": [extent for part in chosen for extent in part["extents"]],
            "parts": [[part["size"], len(part["extents"])] for part in chosen],
        }
        if (count := len(found["extents"])) > limits.OBJECT_EXTENTS_MAX:
            raise LimitExceeded(
                f"an object in {count} pieces: {limits.OBJECT_EXTENTS_MAX} at most, use larger parts"
            )
        self._put(kv, bucket, upload["key"], there, found, index)
        for number, part in parts.items():
            if number not in numbers:
                self._free(kv, bucket, part)
        self._forget_upload(kv, bucket["id"], command["upload"], parts)
        return found

    def _completed(self, kv: KV, bucket: Bucket, command: Command) -> Object | None:
        """What this very command has made of it before, if that is still there."""
        key, identity = command["key"], command["object"]["id"]
        there = layout.find_object(kv, bucket["id"], key)
        return there if there is not None and there["id"] == identity else _former(kv, bucket, key, identity)

    def _abort_upload(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, upload}``"""
        bucket = existing_bucket(kv, command["bucket"])
        existing_upload(kv, bucket, command["upload"])
        parts = dict(_parts(kv, bucket["id"], command["upload"]))
        for part in parts.values():
            self._free(kv, bucket, part)
        self._forget_upload(kv, bucket["id"], command["upload"], parts)

    def _forget_upload(self, kv: KV, bucket: int, upload: str, parts: Iterable[int]) -> None:
        for number in parts:
            kv.delete(layout.part_key(bucket, upload, number))
        kv.delete(layout.upload_key(bucket, upload))

    # -- what members have ---------------------------------------------------------------------------------

    def _next_generation(self, kv: KV, command: Command, index: int) -> None:
        """``{generation}``: it follows that one. Clocks of leaders may differ: so what became free is told by
        the generation, which its leader begins after so long a time by its own clock."""
        if layout.generation(kv) == command["generation"]:
            kv.put(layout.GENERATION, command["generation"] + 1)

    def _discarded(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, extents}``: all members have discarded them. An open region remembers that."""
        regions: dict[str, Any] = {}  # that are open, by key
        for each in command["extents"]:
            extent = Extent(*each)
            kv.delete(layout.free_key(command["bucket"], extent))
            key = layout.region_key(command["bucket"], extent.group, extent.region)
            region = regions[key] if key in regions else kv.get(key)
            if region is not None and region["state"] == OPEN:
                layout.go(region.setdefault("gone", []), extent)
                regions[key] = region
        for key, region in regions.items():
            kv.put(key, region)

    def _repaired(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, replica, extents}``: it has them, as others do."""
        for each in command["extents"]:
            kv.delete(layout.lack_key(command["bucket"], command["replica"], Extent(*each)))

    def _note_lack(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, replica, extents}``: it was found to lack them; those that are still there."""
        bucket = existing_bucket(kv, command["bucket"])
        for each in command["extents"]:
            extent = Extent(*each)
            if command["replica"] in replicas_of(_group(bucket, extent.group)) and kv.get(
                layout.extent_key(bucket["id"], extent)
            ):
                kv.put(layout.lack_key(bucket["id"], command["replica"], extent), extent.blocks)

    def _rebuild(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, group, replica}``: a member is damaged. It is emptied, and has nothing of what is
        there."""
        bucket = existing_bucket(kv, command["bucket"])
        if command["replica"] in replicas_of(_group(bucket, command["group"])):
            kv.put(layout.built_key(bucket["id"], command["replica"]), 0)

    def _rebuilt(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, group, replica}``: it has all again but what it is noted to lack."""
        bucket = existing_bucket(kv, command["bucket"])
        members = [member["replica"] for member in _group(bucket, command["group"])["members"]]
        if command["replica"] in members:
            kv.delete(layout.built_key(bucket["id"], command["replica"]))

    def _built(self, kv: KV, command: Command, index: int) -> None:
        """``{bucket, group, replica, address}``: the replica that is to become a member, or that was emptied,
        has all that had been put below this address of its group."""
        bucket = existing_bucket(kv, command["bucket"])
        if command["replica"] not in replicas_of(_group(bucket, command["group"])):
            raise StaleConfiguration(f"replica {command['replica']} is not to become a member any more")
        kv.put(layout.built_key(bucket["id"], command["replica"]), command["address"])

    def _purge_bucket(self, kv: KV, command: Command, index: int) -> bool:
        """``{bucket}``: of one that is being deleted, some of what there is; whether there is more."""
        bucket = records.volume_by_id(kv, command["bucket"])
        if bucket is None or bucket["state"] != records.DELETING:
            return False
        keys = list(islice(layout.all_keys(kv, bucket["id"]), PURGED_AT_ONCE))
        for key in keys:
            kv.delete(key)
        return len(keys) == PURGED_AT_ONCE


def existing_bucket(kv: KV, identity: int) -> Bucket:
    """Raises NotFound; Invalid for a volume."""
    found = records.existing_volume(kv, identity)
    records.check_ready(found)
    if records.kind_of(found) != records.BUCKET:
        raise Invalid(f"{found['name']!r} is a volume, not a bucket: it holds no objects")
    return found


def existing_upload(kv: KV, bucket: Bucket, upload: str) -> dict[str, Any]:
    found: dict[str, Any] | None = kv.get(layout.upload_key(bucket["id"], limits.check_upload(upload)))
    if found is None:
        raise NotFound(f"bucket {bucket['name']!r} has no upload {upload}: it was completed, or aborted")
    return found


def replicas_of(group: dict[str, Any]) -> list[int]:
    """Of its members, and of the one that is to become one."""
    members = [member["replica"] for member in group["members"]]
    return [*members, *([group["wish"]["replica"]] if group["wish"] else [])]


def check_condition(there: Object | None, condition: dict[str, Any], key: str) -> None:
    """``absent``: there must be none; ``etags``: there must be one with one of these; ``not_etags``: with
    none of these, if there is one. Raises PreconditionFailed."""
    etag = there["etag"] if there is not None else None
    if condition.get("absent") and there is not None:
        raise PreconditionFailed(f"there is an object {key!r} already", etag=etag)
    if "etags" in condition and etag not in condition["etags"]:
        raise PreconditionFailed(f"object {key!r} has etag {etag}, another one than was asked for", etag=etag)
    if there is not None and etag in condition.get("not_etags", ()):
        raise PreconditionFailed(f"object {key!r} has etag {etag}", etag=etag)


def _group(bucket: Bucket, number: int) -> dict[str, Any]:
    if not 0 <= number < len(bucket["groups"]):
        raise Invalid(f"bucket {bucket['name']!r} has no group {number}")
    found: dict[str, Any] = bucket["groups"][number]
    return found


def _check_taken(kv: KV, bucket: Bucket, extent: Extent, writer: int) -> None:
    """Raises what speaks against it becoming a part of an object."""
    _group(bucket, extent.group)
    if not extent.is_sound:
        raise Invalid(f"extent {list(extent)} is no run of blocks inside of a region")
    region = kv.get(layout.region_key(bucket["id"], extent.group, extent.region))
    if not _is_open(region, writer):
        raise Stale(
            "the addresses that were written to are not this writer's any more: it was silent for too long;"
            " put the object again"
        )
    if kv.get(layout.extent_key(bucket["id"], extent)) or _was_put(kv, bucket, extent, region):
        raise Stale("these addresses were used for an object before: put it again")


def _existing_version(kv: KV, bucket: Bucket, command: Command) -> Object:
    """Raises NotFound; PreconditionFailed for another object than ``id``."""
    key, name = limits.check_key(command["key"]), command.get("version")
    if name is None:
        found = layout.find_object(kv, bucket["id"], key)
    else:
        found = versions.find(kv, bucket["id"], key, name)
    if found is None or versions.is_marker(found):
        raise NotFound(f"bucket {bucket['name']!r} has no object {key!r}" + (f" {name}" if name else ""))
    if found["id"] != command["id"]:
        raise PreconditionFailed(f"object {key!r} is another one by now", etag=found["etag"])
    return found


def _former(kv: KV, bucket: Bucket, key: str, identity: str) -> Object | None:
    """The version with this id, of the newest ones that are not current any more."""
    recent = islice(versions.history(kv, bucket["id"], key), RECENT)
    return next((each for each in recent if each["id"] == identity), None)


def _name_of_none(kv: KV, bucket: Bucket) -> dict[str, Any]:
    """What is noted of a version that is gone, beside that it had no name, or one that nothing has."""
    versioning = versions.of_bucket(kv, bucket["id"])
    return {} if versioning is None or versioning.state == versions.SUSPENDED else {"seq": 0}


def _marker_of(kv: KV, bucket: Bucket, index: int) -> str | None:
    """The name of a marker that is made by the command at ``index``."""
    versioning = versions.of_bucket(kv, bucket["id"])
    if versioning is None:
        return None
    return versions.NULL if versioning.state == versions.SUSPENDED else versions.name_at(index)


def _is_marked(kv: KV, bucket: Bucket, key: str, index: int) -> bool:
    former = versions.newest_former(kv, bucket["id"], key)
    return former is not None and versions.seq_of(former) == index


def _check_locks(kv: KV, bucket: Bucket) -> None:
    versioning = versions.of_bucket(kv, bucket["id"])
    if versioning is None or not versioning.locks:
        raise Invalid(f"versions of bucket {bucket['name']!r} cannot be locked: that was not switched on")


def _is_open(region: dict[str, Any] | None, writer: int) -> bool:
    return region is not None and region["state"] == OPEN and region["owner"] == writer


def _was_put(kv: KV, bucket: Bucket, extent: Extent, region: dict[str, Any] | None) -> bool:
    """Whether it was of an object that is there no more."""
    if extent.is_sound and region is not None and layout.is_gone(region.get("gone", []), extent):
        return True
    return kv.get(layout.free_key(bucket["id"], extent)) is not None


def _parts(kv: KV, bucket: int, upload: str) -> Iterable[tuple[int, Object]]:
    prefix = layout.parts_prefix(bucket, upload)
    for key, part in kv.scan(prefix):
        yield int(key[len(prefix) :]), part


def _chosen(parts: dict[int, Object], number: int, etag: str) -> Object:
    if number not in parts or parts[number]["etag"] != etag:
        raise NotFound(f"part {number} with etag {etag} was not uploaded", part=number)
    return parts[number]


def is_built(kv: KV, bucket: Bucket, group: int, replica: int) -> bool:
    """Whether the replica that is to become a member of this group may: it has all that is there, but for a
    little that came just now, of which a majority of those that are members then has each. (While objects
    are put all the time there is always some.)"""
    wish = bucket["groups"][group]["wish"]
    lacks = list(islice(layout.lacks(kv, bucket["id"], group, replica), LACKED_AT_CHANGE + 1))
    if len(lacks) > LACKED_AT_CHANGE:
        return False
    others = [each["replica"] for each in bucket["groups"][group]["members"]]
    others.remove(wish["replaces"])
    for extent in lacks:
        has = [kv.get(layout.lack_key(bucket["id"], other, extent)) is None for other in others]
        if not is_majority([False, *has]):
            return False
    at, known = int(kv.get(layout.built_key(bucket["id"], replica)) or 0), set(lacks)
    return all(extent in known for extent in layout.extents_from(kv, bucket["id"], group, at))


def is_purged(kv: KV, bucket: int) -> bool:
    """Of a volume as well: it has no objects."""
    return next(layout.all_keys(kv, bucket), None) is None


def check_is_empty(kv: KV, bucket: Bucket) -> None:
    """Raises Busy for a bucket with objects, or versions; uploads that were begun do not keep it."""
    objects, size, former, former_size = versions.usage(kv, bucket["id"])
    if objects or former:
        also = f", and {former} former versions and delete markers of {former_size} bytes" if former else ""
        raise Busy(
            f"bucket {bucket['name']!r} has {objects} objects of {size} bytes{also}: delete them first",
            objects=objects,
        )
