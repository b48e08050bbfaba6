"""A metadata group of three members in one process, with a registry and nodes that are simple stand-ins.

All calls go over real connections. The group's replication is either the real one (``real_cluster``) or a
log in memory whose leader the test names (``cluster``): there a test can stop the world at any step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moorage.client.repairer import Repairer
from moorage.metadata import attachments as attachments_module
from moorage.metadata import records
from moorage.metadata import service as service_module
from moorage.metadata.invariants import validate
from moorage.metadata.service import MetadataConfig, MetadataService
from moorage.service.embed import Route
from moorage.service.kv import KV
from moorage.service.replicated import StateMachine
from moorage.wire.errors import (
    DeadlineExceeded,
    IdentityConflict,
    LimitExceeded,
    MoorageError,
    NameTaken,
    NotFound,
    NotLeader,
    Stale,
)
from moorage.wire.handshake import Hello
from moorage.wire.leader import LeaderClient
from moorage.wire.rpc import CallContext, Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import Server, serve

GIB = 1 << 30
MEMBERS = ("host1", "host2", "host3")
SECRET = ClusterSecret("00112233445566ff", bytes(range(32)))
Params = dict[str, Any]


def hello(service: str, name: str, **extra: Any) -> Hello:
    return Hello(service, SECRET.cluster, name, f"{name}-{service}", extra)


async def until(reached: Callable[[], Any], timeout: float = 10.0) -> None:
    """Poll a condition; real tasks are at work meanwhile."""
    async with asyncio.timeout(timeout):
        while not reached():
            await asyncio.sleep(0.005)


class FakeRegistry:
    """The registry's methods that metadata uses, from a dict."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, str, int]] = {}
        self.uids: dict[str, str] = {}
        self.sizes: dict[str, int] = {}  # by name, as charged
        self.quota: int | None = None  # of each volume
        self.turn = (0, 0)
        self.view: Params = {"hosts": {}, "devices": {}, "services": [], "groups": ["m1"], "charging": True}
        self.failing: MoorageError | None = None
        self.address = ""

    async def start(self) -> Server:
        router = Router()
        methods = ("view", "claim", "charge", "settle", "release", "locate", "join_service")
        for name in methods:
            router.method(f"registry.{name}", getattr(self, f"_{name}"))
        server = await serve("127.0.0.1:0", hello=hello("registry", "r"), secret=SECRET, endpoint=router)
        self.address = server.address
        return server

    def add_device(self, device: str, host: str, address: str) -> None:
        up = {"health": "up", "reason": "", "since_ms": 0}
        self.view["hosts"][host] = {"labels": {}, "address": address, "http": "", **up}
        self.view["devices"][device] = {
            "host": host,
            "address": address,
            "capacity": 100 * GIB,
            "used": 0,
            **up,
        }

    async def _view(self, context: CallContext, params: Params) -> Params:
        self._check()
        return self.view

    async def _claim(self, context: CallContext, params: Params) -> Params:
        self._check()
        wanted = params["group"], params["kind"], params["id"]
        found = self.names.get(params["name"], wanted)
        if found[:2] != wanted[:2] or found[2] > wanted[2]:
            raise NameTaken(f"the name {params['name']!r} is taken by a volume of another group")
        if self.quota is not None and params["size"] > self.quota:
            raise LimitExceeded(f"{params['principal']} has a quota of {self.quota}")
        if self.names.get(params["name"]) != wanted:
            self.sizes[params["name"]] = params["size"]
        self.names[params["name"]] = wanted
        return {"group": params["group"]}

    async def _charge(self, context: CallContext, params: Params) -> Params:
        self._check()
        if (quota := self.quota) is not None and params["size"] > quota:
            raise LimitExceeded(f"{params['principal']} has a quota of {quota}")
        self._not_of_a_former_leader(params)
        self.sizes[params["name"]] = params["size"]
        return {}

    async def _settle(self, context: CallContext, params: Params) -> Params:
        self._check()
        self._not_of_a_former_leader(params)
        for name, number, _, size in params["charges"]:
            if self.names.get(name) == (params["group"], "volume", number):
                self.sizes[name] = size
        return {}

    def _not_of_a_former_leader(self, params: Params) -> None:
        if (params["term"], params["count"]) < self.turn:
            raise Stale("late")
        self.turn = params["term"], params["count"]

    async def _release(self, context: CallContext, params: Params) -> Params:
        self._check()
        found = self.names.get(params["name"], (params["group"], "", 0))
        if found[0] != params["group"]:
            raise NameTaken("not yours")
        if found[2] <= params["id"]:
            self.names.pop(params["name"], None)
            self.sizes.pop(params["name"], None)
        return {}

    async def _locate(self, context: CallContext, params: Params) -> Params:
        if params["name"] not in self.names:
            raise NotFound("no such name")
        return {"group": self.names[params["name"]][0]}

    async def _join_service(self, context: CallContext, params: Params) -> Params:
        self._check()
        if self.uids.setdefault(params["group"], params["uid"]) != params["uid"]:
            raise IdentityConflict("another group has this name")
        if params not in self.view["services"]:
            self.view["services"].append(params)
        return {}

    def _check(self) -> None:
        if self.failing is not None:
            raise self.failing


class FakeNode:
    """Holds ids of replicas. ``gate`` holds orders back, ``refusing`` fails them."""

    def __init__(self, device: str, host: str) -> None:
        self.device = device
        self.host = host
        self.replicas: dict[int, Params] = {}
        self.dropped: list[int] = []
        self.created_again: list[int] = []  # after their drop: an id would be used twice
        self.refusing: MoorageError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.server: Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> str:
        router = Router()
        router.method("node.create_replica", self._create)
        router.method("node.drop_replica", self._drop)
        me = hello("node", self.host, device=self.device)
        self.server = await serve(address, hello=me, secret=SECRET, endpoint=router)
        return self.server.address

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    async def _pass(self) -> None:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.refusing is not None:
            raise self.refusing

    async def _create(self, context: CallContext, params: Params) -> Params:
        assert context.peer.service in ("metadata", "host")
        await self._pass()
        if params["replica"] in self.dropped:
            self.created_again.append(params["replica"])
        self.replicas[params["replica"]] = params
        return {}

    async def _drop(self, context: CallContext, params: Params) -> Params:
        await self._pass()
        self.replicas.pop(params["replica"], None)
        self.dropped.append(params["replica"])
        return {}


class FakeLog:
    """The replicated log of the group, in memory. ``on_propose`` runs before a command is appended."""

    def __init__(self) -> None:
        self.commands: list[Params] = []
        self.members: dict[str, FakeReplicated] = {}
        self.leader: str | None = None
        self.term = 0
        self.on_propose: Callable[[Params], Awaitable[None]] | None = None
        self.loses_reply: Callable[[], bool] = lambda: False

    def elect(self, name: str | None) -> None:
        old, self.leader = self.leader, name
        self.term += 1
        for member, leading in ((old, False), (name, True)):
            if member is not None and member in self.members:
                for callback in self.members[member].on_leader_change:
                    callback(leading)


class FakeReplicated:
    """What ``Replicated`` promises, on a :class:`FakeLog`."""

    log: FakeLog  # set per test

    def __init__(self, *, name: str, machine: StateMachine, peers: Mapping[str, str], **_: Any) -> None:
        self.group = "m1"
        self.name = name
        self.kv = KV()
        self.on_leader_change: list[Callable[[bool], None]] = []
        self.on_failure: list[Callable[[MoorageError], None]] = []
        self._machine = machine
        self._peers = dict(peers)
        self.failed: MoorageError | None = None
        self._applied = 0

    async def start(self) -> None:
        self.log.members[self.name] = self
        self.apply_all()

    async def stop(self) -> None:
        self.log.members.pop(self.name, None)
        if self.is_leader:
            self.log.leader = None

    def register(self, router: Router) -> None: ...

    def routes(self) -> list[Route]:
        return []

    async def propose(self, command: Params, timeout: float = 5.0) -> Any:
        self._check_leads()
        if self.log.on_propose is not None:
            await self.log.on_propose(command)
        await asyncio.sleep(0)
        self._check_leads()
        self.log.commands.append(command)
        results = [member.apply_all() for member in self.log.members.values() if member is not self]
        result = self.apply_all()
        assert all(type(other) is type(result) for other in results)
        if self.log.loses_reply():
            raise DeadlineExceeded("outcome unknown: the reply was lost")
        if isinstance(result, MoorageError):
            raise result
        return result

    def apply_all(self) -> Any:
        result: Any = None
        while self._applied < len(self.log.commands):
            command = self.log.commands[self._applied]
            self._applied += 1
            try:
                result = self._machine.apply(self.kv, command, self._applied)
                self.kv.commit()
            except MoorageError as error:
                self.kv.rollback()
                result = error
            validate(self.kv)
        return result

    async def read_barrier(self, timeout: float = 5.0) -> None:
        self._check_leads()
        await asyncio.sleep(0)
        self._check_leads()

    def _check_leads(self) -> None:
        if not self.is_leader:
            raise NotLeader(f"{self.name} does not lead", leader=self.leader)

    @property
    def is_served(self) -> bool:
        return self.leader is not None

    @property
    def is_leader(self) -> bool:
        return self.log.leader == self.name and self.name in self.log.members

    @property
    def term(self) -> int:
        return self.log.term

    @property
    def leader(self) -> Params | None:
        name = self.log.leader
        return {"name": name, "address": self._peers[name]} if name in self._peers else None

    @property
    def members(self) -> list[Params]:
        return [{"name": name, "address": address, "voter": True} for name, address in self._peers.items()]


class Cluster:
    """Three metadata members, a registry, and ``hosts`` nodes with one device each."""

    def __init__(self, directory: Path, *, hosts: int, lease_ms: int, create_timeout_s: float) -> None:
        self.directory = directory
        self.lease_ms = lease_ms
        self.create_timeout_s = create_timeout_s
        self.registry = FakeRegistry()
        self.nodes = [FakeNode(f"dev{n}", f"host{n}") for n in range(1, hosts + 1)]
        self.services: dict[str, MetadataService] = {}
        self.addresses: dict[str, str] = {}
        self._servers: dict[str, Server] = {}
        self._routers: dict[str, Router] = {}
        self._registry_server: Server | None = None
        self.client = LeaderClient(
            self._candidates, service="metadata", hello=hello("client", "tester"), secret=SECRET
        )

    async def _candidates(self) -> list[str]:
        return list(self.addresses.values())

    async def start(self) -> None:
        self._registry_server = await self.registry.start()
        for node in self.nodes:
            self.registry.add_device(node.device, node.host, await node.start())
        for name in MEMBERS:
            await self._listen(name, "127.0.0.1:0")
        for name in MEMBERS:
            await self._start_service(name)

    async def _listen(self, name: str, address: str) -> None:
        self._routers[name] = Router()
        self._servers[name] = await serve(
            address, hello=hello("metadata", name), secret=SECRET, endpoint=self._routers[name]
        )
        self.addresses[name] = self._servers[name].address

    async def _start_service(self, name: str) -> None:
        config = MetadataConfig(
            name=name,
            group="m1",
            directory=self.directory / name,
            address=self.addresses[name],
            http="127.0.0.1:1",
            registry=self.registry.address,
            secret=SECRET,
            hello=hello("metadata", name),
            peers=self.addresses,
            lease_ms=self.lease_ms,
            create_timeout_s=self.create_timeout_s,
            view_interval_s=0.05,
        )
        self.services[name] = MetadataService(config, Repairer(config.hello, SECRET))
        await self.services[name].start(self._routers[name])

    async def stop_member(self, name: str) -> None:
        await self.services.pop(name).stop()
        await self._routers[name].stop()
        self._servers[name].close()
        await self._servers[name].wait_closed()

    async def restart_member(self, name: str) -> None:
        await self._listen(name, self.addresses[name])
        await self._start_service(name)

    async def stop(self) -> None:
        await self.client.close()
        for node in self.nodes:
            node.gate.set()
        for name in list(self.services):
            await self.stop_member(name)
        for node in self.nodes:
            await node.stop()
        if self._registry_server is not None:
            self._registry_server.close()
            await self._registry_server.wait_closed()

    # -- what tests ask for ------------------------------------------------------------------------------

    def leader(self) -> MetadataService:
        return next(service for service in self.services.values() if service.replicated.is_leader)

    def has_leader(self) -> bool:
        return any(service.replicated.is_leader for service in self.services.values())

    async def call(self, method: str, timeout: float = 10.0, **params: Any) -> Any:
        return await self.client.call(f"metadata.{method}", params, timeout=timeout)

    async def create(self, name: str = "db", *, timeout: float = 10.0, **more: Any) -> Any:
        params = {"name": name, "size": GIB, "request": f"create-{name}"[:64], **more}
        return await self.call("create_volume", timeout, **params)

    async def attach(self, name: str, writer: int, *, timeout: float = 10.0, **more: Any) -> Any:
        holder = {"host": "h", "pid": writer, "program": "fio"}
        return await self.call(
            "attach", timeout, **{"name": name, "writer": writer, "holder": holder, **more}
        )

    def replicas(self) -> list[int]:
        return sorted(replica for node in self.nodes for replica in node.replicas)


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[Cluster]:
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@pytest.fixture
def fake_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLog]:
    log = FakeLog()
    monkeypatch.setattr(FakeReplicated, "log", log, raising=False)
    monkeypatch.setattr(service_module, "Replicated", FakeReplicated)
    yield log


@pytest.fixture
async def new_cluster(tmp_path: Path, fake_log: FakeLog) -> AsyncIterator[Cluster]:
    """Its group has no leader yet, and is not founded."""
    async with running(Cluster(tmp_path, hosts=4, lease_ms=4000, create_timeout_s=1.0)) as made:
        yield made


@pytest.fixture
async def cluster(new_cluster: Cluster, fake_log: FakeLog) -> Cluster:
    """Led by host1 until the test elects another."""
    fake_log.elect("host1")
    members = new_cluster.services.values()
    await until(lambda: all(records.admitted(each.replicated.kv) for each in members))
    return new_cluster


@pytest.fixture
async def real_cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(Cluster(tmp_path, hosts=4, lease_ms=2000, create_timeout_s=5.0)) as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The leader's monotonic clock for leases, moved by the test."""

    class Clock:
        ahead_ms = 0

    made = Clock()
    real = attachments_module._now_ms
    monkeypatch.setattr(attachments_module, "_now_ms", lambda: real() + made.ahead_ms)
    return made
