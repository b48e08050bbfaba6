"""The registry's methods over real connections, on a group of one that obeys the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from moorage.registry import state
from moorage.registry.handlers import RegistryHandlers
from moorage.registry.health import HealthBoard, Timings
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.service.replicated import Replicated
from moorage.wire.connection import Connection
from moorage.wire.errors import (
    Behind,
    IdentityConflict,
    Invalid,
    MoorageError,
    NameTaken,
    NotFound,
    NotLeader,
    Stale,
)
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect, serve

SECRET = ClusterSecret("0123456789abcdef", bytes(32))
TIMINGS = Timings(heartbeat_ms=40, suspect_ms=200, down_ms=10_000)


class Group:
    """What the handlers use of Replicated. ``unapplied``: committed, and seen only after a read barrier."""

    def __init__(self) -> None:
        self.kv = KV()
        self.is_leader = True
        self.term = 7
        self.leader: dict[str, Any] | None = {"name": "r1", "address": "127.0.0.1:1"}
        self.members = [{"name": "r1", "address": "127.0.0.1:1", "voter": True}]
        self.barriers = 0
        self.unapplied: list[dict[str, Any]] = []
        self.proposed: list[str] = []
        self.meanwhile: dict[str, Any] | None = None  # committed before what is proposed next
        self.barrier_error: MoorageError | None = None
        self._machine = RegistryMachine()

    async def propose(self, command: dict[str, Any], timeout: float = 5.0) -> Any:
        await asyncio.sleep(0)
        self.proposed.append(command["op"])
        if self.meanwhile is not None:
            self.apply(self.meanwhile)
            self.meanwhile = None
        return self.apply(command)

    def apply(self, command: dict[str, Any]) -> Any:
        try:
            result = self._machine.apply(self.kv, command, 1)
        except MoorageError:
            self.kv.rollback()
            raise
        self.kv.commit()
        return result

    async def read_barrier(self, timeout: float = 5.0) -> None:
        self.barriers += 1
        if self.barrier_error is not None:
            raise self.barrier_error
        while self.unapplied:
            self.apply(self.unapplied.pop(0))

    def status(self) -> dict[str, Any]:
        return {"term": self.term}


class Registry:
    def __init__(self) -> None:
        self.group = Group()
        self.now = 1_000_000
        self.board = HealthBoard(TIMINGS)
        self.handlers = RegistryHandlers(
            name="r1",
            cluster=SECRET.cluster,
            group=cast(Replicated, self.group),
            board=self.board,
            now_ms=lambda: int(asyncio.get_running_loop().time() * 1000) + self.now,
        )
        self.address = ""
        self._open: list[Connection] = []

    async def connect(self) -> Connection:
        hello = Hello("node", SECRET.cluster, "h1", "i")
        conn = await connect(self.address, hello=hello, secret=SECRET)
        self._open.append(conn)
        return conn

    async def close(self) -> None:
        for conn in self._open:
            conn.close()
            await conn.wait_closed()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    registry = Registry()
    router = Router()
    registry.handlers.install(router)
    registry.handlers.begin_serving()
    hello = Hello("registry", SECRET.cluster, "r1", "i")
    server = await serve("127.0.0.1:0", hello=hello, secret=SECRET, endpoint=router)
    registry.address = server.address
    yield registry
    await registry.close()
    await router.stop()
    server.close()
    await server.wait_closed()


async def call(conn: Connection, method: str, **params: Any) -> Any:
    result, _ = await conn.call(f"registry.{method}", params, timeout=5)
    return result


def device(**changes: Any) -> dict[str, Any]:
    fields = {
        "device": "d1", "host": "h1", "address": "10.0.0.1:7", "capacity": 100,
        "old_token": "", "new_token": "t1", "count": 0,
    }  # fmt: skip
    return {**fields, **changes}


def beat(count: int, token: str = "t1", **changes: Any) -> dict[str, Any]:
    fields = {
        "device": "d1", "token": token, "count": count, "address": "10.0.0.1:7",
        "capacity": 100, "used": 5, "failed": None,
    }  # fmt: skip
    return {**fields, **changes}


async def test_describe_is_answered_by_any_member(registry: Registry) -> None:
    registry.handlers.serving = False
    found = await call(await registry.connect(), "describe")
    assert found == {
        "cluster": SECRET.cluster,
        "service": "registry",
        "name": "r1",
        "leader": {"name": "r1", "address": "127.0.0.1:1"},
        "members": [{"name": "r1", "address": "127.0.0.1:1"}],
        "term": 7,
    }


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("join_host", {"host": "h1", "labels": {}, "address": "a:1", "http": ""}),
        ("join_service", {"service": "metadata", "group": "m1", "name": "h1", "address": "a:1", "uid": "u"}),
        ("start_device", device()),
        ("heartbeat", beat(1)),
        ("view", {}),
        ("claim", {"name": "db", "kind": "volume", "group": "m1", "id": 1}),
        ("locate", {"name": "db"}),
        ("release", {"name": "db", "group": "m1", "id": 1}),
        ("status", {}),
    ],
)
async def test_all_else_is_the_leaders(registry: Registry, method: str, params: dict[str, Any]) -> None:
    conn = await registry.connect()
    registry.handlers.serving = False
    with pytest.raises(NotLeader) as found:
        await call(conn, method, **params)
    assert found.value.details["leader"] is None, (
        "it leads, but has not caught up: there is nobody to ask yet"
    )
    registry.group.is_leader = False
    with pytest.raises(NotLeader) as found:
        await call(conn, method, **params)
    assert found.value.details["leader"] == registry.group.leader
    assert registry.group.proposed == []


async def test_a_device_in_the_view(registry: Registry) -> None:
    conn = await registry.connect()
    await call(conn, "join_host", host="h1", labels={"rack": "a"}, address="10.0.0.1:7", http="10.0.0.1:8")
    member = {"service": "metadata", "group": "m1", "name": "h1", "address": "10.0.0.1:7", "http": ""}
    await call(conn, "join_service", **member, uid="u1")
    await call(conn, "start_device", **device())
    view = await call(conn, "view")
    assert view["devices"]["d1"]["health"] == "suspect"
    assert await call(conn, "heartbeat", **beat(1)) == {"interval_ms": 40}
    view = await call(conn, "view")
    for row in (view["devices"]["d1"], view["hosts"]["h1"]):
        assert 0 <= row.pop("since_ms") < 5_000
    assert view == {
        "hosts": {
            "h1": {
                "labels": {"rack": "a"},
                "address": "10.0.0.1:7",
                "http": "10.0.0.1:8",
                "health": "up",
                "reason": "",
                "drain": None,
            }
        },
        "devices": {
            "d1": {
                "host": "h1",
                "address": "10.0.0.1:7",
                "capacity": 100,
                "used": 5,
                "health": "up",
                "reason": "",
                "drain": None,
                "token": "t1",
            }
        },
        "services": [
            {"service": "metadata", "group": "m1", "name": "h1", "address": "10.0.0.1:7", "http": ""}
        ],
        "groups": ["m1"],
        "charging": False,
        "balance": {"paused": False, "at_ms": 0, "by": ""},
    }
    status = await call(conn, "status")
    assert (status["devices"], status["hosts"], status["services"]) == ({"up": 1}, 1, 1)


async def test_the_view_of_the_largest_cluster_fits_into_a_frame(registry: Registry) -> None:
    conn = await registry.connect()
    where = {
        "address": "storage-0000.rack-00.example.org:31000",
        "http": "storage-0000.rack-00.example.org:31001",
    }
    for number in range(state.HOSTS_MAX):
        labels = {"rack": f"rack-{number // 16:04}", "zone": "europe-1", "kind": "hdd"}
        registry.group.apply({"op": "join_host", "host": f"storage-{number:04}", "labels": labels, **where})
    for number in range(state.DEVICES_MAX):
        fields = device(
            device=f"{number:032}", new_token=f"{number:032}", host=f"storage-{number // 2:04}", **where
        )
        registry.group.apply({"op": "start_device", **fields})
    for number in range(state.SERVICES_MAX):
        fields = {"service": "metadata", "group": f"m{number}", "name": f"storage-{number:04}", **where}
        fields["uid"] = f"{number:032}"
        registry.group.apply({"op": "join_service", **fields})
    view = await call(conn, "view")
    assert [len(view[each]) for each in ("hosts", "devices", "services")] == [512, 1024, 1024]


async def test_joining_again_needs_no_entry_in_the_log(registry: Registry) -> None:
    conn = await registry.connect()
    for _ in range(3):
        await call(conn, "join_host", host="h1", labels={}, address="10.0.0.1:7", http="")
        await call(
            conn,
            "join_service",
            service="node",
            group="x",
            name="h1",
            address="10.0.0.1:7",
            http="",
            uid="u1",
        )
    assert registry.group.proposed == ["join_host", "join_service"]
    await call(conn, "join_host", host="h1", labels={}, address="10.0.0.1:9", http="")
    assert registry.group.proposed[2:] == ["join_host"]


async def test_nothing_is_charged_before_the_first_quota(registry: Registry) -> None:
    """Members that know no charges would stop at one: they are upgraded before quotas are used."""
    conn, volume = await registry.connect(), {"kind": "volume", "group": "m1", "size": 5, "principal": "a"}
    await call(conn, "claim", name="old", id=1, **volume)
    turn = {"group": "m1", "term": 1, "count": 1}
    assert await call(conn, "charge", name="old", id=1, size=6, principal="a", **turn) == {}
    assert registry.group.proposed == ["claim"] and not (await call(conn, "view"))["charging"]
    assert (await call(conn, "set_quota", principal="a", capacity=20))["used_volumes"] == 0
    assert (await call(conn, "view"))["charging"]
    await call(conn, "claim", name="new", id=2, **volume)
    await call(conn, "charge", name="old", id=1, size=6, principal="a", **turn)
    (row,) = (await call(conn, "quotas"))["quotas"]
    assert (row["used_volumes"], row["used_bytes"]) == (2, 11)
    # the quota comes between the look and the command: what has no row yet is not settled
    registry.group.kv.delete("charging")
    registry.group.kv.commit()
    registry.group.meanwhile = {"op": "set_quota", "principal": "b"}
    await call(conn, "claim", name="third", id=3, **volume)
    assert registry.group.proposed[-2:] == ["claim", "claim_charged"]
    assert (await call(conn, "quotas"))["quotas"][0]["used_volumes"] == 3


async def test_the_directory_of_names(registry: Registry) -> None:
    conn = await registry.connect()
    with pytest.raises(NotFound):
        await call(conn, "locate", name="db")
    assert await call(conn, "claim", name="db", kind="volume", group="m1", id=5) == {"group": "m1"}
    assert await call(conn, "locate", name="db") == {"group": "m1", "kind": "volume", "id": 5}
    with pytest.raises(NameTaken):
        await call(conn, "claim", name="db", kind="volume", group="m2", id=5)
    await call(conn, "release", name="db", group="m1", id=5)
    with pytest.raises(NotFound):
        await call(conn, "locate", name="db")


async def test_a_moved_token_refuses_the_copy(registry: Registry) -> None:
    conn = await registry.connect()
    await call(conn, "start_device", **device())
    await call(conn, "start_device", **device(old_token="t1", new_token="t2"))
    await call(conn, "heartbeat", **beat(1, "t2"))
    with pytest.raises(IdentityConflict, match="another copy"):
        await call(conn, "heartbeat", **beat(1, "t1"))
    with pytest.raises(IdentityConflict, match="not in this registry"):
        await call(conn, "heartbeat", **beat(1, device="d2"))


async def test_nobody_is_refused_on_a_state_that_is_not_up_to_date(registry: Registry) -> None:
    """A leader that has not applied the token's move yet, or leads no more, must not refuse the new token."""
    conn = await registry.connect()
    await call(conn, "start_device", **device())
    registry.group.unapplied = [{"op": "start_device", **device(old_token="t1", new_token="t2")}]
    await call(conn, "heartbeat", **beat(1, "t2"))
    registry.group.barrier_error = NotLeader("deposed", leader=None)
    with pytest.raises(NotLeader):
        await call(conn, "heartbeat", **beat(1, "t3"))


async def test_a_good_heartbeat_costs_no_barrier_and_no_log_entry(registry: Registry) -> None:
    conn = await registry.connect()
    await call(conn, "start_device", **device())
    before = (registry.group.barriers, len(registry.group.proposed))
    for count in range(20):
        await call(conn, "heartbeat", **beat(count))
    assert (registry.group.barriers, len(registry.group.proposed)) == before
    await registry.handlers.note_counts()
    assert registry.group.kv.get("device/d1")["count"] == 19  # type: ignore[index]


async def test_a_copy_of_a_living_device_is_refused(registry: Registry) -> None:
    alive, clone = await registry.connect(), await registry.connect()
    await call(alive, "start_device", **device())
    await call(alive, "heartbeat", **beat(1))
    starting = asyncio.create_task(call(clone, "start_device", **device(old_token="t1", new_token="t2")))
    count = 1
    while not starting.done():
        count += 1
        await call(alive, "heartbeat", **beat(count))
        await asyncio.sleep(0.01)
    with pytest.raises(IdentityConflict, match=r"in use by a living process at 10\.0\.0\.1:7"):
        await starting
    await call(alive, "heartbeat", **beat(count + 1))


async def test_a_killed_process_is_not_waited_for(registry: Registry) -> None:
    registry.board.timings = Timings(heartbeat_ms=60_000)
    killed, restarted = await registry.connect(), await registry.connect()
    await call(killed, "start_device", **device())
    await call(killed, "heartbeat", **beat(1))
    killed.close()
    await killed.wait_closed()
    await call(restarted, "start_device", **device(old_token="t1", new_token="t2", count=9))
    await call(restarted, "heartbeat", **beat(10, "t2"))


async def test_a_silent_process_is_waited_for_one_heartbeat(registry: Registry) -> None:
    """A host that lost its power leaves its connection open."""
    silent, restarted = await registry.connect(), await registry.connect()
    await call(silent, "start_device", **device())
    await call(silent, "heartbeat", **beat(1))
    begun = asyncio.get_running_loop().time()
    await call(restarted, "start_device", **device(old_token="t1", new_token="t2", count=9))
    assert 0.05 <= asyncio.get_running_loop().time() - begun < 2


async def test_a_late_heartbeat_is_told_and_refuses_nobody(registry: Registry) -> None:
    old, new = await registry.connect(), await registry.connect()
    await call(old, "start_device", **device())
    await call(old, "heartbeat", **beat(4))
    await call(new, "heartbeat", **beat(6))
    with pytest.raises(Behind, match="after a later one"):
        await call(old, "heartbeat", **beat(5))
    await call(new, "heartbeat", **beat(7))


async def test_a_device_whose_count_goes_back_is_refused_for_good(registry: Registry) -> None:
    conn = await registry.connect()
    await call(conn, "start_device", **device())
    await call(conn, "heartbeat", **beat(9))
    with pytest.raises(IdentityConflict, match="count went back to 3"):
        await call(conn, "heartbeat", **beat(3))
    with pytest.raises(IdentityConflict, match="refused for good"):
        await call(conn, "heartbeat", **beat(10))
    with pytest.raises(IdentityConflict, match="refused for good"):
        await call(conn, "start_device", **device(old_token="t1", new_token="t2", count=99))
    assert (await call(conn, "view"))["devices"]["d1"]["health"] == "refused"


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("start_device", {}),
        ("start_device", device(device=7)),
        ("start_device", device(old_token=None)),
        ("heartbeat", {}),
        ("heartbeat", beat(-1)),
        ("heartbeat", beat(1, used="x")),
        ("claim", {}),
        ("claim", {"name": "DB", "kind": "volume", "group": "m1"}),
        ("locate", {}),
        ("release", {}),
        ("join_host", {}),
        ("join_service", {"service": {}, "group": [], "name": 1}),
        ("set_drain", {"kind": "host", "name": "h1", "drain": False}),  # nobody says so
        ("set_balance", {"paused": True}),
    ],
)
async def test_bad_parameters_are_named(registry: Registry, method: str, params: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await call(await registry.connect(), method, **params)


async def test_the_mount_table_is_asked_for_cheaply(registry: Registry) -> None:
    conn = await registry.connect()
    assert await call(conn, "mount_table") == {"version": 0, "text": "", "by": "", "at_ms": 0, "history": []}
    assert await call(conn, "mount_table", known=0) == {"version": 0}
    fields = {"text": "lines", "by": "me", "request": "r1"}
    assert await call(conn, "set_mount_table", version=0, **fields) == {"version": 1}
    found = await call(conn, "mount_table", known=0)
    assert (found["version"], found["text"], found["by"]) == (1, "lines", "me") and found["at_ms"] > 0
    assert await call(conn, "mount_table", known=1) == {"version": 1}
    with pytest.raises(Stale, match="at version 1, not 0"):
        await call(conn, "set_mount_table", version=0, **{**fields, "request": "r2"})
    with pytest.raises(NotFound, match="version 7 of the mount table is not kept"):
        await call(conn, "mount_table", version=7)
