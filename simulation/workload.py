"""What programs do with volumes: attach, sometimes by force, write, read, discard, flush, resize, detach,
again.

Owns the programs and their choices, from the seed and the number of the life. Every operation goes through
the public library and into the history. Must never look behind it (``on_attach`` may).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from random import Random
from typing import Any

from moorage.client.cluster import Cluster
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation.cluster import Client, SimCluster
from moorage.simulation.history import History
from moorage.simulation.nbd import NbdVolume
from moorage.simulation.operation import SECTOR, SECTORS, SMALLER, Operation, content, writers
from moorage.simulation.snapshots import SnapshotPrograms
from moorage.wire.errors import ConnectionLost, Invalid, MoorageError, NameTaken, NotFound

MIB = 1 << 20
VOLUMES = ("v0", "v1")
SIZE = 8 * MIB  # two chunks of the largest size
SCRATCH = ("s0", "s1")  # names that come and go


Usable = Volume | NbdVolume


class Workload:
    """One history's programs; ``stopping`` ends them between operations. ``snapshots``: what they do with
    these, if anything."""

    def __init__(
        self, cluster: SimCluster, seed: int, durabilities: tuple[str, str], snapshots: bool = False
    ) -> None:
        self.cluster = cluster
        self.history = History(dict(zip(VOLUMES, durabilities, strict=True)))
        self.stopping = False
        self.done = 0  # operations that were answered well
        self.unknown = 0  # those that nobody knows the outcome of
        self.reserved: dict[str, int] = {}  # volumes that the programs leave to so many strands
        self.on_attach: Callable[[Volume], None] = lambda volume: None
        self._took: dict[Usable, int] = {}  # the number of the take
        self._as_of: dict[Usable, float] = {}  # read-only attachments: what they read is not older
        self._seed = seed
        self.snapshots = SnapshotPrograms(self) if snapshots else None
        rng = Random(f"{seed} blocks")
        blocks, chunk = SIZE // BLOCK_SIZE, cluster.tunables.chunk_size // BLOCK_SIZE
        # Some side by side, some at the edges of chunks and of the volume.
        edges = [0, 1, chunk - 1, chunk, blocks // 2 - 1, blocks // 2, blocks - 1]
        start = rng.randrange(8, blocks - 20)
        self.blocks = sorted({*edges, *range(start, start + 5), rng.randrange(blocks), rng.randrange(blocks)})

    # -- the programs ---------------------------------------------------------------------------------------

    async def program(self, client: Client, cluster: Cluster) -> None:
        rng = Random(f"{self._seed} {client.name} {client.lives}")
        for name, durability in self.history.durability.items():
            await self.create(client, cluster, name, durability)
        with contextlib.suppress(MoorageError):
            await cluster.set_quota("default")  # any: from now on volumes are charged
        while not self.stopping:
            if self.snapshots is not None and rng.random() < 0.5:
                await self.snapshots.work(client, cluster, rng)
            what, free = rng.random(), self.free()
            if what < 0.1 or not free:
                await self._come_and_go(client, cluster, rng)
            elif what < 0.18:
                await self._peek(client, cluster, rng.choice(free), rng)
            elif self.snapshots is not None and len(free) > 1 and rng.random() < 0.3:
                await asyncio.gather(
                    *(self._hold(client, cluster, name, Random(rng.random()), by_nbd=0.0) for name in free)
                )
            else:
                await self._hold(client, cluster, rng.choice(free), rng)
            await asyncio.sleep(rng.uniform(0.01, 0.4))

    def free(self) -> list[str]:
        """Volumes that no strand has."""
        return [each for each in VOLUMES if each not in self.reserved]

    async def operate(self, client: Client, cluster: Cluster) -> None:
        """An operator, who empties one host after the other."""
        rng = Random(f"{self._seed} {client.name} {client.lives}")
        while not self.stopping:
            await asyncio.sleep(rng.uniform(0.1, 1.5))
            host = rng.choice(self.cluster.hosts).name
            with contextlib.suppress(MoorageError):
                if rng.random() < 0.6:
                    await cluster.places.drain("host", host, force=rng.random() < 0.1)
                else:
                    await cluster.places.undrain("host", host)

    async def create(self, client: Client, cluster: Cluster, name: str, durability: str = "sync") -> None:
        operation = self.begin(client, "create", name)
        operation.size = SIZE
        try:
            await cluster.create_volume(
                name, SIZE, durability=durability, groups=self.cluster.tunables.groups, timeout=5.0
            )
            self.end(operation, True)
        except NameTaken:
            operation.gone = True  # perhaps by a creation that is given up later: it says nothing
        except MoorageError as error:
            self.failed(operation, error)

    async def _come_and_go(self, client: Client, cluster: Cluster, rng: Random) -> None:
        """Volumes that nobody attaches: only whether they are there is looked at."""
        name = rng.choice(SCRATCH)
        for _ in range(rng.randint(1, 4)):
            what = rng.random()
            if what < 0.3:
                await self.create(client, cluster, name)
            elif what < 0.5:
                await self.delete(client, cluster, name)
            elif what < 0.7:
                await self.resize(client, cluster, name, SIZE + rng.randint(0, 4) * MIB)
            else:
                await self.show(client, cluster, name)

    async def delete(self, client: Client, cluster: Cluster, name: str, force: bool = False) -> None:
        operation = self.begin(client, "delete", name)
        try:
            await cluster.delete(name, force=force)
            self.end(operation, True)
        except NotFound:
            self.end(operation, False)
        except MoorageError as error:
            self.failed(operation, error)

    async def resize(self, client: Client, cluster: Cluster, name: str, size: int) -> None:
        operation = self.begin(client, "resize", name)
        operation.size = size
        try:
            await cluster.resize(name, size)
            self.end(operation, True)
        except Invalid as error:
            if error.outcome == "unknown":
                self.failed(operation, error)
            elif isinstance(error, NotFound):
                self.end(operation, False)
            elif "size" in error.details:
                self.end(operation, SMALLER)
            else:
                operation.gone = True  # it comes just now: it says nothing
        except MoorageError as error:
            self.failed(operation, error)

    async def show(self, client: Client, cluster: Cluster, name: str) -> bool:
        """Whether it is known to be there."""
        operation = self.begin(client, "show", name)
        try:
            info = await cluster.show(name)
            operation.gone = info.state != "ready"  # neither there nor not
            self.end(operation, info.size)
            return not operation.gone
        except NotFound:
            self.end(operation, 0)
        except MoorageError as error:
            self.failed(operation, error)
        return False

    async def _peek(self, client: Client, cluster: Cluster, name: str, rng: Random) -> None:
        volume = await self.attach_to_read(client, cluster, name)
        if volume is not None:
            for _ in range(rng.randint(1, 8)):
                first = rng.choice(self.blocks) * SECTORS
                await self.read(client, volume, first, first + SECTORS)
            with contextlib.suppress(MoorageError):
                await volume.detach()

    async def attach_to_read(self, client: Client, cluster: Cluster, name: str) -> Volume | None:
        """Beside a writer it reads a prefix of that one's log: nothing older than what the last attach that
        had returned found, and nothing that this one has lost. Where nobody held the volume, and nobody came
        meanwhile, it sees all that had returned before."""
        began, timeout = self.cluster.world.loop.now, 5.0
        held = True
        with contextlib.suppress(MoorageError):
            held = (await cluster.show(name)).holder is not None
        operation = self.begin(client, "take", name)  # it may take an epoch to recover, and never says which
        try:
            volume = await cluster.attach(name, read_only=True, timeout=timeout, io_timeout=4.0)
        except MoorageError:
            self.end(operation)
            return None
        self.end(operation)
        takes = [each for each in self.history.operations if each.kind == "take" and each.name == name]
        before = [each for each in takes if each.returned is not None and each.returned < began]
        alone = len(before) == len(takes) - 1
        in_time = self.cluster.world.loop.now - operation.invoked < timeout - 1  # else it reads what it finds
        begun = max((each.returned or 0.0 for each in before if each.found), default=0.0)
        after = math.nextafter(begun, math.inf)  # at the same time would be beside it
        self._as_of[volume] = operation.invoked if alone and in_time and not held else after
        return volume

    async def _hold(
        self, client: Client, cluster: Cluster, name: str, rng: Random, by_nbd: float = 0.3
    ) -> None:
        volume = await self.attach(client, cluster, name, rng.random() < 0.5, rng.choice((0.5, 3.0, 8.0)))
        if volume is None:
            if self.snapshots is not None:
                await self.snapshots.finish_rollback(client, cluster, name, rng.random() < 0.3)
            return
        if rng.random() < by_nbd:
            with contextlib.suppress(ConnectionLost):  # before anything was asked
                async with NbdVolume(volume, Random(rng.random())) as exported:
                    self._took[exported] = self._took[volume]
                    await self._use(client, cluster, exported, rng)
        else:
            await self._use(client, cluster, volume, rng)
        if rng.random() < 0.8:
            with contextlib.suppress(MoorageError):
                await volume.detach(timeout=3.0)
        # else: it is left, as by a program that forgot it; its lease is renewed as long as it lives

    async def _use(self, client: Client, cluster: Cluster, volume: Usable, rng: Random) -> None:
        end = asyncio.get_running_loop().time() + rng.choice((0.1, 0.5, 2.0))
        workers = [
            asyncio.create_task(self._work(client, volume, Random(rng.random()), end), name=f"worker {at}")
            for at in range(rng.choice((1, 4, 10)))
        ]
        if self.snapshots is not None and rng.random() < 0.5:
            beside = self.snapshots.beside(client, cluster, volume.name, rng)
            workers.append(asyncio.create_task(beside, name="beside"))
        await asyncio.gather(*workers)

    async def attach(
        self, client: Client, cluster: Cluster, name: str, force: bool, timeout: float
    ) -> Volume | None:
        try:
            return await self.take(client, cluster, name, force=force, timeout=timeout, io_timeout=4.0)
        except MoorageError as error:
            self.cluster.world.loop.tell(f"{client.name}: attach: {error}")
            return None

    async def take(self, client: Client, cluster: Cluster, name: str, **options: Any) -> Volume:
        operation = self.begin(client, "take", name)
        operation.snapshot = options.get("rollback", "")
        try:
            volume = await cluster.attach(name, **options)
        except MoorageError:
            self.end(operation, None)  # an epoch may have been taken all the same, but no more after this
            raise
        self.end(operation, volume.epoch)
        self._took[volume] = operation.number
        self.on_attach(volume)
        return volume

    def taken_by(self, volume: Usable) -> int:
        """The number of the take."""
        return self._took[volume]

    async def _work(self, client: Client, volume: Usable, rng: Random, end: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < end and volume.failed is None and not self.stopping:
            before = self.unknown
            await self._operate(client, volume, rng)
            if self.unknown != before:
                return  # as a file system would: what it finds next would be read through many maybes
            if rng.random() < 0.5:
                await asyncio.sleep(rng.choice((0.0, 0.001, 0.02)))

    async def _operate(self, client: Client, volume: Usable, rng: Random) -> None:
        first = rng.choice(self.blocks) * SECTORS
        count = SECTORS * rng.choice((1, 1, 1, 2, 3))
        if rng.random() < 0.2:  # not aligned to blocks
            first += rng.randrange(SECTORS)
            count = rng.randint(1, 12)
        end = min(first + count, SIZE // SECTOR)
        what = rng.random()
        if what < 0.45:
            await self.write(client, volume, first, end, rng.random() < 0.1)
        elif what < 0.80:
            await self.read(client, volume, first, end)
        elif what < 0.88:
            await self.flush(client, volume)
        elif what < 0.96:
            await self._zero(client, volume, first, end, rng.random() < 0.5)
        else:
            await self._fill(client, volume, rng)

    async def write(self, client: Client, volume: Usable, first: int, end: int, fua: bool) -> None:
        operation = self.begin(client, "write", volume.name, first, end)
        operation.durable, operation.epoch = fua, volume.epoch
        operation.attached = self._took[volume]
        try:
            await volume.write(first * SECTOR, content(operation.number, end - first), fua=fua)
            self.end(operation)
        except MoorageError as error:
            self.failed(operation, error)

    async def read(self, client: Client, volume: Usable, first: int, end: int) -> bool:
        operation = self.begin(client, "read", volume.name, first, end)
        operation.since = self._as_of.get(volume)
        operation.attached = self._took.get(volume, 0)
        try:
            data = await volume.read(first * SECTOR, (end - first) * SECTOR)
        except MoorageError as error:
            self.failed(operation, error)
            return False
        self.end(operation, writers(data))
        return True

    async def flush(self, client: Client, volume: Usable) -> bool:
        operation = self.begin(client, "flush", volume.name)
        operation.attached = self._took[volume]
        try:
            await volume.flush()
        except MoorageError as error:
            self.failed(operation, error)
            return False
        self.end(operation)
        return True

    async def _zero(self, client: Client, volume: Usable, first: int, end: int, discard: bool) -> None:
        operation = self.begin(client, "zero", volume.name, first, end)
        operation.epoch, operation.attached = volume.epoch, self._took[volume]
        try:
            at, size = first * SECTOR, (end - first) * SECTOR
            await (volume.discard(at, size) if discard else volume.write_zeroes(at, size))
            self.end(operation)
        except MoorageError as error:
            self.failed(operation, error)

    async def _fill(self, client: Client, volume: Usable, rng: Random) -> None:
        """Room is used and given back, by the piece and by whole chunks."""
        sectors = rng.choice((16, 64, 256)) * SECTORS
        first = rng.randrange(0, SIZE // SECTOR - sectors)
        what = rng.random()
        if what < 0.6:
            await self.write(client, volume, first, first + sectors, False)
        elif what < 0.8:
            await self._zero(client, volume, first, first + sectors, True)
        else:
            chunk = self.cluster.tunables.chunk_size // SECTOR
            first = rng.randrange(SIZE // SECTOR // chunk) * chunk
            end = min(first + rng.choice((1, 1, 2, 5)) * chunk, SIZE // SECTOR)
            await self._zero(client, volume, first, end, True)

    # -- the record ------------------------------------------------------------------------------------------

    def begin(self, client: Client, kind: str, name: str, first: int = 0, end: int = 0) -> Operation:
        now = self.cluster.world.loop.now
        return self.history.begin(now, f"{client.name}.{client.lives}", kind, name, first, end)

    def end(self, operation: Operation, found: Any = None) -> None:
        operation.returned = self.cluster.world.loop.now
        operation.found = found
        self.done += 1

    def failed(self, operation: Operation, error: MoorageError) -> None:
        operation.gone = operation.kind in ("read", "shown", "show") or error.outcome == "not_done"
        self.unknown += not operation.gone
