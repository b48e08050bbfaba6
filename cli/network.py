"""Hosts and clients in network namespaces of their own, joined by a bridge.

Owns the namespaces and their links. Nothing of it is in the machine's own network: the bridge has a namespace
too. ``close`` removes everything; names carry the process and a count, so that two runs never meet. Needs
root and the tools of iproute2.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess

from moorage.wire.errors import Denied, Unavailable

TOOLS = ("ip", "nsenter", "setpriv", "unshare")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # Debian keeps such tools in sbin
_counter = itertools.count()


def check_usable() -> None:
    """Raises Denied or Unavailable where namespaces cannot be made, with why."""
    if os.geteuid() != 0:
        raise Denied("network namespaces need root")
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)} not installed: `make setup` as root installs it")


class Network:
    def __init__(self) -> None:
        check_usable()
        self._tag = f"moo{os.getpid()}n{next(_counter)}"
        self._made: list[str] = []
        self.addresses: dict[str, str] = {}

    def _name(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _namespace(self, name: str) -> None:
        self._made.append(self._name(name))
        self._ip("netns", "add", self._name(name))
        self._ip("-n", self._name(name), "link", "set", "lo", "up")

    def _bridge(self) -> None:
        self._namespace("hub")
        self._ip("-n", self._name("hub"), "link", "add", "br0", "type", "bridge")
        self._ip("-n", self._name("hub"), "link", "set", "br0", "up")

    def add(self, name: str) -> None:
        """A namespace with one link to the bridge."""
        if not self._made:
            self._bridge()
        self._namespace(name)
        self.addresses[name] = address = f"10.77.0.{len(self.addresses) + 1}"
        space, hub = self._name(name), self._name("hub")
        self._ip("link", "add", name, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("-n", hub, "link", "set", name, "master", "br0", "up")
        self._ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", space, "link", "set", "eth0", "up")

    def plug(self, name: str, *, plugged: bool) -> None:
        """Its cable: pulled, nothing leaves or reaches it, and nobody is told."""
        self._ip("-n", self._name("hub"), "link", "set", name, "up" if plugged else "down")

    def _ip(self, *arguments: str) -> None:
        run("ip", *arguments)

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command has to begin with to run in there."""
        program = shutil.which("nsenter", path=PATH)
        assert program is not None
        return (program, f"--net=/run/netns/{self._name(name)}")

    def run(self, name: str, *command: str) -> str:
        return run(*self.prefix(name), *command)

    def close(self) -> None:
        """Processes in there are the caller's; their sockets die with the links."""
        for name in reversed(self._made):
            with contextlib.suppress(OSError):
                run("ip", "netns", "del", name)


def run(*command: str) -> str:
    """A tool of the system that ends at once; OSError with what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env={**os.environ, "PATH": PATH}
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
