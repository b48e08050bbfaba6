"""Create, list, show, resize and delete over the wire, and what becomes of them when something fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from moorage.metadata import handlers as handlers_module
from moorage.metadata import records
from moorage.wire.errors import (
    Busy,
    CannotConnect,
    DeadlineExceeded,
    Fenced,
    Invalid,
    LimitExceeded,
    NameTaken,
    NoSpace,
    NotEnoughHosts,
    NotFound,
    NotLeader,
)

GIB = 1 << 30


async def until(reached: Any, timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not reached():
            await asyncio.sleep(0.005)


async def test_created_volume_is_ready_and_its_replicas_are_there(cluster: Any) -> None:
    volume = await cluster.create("db", groups=2, durability="writeback")
    assert volume["state"] == "ready"
    assert volume["holder"] is None
    ids = sorted(member["replica"] for group in volume["groups"] for member in group["members"])
    assert cluster.replicas() == ids
    by_device = {node.device: node for node in cluster.nodes}
    for group in volume["groups"]:
        assert len({member["host"] for member in group["members"]}) == 3
        for member in group["members"]:
            order = by_device[member["device"]].replicas[member["replica"]]
            assert order == {
                "replica": member["replica"],
                "volume": volume["id"],
                "group": group["group"],
                "durability": "writeback",
                "members": 3,
                "metadata": "m1",
                "term": 1,
            }
    assert cluster.registry.names == {"db": ("m1", "volume", volume["id"])}


async def test_create_sent_again_gives_the_same_volume(cluster: Any) -> None:
    first = await cluster.create("db")
    assert await cluster.create("db") == first
    assert len(cluster.replicas()) == 3


async def test_name_taken(cluster: Any) -> None:
    await cluster.create("db")
    with pytest.raises(NameTaken, match="'db' is taken: choose another"):
        await cluster.create("db", request="other")


async def test_name_taken_in_another_group_leaves_nothing(cluster: Any, fake_log: Any) -> None:
    cluster.registry.names["db"] = ("m2", "volume")
    with pytest.raises(NameTaken, match="of another group"):
        await cluster.create("db")
    await until(lambda: not list(records.volumes(cluster.leader().replicated.kv)))
    assert cluster.registry.names["db"] == ("m2", "volume")
    assert cluster.replicas() == []


async def test_too_few_hosts(cluster: Any) -> None:
    for number in (2, 3):
        for table, key in (("hosts", f"host{number}"), ("devices", f"dev{number}")):
            cluster.registry.view[table][key].update(health="down", reason="silent for 14 s")
    with pytest.raises(
        NotEnoughHosts, match=r"needs 3 distinct hosts, 2 are up: host2 down \(silent for 14 s\)"
    ):
        await cluster.create("db")
    assert cluster.registry.names == {}
    assert (await cluster.create("db", replicas=1))["replicas"] == 1


async def test_suspect_hosts_are_waited_for_a_little(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = cluster.registry.view["devices"].values()
    for device in devices:
        device.update(health="suspect", reason="silent since this leader began, 0 s ago")
    creation = asyncio.create_task(cluster.create("db"))
    await asyncio.sleep(0.2)
    assert not creation.done()
    for device in devices:
        device.update(health="up", reason="")
    assert (await creation)["state"] == "ready"
    monkeypatch.setattr(handlers_module, "SUSPECT_PATIENCE_S", 0.2)
    for device in devices:
        device.update(health="suspect", reason="silent for 4 s")
    with pytest.raises(NotEnoughHosts, match=r"0 are up: host1: its device dev1 is suspect"):
        await cluster.create("other")


def make_suspect(cluster: Any, *numbers: int) -> None:
    for number in numbers:
        for row in (cluster.registry.view["hosts"][f"host{number}"], device_of(cluster, number)):
            row.update(health="suspect", reason="silent since this leader began, 0 s ago")


def make_up(cluster: Any, *numbers: int) -> None:
    for number in numbers:
        for row in (cluster.registry.view["hosts"][f"host{number}"], device_of(cluster, number)):
            row.update(health="up", reason="")


def device_of(cluster: Any, number: int) -> Any:
    return cluster.registry.view["devices"][f"dev{number}"]


async def test_who_reported_first_does_not_fix_the_number_of_groups(cluster: Any) -> None:
    """Six hosts, of which three have reported to the registry's new leader."""
    for number in (5, 6):
        cluster.nodes.append(type(cluster.nodes[0])(f"dev{number}", f"host{number}"))
        cluster.registry.add_device(f"dev{number}", f"host{number}", await cluster.nodes[-1].start())
    make_suspect(cluster, 4, 5, 6)
    creation = asyncio.create_task(cluster.create("db"))
    await asyncio.sleep(0.2)
    assert not creation.done()
    make_up(cluster, 4, 5, 6)
    assert len((await creation)["groups"]) == 2


async def test_suspect_host_is_waited_for_when_another_is_full(cluster: Any) -> None:
    device_of(cluster, 1)["used"] = device_of(cluster, 1)["capacity"]
    make_suspect(cluster, 4)
    creation = asyncio.create_task(cluster.create("db"))
    await asyncio.sleep(0.2)
    assert not creation.done()
    make_up(cluster, 4)
    assert (await creation)["state"] == "ready"


async def test_suspect_host_is_waited_for_half_of_the_callers_time(cluster: Any) -> None:
    make_suspect(cluster, 4)
    assert (await cluster.create("db", timeout=1.5))["state"] == "ready"


async def test_no_space(cluster: Any) -> None:
    for number in (1, 2):
        cluster.registry.view["devices"][f"dev{number}"]["used"] = 100 * GIB
    with pytest.raises(NoSpace, match="needs 3 distinct hosts with 64 MiB free, 2 have it"):
        await cluster.create("db")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "Db"}, Invalid),
        ({"size": (64 << 40) + 4096}, LimitExceeded),
        ({"size": 1}, LimitExceeded),
        ({"replicas": 4}, Invalid),
        ({"groups": 65}, LimitExceeded),
        ({"groups": -1}, LimitExceeded),
        ({"durability": "maybe"}, Invalid),
        ({"request": ""}, Invalid),
        ({"sizes": 5}, Invalid),
    ],
)
async def test_bad_parameters(cluster: Any, fake_log: Any, change: Any, error: Any) -> None:
    with pytest.raises(error):
        await cluster.create(**change)
    assert [command["do"] for command in fake_log.commands] == ["found", "admit"]


async def test_limits_are_reached(cluster: Any) -> None:
    assert (await cluster.create("a" * 63, size=64 << 40, groups=64))["size"] == 64 << 40
    assert len(cluster.replicas()) == 64 * 3
    assert (await cluster.create("small", size=1 << 20))["size"] == 1 << 20


async def test_node_without_room_gives_the_creation_up(cluster: Any) -> None:
    cluster.nodes[1].refusing = NoSpace("no room above the reserve")
    with pytest.raises(
        NoSpace, match=r"'db' was not created, and what there was of it is taken back: host2: no room"
    ):
        await cluster.create("db")
    cluster.nodes[1].refusing = None
    await until(lambda: not cluster.replicas() and not cluster.registry.names)
    with pytest.raises(NoSpace):  # the same request hears the same
        await cluster.create("db")
    assert (await cluster.create("db", request="again"))["state"] == "ready"


async def test_node_that_stays_away_gives_the_creation_up(cluster: Any) -> None:
    await cluster.nodes[1].stop()
    with pytest.raises(NotEnoughHosts, match="of it is taken back: host2: "):
        await cluster.create("db")
    assert sorted(cluster.registry.names) == []
    left = await cluster.call("status")
    assert left["drops"] == 1  # what may be there is dropped when it comes back
    assert left["drops_first"][0]["device"] == "dev2"


async def test_node_that_comes_back_in_time_is_waited_for(cluster: Any) -> None:
    await cluster.nodes[1].stop()
    creation = asyncio.create_task(cluster.create("db"))
    await until(lambda: len(cluster.replicas()) == 2)
    cluster.registry.add_device("dev2", "host2", await cluster.nodes[1].start())  # on another port
    assert (await creation)["state"] == "ready"


async def test_order_never_goes_to_another_device_on_a_port_used_again(cluster: Any) -> None:
    cluster.registry.view["devices"]["dev2"]["address"] = cluster.registry.view["devices"]["dev4"]["address"]
    with pytest.raises(NotEnoughHosts, match="with device dev4, not dev2"):
        await cluster.create("db")
    assert not any(node.replicas for node in cluster.nodes)


async def test_registry_away_when_creating(cluster: Any) -> None:
    cluster.registry.failing = CannotConnect("registry is away")
    with pytest.raises(DeadlineExceeded, match="registry"):
        await cluster.call("create_volume", timeout=1.0, name="db", size=GIB, request="r")


async def test_list_show_and_near_names(cluster: Any) -> None:
    for name in ("b", "a", "database"):
        await cluster.create(name)
    listed = await cluster.call("list_volumes")
    assert [volume["name"] for volume in listed["volumes"]] == ["a", "b", "database"]
    assert listed["next"] is None
    shown = await cluster.call("show_volume", name="a")
    assert shown["groups"][0]["members"][0]["address"].startswith("127.0.0.1:")
    with pytest.raises(NotFound, match="did you mean database"):
        await cluster.call("show_volume", name="databsae")


async def test_list_in_pages(cluster: Any) -> None:
    names = [f"v{number}" for number in range(7)]
    for name in names:
        await cluster.create(name, replicas=1)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await cluster.call("list_volumes", after=after, limit=3)
        seen += [volume["name"] for volume in page["volumes"]]
        after = page["next"]
    assert seen == names


async def test_resize(cluster: Any) -> None:
    await cluster.create("db")
    assert (await cluster.call("resize_volume", name="db", size=2 * GIB))["size"] == 2 * GIB
    with pytest.raises(Invalid, match="cannot shrink"):
        await cluster.call("resize_volume", name="db", size=GIB)
    with pytest.raises(LimitExceeded):
        await cluster.call("resize_volume", name="db", size=65 << 40)
    with pytest.raises(NotFound):
        await cluster.call("resize_volume", name="other", size=GIB)


async def test_quotas_are_kept_by_the_registry(cluster: Any) -> None:
    cluster.registry.quota = 2 * GIB
    with pytest.raises(LimitExceeded, match=r"'db' was not created.*: team-a has a quota of 2147483648"):
        await cluster.create("db", size=3 * GIB, principal="team-a")
    assert cluster.registry.names == {} and cluster.replicas() == []
    await cluster.create("db", request="again", principal="team-a")
    assert cluster.registry.sizes == {"db": GIB}
    with pytest.raises(LimitExceeded, match="team-a has a quota"):
        await cluster.call("resize_volume", name="db", size=3 * GIB)
    assert (await cluster.call("resize_volume", name="db", size=2 * GIB))["size"] == 2 * GIB
    assert cluster.registry.sizes == {"db": 2 * GIB}
    with pytest.raises(Invalid, match="cannot shrink"):
        await cluster.call("resize_volume", name="db", size=GIB)
    await cluster.call("delete_volume", name="db")
    assert cluster.registry.sizes == {}


async def test_no_volume_grows_without_the_registry(cluster: Any) -> None:
    await cluster.create("db")
    cluster.registry.failing = CannotConnect("away")
    with pytest.raises(DeadlineExceeded):
        await cluster.call("resize_volume", timeout=1.0, name="db", size=2 * GIB)
    assert (await cluster.call("show_volume", name="db"))["size"] == GIB
    assert (await cluster.call("resize_volume", name="db", size=GIB))["size"] == GIB  # as it is: no question
    cluster.registry.failing = None
    assert (await cluster.call("resize_volume", name="db", size=2 * GIB))["size"] == 2 * GIB


async def test_what_a_growth_left_charged_is_put_right(cluster: Any, fake_log: Any) -> None:
    """The leader ends between the charge and the command; and a command that is refused."""
    await cluster.create("db")

    async def lose(command: dict[str, Any]) -> None:
        if command["do"] == "resize":
            fake_log.on_propose = None
            assert cluster.registry.sizes == {"db": 3 * GIB}
            fake_log.elect("host2")

    fake_log.on_propose = lose
    with pytest.raises(NotLeader):
        await cluster.leader().handlers.methods()["resize_volume"](None, {"name": "db", "size": 3 * GIB})
    await until(lambda: cluster.registry.sizes == {"db": GIB})

    async def refuse(command: dict[str, Any]) -> None:
        raise NoSpace("the log is full")

    fake_log.on_propose = refuse
    with pytest.raises(NoSpace):
        await cluster.call("resize_volume", name="db", size=3 * GIB)
    assert cluster.registry.sizes == {"db": GIB}


async def test_delete_drops_the_replicas_and_frees_the_name(cluster: Any) -> None:
    first = await cluster.create("db")
    assert await cluster.call("delete_volume", name="db") == {"id": first["id"], "left": []}
    assert cluster.replicas() == []
    assert cluster.registry.names == {}
    with pytest.raises(NotFound):
        await cluster.call("delete_volume", name="db")
    second = await cluster.create("db", request="second")
    assert second["id"] != first["id"]


async def test_delete_sent_again(cluster: Any) -> None:
    await cluster.create("db")
    first = await cluster.call("delete_volume", name="db", request="d1")
    await cluster.create("db", request="second")
    assert await cluster.call("delete_volume", name="db", request="d1") == first
    assert (await cluster.call("show_volume", name="db"))["state"] == "ready"


async def test_delete_of_a_held_volume_needs_force(cluster: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    with pytest.raises(Busy, match=r"held by fio on h \(pid 7\).*delete with --force"):
        await cluster.call("delete_volume", name="db")
    await cluster.call("delete_volume", name="db", force=True)
    with pytest.raises(Fenced, match="'db' was deleted"):
        await cluster.call("renew", name="db", volume=held["volume"]["id"], epoch=held["epoch"], writer=7)


async def test_lease_of_a_deleted_volume_is_forgotten(cluster: Any) -> None:
    await cluster.create("db", replicas=1)
    await cluster.attach("db", 7)
    assert cluster.leader().attachments.count == 1
    await cluster.call("delete_volume", name="db", force=True, request="d1")
    assert cluster.leader().attachments.count == 0
    await cluster.call("delete_volume", name="db", request="d1")  # sent again


async def test_delete_with_a_host_away_frees_the_name_and_drops_later(cluster: Any) -> None:
    volume = await cluster.create("db")
    hosts = {member["host"] for member in volume["groups"][0]["members"]}
    away = next(node for node in cluster.nodes if node.host in hosts)
    await away.stop()
    deleted = await cluster.call("delete_volume", name="db")
    assert [entry["device"] for entry in deleted["left"]] == [away.device]
    cluster.registry.view["devices"][away.device]["health"] = "down"
    assert len(away.replicas) == 1
    await cluster.create("db", request="second", replicas=1)
    cluster.registry.add_device(away.device, away.host, await away.start())
    await until(lambda: volume["groups"][0]["members"][0]["replica"] not in away.replicas)
    await until(lambda: records.volume_by_id(cluster.leader().replicated.kv, volume["id"]) is None)


# -- the leader goes away at each step -----------------------------------------------------------------------


@pytest.mark.parametrize("step", ["ready", "create"])
async def test_creation_goes_on_under_the_next_leader(cluster: Any, fake_log: Any, step: str) -> None:
    async def lose_the_leader(command: dict[str, Any]) -> None:
        if command["do"] == step and fake_log.leader == "host1":
            fake_log.elect("host2")

    fake_log.on_propose = lose_the_leader
    volume = await cluster.create("db")
    assert fake_log.leader == "host2"
    assert volume["state"] == "ready"
    assert len(cluster.replicas()) == 3
    assert [command["do"] for command in fake_log.commands].count("ready") == 1


async def test_creation_that_waits_for_a_node_goes_on_under_the_next_leader(
    cluster: Any, fake_log: Any
) -> None:
    cluster.nodes[0].gate.clear()
    creation = asyncio.create_task(cluster.create("db"))
    await until(lambda: cluster.nodes[0].waiting)
    fake_log.elect("host3")
    cluster.nodes[0].gate.set()
    assert (await creation)["state"] == "ready"


async def test_creation_whose_client_left_is_finished(cluster: Any, fake_log: Any) -> None:
    cluster.nodes[0].gate.clear()
    creation = asyncio.create_task(cluster.create("db"))
    await until(lambda: cluster.nodes[0].waiting)
    creation.cancel()
    cluster.nodes[0].gate.set()
    await until(lambda: fake_log.commands and fake_log.commands[-1]["do"] == "ready")
    assert (await cluster.call("show_volume", name="db"))["state"] == "ready"


@pytest.mark.parametrize("step", ["delete", "dropped", "released"])
async def test_deletion_goes_on_under_the_next_leader(cluster: Any, fake_log: Any, step: str) -> None:
    await cluster.create("db")

    async def lose_the_leader(command: dict[str, Any]) -> None:
        if command["do"] == step and fake_log.leader == "host1":
            fake_log.elect("host2")

    fake_log.on_propose = lose_the_leader
    assert (await cluster.call("delete_volume", name="db", request="d1"))["left"] == []
    assert fake_log.leader == "host2"
    assert cluster.replicas() == []
    assert cluster.registry.names == {}
    await until(lambda: not list(records.volumes(cluster.leader().replicated.kv)))


@pytest.mark.parametrize("step", ["abandon", "dropped", "released"])
async def test_rollback_goes_on_under_the_next_leader(cluster: Any, fake_log: Any, step: str) -> None:
    cluster.nodes[1].refusing = NoSpace("no room")

    async def lose_the_leader(command: dict[str, Any]) -> None:
        cluster.nodes[1].refusing = (
            None if command["do"] in ("dropped", "released") else cluster.nodes[1].refusing
        )
        if command["do"] == step and fake_log.leader == "host1":
            fake_log.elect("host2")

    fake_log.on_propose = lose_the_leader
    with pytest.raises(NoSpace):
        await cluster.create("db")
    cluster.nodes[1].refusing = None
    await until(lambda: not cluster.replicas() and not cluster.registry.names)
    await until(lambda: not list(records.volumes(cluster.leader().replicated.kv)))


async def test_deletion_is_resumed_after_a_crash_of_everything(cluster: Any, fake_log: Any) -> None:
    await cluster.create("db")
    for node in cluster.nodes:
        node.gate.clear()
    deletion = asyncio.create_task(cluster.call("delete_volume", name="db"))
    await until(lambda: sum(node.waiting for node in cluster.nodes) == 3)
    deletion.cancel()
    for name in ("host1", "host2", "host3"):
        await cluster.stop_member(name)
    assert len(cluster.replicas()) == 3
    for node in cluster.nodes:
        node.gate.set()
    for name in ("host1", "host2", "host3"):
        await cluster.restart_member(name)
    fake_log.elect("host3")
    await until(lambda: not cluster.replicas() and not cluster.registry.names)
    await until(lambda: not list(records.volumes(cluster.leader().replicated.kv)))


async def test_leader_that_returns_takes_its_work_up_again(cluster: Any, fake_log: Any) -> None:
    await cluster.create("db")
    for node in cluster.nodes:
        node.gate.clear()
    deletion = asyncio.create_task(cluster.call("delete_volume", name="db", request="d1"))
    await until(lambda: sum(node.waiting for node in cluster.nodes) == 3)
    fake_log.elect("host2")
    fake_log.elect("host1")  # before the cancelled tasks had a chance to end
    for node in cluster.nodes:
        node.gate.set()
    assert (await deletion)["left"] == []


async def test_follower_names_the_leader(cluster: Any) -> None:
    follower = cluster.services["host2"].handlers.methods()
    with pytest.raises(NotLeader) as caught:
        await follower["list_volumes"](None, {})
    assert caught.value.details["leader"]["name"] == "host1"
    described = await follower["describe"](None, {})
    assert described["leader"]["name"] == "host1"
    assert (described["service"], described["group"], len(described["members"])) == ("metadata", "m1", 3)


async def test_members_join_the_registry(cluster: Any) -> None:
    await until(lambda: len(cluster.registry.view["services"]) == 3)
    assert {entry["group"] for entry in cluster.registry.view["services"]} == {"m1"}
    assert cluster.leader().not_ready() == []
