"""A network that can be broken: packets are dropped by iptables (in the namespace that they leave or reach),
links are made slow by tc, connections are delayed by a relay."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path

from moorage.cli.network import PATH, Network, check_usable
from moorage.cli.network_cluster import PORT, NetworkCluster
from moorage.wire.errors import MoorageError

TOOLS = ("iptables", "tc")
RELAY_PORT = 7079
_LOSS = ("-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability")


def unusable() -> str:
    """Why namespaces cannot be made here, or nothing."""
    try:
        check_usable()
    except MoorageError as error:
        return str(error)
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


class FaultyNetwork(Network):
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
            lines = self.run(name, "iptables", "-L", "INPUT", "-n", "-v", "-x").splitlines()[2:]
            count += sum(int(line.split()[0]) for line in lines)
        return count

    def heal(self) -> None:
        for name in self.addresses:
            self.run(name, "iptables", "-F")
            with contextlib.suppress(OSError):  # there may be none
                self.run(name, "tc", "qdisc", "del", "dev", "eth0", "root")
                self.run("hub", "tc", "qdisc", "del", "dev", name, "root")


class FaultyCluster(NetworkCluster):
    """Hosts h1..h3 and clients c1, c2."""

    network: FaultyNetwork

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, FaultyNetwork(), clients=("c1", "c2"))
        self._relays: list[asyncio.subprocess.Process] = []

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
            for relay in self._relays:
                assert relay.stdin is not None and relay.stdout is not None
                relay.kill()
                await relay.wait()
                relay.stdin.close()
                await relay.stdout.read()
        finally:
            await super().close()
