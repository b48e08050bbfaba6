"""What programs do with snapshots: create them of one volume, or of both at one moment, read them, clone
them, delete them, roll back to one.

Owns these programs, and the names of the snapshots, each of which is given once in a history. Every operation
goes through the public library and into the history.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

from moorage.client.cluster import Cluster
from moorage.client.snapshots import Snapshots
from moorage.client.volume import Volume
from moorage.simulation.clones import ClonePrograms
from moorage.simulation.cluster import Client
from moorage.simulation.operation import SECTOR, SECTORS, Operation, writers
from moorage.wire.errors import MoorageError, NotFound

if TYPE_CHECKING:
    from moorage.simulation.workload import Workload

KEPT = 3  # of a volume, about
STEP = 64 * 1024 // SECTOR
DEPTH = 8  # reads at once


class SnapshotPrograms:
    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self.clones = ClonePrograms(workload)
        self.names: dict[str, list[str]] = {}  # of each volume, all that were ever asked for
        self._there: dict[str, list[str]] = {}  # those that were created well, and that nobody deletes yet
        self._whole: set[tuple[str, str]] = set()  # those of which everything has been read

    async def work(self, client: Client, cluster: Cluster, rng: Random) -> None:
        """One thing of all that can be done, with volumes that no strand has."""
        free = self._workload.free()
        if not free:
            return
        what, volume = rng.random(), rng.choice(free)
        there = self._there.get(volume, [])
        if what < 0.35 or not there:
            await self._create(client, cluster, free, volume, rng)
        elif what < 0.55:
            await self.read_some(client, cluster, volume, rng.choice(there), rng)
        elif what < 0.75:
            await self.clones.use(client, cluster, f"{volume}@{rng.choice(there)}", rng)
        elif what < 0.85:
            await self.delete(client, cluster, volume, rng.choice(there))
        else:
            await self.roll_back(client, cluster, volume, rng.choice(there), rng.random() < 0.5)

    async def beside(self, client: Client, cluster: Cluster, volume: str, rng: Random) -> None:
        """While the volume is written."""
        await asyncio.sleep(rng.uniform(0, 0.3))
        await self._create(client, cluster, self._workload.free(), volume, rng)
        there = self._there.get(volume, [])
        if there and rng.random() < 0.5:
            await self.read_some(client, cluster, volume, there[-1], rng)

    async def _create(
        self, client: Client, cluster: Cluster, free: list[str], volume: str, rng: Random
    ) -> None:
        """Where there are enough, one goes."""
        there = self._there.get(volume, [])
        if len(there) >= KEPT:
            await self.delete(client, cluster, volume, rng.choice(there))
        elif volume in free:
            await self.create(client, cluster, *(free if rng.random() < 0.5 else [volume]))

    # -- operations ----------------------------------------------------------------------------------------

    async def create(self, client: Client, cluster: Cluster, *volumes: str) -> bool:
        """Whether they are there."""
        workload = self._workload
        name = f"p{len(workload.history.operations) + 1}"
        # Metadata may take an epoch to have it made, where nobody holds a volume.
        takes = [workload.begin(client, "take", volume) for volume in volumes]
        made = [workload.begin(client, "create", f"{volume}@{name}") for volume in volumes]
        for operation in made:
            operation.size = 1
        for volume in volumes:
            self.names.setdefault(volume, []).append(name)
        try:
            await cluster.snapshots.create(name, *volumes)
        except MoorageError as error:
            workload.cluster.world.loop.tell(f"{client.name}: create {name}: {error}")
            for operation in made:
                workload.failed(operation, error)
                # It had been there for a moment, if another program has deleted it.
                operation.gone = operation.gone and not isinstance(error, NotFound)
        else:
            for volume, operation in zip(volumes, made, strict=True):
                workload.end(operation, True)
                self._there.setdefault(volume, []).append(name)
        for take in takes:
            workload.end(take)
        return all(operation.found for operation in made)

    async def delete(self, client: Client, cluster: Cluster, volume: str, name: str) -> None:
        workload = self._workload
        with suppress(ValueError):
            self._there[volume].remove(name)
        snapshot = f"{volume}@{name}"
        operation, clones = workload.begin(client, "delete", snapshot), self.clones.alive(snapshot)
        try:
            await cluster.snapshots.delete(snapshot)
            workload.end(operation, True)
            clones &= self.clones.alive(snapshot)
            assert not clones, f"{snapshot} is deleted, the parent of {clones}"
        except NotFound:
            workload.end(operation, False)
        except MoorageError as error:
            workload.cluster.world.loop.tell(f"{client.name}: delete {snapshot}: {error}")
            workload.failed(operation, error)

    async def attach(self, client: Client, cluster: Cluster, volume: str, name: str) -> Volume | None:
        """To read it."""
        workload = self._workload
        operation = workload.begin(client, "show", f"{volume}@{name}")
        try:
            found = await cluster.attach(f"{volume}@{name}", timeout=5.0, io_timeout=4.0)
        except NotFound:
            workload.end(operation, False)
        except MoorageError as error:
            workload.cluster.world.loop.tell(f"{client.name}: attach {volume}@{name}: {error}")
            workload.failed(operation, error)
        else:
            workload.end(operation, True)
            return found
        return None

    async def read_some(self, client: Client, cluster: Cluster, volume: str, name: str, rng: Random) -> None:
        """Everything that programs use, for a while."""
        source = await self.attach(client, cluster, volume, name)
        if source is None:
            return
        blocks = self._workload.blocks
        for _ in range(rng.choice((1, 2, 5))):
            await asyncio.gather(
                *(self._read(client, source, name, at * SECTORS, (at + 1) * SECTORS) for at in blocks)
            )
            await asyncio.sleep(rng.choice((0.0, 0.05, 0.5)))
        with suppress(MoorageError):
            await source.detach()

    async def read_all(self, client: Client, cluster: Cluster, volume: str, name: str) -> bool:
        """Every block; whether that was possible, now or before."""
        if (volume, name) in self._whole:
            return True
        source = await self.attach(client, cluster, volume, name)
        if source is None:
            return False
        end, well = source.size // SECTOR, True
        for first in range(0, end, STEP * DEPTH):
            pieces = range(first, min(first + STEP * DEPTH, end), STEP)
            read = [self._read(client, source, name, at, min(at + STEP, end)) for at in pieces]
            well = all(await asyncio.gather(*read)) and well
        if well:
            self._whole.add((volume, name))
        with suppress(MoorageError):
            await source.detach()
        return well

    async def _read(self, client: Client, source: Volume, name: str, first: int, end: int) -> bool:
        workload = self._workload
        operation = workload.begin(client, "shown", source.name.partition("@")[0], first, end)
        operation.snapshot = name
        try:
            data = await source.read(first * SECTOR, (end - first) * SECTOR)
        except MoorageError as error:
            workload.failed(operation, error)
            if isinstance(error, NotFound):
                self._was_gone(operation)
            return False
        workload.end(operation, writers(data))
        return True

    def _was_gone(self, read: Operation) -> None:
        """A read found out that the snapshot had been deleted."""
        history = self._workload.history
        show = history.begin(read.invoked, read.client, "show", f"{read.name}@{read.snapshot}")
        self._workload.end(show, False)

    async def roll_back(self, client: Client, cluster: Cluster, volume: str, name: str, force: bool) -> bool:
        """What it writes has to be known: all of it is read before."""
        if not await self.read_all(client, cluster, volume, name):
            return False
        workload, written = self._workload, list[Operation]()

        async def attach(name: str, *, force: bool = False, wait: float = 0.0, rollback: str = "") -> Volume:
            options: dict[str, Any] = {"force": force, "wait": wait, "timeout": 5.0, "io_timeout": 4.0}
            if not rollback:
                return await cluster.attach(name, **options)
            found = await workload.take(client, cluster, name, rollback=rollback, **options)
            operation = workload.begin(client, "restore", volume)
            operation.snapshot, operation.durable = rollback, True
            operation.epoch, operation.attached = found.epoch, workload.taken_by(found)
            written.append(operation)
            return found

        try:
            await Snapshots(cluster.snapshots._ask, attach).rollback(f"{volume}@{name}", force=force)
        except MoorageError as error:
            workload.cluster.world.loop.tell(f"{client.name}: rollback to {volume}@{name}: {error}")
            return False
        for operation in written:
            workload.end(operation)
        return True

    async def finish_rollback(self, client: Client, cluster: Cluster, volume: str, force: bool) -> None:
        """One that somebody has begun and nobody has ended: until then nobody attaches the volume."""
        with suppress(MoorageError):
            info = await cluster.show(volume)
            for each in info.snapshots if info.rollback else ():
                if each["id"] == info.rollback:
                    await self.roll_back(client, cluster, volume, each["name"], force)

    async def look(self, client: Client, cluster: Cluster, volume: str) -> None:
        """At the end: each that was ever asked for is there, all of it, or it is not. None comes or goes for
        ever."""
        while True:
            with suppress(MoorageError):
                listed = await cluster.snapshots.list(volume)
                if all(each.state == "ready" for each in listed):
                    break
            await asyncio.sleep(0.2)
        history = self._workload.history
        for name in self.names.get(volume, ()):
            while not await self.read_all(client, cluster, volume, name):
                last = history.operations[-1]
                if (last.kind, last.name, last.found) == ("show", f"{volume}@{name}", False):
                    break
                await asyncio.sleep(0.2)
        rng = Random(f"{volume} {listed}")
        while listed:
            if await self.clones.use(client, cluster, f"{volume}@{listed[-1].name}", rng):
                break
            await asyncio.sleep(0.2)
