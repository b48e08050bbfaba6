"""What programs do with clones: create one of a snapshot, read it and write to it, let go of it, take it up
again, delete it.

Owns these programs, and the judgement of what they read: a block that nobody has written to is a read of the
snapshot, for the history to judge; one that was written has what was written last. Only the program that
created a clone uses it, so no order has to be found. It goes through the public library.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from moorage.client.cluster import Cluster
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation.cluster import Client
from moorage.simulation.operation import SECTOR, SECTORS, Block, content, writers
from moorage.wire.errors import MoorageError, NotEnoughHosts, NotFound

if TYPE_CHECKING:
    from moorage.simulation.workload import Workload

FIRST_WRITE = 1 << 40  # apart from the numbers of operations


class ClonePrograms:
    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._numbers = count(FIRST_WRITE)
        self._alive: defaultdict[str, set[str]] = defaultdict(set)

    def alive(self, snapshot: str) -> set[str]:
        """Clones of ``VOLUME@SNAPSHOT`` that are there, and that nobody deletes yet."""
        return set(self._alive[snapshot])

    async def use(self, client: Client, cluster: Cluster, snapshot: str, rng: Random) -> bool:
        """Whether that was possible, to the end, or there is no room for a clone."""
        workload, well = self._workload, True
        name = f"c{len(workload.history.operations) + 1}"
        try:
            await self._create(client, cluster, name, snapshot)
        except MoorageError as error:
            return isinstance(error, NotEnoughHosts)  # they are drained
        self._alive[snapshot].add(name)
        clone = Clone(workload, client, name, snapshot, self._numbers, rng.sample(workload.blocks, 5))
        for _ in range(rng.randint(1, 3)):
            well = await clone.hold(cluster, rng) and well
            await asyncio.sleep(rng.choice((0.0, 0.1, 1.0)))
        self._alive[snapshot].remove(name)
        await workload.delete(client, cluster, name, force=True)
        return well

    async def delete_all(self, client: Client, cluster: Cluster) -> None:
        """At the end: those that a program has left, of which nobody makes all replicas alike any more."""
        while left := [each.name for each in await cluster.list_volumes() if each.parent is not None]:
            for name in left:
                await self._workload.delete(client, cluster, name, force=True)
            await asyncio.sleep(0.2)

    async def _create(self, client: Client, cluster: Cluster, name: str, snapshot: str) -> None:
        workload = self._workload
        show = workload.begin(client, "show", snapshot)
        made = workload.begin(client, "create", name)
        try:
            info = await cluster.create_volume(name, parent=snapshot, timeout=5.0)
        except MoorageError as error:
            workload.failed(made, error)
            if isinstance(error, NotFound):
                workload.end(show, False)
            else:
                workload.failed(show, error)
            raise
        made.size = info.size
        workload.end(made, True)
        workload.end(show, True)


class Clone:
    def __init__(
        self,
        workload: Workload,
        client: Client,
        name: str,
        snapshot: str,
        numbers: count[int],
        blocks: list[int],
    ) -> None:
        """``blocks``: those that are used."""
        self._workload = workload
        self._client = client
        self._name = name
        self._snapshot = snapshot
        self._numbers = numbers
        self._blocks = blocks
        self._left = False  # without a detach
        self._known: dict[int, Block | None] = {}  # what was read; None: a write of unknown outcome

    async def hold(self, cluster: Cluster, rng: Random) -> bool:
        """For a while; whether that was possible."""
        try:
            force = self._left or rng.random() < 0.5
            self._left = True
            volume = await cluster.attach(self._name, force=force, timeout=5.0, io_timeout=4.0)
            self._workload.on_attach(volume)
            for _ in range(rng.choice((2, 6, 20))):
                await self._operate(volume, rng)
            if rng.random() < 0.8:
                await volume.detach(timeout=3.0)
                self._left = False
            return True
        except NotFound as error:
            raise AssertionError(f"clone {self._name}, or {self._snapshot}, is gone: {error}") from error
        except MoorageError as error:
            self._workload.cluster.world.loop.tell(f"{self._client.name}: clone {self._name}: {error}")
            return False

    async def _operate(self, volume: Volume, rng: Random) -> None:
        block = rng.choice(self._blocks)
        if rng.random() < 0.5 or block not in self._known:
            await self._read(volume, block)
        else:
            first, end = 0, SECTORS
            if rng.random() < 0.3:
                first = rng.randrange(SECTORS)
                end = rng.randint(first + 1, SECTORS)
            await self._write(volume, block, first, end, rng.random())

    async def _read(self, volume: Volume, block: int) -> None:
        workload, shown = self._workload, None
        if block not in self._known:
            parent, _, name = self._snapshot.partition("@")
            shown = workload.begin(self._client, "shown", parent, block * SECTORS, (block + 1) * SECTORS)
            shown.snapshot = name
        try:
            found = writers(await volume.read(block * BLOCK_SIZE, BLOCK_SIZE))
        except MoorageError as error:
            if shown is not None:
                workload.failed(shown, error)
            raise
        if shown is not None:
            workload.end(shown, found)
        known = self._known.setdefault(block, found)
        assert known in (None, found), (
            f"clone {self._name} of {self._snapshot} block {block} is {found}, not {known}"
        )

    async def _write(self, volume: Volume, block: int, first: int, end: int, what: float) -> None:
        was, number = self._known[block], 0
        self._known[block] = None
        at, size = block * BLOCK_SIZE + first * SECTOR, (end - first) * SECTOR
        if what < 0.7:
            number = next(self._numbers)
            await volume.write(at, content(number, end - first))
        elif what < 0.85:
            await volume.discard(at, size)
        else:
            await volume.write_zeroes(at, size)
        if was is not None:
            self._known[block] = (*was[:first], *(number,) * (end - first), *was[end:])
