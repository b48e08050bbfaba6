"""Checks of a whole metadata state: what must hold after every command. For tests and simulation only."""

from __future__ import annotations

from typing import Any

from moorage.metadata import records
from moorage.metadata.placement import replica_share
from moorage.metadata.records import DELETING
from moorage.service.kv import KV
from moorage.wire.errors import invariant

Load = dict[str, dict[str, int]]


def validate(kv: KV) -> None:
    """Raises InvariantViolation for the first thing that is wrong."""
    names = {name.removeprefix(records.NAMES): volume for name, volume in kv.scan(records.NAMES)}
    seen: set[int] = set()
    load: Load = {}
    count = 0
    for volume in records.volumes(kv):
        count += 1
        owner = names.pop(volume["name"], None) if not volume["released"] else volume["id"]
        invariant(owner == volume["id"], "a volume owns its name until that is released", name=volume["name"])
        _once(seen, volume["id"])
        _validate_groups(kv, volume, seen, load)
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


def _once(seen: set[int], number: int) -> None:
    invariant(number not in seen, "an id is given once", id=number)
    seen.add(number)
