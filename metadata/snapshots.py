"""Commands of the replicated state about snapshots, clones and rollbacks.

Owns what a volume's ``snapshots`` say, and so which snapshots there are to be. Whoever holds the volume
writes it: into the log of each replica group a record with the LSNs of all snapshots of that group, the whole
list each time, until the command here has noted it. So each step may be repeated, by whoever holds the volume
next. It must never read a clock, draw a random number or do I/O (see ``state.py``).

A snapshot: ``{id, name, state, size, lsns, epoch, set, put, created_ms, request, children}``. It is
``creating`` until its holder has said where it is in the logs (``lsns``, one for each group, under
``epoch``), then ``ready``; ``deleting`` until the logs do not have it any more. ``size`` is that of the
volume when it was asked for; ``children`` are the ids of the volumes that were cloned from it. Those that
one command asked for over several volumes have a common number, ``set``: they are ready together or not at
all, and what is ``creating`` may have its ``lsns`` already. ``put``, of such a one: the record is in all
logs of its volume. From before it puts the record until all of the set are put, no holder acknowledges a
write: else one volume could have a write that another one's snapshot lacks, and that came before it.

Invariants (``invariants.py``): ids are given once; the snapshots of a set are ready together; a snapshot that
has children, or to which its volume is being rolled back, is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from moorage.metadata import limits, records, requests
from moorage.metadata.lease import check_current
from moorage.metadata.records import CREATING, DELETING, READY
from moorage.service.kv import KV
from moorage.wire.errors import Busy, Invalid, LimitExceeded, NameTaken, NotFound

Command = dict[str, Any]
Volume = dict[str, Any]
Snapshot = dict[str, Any]


class Snapshots:
    """Part of the state machine: ``put`` stores a volume, ``next_id`` gives an id."""

    def __init__(self, put: Callable[[KV, Volume], Volume], next_id: Callable[[KV], int]) -> None:
        self._put = put
        self._next_id = next_id

    def commands(self) -> dict[str, Callable[[KV, Command, int], Any]]:
        return {
            "create_snapshots": self._create,
            "snapshots_put": self._note_put,
            "snapshots_done": self._done,
            "abandon_snapshots": self._abandon,
            "delete_snapshot": self._delete,
            "rolled_back": self._rolled_back,
        }

    # -- the life of a snapshot ------------------------------------------------------------------------

    def _create(self, kv: KV, command: Command, index: int) -> list[Snapshot]:
        """``{request, wanted: [{volume, name}], created_ms}``: of all these volumes or of none; those of
        several are a set. Answers with each snapshot, and the name of its volume."""
        request = limits.check_request(command["request"])
        limits.check_at_once([each["volume"] for each in command["wanted"]])
        wanted = [
            (records.existing_volume(kv, each["volume"]), limits.check_snapshot_name(each["name"]))
            for each in command["wanted"]
        ]
        first, _ = wanted[0]
        if requests.known(kv, request, "create_snapshots", first["name"]) is not None:
            return [
                {"volume": volume["name"], **_asked_for(volume, name, request)} for volume, name in wanted
            ]
        number = self._next_id(kv) if len(wanted) > 1 else 0
        if number:
            kv.put(records.set_key(number), [volume["id"] for volume, _ in wanted])
        made: list[Snapshot] = []
        for volume, name in wanted:
            _check_may_have(volume, name)
            entry = {
                "id": self._next_id(kv),
                "name": name,
                "state": CREATING,
                "size": volume["size"],
                "lsns": [],
                "epoch": 0,
                "set": number,
                "put": False,
                "created_ms": command["created_ms"],
                "request": request,
                "children": [],
            }
            volume["snapshots"] = [*records.snapshots(volume), entry]
            self._changed(kv, volume)
            made.append({"volume": volume["name"], **entry})
        requests.remember(kv, request, "create_snapshots", first, index)
        return made

    def _note_put(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, ids, now_ms}``: its holder has the records in the logs of all groups, and
        acknowledges nothing that comes after them yet. All holders of the set hear of it."""
        volume = records.existing_volume(kv, command["volume"])
        check_current(volume, command["epoch"], command["writer"], command["now_ms"])
        found = [entry for entry in _creating(volume, command["ids"]) if not entry["put"]]
        for entry in found:
            entry["put"] = True
        if found:
            self._changed(kv, volume)
        for other in self._others(kv, volume, found):
            self._changed(kv, other)
        return volume

    def _done(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, created: [[id, lsns]], deleted: [ids], now_ms}``: what its holder has in
        the logs of all groups, and what is not there any more. What was given up meanwhile stays so."""
        volume = records.existing_volume(kv, command["volume"])
        check_current(volume, command["epoch"], command["writer"], command["now_ms"])
        created = dict(command["created"])
        found = [entry for entry in _creating(volume, created) if entry["lsns"] != created[entry["id"]]]
        for entry in found:
            lsns = created[entry["id"]]
            if len(lsns) != len(volume["groups"]):
                raise Invalid(
                    f"{len(lsns)} lsns for the {len(volume['groups'])} groups of {volume['name']!r}"
                )
            entry["lsns"], entry["epoch"] = lsns, command["epoch"]
            if not entry["set"]:
                entry["state"] = READY
        left = [
            entry
            for entry in records.snapshots(volume)
            if entry["state"] != DELETING or entry["id"] not in command["deleted"]
        ]
        if not found and len(left) == len(records.snapshots(volume)):
            return volume  # sent again
        volume["snapshots"] = left
        self._changed(kv, volume)
        for number in sorted({entry["set"] for entry in found} - {0}):
            self._complete(kv, number)
        return volume

    def _complete(self, kv: KV, number: int) -> None:
        """The set is ready once all of it are there."""
        members = [
            (volume, entry)
            for volume in (records.existing_volume(kv, each) for each in records.snapshot_set(kv, number))
            for entry in records.snapshots(volume)
            if entry["set"] == number
        ]
        if all(entry["lsns"] for _, entry in members):
            self._end_set(kv, number, READY)

    def _abandon(self, kv: KV, command: Command, index: int) -> None:
        """``{volume, ids, error}``: they are not made, nor what else is of their sets; who asked for them is
        told ``error``. What is there of them goes the way of a deleted one."""
        volume = records.volume_by_id(kv, command["volume"])
        if volume is None:
            return
        found = _creating(volume, command["ids"])
        for entry in found:
            requests.failed(kv, entry["request"], command["error"])
            if not entry["set"]:
                entry["state"] = DELETING
        if found:
            self._changed(kv, volume)
        for number in sorted({entry["set"] for entry in found} - {0}):
            self._end_set(kv, number, DELETING)

    def _end_set(self, kv: KV, number: int, state: str) -> None:
        for each in records.snapshot_set(kv, number):
            volume = records.existing_volume(kv, each)
            for entry in records.snapshots(volume):
                if entry["set"] == number:
                    entry["state"] = state
            self._changed(kv, volume)
        kv.delete(records.set_key(number))

    def _delete(self, kv: KV, command: Command, index: int) -> Snapshot | None:
        """``{volume, snapshot: name, request}``: None when this very request has deleted it already."""
        volume = records.existing_volume(kv, command["volume"])
        name = command["snapshot"]
        if requests.known(kv, command["request"], "delete_snapshot", volume["name"]) is not None:
            going = records.snapshots_under_way(volume)
            return next((entry for entry in going if entry["name"] == name), None)
        records.check_ready(volume)
        entry = records.snapshot_by_name(volume, name)
        if entry["state"] == CREATING:
            raise Busy(f"snapshot {name!r} of {volume['name']!r} is being created: try again in some seconds")
        if entry["children"]:
            names = ", ".join(records.existing_volume(kv, child)["name"] for child in entry["children"])
            raise Busy(
                f"snapshot {name!r} of volume {volume['name']!r} is the parent of {names}: delete what was "
                "cloned from it first",
                children=entry["children"],
            )
        if entry["id"] == volume.get("rollback", 0):
            records.check_not_rolling_back(volume)
        requests.remember(kv, command["request"], "delete_snapshot", volume, index)
        if entry["state"] == READY:
            entry["state"] = DELETING
            self._changed(kv, volume)
        return entry

    # -- rollbacks -------------------------------------------------------------------------------------

    def _rolled_back(self, kv: KV, command: Command, index: int) -> Volume:
        """``{volume, epoch, writer, now_ms}``: what the snapshot says is in the logs, by its holder. What was
        noted of the file system was of the contents that are gone."""
        volume = records.existing_volume(kv, command["volume"])
        check_current(volume, command["epoch"], command["writer"], command["now_ms"])
        volume["rollback"] = 0
        volume["fs"] = None
        return self._put(kv, volume)

    # -- clones ----------------------------------------------------------------------------------------

    def parent_of(self, kv: KV, wanted: Command, size: int) -> dict[str, Any]:
        """``wanted``: ``{volume, snapshot}``, ids -> what a clone of ``size`` bytes says of its parent."""
        volume = records.existing_volume(kv, wanted["volume"])
        entry = records.snapshot_by_id(volume, wanted["snapshot"])
        if entry is None:
            raise NotFound(f"volume {volume['name']!r} has no such snapshot any more: it was deleted")
        records.ready_snapshot(volume, entry["name"])
        if size < entry["size"]:
            raise Invalid(
                f"a clone of {volume['name']}@{entry['name']} has at least its {entry['size']} bytes: {size} "
                "are too few",
                size=entry["size"],
            )
        return {
            "volume": volume["id"],
            "name": volume["name"],
            "snapshot": entry["id"],
            "snapshot_name": entry["name"],
            "size": entry["size"],
        }

    def adopt(self, kv: KV, child: Volume) -> None:
        """The clone is there: from here on its parent's snapshot stays."""
        parent, entry = self._parent(kv, child)
        entry["children"].append(child["id"])
        self._changed(kv, parent)

    def release(self, kv: KV, child: Volume) -> None:
        """It ends, and nobody reads what it has of its parent any more."""
        if child.get("parent") is not None:
            parent, entry = self._parent(kv, child)
            entry["children"].remove(child["id"])
            self._changed(kv, parent)

    def _parent(self, kv: KV, child: Volume) -> tuple[Volume, Snapshot]:
        volume = records.existing_volume(kv, child["parent"]["volume"])
        return volume, next(each for each in volume["snapshots"] if each["id"] == child["parent"]["snapshot"])

    # -- parts -----------------------------------------------------------------------------------------

    def _changed(self, kv: KV, volume: Volume) -> None:
        volume["snapshots_version"] = volume.get("snapshots_version", 0) + 1
        self._put(kv, volume)

    def _others(self, kv: KV, volume: Volume, entries: Iterable[Snapshot]) -> list[Volume]:
        """The other volumes of their sets."""
        numbers = {entry["set"] for entry in entries}
        found = {each for number in numbers for each in records.snapshot_set(kv, number)} - {volume["id"]}
        return [records.existing_volume(kv, each) for each in sorted(found)]


def check_deletable(volume: Volume) -> None:
    """Raises :class:`Busy` for a volume that has snapshots."""
    count = sum(entry["state"] != DELETING for entry in records.snapshots(volume))
    if count:
        raise Busy(
            f"volume {volume['name']!r} has {count} snapshot{'s' if count > 1 else ''}: delete "
            f"{'them' if count > 1 else 'it'} first, with `moorage snapshot delete`",
            snapshots=count,
        )


def _asked_for(volume: Volume, name: str, request: str) -> Snapshot:
    for entry in records.snapshots(volume):
        if (entry["name"], entry["request"]) == (name, request):
            return entry
    raise NotFound(
        f"snapshot {name!r} of volume {volume['name']!r} was created by this request, and deleted since"
    )


def _check_may_have(volume: Volume, name: str) -> None:
    """Raises what speaks against a new snapshot of that name."""
    records.check_ready(volume)
    records.check_not_rolling_back(volume)
    entries = records.snapshots(volume)
    if any(entry["name"] == name and entry["state"] == DELETING for entry in entries):
        raise Busy(f"snapshot {name!r} of {volume['name']!r} is being deleted: try again in some seconds")
    if any(entry["name"] == name for entry in entries):
        raise NameTaken(
            f"volume {volume['name']!r} has a snapshot {name!r}: choose another name, or delete that one",
            name=name,
        )
    if len(entries) >= limits.SNAPSHOTS_MAX:
        raise LimitExceeded(
            f"volume {volume['name']!r} has {len(entries)} snapshots, its limit: delete some first"
        )


def _creating(volume: Volume, ids: Iterable[int]) -> list[Snapshot]:
    """Those of them that are yet to be there; what is unknown is passed over, it was heard of before."""
    wanted = set(ids)
    return [
        entry for entry in records.snapshots(volume) if entry["id"] in wanted and entry["state"] == CREATING
    ]
