"""What is asked for about snapshots: by whoever wants them, and by the holders that write them.

Owns the calls ``metadata.create_snapshot``, ``delete_snapshot``, ``watch``, ``snapshots_put``,
``snapshots_done`` and ``rolled_back``. It must never change state other than by a proposal. Invariant: an
answer of ``watch`` is no older than what its holder had heard before.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from moorage.metadata import limits, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.directory import Directory
from moorage.metadata.params import REPLY_MARGIN_S, check_known, number_of, remaining_s
from moorage.metadata.tasks.context import wall_ms
from moorage.metadata.tasks.runner import TaskRunner
from moorage.service.replicated import Replicated
from moorage.wire.errors import DeadlineExceeded, NotFound
from moorage.wire.rpc import CallContext

Params = dict[str, Any]
Reply = dict[str, Any]

WATCH_MAX_S: Final = 30.0


class SnapshotCalls:
    def __init__(
        self,
        group: str,
        replicated: Replicated,
        directory: Directory,
        runner: TaskRunner,
        attachments: Attachments,
    ) -> None:
        self._group = group
        self._replicated = replicated
        self._directory = directory
        self._runner = runner
        self._attachments = attachments

    # -- who wants them --------------------------------------------------------------------------------

    async def create_snapshot(self, context: CallContext | None, params: Params) -> Reply:
        """Of all ``volumes`` at one moment, or of none; returns when they are ready."""
        check_known(params, "name", "volumes", "snapshot", "request")
        name = limits.check_name(params.get("name"))
        names = [limits.check_name(each) for each in limits.check_at_once(params.get("volumes", [name]))]
        snapshot = limits.check_snapshot_name(params.get("snapshot"))
        request = limits.check_request(params.get("request"))
        timeout = remaining_s(context) - REPLY_MARGIN_S
        await self._replicated.read_barrier(remaining_s(context))
        volumes = [self._one_of(names, each) for each in names]
        made = await self._replicated.propose(
            {
                "do": "create_snapshots",
                "request": request,
                "wanted": [{"volume": volume["id"], "name": snapshot} for volume in volumes],
                "created_ms": wall_ms(),
            }
        )
        await self._made(volumes[0], made[0], request, timeout)
        what = ", ".join(f"{each}@{snapshot}" for each in names)
        were = "snapshot {} was made" if len(names) == 1 else "snapshots {} were made at one moment"
        self._directory.tell("snapshot", names, were.format(what))
        return {
            "snapshots": [
                self._row(each["id"], entry["id"]) for each, entry in zip(volumes, made, strict=True)
            ]
        }

    def _one_of(self, names: list[str], name: str) -> Params:
        try:
            return records.volume_by_name(self._replicated.kv, name)
        except NotFound:
            if len(names) == 1:
                raise
            raise NotFound(
                f"there is no volume {name!r} in metadata group {self._group}: snapshots are made at one "
                "moment of volumes that one group has",
                name=name,
            ) from None

    async def _made(self, volume: Params, entry: Params, request: str, timeout: float) -> None:
        """Wait until it is ready, and all of its set with it; raises why it is not to be."""
        kv = self._replicated.kv

        def state() -> str:
            found = records.snapshot_by_id(records.volume_by_id(kv, volume["id"]) or {}, entry["id"])
            return str(found["state"]) if found is not None else records.DELETING

        try:
            await self._runner.wait_until(
                volume["id"], lambda: state() != records.CREATING, timeout, f"snapshot {entry['name']!r}"
            )
        except DeadlineExceeded:
            await self._runner.snapshots.give_up(volume, entry)
        if state() != records.READY:
            ended_in = (kv.get(records.REQUESTS + request) or {}).get("error")
            if ended_in is not None:
                raise records.error_from_record(ended_in)
            raise NotFound(f"snapshot {entry['name']!r} of volume {volume['name']!r} was deleted meanwhile")

    def _row(self, volume_id: int, snapshot: int) -> Reply:
        """As of now: its volume cannot be deleted while it is ready."""
        volume = records.existing_volume(self._replicated.kv, volume_id)
        entry = records.snapshot_by_id(volume, snapshot)
        if entry is None:
            raise NotFound(f"a snapshot of volume {volume['name']!r} was deleted meanwhile")
        return {**records.public_snapshot(entry), "volume": volume["name"]}

    async def delete_snapshot(self, context: CallContext | None, params: Params) -> Reply:
        """Returns when no log has it any more; ``left``: that takes longer, and goes on."""
        check_known(params, "name", "snapshot", "request")
        name = limits.check_name(params.get("name"))
        snapshot = limits.check_snapshot_name(params.get("snapshot"))
        request = limits.check_request(params.get("request"))
        timeout = remaining_s(context) - REPLY_MARGIN_S
        await self._replicated.read_barrier(remaining_s(context))
        found = records.volume_by_name(self._replicated.kv, name)["id"]
        command = {"do": "delete_snapshot", "volume": found, "snapshot": snapshot, "request": request}
        entry = await self._replicated.propose(command)

        def gone() -> bool:
            volume = records.volume_by_id(self._replicated.kv, found)
            going = records.snapshots_under_way(volume) if volume is not None else []
            return entry is None or all(each["id"] != entry["id"] for each in going)

        try:
            await self._runner.wait_until(found, gone, timeout, f"the deletion of snapshot {snapshot!r}")
        except DeadlineExceeded:
            return {"left": True}
        self._directory.tell("snapshot deleted", [name], f"snapshot {name}@{snapshot} was deleted")
        return {"left": False}

    def parent(self, name: str, snapshot: str) -> tuple[Params, int]:
        """What the creation of a clone says of its parent, and the size of that."""
        try:
            volume = records.volume_by_name(self._replicated.kv, name)
        except NotFound:
            raise NotFound(
                f"there is no volume {name!r} in metadata group {self._group}: a clone is created in the "
                "group of its parent",
                name=name,
            ) from None
        entry = records.ready_snapshot(volume, snapshot)
        return {"parent": {"volume": volume["id"], "snapshot": entry["id"]}}, entry["size"]

    # -- who writes them -------------------------------------------------------------------------------

    async def watch(self, context: CallContext | None, params: Params) -> Reply:
        """For who holds ``volume``: what its snapshots are, once that is another ``version`` than ``seen``,
        or ``wait_ms`` are over. ``sets``: of those that are being created, whether all are put."""
        check_known(params, "name", "volume", "epoch", "writer", "seen", "wait_ms")
        found, epoch, writer, seen, wait_ms = (
            number_of(params, key) for key in ("volume", "epoch", "writer", "seen", "wait_ms")
        )
        name = params.get("name", f"{found}")
        wait_s = min(wait_ms / 1000, WATCH_MAX_S, remaining_s(context) - REPLY_MARGIN_S)
        await self._replicated.read_barrier(remaining_s(context))  # what is applied from here on is newer

        def has_changed() -> bool:
            volume = self._attachments.held(name, found, epoch, writer)
            return bool(volume.get("snapshots_version", 0) != seen)

        with contextlib.suppress(DeadlineExceeded):
            await self._runner.wait_until(found, has_changed, wait_s, "a change of its snapshots")
        volume = self._attachments.held(name, found, epoch, writer)
        entries = records.snapshots(volume)
        sets = {entry["set"] for entry in entries if entry["set"] and entry["state"] == records.CREATING}
        return {
            "version": volume.get("snapshots_version", 0),
            "snapshots": [records.public_snapshot(entry) for entry in entries],
            "sets": {number: self._all_put(number) for number in sorted(sets)},
        }

    def _all_put(self, number: int) -> bool:
        kv = self._replicated.kv
        volumes = [records.existing_volume(kv, each) for each in records.snapshot_set(kv, number)]
        return all(
            entry["put"]
            for volume in volumes
            for entry in records.snapshots(volume)
            if entry["set"] == number
        )

    async def snapshots_put(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "volume", "epoch", "writer", "ids")
        return await self._by_holder(
            "snapshots_put", params, ids=limits.check_snapshot_ids(params.get("ids"))
        )

    async def snapshots_done(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "volume", "epoch", "writer", "created", "deleted")
        created = limits.check_created(params.get("created", []))
        deleted = limits.check_snapshot_ids(params.get("deleted", []))
        return await self._by_holder("snapshots_done", params, created=created, deleted=deleted)

    async def rolled_back(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "volume", "epoch", "writer")
        answer = await self._by_holder("rolled_back", params)
        if (name := params.get("name")) is not None:
            self._directory.tell("rolled back", [name], f"volume {name} was rolled back to a snapshot")
        return answer

    async def _by_holder(self, do: str, params: Params, **more: Any) -> Reply:
        who = {key: number_of(params, key) for key in ("volume", "epoch", "writer")}
        changed = await self._replicated.propose({"do": do, **who, "now_ms": wall_ms(), **more})
        return {"version": changed.get("snapshots_version", 0)}
