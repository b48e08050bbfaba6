"""Attach, renew and detach over the wire: epochs, leases, capabilities, and changes of leader."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from moorage.metadata import attachments as attachments_module
from moorage.metadata import records
from moorage.wire.capability import verify
from moorage.wire.errors import Busy, Denied, Fenced, Invalid, LimitExceeded, NotFound
from moorage.wire.secret import ClusterSecret

GIB = 1 << 30
SECRET = ClusterSecret("00112233445566ff", bytes(range(32)))


async def renew(cluster: Any, held: Any, writer: int) -> Any:
    return await cluster.call("renew", volume=held["volume"]["id"], epoch=held["epoch"], writer=writer)


async def detach(cluster: Any, held: Any, writer: int) -> Any:
    return await cluster.call("detach", volume=held["volume"]["id"], epoch=held["epoch"], writer=writer)


async def test_attach_gives_epoch_addresses_and_a_capability(cluster: Any) -> None:
    volume = await cluster.create("db", groups=2)
    held = await cluster.attach("db", 7)
    assert (held["epoch"], held["lease_ms"], held["holder_alive"]) == (1, 4000, True)
    assert held["volume"]["holder"]["program"] == "fio"
    members = [member for group in held["groups"] for member in group["members"]]
    addresses = {node.device: node.server.address for node in cluster.nodes}
    assert all(member["address"] == addresses[member["device"]] for member in members)
    now_ms = int(time.time() * 1000)
    capability = verify(SECRET, held["capability"], now_ms)
    assert (capability.volume, capability.epoch, capability.writer) == (volume["id"], 1, 7)
    assert (capability.rights, capability.replicas) == ("rw", [member["replica"] for member in members])
    with pytest.raises(Denied):
        verify(SECRET, held["capability"], now_ms + attachments_module.CAPABILITY_MS + 10_000)


async def test_attach_sent_again_gives_the_same_epoch(cluster: Any) -> None:
    await cluster.create("db")
    assert (await cluster.attach("db", 7))["epoch"] == 1
    assert (await cluster.attach("db", 7))["epoch"] == 1


async def test_second_writer_is_busy_until_the_lease_is_over(cluster: Any, clock: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    with pytest.raises(Busy, match=r"held by fio on h \(pid 7\).*attach with --force"):
        await cluster.attach("db", 8)
    clock.ahead_ms += 3000
    await renew(cluster, held, 7)
    clock.ahead_ms += 3900
    with pytest.raises(Busy):
        await cluster.attach("db", 8)
    clock.ahead_ms += 200
    assert (await cluster.attach("db", 8))["epoch"] == 2
    with pytest.raises(
        Fenced, match=r"taken over by fio on h \(pid 8\) 0\.\d s ago \(epoch 2, yours was 1\)"
    ):
        await renew(cluster, held, 7)
    with pytest.raises(Fenced):
        await detach(cluster, held, 7)


async def test_holder_whose_lease_is_over_goes_on_when_nobody_came(cluster: Any, clock: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    clock.ahead_ms += 60_000
    assert (await renew(cluster, held, 7))["lease_ms"] == 4000
    with pytest.raises(Busy):
        await cluster.attach("db", 8)


async def test_a_next_life_waits_for_no_lease_but_comes_too_late_after_another_writer(cluster: Any) -> None:
    await cluster.create("db")
    await cluster.attach("db", 7)
    assert (await cluster.attach("db", 8, succeeds=[7]))["epoch"] == 2
    with pytest.raises(Fenced, match=r"taken over by fio on h \(pid 8\)"):
        await cluster.attach("db", 9, succeeds=[7])
    with pytest.raises(Invalid, match="writer id"):
        await cluster.attach("db", 9, succeeds=["7"])
    with pytest.raises(Invalid, match="list of at most 16"):
        await cluster.attach("db", 9, succeeds=list(range(1, 18)))


async def test_the_state_of_the_file_system_is_the_holders_to_note(cluster: Any) -> None:
    await cluster.create("db", fs={"type": "ext4", "state": "new"})
    held = await cluster.attach("db", 7)
    assert held["volume"]["fs"] == {"type": "ext4", "state": "new"}
    about = {"name": "db", "epoch": held["epoch"], "fs": {"type": "ext4", "state": "ready"}}
    with pytest.raises(Fenced):
        await cluster.call("note_fs", writer=8, **about)
    assert (await cluster.call("note_fs", writer=7, **about))["fs"]["state"] == "ready"


async def test_force_takes_over_at_once(cluster: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    assert (await cluster.attach("db", 8, force=True))["epoch"] == 2
    with pytest.raises(Fenced, match="taken over"):
        await renew(cluster, held, 7)


async def test_writer_whose_epoch_has_ended_cannot_come_back(cluster: Any) -> None:
    await cluster.create("db")
    await cluster.attach("db", 7)
    held = await cluster.attach("db", 8, force=True)
    with pytest.raises(Fenced, match="attach again with a new writer id"):
        await cluster.attach("db", 7, force=True)  # the first command once more, late
    await renew(cluster, held, 8)


async def test_detach_lets_the_next_one_in(cluster: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    for _ in range(2):
        assert await detach(cluster, held, 7) == {}
    shown = await cluster.call("show_volume", name="db")
    assert (shown["holder"], shown["holder_alive"]) == (None, False)
    assert (await cluster.attach("db", 8))["epoch"] == 2
    with pytest.raises(Fenced, match="was taken over"):
        await renew(cluster, held, 7)


async def test_of_many_that_attach_at_once_one_wins(cluster: Any) -> None:
    await cluster.create("db")
    results = await asyncio.gather(*(cluster.attach("db", n) for n in range(1, 9)), return_exceptions=True)
    won = [result for result in results if isinstance(result, dict)]
    assert [result["epoch"] for result in won] == [1]
    assert sum(isinstance(result, Busy) for result in results) == 7


async def test_of_many_that_force_each_has_its_own_epoch(cluster: Any) -> None:
    await cluster.create("db")
    results = await asyncio.gather(*(cluster.attach("db", n, force=True) for n in range(1, 6)))
    assert sorted(result["epoch"] for result in results) == [1, 2, 3, 4, 5]


async def test_read_only_takes_no_epoch(cluster: Any, clock: Any) -> None:
    await cluster.create("db")
    alone = await cluster.attach("db", 5, mode="ro")
    assert (alone["epoch"], alone["holder_alive"]) == (0, False)
    await cluster.attach("db", 7)
    beside = await cluster.attach("db", 6, mode="ro")
    assert (beside["epoch"], beside["holder_alive"]) == (1, True)
    assert verify(SECRET, beside["capability"], 0).rights == "ro"
    clock.ahead_ms += 4001
    assert not (await cluster.attach("db", 6, mode="ro"))["holder_alive"]


async def test_a_recovery_comes_long_after_the_holder_and_before_no_writer(cluster: Any, clock: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    clock.ahead_ms += 4001 + attachments_module.RECOVERY_GRACE_MS - 1000
    with pytest.raises(Busy, match="held by fio"):
        await cluster.attach("db", 8, mode="recover", force=True)
    clock.ahead_ms += 1000
    recovery = await cluster.attach("db", 8, mode="recover")
    assert recovery["epoch"] == 2 and verify(SECRET, recovery["capability"], 0).rights == "rw"
    with pytest.raises(Fenced, match="taken over by a recovery by fio"):
        await renew(cluster, held, 7)
    with pytest.raises(Busy, match="held by a recovery"):
        await cluster.attach("db", 9, mode="recover")
    assert (await cluster.attach("db", 10))["epoch"] == 3
    with pytest.raises(Fenced):
        await renew(cluster, recovery, 8)


async def test_renewal_tells_a_new_size_new_ceilings_and_a_new_address(cluster: Any) -> None:
    await cluster.create("db", replicas=1)
    held = await cluster.attach("db", 7)
    await cluster.call("resize_volume", name="db", size=2 * GIB)
    await cluster.call("set_volume", name="db", iops=100)
    await cluster.call("set_volume", name="db", bw=1 << 20)
    renewed = await renew(cluster, held, 7)
    assert (renewed["size"], renewed["iops"], renewed["bw"]) == (2 * GIB, 100, 1 << 20)
    with pytest.raises(Invalid, match="give iops, bw or both"):
        await cluster.call("set_volume", name="db")
    assert verify(SECRET, renewed["capability"], 0).epoch == 1
    device = held["groups"][0]["members"][0]["device"]
    cluster.registry.view["devices"][device]["address"] = "127.0.0.1:9"
    async with asyncio.timeout(5):
        while (await renew(cluster, held, 7))["groups"][0]["members"][0]["address"] != "127.0.0.1:9":
            await asyncio.sleep(0.01)


async def test_new_member_fetches_the_addresses_that_it_lacks(cluster: Any) -> None:
    await cluster.create("db")
    leader = cluster.leader()
    leader._joining.cancel()  # no refresh by itself any more
    leader.directory.view = {**leader.directory.view, "devices": {}}
    held = await cluster.attach("db", 7)
    assert all(member["address"] for member in held["groups"][0]["members"])
    leader.directory.view = {**leader.directory.view, "devices": {}}
    cluster.registry.failing = NotFound("away")
    assert not (await cluster.attach("db", 7))["groups"][0]["members"][0]["address"]


async def test_registry_away_stops_no_attachment(cluster: Any) -> None:
    await cluster.create("db")
    cluster.registry.failing = NotFound("away")
    held = await cluster.attach("db", 7)
    assert held["groups"][0]["members"][0]["address"]
    await renew(cluster, held, 7)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "nothere"}, NotFound),
        ({"writer": 0}, Invalid),
        ({"mode": "x"}, Invalid),
        ({"holder": {}}, Invalid),
        ({"extra": 1}, Invalid),
        ({"force": "false"}, Invalid),
        ({"force": 0}, Invalid),
    ],
)
async def test_bad_attach(cluster: Any, change: Any, error: Any) -> None:
    await cluster.create("db")
    with pytest.raises(error):
        await cluster.attach(**{"name": "db", "writer": 7, **change})


# -- the leader changes --------------------------------------------------------------------------------------


async def test_no_holder_is_fenced_by_a_change_of_leader(cluster: Any, fake_log: Any, clock: Any) -> None:
    await cluster.create("db")
    held = await cluster.attach("db", 7)
    for leader in ("host2", "host3", "host1"):
        clock.ahead_ms += 60_000  # an outage much longer than the lease
        fake_log.elect(None)
        fake_log.elect(leader)
        with pytest.raises(Busy):  # the lease starts afresh, without a word from the holder
            await cluster.attach("db", 8)
        assert (await renew(cluster, held, 7))["lease_ms"] == 4000


async def test_lease_of_a_holder_that_is_gone_begins_with_the_leader(
    cluster: Any, fake_log: Any, clock: Any
) -> None:
    await cluster.create("db")
    await cluster.attach("db", 7)
    fake_log.elect("host2")
    clock.ahead_ms += 4001  # nobody looked at the volume meanwhile
    assert (await cluster.attach("db", 8))["epoch"] == 2


async def test_attach_whose_leader_fails_before_and_after_the_commit(cluster: Any, fake_log: Any) -> None:
    await cluster.create("db")

    async def lose_the_leader(command: dict[str, Any]) -> None:
        if command["do"] == "attach" and fake_log.leader == "host1":
            fake_log.elect("host2")

    fake_log.on_propose = lose_the_leader
    assert (await cluster.attach("db", 7))["epoch"] == 1
    fake_log.on_propose = None
    # committed, and the reply lost: the retry at the next leader gets the same epoch
    await cluster.attach("db", 8, force=True)
    fake_log.elect("host3")
    assert (await cluster.attach("db", 8))["epoch"] == 2


async def test_valid_holder_is_not_fenced_by_a_member_that_is_behind(cluster: Any, fake_log: Any) -> None:
    """A deposed leader that does not know it yet must not say Fenced from its old state."""
    await cluster.create("db")
    behind = cluster.leader()
    kv = behind.replicated.kv
    found = next(records.volumes(kv))["id"]
    fake_log.elect("host2")
    held = await cluster.attach("db", 7)
    volume = records.volume_by_id(kv, found)
    kv.put(records.volume_key(found), {**volume, "epoch": 0, "holder": None})  # as before the attach
    kv.commit()
    barriers = 0

    async def barrier(timeout: float = 5.0) -> None:
        nonlocal barriers
        barriers += 1
        kv.put(records.volume_key(found), volume)
        kv.commit()

    behind.replicated.read_barrier = barrier
    params = {"volume": found, "epoch": held["epoch"], "writer": 7}
    assert (await behind.attachments.renew(None, params))["lease_ms"] == 4000
    assert barriers == 1
    assert (await behind.attachments.renew(None, params))["lease_ms"] == 4000
    assert barriers == 1  # a renewal that is granted costs no round


async def test_the_newest_epoch_of_a_replica_is_told(cluster: Any) -> None:
    """For a node that has lost what it had promised."""
    volume = await cluster.create("db", groups=2)
    other = await cluster.create("other", durability="writeback")
    replicas = [member["replica"] for group in volume["groups"] for member in group["members"]]
    others = [member["replica"] for group in other["groups"] for member in group["members"]]
    for writer in (7, 8):
        await cluster.attach("db", writer, force=True)
    told = await cluster.call("current_epochs", replicas=[replicas[0], replicas[-1], others[0], 12345])
    rows = {row.pop("replica"): row for row in told["replicas"]}
    mine = {"volume": volume["id"], "durability": "sync", "members": 3, "epoch": 2, "writer": 8}
    assert rows == {
        replicas[0]: {"group": 0, **mine},
        replicas[-1]: {"group": 1, **mine},
        others[0]: {
            "volume": other["id"],
            "durability": "writeback",
            "members": 3,
            "epoch": 0,
            "writer": 0,
            "group": 0,
        },
    }
    assert told["gone"] == [], "12345 was never given"
    await cluster.call("delete_volume", name="db", force=True)
    last = max(other["id"], *others)  # the greatest id there is
    asked = [*replicas, last + 1, 12345]
    assert await cluster.call("current_epochs", replicas=asked) == {"replicas": [], "gone": sorted(replicas)}
    for wrong in (None, "1", [True], ["1"]):
        with pytest.raises(Invalid, match="list of replica ids"):
            await cluster.call("current_epochs", replicas=wrong)
    with pytest.raises(LimitExceeded, match="1000 at most"):
        await cluster.call("current_epochs", replicas=list(range(1001)))
