"""The registry's methods: what a CALL of ``registry.*`` does. Thin: rules are in `state.py`, verdicts in
`health.py`.

Owns the order of checks around an await. Two of them carry safety:

* A device is refused for its token only after a read barrier: a member that leads no more, or has not
  applied all yet, must not refuse for good what the real leader has accepted.
* A start waits for a sign of life of the token that it wants to replace. A process that was killed has
  lost its connection, so an ordinary restart waits for nothing; a copy of a living device's directory is
  refused.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
import weakref
from collections.abc import Callable
from typing import Any

from moorage.registry import balance, drains, events, keys, mount_table, quota, state
from moorage.registry.health import HealthBoard, Verdict, host_health
from moorage.service.replicated import Replicated
from moorage.wire.connection import Connection
from moorage.wire.errors import Behind, IdentityConflict, Invalid, NotFound, NotLeader
from moorage.wire.rpc import CallContext, Router

log = logging.getLogger(__name__)

SIGN_OF_LIFE_HEARTBEATS = 1.5  # one heartbeat, and half of one for the way
POLL_S = 0.02
BARRIER_TIMEOUT_S = 5.0
PROPOSE_TIMEOUT_S = 5.0
KEY_ROWS_MAX = 1000
QUOTA_ROWS_MAX = 500  # of a page


class RegistryHandlers:
    def __init__(
        self, *, name: str, cluster: str, group: Replicated, board: HealthBoard, now_ms: Callable[[], int]
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._group = group
        self._board = board
        self._now_ms = now_ms
        self.serving = False  # this member leads, and its state is as new as its leadership
        self._since_ms = 0
        self._sources: weakref.WeakKeyDictionary[Connection, int] = weakref.WeakKeyDictionary()
        self._source_ids = itertools.count()
        self._connections: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()

    def install(self, router: Router) -> None:
        for name, handler in (
            ("describe", self.describe),
            ("join_host", self.join_host),
            ("join_service", self.join_service),
            ("start_device", self.start_device),
            ("heartbeat", self.heartbeat),
            ("view", self.view),
            ("claim", self.claim),
            ("locate", self.locate),
            ("release", self.release),
            ("charge", self.charge),
            ("settle", self.settle),
            ("quotas", self.quotas),
            ("set_quota", self.set_quota),
            ("remove_quota", self.remove_quota),
            ("create_key", self.create_key),
            ("revoke_key", self.revoke_key),
            ("key", self.key),
            ("keys", self.keys),
            ("mount_table", self.mount_table),
            ("set_mount_table", self.set_mount_table),
            ("set_drain", self.set_drain),
            ("set_balance", self.set_balance),
            ("evict_device", self.evict_device),
            ("forget", self.forget),
            ("note_events", self.note_events),
            ("events", self.events),
            ("status", self.status),
        ):
            router.method(f"registry.{name}", handler)

    def begin_serving(self) -> None:
        """The state has caught up with the leadership; health starts afresh."""
        self._since_ms = self._now_ms()
        self._board.restart(self._since_ms)
        self.serving = True

    # -- any member --------------------------------------------------------------------------------

    async def describe(self, _ctx: CallContext | None, _params: dict[str, Any]) -> dict[str, Any]:
        group = self._group
        return {
            "cluster": self._cluster,
            "service": "registry",
            "name": self._name,
            "leader": group.leader,
            "members": [{"name": each["name"], "address": each["address"]} for each in group.members],
            "term": group.term,
        }

    # -- the leader: changes -----------------------------------------------------------------------

    async def join_host(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        if await self._is_known(f"host/{params.get('host')}", params, "labels", "address", "http"):
            return {}
        return await self._propose("join_host", params, "host", "labels", "address", "http")

    async def join_service(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        key = f"service/{params.get('service')}/{params.get('group')}/{params.get('name')}"
        if await self._is_known(key, params, "address", "http", "uid"):
            return {}
        return await self._propose(
            "join_service", params, "service", "group", "name", "address", "http", "uid"
        )

    async def _is_known(self, key: str, params: dict[str, Any], *fields: str) -> bool:
        """Joining is repeated all the time: what the state says already needs no entry in the log."""
        self._require_serving()
        wanted = {field: params.get(field) for field in fields}
        if self._group.kv.get(key) != wanted:
            return False
        await self._barrier()
        return bool(self._group.kv.get(key) == wanted)

    async def claim(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        """Charged if volumes are, when it is applied: what is claimed before that has a row to be settled."""
        fields = ("name", "kind", "group", "id")
        if params.get("size") is None or not quota.charging(self._group.kv):
            answer = await self._propose("claim", params, *fields)
            if params.get("size") is None or not quota.charging(self._group.kv):
                return answer
        return await self._propose("claim_charged", params, *fields, "principal", "size")

    async def release(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        return await self._propose("release", params, "name", "group", "id")

    async def charge(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        await self._barrier()
        if not quota.charging(self._group.kv):
            return {}
        return await self._propose(
            "charge", params, "group", "term", "count", "name", "id", "principal", "size"
        )

    async def settle(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        return await self._propose("settle", params, "group", "term", "count", "charges")

    async def set_quota(self, _ctx: CallContext | None, params: dict[str, Any]) -> Any:
        _check_known(params, "principal", "capacity", "volumes")
        return await self._propose("set_quota", params, "principal", "capacity", "volumes")

    async def create_key(self, _ctx: CallContext | None, params: dict[str, Any]) -> Any:
        """For ``principal``; ``id`` is drawn by who asks, so that it may ask again."""
        stamped = {**params, "at_ms": _wall_ms(), "by": state.text_of(params, "by")}
        return await self._propose("create_key", stamped, "id", "principal", "at_ms", "by")

    async def revoke_key(self, _ctx: CallContext | None, params: dict[str, Any]) -> Any:
        return await self._propose("revoke_key", params, "id")

    async def key(self, _ctx: CallContext | None, params: dict[str, Any]) -> Any:
        await self._barrier()
        return keys.key_of(self._group.kv, state.text_of(params, "id"))

    async def keys(self, _ctx: CallContext | None, params: dict[str, Any]) -> dict[str, Any]:
        """In pages, by id: while ``next`` is not None it is given back as ``after``."""
        after = state.text_of({"after": "", **params}, "after")
        await self._barrier()
        rows = keys.rows(self._group.kv, after, KEY_ROWS_MAX)
        return {"keys": rows, "next": rows[-1]["id"] if len(rows) == KEY_ROWS_MAX else None}

    async def remove_quota(self, _ctx: CallContext | None, params: dict[str, Any]) -> Any:
        _check_known(params, "principal")
        return await self._propose("remove_quota", params, "principal")

    async def set_mount_table(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        stamped = {**params, "at_ms": _wall_ms()}
        return await self._propose("set_mount_table", stamped, "version", "text", "by", "at_ms", "request")

    async def set_drain(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        by = drains.by_of(params)
        stamped = {**params, "at_ms": _wall_ms()}
        done = await self._propose("set_drain", stamped, "kind", "name", "drain", "to", "at_ms", "by")
        verb = "is to be emptied" if params["drain"] else "is used again"
        await self._note_event(
            "drain", [params["name"]], f"{params['kind']} {params['name']} {verb}, says {by}"
        )
        return done

    async def set_balance(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        done = await self._propose("set_balance", {**params, "at_ms": _wall_ms()}, "paused", "at_ms", "by")
        verb = "is paused" if params["paused"] else "goes on"
        await self._note_event("balance", [], f"evening out devices {verb}, says {params['by']}")
        return done

    async def note_events(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        return await self._propose("note_events", params, "events")

    async def _note_event(self, kind: str, about: list[str], text: str) -> None:
        """Of our own. What it tells of is committed already."""
        event = {"at_ms": _wall_ms(), "kind": kind, "about": about, "text": text, "id": secrets.token_hex(8)}
        await self._propose("note_events", {"events": [event]}, "events")

    async def note_health(self, device: str, host: str, health: str, reason: str) -> None:
        if events.is_noted(self._group.kv, device, health):
            return
        command = {"op": "note_health", "device": device, "host": host, "health": health, "reason": reason}
        await self._group.propose({**command, "at_ms": _wall_ms()}, timeout=PROPOSE_TIMEOUT_S)

    async def events(self, _ctx: CallContext | None, params: dict[str, Any]) -> dict[str, Any]:
        """``after``: a number, or below 0 the last so many; ``about``: a name."""
        after, limit = params.get("after", -20), params.get("limit", events.PAGE_MAX)
        for value in (after, limit):
            if not isinstance(value, int) or isinstance(value, bool):
                raise Invalid(f"after and limit: use whole numbers, not {value!r}")
        if not 0 < limit <= events.PAGE_MAX:
            raise Invalid(f"limit: use 1 to {events.PAGE_MAX}")
        about = state.text_of({"about": params.get("about", "")}, "about")
        await self._barrier()
        return events.page(self._group.kv, after, about, limit)

    async def forget(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        return await self._propose("forget", params, "kind", "name")

    async def evict_device(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        """An operator says that it is gone for good: it is refused from now on, and its replicas are placed
        anew. May be repeated."""
        device, by = state.token_of(params, "device"), state.text_of(params, "by")
        await self._barrier()
        found = self._group.kv.get(f"device/{device}")
        if found is None:
            raise NotFound(f"there is no device {device} in the registry: `moorage device list` shows all")
        if not found["refused"]:
            reason = f"evicted by {by}"[: state.TEXT_MAX]
            command = {"op": "refuse_device", "device": device, "token": found["token"], "reason": reason}
            await self._group.propose(command, timeout=PROPOSE_TIMEOUT_S)
            log.warning("device %s is %s", device, reason)
            await self._note_event("evict", [found["host"], device], f"device {device} was {reason}")
        return {}

    async def start_device(self, _ctx: CallContext, params: dict[str, Any]) -> Any:
        device, old_token = state.token_of(params, "device"), state.text_of(params, "old_token")
        await self._barrier()
        found = self._group.kv.get(f"device/{device}")
        if found is not None and found["token"] == old_token != params.get("new_token"):
            await self._await_silence(device, found)
        fields = ("device", "host", "address", "capacity", "old_token", "new_token", "count")
        result = await self._propose("start_device", params, *fields)
        self._board.started(device)
        log.info("device %s of host %s started at %s", device, params.get("host"), params.get("address"))
        return result

    async def _await_silence(self, device: str, found: dict[str, Any]) -> None:
        """Return once the process that has the device's token is certainly or probably gone."""
        asked_ms = self._now_ms()
        patience_ms = self._board.timings.heartbeat_ms * SIGN_OF_LIFE_HEARTBEATS
        while True:
            heard = self._board.last_heard(device)
            if heard is not None and heard[0] > asked_ms:
                await self._note({device: [found["token"], found["count"]]})
                raise IdentityConflict(
                    f"device {device} is in use by a living process at {found['address']}: a device has one"
                    " process; stop that one, or start with an empty directory"
                )
            # Nothing heard by this leader: the device may report to it soon, as all do after a change.
            since_ms = asked_ms if heard is not None else self._since_ms
            if self._hung_up(heard) or self._now_ms() - since_ms >= patience_ms:
                return
            await asyncio.sleep(POLL_S)

    def _hung_up(self, heard: tuple[int, int] | None) -> bool:
        if heard is None:
            return False
        connection = self._connections.get(heard[1])
        return connection is None or connection.closed

    # -- the leader: heartbeats --------------------------------------------------------------------

    async def heartbeat(self, ctx: CallContext, params: dict[str, Any]) -> Any:
        device, token = state.token_of(params, "device"), state.token_of(params, "token")
        count = state.int_of(params, "count")
        used, capacity = state.int_of(params, "used"), state.int_of(params, "capacity")
        failed = params.get("failed")
        found = await self._current(device, token)
        verdict = self._board.heartbeat(
            device,
            token=token,
            count=count,
            noted=found["count"],
            source=self._source(ctx.conn),
            used=used,
            capacity=capacity,
            failed=failed[: state.TEXT_MAX] if isinstance(failed, str) else "",
            now_ms=self._now_ms(),
        )
        if verdict is Verdict.LATE:
            raise Behind(f"device {device}: heartbeat {count} comes after a later one")
        if verdict is Verdict.WENT_BACK:
            await self._refuse(
                device, token, f"its heartbeat count went back to {count}: an older copy of it runs"
            )
        return {"interval_ms": self._board.timings.heartbeat_ms}

    async def _current(self, device: str, token: str) -> dict[str, Any]:
        """The device's row if it may report under this token. A refusal is checked against the real
        leader."""
        self._require_serving()
        found = self._group.kv.get(f"device/{device}")
        if found is None or found["token"] != token or found["refused"]:
            await self._barrier()
            found = self._group.kv.get(f"device/{device}")
        if found is None:
            raise IdentityConflict(
                f"device {device} is not in this registry: restart its node to register it"
            )
        if found["token"] != token:
            raise IdentityConflict(
                f"device {device} has been started from another copy of its directory: this process must not"
                " go on"
            )
        if found["refused"]:
            raise IdentityConflict(f"device {device} is refused for good: {found['refused']}")
        return dict(found)

    async def _refuse(self, device: str, token: str, reason: str) -> None:
        log.warning("device %s is refused: %s", device, reason)
        command = {"op": "refuse_device", "device": device, "token": token, "reason": reason}
        await self._group.propose(command, timeout=PROPOSE_TIMEOUT_S)
        raise IdentityConflict(f"device {device} is refused for good: {reason}")

    def _source(self, connection: Connection) -> int:
        source = self._sources.get(connection)
        if source is None:
            source = self._sources[connection] = next(self._source_ids)
            self._connections[source] = connection
        return source

    async def note_counts(self) -> None:
        """Commit what the devices' counts have grown to; called every few seconds while this member leads."""
        counts = self._board.counts_to_note()
        if counts:
            await self._note(counts)

    async def _note(self, counts: dict[str, list[Any]]) -> None:
        try:
            await self._group.propose({"op": "note_counts", "counts": counts}, timeout=PROPOSE_TIMEOUT_S)
        except BaseException:
            self._board.not_noted(counts)
            raise

    # -- the leader: questions ---------------------------------------------------------------------

    async def locate(self, _ctx: CallContext, params: dict[str, Any]) -> dict[str, Any]:
        await self._barrier()
        return state.locate(self._group.kv, params.get("name", ""))

    async def mount_table(self, _ctx: CallContext | None, params: dict[str, Any]) -> dict[str, Any]:
        """With ``known``, a version: nothing but the version when that is the newest one."""
        version, known = (state.optional_int_of(params, field) for field in ("version", "known"))
        await self._barrier()
        if known is not None and mount_table.newest_version(self._group.kv) == known:
            return {"version": known}
        return mount_table.get(self._group.kv, version)

    async def quotas(self, _ctx: CallContext | None, params: dict[str, Any]) -> dict[str, Any]:
        """In pages, by name: while ``next`` is not None it is given back as ``after``."""
        after = state.text_of({"after": "", **params}, "after")
        await self._barrier()
        rows = quota.rows(self._group.kv, after, QUOTA_ROWS_MAX)
        return {"quotas": rows, "next": rows[-1]["principal"] if len(rows) == QUOTA_ROWS_MAX else None}

    async def view(self, _ctx: CallContext | None, _params: dict[str, Any]) -> dict[str, Any]:
        await self._barrier()
        kv, now_ms = self._group.kv, self._now_ms()
        rows = state.table(kv, "device")
        verdicts = {
            device: self._board.health(device, row["refused"], now_ms) for device, row in rows.items()
        }
        hosts = {}
        for host, row in state.table(kv, "host").items():
            health = host_health([verdicts[device] for device, each in rows.items() if each["host"] == host])
            hosts[host] = {
                **row,
                "health": health.health,
                "reason": health.reason,
                "since_ms": health.since_ms,
                "drain": drains.of_host(kv, host),
            }
        services = state.services(kv)
        return {
            "hosts": hosts,
            "devices": {device: self._device(device, row, verdicts[device]) for device, row in rows.items()},
            "services": services,
            "groups": sorted({each["group"] for each in services if each["service"] == "metadata"}),
            "charging": quota.charging(kv),
            "balance": balance.get(kv),
        }

    def _device(self, device: str, row: dict[str, Any], health: Any) -> dict[str, Any]:
        used, capacity = self._board.usage(device) or (0, row["capacity"])
        return {
            "host": row["host"],
            "address": row["address"],
            "token": row["token"],
            "capacity": capacity,
            "used": used,
            "health": health.health,
            "reason": health.reason,
            "since_ms": health.since_ms,
            "drain": drains.of_device(self._group.kv, device, row["host"]),
        }

    async def status(self, _ctx: CallContext | None, _params: dict[str, Any]) -> dict[str, Any]:
        await self._barrier()
        rows, now_ms = state.table(self._group.kv, "device"), self._now_ms()
        counts: dict[str, int] = {}
        for device, row in rows.items():
            health = self._board.health(device, row["refused"], now_ms).health
            counts[health] = counts.get(health, 0) + 1
        return {
            "cluster": self._cluster,
            "raft": self._group.status(),
            "hosts": len(state.table(self._group.kv, "host")),
            "devices": counts,
            "services": len(state.services(self._group.kv)),
        }

    # -- leading -----------------------------------------------------------------------------------

    async def _propose(self, op: str, params: dict[str, Any], *fields: str) -> Any:
        self._require_serving()
        command = {"op": op, **{field: params.get(field) for field in fields}}
        return await self._group.propose(command, timeout=PROPOSE_TIMEOUT_S)

    async def _barrier(self) -> None:
        self._require_serving()
        await self._group.read_barrier(timeout=BARRIER_TIMEOUT_S)
        self._require_serving()

    def _require_serving(self) -> None:
        if not self.serving:
            leader = None if self._group.is_leader else self._group.leader
            raise NotLeader("this member of the registry does not lead now: ask the leader", leader=leader)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _check_known(params: dict[str, Any], *keys: str) -> None:
    """A misspelt limit is an error, not none."""
    if unknown := sorted(set(params) - set(keys)):
        raise Invalid(f"unknown parameter {', '.join(map(repr, unknown))}: known are {', '.join(keys)}")
