"""A cluster whose hosts, and clients, have addresses of their own on this machine.

Owns the host processes and the network that they are in. Where a host's processes and mounts must be its own
as well, :class:`~moorage.cli.machines.MachineCluster` builds on this.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalHost
from moorage.cli.network import Network
from moorage.wire.errors import Unavailable
from moorage.wire.secret import ClusterSecret

HOSTS = ("h1", "h2", "h3")
PORT, HTTP_PORT = 7070, 7071


class NetworkCluster:
    """Hosts h1..h3 and ``clients``, each in a namespace of its own. ``directory`` is made."""

    def __init__(
        self, directory: Path, network: Network, *, clients: Sequence[str] = ("c1",), capacity: str = "512M"
    ) -> None:
        self.directory = directory.absolute()
        self.network = network
        self.hosts: list[LocalHost] = []
        self.secret_file = self.directory / "secret"
        self.registry = ""
        self._clients = clients
        self._capacity = capacity
        self.directory.mkdir(parents=True)
        ClusterSecret.create(self.secret_file)

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command has to begin with to run at a host or a client."""
        return self.network.prefix(name)

    async def start(self) -> None:
        """When this fails, :meth:`close` still has to be called."""
        for name in (*HOSTS, *self._clients):
            self.network.add(name)
        self.registry = ",".join(f"{self.network.addresses[name]}:{PORT}" for name in HOSTS)
        await self._prepare()
        self.hosts = [
            LocalHost(name, self.directory / name, self._options(name), self.prefix(name)) for name in HOSTS
        ]
        for host in self.hosts:
            await host.launch()
        for host in self.hosts:
            await host.wait_ready()

    async def _prepare(self) -> None:
        """What has to be there before the hosts are launched."""

    def _options(self, name: str) -> dict[str, str]:
        where = self.network.addresses
        options = {
            "NAME": name,
            "DATA_DIR": str(self.directory / name / "data"),
            "BIND": where[name],
            "PORT": str(PORT),
            "HTTP_PORT": str(HTTP_PORT),
            "PEERS": ",".join(f"{each}={where[each]}:{PORT}" for each in HOSTS),
            "SECRET_FILE": str(self.secret_file),
            "CAPACITY": self._capacity,
        }
        return {f"MOORAGE_{key}": value for key, value in options.items()}

    def environment(self, name: str) -> dict[str, str]:
        """Of a client program at a host or a client."""
        return {"MOORAGE_REGISTRY": self.registry, "MOORAGE_SECRET_FILE": str(self.secret_file)}

    def client(self, name: str, *arguments: str) -> ClientProcess:
        """`moorage ARGUMENTS` at ``name``."""
        log = self.directory / f"{name}.log"
        return ClientProcess(list(arguments), self.environment(name), log, self.prefix(name))

    async def command(self, name: str, *arguments: str) -> str:
        """`moorage ARGUMENTS` at ``name``, to its end; what it printed. Raises Unavailable with what it
        said."""
        process = await asyncio.create_subprocess_exec(
            *self.prefix(name),
            *(sys.executable, "-m", "moorage.cli.main", *arguments),
            env={**os.environ, **self.environment(name)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        printed, said = await process.communicate()
        if process.returncode:
            raise Unavailable(f"moorage {' '.join(arguments)} at {name}: {said.decode().strip()[-500:]}")
        return printed.decode()

    async def close(self) -> None:
        try:
            for host in self.hosts:
                await host.kill()
        finally:
            self.network.close()
