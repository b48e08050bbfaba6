"""The registry found by the records of Mesos-DNS: tasks of a real Mesos, a real DNS server, real services.

The records are rendered from the master's state. What is old, wrong or missing among them costs a start some
time at most, and what runs already nothing at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from moorage.cli.local_cluster import die_with_parent
from moorage.wire import discovery
from moorage.wire.errors import Unavailable
from tests.prerequisites import no_programs, require

from ..integration.conftest import Launcher, Service
from . import calls, machine
from .cluster import Cluster
from .conftest import MakeMesos, MakeScheduler
from .mesos_dns import Dns, Records, records
from .scheduler import Json, Scheduler, launch

FRAMEWORK = "moorage"
NAME = f"_registry._tcp.{FRAMEWORK}.mesos"
SPEC = f"srv:{NAME}"
PROGRAM = (sys.executable, "-m", "moorage.cli.main")
PORT = 31000

pytestmark = pytest.mark.timeout(180)


class Site:
    """Three agents; on each a member of the registry as a task, whose ports are known by discovery."""

    def __init__(self, cluster: Cluster, framework: Scheduler, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.network = cluster.master.rpartition(":")[0].rpartition(".")[0]
        self.dns = Dns(directory, f"{self.network}.53")
        self.launcher = Launcher(directory)
        self._framework = framework
        self._ports = [PORT + 10 * number for number in range(3)]
        self._started = 0
        self._tasks = ["", "", ""]

    def ip(self, number: int) -> str:
        return f"{self.network}.{11 + number}"

    def port(self, number: int) -> int:
        return self._ports[number]

    def address(self, number: int) -> str:
        return f"{self.ip(number)}:{self._ports[number]}"

    async def start_registry(self) -> None:
        """All three; those that were there before come back on other ports, with their directories."""
        for number in range(3):
            await self._launch(number)
        for number in range(3):
            await self._until_ready(number)

    async def end(self, number: int) -> None:
        await self._framework.kill(self._tasks[number])
        await self._framework.update(self._tasks[number], "TASK_KILLED", "TASK_FINISHED", "TASK_FAILED")

    async def move(self, number: int) -> None:
        await self.end(number)
        await self._launch(number)
        await self._until_ready(number)

    async def _offer(self, number: int) -> Json:
        """On its agent, with the ports that it is to have."""
        agent, port = f"agent{number + 1}", self._ports[number]

        def fits(offer: Json) -> bool:
            found = {each["name"]: each for each in offer["resources"]}
            ranges = found["ports"]["ranges"]["range"] if {"cpus", "mem", "ports"} <= found.keys() else []
            on_it = self.cluster.agent_at(offer["hostname"]) == agent
            return on_it and any(each["begin"] <= port < each["end"] for each in ranges)

        return await self._framework.whole_offer(fits)

    async def _launch(self, number: int) -> None:
        if self._tasks[number]:
            self._ports[number] += 2
        framework, rpc, offer = self._framework, self._ports[number], await self._offer(number)
        self._started += 1
        name = self._tasks[number] = f"registry.{number}.{self._started}"
        ports = {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": rpc, "end": rpc + 1}]}}
        resource = {**ports, "allocation_info": {"role": framework.role}}
        named = [
            {"number": rpc, "name": "rpc", "protocol": "tcp"},
            {"number": rpc + 1, "name": "http", "protocol": "tcp"},
        ]
        discovery = {"visibility": "CLUSTER", "name": "registry", "ports": {"ports": named}}
        peers = ",".join(f"h{each}={self.address(each)}" for each in range(3))
        environment = {
            "MOORAGE_NAME": f"h{number}",
            "MOORAGE_DATA_DIR": str(self.directory / f"registry{number}"),
            "MOORAGE_SECRET_FILE": str(self.directory / "secret"),
            "MOORAGE_PEERS": peers,
            "PORT0": str(rpc),
            "PORT1": str(rpc + 1),
        }
        variables = [{"name": key, "value": value} for key, value in environment.items()]
        command = {
            "value": f"exec {shlex.join([*PROGRAM, 'registry'])}",
            "environment": {"variables": variables},
        }
        task = framework.task(offer, name, command, resource, discovery=discovery)
        await framework.accept(offer, launch(task))
        await framework.update(name, "TASK_RUNNING")

    async def _until_ready(self, number: int) -> None:
        async with asyncio.timeout(30):
            while '"ready"' not in self.cluster.sandbox(self._tasks[number]):
                await asyncio.sleep(0.05)

    def said(self, number: int) -> str:
        return self.cluster.sandbox(self._tasks[number], "stderr")

    def state(self) -> Json:
        found: Json = calls.get(self.cluster.master, "/state")
        return found

    async def refresh(self) -> None:
        """As Mesos-DNS does once a minute."""
        await self.dns.publish(records(self.state()))

    # -- those that look it up -----------------------------------------------------------------------

    async def launch(self, service: str, **environ: str) -> Service:
        where = {"MOORAGE_BIND": self.ip(0), "MOORAGE_REGISTRY": SPEC, **environ}
        return await self.launcher.launch(service, prefix=self.dns.prefix, **where)

    async def start_services(self) -> None:
        started = [await self.launch("metadata"), await self.launch("node", MOORAGE_CAPACITY="1G")]
        for service in started:
            await service.wait_ready()

    def moorage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, which knows the name from its environment."""
        return subprocess.run(
            [*self.dns.prefix, *PROGRAM, *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def environ(self) -> dict[str, str]:
        secret = str(self.directory / "secret")
        return {"PATH": os.environ["PATH"], "MOORAGE_REGISTRY": SPEC, "MOORAGE_SECRET_FILE": secret}

    async def close(self) -> None:
        await self.launcher.close()
        await self.dns.stop()


@pytest.fixture(scope="session")
def servable() -> None:
    require("port 53 needs root" if os.geteuid() else no_programs("dnsmasq", "unshare", "mount"))


@pytest.fixture
async def server(servable: None, tmp_path: Path) -> AsyncIterator[Dns]:
    made = Dns(tmp_path, f"{machine.free_network((53,))}.1")
    yield made
    await made.stop()


@pytest.fixture
async def site(
    servable: None, mesos: MakeMesos, scheduler: MakeScheduler, tmp_path: Path
) -> AsyncIterator[Site]:
    cluster = await mesos(agents=3)
    made = Site(cluster, await scheduler(cluster.master, name=FRAMEWORK), tmp_path)
    yield made
    await made.close()


async def test_everybody_starts_from_the_name(site: Site) -> None:
    await site.start_registry()
    await site.refresh()
    found = await discovery.resolve(SPEC, resolver=site.dns.resolver())
    named = await discovery.resolve(f"srv:_rpc.{NAME}", resolver=site.dns.resolver())
    web = await discovery.resolve(f"srv:_http.{NAME}", resolver=site.dns.resolver())
    assert sorted(named) == [site.address(number) for number in range(3)]
    assert sorted(found) == sorted(named + web) and len(found) == 6, "both ports of each"
    await site.start_services()  # of the six, three are no registry
    for command in (
        ("volume", "create", "db", "--size", "64M", "--replicas", "1"),
        ("volume", "show", f"moorage://_rpc.{NAME}/db"),
    ):
        began = time.monotonic()
        done = await asyncio.to_thread(site.moorage, *command)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 5
    asked = ("status", "--registry", f"srv:_http.{NAME}", "--timeout", "2")
    refused = await asyncio.to_thread(site.moorage, *asked)
    assert refused.returncode == 9
    assert all(address in refused.stderr for address in web), refused.stderr
    assert not any("Traceback" in site.said(number) for number in range(3))


async def test_answers_that_do_not_fit_into_a_datagram(server: Dns) -> None:
    """And targets that have no address beside those that have one."""
    hosts = [f"registry-{number:05}-s0.{FRAMEWORK}.mesos" for number in range(60)]
    targets = {(host, 31000 + number) for number, host in enumerate(hosts)}
    await server.publish(Records({host: {"127.9.9.9"} for host in hosts[:40]}, {NAME: targets}))
    found = await discovery.resolve(SPEC, resolver=server.resolver())
    assert sorted(found) == [f"127.9.9.9:{31000 + number}" for number in range(40)]
    await server.publish(Records({}, {NAME: {(hosts[0], 31000)}}))
    with pytest.raises(Unavailable, match="of which no address is known"):
        await discovery.resolve(SPEC, resolver=server.resolver())


# -- missing and old answers -----------------------------------------------------------------------------


class Servfail(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: Any) -> None:
        self.transport.sendto(data[:2] + b"\x81\x82" + data[4:], source)


async def waits(site: Site, service: Service, *words: str) -> None:
    """Until it is not ready for a reason with all these words."""
    reasons: list[str] = []
    try:
        async with asyncio.timeout(25):
            while not any(all(word in reason for word in words) for reason in reasons):
                await asyncio.sleep(0.1)
                with contextlib.suppress(aiohttp.ClientError):  # it does not listen yet
                    status, told = await site.launcher.get(service, "/readyz")
                    assert status == 503
                    reasons = told["reasons"]
    except TimeoutError:
        pytest.fail(f"{words} not in {reasons}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
async def test_answers_that_are_missing_or_old(site: Site, tmp_path: Path) -> None:
    """Services wait, and say for what; a command ends, and says what to do."""
    http = [free_port(), free_port()]
    metadata = await site.launch("metadata", MOORAGE_HTTP_PORT=str(http[0]))
    node = await site.launch("node", MOORAGE_HTTP_PORT=str(http[1]), MOORAGE_CAPACITY="1G")
    for service, port in zip((metadata, node), http, strict=True):
        service.ready["http"] = f"{site.ip(0)}:{port}"

    async def all_wait(*words: str) -> None:
        for service in (metadata, node):
            await waits(site, service, *words)
            assert service.process.returncode is None

    await all_wait("cannot look up", NAME, "5 s")  # nobody answers on port 53
    await site.refresh()  # Mesos-DNS runs, and the framework does not
    await all_wait(NAME, "has no SRV record")
    refused = await asyncio.to_thread(site.moorage, "status")
    assert refused.returncode == 9 and "is the registry running under that name" in refused.stderr
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Servfail, ("127.0.0.1", 0))
    await site.dns.forward(transport.get_extra_info("sockname")[1])
    await all_wait("cannot look up", NAME, "SERVFAIL")
    transport.close()

    # All three members have just ended, Mesos-DNS does not know it yet, and their ports are used again.
    await site.start_registry()
    old = site.state()
    for number in range(3):
        await site.end(number)
    await site.dns.publish(records(old))
    other = Launcher(make_directory(tmp_path / "other"))
    rpc, web = site.address(1), site.address(2)
    foreign = await other.start("registry", MOORAGE_BIND=site.ip(1), MOORAGE_PORT=str(site.port(1)))
    page = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "http.server", "--bind", site.ip(2), str(site.port(2))),
        cwd=make_directory(tmp_path / "page"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        await all_wait(site.address(0), "refused", f"{rpc}: ", other.secret.cluster, f"{web}: ")
        refused = await asyncio.to_thread(site.moorage, "status", "--timeout", "3")
        assert refused.returncode == 9 and "check the address and the secret file" in refused.stderr
        alone = f"registry-other-s0.{FRAMEWORK}.mesos"  # and nobody who might be of our cluster
        await site.dns.publish(Records({alone: {site.ip(1)}}, {NAME: {(alone, site.port(1))}}))
        await asyncio.sleep(12)  # two calls of each
        await all_wait(other.secret.cluster)

        # The new ones have other ports. What is old stays beside them.
        await site.start_registry()
        new, stale = records(site.state()), records(old)
        both = Records(stale.a | new.a, {key: stale.srv.get(key, set()) | new.srv[key] for key in new.srv})
        await site.dns.publish(both)
        began = time.monotonic()
        for service in (metadata, node):
            await service.wait_ready()
        assert time.monotonic() - began < 15
        for _ in range(5):
            began = time.monotonic()
            shown = await asyncio.to_thread(site.moorage, "status", "--json")
            assert shown.returncode == 0, shown.stderr
            assert time.monotonic() - began < 8
        assert foreign.process.returncode is None
        assert "Traceback" not in foreign.log.read_text() + metadata.log.read_text() + node.log.read_text()
    finally:
        page.kill()
        await page.wait()
        await other.close()


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


# -- after the start -------------------------------------------------------------------------------------

BUSY = """
import asyncio, json, moorage

async def main():
    async with await moorage.connect() as cluster:
        await cluster.create_volume("db", "64M", replicas=1)
        async with await cluster.attach("db") as volume:
            at = 0
            while True:
                await volume.write(at % 64 * 4096, at.to_bytes(8, "big") * 512)
                view = await cluster.status()
                health = [each["health"] for each in view["devices"].values()]
                print(json.dumps({"written": at, "health": health}), flush=True)
                at += 1
                await asyncio.sleep(0.1)

asyncio.run(main())
"""
IDLE = """
import asyncio, json, sys, moorage

async def main():
    async with await moorage.connect("srv:" + sys.argv[1]) as cluster:
        print(json.dumps("connected"), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        view = await cluster.status()
        await cluster.create_volume("late", "64M", replicas=1)
        print(json.dumps([each["health"] for each in view["devices"].values()]), flush=True)

asyncio.run(main())
"""


class Client:
    """A program of a user, with the DNS server of the site. ``lines``: what it has said so far."""

    def __init__(self, site: Site, program: str, name: str) -> None:
        self.lines: list[Any] = []
        self._log = site.directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*site.dns.prefix, sys.executable, "-c", program, NAME],
                env=site.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=die_with_parent,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    async def until(self, count: int, seconds: float = 30) -> Any:
        """Until it has said so many lines; the last one."""
        async with asyncio.timeout(seconds):
            while len(self.lines) < count:
                assert self._process.poll() is None, self._log.read_text()
                await asyncio.sleep(0.02)
        return self.lines[-1]

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


@contextlib.contextmanager
def clients(site: Site) -> Iterator[tuple[Client, Client]]:
    made = Client(site, BUSY, "busy"), Client(site, IDLE, "idle")
    try:
        yield made
    finally:
        for client in made:
            client.end()


@pytest.mark.slow
@pytest.mark.parametrize("dns_is", ["gone", "wrong"])
async def test_dns_is_not_needed_after_the_start(site: Site, dns_is: str) -> None:
    """Every member of the registry moves to other ports, one after the other."""
    await site.start_registry()
    await site.refresh()
    await site.start_services()
    with clients(site) as (busy, idle):
        await busy.until(10)
        await idle.until(1)
        await asyncio.sleep(1)  # a moment to hear of the members
        if dns_is == "gone":
            await site.dns.stop()
        else:  # the HTTP port of an agent, and nothing at all
            wrong = f"registry-wrong-s0.{FRAMEWORK}.mesos"
            await site.dns.publish(Records({wrong: {site.ip(0)}}, {NAME: {(wrong, 1), (wrong, 5051)}}))
        for number in range(3):
            await site.move(number)
            await asyncio.sleep(4)  # longer than it takes to hear of it
        last = await busy.until(len(busy.lines) + 20)
        assert last["health"] == ["up"]
        assert all(health != "down" for row in busy.lines for health in row["health"]), busy.lines
        idle.tell()
        assert await idle.until(2) == ["up"]
