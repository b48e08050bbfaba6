"""Channels that come back, clients that find the leader, names that DNS knows."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from moorage.wire import discovery
from moorage.wire.channel import Channel
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DeadlineExceeded,
    Denied,
    IdentityConflict,
    Invalid,
    MoorageError,
    NameTaken,
    NotLeader,
    ProtocolError,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve

SECRET = ClusterSecret("ab" * 8, b"k" * 32)
CLIENT = Hello("client", SECRET.cluster, "job1", "i-client")
DEADLINE_S = 10.0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


class Member:
    """One member of a replicated service, as far as its clients see it."""

    def __init__(self, name: str, service: str = "registry") -> None:
        self.name = name
        self.hello = Hello(service, SECRET.cluster, name, f"i-{name}")
        self.leader: Member | None = None
        self.router = Router()
        self.router.method("add", self.add)
        self.server: Server | None = None
        self.address = "127.0.0.1:0"
        self.added: list[int] = []
        self.fail: MoorageError | None = None
        self.deaf = False

    async def start(self) -> None:
        self.server = await serve(self.address, hello=self.hello, secret=SECRET, endpoint=self.router)
        self.address = self.server.address

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    async def add(self, context: CallContext, params: dict[str, Any]) -> Any:
        if self.leader is not self:
            hint = None
            if self.leader is not None:
                hint = {"name": self.leader.name, "address": self.leader.address}
            raise NotLeader(f"{self.name} does not lead", leader=hint)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        if self.deaf:
            self.deaf = False
            self.added.append(params["n"])
            context.conn.close()
        self.added.append(params["n"])
        return self.name


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    made = [Member(f"m{number}") for number in range(3)]
    for member in made:
        member.leader = made[1]
        await member.start()
    yield made
    for member in made:
        await member.stop()
        await member.router.stop()


def client_of(members: list[Member], **options: Any) -> LeaderClient:
    addresses = options.pop("addresses", [member.address for member in members])
    return LeaderClient(addresses, service="registry", hello=CLIENT, secret=SECRET, **options)


async def test_what_is_no_answer_is_asked_of_others(members: list[Member]) -> None:
    """The one that said so may have done what was asked for."""
    wrong = ["m1"]

    def check(method: str, answer: Any) -> None:
        if answer in wrong:
            raise ProtocolError(f"{answer} is none", outcome="unknown")

    client = client_of(members, check=check)
    with pytest.raises(ProtocolError, match="m1 is none") as caught:
        await client.call("add", {"n": 1}, timeout=5)
    assert caught.value.outcome == "unknown" and members[1].added
    wrong.clear()
    assert await client.call("add", {"n": 2}, timeout=5) == "m1"
    await client.close()


# -- channel -------------------------------------------------------------------------------------------


class Watch:
    def __init__(self) -> None:
        self.ups: list[str] = []
        self.downs: list[MoorageError] = []

    def channel(self, address: str, **options: Any) -> Channel:
        return Channel(
            address, hello=lambda: CLIENT, secret=SECRET, on_up=self.up, on_down=self.downs.append, **options
        )

    def up(self, conn: Connection) -> None:
        self.ups.append(conn.peer.name)


async def test_a_channel_comes_back_with_its_peer(members: list[Member]) -> None:
    watch, member = Watch(), members[1]
    channel = watch.channel(member.address)
    with pytest.raises(Unavailable):
        await channel.connected(0.01)
    channel.start()
    assert await channel.call("add", {"n": 1}, timeout=5) == "m1"
    assert channel.state == "up"
    await member.stop()
    await eventually(lambda: channel.state == "down" or channel.state == "connecting")
    assert watch.ups == ["m1"] and len(watch.downs) == 1
    await eventually(lambda: channel.last_error is not None)
    await member.start()
    assert await channel.call("add", {"n": 2}, timeout=5) == "m1"
    assert watch.ups == ["m1", "m1"]
    await channel.stop()
    state: str = channel.state
    assert state == "stopped" and channel.conn is None


async def test_a_channel_says_why_it_is_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        watch = Watch()
        channel = watch.channel(f"127.0.0.1:{free.getsockname()[1]}")
        channel.start()
        with pytest.raises(Unavailable, match="cannot connect to 127"):
            await channel.connected(0.1)
        assert channel.silent_for_s >= 0.09
        await channel.stop()
        assert watch.ups == [] and watch.downs == []


async def test_a_channel_refuses_another_peer_and_follows_a_move(members: list[Member]) -> None:
    def expect(peer: Hello) -> None:
        if peer.name != "m2":
            raise IdentityConflict(f"wanted m2, found {peer.name}")

    watch = Watch()
    channel = watch.channel(members[0].address, expect=expect)
    channel.start()
    await eventually(lambda: isinstance(channel.last_error, IdentityConflict))
    assert channel.conn is None and watch.ups == []
    channel.set_address(members[2].address)
    assert (await channel.connected(5)).peer.name == "m2"
    assert watch.ups == ["m2"]
    await channel.stop()


async def test_a_channel_gives_up_a_silent_peer(members: list[Member]) -> None:
    watch, member = Watch(), members[0]
    channel = watch.channel(member.address, ping_after_s=0.05, silence_s=0.3)
    channel.start()
    await channel.connected(5)
    assert member.server is not None
    await eventually(lambda: len(member.server.connections) == 1 if member.server else False)
    transport = next(iter(member.server.connections))._transport
    assert transport is not None
    transport.pause_reading()  # its socket stays open, but nobody is behind it
    await eventually(lambda: len(watch.downs) == 1)
    assert "is silent for" in str(watch.downs[0])
    await eventually(lambda: watch.ups == ["m0", "m0"])  # a new connection finds it well
    await channel.stop()


async def test_a_channel_is_stopped_while_it_connects() -> None:
    with socket.socket() as mute:  # accepts in its backlog, and never says anything
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        channel = Watch().channel(f"127.0.0.1:{mute.getsockname()[1]}")
        channel.start()
        await eventually(lambda: channel.state == "connecting")
        await channel.stop()
        assert channel.conn is None


# -- leader --------------------------------------------------------------------------------------------


async def test_the_leader_is_found_and_kept(members: list[Member]) -> None:
    client = client_of(members)
    for number in range(5):
        assert await client.call("add", {"n": number}) == "m1"
    assert client.leader_address == members[1].address
    assert members[1].added == list(range(5))
    await client.close()


async def test_a_hint_leads_to_a_member_that_is_no_candidate(members: list[Member]) -> None:
    client = client_of(members, addresses=[members[0].address])
    assert await client.call("add", {"n": 1}) == "m1"
    await client.close()


async def test_a_new_leader_is_found_when_the_old_one_is_gone(members: list[Member]) -> None:
    client = client_of(members)
    assert await client.call("add", {"n": 1}) == "m1"
    await members[1].stop()
    for member in members:
        member.leader = None  # an election is under way
    call = asyncio.create_task(client.call("add", {"n": 2}))
    await asyncio.sleep(0.05)
    assert not call.done()
    for member in members:
        member.leader = members[2]
    assert await call == "m2"
    await client.close()


async def test_without_a_leader_the_error_says_whom_it_waits_for(members: list[Member]) -> None:
    for member in members:
        member.leader = None
    await members[1].stop()
    client = client_of(members)
    with pytest.raises(DeadlineExceeded) as caught:
        await client.call("add", {"n": 1}, timeout=0.3)
    text = str(caught.value)
    assert "no leader of the registry answered in 0.3 s" in text
    assert f"{members[0].address}: m0 does not lead" in text
    assert f"{members[1].address}: cannot connect to" in text
    await client.close()


async def test_members_that_point_at_each_other_do_not_keep_the_client(members: list[Member]) -> None:
    members[0].leader, members[1].leader, members[2].leader = members[1], members[0], members[0]
    client = client_of(members)
    with pytest.raises(DeadlineExceeded):
        await client.call("add", {"n": 1}, timeout=0.2)
    await client.close()


async def test_an_answer_that_is_an_error_is_final(members: list[Member]) -> None:
    client = client_of(members)
    members[1].fail = NameTaken("taken")
    with pytest.raises(NameTaken):
        await client.call("add", {"n": 1})
    members[1].fail = Unavailable("not now")
    assert await client.call("add", {"n": 2}) == "m1"
    await client.close()


async def test_an_unknown_outcome_is_tried_again_only_when_harmless(members: list[Member]) -> None:
    client = client_of(members)
    members[1].deaf = True
    with pytest.raises(ConnectionLost):
        await client.call("add", {"n": 1}, idempotent=False)
    assert members[1].added[0] == 1
    members[1].deaf = True
    assert await client.call("add", {"n": 2}) == "m1"
    await client.close()


async def test_another_service_or_cluster_behind_the_address_is_not_believed(members: list[Member]) -> None:
    impostor = Member("n1", service="node")
    impostor.leader = impostor
    await impostor.start()
    client = client_of(members, addresses=[impostor.address])
    with pytest.raises(ProtocolError, match="is a node, not a registry"):
        await client.call("add", {"n": 1})
    await client.close()
    client = client_of(members, addresses=[impostor.address, members[0].address])
    assert await client.call("add", {"n": 1}) == "m1"
    await client.close()
    assert impostor.added == []
    wrong = ClusterSecret(SECRET.cluster, b"x" * 32)
    client = LeaderClient([members[0].address], service="registry", hello=CLIENT, secret=wrong)
    with pytest.raises(AuthenticationFailed):
        await client.call("add", {"n": 1})
    await client.close()
    await impostor.stop()


@pytest.mark.parametrize("then_asked", [True, False])
async def test_a_refusal_says_nothing_of_an_attempt_before_it(
    members: list[Member], then_asked: bool
) -> None:
    """The first one was answered by nobody, and may take effect yet; the second one certainly had none."""
    asked = 0

    async def candidates() -> list[str]:
        nonlocal asked
        asked += 1
        if asked > 1 and not then_asked:
            raise Denied("nobody may know where they are")
        return [members[1].address]

    members[1].deaf = True
    client = client_of(members, addresses=candidates)
    calling = asyncio.create_task(client.call("add", {"n": 1}, timeout=5))
    await eventually(lambda: not members[1].deaf)
    members[1].fail = NameTaken("it is taken")
    with pytest.raises(NameTaken if then_asked else Denied) as found:
        await calling
    assert found.value.outcome == "unknown"
    with pytest.raises(MoorageError) as again:  # a call for itself
        members[1].fail = NameTaken("it is taken")
        await client.call("add", {"n": 1})
    assert again.value.outcome == "not_done"
    await client.close()


async def test_candidates_may_be_looked_up_anew(members: list[Member]) -> None:
    rounds: list[list[str]] = [[], [members[0].address]]

    async def candidates() -> list[str]:
        return rounds.pop(0) if len(rounds) > 1 else rounds[0]

    client = client_of(members, addresses=candidates)
    assert await client.call("add", {"n": 1}) == "m1"
    conn = await client.connection()
    assert conn.peer.service == "registry"
    await client.close()
    with pytest.raises(Invalid, match="closed"):
        await client.call("add", {"n": 1})


async def test_what_may_have_been_done_stays_unknown_when_no_candidate_is_known_any_more(
    members: list[Member],
) -> None:
    rounds = 0

    async def candidates() -> list[str]:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            await asyncio.sleep(DEADLINE_S)  # nobody says where the service is
        return [members[1].address]

    members[1].deaf = True
    client = client_of(members, addresses=candidates)
    with pytest.raises(Unavailable) as caught:
        await client.call("add", {"n": 1}, timeout=0.3)
    assert members[1].added and caught.value.outcome == "unknown"
    rounds = 1  # this time nobody was asked at all
    with pytest.raises(Unavailable) as caught:
        await client.call("add", {"n": 2}, timeout=0.1)
    assert caught.value.outcome == "not_done"
    await client.close()


# -- discovery -----------------------------------------------------------------------------------------


NOWHERE = "0 0 1 y."  # no server knows this host


class Dns(asyncio.DatagramProtocol):
    """A name server for one name, and for the hosts h1.x. (10.0.0.1), h2.x. and so on; of hN6.x. it has the
    address fd00::N."""

    def __init__(self, records: list[str], rcode: int = 0) -> None:
        self.records, self.rcode = records, rcode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: Any) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.Rcode(self.rcode))
        asked = query.question[0]
        kind = dns.rdatatype.to_text(asked.rdtype)
        found = self.records if kind == "SRV" else self.host(asked.name.to_text(), kind)
        if found:
            answer.answer.append(dns.rrset.from_text(asked.name, 5, "IN", kind, *found))
        self.transport.sendto(answer.to_wire(), source)

    def host(self, name: str, kind: str) -> list[str]:
        found = re.fullmatch(r"h(\d)(6?)\.x\.", name)
        if found is None or (kind == "AAAA") != bool(found[2]):
            return []
        return [f"fd00::{found[1]}" if found[2] else f"10.0.0.{found[1]}"]


async def ask(records: list[str], rcode: int = 0, name: str = "_registry._tcp.moorage.mesos") -> list[str]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Dns(records, rcode), ("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    try:
        return await discovery.resolve(f"srv:{name}", resolver=resolver)
    finally:
        transport.close()
        await asyncio.sleep(0)


async def test_srv_records_become_addresses_in_their_order() -> None:
    found = await ask(["1 5 31003 h36.x.", "0 1 31001 h1.x.", "0 9 31002 h2.x.", "0 9 31002 h2.x.", NOWHERE])
    assert found == ["10.0.0.2:31002", "10.0.0.1:31001", "[fd00::3]:31003"]


async def test_srv_names_that_lead_nowhere_are_said() -> None:
    with pytest.raises(Unavailable, match="has no SRV record"):
        await ask([], rcode=int(dns.rcode.NXDOMAIN))
    with pytest.raises(Unavailable, match="has no SRV record"):
        await ask([])
    with pytest.raises(Unavailable, match="cannot look up"):
        await ask([], rcode=int(dns.rcode.SERVFAIL))
    with pytest.raises(Unavailable, match="not available"):
        await ask(["0 0 0 ."])
    with pytest.raises(Unavailable, match="leads to y, of which no address is known"):
        await ask([NOWHERE])
    with pytest.raises(Invalid, match="bad SRV name"):
        await ask([], name="a..b")
    with pytest.raises(Invalid):
        await discovery.resolve("srv:")
