"""What a strand plays with: clients that do as they are told, links that are cut, and a stage that only it
may use.

Owns one strand's life. Its plot is a coroutine of the world, its players are coroutines in the clients'
processes; they tell each other how far they are by plain attributes of the :class:`Scene`. Whatever it has
done to the world is undone when its time is over. Players use the workload's own operations, so that all they
see is in the history; must never look behind the library.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from moorage.client.cluster import Cluster
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation import checks
from moorage.simulation.cluster import Client, Host, Machine
from moorage.simulation.network import Weather
from moorage.simulation.operation import SECTORS, Operation
from moorage.simulation.workload import SIZE, VOLUMES, Workload
from moorage.wire.errors import MoorageError

if TYPE_CHECKING:
    from moorage.simulation.nemesis import Nemesis

LOOK_S = 0.002  # how often the plot looks how far the players are
PACE_S = 0.01  # between what players do again and again
ATTACH_S = 5.0

Plot = Callable[["Scene"], Awaitable[None]]
Script = Callable[["Player"], Awaitable[None]]


class Over(Exception):
    """The time of the scene is over."""


class Scene:
    """``volume``: nobody else attaches it meanwhile (who had it before may have it still). ``blocks``: some
    of two chunks side by side, which the other programs seldom touch."""

    def __init__(self, nemesis: Nemesis, workload: Workload, rng: Random, durability: str = "") -> None:
        self.nemesis = nemesis
        self.workload = workload
        self.cluster = workload.cluster
        self.rng = rng
        self.loop = self.cluster.world.loop
        self.over = False
        modes = workload.history.durability
        fit = [name for name in VOLUMES if durability in ("", modes[name])] or VOLUMES
        self.volume = rng.choice([each for each in fit if each not in workload.reserved] or fit)
        chunk, count = self.cluster.tunables.chunk_size // BLOCK_SIZE, SIZE // BLOCK_SIZE
        first = rng.randrange(0, count - chunk, chunk)
        self.blocks = [at + each for at in (first, first + chunk) for each in rng.sample(range(chunk), 2)]
        self.one, self.other = rng.sample(self.cluster.clients, 2)
        # How far the players are.
        self.held = self.parted = self.taken = self.done = False
        self._undone: list[Callable[[], None]] = []

    def begin(self, plot: Plot) -> None:
        self._reserve(self.volume)
        task = self.loop.create_task(plot(self), name=plot.__name__)
        task.add_done_callback(self._ended)

    def reserve_all(self) -> bool:
        """Whether all volumes are for this scene alone; if they are, they are from now on."""
        others = [each for each in VOLUMES if each != self.volume]
        if any(each in self.workload.reserved for each in others):
            return False
        for each in others:
            self._reserve(each)
        return True

    def _reserve(self, volume: str) -> None:
        self.workload.reserved[volume] = self.workload.reserved.get(volume, 0) + 1

        def free() -> None:
            self.workload.reserved[volume] -= 1
            if not self.workload.reserved[volume]:
                del self.workload.reserved[volume]

        self._undone.append(free)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if (error := task.exception()) is not None and not isinstance(error, Over):
            self.loop.failures.append((None, error))

    def end(self) -> None:
        self.over = True
        for undo in reversed(self._undone):
            undo()
        self._undone.clear()

    def undo_later(self, undo: Callable[[], None]) -> None:
        self._undone.append(undo)

    # -- for plots -------------------------------------------------------------------------------------------

    async def until(self, reached: Callable[[], bool]) -> None:
        """Raises :class:`Over` when it does not come to that."""
        while not reached():
            await self.sleep(LOOK_S)

    async def sleep(self, seconds: float) -> None:
        """Raises :class:`Over` when the end came meanwhile: what was undone must not be done again."""
        await asyncio.sleep(seconds)
        if self.over:
            raise Over

    def play(self, client: Client, script: Script, *, near: str = "", ask: list[Host] | None = None) -> None:
        """``near``: the host that its reads prefer; ``ask``: the registry's members that it knows."""
        process = client.process
        if process is None or not process.alive or self.workload.stopping or self.over:
            return
        rng = Random(self.rng.random())

        async def run() -> None:
            with suppress(MoorageError):
                await script(Player(self, client, client.connect(near, ask), rng))

        process.start(run, f"{script.__name__} {self.volume}")

    def cut(self, some: list[Machine], others: list[Machine] | None = None) -> Callable[[], None]:
        """Between these and all others, or those."""
        if others is None:
            others = [each for each in self.cluster.machines if each not in some]
        undo = self.nemesis.both(some, others, Weather(cut=True))
        self._undone.append(undo)
        return undo

    def hold_up(self, client: Client) -> Callable[[], None]:
        """What it sends to hosts waits."""
        undo = self.nemesis.one_way([client], list(self.cluster.hosts), Weather(cut=True))
        self._undone.append(undo)
        return undo

    def leader(self) -> Host | None:
        """Who leads metadata, in its own opinion."""
        found = [host for host in self.cluster.hosts if host.ready and checks.leads_metadata(host)]
        return found[0] if len(found) == 1 else None

    def operations(self, *kinds: str, since: float) -> list[Operation]:
        """Of the first client's present life, on the volume, begun since then."""
        whose = f"{self.one.name}.{self.one.lives}", self.volume
        found = [each for each in self.workload.history.operations if (each.client, each.name) == whose]
        return [each for each in found if each.kind in kinds and each.invoked >= since]

    def follower(self) -> Host:
        """One that leads neither metadata nor the registry, if there is one."""
        hosts = self.cluster.hosts
        found = [
            host for host in hosts if not checks.leads_metadata(host) and not checks.leads_registry(host)
        ]
        return self.rng.choice(found or hosts)


class Player:
    """One client's part in a scene; runs in the client's process."""

    def __init__(self, scene: Scene, client: Client, connected: Cluster, rng: Random) -> None:
        self.scene = scene
        self.client = client
        self.connected = connected
        self.rng = rng
        self._workload = scene.workload

    async def until(self, reached: Callable[[], bool]) -> None:
        """Or until the scene is over."""
        while not (reached() or self.scene.over):  # noqa: ASYNC110 - a plain attribute, of another process
            await asyncio.sleep(LOOK_S)

    async def attach(self, timeout: float = ATTACH_S) -> Volume | None:
        return await self._workload.attach(self.client, self.connected, self.scene.volume, True, timeout)

    async def attach_other(self, name: str) -> Volume | None:
        """One that is not the scene's only one."""
        return await self._workload.attach(self.client, self.connected, name, True, ATTACH_S)

    async def look(self) -> Volume | None:
        return await self._workload.attach_to_read(self.client, self.connected, self.scene.volume)

    async def leave(self, volume: Volume) -> None:
        with suppress(MoorageError):
            await volume.detach(timeout=3.0)

    async def write(self, volume: Volume, block: int) -> None:
        first = block * SECTORS
        await self._workload.write(self.client, volume, first, first + SECTORS, False)

    async def write_all(self, volume: Volume) -> None:
        await asyncio.gather(*(self.write(volume, block) for block in self.scene.blocks))

    async def read_all(self, volume: Volume) -> None:
        await asyncio.gather(*(self.read(volume, block) for block in self.scene.blocks))

    async def read(self, volume: Volume, block: int) -> None:
        await self._workload.read(self.client, volume, block * SECTORS, (block + 1) * SECTORS)

    async def flush(self, volume: Volume) -> bool:
        return await self._workload.flush(self.client, volume)

    async def create(self, name: str) -> None:
        await self._workload.create(self.client, self.connected, name)

    async def resize(self, name: str, size: int) -> None:
        await self._workload.resize(self.client, self.connected, name, size)

    async def show(self, name: str) -> bool:
        return await self._workload.show(self.client, self.connected, name)

    async def meanwhile(
        self, volume: Volume, until: Callable[[], bool], what: Callable[[Volume], Awaitable[None]]
    ) -> None:
        """Again and again."""
        while not (until() or self.scene.over or volume.failed):
            await what(volume)
            await asyncio.sleep(PACE_S)
