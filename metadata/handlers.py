"""The methods ``metadata.*``: checks of parameters, the leader's judgement of leases, proposals, replies.

Owns the table of docs/metadata.md. It must never change state other than by a proposal, and never judge by
a state that may be old when it refuses: a refusal comes after a read barrier, a renewal that is granted
needs none. Invariant: a lease is granted only for an (epoch, writer) that the committed state holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from moorage.metadata import limits, placement, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.charges import Charges
from moorage.metadata.directory import Directory
from moorage.metadata.moves import Moves
from moorage.metadata.objects.asked import flag
from moorage.metadata.objects.calls import ObjectCalls
from moorage.metadata.params import REPLY_MARGIN_S, check_known, flag_of, number_of, remaining_s
from moorage.metadata.snapshot_calls import SnapshotCalls
from moorage.metadata.tasks.context import wall_ms
from moorage.metadata.tasks.runner import TaskRunner
from moorage.service.replicated import Replicated
from moorage.wire.errors import (
    DeadlineExceeded,
    Invalid,
    NotFound,
    NotLeader,
    Unavailable,
)
from moorage.wire.rpc import CallContext, Router

Params = dict[str, Any]
Reply = dict[str, Any]
Handler = Callable[[CallContext | None, Params], Awaitable[Reply]]

LIST_MAX: Final = 500  # volumes of a page, and
LIST_MEMBERS_MAX: Final = 3000  # ... their members: a page stays below the largest reply, whatever the names
BUCKET_EXPECTED: Final = 64 << 20  # bytes: a bucket is placed as if it were to have so much
SUSPECT_PATIENCE_S: Final = 3.0  # three heartbeats: a device that lives has reported by then
SUSPECT_POLL_S: Final = 0.1


class Handlers:
    """One instance per member; every method but describe is the leader's alone."""

    def __init__(
        self,
        *,
        group: str,
        name: str,
        cluster: str,
        replicated: Replicated,
        directory: Directory,
        runner: TaskRunner,
        attachments: Attachments,
        charges: Charges,
    ) -> None:
        self._group = group
        self._name = name
        self._cluster = cluster
        self._replicated = replicated
        self._directory = directory
        self._runner = runner
        self._attachments = attachments
        self._moves = Moves(replicated, directory, runner, attachments)
        self._snapshots = SnapshotCalls(group, replicated, directory, runner, attachments)
        self._objects = ObjectCalls(replicated, directory, attachments, runner.writers, charges.room)
        self._charges = charges

    def register(self, router: Router) -> None:
        for name, handler in self.methods().items():
            router.method(f"metadata.{name}", handler)

    def methods(self) -> dict[str, Handler]:
        """By name, without ``metadata.``; all but describe answer NotLeader on a follower."""
        leading = {
            "status": self.status,
            "create_volume": self.create_volume,
            "list_volumes": self.list_volumes,
            "show_volume": self.show_volume,
            "resize_volume": self.resize_volume,
            "set_volume": self.set_volume,
            "delete_volume": self.delete_volume,
            "attach": self._attachments.attach,
            "renew": self._attachments.renew,
            "note_fs": self._attachments.note_fs,
            "detach": self._attachments.detach,
            "reconfigure": self.reconfigure,
            "moves": self._moves.moves,
            "check_departure": self._moves.check_departure,
            "move_replica": self._moves.move_replica,
            "current_epochs": self._attachments.current_epochs,
            "create_snapshot": self._snapshots.create_snapshot,
            "delete_snapshot": self._snapshots.delete_snapshot,
            "watch": self._snapshots.watch,
            "snapshots_put": self._snapshots.snapshots_put,
            "snapshots_done": self._snapshots.snapshots_done,
            "rolled_back": self._snapshots.rolled_back,
            "create_bucket": self.create_bucket,
            "list_buckets": self.list_buckets,
            "delete_bucket": self.delete_bucket,
            **self._objects.methods(),
        }
        return {"describe": self.describe} | {name: self._led(handler) for name, handler in leading.items()}

    def _led(self, handler: Handler) -> Handler:
        async def call(context: CallContext | None, params: Params) -> Reply:
            if not self._replicated.is_leader:
                raise NotLeader(
                    f"{self._name} does not lead metadata group {self._group}", leader=self._replicated.leader
                )
            if not records.admitted(self._replicated.kv):
                raise Unavailable(
                    f"metadata group {self._group} is new, and serves once the registry knows it:"
                    f" {self._directory.last_error or 'it is being asked'}"
                )
            return await handler(context, params)

        return call

    # -- about the group -------------------------------------------------------------------------------

    async def describe(self, context: CallContext | None, params: Params) -> Reply:
        """Any member answers this one."""
        return {
            "cluster": self._cluster,
            "service": "metadata",
            "group": self._group,
            "name": self._name,
            "leader": self._replicated.leader,
            "members": self._replicated.members,
            "term": self._replicated.term,
        }

    async def status(self, context: CallContext | None, params: Params) -> Reply:
        await self._replicated.read_barrier()
        kv = self._replicated.kv
        pending = [
            {"replica": int(key.rsplit("/", 1)[1], 16), **entry} for key, entry in kv.scan(records.DROPS)
        ]
        return {
            "group": self._group,
            "volumes": int(kv.get(records.COUNTER_VOLUMES) or 0),
            "tasks": self._runner.count,
            "drops": len(pending),
            "drops_first": pending[:20],
            "registry": str(self._directory.last_error or "") or "ok",
        }

    # -- volumes ---------------------------------------------------------------------------------------

    async def create_volume(self, context: CallContext | None, params: Params) -> Reply:
        known = ("name", "size", "replicas", "groups", "durability", "fs", "request", *limits.LATER)
        check_known(params, *known, "parent")
        parent = limits.check_parent(params["parent"]) if "parent" in params else None
        size = 0 if parent and "size" not in params else limits.check_size(params.get("size"))
        return await self._create(context, params, records.VOLUME, size, parent)

    async def create_bucket(self, context: CallContext | None, params: Params) -> Reply:
        """``locks``: versions are on, and can be locked, from the beginning."""
        check_known(params, "name", "replicas", "groups", "request", "principal", "locks")
        of = {"locks": True} if flag(params, "locks") else {}
        return await self._create(context, params, records.BUCKET, 0, None, of)

    async def _create(
        self,
        context: CallContext | None,
        params: Params,
        kind: str,
        size: int,
        parent: tuple[str, str] | None,
        of: Params | None = None,
    ) -> Reply:
        name = limits.check_name(params.get("name"))
        replicas = limits.check_replicas(params.get("replicas", 3))
        groups = params.get("groups", 0)
        if groups != 0:
            limits.check_groups(groups)
        durability = limits.check_durability(params.get("durability", "sync"))
        fs = limits.check_fs(params.get("fs"))
        request = limits.check_request(params.get("request"))
        later = limits.check_later(params)
        timeout = remaining_s(context) - REPLY_MARGIN_S
        deadline = _now_s() + timeout
        await self._replicated.read_barrier(remaining_s(context))
        kv = self._replicated.kv
        placed: list[list[dict[str, str]]] = []
        of = of or {}
        if kv.get(records.REQUESTS + request) is None:
            if parent is not None:
                of, cloned = self._snapshots.parent(*parent)
                size = size or cloned
            records.check_name_free(kv, name)  # before a view is fetched; the command checks again
            expected = BUCKET_EXPECTED if kind == records.BUCKET else size
            placed = await self._place(expected, replicas, groups, deadline - _now_s())
        volume = await self._replicated.propose(
            {
                "do": _creation(kind, of, later),
                "request": request,
                "name": name,
                "size": size,
                "replicas": replicas,
                "durability": durability,
                "fs": fs,
                "placement": placed,
                "created_ms": wall_ms(),
                **later,
                **of,
            }
        )
        return self._attachments.public(await self._created(volume, request, deadline - _now_s()))

    async def _place(
        self, size: int, replicas: int, groups: int, timeout: float
    ) -> list[list[dict[str, str]]]:
        """Waits a little for devices that are only suspect, also when there are enough others: all are so
        after the registry's leader changed, and who reported first must not decide for the volume's life.
        """
        deadline = _now_s() + timeout
        patience = _now_s() + min(SUSPECT_PATIENCE_S, timeout / 2)
        while True:
            view = await self._directory.fetch_view(deadline - _now_s())
            suspect = any(entry["health"] == "suspect" for entry in view["devices"].values())
            if not suspect or _now_s() >= patience:
                break
            await asyncio.sleep(SUSPECT_POLL_S)
        cluster = placement.cluster_from_view(view, records.provisioned(self._replicated.kv))
        count = groups or placement.groups_default(cluster, size, replicas)
        chosen = placement.place(cluster, size=size, replicas=replicas, groups=count)
        return [[{"device": place.device, "host": place.host} for place in group] for group in chosen]

    async def _created(self, volume: Params, request: str, timeout: float) -> Params:
        """Wait until the volume's task has brought it to an end, good or bad."""
        kv, found = self._replicated.kv, volume["id"]

        def ended() -> bool:
            now = records.volume_by_id(kv, found)
            return now is None or now["state"] != records.CREATING

        await self._runner.wait_until(found, ended, timeout, f"the creation of volume {volume['name']!r}")
        now = records.volume_by_id(kv, found)
        if now is not None and now["state"] == records.READY:
            return now
        ended_in = (kv.get(records.REQUESTS + request) or {}).get("error")
        with contextlib.suppress(DeadlineExceeded):  # the name should be free when its creator hears of it
            await self._freed(found, timeout, "the rollback")
        if ended_in is not None:
            raise records.error_from_record(ended_in)
        raise NotFound(f"volume {volume['name']!r} was deleted meanwhile")

    async def _freed(self, found: int, timeout: float, what: str) -> None:
        """Wait until a deleting volume's name is free again."""
        kv = self._replicated.kv

        def released() -> bool:
            now = records.volume_by_id(kv, found)
            return now is None or bool(now["released"])

        await self._runner.wait_until(found, released, timeout, what)

    async def list_buckets(self, context: CallContext | None, params: Params) -> Reply:
        """As :meth:`list_volumes`."""
        return await self._list(params, records.BUCKET)

    async def list_volumes(self, context: CallContext | None, params: Params) -> Reply:
        """In pages, by name: while ``next`` is not None it is given back as ``after``."""
        return await self._list(params, records.VOLUME)

    async def _list(self, params: Params, kind: str) -> Reply:
        check_known(params, "after", "limit")
        after, limit = params.get("after", ""), params.get("limit", LIST_MAX)
        if not isinstance(after, str) or not isinstance(limit, int) or not 1 <= limit <= LIST_MAX:
            raise Invalid(f"list_volumes: after must be a name, limit 1 to {LIST_MAX}")
        await self._replicated.read_barrier()
        kv = self._replicated.kv
        rows: list[Reply] = []
        members = 0
        for name, found in kv.scan(records.NAMES):
            volume = records.volume_by_id(kv, found) if name.removeprefix(records.NAMES) > after else None
            if volume is None or records.kind_of(volume) != kind:
                continue
            members += len(volume["groups"]) * volume["replicas"]
            members += len(records.snapshots(volume)) * (1 + len(volume["groups"]) // 8)  # so large each
            if len(rows) == limit or (rows and members > LIST_MEMBERS_MAX):
                return {"volumes": rows, "next": rows[-1]["name"]}
            rows.append(self._attachments.public(volume))
        return {"volumes": rows, "next": None}

    async def show_volume(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name")
        await self._replicated.read_barrier()
        volume = records.volume_by_name(self._replicated.kv, limits.check_name(params.get("name")))
        return {**self._attachments.public(volume), "groups": self._attachments.groups(volume)}

    async def resize_volume(self, context: CallContext | None, params: Params) -> Reply:
        check_known(params, "name", "size")
        name, size = limits.check_name(params.get("name")), limits.check_size(params.get("size"))
        timeout = remaining_s(context) - REPLY_MARGIN_S
        return self._attachments.public(await self._charges.resize(name, size, timeout))

    async def set_volume(self, context: CallContext | None, params: Params) -> Reply:
        """Its ceilings; what is not given stays. The holder hears of it with its lease."""
        check_known(params, "name", "iops", "bw")
        name = limits.check_name(params.get("name"))
        ceilings = limits.check_later(params)
        if not ceilings:
            raise Invalid("set_volume: give iops, bw or both; 0 takes a ceiling away")
        await self._replicated.read_barrier()
        volume = records.volume_by_name(self._replicated.kv, name)
        command = {"do": "set_ceilings", "volume": volume["id"], "iops": None, "bw": None, **ceilings}
        return self._attachments.public(await self._replicated.propose(command))

    async def reconfigure(self, context: CallContext | None, params: Params) -> Reply:
        """The holder of ``epoch``: a record is committed by the old members and by the new ones."""
        check_known(params, "name", "volume", "group", "epoch", "version", "old", "new")
        found, group, epoch, version, old, new = (
            number_of(params, key) for key in ("volume", "group", "epoch", "version", "old", "new")
        )
        await self._replicated.read_barrier(remaining_s(context))
        command = {"do": "reconfigure", "volume": found, "group": group, "epoch": epoch, "version": version}
        await self._replicated.propose({**command, "replace": {"old": old, "new": new}, "now_ms": wall_ms()})
        volume = records.volume_by_id(self._replicated.kv, found)
        if volume is None:
            raise NotFound(f"volume {params.get('name', found)!r} was deleted meanwhile")
        text = f"volume {volume['name']} group {group}: replica {new:x} has taken the place of {old:x}"
        self._directory.tell("moved", [volume["name"]], text)
        changed: Reply = self._attachments.groups(volume)[group]
        return changed

    async def delete_volume(self, context: CallContext | None, params: Params) -> Reply:
        """Returns when the name is free again and every device that answers has dropped its replicas."""
        return await self._delete_one(context, params, records.VOLUME)

    async def delete_bucket(self, context: CallContext | None, params: Params) -> Reply:
        """As :meth:`delete_volume`; Busy while it has objects."""
        return await self._delete_one(context, params, records.BUCKET)

    async def _delete_one(self, context: CallContext | None, params: Params, kind: str) -> Reply:
        check_known(params, "name", "force", "request")
        name = limits.check_name(params.get("name"))
        request = limits.check_request(params["request"]) if params.get("request") else ""
        force = flag_of(params, "force")
        timeout = remaining_s(context) - REPLY_MARGIN_S
        await self._replicated.read_barrier(remaining_s(context))
        volume = await self._delete(name, request, force, kind)
        found = volume["id"]
        self._attachments.end(found)
        await self._freed(found, timeout, f"the deletion of {kind} {name!r}")
        left = records.drops(self._replicated.kv, found)
        return {"id": found, "left": [{"replica": r, "device": d, "host": h} for r, d, h in left]}

    async def _delete(self, name: str, request: str, force: bool, kind: str) -> Params:
        kv = self._replicated.kv
        command = {"do": "delete", "name": name, "request": request}
        if request and kv.get(records.REQUESTS + request) is not None:
            volume: Params = await self._replicated.propose({**command, "volume": 0, "epoch": 0, "now_ms": 0})
            return volume
        return await self._attachments.against_epoch(
            name,
            lambda volume: {**command, "volume": volume["id"], "epoch": volume["epoch"], "now_ms": wall_ms()},
            force,
            "delete",
            kind=kind,
        )


def _creation(kind: str, parent: Params, later: Params) -> str:
    if kind == records.BUCKET:
        return "create_bucket"
    return "create_clone" if parent else "create_limited" if later else "create"


def _now_s() -> float:
    return time.monotonic()
