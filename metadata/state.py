"""The replicated state of one metadata group: its commands, applied in the order of the Raft log.

Owns what exists: volumes, their replica groups with configurations, epochs and holders, and what is still
to be dropped. It must never read a clock, draw a random number or do I/O: times and choices (placement)
arrive in the command, and every member computes the same. Leases are not here: they are the leader's
(lease.py).

Invariants (``invariants.py`` checks them): an epoch never goes down; an id is never given twice; the
replicas of a group are on distinct hosts; a replica is either a member (or the wish) of its group or in
``drop/``, never both; once a volume is ``deleting`` it never comes back. Each command that a client or a
task may send again is idempotent.

A volume: ``{id, name, size, replicas, durability, epoch, state, groups, created_ms, holder, writers,
released, ended_ms, request}`` with ``groups: [{group, version, members: [{replica, device, host}],
wish}]``, ``wish``: ``{replica, device, host, replaces, why, since_ms}`` of a replacement under way or None,
``holder``: ``{host, pid, program, recovers, writer, since_ms}`` or None. ``writers`` are the ids of the last
writers, the newest at the end: a detach sent again is told from a fenced one, and an attach that comes
late from a new one. ``owner`` is the last of them that came to write, not only to recover (0: none yet).
``fs``: ``{type, state}`` of the file system on it, as its mounts note it, or None (see ``limits.check_fs``).
``iops``, ``bw``: its ceilings, 0 for none; ``principal``: whose quota it counts for. ``snapshots``: see
``snapshots.py``; ``snapshots_version`` rises whenever they change. ``parent``: ``{volume, name, snapshot,
snapshot_name, size}`` of a clone, ids and names, or None. ``rollback``: id of the snapshot to which it is
being rolled back, or 0. A volume has these seven only where they say something (see ``records.LATER``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moorage.metadata import limits, records, requests
from moorage.metadata.lease import check_current, check_succession, describe_holder
from moorage.metadata.objects import versions
from moorage.metadata.objects.layout import built_key
from moorage.metadata.objects.state import Objects, check_is_empty, is_built, is_purged
from moorage.metadata.placement import replica_share
from moorage.metadata.records import CREATING, DELETING, READY
from moorage.metadata.snapshots import Snapshots, check_deletable
from moorage.quorum.record import EPOCH_MAX
from moorage.service.kv import KV
from moorage.wire.errors import (
    Busy,
    Fenced,
    Invalid,
    LimitExceeded,
    NotFound,
    StaleConfiguration,
    VersionMismatch,
    invariant,
)

Command = dict[str, Any]
Volume = dict[str, Any]


class StateMachine:
    """Applies commands ``{"do": NAME, ...}``. Raising a :class:`MoorageError` takes back that command's
    writes.
    """

    def __init__(
        self,
        group: str,
        on_work: Callable[[int], None] = lambda volume: None,
        on_change: Callable[[int], None] = lambda volume: None,
    ) -> None:
        """``on_work`` is told of a volume that the leader's tasks should look at: whoever asked for it may be
        gone by now, or not know that it was committed. ``on_change``: of each volume that is another one
        once the command is applied."""
        self.group = group
        self._on_work = on_work
        self._on_change = on_change
        self._snapshots = Snapshots(self._put, self._next_id)
        self._id_base = limits.group_number(group) << limits.ID_COUNTER_BITS
        self._commands: dict[str, Callable[[KV, Command, int], Any]] = {
            "found": self._found,
            "admit": self._admit,
            "create": self._create,
            "create_limited": self._create,  # a member that knows no ceilings would pass over them: it stops
            "create_clone": self._create,  # as above
            "create_bucket": self._create,  # as above
            "ready": self._ready,
            "abandon": self._abandon,
            "attach": self._attach,
            "attach_to_roll_back": self._attach,
            "detach": self._detach,
            "resize": self._resize,
            "set_ceilings": self._set_ceilings,
            "note_fs": self._note_fs,
            "delete": self._delete,
            "dropped": self._dropped,
            "released": self._released,
            "plan_replacement": self._plan_replacement,
            "cancel_replacement": self._cancel_replacement,
            "reconfigure": self._reconfigure,
            **self._snapshots.commands(),
            **Objects().commands(),
        }

    def apply(self, kv: KV, command: Command, index: int) -> Any:
        apply = self._commands.get(command.get("do", ""))
        if apply is None:
            raise VersionMismatch(
                f"unknown metadata command {command.get('do')!r}: this member is too old, upgrade it"
            )
        return apply(kv, command, index)

    # -- the group -----------------------------------------------------------------------------------

    def _found(self, kv: KV, command: Command, index: int) -> dict[str, Any]:
        """``{uid}``: the first one counts."""
        found = records.group(kv) or {"uid": command["uid"], "admitted": False}
        kv.put(records.GROUP, found)
        return found

    def _admit(self, kv: KV, command: Command, index: int) -> dict[str, Any]:
        """``{uid}``: the registry has entered the group under its name."""
        found = records.group(kv)
        if found is None or found["uid"] != command["uid"]:
            raise Invalid(f"metadata group {self.group} is not {command['uid']}")
        kv.put(records.GROUP, {**found, "admitted": True})
        return found

    # -- the life of a volume ------------------------------------------------------------------------

    def _create(self, kv: KV, command: Command, index: int) -> Volume:
        """``{request, name, size, replicas, durability, fs, placement: [[{device, host}]], created_ms}`` and,
        where they are not what they are without (``records.LATER``), iops, bw, principal. Of a clone also
        ``parent: {volume, snapshot}``, ids; of a bucket ``locks``: versions are on, and can be locked."""
        name = limits.check_name(command["name"])
        known = requests.known(kv, command["request"], "create", name)
        if known is not None:
            return known
        later = limits.check_later(command)
        if command["do"] == "create_bucket":
            later["kind"] = records.BUCKET
        else:
            limits.check_size(command["size"])
        limits.check_replicas(command["replicas"])
        limits.check_durability(command["durability"])
        limits.check_groups(len(command["placement"]))
        if "parent" in command:
            later["parent"] = self._snapshots.parent_of(kv, command["parent"], command["size"])
        records.check_name_free(kv, name)
        count = int(kv.get(records.COUNTER_VOLUMES) or 0)
        if count >= limits.VOLUMES_PER_GROUP_MAX:
            raise LimitExceeded(
                f"metadata group {self.group} holds {count} volumes, its limit: delete some, or add a "
                "metadata group"
            )
        volume: Volume = {
            "id": self._next_id(kv),
            "name": name,
            "size": command["size"],
            "replicas": command["replicas"],
            "durability": command["durability"],
            "epoch": 0,
            "state": CREATING,
            "groups": [],
            "created_ms": command["created_ms"],
            "holder": None,
            "writers": [],
            "owner": 0,
            "fs": command.get("fs"),
            "released": False,
            "ended_ms": 0,
            "request": command["request"],
            **later,
        }
        if command.get("locks"):
            versions.switch(kv, volume["id"], versions.ENABLED, with_locks=True)
        for number, placed in enumerate(command["placement"]):
            volume["groups"].append(self._new_group(kv, number, placed, command["replicas"]))
        if "parent" in later:
            self._snapshots.adopt(kv, volume)
        self._load(kv, volume, +1)
        kv.put(records.COUNTER_VOLUMES, count + 1)
        kv.put(records.NAMES + name, volume["id"])
        requests.remember(kv, command["request"], "create", volume, index)
        return self._put(kv, volume)

    def _ready(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume}``: all its replicas are there."""
        volume = self._volume(kv, command)
        if volume["state"] == DELETING:
            raise NotFound(f"volume {volume['name']!r} was given up before its replicas were there")
        volume["state"] = READY
        return self._put(kv, volume)

    def _abandon(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, error, now_ms}``: creation failed; what may exist of it is dropped."""
        volume = self._volume(kv, command)
        if volume["state"] == READY:
            raise Invalid(f"volume {volume['name']!r} is ready: delete it instead")
        if volume["state"] == CREATING:
            requests.failed(kv, volume["request"], command["error"])
            self._end(kv, volume, command["now_ms"])
        return self._put(kv, volume)

    def _attach(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, holder, recovers, succeeds, now_ms}``: take epoch + 1 if the volume still
        is at ``epoch``. ``recovers``: only to bring its logs to an end; a writer may take over from it
        unasked. ``succeeds``: former lives of this writer; if others wrote since, it comes too late.
        ``rolls_back``, where it is given: the name of a snapshot; nobody else writes until it has said that
        the volume is rolled back to that one.

        Sent again by the same writer it gives the same epoch again (a writer id serves one attach).
        """
        writer = limits.check_writer(command["writer"])
        volume = self._volume(kv, command)
        records.check_ready(volume)
        if volume["holder"] is not None and volume["holder"]["writer"] == writer:
            return volume
        if writer in volume["writers"]:
            raise Fenced(
                f"this attachment of volume {volume['name']!r} has ended: attach again with a new writer id"
            )
        if succeeds := command.get("succeeds"):
            check_succession(volume, succeeds, command["now_ms"])
        self._check_epoch(volume, command["epoch"])
        if not command["recovers"]:
            self._check_rollback(volume, command.get("rolls_back", ""))
        self._raise_epoch(volume)
        holder = limits.check_holder(command["holder"])
        if not command["recovers"]:
            volume["owner"] = writer
        about = {"recovers": command["recovers"], "writer": writer, "since_ms": command["now_ms"]}
        volume["holder"] = {**holder, **about}
        volume["writers"] = [*volume["writers"], writer][-limits.WRITERS_KEPT :]
        return self._put(kv, volume)

    def _check_rollback(self, volume: Volume, name: str) -> None:
        """One that was begun is finished before anything else is done. Begins it, where ``name`` is given."""
        begun = volume.get("rollback", 0)
        wanted = records.ready_snapshot(volume, name)["id"] if name else 0
        if begun != wanted:
            records.check_not_rolling_back(volume)
            if any(entry["state"] == records.CREATING for entry in records.snapshots(volume)):
                raise Busy(
                    f"a snapshot of volume {volume['name']!r} is being created: try again in some seconds"
                )
            volume["rollback"] = wanted

    def _detach(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, now_ms}``"""
        volume = self._volume(kv, command)
        holder, epoch, writer = volume["holder"], command["epoch"], command["writer"]
        if holder is None and volume["epoch"] == epoch and volume["writers"][-1:] == [writer]:
            return volume  # sent again
        check_current(volume, epoch, writer, command["now_ms"])
        volume["holder"] = None
        return self._put(kv, volume)

    def _note_fs(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, fs, now_ms}``: what its holder is about to make of it, or has made."""
        volume = self._volume(kv, command)
        check_current(volume, command["epoch"], command["writer"], command["now_ms"])
        volume["fs"] = limits.check_fs(command["fs"])
        return self._put(kv, volume)

    def _resize(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, size}``: up only; the size that it has already is no change."""
        volume = self._volume(kv, command)
        records.check_ready(volume)
        size = limits.check_size(command["size"])
        if size < volume["size"]:
            raise Invalid(
                f"volume {volume['name']!r} has {volume['size']} bytes and cannot shrink to {size}: resize "
                "goes up only; copy to a smaller volume instead",
                size=volume["size"],
            )
        self._load(kv, volume, -1)
        volume["size"] = size
        self._load(kv, volume, +1)
        return self._put(kv, volume)

    def _set_ceilings(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, iops, bw}``: None leaves it as it is, 0 takes it away."""
        volume = self._volume(kv, command)
        records.check_ready(volume)
        volume |= limits.check_later({key: command[key] for key in ("iops", "bw")})
        return self._put(kv, volume)

    def _delete(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, request, name, now_ms}``: raises the epoch, so that a holder is fenced at
        metadata.
        """
        known = requests.known(kv, command["request"], "delete", command["name"])
        if known is not None:
            return known
        volume = self._volume(kv, command)
        if volume["state"] == CREATING:
            kind = records.kind_of(volume)
            raise Busy(f"{kind} {volume['name']!r} is being created: try again in some seconds")
        if volume["state"] == READY:
            check_deletable(volume)
            if records.kind_of(volume) == records.BUCKET:
                check_is_empty(kv, volume)
            self._check_epoch(volume, command["epoch"])
            self._end(kv, volume, command["now_ms"])
        requests.remember(kv, command["request"], "delete", volume, index)
        return self._put(kv, volume)

    def _dropped(self, kv: KV, command: Command, index: int) -> None:
        """``{volume, replicas}``: these are gone from their devices."""
        prefix = records.drops_prefix(command["volume"])
        for replica in command["replicas"]:
            kv.delete(f"{prefix}{replica:016x}")
        self._forget_if_done(kv, command["volume"])

    def _released(self, kv: KV, command: Command, index: int) -> None:
        """``{volume}``: the registry has given the name back."""
        volume = records.volume_by_id(kv, command["volume"])
        if volume is None or volume["state"] != DELETING or volume["released"]:
            return
        kv.delete(records.NAMES + volume["name"])
        volume["released"] = True
        self._put(kv, volume)
        self._forget_if_done(kv, volume["id"])

    # -- configurations --------------------------------------------------------------------------------

    def _plan_replacement(self, kv: KV, command: Command, index: int) -> dict[str, Any]:
        """``{volume, group, version, old, device, host, why, now_ms}`` -> the wish: a learner that may
        replace ``old`` later."""
        volume, group = self._group(kv, command)
        wish = group["wish"]
        asked = (command["old"], command["device"], command["host"])
        if wish is not None:
            if (wish["replaces"], wish["device"], wish["host"]) == asked:
                return dict(wish)
            raise Busy(
                f"group {group['group']} of {volume['name']!r} is replacing {wish['replaces']} already"
            )
        self._check_version(group, command["version"])
        others = [member for member in group["members"] if member["replica"] != command["old"]]
        if len(others) == len(group["members"]):
            raise StaleConfiguration(
                f"replica {command['old']} is no member of group {group['group']} any more"
            )
        if command["host"] in {member["host"] for member in others}:
            raise Invalid(
                f"host {command['host']} holds a replica of this group already: choose another host"
            )
        wish = {
            "replica": self._next_id(kv),
            "device": command["device"],
            "host": command["host"],
            "replaces": command["old"],
            "why": command.get("why", ""),
            "since_ms": command.get("now_ms", 0),
        }
        group["wish"] = wish
        self._load_device(kv, wish["device"], self._share(volume), +1)
        self._put(kv, volume)
        return dict(wish)

    def _cancel_replacement(self, kv: KV, command: Command, index: int) -> None:
        """``{volume, group, replica}``: the learner will not become a member, and is dropped."""
        volume, group = self._group(kv, command)
        wish = group["wish"]
        if wish is None or wish["replica"] != command["replica"]:
            if any(member["replica"] == command["replica"] for member in group["members"]):
                raise StaleConfiguration(f"replica {command['replica']} became a member already")
            return
        group["wish"] = None
        self._drop(kv, volume, wish)
        kv.delete(built_key(volume["id"], wish["replica"]))
        self._put(kv, volume)

    def _reconfigure(self, kv: KV, command: Command, index: int) -> dict[str, Any]:
        """``{volume, group, epoch, version, replace: {old, new}, now_ms}``: compare-and-set on (epoch,
        version).

        Sent by the holder of ``epoch`` once a record is committed by the old and by the new members.
        """
        volume, group = self._group(kv, command)
        old, new = command["replace"]["old"], command["replace"]["new"]
        ids = [member["replica"] for member in group["members"]]
        if volume["epoch"] != command["epoch"]:
            raise Fenced(f"volume {volume['name']!r} is at epoch {volume['epoch']}, not {command['epoch']}")
        if group["version"] == command["version"] + 1 and new in ids and old not in ids:
            return dict(group)  # sent again
        self._check_version(group, command["version"])
        wish = group["wish"]
        if wish is None or wish["replica"] != new or wish["replaces"] != old:
            raise StaleConfiguration(f"group {group['group']} has no plan to replace {old} by {new}")
        if records.kind_of(volume) == records.BUCKET and not is_built(kv, volume, group["group"], new):
            raise StaleConfiguration(f"replica {new} lacks objects yet")
        invariant(old in ids, "the replica to replace is a member", old=old, members=ids)
        self._drop(kv, volume, group["members"][ids.index(old)])
        group["members"][ids.index(old)] = {key: wish[key] for key in ("replica", "device", "host")}
        group["version"] += 1
        group["wish"] = None
        kv.delete(built_key(volume["id"], new))
        self._put(kv, volume)
        return dict(group)

    # -- parts -----------------------------------------------------------------------------------------

    def _volume(self, kv: KV, command: Command) -> Volume:
        return records.existing_volume(kv, command["volume"])

    def _group(self, kv: KV, command: Command) -> tuple[Volume, dict[str, Any]]:
        volume = self._volume(kv, command)
        records.check_ready(volume)
        if not 0 <= command["group"] < len(volume["groups"]):
            raise Invalid(f"volume {volume['name']!r} has no group {command['group']}")
        return volume, volume["groups"][command["group"]]

    def _put(self, kv: KV, volume: Volume) -> Volume:
        kv.put(records.volume_key(volume["id"]), volume)
        self._on_change(volume["id"])
        if volume["state"] != READY or records.wishes(volume) or records.snapshots_under_way(volume):
            self._on_work(volume["id"])
        return volume

    def _next_id(self, kv: KV) -> int:
        count = int(kv.get(records.COUNTER_ID) or 0) + 1
        if count > limits.ID_COUNTER_MAX:
            raise LimitExceeded(
                f"metadata group {self.group} has given out all its ids: add a metadata group"
            )
        kv.put(records.COUNTER_ID, count)
        return self._id_base | count

    def _new_group(self, kv: KV, number: int, placed: list[dict[str, str]], replicas: int) -> dict[str, Any]:
        hosts = {place["host"] for place in placed}
        if len(placed) != replicas or len(hosts) != replicas:
            raise Invalid(f"group {number} is placed on {len(hosts)} distinct hosts, {replicas} are needed")
        members = [
            {"replica": self._next_id(kv), "device": place["device"], "host": place["host"]}
            for place in placed
        ]
        return {"group": number, "version": 1, "members": members, "wish": None}

    def _end(self, kv: KV, volume: Volume, now_ms: int) -> None:
        """The volume begins to go: fenced first, then its replicas are free to be dropped, for good."""
        self._raise_epoch(volume)
        for group in volume["groups"]:
            if group["wish"] is not None:
                self._drop(kv, volume, group["wish"])
                group["wish"] = None
            for member in group["members"]:
                self._drop(kv, volume, member)
        self._snapshots.release(kv, volume)
        volume["state"] = DELETING
        volume["holder"] = None
        volume["ended_ms"] = now_ms

    def _raise_epoch(self, volume: Volume) -> None:
        if volume["epoch"] >= EPOCH_MAX:
            raise LimitExceeded(f"volume {volume['name']!r} has used all its epochs: copy it to a new volume")
        volume["epoch"] += 1

    def _drop(self, kv: KV, volume: Volume, member: dict[str, Any]) -> None:
        key = f"{records.drops_prefix(volume['id'])}{member['replica']:016x}"
        kv.put(key, {"device": member["device"], "host": member["host"]})
        self._on_work(volume["id"])
        self._load_device(kv, member["device"], self._share(volume), -1)

    def _forget_if_done(self, kv: KV, volume_id: int) -> None:
        volume = records.volume_by_id(kv, volume_id)
        if volume is None or volume["state"] != DELETING or not volume["released"]:
            return
        if next(iter(kv.scan(records.drops_prefix(volume_id))), None) is None and is_purged(kv, volume_id):
            kv.delete(records.volume_key(volume_id))
            kv.put(records.COUNTER_VOLUMES, int(kv.get(records.COUNTER_VOLUMES) or 0) - 1)

    def _share(self, volume: Volume) -> int:
        return replica_share(volume["size"], len(volume["groups"]))

    def _load(self, kv: KV, volume: Volume, sign: int) -> None:
        """Note what the volume's replicas could come to hold on their devices (or take it back)."""
        for group in volume["groups"]:
            for member in [*group["members"], *([group["wish"]] if group["wish"] else [])]:
                self._load_device(kv, member["device"], self._share(volume), sign)

    def _load_device(self, kv: KV, device: str, share: int, sign: int) -> None:
        load = kv.get(records.DEVICES + device) or {"replicas": 0, "bytes": 0}
        load = {"replicas": load["replicas"] + sign, "bytes": load["bytes"] + sign * share}
        invariant(
            load["replicas"] >= 0 and load["bytes"] >= 0, "a device's load is not negative", device=device
        )
        if load["replicas"]:
            kv.put(records.DEVICES + device, load)
        else:
            kv.delete(records.DEVICES + device)

    def _check_epoch(self, volume: Volume, epoch: int) -> None:
        if volume["epoch"] == epoch:
            return
        by = f", taken by {describe_holder(volume['holder'])}" if volume["holder"] else ""
        raise StaleConfiguration(
            f"volume {volume['name']!r} is at epoch {volume['epoch']}{by}, not at {epoch} any more: "
            "try again",
            epoch=volume["epoch"],
        )

    def _check_version(self, group: dict[str, Any], version: int) -> None:
        if group["version"] != version:
            raise StaleConfiguration(
                f"group {group['group']} is at version {group['version']}, not at {version}: fetch it anew",
                version=group["version"],
            )
