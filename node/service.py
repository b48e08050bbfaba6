"""The node service: the shell around one device's store and the members of the replicas on it.

Owns: start and stop in order (lock, superblock, store, start token at the registry, methods, heartbeats).
Must never answer a member's message before the registry has accepted this start's token: a clone would.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
from typing import Any

from prometheus_client import CollectorRegistry

from moorage.node.config import NodeConfig
from moorage.node.copying import Copier
from moorage.node.epochs import ask_for_epochs
from moorage.node.exporter import StoreCollector
from moorage.node.handlers import Handlers
from moorage.node.metrics import BOUNDS_S
from moorage.node.registration import Registration
from moorage.node.sessions import Sessions
from moorage.node.store import Store, StoreConfig
from moorage.node.superblock import Superblock
from moorage.service import process
from moorage.service.embed import EmbeddedService, Route
from moorage.wire.errors import DeviceFailed, MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.registry import RegistryClient
from moorage.wire.rpc import Router

log = logging.getLogger(__name__)

TICK_S = 0.05  # how soon freed space reaches a writer that waits for it


class NodeService(EmbeddedService):
    """``NodeService(config)``, ``await start(router)``, ``await stop()``; see :class:`EmbeddedService`."""

    kind = "node"

    def __init__(self, config: NodeConfig) -> None:
        super().__init__()
        config.validate()
        self._config = config
        self._superblock: Superblock | None = None
        self._store: Store | None = None
        self._sessions: Sessions | None = None
        self._copier: Copier | None = None
        self._handlers: Handlers | None = None
        self._client: RegistryClient | None = None
        self._registration: Registration | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._collector = StoreCollector()

    # -- life -----------------------------------------------------------------------------------------

    async def start(self, router: Router) -> None:
        config = self._config
        _raise_file_limit()
        superblock = self._superblock = Superblock(config.data_dir, config.capacity)
        store = self._store = await self._open_store(superblock)
        hello = Hello(
            "node",
            config.secret.cluster,
            config.name,
            secrets.token_hex(8),
            {"device": superblock.fields.device},
        )
        copier = self._copier = Copier(store, hello, config.secret, config.copy_within_s)
        sessions = self._sessions = Sessions(store, copier)
        sessions.load()
        client = self._client = RegistryClient(config.registry, hello=hello, secret=config.secret)
        registration = self._registration = Registration(
            config, superblock, client, lambda: store.used, self._failed
        )
        await registration.start()
        handlers = self._handlers = Handlers(store, sessions, copier, hello, config.secret, self.describe)
        handlers.register(router)
        self._spawn(registration.heartbeats(), "heartbeats")
        if sessions.withheld:
            self._spawn(
                ask_for_epochs(sessions, client, hello, config.secret, handlers.drop_withheld), "epochs"
            )
        self._spawn(self._ticks(sessions), "ticks")

    async def _open_store(self, superblock: Superblock) -> Store:
        fields = superblock.fields
        store = Store(
            StoreConfig(
                self._config.data_dir,
                bytes.fromhex(fields.device),
                fields.capacity,
                fields.segment_size,
                int(fields.seed, 16),
                scrub_period_s=self._config.scrub_period_s,
                background_rate=self._config.background_rate,
            )
        )
        store.on_failed = self._device_failed
        self._store = store
        report = await store.open()
        self._collector.store = store
        for identity, what in report.damaged.items():
            log.error("replica %d is damaged: %s", identity, what)
        log.info(
            "device %s: %d replicas, %d group commits replayed, %d damaged",
            fields.device,
            len(store.replicas),
            report.groups,
            len(report.damaged),
        )
        return store

    async def stop(self) -> None:
        try:
            await self._stop()
        finally:
            if self._superblock is not None:
                self._superblock.close()  # or this process could not open the device again

    async def _stop(self) -> None:
        if self._handlers is not None:
            await self._handlers.withdraw()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._copier is not None:
            await self._copier.stop()
        if self._client is not None:
            await self._client.close()
        if self._store is not None:
            await self._store.close()

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=f"node-{name}")
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, MoorageError):
            log.critical("task %s ended", task.get_name(), exc_info=error)
            error = DeviceFailed(f"the node's {task.get_name()} ended: {error}")
        self.fatal(error)

    async def _ticks(self, sessions: Sessions) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(TICK_S)
            sessions.store.pacer.late(loop.time() - began - TICK_S)
            sessions.tick()

    def _device_failed(self, error: DeviceFailed) -> None:
        """The process stays, to say so: its heartbeats carry the reason, and it answers nothing else."""
        log.critical("%s", error)
        if self._sessions is not None:
            self._sessions.end(error)

    def _failed(self) -> str | None:
        failed = self._store.failed if self._store is not None else None
        return None if failed is None else str(failed)

    # -- what it says of itself -------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """The device's persistent identity, 32 hex digits; known after start."""
        assert self._superblock is not None
        return self._superblock.fields.device

    def hello_extra(self) -> dict[str, Any]:
        """For the process's Hello: ports are reused, so a peer checks these."""
        assert self._superblock is not None
        return {"device": self.device, "token": self._superblock.fields.token}

    def not_ready(self) -> list[str]:
        if self._store is None:
            return ["the store is being opened"]
        if (failed := self._failed()) is not None:
            return [failed]
        if self._registration is None:
            return ["the store is being opened"]
        waiting = self._registration.waiting_for
        return [f"waiting for {waiting}"] if waiting else []

    def describe(self) -> dict[str, Any]:
        assert self._superblock is not None and self._store is not None and self._sessions is not None
        fields, store = self._superblock.fields, self._store
        return {
            "device": fields.device,
            "host": self._config.name,
            "token": fields.token,
            "capacity": fields.capacity,
            "used": store.used,
            "room": store.room(),
            "replicas": len(self._sessions.members),
            "damaged": [each for each, replica in store.replicas.items() if replica.damaged],
            "withheld": sorted(self._sessions.withheld),
            "failed": self._failed(),
            "appends": {"bounds_s": list(BOUNDS_S), "counts": store.metrics.appends.counts},
            "directory": str(self._config.data_dir.absolute()),
            "process": process.identity(),
        }

    def routes(self) -> list[Route]:
        async def describe(params: dict[str, Any]) -> Any:
            return self.describe()

        return [Route("GET", "node.describe", describe)]

    def register_metrics(self, registry: CollectorRegistry) -> None:
        registry.register(self._collector)


def _raise_file_limit() -> None:
    """Each segment's file stays open: as many as the system allows us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
