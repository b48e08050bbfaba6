"""Three members with real sockets and real LMDB."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from moorage.quorum.raft_types import COMMAND, Config, Entry, HardState, HeartbeatReply, Snapshot, encode
from moorage.service import kv, raft_transport, replicated
from moorage.service.raft_storage import Life, RaftStorage, Work
from moorage.wire import errors, frame
from moorage.wire.connection import Connection
from moorage.wire.handshake import Hello
from moorage.wire.server import connect

ABC = ("a", "b", "c")


async def test_a_command_is_applied_everywhere(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    assert await group.propose({"do": "add", "key": "n", "n": 2}) == 2
    assert await group.propose({"do": "add", "key": "n", "n": 3}) == 5
    await wait_until(lambda: all(node.member.kv.get("n") == 5 for node in group.nodes.values()))
    leader = await group.leader()
    assert leader.leader == {"name": leader.name, "address": group.address(leader.name)}
    status = leader.status()
    assert status["role"] == "leader" and status["proposals"] == 2 and len(status["members"]) == 3


async def test_a_refused_command_leaves_nothing(group: Any) -> None:
    await group.start("a")
    with pytest.raises(errors.NameTaken):
        await group.propose({"do": "refuse"})
    leader = await group.leader()
    assert leader.kv.get("refused") is None


async def test_a_follower_says_who_leads(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    leader = await group.leader()
    follower = next(node.member for node in group.nodes.values() if node.member is not leader)
    await wait_until(lambda: follower.leader is not None)
    with pytest.raises(errors.NotLeader) as caught:
        await follower.propose({"do": "put", "key": "k", "value": 1})
    assert caught.value.details["leader"]["name"] == leader.name
    with pytest.raises(errors.NotLeader):
        await follower.read_barrier()


async def test_state_survives_a_restart_of_all(group: Any) -> None:
    await group.start(*ABC)
    for n in range(50):
        await group.propose({"do": "put", "key": f"k{n:02}", "value": n})
    await group.stop(*ABC)
    await group.start(*ABC)
    leader = await group.leader()
    await leader.read_barrier()
    assert [value for _, value in leader.kv.scan("k")] == list(range(50))


async def test_leadership_moves_on_stop_without_an_election_timeout(group: Any) -> None:
    await group.start(*ABC)
    leader = await group.leader()
    changes: list[bool] = []
    leader.on_leader_change.append(changes.append)
    await group.stop(leader.name)
    assert changes == [False]
    assert any(node.member.leader is not None for node in group.nodes.values())
    await group.propose({"do": "put", "key": "after", "value": 1})


async def test_a_member_that_stops_does_not_begin_to_lead(
    group: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its services are stopped before it, and would begin work that nobody ends."""
    await group.start(*ABC)
    leader = await group.leader()
    stopping = next(node.member for node in group.nodes.values() if node.member is not leader)
    changes: list[bool] = []
    stopping.on_leader_change.append(changes.append)
    hand_over, elected = stopping._hand_over, asyncio.Event()

    async def once_elected(core: Any) -> None:
        await elected.wait()
        await hand_over(core)

    monkeypatch.setattr(stopping, "_hand_over", once_elected)
    stop = asyncio.create_task(group.stop(stopping.name))
    await wait_until(lambda: stopping._stopping)
    core = stopping._core
    assert leader._core.transfer(stopping.name)
    leader._schedule()
    await wait_until(lambda: core.is_leader and core.log.term(core.applied) == core.term)
    elected.set()
    await stop
    assert changes == []


async def test_no_majority_is_said_so(group: Any) -> None:
    await group.start(*ABC)
    leader = await group.leader()
    others = [name for name in ABC if name != leader.name]
    for name in others:
        await group.nodes[name].stop_server()
    await group.stop(*others)
    with pytest.raises((errors.DeadlineExceeded, errors.NotLeader)) as caught:
        await leader.propose({"do": "put", "key": "x", "value": 1}, timeout=0.2)
    assert any(name in str(caught.value) for name in others) or "leader" in str(caught.value)
    await group.start(others[0])
    await group.propose({"do": "put", "key": "y", "value": 1})


async def test_a_wiped_directory_is_refused(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    await group.stop("c")
    shutil.rmtree(group.directory / "c")
    await group.start("c")
    wiped = group.nodes["c"].member
    await wait_until(lambda: wiped.failed is not None)
    assert isinstance(wiped.failed, errors.IdentityConflict)
    assert "Remove c from the group" in str(wiped.failed)
    with pytest.raises(errors.IdentityConflict):
        await wiped.propose({"do": "put", "key": "k", "value": 2})
    await group.propose({"do": "put", "key": "k", "value": 3})


async def test_two_wiped_members_do_not_begin_an_empty_group(group: Any) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    await group.stop(*ABC)
    for name in ("a", "b"):
        shutil.rmtree(group.directory / name)
    await group.start("a", "b")
    members = [group.nodes[name].member for name in ("a", "b")]
    # They wait for the third, however long: three times the longest election timeout shows it.
    for _ in range(3 * 24):
        await asyncio.sleep(replicated.TICK_S)
        assert not any(member.is_leader for member in members)
    assert not any(member.status()["born"] for member in members)


async def replace(group: Any, name: str) -> Any:
    """What docs/launch.md says, without the promotion: the caller has stopped the member, or not."""
    await change(group, lambda config: config.drop(name))
    if name in group.nodes:
        await group.stop(name)
    shutil.rmtree(group.directory / name)
    await change(group, lambda config: config.put(replicated.Member(name, group.address(name), False)))
    return await group.add(name, {other: at for other, at in group.peers.items() if other != name})


async def change(group: Any, what: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await (await group.leader()).change_members(what)
            except (errors.Busy, errors.NotLeader, errors.Unavailable):
                await asyncio.sleep(0.01)


async def test_a_removed_member_that_still_runs_does_not_keep_its_name(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    name = next(name for name in ABC if name != leader.name)
    removed = group.nodes[name].member
    await wait_until(lambda: removed.kv.get("k") == 1)
    await leader.change_members(lambda config: config.drop(name))
    await wait_until(lambda: removed.status()["role"] == "pre-candidate")  # nobody told it
    await asyncio.sleep(4 * replicated.TICK_S)
    assert all(name not in node.member._transport.pins for node in group.nodes.values() if node.name != name)
    node = await replace(group, name)
    await wait_until(lambda: node.member.failed is not None or node.member.kv.get("k") == 1)
    assert node.member.failed is None


@pytest.mark.parametrize("size", [20, 600])
async def test_a_frame_of_who_is_no_member_changes_nothing(group: Any, wait_until: Any, size: int) -> None:
    await group.start("a")
    await group.propose({"do": "put", "key": "k", "value": 1})
    hello = Hello("registry", group.secret.cluster, "z", "p")
    conn = await connect(group.address("a"), hello=hello, secret=group.secret, timeout=2)
    conn.send(frame.ONEWAY, frame.RAFT, 0, frame.pack(["g", "z" * size, "i", None, None, ["birth"]]))
    await conn.call("raft.g.status", {}, timeout=2)  # the frame before it has been taken
    conn.close()
    await conn.wait_closed()
    await group.propose({"do": "put", "key": "k", "value": 2})
    assert group.nodes["a"].member._transport.pins == {}


async def test_a_peer_that_was_away_during_a_replacement_takes_the_new_member(
    group: Any, wait_until: Any
) -> None:
    names = ("a", "b", "c", "d", "e")
    await group.start(*names)
    await group.propose({"do": "put", "key": "k", "value": 1})
    await wait_until(lambda: all(node.member.kv.get("k") == 1 for node in group.nodes.values()))
    await group.stop("e", "b")
    node = await replace(group, "b")
    await wait_until(lambda: node.member.kv.get("k") == 1)
    await change(group, lambda config: config.put(config.find("b")._replace(voter=True)))
    await group.propose({"do": "put", "key": "k", "value": 2})
    await wait_until(lambda: node.member.kv.get("k") == 2)
    await group.stop("a", "b", "c", "d")
    await group.start("e")  # it knows the former b
    await group.start("b", "c")
    assert await group.propose({"do": "add", "key": "k", "n": 1}) == 3
    assert all(node.member.failed is None for node in group.nodes.values())
    await wait_until(lambda: all(node.member.kv.get("k") == 3 for node in group.nodes.values()))


async def test_a_member_follows_a_leader_that_joined_while_it_was_away(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    away = next(name for name in ABC if name != leader.name)
    await group.stop(away)
    node = await group.add("d", group.peers)
    await change(group, lambda config: config.put(replicated.Member("d", group.address("d"), False)))
    await wait_until(lambda: node.member.kv.get("k") == 1)
    await change(group, lambda config: config.put(config.find("d")._replace(voter=True)))
    (await group.leader())._core.transfer("d")
    await wait_until(lambda: node.member.is_leader)
    await node.member.propose({"do": "put", "key": "k", "value": 2})
    late = (await group.add(away, group.peers)).member
    await wait_until(lambda: late.kv.get("k") == 2)
    assert node.member.is_leader


async def test_a_member_restored_from_a_backup_is_refused_by_the_leader_that_had_its_acknowledgements(
    group: Any, wait_until: Any
) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    name = next(name for name in ABC if name != leader.name)
    await wait_until(lambda: group.nodes[name].member.kv.get("k") == 1)
    await group.stop(name)
    shutil.copytree(group.directory / name, group.directory / "backup")
    await group.add(name, group.peers)
    for n in range(20):
        await group.propose({"do": "put", "key": "k", "value": n})
    await wait_until(lambda: group.nodes[name].member.kv.get("k") == 19)
    assert await group.leader() is leader
    await group.stop(name)
    shutil.rmtree(group.directory / name)
    (group.directory / "backup").rename(group.directory / name)
    restored = (await group.add(name, group.peers)).member
    await wait_until(lambda: restored.failed is not None)
    assert isinstance(restored.failed, errors.IdentityConflict)
    assert "this directory is older" in str(restored.failed)


async def test_a_member_restored_from_a_backup_is_refused_by_who_heard_of_a_later_life(
    group: Any, wait_until: Any
) -> None:
    """Else b and c, which lacks what a and b have acknowledged, would go on without it."""
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    await wait_until(lambda: all(node.member.kv.get("k") == 1 for node in group.nodes.values()))
    await group.stop("b")
    shutil.copytree(group.directory / "b", group.directory / "backup")
    await group.add("b", group.peers)
    await wait_until(lambda: group.nodes["b"].member._transport.accepted_by == {"a", "c"})
    await group.stop("c")
    await group.propose({"do": "put", "key": "k", "value": 2})
    await group.stop("a", "b")
    shutil.rmtree(group.directory / "b")
    (group.directory / "backup").rename(group.directory / "b")
    await group.start("b", "c")
    restored, other = group.nodes["b"].member, group.nodes["c"].member
    await wait_until(lambda: restored.failed is not None)
    assert "restored from a backup" in str(restored.failed)
    assert not other.is_leader and restored.status()["accepted"] is False


async def test_each_start_begins_a_life_unless_nobody_accepted_the_last_one(tmp_path: Path) -> None:
    identity = {"cluster": "c", "group": "g", "name": "a"}

    async def start(accepted: bool) -> Life:
        storage = RaftStorage(tmp_path / "a", "g")
        life = (await storage.open(identity, Config(()))).life
        if accepted:
            await storage.commit(Work(life=life._replace(accepted=True)))
        await storage.close()
        return life

    first = await start(accepted=False)
    assert (first.number, first.former, first.accepted) == (1, "", False)
    assert await start(accepted=True) == first
    second = await start(accepted=True)
    assert (second.number, second.former) == (2, first.token) and second.token != first.token


@pytest.mark.parametrize("base", [1, 3, 4])
async def test_the_log_may_be_compacted_up_to_its_last_entry(tmp_path: Path, base: int) -> None:
    identity, config = {"cluster": "c", "group": "g", "name": "a"}, Config(())
    storage = RaftStorage(tmp_path / "a", "g")
    await storage.open(identity, config)
    entries = [Entry(1, index, COMMAND, b"x") for index in range(1, 5)]
    await storage.commit(Work(hard_state=HardState(1, "a"), entries=entries, applied=4))
    await storage.commit(Work(base=Snapshot(base, 1, config)))
    await storage.close()
    storage = RaftStorage(tmp_path / "a", "g")
    log = (await storage.open(identity, config)).log
    assert (log.base_index, log.last_index) == (base, 4)
    await storage.close()


async def second_process(group: Any) -> tuple[str, Connection]:
    """A follower is stopped and started again; a living connection remains of its former process."""
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    name = next(name for name in ABC if name != leader.name)
    instance = group.nodes[name].member._transport.instance
    await group.stop(name)
    hello = Hello("registry", group.secret.cluster, name, "former process")
    conn = await connect(group.address(leader.name), hello=hello, secret=group.secret, timeout=2)
    conn.send(
        frame.ONEWAY, frame.RAFT, 0, frame.pack(["g", name, instance, 0, 0, encode(HeartbeatReply(0, 0))])
    )
    await conn.call("raft.g.status", {}, timeout=2)
    return name, conn


async def test_a_member_whose_host_lost_power_may_start_again_at_once(
    group: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last process is gone, but no FIN came: it was heard just now, and answers nothing."""
    monkeypatch.setattr(raft_transport, "SILENT_S", 0.3)
    name, conn = await second_process(group)
    assert conn._transport is not None
    conn._transport.pause_reading()
    await group.propose({"do": "put", "key": "k", "value": 2})
    node = await group.add(name, group.peers)
    await wait_until(lambda: node.member.failed is not None or node.member.kv.get("k") == 2)
    assert node.member.failed is None
    conn.close()


async def test_a_second_process_of_a_living_member_is_refused(group: Any, wait_until: Any) -> None:
    name, conn = await second_process(group)
    node = await group.add(name, group.peers)
    await wait_until(lambda: node.member.failed is not None)
    assert "from another process" in str(node.member.failed)
    conn.close()


async def test_a_wiped_member_comes_back_as_a_new_one(group: Any, wait_until: Any) -> None:
    await group.start(*ABC)
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    lost = next(name for name in ABC if name != leader.name)
    await group.stop(lost)
    node = await replace(group, lost)
    await wait_until(lambda: node.member.kv.get("k") == 1)
    await leader.change_members(lambda config: config.put(replicated.Member(lost, group.address(lost), True)))
    await wait_until(lambda: all(member["voter"] for member in node.member.members))
    assert node.member.failed is None


async def test_a_member_far_behind_gets_a_snapshot(
    group: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicated, "LOG_KEEP", 20)
    await group.start(*ABC)
    leader = await group.leader()
    away = next(name for name in ABC if name != leader.name)
    await group.stop(away)
    for n in range(40):
        text = f"{n}" * 10_000
        await group.propose({"do": "put", "key": f"k{n:03}", "value": text})
    await group.propose({"do": "put", "key": "k000", "value": "again"})
    for n in range(100):
        await group.propose({"do": "add", "key": "n", "n": 1})
        if n % 25 == 0:
            await asyncio.sleep(5 * replicated.TICK_S)
    leader = await group.leader()
    await wait_until(lambda: leader.status()["first_index"] > 60)
    await group.start(away)
    late = group.nodes[away].member
    await wait_until(lambda: late.kv.get("n") == 100)
    assert leader.snapshots_sent >= 1
    assert late.kv.get("k000") == "again" and late.kv.get("k039") == "39" * 10_000
    assert [key for key, _ in late.kv.scan("k")] == [f"k{n:03}" for n in range(40)]
    await group.stop(away)
    await group.start(away)
    assert group.nodes[away].member.kv.get("k039") == "39" * 10_000


async def test_a_value_that_grew_as_large_as_it_may_fits_into_a_snapshot(
    group: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command is small, the value is not; with neighbours before and behind it."""
    monkeypatch.setattr(replicated, "LOG_KEEP", 20)
    await group.start(*ABC)
    leader = await group.leader()
    away = next(name for name in ABC if name != leader.name)
    await group.stop(away)
    for key in ("a", "z"):
        await group.propose({"do": "put", "key": key, "value": "y" * 100_000})
    with pytest.raises(errors.LimitExceeded, match=f"{kv.VALUE_SIZE_MAX} at most"):
        while True:
            await group.propose({"do": "append", "key": "large", "value": "x" * 30_000})
    for n in range(60):
        await group.propose({"do": "add", "key": "n", "n": 1})
        if n % 25 == 0:
            await asyncio.sleep(5 * replicated.TICK_S)
    leader = await group.leader()
    await wait_until(lambda: leader.status()["first_index"] > 60)
    await group.start(away)
    late = group.nodes[away].member
    await wait_until(lambda: late.kv.get("n") == 60)
    assert leader.snapshots_sent >= 1 and len(late.kv.get("large")) == 960_000
    assert not any(node.member.failed for node in group.nodes.values())


async def test_a_bug_in_the_state_machine_stops_the_member(group: Any) -> None:
    await group.start("a")
    leader = await group.leader()
    with pytest.raises(errors.DeadlineExceeded):
        await leader.propose({"do": "crash"})
    assert isinstance(leader.failed, errors.Fatal)
    assert not leader.is_leader


async def test_a_command_too_large_is_refused(group: Any) -> None:
    await group.start("a")
    leader = await group.leader()
    with pytest.raises(errors.LimitExceeded):
        await leader.propose({"do": "put", "key": "k", "value": b"x" * (600 << 10)})


async def test_the_disk_fails(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await group.start("a")
    leader = await group.leader()

    def fail(work: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(leader._storage, "_commit_now", fail)
    with pytest.raises(errors.DeadlineExceeded):
        await leader.propose({"do": "put", "key": "k", "value": 1})
    assert isinstance(leader.failed, errors.DeviceFailed)
    with pytest.raises(errors.DeviceFailed):
        await leader.read_barrier()


async def test_another_cluster_or_name_is_refused(group: Any) -> None:
    await group.start("a")
    await group.stop("a")
    (group.directory / "a").rename(group.directory / "b")
    with pytest.raises(errors.IdentityConflict, match="belongs to name a"):
        await group.start("b")


async def test_membership_over_the_wire(group: Any, wait_until: Any) -> None:
    await group.start("a")
    leader = await group.leader()
    await group.propose({"do": "put", "key": "k", "value": 7})
    node = await group.add("d", {"a": group.address("a")})
    rpc = {"name": "d", "address": group.address("d")}
    await leader._rpc_add(None, rpc)  # type: ignore[arg-type]
    await wait_until(lambda: node.member.kv.get("k") == 7)
    await leader._rpc_promote(None, rpc)  # type: ignore[arg-type]
    assert [member["voter"] for member in leader.members] == [True, True]
    await leader._rpc_remove(None, rpc)  # type: ignore[arg-type]
    assert [member["name"] for member in leader.members] == ["a"]
    with pytest.raises(errors.NotFound):
        await leader._rpc_remove(None, rpc)  # type: ignore[arg-type]
    await group.propose({"do": "put", "key": "k", "value": 8})


async def test_adding_a_voter_does_not_take_its_vote(group: Any) -> None:
    await group.start("a")
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    with pytest.raises(errors.Invalid, match="a voter of this group already"):
        await leader._rpc_add(None, {"name": "a", "address": group.address("a")})
    await leader._rpc_add(None, {"name": "d", "address": "h:1"})
    await leader._rpc_add(None, {"name": "d", "address": "h:2"})  # a learner may move
    assert [(each["name"], each["address"], each["voter"]) for each in leader.members][1:] == [
        ("d", "h:2", False)
    ]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (5, "h:1"),
        ("", "h:1"),
        ("x" * 600, "h:1"),
        ("\ud800", "h:1"),
        ("d", "no address"),
        ("d", 5),
        ("d", "h:0"),
    ],
)
async def test_what_cannot_be_a_member_is_not_added(group: Any, name: Any, address: Any) -> None:
    await group.start("a")
    await group.propose({"do": "put", "key": "k", "value": 1})
    leader = await group.leader()
    with pytest.raises(errors.Invalid):
        await leader._rpc_add(None, {"name": name, "address": address})
    with pytest.raises(errors.MoorageError):
        await leader._rpc_set_address(None, {"name": "a", "address": "no address"})  # type: ignore[arg-type]
