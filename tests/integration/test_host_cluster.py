"""Three `moorage host` processes on loopback: a cluster forms, loses hosts, and knows its own."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.local_cluster import LocalCluster, LocalHost, _free_ports
from moorage.service.exits import Exit
from moorage.wire.discovery import resolve
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

OPTIONS = {
    "MOORAGE_CAPACITY": "1G",
    "MOORAGE_HEARTBEAT_MS": "200",
    "MOORAGE_SUSPECT_MS": "700",
    "MOORAGE_DOWN_MS": "1500",
}


class Cluster:
    """Three hosts, and a client that finds the leaders."""

    def __init__(self, directory: Path) -> None:
        self.local = LocalCluster(directory, hosts=3, options=OPTIONS)
        self.secret = ClusterSecret.load(self.local.secret_file)
        self.hello = Hello("client", self.secret.cluster, "test", "i")
        self.registry = self._client("registry")
        self.metadata = self._client("metadata")

    def _client(self, service: str) -> LeaderClient:
        async def candidates() -> list[str]:
            known = [str(host.ready["address"]) for host in self.local.hosts if host.ready]
            return known or await resolve(self.local.registry)

        return LeaderClient(candidates, service=service, hello=self.hello, secret=self.secret)

    async def view(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.registry.call("registry.view", {}, timeout=15)
        return found

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first view for which the condition holds."""
        view: dict[str, Any] = {}
        try:
            async with asyncio.timeout(20):
                while not condition(view := await self.view()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"never seen: {view}")
        return view

    async def up(self, count: int = 3) -> dict[str, Any]:
        def all_up(view: dict[str, Any]) -> bool:
            return [each["health"] for each in view["devices"].values()].count("up") == count

        return await self.until(all_up)

    def device_of(self, view: dict[str, Any], host: str) -> str:
        (found,) = [device for device, row in view["devices"].items() if row["host"] == host]
        return str(found)

    async def describe(self, host: LocalHost, service: str) -> dict[str, Any]:
        conn = await connect(host.ready["address"], hello=self.hello, secret=self.secret)
        try:
            found: dict[str, Any] = (await conn.call(f"{service}.describe", {}, timeout=5))[0]
            return found
        finally:
            conn.close()
            await conn.wait_closed()

    async def close(self) -> None:
        await self.registry.close()
        await self.metadata.close()
        await self.local.kill()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path / "cluster")
    try:
        await cluster.local.start()
        yield cluster
    finally:
        await cluster.close()


def other_port(host: LocalHost) -> str:
    (port,) = _free_ports(1)
    host.environment["MOORAGE_PORT"] = str(port)
    return f"127.0.0.1:{port}"


async def test_a_cluster_forms_and_works(cluster: Cluster) -> None:
    view = await cluster.up()
    assert sorted(view["hosts"]) == ["h1", "h2", "h3"]
    assert view["groups"] == ["m1"]
    for host in cluster.local.hosts:
        for service in ("registry", "metadata"):
            found = await cluster.describe(host, service)
            assert (found["cluster"], found["service"], found["name"]) == (
                cluster.secret.cluster,
                service,
                host.name,
            )
            assert [each["name"] for each in found["members"]] == ["h1", "h2", "h3"]
        found = await cluster.describe(host, "node")
        assert found["device"] == cluster.device_of(view, host.name)
    volume = await cluster.metadata.call(
        "metadata.create_volume", {"name": "db", "size": 4 << 20, "request": "r1"}, timeout=20
    )
    assert volume["state"] == "ready"
    assert sorted(each["host"] for each in volume["groups"][0]["members"]) == ["h1", "h2", "h3"]
    located = await cluster.registry.call("registry.locate", {"name": "db"})
    assert (located["group"], located["kind"]) == ("m1", "volume")
    codes = await asyncio.gather(*(host.stop(timeout=8) for host in cluster.local.hosts))
    assert codes == [Exit.OK] * 3, [host.log.read_text() for host in cluster.local.hosts]
    for host in cluster.local.hosts:
        assert "Traceback" not in host.log.read_text()


async def test_a_killed_host_is_seen_and_comes_back_elsewhere(cluster: Cluster) -> None:
    before = await cluster.up()
    victim = cluster.local.host("h1")
    device = cluster.device_of(before, "h1")
    await victim.kill()
    seen = await cluster.until(lambda view: bool(view["devices"][device]["health"] == "suspect"))
    assert "silent" in seen["devices"][device]["reason"]
    seen = await cluster.until(lambda view: bool(view["devices"][device]["health"] == "down"))
    assert seen["hosts"]["h1"]["health"] == "down"

    address = other_port(victim)
    await victim.launch()
    await victim.wait_ready()
    after = await cluster.up()
    assert sorted(after["devices"]) == sorted(before["devices"]), "the same device on another port"
    assert after["devices"][device]["address"] == address
    assert after["devices"][device]["token"] != before["devices"][device]["token"]
    assert after["hosts"]["h1"]["address"] == address

    # The others can do without each other again: so the moved member has a vote, and is heard.
    await cluster.local.host("h2").kill()
    await cluster.up(count=2)
    volume = {"name": "db", "size": 4 << 20, "replicas": 1, "request": "r1"}
    assert (await cluster.metadata.call("metadata.create_volume", volume, timeout=20))["state"] == "ready"


@pytest.mark.slow
async def test_a_frozen_host_is_silent_and_is_itself_when_thawed(cluster: Cluster) -> None:
    before = await cluster.up()
    victim = cluster.local.host("h2")
    victim.freeze()
    device = cluster.device_of(before, "h2")
    await cluster.until(lambda view: bool(view["devices"][device]["health"] == "down"))
    victim.thaw()
    after = await cluster.up()
    assert after["devices"][device]["token"] == before["devices"][device]["token"]


@pytest.mark.slow
async def test_all_are_killed_at_once_and_come_back(cluster: Cluster) -> None:
    before = await cluster.up()
    for _ in range(2):
        await cluster.local.kill()
        for host in cluster.local.hosts:
            await host.launch()
        await asyncio.gather(*(host.wait_ready() for host in cluster.local.hosts))
    after = await cluster.up()
    assert sorted(after["devices"]) == sorted(before["devices"])


async def ended(host: LocalHost) -> tuple[int, str]:
    """Exit code and last line of a process that is expected to end by itself."""
    try:
        async with asyncio.timeout(30):
            code = await host.wait()
    finally:
        await host.kill()
    return code, host.log.read_text().splitlines()[-1]


@pytest.mark.parametrize("service", ["node", pytest.param("host", marks=pytest.mark.slow)])
async def test_a_cloned_directory_is_refused(
    cluster: Cluster, launcher: Any, tmp_path: Path, service: str
) -> None:
    """Of the device alone, started as a node; and of the whole host."""
    before = await cluster.up()
    original = cluster.local.host("h1")
    environment = {
        **original.environment,
        "MOORAGE_DATA_DIR": str(tmp_path / "clone"),
        "MOORAGE_PORT": "0",
        "MOORAGE_HTTP_PORT": "0",
        "MOORAGE_REGISTRY": cluster.local.registry,
    }
    shutil.copytree(original.data if service == "host" else original.data / "node", tmp_path / "clone")
    clone = await launcher.launch(service, **environment)
    async with asyncio.timeout(30):
        code = await clone.process.wait()
    line = clone.log.read_text().splitlines()[-1]
    assert code == Exit.REFUSED, line
    assert line.startswith(f"moorage {service}: ")
    after = await cluster.up()
    device = cluster.device_of(before, "h1")
    assert after["devices"][device]["address"] == original.ready["address"]
    assert after["devices"][device]["token"] == before["devices"][device]["token"], "the original goes on"


@pytest.mark.slow
async def test_a_restored_device_directory_is_refused_for_good(cluster: Cluster, tmp_path: Path) -> None:
    """An old copy of the device alone, put back in place of what the device is now."""
    await cluster.up()
    victim = cluster.local.host("h3")
    await victim.kill()
    shutil.copytree(victim.data / "node", tmp_path / "backup")
    await victim.launch()
    await victim.wait_ready()
    await cluster.up()
    await victim.kill()
    shutil.rmtree(victim.data / "node")
    shutil.copytree(tmp_path / "backup", victim.data / "node")
    for _ in range(2):
        await victim.launch()
        code, line = await ended(victim)
        assert code == Exit.REFUSED, line
        assert "empty directory" in line


@pytest.mark.slow
async def test_a_wiped_registry_member_is_refused_by_its_peers(cluster: Cluster) -> None:
    await cluster.up()
    victim = cluster.local.host("h2")
    assert await victim.stop() == Exit.OK
    shutil.rmtree(victim.data / "registry")
    await victim.launch()
    code, line = await ended(victim)
    assert code == Exit.REFUSED, line
    await cluster.up(count=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
async def test_a_host_without_a_majority_stops_within_seconds(cluster: Cluster, number: int) -> None:
    await cluster.up()
    await cluster.local.host("h1").kill()
    await cluster.local.host("h2").kill()
    last = cluster.local.host("h3")
    begun = asyncio.get_running_loop().time()
    last.signal(number)
    async with asyncio.timeout(10):
        code = await last.wait()
    assert code in (Exit.OK, Exit.DRAIN_OVERRUN)
    assert asyncio.get_running_loop().time() - begun < 8
