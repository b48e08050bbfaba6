"""Checks of a whole metadata state: what must hold after every command. For tests and simulation only."""

from __future__ import annotations

from typing import Any

from moorage.metadata import records
from moorage.metadata.objects import invariants as objects
from moorage.metadata.placement import replica_share
from moorage.metadata.records import CREATING, DELETING, READY
from moorage.service.kv import KV
from moorage.wire.errors import invariant

Load = dict[str, dict[str, int]]
Sets = dict[int, list[tuple[int, str]]]  # by number: its volumes, and in what state their snapshots are


def validate(kv: KV) -> None:
    """Raises InvariantViolation for the first thing that is wrong."""
    names = {name.removeprefix(records.NAMES): volume for name, volume in kv.scan(records.NAMES)}
    seen: set[int] = set()
    load: Load = {}
    sets: Sets = {}
    count = 0
    for volume in records.volumes(kv):
        count += 1
        owner = names.pop(volume["name"], None) if not volume["released"] else volume["id"]
        invariant(owner == volume["id"], "a volume owns its name until that is released", name=volume["name"])
        _once(seen, volume["id"])
        _validate_groups(kv, volume, seen, load)
        _validate_snapshots(volume, seen, sets)
        _validate_family(kv, volume)
        if records.kind_of(volume) == records.BUCKET and volume["state"] == READY:
            objects.validate(kv, volume)
    _validate_sets(kv, sets)
    invariant(not names, "no name without a volume", names=sorted(names))
    invariant(count == int(kv.get(records.COUNTER_VOLUMES) or 0), "volumes are counted", count=count)
    noted = {key.removeprefix(records.DEVICES): entry for key, entry in kv.scan(records.DEVICES)}
    invariant(noted == load, "the load of a device is what its replicas come to", noted=noted, load=load)
    last = int(kv.get(records.COUNTER_ID) or 0)
    invariant(all(each & ((1 << 48) - 1) <= last for each in seen), "ids come from the counter", last=last)


def _validate_groups(kv: KV, volume: dict[str, Any], seen: set[int], load: Load) -> None:
    dropping = {replica for replica, _, _ in records.drops(kv, volume["id"])}
    live = volume["state"] != DELETING
    share = replica_share(volume["size"], len(volume["groups"]))
    for group in volume["groups"]:
        hosts = {member["host"] for member in group["members"]}
        invariant(len(hosts) == volume["replicas"], "a group is on distinct hosts", volume=volume["id"])
        for member in [*group["members"], *([group["wish"]] if group["wish"] else [])]:
            _once(seen, member["replica"])
            dropped = member["replica"] in dropping
            invariant(not (live and dropped), "a member is not to be dropped", replica=member["replica"])
            if live:
                entry = load.setdefault(member["device"], {"replicas": 0, "bytes": 0})
                entry["replicas"] += 1
                entry["bytes"] += share


def _validate_snapshots(volume: dict[str, Any], seen: set[int], sets: Sets) -> None:
    entries = records.snapshots(volume)
    ids = {"volume": volume["id"]}
    invariant(len({entry["name"] for entry in entries}) == len(entries), "a snapshot owns its name", **ids)
    for entry in entries:
        _once(seen, entry["id"])
        complete = len(entry["lsns"]) == len(volume["groups"])
        invariant(entry["state"] != READY or complete, "a ready snapshot is in all groups", **ids)
        used = entry["children"] or entry["id"] == volume.get("rollback", 0)
        invariant(entry["state"] == READY or not used, "a snapshot that is used is ready", **ids)
        if entry["set"]:
            sets.setdefault(entry["set"], []).append((volume["id"], entry["state"]))
    stay = [entry for entry in entries if entry["state"] != DELETING]
    invariant(volume["state"] == READY or not stay, "only a ready volume has snapshots", **ids)
    known = {0, *(entry["id"] for entry in entries)}
    invariant(volume.get("rollback", 0) in known, "a rollback is to a snapshot of the volume", **ids)


def _validate_sets(kv: KV, sets: Sets) -> None:
    creating = {number for number, rows in sets.items() if any(state == CREATING for _, state in rows)}
    for number in creating:
        states = {state for _, state in sets[number]}
        invariant(
            states == {CREATING}, "the snapshots of a set are ready together", set=number, states=states
        )
        volumes = records.snapshot_set(kv, number)
        invariant(
            [each for each, _ in sets[number]] == sorted(volumes), "a set knows its volumes", set=number
        )
    noted = {int(key.removeprefix(records.SNAPSHOT_SETS), 16) for key, _ in kv.scan(records.SNAPSHOT_SETS)}
    invariant(noted == creating, "sets are noted while they are created", noted=noted, creating=creating)


def _validate_family(kv: KV, volume: dict[str, Any]) -> None:
    parent = volume.get("parent")
    if parent is not None and volume["state"] != DELETING:
        entry = records.snapshot_by_id(records.existing_volume(kv, parent["volume"]), parent["snapshot"])
        known = entry is not None and entry["children"].count(volume["id"]) == 1
        invariant(known, "a clone is a child of its parent", volume=volume["id"])
    for entry in records.snapshots(volume):
        for child in entry["children"]:
            about = (records.volume_by_id(kv, child) or {}).get("parent") or {}
            known = (about.get("volume"), about.get("snapshot")) == (volume["id"], entry["id"])
            invariant(known, "a child has its parent", volume=volume["id"], child=child)


def _once(seen: set[int], number: int) -> None:
    invariant(number not in seen, "an id is given once", id=number)
    seen.add(number)
