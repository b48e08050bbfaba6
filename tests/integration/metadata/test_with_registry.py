"""Metadata and registry together as in ``moorage host``: three processes' worth of services, real
replication of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.client.repairer import Repairer
from moorage.metadata.service import MetadataConfig, MetadataService
from moorage.registry.health import Timings
from moorage.registry.service import RegistryConfig, RegistryService
from moorage.wire.errors import Invalid, LimitExceeded, MoorageError, NameTaken, NotEnoughHosts, NotFound
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve

GIB = 1 << 30
HOSTS = ("host1", "host2", "host3")
SECRET = ClusterSecret("00112233445566ff", bytes(range(32)))
TIMINGS = Timings(heartbeat_ms=100, suspect_ms=500, down_ms=1000)
pytestmark = pytest.mark.timeout(60)


async def until(reached: Any, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not reached():
            await asyncio.sleep(0.01)


class Host:
    """Registry, metadata and a stand-in for the node behind one listener, as in one process."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.device = f"dev-{name}"
        self.directory = directory
        self.router = Router()
        self.replicas: set[int] = set()
        self.hello = Hello("host", SECRET.cluster, name, f"i-{name}", {"device": self.device})
        self.server: Server
        self.registry: RegistryService
        self.metadata: MetadataService
        self._reporting: asyncio.Task[None] | None = None

    async def listen(self) -> str:
        self.router.method("node.create_replica", self._create)
        self.router.method("node.drop_replica", self._drop)
        self.server = await serve("127.0.0.1:0", hello=self.hello, secret=SECRET, endpoint=self.router)
        return self.server.address

    async def _create(self, context: Any, params: dict[str, Any]) -> dict[str, Any]:
        self.replicas.add(params["replica"])
        return {}

    async def _drop(self, context: Any, params: dict[str, Any]) -> dict[str, Any]:
        self.replicas.discard(params["replica"])
        return {}

    async def start(self, peers: dict[str, str]) -> None:
        common = {"name": self.name, "address": peers[self.name], "http": "127.0.0.1:1", "peers": peers}
        common |= {"secret": SECRET, "hello": self.hello}
        self.registry = RegistryService(
            RegistryConfig(directory=self.directory / "registry", timings=TIMINGS, **common)
        )
        self.metadata = MetadataService(
            MetadataConfig(
                group="m1",
                directory=self.directory / "metadata",
                registry=",".join(peers.values()),
                lease_ms=2000,
                view_interval_s=0.1,
                **common,
            ),
            Repairer(self.hello, SECRET),
        )
        await self.registry.start(self.router)
        await self.metadata.start(self.router)

    def report(self, client: LeaderClient) -> None:
        self._reporting = asyncio.create_task(self._report(client))

    async def _report(self, client: LeaderClient) -> None:
        address = self.server.address
        size = {"capacity": 100 * GIB}
        host = {"host": self.name, "labels": {}, "address": address, "http": ""}
        token = {"old_token": "", "new_token": "t1", "count": 0}
        await client.call("registry.join_host", host)
        start = {"device": self.device, "host": self.name, "address": address, **size, **token}
        await client.call("registry.start_device", start)
        count = 0
        while True:
            count += 1
            beat = {"device": self.device, "token": "t1", "count": count, "address": address, **size}
            await client.call("registry.heartbeat", {**beat, "used": 0, "failed": None})
            await asyncio.sleep(0.1)

    async def silence(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)

    async def stop(self) -> None:
        await self.silence()
        await self.metadata.stop()
        await self.registry.stop()
        await self.router.stop()
        self.server.close()
        await self.server.wait_closed()


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.hosts = [Host(name, directory / name) for name in HOSTS]
        self.peers: dict[str, str] = {}
        hello = Hello("client", SECRET.cluster, "tester", "t")
        self.registry = LeaderClient(self._addresses, service="registry", hello=hello, secret=SECRET)
        self.metadata = LeaderClient(self._addresses, service="metadata", hello=hello, secret=SECRET)

    async def _addresses(self) -> list[str]:
        return list(self.peers.values())

    async def start(self) -> None:
        for host in self.hosts:
            self.peers[host.name] = await host.listen()
        for host in self.hosts:
            await host.start(self.peers)
        for host in self.hosts:
            host.report(self.registry)

    async def stop(self) -> None:
        for host in self.hosts:
            await host.silence()
        await self.registry.close()
        await self.metadata.close()
        for host in self.hosts:
            await host.stop()

    async def up(self) -> bool:
        try:
            view = await self.registry.call("registry.view", {}, timeout=2)
        except MoorageError:
            return False
        return [entry["health"] for entry in view["devices"].values()] == ["up"] * 3

    async def create(self, name: str, **more: Any) -> Any:
        params = {"name": name, "size": GIB, "request": f"c-{name}", **more}
        return await self.metadata.call("metadata.create_volume", params, timeout=15)


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        async with asyncio.timeout(20):
            while not await cluster.up() or any(host.metadata.not_ready() for host in cluster.hosts):
                await asyncio.sleep(0.02)
        yield cluster
    finally:
        await cluster.stop()


async def test_volume_from_creation_to_deletion(hosts: Cluster) -> None:
    view = await hosts.registry.call("registry.view", {})
    assert view["groups"] == ["m1"]
    volume = await hosts.create("db", groups=2)
    assert volume["state"] == "ready"
    assert all(len(host.replicas) == 2 for host in hosts.hosts)
    assert (await hosts.registry.call("registry.locate", {"name": "db"}))["group"] == "m1"
    holder = {"host": "h", "pid": 1, "program": "fio"}
    attach = {"name": "db", "writer": 7, "holder": holder}
    held = await hosts.metadata.call("metadata.attach", attach)
    addresses = {member["address"] for group in held["groups"] for member in group["members"]}
    assert addresses == set(hosts.peers.values())
    await hosts.metadata.call("metadata.delete_volume", {"name": "db", "force": True})
    assert not any(host.replicas for host in hosts.hosts)
    with pytest.raises(NotFound):
        await hosts.registry.call("registry.locate", {"name": "db"})
    # and a name that another metadata group owns
    await hosts.registry.call("registry.claim", {"name": "other", "kind": "volume", "group": "m2", "id": 1})
    with pytest.raises(NameTaken, match="'other'"):
        await hosts.create("other")
    assert (await hosts.registry.call("registry.locate", {"name": "other"}))["group"] == "m2"
    assert not any(host.replicas for host in hosts.hosts)


async def test_quotas_count_what_all_groups_have(hosts: Cluster) -> None:
    await hosts.create("db", size=4 * GIB, principal="team-a")
    await hosts.create("other")
    other_group = {"kind": "volume", "group": "m2", "id": 1, "size": 6 * GIB, "principal": "team-a"}
    await hosts.registry.call("registry.set_quota", {"principal": "first"})  # volumes count from now on
    await hosts.registry.call("registry.claim", {"name": "elsewhere", **other_group})
    async with asyncio.timeout(10):
        while (await hosts.registry.call("registry.quotas", {}))["quotas"][0]["principal"] != "default":
            await asyncio.sleep(0.02)
    await hosts.registry.call("registry.remove_quota", {"principal": "first"})
    quota = {"principal": "team-a", "capacity": 12 * GIB, "volumes": 3}
    row = await hosts.registry.call("registry.set_quota", quota)
    assert row == {**quota, "used_bytes": 10 * GIB, "used_volumes": 2}
    words = "'team-a' has 2 volumes of 10 GiB in sum, quota 12 GiB; 'web' needs 5 GiB more"
    with pytest.raises(LimitExceeded, match=words) as refused:
        await hosts.create("web", size=5 * GIB, principal="team-a")
    assert refused.value.details["used_bytes"] == 10 * GIB
    assert all(len(host.replicas) == 2 for host in hosts.hosts)
    with pytest.raises(LimitExceeded, match="'db' needs 3 GiB more"):
        await hosts.metadata.call("metadata.resize_volume", {"name": "db", "size": 7 * GIB})
    assert (await hosts.metadata.call("metadata.show_volume", {"name": "db"}))["size"] == 4 * GIB
    await hosts.metadata.call("metadata.resize_volume", {"name": "db", "size": 6 * GIB})
    await hosts.metadata.call("metadata.delete_volume", {"name": "db"})
    led = next(host.registry for host in hosts.hosts if host.registry.group.is_leader)
    routes = {f"{route.method} {route.name}": route.handler for route in led.routes()}
    await routes["POST registry.set_quota"]({"principal": "b", "volumes": 0})
    with pytest.raises(LimitExceeded, match="'b' has no volumes, quota 0; 'none' would be one more"):
        await hosts.create("none", principal="b")
    with pytest.raises(Invalid, match="unknown parameter 'size'"):
        await routes["POST registry.set_quota"]({"principal": "b", "size": 0})
    await routes["POST registry.remove_quota"]({"principal": "b"})
    rows = (await routes["GET registry.quotas"]({}))["quotas"]
    assert [(row["principal"], row["used_bytes"]) for row in rows] == [
        ("default", GIB),
        ("team-a", 6 * GIB),
    ]


async def test_refusal_says_which_host_is_silent(hosts: Cluster) -> None:
    await hosts.hosts[2].silence()
    async with asyncio.timeout(10):
        while (await hosts.registry.call("registry.view", {}))["hosts"]["host3"]["health"] != "down":
            await asyncio.sleep(0.02)
    with pytest.raises(NotEnoughHosts, match=r"2 are up: host3 down \(silent for \d+ s\)"):
        await hosts.create("db")


async def test_creation_just_after_the_registrys_leader_went(hosts: Cluster) -> None:
    leader = next(host for host in hosts.hosts if host.registry.group.is_leader)
    await leader.registry.stop()
    volume = await hosts.create("db")  # every device is suspect there until its next heartbeat
    assert volume["state"] == "ready"
