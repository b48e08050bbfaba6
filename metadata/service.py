"""The metadata service: one member of one metadata group, inside of whatever process embeds it.

Owns the wiring: the Raft member, the handlers of ``metadata.*``, the leader's leases and tasks, the
connection to the registry. It must never decide anything itself (state.py, lease.py and placement.py do),
listen, or handle signals. Invariant: leases and tasks exist while this member leads, and not longer.
docs/metadata.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from moorage.metadata import limits, records
from moorage.metadata.attachments import Attachments
from moorage.metadata.charges import Charges
from moorage.metadata.directory import Directory
from moorage.metadata.handlers import Handlers
from moorage.metadata.orders import NodeOrders
from moorage.metadata.state import StateMachine
from moorage.metadata.tasks.context import Leading, TaskContext
from moorage.metadata.tasks.runner import TaskRunner
from moorage.service.embed import EmbeddedService, Route
from moorage.service.replicated import Replicated
from moorage.wire.errors import DeadlineExceeded, Fatal, Invalid, MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

log = logging.getLogger(__name__)

LEASE_MS_DEFAULT: Final = 4000
READ_LEASE_MS: Final = 1000
REPAIR_AFTER_MS_DEFAULT: Final = 600_000


@dataclass(frozen=True)
class MetadataConfig:
    """``peers``: name -> wire address of the first members, this one included (used while ``directory`` is
    empty).
    """

    name: str
    group: str
    directory: Path
    address: str  # advertised
    http: str
    registry: str  # "HOST:PORT,..." or "srv:NAME"
    secret: ClusterSecret
    hello: Hello
    peers: Mapping[str, str]
    lease_ms: int = LEASE_MS_DEFAULT
    repair_after_ms: int = REPAIR_AFTER_MS_DEFAULT
    create_timeout_s: float = 10.0  # for the replicas of a new volume; then it is rolled back
    join_interval_s: float = 10.0
    view_interval_s: float = 1.0

    def validate(self) -> None:
        limits.group_number(self.group)
        if self.lease_ms < 2 * READ_LEASE_MS:
            raise Invalid(f"lease of {self.lease_ms} ms is too short: use at least {2 * READ_LEASE_MS} ms")


class MetadataService(EmbeddedService):
    """Build it, ``await start(router)``, and it serves ``metadata.*`` and its Raft group until ``stop``."""

    kind: ClassVar[str] = "metadata"

    def __init__(self, config: MetadataConfig, leading: Leading) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self._leading = leading
        self.directory = Directory(
            config.registry, group=config.group, hello=config.hello, secret=config.secret
        )
        self.replicated = Replicated(
            directory=config.directory,
            group=config.group,
            name=config.name,
            peers=config.peers,
            machine=StateMachine(
                config.group,
                on_work=lambda volume: self.runner.start_volume(volume),
                on_change=lambda volume: self.runner.volume_changed(volume),
            ),
            hello=config.hello,
            secret=config.secret,
        )
        self.attachments = Attachments(
            self.replicated, self.directory, config.secret, lease_ms=config.lease_ms
        )
        self.charges = Charges(self.replicated, self.directory)
        orders = NodeOrders(self.directory, group=config.group, hello=config.hello, secret=config.secret)
        self.runner = TaskRunner(
            TaskContext(
                self.replicated,
                self.directory,
                orders,
                leading,
                call=lambda name: partial(self._call, name),
                lapsed_ms=self.attachments.lapsed_ms,
                create_timeout_s=config.create_timeout_s,
                repair_after_ms=config.repair_after_ms,
            )
        )
        self.handlers = Handlers(
            group=config.group,
            name=config.name,
            cluster=config.secret.cluster,
            replicated=self.replicated,
            directory=self.directory,
            runner=self.runner,
            attachments=self.attachments,
            charges=self.charges,
        )
        self.running = False  # between start and stop: the state may be read
        self._joining: asyncio.Task[None] | None = None

    async def start(self, router: Router) -> None:
        """Returns at once: leader and registry are waited for in :meth:`not_ready`, since other members may
        be
        started after this one."""
        self.replicated.on_leader_change.append(self._leader_changed)
        self.replicated.on_failure.append(lambda error: self.fatal(error))
        self.replicated.register(router)
        self.handlers.register(router)
        await self.replicated.start()
        self.running = True
        self._joining = asyncio.create_task(
            self.directory.run(
                self._me,
                self._admitted,
                join_interval_s=self.config.join_interval_s,
                view_interval_s=self.config.view_interval_s,
            ),
            name="metadata-directory",
        )
        self._joining.add_done_callback(self._directory_ended)

    def _me(self) -> dict[str, Any] | None:
        group = records.group(self.replicated.kv)
        if group is None:
            return None
        return {
            "service": "metadata",
            "group": self.config.group,
            "name": self.config.name,
            "address": self.config.address,
            "http": self.config.http,
            "uid": group["uid"],
        }

    async def _admitted(self) -> bool:
        """The registry has entered this member, and so its group: the leader notes it for all."""
        group = records.group(self.replicated.kv)
        if group is not None and not group["admitted"] and self.replicated.is_leader:
            await self.replicated.propose({"do": "admit", "uid": group["uid"]})
        return records.admitted(self.replicated.kv)

    async def stop(self) -> None:
        self.running = False
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
            self._joining = None
        await self.runner.stop()
        await self._leading.close()
        await self.charges.stop()
        await self.replicated.stop()
        await self.directory.close()

    async def _call(self, name: str, method: str, params: dict[str, Any], timeout: float) -> Any:
        """A call of ours to ourselves, as a client would make it."""
        handler = self.handlers.methods()[method.removeprefix("metadata.")]
        try:
            async with asyncio.timeout(timeout):
                return await handler(None, {"name": name, **params})
        except TimeoutError:
            raise DeadlineExceeded(f"{method} took longer than {timeout:.1f} s") from None

    def not_ready(self) -> list[str]:
        if self.replicated.failed is not None:
            return [f"group {self.config.group}: this member has failed: {self.replicated.failed}"]
        reasons = []
        if self.replicated.leader is None:
            reasons.append(f"group {self.config.group} has no leader: a majority of its members must be up")
        elif not self.replicated.is_served:
            reasons.append(f"group {self.config.group}: catching up with what it has committed")
        if not self.directory.joined:
            reasons.append(f"not known to the registry yet: {self.directory.last_error or 'asking'}")
        elif not records.admitted(self.replicated.kv):
            reasons.append(f"group {self.config.group} has yet to note that the registry knows it")
        return reasons

    def routes(self) -> list[Route]:
        reading = ("describe", "status", "list_volumes", "show_volume", "moves")
        writing = (
            "create_volume",
            "resize_volume",
            "set_volume",
            "delete_volume",
            "create_snapshot",
            "delete_snapshot",
        )
        methods = self.handlers.methods()
        calls = [("GET", name) for name in reading] + [("POST", name) for name in writing]
        return [
            Route("POST" if verb == "POST" else "GET", f"metadata.{name}", partial(methods[name], None))
            for verb, name in calls
        ] + self.replicated.routes()

    def register_metrics(self, registry: CollectorRegistry) -> None:
        registry.register(_Metrics(self))

    def _directory_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, MoorageError):
                log.error("the connection to the registry ended", exc_info=error)
                error = Fatal(f"metadata {self.config.group} cannot go on without the registry: {error!r}")
            self.fatal(error)

    def _leader_changed(self, leading: bool) -> None:
        # no await until both are done: a handler that runs sees leases and tasks of the same leadership
        log.info("metadata %s %s", self.config.group, "is led here" if leading else "is led elsewhere")
        if leading:
            self.attachments.lead()
            self.runner.lead()
            self.charges.lead()
        else:
            self.charges.follow()
            self.runner.follow()
            self.attachments.follow()


class _Metrics(Collector):
    """Gauges read from the state when asked, so that nothing has to be kept in step."""

    def __init__(self, service: MetadataService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        if not service.running:
            return  # the state is not open yet, or not any more
        group = service.config.group
        values = {
            "moorage_metadata_leader": ("1 where the group is led", int(service.replicated.is_leader)),
            "moorage_metadata_volumes": (
                "Volumes of the group",
                int(service.replicated.kv.get(records.COUNTER_VOLUMES) or 0),
            ),
            "moorage_metadata_tasks": ("Volumes with work under way", service.runner.count),
            "moorage_metadata_leases": ("Leases known to the leader", service.attachments.count),
        }
        for name, (text, value) in values.items():
            gauge = GaugeMetricFamily(name, text, labels=["group"])
            gauge.add_metric([group], value)
            yield gauge
