"""The registry behind a name: what DNS says is verified, and counts less than what a leader says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from moorage.wire import discovery, frame, registry
from moorage.wire.errors import (
    CannotConnect,
    DeadlineExceeded,
    IdentityConflict,
    NotLeader,
    ProtocolError,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.registry import RegistryClient
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, connect, serve

SECRET = ClusterSecret("ab" * 8, b"k" * 32)
OTHER = ClusterSecret("cd" * 8, b"o" * 32)
CLIENT = Hello("client", SECRET.cluster, "job1", "i-client")
NAME = "srv:_registry._tcp.moorage.mesos"
DEADLINE_S = 20.0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


class Group:
    """Three members; ``leader`` is the number of the one that leads."""

    def __init__(self) -> None:
        self.members = [Member(self, f"r{number}") for number in range(3)]
        self.leader = 0

    @property
    def addresses(self) -> list[str]:
        return [member.address for member in self.members]

    async def move(self, number: int) -> None:
        """To another port; another one leads meanwhile and after."""
        self.leader = (number + 1) % 3
        await self.members[number].stop()
        await self.members[number].start()


class Member:
    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        self.name = name
        self.address = ""
        self.remembers: list[str] = []  # what it takes for the members, when that is wrong
        self.asked = 0
        self.server: Server | None = None
        self.router = Router()
        for method, handler in (("view", self.view), ("status", self.status), ("describe", self.describe)):
            self.router.method(f"registry.{method}", handler)

    @property
    def leads(self) -> bool:
        return self.group.members[self.group.leader] is self

    async def start(self) -> None:
        hello = Hello("registry", SECRET.cluster, self.name, f"i-{self.name}")
        self.server = await serve("127.0.0.1:0", hello=hello, secret=SECRET, endpoint=self.router)
        self.address = self.server.address

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    async def view(self, _context: CallContext, _params: dict[str, Any]) -> Any:
        if not self.leads:
            raise NotLeader("another one leads")
        self.asked += 1
        return self.name

    async def status(self, context: CallContext, params: dict[str, Any]) -> Any:
        await self.view(context, params)
        return {"raft": await self.describe(context, params)}

    async def describe(self, _context: CallContext, _params: dict[str, Any]) -> Any:
        addresses = self.remembers or self.group.addresses
        members = [{"name": f"r{number}", "address": each} for number, each in enumerate(addresses)]
        leader = {"name": self.group.members[self.group.leader].name}
        return {"name": self.name, "leader": leader, "members": members}


@pytest.fixture
async def group() -> AsyncIterator[Group]:
    made = Group()
    for member in made.members:
        await member.start()
    yield made
    for member in made.members:
        await member.stop()
        await member.router.stop()


class Dns:
    """What a look-up finds: addresses, or why not; ``hangs``: nothing, for ever."""

    def __init__(self) -> None:
        self.says: list[str] | Exception = []
        self.hangs = False
        self.asked = 0

    async def resolve(self, spec: str) -> list[str]:
        assert spec == NAME
        self.asked += 1
        while self.hangs:
            await asyncio.sleep(0.01)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    made = Dns()
    monkeypatch.setattr(discovery, "resolve", made.resolve)
    monkeypatch.setattr(registry, "FOLLOW_S", 0.01)
    monkeypatch.setattr(registry, "LOOK_UP_EVERY_S", 0.05)
    return made


@pytest.fixture
async def client(dns: Dns) -> AsyncIterator[RegistryClient]:
    made = RegistryClient(NAME, hello=CLIENT, secret=SECRET)
    yield made
    await made.close()


@pytest.fixture
def mute() -> Iterator[list[str]]:
    """Ports that take a connection, and never say anything."""
    sockets = []
    for _ in range(12):
        sockets.append(socket.create_server(("127.0.0.1", 0)))
    yield [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()


async def test_the_dead_among_the_candidates_hold_nobody_up(
    group: Group, dns: Dns, client: RegistryClient, mute: list[str]
) -> None:
    dns.says = [*mute, *group.addresses]
    began = asyncio.get_running_loop().time()
    assert await client.call("registry.view", {}) == "r0"
    assert asyncio.get_running_loop().time() - began < 4, "one after the other: 2 s each"


async def test_what_is_wrong_of_each_candidate_is_said(
    dns: Dns, client: RegistryClient, mute: list[str]
) -> None:
    stranger = await serve(
        "127.0.0.1:0", hello=Hello("registry", OTHER.cluster, "x", "i-x"), secret=OTHER, endpoint=Router()
    )
    node = await serve(
        "127.0.0.1:0", hello=Hello("node", SECRET.cluster, "n", "i-n"), secret=SECRET, endpoint=Router()
    )
    dns.says = [stranger.address, node.address]
    with pytest.raises(DeadlineExceeded) as caught:  # in a moment DNS may say something else
        await client.call("registry.view", {}, timeout=1.5)
    assert f"of cluster {SECRET.cluster}" in str(caught.value) and OTHER.cluster in str(caught.value)
    assert f"{node.address} is a node, not a registry" in str(caught.value)
    dns.says = mute[:1]
    with pytest.raises(DeadlineExceeded, match="no answer"):
        await client.call("registry.view", {}, timeout=0.3)
    for server in (stranger, node):
        server.close()
        await server.wait_closed()


async def test_an_answer_that_comes_late_is_waited_for(
    group: Group, dns: Dns, client: RegistryClient
) -> None:
    dns.says = Unavailable("it has no SRV record")
    with pytest.raises(Unavailable, match="no SRV record"):
        await client.call("registry.view", {})
    for _ in range(50):  # whoever waits asks again and again; DNS is not asked so often
        with pytest.raises(Unavailable):
            await client.call("registry.view", {})
    assert dns.asked < 10
    dns.says = ["127.0.0.1:1"]
    asked = dns.asked
    await asyncio.sleep(0.06)  # the former answer is not fresh any more
    calling = asyncio.create_task(client.call("registry.view", {}))
    await eventually(lambda: dns.asked > asked)
    dns.says = group.addresses
    assert await calling == "r0"


async def test_members_are_followed_and_dns_is_not_needed_any_more(
    group: Group, dns: Dns, client: RegistryClient
) -> None:
    dns.says = [group.members[2].address]
    group.leader = 2
    assert await client.call("registry.view", {}) == "r2"
    await eventually(lambda: client._members == group.addresses)
    dns.says = Unavailable("it has no SRV record")
    for number in (2, 0, 1):
        await group.move(number)
        assert await client.call("registry.view", {}, timeout=5) == f"r{group.leader}"
        await eventually(lambda: client._members == group.addresses)
    dns.hangs = True
    await group.move(2)
    assert await client.call("registry.view", {}, timeout=5) == "r0"


async def test_a_client_that_asks_nothing_follows_too(group: Group, dns: Dns, client: RegistryClient) -> None:
    dns.says = group.addresses
    assert await client.call("registry.view", {}) == "r0"
    dns.says = ["127.0.0.1:1"]
    for number in (0, 1, 2):
        await group.move(number)
        await eventually(lambda: client._members == group.addresses)
    assert await client.call("registry.view", {}, timeout=5) == "r0"


async def test_members_are_followed_from_a_list_of_addresses_too(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who is on a port that all members have left says nothing about us."""
    monkeypatch.setattr(registry, "FOLLOW_S", 0.01)
    client = RegistryClient(",".join(group.addresses), hello=CLIENT, secret=SECRET)
    assert await client.call("registry.view", {}) == "r0"
    for number in (0, 1, 2):
        await group.move(number)
        await eventually(lambda: client._members == group.addresses)
    assert await client.call("registry.view", {}, timeout=5) == "r0"
    node = Hello("node", SECRET.cluster, "n", "i-n")
    others = []
    for member in group.members:
        await member.stop()
        others.append(await serve(member.address, hello=node, secret=SECRET, endpoint=Router()))
    with pytest.raises(DeadlineExceeded, match="is a node, not a registry"):
        await client.call("registry.view", {}, timeout=1.5)
    await client.close()
    for other in others:
        other.close()
        await other.wait_closed()


async def test_dns_helps_when_all_members_moved_unseen(
    group: Group, dns: Dns, client: RegistryClient
) -> None:
    dns.says = group.addresses
    assert await client.call("registry.view", {}) == "r0"
    await eventually(lambda: client._members == group.addresses)
    assert client._following is not None
    client._following.cancel()
    for member in group.members:
        await member.stop()
    for member in group.members:
        await member.start()
    dns.says = ["127.0.0.1:1", *group.addresses]
    assert await client.call("registry.view", {}, timeout=5) == "r0"


async def test_a_member_that_does_not_lead_tells_nobody_who_the_members_are(
    group: Group, dns: Dns, client: RegistryClient
) -> None:
    dns.says = group.addresses
    assert await client.call("registry.view", {}) == "r0"
    await eventually(lambda: client._members == group.addresses)
    group.members[0].remembers = ["127.0.0.1:1"]
    group.leader = 1
    await eventually(lambda: client.leader_address == group.members[1].address)
    assert client._members == group.addresses


class Liar(asyncio.Protocol):
    """Says that our identity is refused, and that what we asked for may have been done."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        error = frame.pack_error(IdentityConflict("start with an empty directory", outcome="unknown"))
        cast(asyncio.Transport, transport).write(frame.encode(frame.ERROR, frame.HELLO, 1, error, 0, 0, 0))


async def test_a_stranger_says_nothing_about_us(group: Group, dns: Dns, client: RegistryClient) -> None:
    listener = await asyncio.get_running_loop().create_server(Liar, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with pytest.raises(CannotConnect, match="empty directory") as caught:
        await connect(address, hello=CLIENT, secret=SECRET)
    assert caught.value.outcome == "not_done"
    dns.says = [address, *group.addresses]
    group.leader = 1
    for _ in range(5):
        client.leader_address = None
        assert await client.call("registry.view", {}) == "r1"
    listener.close()


async def test_a_client_is_closed_while_it_looks_up(dns: Dns, client: RegistryClient) -> None:
    dns.hangs = True
    calling = asyncio.create_task(client.call("registry.view", {}))
    await eventually(lambda: dns.asked == 1)
    await client.close()
    with pytest.raises(Unavailable):
        await calling


async def test_what_may_have_been_done_is_not_asked_for_again(group: Group, dns: Dns) -> None:
    """Though whoever answers so may be no registry: it has proved to hold the secret."""

    def check(method: str, answer: Any) -> None:
        raise ProtocolError(f"{answer} is none", outcome="unknown")

    dns.says = group.addresses[:1]
    client = RegistryClient(NAME, hello=CLIENT, secret=SECRET, check=check)
    with pytest.raises(ProtocolError, match="r0 is none"):
        await client.call("registry.view", {}, idempotent=False, timeout=5)
    assert group.members[0].asked == 1
    await client.close()


async def test_who_leads_is_asked_without_knowing_the_others(group: Group) -> None:
    """As metadata's leader is: where the others are is the registry's to say, which may be away."""
    asked: list[int] = []
    is_away = False

    async def candidates() -> list[str]:
        asked.append(len(asked))
        if is_away:
            raise Unavailable("the registry is away")
        return group.addresses

    client = LeaderClient(candidates, service="registry", hello=CLIENT, secret=SECRET)
    try:
        for _ in range(3):
            assert await client.call("registry.view", {}) == "r0"
        is_away = True
        assert await client.call("registry.view", {}) == "r0" and len(asked) == 1
        group.leader = 1
        with pytest.raises(Unavailable, match="registry is away"):
            await client.call("registry.view", {})
        is_away = False
        assert await client.call("registry.view", {}) == "r1"
        count = len(asked)
        await group.members[1].stop()
        group.leader = 2
        assert await client.call("registry.view", {}) == "r2" and len(asked) > count
    finally:
        await client.close()
