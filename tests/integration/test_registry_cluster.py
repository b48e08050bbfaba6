"""Three registry processes: one group, whichever of them die, move or forget."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from moorage.service.exits import Exit
from moorage.wire.errors import MoorageError
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient

NAMES = ("r1", "r2", "r3")


class Group:
    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher
        self.ports = dict(zip(NAMES, free_ports(3), strict=True))
        self.peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in self.ports.items())
        self.members: dict[str, Any] = {}
        hello = Hello("client", launcher.secret.cluster, "test", "i")
        self.client = LeaderClient(self._addresses, service="registry", hello=hello, secret=launcher.secret)

    async def _addresses(self) -> list[str]:
        return [member.address for member in self.members.values() if member.ready]

    async def launch(self, name: str, **more: str) -> Any:
        environ = {
            "MOORAGE_NAME": name,
            "MOORAGE_DATA_DIR": str(self.directory(name)),
            "MOORAGE_PORT": str(self.ports[name]),
            "MOORAGE_PEERS": self.peers,
        }
        self.members[name] = await self.launcher.launch("registry", **{**environ, **more})
        return self.members[name]

    def directory(self, name: str) -> Any:
        return self.launcher.directory / name

    async def start(self) -> None:
        for name in NAMES:
            await self.launch(name)
        await asyncio.gather(*(member.wait_ready() for member in self.members.values()))

    async def leader(self) -> str:
        described = await self.client.call("registry.status", {}, timeout=15)
        return str(described["raft"]["leader"]["name"])

    async def claim(self, name: str) -> None:
        await self.client.call(
            "registry.claim", {"name": name, "kind": "volume", "group": "m1", "id": 1}, timeout=15
        )

    async def locate(self, name: str) -> Any:
        return await self.client.call("registry.locate", {"name": name}, timeout=15)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture
async def group(launcher: Any) -> AsyncIterator[Group]:
    group = Group(launcher)
    await group.start()
    yield group
    await group.client.close()


async def test_names_survive_the_leader(group: Group) -> None:
    await group.claim("db")
    leader = await group.leader()
    await group.members[leader].stop(signal.SIGKILL)
    assert await group.locate("db") == {"group": "m1", "kind": "volume", "id": 1}
    assert await group.leader() != leader
    await (await group.launch(leader)).wait_ready()
    services = (await group.client.call("registry.view", {}))["services"]
    assert sorted(each["name"] for each in services) == list(NAMES)


@pytest.mark.slow
async def test_a_leader_that_is_told_to_stop_hands_over(group: Group) -> None:
    leader = await group.leader()
    begun = asyncio.get_running_loop().time()
    assert await group.members[leader].stop() == Exit.OK
    await group.claim("db")
    assert asyncio.get_running_loop().time() - begun < 8


@pytest.mark.slow
async def test_without_a_majority_it_is_alive_and_not_ready(group: Group) -> None:
    for name in ("r1", "r2"):
        await group.members[name].stop(signal.SIGKILL)
    last = group.members["r3"]
    async with asyncio.timeout(15):
        while (answer := await group.launcher.get(last, "/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
    assert "no leader: a majority of" in answer[1]["reasons"][0]
    assert (await group.launcher.get(last, "/healthz"))[0] == 200
    with pytest.raises(MoorageError, match=r"r3|127\.0\.0\.1"):
        await group.client.call("registry.view", {}, timeout=1)
    await (await group.launch("r1")).wait_ready()
    await group.claim("db")


async def test_a_member_on_another_port_is_the_same_member(group: Group) -> None:
    """It alone knows where it is now: the others still have the former address in --peers."""
    (port,) = free_ports(1)
    await group.members["r1"].stop(signal.SIGKILL)
    await (await group.launch("r1", MOORAGE_PORT=str(port))).wait_ready()
    await group.members["r2"].stop(signal.SIGKILL)  # now r1 and r3 need each other
    await group.claim("db")
    async with asyncio.timeout(15):
        while f"127.0.0.1:{port}" not in await known_addresses(group, "r3"):
            await asyncio.sleep(0.05)
    await (await group.launch("r2")).wait_ready()
    await group.members["r3"].stop(signal.SIGKILL)  # and r1 and r2, which has never heard of the new address
    assert await group.locate("db") == {"group": "m1", "kind": "volume", "id": 1}


async def known_addresses(group: Group, name: str) -> list[str]:
    described = (await group.launcher.get(group.members[name], "/v1/registry.describe"))[1]
    return [each["address"] for each in described["members"]]


@pytest.mark.slow
async def test_all_members_move_at_once(group: Group) -> None:
    await group.claim("db")
    for member in group.members.values():
        await member.stop(signal.SIGKILL)
    group.ports = dict(zip(NAMES, free_ports(3), strict=True))
    group.peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in group.ports.items())
    await group.start()
    assert await group.locate("db") == {"group": "m1", "kind": "volume", "id": 1}


async def test_a_wiped_member_is_refused_by_its_peers(group: Group) -> None:
    await group.claim("db")
    await group.members["r2"].stop(signal.SIGKILL)
    shutil.rmtree(group.directory("r2"))
    wiped = await group.launch("r2")
    async with asyncio.timeout(20):
        code = await wiped.process.wait()
    assert code == Exit.REFUSED
    assert "Remove r2 from the group" in wiped.log.read_text().splitlines()[-1]
    wiped.ready = {}
    await group.claim("db2")


@pytest.mark.slow
async def test_a_wiped_member_is_replaced(group: Group) -> None:
    """As docs/launch.md says: remove, clear, add, start with --join, promote."""
    await group.claim("db")
    await group.members["r2"].stop(signal.SIGKILL)
    shutil.rmtree(group.directory("r2"))
    where = f"{group.members['r1'].ready['address'].partition(':')[0]}:{group.ports['r2']}"
    leader = group.members[await group.leader()]
    assert await group.launcher.post(leader, "/v1/raft.registry.remove_member", {"name": "r2"}) == (200, {})
    added = {"name": "r2", "address": where}
    assert await group.launcher.post(leader, "/v1/raft.registry.add_member", added) == (200, {})
    peers = ",".join(each for each in group.peers.split(",") if not each.startswith("r2="))
    joined = await group.launch("r2", MOORAGE_JOIN="yes", MOORAGE_PEERS=peers)
    await joined.wait_ready()
    assert await group.launcher.post(leader, "/v1/raft.registry.promote", {"name": "r2"}) == (200, {})
    other = next(name for name in NAMES if name != "r2" and group.members[name] is not leader)
    await group.members[other].stop(signal.SIGKILL)
    assert await group.locate("db") == {"group": "m1", "kind": "volume", "id": 1}
    await group.claim("with-the-new-member")


async def test_a_clone_of_a_living_member_is_refused(group: Group) -> None:
    """It has the right instance, and may have forgotten a vote: so it must not take part."""
    shutil.copytree(group.directory("r1"), group.directory("clone"))
    clone = await group.launch("r1", MOORAGE_DATA_DIR=str(group.directory("clone")), MOORAGE_PORT="0")
    async with asyncio.timeout(20):
        code = await clone.process.wait()
    assert code == Exit.REFUSED, clone.log.read_text()
    assert "another process" in clone.log.read_text().splitlines()[-1]
    clone.ready = {}
    for name in ("r2", "r3"):  # the original goes on: each of the others can do with it alone
        await group.members[name].stop(signal.SIGKILL)
        await group.claim(f"without-{name}")
        await (await group.launch(name)).wait_ready()


async def test_a_flipped_byte_in_the_raft_state_is_noticed(group: Group) -> None:
    await group.claim("a-name-that-stands-nowhere-else")
    (path,) = group.directory("r2").rglob("data.mdb")
    async with asyncio.timeout(15):
        while (place := path.read_bytes().find(b"stands-nowhere")) < 0:
            await asyncio.sleep(0.05)
    assert await group.members["r2"].stop() == Exit.OK
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"stands-nowhere", b"stands-sowhere"))
    damaged = await group.launch("r2")
    async with asyncio.timeout(20):
        code = await damaged.process.wait()
    assert code == Exit.CORRUPT, (place, damaged.log.read_text())
    assert str(group.directory("r2")) in damaged.log.read_text().splitlines()[-1]


@pytest.mark.slow
async def test_a_peer_of_another_cluster_is_no_candidate(group: Group, launcher: Any) -> None:
    from moorage.wire.secret import ClusterSecret

    other = ClusterSecret("f" * 16, bytes(32))
    hello = Hello("client", other.cluster, "test", "i")
    client = LeaderClient(group._addresses, service="registry", hello=hello, secret=other)
    with pytest.raises(MoorageError, match="cluster"):
        await client.call("registry.view", {}, timeout=2)
    await client.close()
