"""Hosts and clients in network namespaces of their own, joined by a bridge: a network that can be broken.

Nothing of it is in the machine's own network: the bridge has a namespace too. Packets are dropped by iptables
(in the namespace that they leave or reach), links are made slow by tc. ``close`` removes everything; names
carry the test's process and a count, so that two runs never meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalHost
from moorage.wire.secret import ClusterSecret

TOOLS = ("ip", "iptables", "nsenter", "tc")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PORT, HTTP_PORT, RELAY_PORT = 7070, 7071, 7079
_counter = itertools.count()


def unusable() -> str:
    """Why namespaces cannot be made here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed: `make setup` as root installs it"
    network = Network()
    try:
        network.add("probe")
        network.run("probe", "iptables", *_LOSS, "0.5", "-j", "DROP")
    except OSError as error:
        return f"network namespaces cannot be made here: {error}"
    finally:
        network.close()
    return ""


_LOSS = ("-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability")


class Network:
    def __init__(self) -> None:
        self._tag = f"moo{os.getpid()}n{next(_counter)}"
        self._made: list[str] = []
        self.addresses: dict[str, str] = {}
        self._namespace("hub")
        self._ip("-n", self._name("hub"), "link", "add", "br0", "type", "bridge")
        self._ip("-n", self._name("hub"), "link", "set", "br0", "up")

    def _name(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _namespace(self, name: str) -> None:
        self._made.append(self._name(name))
        self._ip("netns", "add", self._name(name))
        self._ip("-n", self._name(name), "link", "set", "lo", "up")

    def add(self, name: str) -> None:
        """A namespace with one link to the bridge."""
        self._namespace(name)
        self.addresses[name] = address = f"10.77.0.{len(self.addresses) + 1}"
        space, hub = self._name(name), self._name("hub")
        self._ip("link", "add", name, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("-n", hub, "link", "set", name, "master", "br0", "up")
        self._ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", space, "link", "set", "eth0", "up")

    def _ip(self, *arguments: str) -> None:
        _run("ip", *arguments)

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command has to begin with to run in there."""
        program = shutil.which("nsenter", path=PATH)
        assert program is not None
        return (program, f"--net=/run/netns/{self._name(name)}")

    def run(self, name: str, *command: str) -> None:
        _run(*self.prefix(name), *command)

    def close(self) -> None:
        """Processes in there are the caller's; their sockets die with the links."""
        for name in reversed(self._made):
            with contextlib.suppress(OSError):
                _run("ip", "netns", "del", name)

    # -- faults -------------------------------------------------------------------------------------------

    def deafen(self, name: str, *others: str) -> None:
        """Nothing from ``others`` reaches ``name`` any more; what it sends still arrives."""
        for other in others:
            self.run(name, "iptables", "-A", "INPUT", "-s", self.addresses[other], "-j", "DROP")

    def cut(self, some: list[str], others: list[str]) -> None:
        """No packet passes between the two sides."""
        for name in some:
            self.deafen(name, *others)
        for name in others:
            self.deafen(name, *some)

    def others(self, name: str) -> list[str]:
        return [each for each in self.addresses if each != name]

    def lose(self, share: float) -> None:
        """That share of all packets is lost, in each namespace."""
        for name in self.addresses:
            self.run(name, "iptables", *_LOSS, str(share), "-i", "eth0", "-j", "DROP")

    def slow(self, name: str, rate: str) -> None:
        """What leaves ``name`` is held to ``rate``, and so is what is sent to it."""
        shape = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms")
        self.run(name, "tc", "qdisc", "replace", "dev", "eth0", *shape)
        self.run("hub", "tc", "qdisc", "replace", "dev", name, *shape)

    def dropped(self) -> int:
        """Packets that were dropped since the last ``heal``."""
        count = 0
        for name in self.addresses:
            lines = _run(*self.prefix(name), "iptables", "-L", "INPUT", "-n", "-v", "-x").splitlines()[2:]
            count += sum(int(line.split()[0]) for line in lines)
        return count

    def heal(self) -> None:
        for name in self.addresses:
            self.run(name, "iptables", "-F")
            with contextlib.suppress(OSError):  # there may be none
                self.run(name, "tc", "qdisc", "del", "dev", "eth0", "root")
                self.run("hub", "tc", "qdisc", "del", "dev", name, "root")


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env={**os.environ, "PATH": PATH}
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class NetworkCluster:
    """Hosts h1..h3 and clients c1, c2, each in a namespace of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.hosts: list[LocalHost] = []
        self._relays: list[asyncio.subprocess.Process] = []
        directory.mkdir()
        self.secret_file = directory / "secret"
        ClusterSecret.create(self.secret_file)

    async def start(self) -> None:
        names = ("h1", "h2", "h3")
        for name in (*names, "c1", "c2"):
            self.network.add(name)
        where = self.network.addresses
        self.registry = ",".join(f"{where[name]}:{PORT}" for name in names)
        for name in names:
            options = {
                "NAME": name,
                "DATA_DIR": str(self.directory / name / "data"),
                "BIND": where[name],
                "PORT": str(PORT),
                "HTTP_PORT": str(HTTP_PORT),
                "PEERS": ",".join(f"{each}={where[each]}:{PORT}" for each in names),
                "SECRET_FILE": str(self.secret_file),
                "CAPACITY": "512M",
            }
            environment = {f"MOORAGE_{key}": value for key, value in options.items()}
            self.hosts.append(LocalHost(name, self.directory / name, environment, self.network.prefix(name)))
        for host in self.hosts:
            await host.launch()
        for host in self.hosts:
            await host.wait_ready()

    @property
    def environment(self) -> dict[str, str]:
        return {"MOORAGE_REGISTRY": self.registry, "MOORAGE_SECRET_FILE": str(self.secret_file)}

    def client(self, name: str, *arguments: str) -> ClientProcess:
        """`moorage ARGUMENTS` at ``name``."""
        log = self.directory / f"{name}.log"
        return ClientProcess(list(arguments), self.environment, log, self.network.prefix(name))

    async def command(self, name: str, *arguments: str) -> None:
        """`moorage ARGUMENTS` at ``name``, to its end."""
        process = await asyncio.create_subprocess_exec(
            *self.network.prefix(name),
            *(sys.executable, "-m", "moorage.cli.main", *arguments),
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def relayed(self, name: str) -> asyncio.subprocess.Process:
        """From now on new connections to a host pass a relay; its stdin takes what ``relay.py`` says."""
        target = f"{self.network.addresses[name]}:{PORT}"
        relay = await asyncio.create_subprocess_exec(
            *self.network.prefix(name),
            *(sys.executable, str(Path(__file__).with_name("relay.py")), str(RELAY_PORT), target),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._relays.append(relay)
        assert relay.stdout is not None
        assert await relay.stdout.readline() == b"ready\n"
        redirect = ("-p", "tcp", "--dport", str(PORT), "-j", "REDIRECT", "--to-port", str(RELAY_PORT))
        self.network.run(name, "iptables", "-t", "nat", "-A", "PREROUTING", *redirect)
        return relay

    async def close(self) -> None:
        try:
            for host in self.hosts:
                await host.kill()
            for relay in self._relays:
                assert relay.stdin is not None and relay.stdout is not None
                relay.kill()
                await relay.wait()
                relay.stdin.close()
                await relay.stdout.read()
        finally:
            self.network.close()
