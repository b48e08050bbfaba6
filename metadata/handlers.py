"""The methods ``metadata.*``: checks of parameters, the leader's judgement of leases, proposals, replies.

Owns the table of docs/metadata.md. It must never change state other than by a proposal, and never judge by
a state that may be old when it refuses: a refusal comes after a read barrier, a renewal that is granted
needs none. Invariant: a lease is granted only for an (epoch, writer) that the committed state holds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from moorage.metadata import limits, placement, records
from moorage.metadata.directory import Directory
from moorage.metadata.lease import LeaseTable, check_current, check_takeover
from moorage.metadata.tasks.context import wall_ms
from moorage.metadata.tasks.runner import TaskRunner
from moorage.service.replicated import Replicated
from moorage.wire.capability import Capability, sign
from moorage.wire.errors import (
    Busy,
    Fenced,
    Invalid,
    NotFound,
    NotLeader,
    StaleConfiguration,
)
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret

Params = dict[str, Any]
Reply = dict[str, Any]
Handler = Callable[[CallContext | None, Params], Awaitable[Reply]]

# A capability opens a member once; later ones come with each renewal. Long, so that an outage of metadata
# does not keep a member that was away from being sealed; a revocation is a higher epoch, not an expiry.
CAPABILITY_MS: Final = 3_600_000
LIST_MAX: Final = 500  # volumes of a page, and
LIST_MEMBERS_MAX: Final = 3000  # ... their members: a page stays below the largest reply, whatever the names
ATTACH_TRIES: Final = 8  # somebody else's attach came between that often: then say Busy
TIMEOUT_S: Final = 10.0  # when the caller sets no deadline
REPLY_MARGIN_S: Final = 0.2  # answer before the caller's deadline, so that it hears why


class Handlers:
    """One instance per member; every method but describe is the leader's alone."""

    def __init__(
        self,
        *,
        group: str,
        name: str,
        cluster: str,
        secret: ClusterSecret,
        replicated: Replicated,
        directory: Directory,
        runner: TaskRunner,
        leases: LeaseTable,
    ) -> None:
        self._group = group
        self._name = name
        self._cluster = cluster
        self._secret = secret
        self._replicated = replicated
        self._directory = directory
        self._runner = runner
        self._leases = leases

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
            "delete_volume": self.delete_volume,
            "attach": self.attach,
            "renew": self.renew,
            "detach": self.detach,
        }
        return {"describe": self.describe} | {name: self._led(handler) for name, handler in leading.items()}

    def _led(self, handler: Handler) -> Handler:
        async def call(context: CallContext | None, params: Params) -> Reply:
            if not self._replicated.is_leader:
                raise NotLeader(
                    f"{self._name} does not lead metadata group {self._group}", leader=self._replicated.leader
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
        _known(params, "name", "size", "replicas", "groups", "durability", "request")
        name = limits.check_name(params.get("name"))
        size = limits.check_size(params.get("size"))
        replicas = limits.check_replicas(params.get("replicas", 3))
        groups = params.get("groups", 0)
        if groups != 0:
            limits.check_groups(groups)
        durability = limits.check_durability(params.get("durability", "sync"))
        request = limits.check_request(params.get("request"))
        timeout = _remaining(context) - REPLY_MARGIN_S
        deadline = _now_s() + timeout
        await self._replicated.read_barrier(timeout)
        kv = self._replicated.kv
        placed: list[list[dict[str, str]]] = []
        if kv.get(records.REQUESTS + request) is None:
            records.check_name_free(kv, name)  # before a view is fetched; the command checks again
            placed = await self._place(size, replicas, groups, deadline - _now_s())
        volume = await self._replicated.propose(
            {
                "do": "create",
                "request": request,
                "name": name,
                "size": size,
                "replicas": replicas,
                "durability": durability,
                "placement": placed,
                "created_ms": wall_ms(),
            }
        )
        return self._public(await self._created(volume, request, deadline - _now_s()))

    async def _place(
        self, size: int, replicas: int, groups: int, timeout: float
    ) -> list[list[dict[str, str]]]:
        view = await self._directory.fetch_view(max(timeout, 0.1))
        cluster = placement.cluster_from_view(view, records.provisioned(self._replicated.kv))
        count = groups or placement.groups_default(cluster, size, replicas)
        chosen = placement.place(cluster, size=size, replicas=replicas, groups=count)
        return [[{"device": place.device, "host": place.host} for place in group] for group in chosen]

    async def _created(self, volume: Params, request: str, timeout: float) -> Params:
        """Wait until the volume's task has brought it to an end, good or bad."""
        kv, found = self._replicated.kv, volume["id"]
        self._runner.start_volume(found)

        def ended() -> bool:
            now = records.volume_by_id(kv, found)
            return now is None or now["state"] != records.CREATING

        await self._runner.wait_until(ended, timeout, f"the creation of volume {volume['name']!r}")
        now = records.volume_by_id(kv, found)
        if now is not None and now["state"] == records.READY:
            return now
        record = kv.get(records.REQUESTS + request)
        if record is not None and record["error"] is not None:
            raise records.error_from_record(record["error"])
        raise NotFound(f"volume {volume['name']!r} was deleted meanwhile")

    async def list_volumes(self, context: CallContext | None, params: Params) -> Reply:
        """In pages, by name: while ``next`` is not None it is given back as ``after``."""
        _known(params, "after", "limit")
        after, limit = params.get("after", ""), params.get("limit", LIST_MAX)
        if not isinstance(after, str) or not isinstance(limit, int) or not 1 <= limit <= LIST_MAX:
            raise Invalid(f"list_volumes: after must be a name, limit 1 to {LIST_MAX}")
        await self._replicated.read_barrier()
        kv = self._replicated.kv
        rows: list[Reply] = []
        members = 0
        for name, found in kv.scan(records.NAMES):
            volume = records.volume_by_id(kv, found) if name.removeprefix(records.NAMES) > after else None
            if volume is None:
                continue
            members += len(volume["groups"]) * volume["replicas"]
            if len(rows) == limit or (rows and members > LIST_MEMBERS_MAX):
                return {"volumes": rows, "next": rows[-1]["name"]}
            rows.append(self._public(volume))
        return {"volumes": rows, "next": None}

    async def show_volume(self, context: CallContext | None, params: Params) -> Reply:
        _known(params, "name")
        await self._replicated.read_barrier()
        volume = records.volume_by_name(self._replicated.kv, limits.check_name(params.get("name")))
        return {**self._public(volume), "groups": self._groups(volume)}

    async def resize_volume(self, context: CallContext | None, params: Params) -> Reply:
        _known(params, "name", "size")
        name, size = limits.check_name(params.get("name")), limits.check_size(params.get("size"))
        await self._replicated.read_barrier()
        volume = records.volume_by_name(self._replicated.kv, name)
        changed = await self._replicated.propose({"do": "resize", "volume": volume["id"], "size": size})
        return self._public(changed)

    async def delete_volume(self, context: CallContext | None, params: Params) -> Reply:
        """Returns when the name is free again and every device that answers has dropped its replicas."""
        _known(params, "name", "force", "request")
        name = limits.check_name(params.get("name"))
        request = limits.check_request(params["request"]) if params.get("request") else ""
        timeout = _remaining(context) - REPLY_MARGIN_S
        await self._replicated.read_barrier(timeout)
        volume = await self._delete(name, request, bool(params.get("force", False)))
        kv, found = self._replicated.kv, volume["id"]

        def released() -> bool:
            now = records.volume_by_id(kv, found)
            return now is None or bool(now["released"])

        self._leases.end(found, volume.get("epoch", 0))
        self._runner.start_volume(found)
        await self._runner.wait_until(released, timeout, f"the deletion of volume {name!r}")
        left = records.drops(kv, found)
        return {"id": found, "left": [{"replica": r, "device": d, "host": h} for r, d, h in left]}

    async def _delete(self, name: str, request: str, force: bool) -> Params:
        kv = self._replicated.kv
        command = {"do": "delete", "name": name, "request": request}
        if request and kv.get(records.REQUESTS + request) is not None:
            volume: Params = await self._replicated.propose({**command, "volume": 0, "epoch": 0, "now_ms": 0})
            return volume
        return await self._against_epoch(
            name,
            lambda volume: {**command, "volume": volume["id"], "epoch": volume["epoch"], "now_ms": wall_ms()},
            force,
            "delete",
        )

    async def _against_epoch(
        self, name: str, command: Callable[[Params], Params], force: bool, verb: str
    ) -> Params:
        """Propose by compare-and-set on the epoch that the lease was judged by; judge anew when it moved."""
        for _ in range(ATTACH_TRIES):
            volume = records.volume_by_name(self._replicated.kv, name)
            check_takeover(volume, self._remaining_ms(volume), force, verb)
            try:
                changed: Params = await self._replicated.propose(command(volume))
                return changed
            except StaleConfiguration:
                continue
        raise Busy(f"volume {name!r} changes hands all the time: try again later", volume=name)

    # -- who may write ---------------------------------------------------------------------------------

    async def attach(self, context: CallContext | None, params: Params) -> Reply:
        _known(params, "name", "writer", "mode", "force", "holder")
        name = limits.check_name(params.get("name"))
        writer = limits.check_writer(params.get("writer"))
        mode = params.get("mode", "rw")
        if mode not in ("rw", "ro"):
            raise Invalid(f"mode {mode!r} is not accepted: use rw or ro")
        holder = limits.check_holder(params.get("holder"))
        await self._replicated.read_barrier(_remaining(context))
        volume = records.volume_by_name(self._replicated.kv, name)
        if mode == "ro":
            records.check_ready(volume)
            return self._attachment(volume, writer, "ro")
        if volume["holder"] is None or volume["holder"]["writer"] != writer:  # else: sent again
            volume = await self._against_epoch(
                name,
                lambda found: {
                    "do": "attach",
                    "volume": found["id"],
                    "epoch": found["epoch"],
                    "writer": writer,
                    "holder": holder,
                    "now_ms": wall_ms(),
                },
                bool(params.get("force", False)),
                "attach",
            )
        self._leases.grant(volume["id"], volume["epoch"], _now_ms())
        return self._attachment(volume, writer, "rw")

    async def renew(self, context: CallContext | None, params: Params) -> Reply:
        _known(params, "volume", "epoch", "writer")
        found, epoch, writer = (_number(params, key) for key in ("volume", "epoch", "writer"))
        try:
            volume = self._held(found, epoch, writer)
        except Fenced:
            await self._replicated.read_barrier()  # this copy may be the old one: refuse by the newest only
            volume = self._held(found, epoch, writer)
        self._leases.grant(found, epoch, _now_ms())
        return {
            "lease_ms": self._leases.lease_ms,
            "size": volume["size"],
            "groups": self._groups(volume),
            "capability": self._capability(volume, writer, "rw"),
        }

    async def detach(self, context: CallContext | None, params: Params) -> Reply:
        _known(params, "volume", "epoch", "writer")
        found, epoch, writer = (_number(params, key) for key in ("volume", "epoch", "writer"))
        await self._replicated.read_barrier()
        if records.volume_by_id(self._replicated.kv, found) is None:
            return {}  # deleted: nothing is held
        await self._replicated.propose(
            {"do": "detach", "volume": found, "epoch": epoch, "writer": writer, "now_ms": wall_ms()}
        )
        self._leases.end(found, epoch)
        return {}

    def _held(self, found: int, epoch: int, writer: int) -> Params:
        volume = records.volume_by_id(self._replicated.kv, found)
        if volume is None:
            raise Fenced(f"volume {found:x} was deleted", volume=found)
        check_current(volume, epoch, writer, wall_ms())
        return volume

    # -- replies ---------------------------------------------------------------------------------------

    def _attachment(self, volume: Params, writer: int, rights: Literal["rw", "ro"]) -> Reply:
        """Directly after a proposal or a barrier: no await between the state and the reply."""
        return {
            "volume": self._public(volume),
            "epoch": volume["epoch"],
            "lease_ms": self._leases.lease_ms,
            "capability": self._capability(volume, writer, rights),
            "groups": self._groups(volume),
            "holder_alive": self._alive(volume),
        }

    def _capability(self, volume: Params, writer: int, rights: Literal["rw", "ro"]) -> bytes:
        replicas = [member["replica"] for group in volume["groups"] for member in _all_members(group)]
        expires_ms = wall_ms() + CAPABILITY_MS
        return sign(
            self._secret, Capability(volume["id"], volume["epoch"], writer, replicas, rights, expires_ms)
        )

    def _public(self, volume: Params) -> Reply:
        return {**records.public(volume), "holder_alive": self._alive(volume)}

    def _alive(self, volume: Params) -> bool:
        return self._remaining_ms(volume) > 0

    def _remaining_ms(self, volume: Params) -> int:
        if volume["holder"] is None:
            return 0
        return self._leases.remaining_ms(volume["id"], volume["epoch"], _now_ms())

    def _groups(self, volume: Params) -> list[Reply]:
        return [
            {**group, "members": [self._with_address(member) for member in group["members"]]}
            | {"wish": self._with_address(group["wish"]) if group["wish"] else None}
            for group in volume["groups"]
        ]

    def _with_address(self, member: Params) -> Reply:
        return {**member, "address": self._directory.address_of(member["device"])}


def _all_members(group: Params) -> list[Params]:
    return [*group["members"], *([group["wish"]] if group["wish"] else [])]


def _known(params: Params, *keys: str) -> None:
    unknown = sorted(set(params) - set(keys))
    if unknown:
        raise Invalid(f"unknown parameter {', '.join(map(repr, unknown))}: known are {', '.join(keys)}")


def _number(params: Params, key: str) -> int:
    value = params.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Invalid(f"{key} {value!r} must be a number from 0 to 2^63 - 1")
    return value


def _remaining(context: CallContext | None) -> float:
    """Seconds to work; the JSON API has no context."""
    return TIMEOUT_S if context is None else context.remaining(TIMEOUT_S)


def _now_s() -> float:
    return time.monotonic()


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
