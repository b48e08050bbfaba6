"""The service ``moorage docker``: the plugin, and in the background what it answers from.

Owns start and end, the connection to the cluster, and the refreshing. It must never answer before it has
known the cluster's volumes once, in this life or a former one (``known.py`` says why); until then nothing
listens, and an engine waits. Mounts outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from moorage.client.cluster import Cluster
from moorage.gateway.docker.discovery import DiscoveryFile
from moorage.gateway.docker.known import Known
from moorage.gateway.docker.plugin import DockerPlugin
from moorage.gateway.docker.volumes import HostVolumes
from moorage.wire.errors import MoorageError, Unavailable

log = logging.getLogger(__name__)

PERIOD_S = 5.0
LIST_TIMEOUT_S = 30.0
AGAIN_S = 1.0


class LazyCluster:
    """Connects when it is first needed: the service starts, and serves what needs no cluster, without one."""

    def __init__(self, connect: Callable[[], Awaitable[Cluster]]) -> None:
        self._connect = connect
        self._lock = asyncio.Lock()
        self._cluster: Cluster | None = None

    async def __call__(self) -> Cluster:
        async with self._lock:
            if self._cluster is None:
                self._cluster = await self._connect()
            return self._cluster

    async def close(self) -> None:
        if self._cluster is not None:
            await self._cluster.close()


class DockerService:
    def __init__(
        self,
        connect: Callable[[], Awaitable[Cluster]],
        *,
        state_dir: Path,
        root: Path,
        socket: Path,
        discovery: DiscoveryFile | None,
    ) -> None:
        self._cluster = LazyCluster(connect)
        self._volumes = HostVolumes(self._cluster, state_dir, root)
        self._volumes.prepare()
        self._known = Known(self._volumes.notes)
        self._soon = asyncio.Event()
        self._plugin = DockerPlugin(self._volumes, self._known, socket, self._soon.set)
        self._socket = socket
        self._discovery = discovery

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[set[asyncio.Task[None]]]:
        """Serves within, as long as the tasks that it gives do not end. Errors that trying again does not
        help are raised at the start."""
        try:
            await self._know()
            self._socket.parent.mkdir(parents=True, exist_ok=True)
            await self._plugin.start()
            tasks = {
                asyncio.ensure_future(self._for_ever(self._keep_known)),
                asyncio.ensure_future(self._for_ever(self._put_right)),
            }
            try:
                if self._discovery is not None:
                    self._discovery.write()
                yield tasks
            finally:
                if self._discovery is not None:
                    self._discovery.remove()
                for task in tasks:
                    task.cancel()
                await self._plugin.stop()
                await asyncio.wait(tasks)
        finally:
            await self._cluster.close()

    async def _know(self) -> None:
        while not self._known.loaded:
            try:
                await self._refresh()
            except Unavailable as error:
                log.warning("not serving yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def _for_ever(self, work: Callable[[], Awaitable[list[str]]]) -> None:
        said: list[str] = []
        while True:
            problems = await work()
            for problem in problems:
                if problem not in said:  # each once, while it lasts
                    log.warning("%s", problem)
            said = problems
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._soon.wait()
            self._soon.clear()

    async def _put_right(self) -> list[str]:
        return await self._volumes.put_right()

    async def _keep_known(self) -> list[str]:
        try:
            await self._refresh()
        except MoorageError as error:
            return [f"the cluster's volumes are as they were known: {error}"]
        return []

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                cluster = await self._cluster()
                self._known.asking()
                found = await cluster.list_volumes()
        except TimeoutError:
            raise Unavailable(f"no list of volumes within {LIST_TIMEOUT_S:g} s") from None
        for name in self._known.replace(found):
            self._volumes.forget(name)
