"""Hosts and clients of a simulated cluster: the processes that operators and tasks would run.

Owns starting them as the command line does (``service.lifecycle``, all three services in one process per
host), starting them again when they end, and what a machine keeps between two lives: its directory, its
device.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from moorage.cli.services import build_host, build_node
from moorage.client.cluster import Cluster
from moorage.client.config import ClusterConfig
from moorage.service import lifecycle
from moorage.service.exits import Exit, exit_code
from moorage.service.launch import load_settings
from moorage.simulation import acknowledged
from moorage.simulation.disk import Device
from moorage.simulation.loop import Process, current
from moorage.simulation.tunables import Tunables
from moorage.simulation.world import World
from moorage.wire.errors import MoorageError
from moorage.wire.secret import ClusterSecret

PORT = 7400
SUPERVISOR_S = (0.02, 0.5)  # until a process that ended is started again

log = logging.getLogger("moorage.simulation")


class Machine:
    """What runs one process at a time, and starts it again when it ended. ``process``: its present life, or
    None."""

    def __init__(self, cluster: SimCluster, name: str, address: str) -> None:
        self.cluster = cluster
        self.name = name
        self.address = address
        self.process: Process | None = None
        self.wanted = True  # whether its supervisor starts it again

    def start(self) -> None:
        """Unless it runs."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL; its supervisor starts it again by and by."""
        if self.process is not None and self.process.alive:
            self.cluster.world.loop.note(f"{self.name} is killed at effect {self.process.effects}")
            self.process.kill()
            self.start_later()

    def lose_power(self) -> None:
        if self.process is not None and self.process.alive:
            self.cluster.world.loop.note(f"{self.name} loses power")
            self.cluster.world.network.power_off(self.address)
            self.process.kill()
            self.power_lost()
            self.start_later()

    def power_lost(self) -> None:
        """What it means for what the machine keeps."""

    def start_later(self) -> None:
        loop = self.cluster.world.loop
        loop.at(loop.rng.uniform(*SUPERVISOR_S), self._start_again)

    def _start_again(self) -> None:
        if self.wanted:
            self.start()


class Host(Machine):
    """A machine that runs ``moorage host``, or with ``spare`` only ``moorage node``."""

    def __init__(self, cluster: SimCluster, name: str, address: str, spare: bool) -> None:
        super().__init__(cluster, name, address)
        self.spare = spare
        self.shell: lifecycle.Process | None = None
        self.refuses = False  # its last life ended at once: bytes of its device have changed
        self.rate = 1.0
        self.wall_s = 0.0

    @property
    def device(self) -> Device:
        return self.cluster.world.device(self.address)

    def power_lost(self) -> None:
        self.device.lost_power()

    @property
    def ready(self) -> bool:
        """Whether all of its services serve."""
        shell, process = self.shell, self.process
        if shell is None or process is None or not process.alive or shell._ending is None:
            return False
        return not process.context.run(shell.not_ready)

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        world = self.cluster.world
        world.network.power_on(self.address)
        world.device(self.address)
        self.process = process = Process(world.loop, self.name, self.address, self.rate, self.wall_s)
        process.on_death = self.kill
        world.loop.note(f"{self.name} starts")
        self.shell = None
        (world.directory / self.name).mkdir(exist_ok=True)
        process.start(self._main, f"main of {self.name}")

    async def _main(self) -> None:
        process = self.process
        assert process is not None
        cluster = self.cluster
        flags = {
            "name": self.name,
            "data_dir": str(cluster.world.directory / self.name),
            "secret_file": str(cluster.secret_file),
            "bind": self.address,
            "advertise": self.address,
            "port": str(PORT),
            "http_port": str(PORT + 1),
            "capacity": str(cluster.tunables.capacity),
        }
        if self.spare:
            flags |= {"registry": cluster.registry_of(cluster.masters)}
        else:
            peers = ",".join(f"{host.name}={host.address}:{PORT}" for host in cluster.masters)
            flags |= {"peers": peers, "lease_ms": str(cluster.tunables.lease_ms)}
            flags |= cluster.tunables.patience
        service, build = ("node", build_node) if self.spare else ("host", build_host)
        settings = load_settings(service, flags, {})
        self.shell = shell = lifecycle.Process(settings, cluster.secret, None, build)
        code = await shell.run()
        cluster.world.loop.note(f"{self.name} ends with {code!r}")
        cluster.ended(self, process, code)


class Client(Machine):
    """A machine on which a program uses volumes; each of its lives runs ``program``."""

    def __init__(self, cluster: SimCluster, name: str, address: str) -> None:
        super().__init__(cluster, name, address)
        self.program: Callable[[Client, Cluster], Awaitable[None]] | None = None
        self.lives = 0
        self.ended = False  # its program has

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        world = self.cluster.world
        world.network.power_on(self.address)
        self.process = Process(world.loop, self.name, self.address, 1 + world.rng.uniform(-0.01, 0.01))
        self.process.on_death = self.kill
        self.lives += 1
        self.ended = False
        world.loop.note(f"{self.name} starts")
        self.process.start(self._main, f"main of {self.name}")

    async def _main(self) -> None:
        assert self.program is not None
        await self.program(self, self.connect())
        self.ended = True

    def connect(self, near: str = "", ask: list[Host] | None = None) -> Cluster:
        """In its process. ``near``: the host that reads prefer; ``ask``: members of the registry to know."""
        cluster = self.cluster
        registry = cluster.registry_of(ask or cluster.masters)
        return Cluster(ClusterConfig(registry, cluster.secret_file), cluster.secret, host=near or self.name)


class SimCluster:
    """``masters``: the hosts that run the registry and metadata too; the others are spares."""

    def __init__(self, world: World, tunables: Tunables, masters: int, clients: int) -> None:
        self.world = world
        self.tunables = tunables
        self.secret_file = world.directory / "secret"
        self.secret = ClusterSecret.create(self.secret_file)
        self.hosts = [
            Host(self, f"h{n}", f"10.0.0.{n}", n > masters) for n in range(1, masters + tunables.spares + 1)
        ]
        self.masters = self.hosts[:masters]
        self.clients = [Client(self, f"c{n}", f"10.0.1.{n}") for n in range(1, clients + 1)]
        for host in self.hosts:
            host.device.latency_s = tunables.disk_s
            host.rate, host.wall_s = 1 + world.rng.uniform(-0.01, 0.01), world.rng.uniform(-100, 100)

    @staticmethod
    def registry_of(hosts: list[Host]) -> str:
        return ",".join(f"{host.address}:{PORT}" for host in hosts)

    @property
    def machines(self) -> list[Machine]:
        return [*self.hosts, *self.clients]

    def ended(self, host: Host, process: Process, code: Exit) -> None:
        """A service ended by itself, as its contract allows: its supervisor starts it again."""
        process.kill()
        # It may refuse: what to do next is for an operator to say.
        host.refuses = code == Exit.CORRUPT and host.device.damaged
        host.start_later()


class _Http:
    """Nobody asks over HTTP here."""

    def __init__(self, **_: Any) -> None:
        pass

    def add_routes(self, routes: Any) -> None:
        pass

    async def start(self, host: str, port: int) -> int:
        return port

    async def stop(self) -> None:
        pass


async def _announce(self: lifecycle.Process, launch: Any) -> None:
    """Who is ready is seen from outside."""


def _complain(program: str, error: MoorageError) -> Exit:
    log.error("%s", error)
    return exit_code(error)


class _Timer:
    def __init__(self, *_: Any) -> None:
        self.daemon = True

    def start(self) -> None:
        pass


class _Story(logging.Handler):
    """What the processes log is part of the story."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = current.get()
        name = "world" if process is None else process.name
        text = f"{name}: {record.levelname} {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" [{record.exc_info[1]!r}]"
        self._world.loop.tell(text)


@contextmanager
def staged(world: World, tunables: Tunables) -> Iterator[None]:
    """Put what processes have around them in place, and the tunables."""
    logger = logging.getLogger("moorage")
    handler = _Story(world)
    before = logger.level, logger.propagate
    with ExitStack() as stack:
        for target, name, stand_in in [
            (lifecycle, "HttpServer", _Http),
            (lifecycle, "ProcessCollector", lambda **_: None),
            (lifecycle, "PlatformCollector", lambda **_: None),
            (lifecycle, "threading", SimpleNamespace(Timer=_Timer)),
            (lifecycle.Process, "_announce", _announce),
            (lifecycle, "complain", _complain),
            *tunables.patches(),
            *acknowledged.patches(),
        ]:
            stack.enter_context(patch.object(target, name, stand_in))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            world.close()  # while the patches and the logger are in place
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]
