"""What holds of a bucket's objects after every command. For tests and simulations: it looks at everything."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from moorage.metadata.objects import layout, versions
from moorage.metadata.objects.layout import OPEN, Extent
from moorage.metadata.objects.state import replicas_of
from moorage.service.kv import KV
from moorage.wire.errors import invariant


def validate(kv: KV, bucket: dict[str, Any]) -> None:
    """Raises InvariantViolation."""
    ids = {"bucket": bucket["id"]}
    regions = {(group, chunk) for group, chunk, _ in layout.regions(kv, bucket["id"])}
    used: dict[int, list[Extent]] = {}
    for group in bucket["groups"]:
        used[group["group"]] = list(layout.extents(kv, bucket["id"], group["group"]))
    taken = {extent for extents in used.values() for extent in extents}
    free = [extent for extent, _ in layout.frees(kv, bucket["id"])]
    for extent in [*taken, *free]:
        invariant(extent.is_sound, "an extent is inside of a region", extent=extent, **ids)
        invariant((extent.group, extent.region) in regions, "a region was given", extent=extent, **ids)
    invariant(taken.isdisjoint(free), "what is free is no extent", **ids)
    for extents in used.values():
        for former, later in pairwise(extents):
            invariant(former.end <= later.first, "extents are disjoint", former=former, later=later, **ids)
    referred: list[Extent] = []
    count = size = 0
    for _, entry in layout.scan_objects(kv, bucket["id"], "", b""):
        referred += [Extent(*each) for each in entry["extents"]]
        count, size = count + 1, size + entry["size"]
    versions_kept = _histories(kv, bucket["id"])
    referred += [Extent(*each) for entry in versions_kept for each in entry["extents"]]
    for _, part in kv.scan(layout.parts_prefix(bucket["id"], "")[:-1]):
        referred += [Extent(*each) for each in part["extents"]]
    invariant(len(referred) == len(set(referred)), "an extent is of one object", **ids)
    invariant(set(referred) == taken, "extents are what objects and parts are in", **ids)
    counted = [count, size, len(versions_kept), sum(entry["size"] for entry in versions_kept)]
    invariant(counted == versions.usage(kv, bucket["id"]), "objects are counted", counted=counted, **ids)
    for number, chunk, region in layout.regions(kv, bucket["id"]):
        gone = region.get("gone", [])
        invariant(region["state"] == OPEN or not gone, "a region that is closed remembers nothing", **ids)
        invariant(gone == sorted(set(gone)) and len(gone) % 2 == 0, "ranges ascend", gone=gone, **ids)
        for extent in [*taken, *free]:
            if (extent.group, extent.region) == (number, chunk):
                invariant(not layout.is_gone(gone, extent), "what is gone is not there", extent=extent, **ids)
    for group in bucket["groups"]:
        for replica in replicas_of(group):
            lacks = set(layout.lacks(kv, bucket["id"], group["group"], replica))
            invariant(lacks <= taken, "what a replica lacks is an extent", replica=replica, **ids)


def _histories(kv: KV, bucket: int) -> list[dict[str, Any]]:
    """All former versions and markers, when all is well with each history."""
    found: list[dict[str, Any]] = []
    numbers = set()
    for key, (number, null, kept) in layout.scan_histories(kv, bucket, "", b""):
        ids = {"bucket": bucket, "key": key}
        numbers.add(number)
        records = list(versions.history_of(kv, bucket, number))
        there = layout.find_object(kv, bucket, key)
        invariant(bool(records) and len(records) == kept, "what a history has is counted", **ids)
        invariant(there is not None or versions.is_marker(records[0]), "what is newest is current", **ids)
        seqs = [versions.seq_of(each) for each in ([there] if there else []) + records]
        invariant(seqs == sorted(set(seqs), reverse=True), "versions have an order", seqs=seqs, **ids)
        nulls = [versions.seq_of(each) for each in records if versions.name_of(each) == versions.NULL]
        invariant(nulls == ([] if null is None else [null]), "a key has one null version", **ids)
        if there is not None and versions.name_of(there) == versions.NULL:
            invariant(not nulls, "a key has one null version", **ids)
        found += records
    numbers_of_long = {key for key, _ in kv.scan(f"long/{bucket:016x}/")}
    long_objects = sum(layout.is_long(key) for key, _ in layout.scan_objects(kv, bucket, "", b""))
    invariant(len(numbers_of_long) == long_objects, "objects with long keys are referred to", bucket=bucket)
    stored = {int(key.split("/")[2], 16) for key, _ in kv.scan(f"version/{bucket:016x}/")}
    invariant(stored == numbers, "versions are of histories", bucket=bucket)
    return found
