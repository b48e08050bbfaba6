"""The registry service: one member of the registry's Raft group, inside of whatever process embeds it.

Owns the wiring: the member, the handlers, the health board and the two tasks of a leader. Must never
decide anything itself. Invariant: methods are served only between "this member leads and has applied all
that was committed before" and the end of its leadership; health exists exactly as long. docs/launch.md
says how it is launched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, Gauge

from moorage.registry import state
from moorage.registry.handlers import RegistryHandlers
from moorage.registry.health import HEALTHS, HealthBoard, Timings
from moorage.service.embed import EmbeddedService, Route
from moorage.service.replicated import Replicated
from moorage.wire.errors import InvariantViolation, MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

GROUP = "registry"
JOIN_INTERVAL_S = 10.0
NOTE_COUNTS_EVERY = 3  # heartbeats: how much of a clone's head start may be forgotten with a leader


@dataclass(frozen=True)
class RegistryConfig:
    """``peers``: name -> wire address of the first members, this one included (used while ``directory``
    is empty)."""

    name: str
    directory: Path
    address: str  # advertised
    http: str
    peers: Mapping[str, str]
    secret: ClusterSecret
    hello: Hello
    timings: Timings = field(default_factory=Timings)


class RegistryService(EmbeddedService):
    kind: ClassVar[str] = "registry"

    def __init__(self, config: RegistryConfig) -> None:
        super().__init__()
        self._config = config
        self._board = HealthBoard(config.timings)
        self.group = Replicated(
            directory=config.directory,
            group=GROUP,
            name=config.name,
            peers=config.peers,
            machine=state.RegistryMachine(),
            hello=config.hello,
            secret=config.secret,
        )
        self._handlers = RegistryHandlers(
            name=config.name,
            cluster=config.secret.cluster,
            group=self.group,
            board=self._board,
            now_ms=_now_ms,
        )
        self._started = False
        self._client = LeaderClient(
            self._members, service=self.kind, hello=config.hello, secret=config.secret
        )
        self._leading: asyncio.Task[None] | None = None
        self._joining: asyncio.Task[None] | None = None

    async def start(self, router: Router) -> None:
        """Returns as soon as the member takes part; :meth:`not_ready` says whether the group serves."""
        self.group.register(router)
        self._handlers.install(router)
        self.group.on_leader_change.append(self._leader_changed)
        self.group.on_failure.append(lambda error: self.fatal(error))
        await self.group.start()
        self._started = True
        self._joining = self._spawn(self._join(), "registry-join")

    async def stop(self) -> None:
        self._handlers.serving = False
        for task in (self._leading, self._joining):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._client.close()
        await self.group.stop()

    def not_ready(self) -> list[str]:
        if not self._started:
            return ["opening its state"]
        if self._handlers.serving or (self.group.is_served and not self.group.is_leader):
            return []
        if self.group.leader is not None:  # it is the one
            return ["catching up with what its group has committed"]
        if not self.group.status()["born"]:
            members = ", ".join(f"{each['name']} at {each['address']}" for each in self.group.members)
            return [f"a new group begins when all of its first members are up: {members}"]
        members = ", ".join(f"{each['name']} at {each['address']}" for each in self.group.members)
        return [f"no leader: a majority of {members} must be up and reach each other"]

    def routes(self) -> list[Route]:
        handlers = self._handlers
        return [
            Route("GET", "registry.describe", lambda params: handlers.describe(None, params)),
            Route("GET", "registry.view", lambda params: handlers.view(None, params)),
            Route("GET", "registry.mount_table", lambda params: handlers.mount_table(None, {})),
            Route("GET", "registry.events", lambda params: handlers.events(None, {})),
            Route("GET", "registry.quotas", lambda params: handlers.quotas(None, params)),
            Route("POST", "registry.set_quota", lambda params: handlers.set_quota(None, params)),
            Route("POST", "registry.remove_quota", lambda params: handlers.remove_quota(None, params)),
            Route("GET", "registry.status", lambda params: handlers.status(None, params)),
            *self.group.routes(),
        ]

    def register_metrics(self, registry: CollectorRegistry) -> None:
        leads = Gauge("moorage_registry_leader", "1 while this member leads the registry.", registry=registry)
        leads.set_function(lambda: float(self._handlers.serving))
        devices = Gauge(
            "moorage_registry_devices",
            "Devices by health, as the leader sees them.",
            ["health"],
            registry=registry,
        )
        for health in HEALTHS:
            devices.labels(health).set_function(partial(self._count, health))

    def _count(self, health: str) -> float:
        if not self._handlers.serving:
            return 0
        rows, now_ms = state.table(self.group.kv, "device"), _now_ms()
        return sum(
            self._board.health(each, row["refused"], now_ms).health == health for each, row in rows.items()
        )

    # -- leadership --------------------------------------------------------------------------------

    def _leader_changed(self, leads: bool) -> None:
        self._handlers.serving = False
        if self._leading is not None:
            self._leading.cancel()
            self._leading = None
        if leads:
            self._leading = self._spawn(self._lead(), "registry-lead")

    async def _lead(self) -> None:
        """Serve from when the state has caught up; a term that ends cancels this."""
        interval_s = self._config.timings.heartbeat_ms / 1000
        while True:
            try:
                await self.group.read_barrier()
                break
            except MoorageError as error:  # at once, if the term has ended and we are not told yet
                log.info("the registry's new leader waits for its group: %s", error)
                await asyncio.sleep(interval_s)
        self._handlers.begin_serving()
        log.info("registry %s leads in term %d", self._config.name, self.group.term)
        while True:
            for _ in range(NOTE_COUNTS_EVERY):
                await asyncio.sleep(interval_s)
                await self._tell_changes()
            try:
                await self._handlers.note_counts()
            except MoorageError as error:
                log.warning("heartbeat counts were not noted: %s", error)

    # -- being a service like others -----------------------------------------------------------------

    async def _members(self) -> list[str]:
        return [str(each["address"]) for each in self.group.members]

    async def _join(self) -> None:
        """Tell the leader, again and again, where this member is: so clients learn of all of them."""
        me = {
            "service": self.kind,
            "group": GROUP,
            "name": self._config.name,
            "address": self._config.address,
            "http": self._config.http,
            "uid": "",
        }
        while True:
            try:
                await self._client.call("registry.join_service", me, timeout=JOIN_INTERVAL_S)
            except MoorageError as error:
                log.info("registry %s is not entered among the services yet: %s", self._config.name, error)
            await asyncio.sleep(JOIN_INTERVAL_S)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s failed", task.get_name(), exc_info=error)
            self.fatal(InvariantViolation(f"{task.get_name()} failed: {type(error).__name__}: {error}"))

    async def _tell_changes(self) -> None:
        rows = state.table(self.group.kv, "device")
        refused = {device: row["refused"] for device, row in rows.items()}
        for device, health in self._board.changes(refused, _now_ms()):
            level = logging.INFO if health.health == "up" else logging.WARNING
            log.log(level, "device %s is %s%s", device, health.health, health.reason and f": {health.reason}")
            try:
                await self._handlers.note_health(device, rows[device]["host"], health.health, health.reason)
            except MoorageError as error:
                log.warning("that device %s is %s was not noted: %s", device, health.health, error)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
