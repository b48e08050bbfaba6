"""What Mesos-DNS would publish, served by a real DNS server.

``records`` renders a master's ``/state`` by the rules of Mesos-DNS (docs/mesos-api.md, Discovery), as far as
they are about tasks. ``Dns`` is a dnsmasq on port 53 of a loopback address of its own, and its ``prefix``
makes a program ask that one: by an /etc/resolv.conf of its own, in a mount namespace, as a host of Mesos-DNS
has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.exception

from moorage.cli.local_cluster import die_with_parent
from tests.prerequisites import PATH

DOMAIN = "mesos"
LABEL_MAX = 63
_ZBASE32 = "ybndrfg8ejkmcpqxot1uwisza345h769"
Json = dict[str, Any]


# -- rules -----------------------------------------------------------------------------------------------


@dataclass
class Records:
    """``a``: name -> IPs, ``srv``: name -> (target, port); names without the final dot, in no order."""

    a: dict[str, set[str]] = field(default_factory=dict)
    srv: dict[str, set[tuple[str, int]]] = field(default_factory=dict)


def records(state: Json) -> Records:
    """Of all running tasks."""
    agents = {row["id"]: _host(row["pid"]) for row in state["slaves"]}
    found = Records()
    for framework in state["frameworks"]:
        labels = [label(part) for part in framework["name"].split(".")]
        domain = ".".join(part for part in labels if part)
        for task in framework["tasks"]:
            if task["state"] == "TASK_RUNNING" and task["slave_id"] in agents:
                _add_task(found, task, domain, agents[task["slave_id"]])
    return found


def label(text: str, size_max: int = LABEL_MAX) -> str:
    """A name as a part of a domain: what is cut off is made up for by what is behind it."""
    mapped = "".join(each for each in re.sub(r"[._]", "-", text.lower()) if re.match(r"[a-z0-9-]", each))
    mapped = mapped.lstrip("-")
    size = min(len(mapped), size_max)
    head = mapped[:size].rstrip("-")
    return head + mapped[size:].lstrip("-")[: size - len(head)]


def short_hash(task: str) -> str:
    """Of a task's id: 25 bits of its SHA-1."""
    bits = int.from_bytes(hashlib.sha1(task.encode()).digest()[:4], "big") >> 7
    return "".join(_ZBASE32[bits >> shift & 31] for shift in (20, 15, 10, 5, 0))


def _add_task(found: Records, task: Json, domain: str, agent: str) -> None:
    discovery = task.get("discovery") or {}
    given = discovery.get("name", "")
    ip = _own_ip(task) or agent
    # A name of discovery is published as it is, too.
    for name in dict.fromkeys([given, label(given)] if given else [label(task["name"])]):
        canonical = f"{name}-{short_hash(task['id'])}-{task['slave_id'].split('-')[-1].lower()}.{domain}"
        for host, where in ((f"{name}.{domain}", ip), (canonical, ip)):
            found.a.setdefault(f"{host}.{DOMAIN}", set()).add(where)
        for host in (f"{name}.{domain}", canonical):
            found.a.setdefault(f"{host}.slave.{DOMAIN}", set()).add(agent)
        for port in _resource_ports(task):
            for protocol in ("tcp", "udp"):
                for below in (".slave",) if given else (".slave", ""):
                    owner = f"_{name}._{protocol}.{domain}{below}.{DOMAIN}"
                    found.srv.setdefault(owner, set()).add((f"{canonical}.slave.{DOMAIN}", port))
        for row in discovery.get("ports", {}).get("ports", []) if given else []:
            for protocol in [label(row["protocol"])] if row.get("protocol") else ["tcp", "udp"]:
                owner = f"_{name}._{protocol}.{domain}.{DOMAIN}"
                for each in (owner, f"_{label(row['name'])}.{owner}") if row.get("name") else (owner,):
                    found.srv.setdefault(each, set()).add((f"{canonical}.{DOMAIN}", row["number"]))


def _host(pid: str) -> str:
    """Of ``slave(1)@IP:PORT``."""
    return pid.partition("@")[2].rpartition(":")[0]


def _own_ip(task: Json) -> str:
    """That of the container, as the last status of a running task has it."""
    running = [each for each in task.get("statuses", []) if each["state"] == "TASK_RUNNING"]
    for status in running[-1:]:
        for network in status.get("container_status", {}).get("network_infos", []):
            for row in network.get("ip_addresses", []):
                return str(row["ip_address"])
    return ""


def _resource_ports(task: Json) -> Iterator[int]:
    for first, last in re.findall(r"(\d+)-(\d+)", task.get("resources", {}).get("ports", "")):
        yield from range(int(first), int(last) + 1)


# -- the server ------------------------------------------------------------------------------------------


class Dns:
    """``address``: of 127.0.0.0/8, with nobody on its port 53. Until :meth:`publish` nobody answers there."""

    def __init__(self, directory: Path, address: str) -> None:
        self.address = address
        self._conf = directory / "dnsmasq.conf"
        self._log = directory / "dnsmasq.log"
        self._resolv_conf = directory / "resolv.conf"
        self._resolv_conf.write_text(f"nameserver {address}\n")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command has to begin with to ask this server. It stays the process that is started."""
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, str(self._resolv_conf))

    async def publish(self, found: Records) -> None:
        """Serve these and nothing else, from now on: other names of the domain do not exist."""
        lines = [f"local=/{DOMAIN}/"]
        lines += [f"host-record={name},{ip}" for name, ips in found.a.items() for ip in sorted(ips)]
        lines += [
            f"srv-host={name},{target},{port},0,1"
            for name, targets in found.srv.items()
            for target, port in sorted(targets)
        ]
        await self._start(lines)

    async def forward(self, port: int) -> None:
        """Pass every question on to a server of 127.0.0.1."""
        await self._start([f"server=127.0.0.1#{port}"])

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()

    async def _start(self, lines: list[str]) -> None:
        """Anew: dnsmasq reads its records once."""
        await self.stop()
        common = [
            *("no-resolv", "no-hosts", "bind-interfaces", f"listen-address={self.address}", "port=53"),
            *("user=root", "cache-size=0", "pid-file="),
        ]
        self._conf.write_text("\n".join([*common, *lines, ""]))
        program = shutil.which("dnsmasq", path=PATH)
        assert program is not None
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(program, "--keep-in-foreground", "--log-facility=-", f"--conf-file={self._conf}"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        await self._answers(self._process)

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(10):
            while True:
                assert process.returncode is None, self._log.read_text()
                try:
                    await self.resolver().resolve("version.bind", "TXT", "CH", lifetime=0.5)
                    return
                except dns.exception.Timeout:
                    continue
                except (dns.exception.DNSException, OSError):
                    await asyncio.sleep(0.01)

    def resolver(self) -> dns.asyncresolver.Resolver:
        """For this process, which has another /etc/resolv.conf."""
        found = dns.asyncresolver.Resolver(configure=False)
        found.nameservers = [self.address]
        return found
