"""The scheduler's core against a master in memory: from nothing to all tasks, and again after failures."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import pytest

from moorage.cli.framework import _show_plan
from moorage.framework.core import Core
from moorage.framework.inventory import Instance, pairs_of
from moorage.framework.rollout import release_of
from moorage.framework.spec import Spec, parse
from moorage.framework.view import plan_of

from .world import World, mount, numbers, subscribe, turn

DOCUMENT: dict[str, Any] = {
    "secret_file": "/etc/moorage/secret",
    "principal": "moorage",
    "devices": [
        {"source": "ROOT", "size": "2G", "cpus": 0.5},
        {"source": "MOUNT", "size": "1G", "cpus": 0.5},
    ],
    "options": {"repair_after_s": 60},
}
ALL = [
    f"{service}.{host}" if service != "node" else f"node.{host}.root"
    for service in ("registry", "metadata.m1", "node")
    for host in ("h1", "h2", "h3")
]


@pytest.fixture
def spec() -> Spec:
    return parse(DOCUMENT)


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("h1", "h2", "h3"):
        made.add(name)
    return made


def raft_of(core: Core) -> dict[str, dict[str, str]]:
    """The groups with the members that run, as they would say of themselves."""
    found: dict[str, dict[str, str]] = {}
    for instance, (agent, binding) in core.plan.bindings.items():
        if instance.service != "node" and instance not in core.plan.former and not binding.place.replaces:
            group = found.setdefault(instance.group or instance.service, {})
            group[instance.host] = f"{agent.ip}:{binding.port}"
    return found


def run(world: World, core: Core, turns: int, start: float = 0.0) -> None:
    for number in range(turns):
        turn(world, core, start + number)


def test_from_nothing_to_all_tasks(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    assert world.running() == sorted(ALL)
    assert world.refused == [] and core.waits == {} and core.plan.problems == []
    assert len(world.launched) == len(ALL)


def test_tasks_are_told_what_the_launch_contract_asks_for(world: World, spec: Spec) -> None:
    world.hosts["S1"].rows.append(mount("/disks/a", 5000))
    run(world, subscribe(world, spec), 4)
    by_name = {task["name"]: task for task in world.launched}
    assert set(by_name) == {*ALL, "node.h1.mount-" + by_name_suffix(by_name)}
    variables = environment(by_name["metadata.m1.h2"])
    assert variables["MOORAGE_NAME"] == "h2" and variables["MOORAGE_GROUP"] == "m1"
    assert variables["MOORAGE_REPAIR_AFTER_S"] == "60" and "MOORAGE_CAPACITY" not in variables
    peers = dict(each.split("=") for each in variables["MOORAGE_PEERS"].split(","))
    assert peers["h2"] == f"10.0.0.2:{variables['MOORAGE_PORT']}" and set(peers) == {"h1", "h2", "h3"}
    registries = {
        environment(by_name[f"registry.{host}"])["MOORAGE_PORT"]: host for host in ("h1", "h2", "h3")
    }
    assert sorted(registries.values()) != [] and variables["MOORAGE_REGISTRY"].count(",") == 2
    node = environment(by_name["node.h3.root"])
    assert node["MOORAGE_CAPACITY"] == str(2 << 30) and "MOORAGE_PEERS" not in node
    ports = by_name["registry.h1"]["discovery"]["ports"]["ports"]
    assert [each["name"] for each in ports] == ["rpc", "http"]


def by_name_suffix(names: dict[str, Any]) -> str:
    return next(name.partition("mount-")[2] for name in names if "mount-" in name)


def environment(task: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in task["command"]["environment"]["variables"]}


def test_a_task_that_ends_is_started_again_on_its_volume(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    (victim,) = [key for key, task in world.tasks.items() if task["name"] == "registry.h2"]
    world.fail(victim)
    turn(world, core, 10)
    assert (
        "registry.h2" not in world.running()
        and "tried again after 1 s" in core.waits[Instance("registry", "", "h2", "")]
    )
    run(world, core, 3, 11)
    assert world.running() == sorted(ALL)
    first, second = [task for task in world.launched if task["name"] == "registry.h2"]
    assert first["resources"] == second["resources"] and first["task_id"] != second["task_id"]


def test_an_exit_code_that_a_restart_does_not_help_is_not_hammered(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    (victim,) = [key for key, task in world.tasks.items() if task["name"] == "node.h1.root"]
    world.fail(victim, "Command exited with status 5")
    run(world, core, 100, 10)
    assert (
        "node.h1.root" not in world.running() and "status 5" in core.waits[Instance("node", "", "h1", "root")]
    )
    run(world, core, 3, 700)
    assert "node.h1.root" in world.running()


def test_what_fails_again_and_again_is_a_problem_until_it_runs_steadily(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    for number in range(3):
        assert core.problems() == []
        (victim,) = [
            key
            for key, task in world.tasks.items()
            if (task["name"], task["state"]) == ("registry.h2", "TASK_RUNNING")
        ]
        world.fail(victim, "no such image")
        run(world, core, 8, 10 * (number + 1))
    (problem,) = core.problems()
    assert problem.startswith("registry.h2: failed 3 times, last with TASK_FAILED: no such image")
    assert "registry.h2" in world.running()
    run(world, core, 1, 100)
    assert core.problems() == []


def test_another_scheduler_takes_over_with_what_the_master_knows(world: World, spec: Spec) -> None:
    """At every step of a deployment."""
    for steps in range(6):
        world = World()
        for name in ("h1", "h2", "h3"):
            world.add(name)
        run(world, subscribe(world, spec, "a"), steps)
        core = subscribe(world, spec, "b")
        run(world, core, 6)
        assert world.running() == sorted(ALL), steps
        assert len(world.launched) == len(ALL), "no task was started twice"
        firsts = {
            str(pairs_of(row["reservations"][-1]["labels"])["members"])
            for host in world.hosts.values()
            for row in host.rows
            if row.get("reservations")
            and pairs_of(row["reservations"][-1]["labels"])["service"] == "registry"
        }
        assert len(firsts) == 1, "one group, of which all say the same"


def test_an_agent_that_is_away_is_not_replaced(world: World, spec: Spec) -> None:
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    registries = [name for name in world.running() if name.startswith("registry")]
    away = next(host for host in world.hosts.values() if f"registry.{host.hostname}" in registries)
    world.lose(away)
    run(world, core, 5, 10)
    other = subscribe(world, spec, "b")
    run(world, other, 5, 20)
    assert [task["name"] for task in world.launched if task["name"].startswith("registry")].count(
        registries[0]
    ) == 1
    assert len({task["name"] for task in world.launched if task["name"].startswith("registry")}) == 3
    assert any("not to be seen" in problem for problem in other.plan.problems)
    world.come_back(away)
    run(world, other, 5, 30)
    assert other.plan.problems == [] and len(world.launched) == len(world.running())


@pytest.mark.parametrize("gone", [True, False])
def test_an_agent_that_comes_back_with_another_id_is_who_it_was(world: World, spec: Spec, gone: bool) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    host = world.hosts["S2"]
    world.lose(host)
    turn(world, core, 5)
    world.come_back(host, "S9", gone)
    host.hostname = "other.example"
    run(world, core, 6, 10)
    assert world.running() == sorted(ALL)
    assert {task["agent_id"]["value"] for task in world.launched if task["name"] == "registry.h2"} == {
        "S2",
        "S9",
    }


def test_a_disk_that_appears_later_becomes_a_device(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    world.hosts["S3"].rows.append(mount("/disks/new", 5000))
    world.hosts["S1"].rows.append(mount("/disks/small", 100))
    run(world, core, 6, 10)
    new = set(world.running()) - set(ALL)
    assert len(new) == 1 and new.pop().startswith("node.h3.mount-")


def test_a_plan_is_shown_with_what_is_taken_of_each_disk(
    world: World, spec: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    world.hosts["S1"].rows.append(mount("/disks/a", 5000.5))
    core = subscribe(world, spec)
    core.inventory(world.agents(), 0, 0.0)
    _show_plan(plan_of(core, spec, core.plan), as_json=False)
    shown = capsys.readouterr().out
    assert "4.9 GiB" in shown and "2 GiB" in shown and shown.count("reserve, create") == 10


def test_too_few_hosts_are_named_with_the_reason(spec: Spec) -> None:
    world = World()
    world.add("h1")
    world.add("h2", cpus=0.1)
    core = subscribe(world, spec)
    core.inventory(world.agents(), 0, 0.0)
    assert (
        "registry: 3 hosts are needed, 1 can be used: h2: 0.1 cpus are free, 0.2 are needed"
        in core.plan.problems
    )


def test_failure_domains_have_one_member_each() -> None:
    spec = parse({**DOCUMENT, "failure_domain": "rack", "devices": [{"source": "MOUNT"}]})
    world = World()
    for host, rack in (("h1", "a"), ("h2", "a"), ("h3", "b"), ("h4", "c")):
        world.add(host, rack=rack)
    run(world, subscribe(world, spec), 4)
    for service in ("registry", "metadata.m1"):
        hosts = [name.rpartition(".")[2] for name in world.running() if name.startswith(service)]
        racks = [host.attributes["rack"] for host in world.hosts.values() if host.hostname in hosts]
        assert sorted(racks) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_all_tasks_run_in_the_end_and_none_twice(seed: int) -> None:
    rng = Random(seed)
    spec = parse({**DOCUMENT, "devices": [{"source": "ROOT", "size": "1G", "cpus": 0.2}]})
    world = World()
    for number in range(rng.randrange(3, 6)):
        world.add(f"h{number}")
    prefixes = numbers("s")
    core = subscribe(world, spec, next(prefixes))
    now, ids = 0.0, numbers("A")
    for _ in range(60):
        now += rng.choice([0.2, 1.0, 5.0])
        match rng.randrange(8):
            case 0 if running := [
                key for key, task in world.tasks.items() if task["state"] == "TASK_RUNNING"
            ]:
                task_id = rng.choice(running)
                if world.hosts[world.tasks[task_id]["agent_id"]["value"]].reachable:
                    world.fail(task_id)
            case 1:
                if (host := rng.choice(list(world.hosts.values()))).reachable:
                    world.lose(host)
            case 2:
                if away := [host for host in world.hosts.values() if not host.reachable]:
                    world.come_back(rng.choice(away), rng.choice(["", next(ids)]), rng.random() < 0.5)
            case 3:
                core = subscribe(world, spec, next(prefixes))
            case 4:
                world.events = [event for event in world.events if event[0] != "operation"]
            case 5:
                world.offers.clear()  # rescinded, and it has not been heard of yet
        turn(world, core, now)
    for host in [host for host in world.hosts.values() if not host.reachable]:
        world.come_back(host)
    for _ in range(80):
        now += 2.0
        turn(world, core, now)
    assert [name for name in world.running() if name.startswith("node")] == sorted(
        f"node.{host.hostname}.root" for host in world.hosts.values()
    )
    for service in ("registry", "metadata.m1"):
        assert len([name for name in world.running() if name.startswith(service)]) == 3
    assert len(set(world.running())) == len(world.running())


def test_members_of_a_host_that_is_gone_are_placed_anew_one_at_a_time() -> None:
    spec = parse({**DOCUMENT, "replace_after_s": 20, "metadata": {"members": 1}})
    world = World()
    for number in range(1, 6):
        world.add(f"h{number}")
    core = subscribe(world, spec)
    run(world, core, 4)
    raft = {"registry": raft_of(core)["registry"], "m1": raft_of(core)["m1"]}
    members = hosts_of(world, "registry")
    holder = hosts_of(world, "metadata")
    gone = [
        host for host in world.hosts.values() if host.hostname in members and host.hostname not in holder
    ][:2]
    for host in gone:
        world.call_gone(host)
    run(world, core, 15, 10)
    core.heard(copy.deepcopy(raft), [])
    run(world, core, 2, 26)
    assert core.replacements() == [], "not yet"
    run(world, core, 20, 30)
    ((instance, where, former),) = core.replacements()
    assert former in {host.hostname for host in gone} and instance.host not in members
    variables = environment(world.launched[-1])
    assert variables["MOORAGE_JOIN"] == "yes" and f"{instance.host}={where}" in variables["MOORAGE_PEERS"]
    other = subscribe(world, spec, "b")
    other.heard(copy.deepcopy(raft), [])
    run(world, other, 30, 60)
    assert other.replacements() == [(instance, where, former)], "another scheduler goes on with it"
    move(other, raft, [])
    run(world, other, 30, 100)
    ((second, _, later),) = other.replacements()
    assert {former, later} == {host.hostname for host in gone} and second.host not in {
        *members,
        instance.host,
    }
    move(other, raft, [])
    run(world, other, 30, 140)
    assert len(hosts_of(world, "registry")) == 3 and other.plan.wanted == []
    assert sorted(other.registry()) == sorted(raft["registry"].values())
    # The first one comes back after all, under another id: its member is not wanted any more.
    world.add_again(gone[0], "S77")
    run(world, other, 30, 180)
    assert gone[0].hostname not in hosts_of(world, "registry")
    assert Instance("registry", "", gone[0].hostname, "") in other.plan.former
    assert f"node.{gone[0].hostname}.root" in world.running(), "its disk is as good as any"


def test_a_host_that_is_to_be_emptied_gives_its_members_away_one_at_a_time(world: World, spec: Spec) -> None:
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    leaving = next(name.rpartition(".")[2] for name in world.running() if name.startswith("registry"))
    core.heard(raft_of(core), [leaving])
    run(world, core, 6, 10)
    taken = core.replacements()
    assert taken and {former for _, _, former in taken} == {leaving}
    assert f"registry.{leaving}" in world.running(), "until the group has let go of it"
    raft = raft_of(core)
    for each, where, _ in taken:
        core.replaced(each)
        group = raft[each.group or each.service]
        del group[leaving]
        group[each.host] = where
    core.heard(raft, [leaving])
    run(world, core, 6, 20)
    assert [name for name in world.running() if leaving in name] == [f"node.{leaving}.root"]
    for service in ("registry", "metadata"):
        assert len([name for name in world.running() if name.startswith(service)]) == 3
    core.heard(raft_of(core), [leaving, "h2", "h3"])
    run(world, core, 6, 40)
    assert any("is to be emptied" in problem for problem in core.plan.problems), "what blocks it is named"


def test_a_deployment_that_was_cut_short_after_one_agent_goes_on_as_it_was_planned(spec: Spec) -> None:
    """Whichever agent's reservations arrived, and nothing else did."""
    for arrived in range(4):
        world = World()
        for name in ("h1", "h2", "h3", "h4"):
            world.add(name)
        first = subscribe(world, spec, "a")
        first.inventory(world.agents(), 0, 0.0)
        first.offers(world.offer())
        accepts = [body for kind, body in first.decide(0.0) if kind == "ACCEPT"]
        world.call("ACCEPT", accepts[arrived])
        world.hosts["S2"].rows.append(mount("/disks/new", 5000))  # so that it would be chosen otherwise
        core = subscribe(world, spec, "b")
        run(world, core, 3)
        if arrived == 3:  # only a device's: that could as well be what is left of an old cluster
            assert "say --new" in core.plan.problems[0] and core.plan.wanted == []
            core._is_new = True
            run(world, core, 12, 5)
        core.heard({}, [])  # the registry runs, and knows no group
        run(world, core, 6, 20)
        for service in ("registry", "metadata.m1"):
            hosts = [name.rpartition(".")[2] for name in world.running() if name.startswith(service)]
            assert len(hosts) == 3, (arrived, service, core.plan.problems)
        assert set(core.registry()) == set(first.plan.founded["registry", ""].values())


@pytest.mark.parametrize("what", ["unreachable", "recovered", "a task"])
def test_no_cluster_is_founded_while_another_one_may_be_there_unseen(
    world: World, spec: Spec, what: str
) -> None:
    core = subscribe(world, spec)
    found = world.agents()
    if what == "recovered":
        found["get_agents"]["recovered_agents"] = [{}]
    if what == "a task":
        run(world, core, 4)
        tasks = world.known_tasks()
        core = subscribe(world, spec, "b")
        core.known_tasks(tasks, 0.0)
        found["get_agents"]["agents"] = []
    core.inventory(found, what == "unreachable", 0.0)
    assert core.plan.wanted == [] and "is not founded" in core.plan.problems[0]
    if what == "unreachable":
        told = Core(spec, str, is_new=True)
        told.inventory(found, 1, 0.0)
        assert len(told.plan.wanted) == len(ALL)


def test_what_was_seen_once_is_not_founded_again(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    world.hosts.clear()
    world.tasks.clear()
    for name in ("h7", "h8", "h9"):
        world.add(name)
    core.tasks.clear()
    run(world, core, 15, 10)
    assert world.running() == [] and "were to be seen before" in core.plan.problems[0]


def test_a_group_of_which_the_registry_has_heard_is_not_founded_again(spec: Spec) -> None:
    world = World()
    for name in ("h1", "h2", "h3", "h4", "h5", "h6"):
        world.add(name)
    core = subscribe(world, spec)
    run(world, core, 4)
    holders = {name.rpartition(".")[2] for name in world.running() if name.startswith("metadata")}
    for host in [host for host in world.hosts.values() if host.hostname in holders]:
        world.lose(host)
    other = subscribe(world, spec, "b")
    run(world, other, 5, 10)
    assert any("has not said yet which groups" in problem for problem in other.plan.problems)
    other.heard({**raft_of(other), "m1": {host: "" for host in holders}}, [])
    run(world, other, 5, 20)
    assert any("metadata m1: none of its members is to be seen" in each for each in other.plan.problems)
    assert {name.rpartition(".")[2] for name in world.running() if name.startswith("metadata")} == holders


def hosts_of(world: World, service: str) -> list[str]:
    return [name.rpartition(".")[2] for name in world.running() if name.startswith(service)]


def move(core: Core, raft: dict[str, dict[str, str]], leaving: list[str]) -> None:
    """What the groups do with who is to take the place of another one."""
    for each, where, former in core.replacements():
        group = raft[each.group or each.service]
        del group[former]
        group[each.host] = where
        core.replaced(each)
    core.heard(copy.deepcopy(raft), leaving)


def test_a_member_whose_host_comes_back_blank_does_not_begin_anew(world: World, spec: Spec) -> None:
    """It is no founder any more: another host takes its place when an operator says so."""
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    raft = raft_of(core)
    core.heard(raft, [])
    blank = next(host for host in world.hosts.values() if host.hostname in hosts_of(world, "registry"))
    world.call_gone(blank)
    blank.rows = World().add(blank.hostname).rows
    world.add_again(blank, "S9")
    run(world, core, 8, 20)
    assert any("there without what it held" in problem for problem in core.plan.problems)
    assert blank.hostname not in hosts_of(world, "registry")
    core.heard(raft, [blank.hostname])
    run(world, core, 6, 40)
    assert {former for _, _, former in core.replacements()} == {blank.hostname}


def test_two_sets_of_members_are_told_and_nobody_is_ended(spec: Spec) -> None:
    """Of one generation: such as two that were founded out of sight of each other."""
    worlds = []
    for names in (("h1", "h2", "h3"), ("h4", "h5", "h6")):
        world = World()
        for name in names:
            world.add(name)
        run(world, subscribe(world, spec), 4)
        worlds.append(world)
    one, other = worlds
    for number, host in enumerate(other.hosts.values()):
        host.id = f"T{number}"
        for task_id in list(host.used):
            one.tasks[task_id + "x"] = {**other.tasks[task_id], "task_id": {"value": task_id + "x"}}
            one.tasks[task_id + "x"]["agent_id"] = {"value": host.id}
            host.used[task_id + "x"] = host.used.pop(task_id)
        one.hosts[host.id] = host
    before = one.running()
    core = subscribe(one, spec, "b")
    core.known_tasks(one.known_tasks(), 0.0)
    run(one, core, 10)
    assert one.running() == before and len(before) == 2 * len(ALL)
    assert any("say different members" in problem for problem in core.plan.problems)


def test_an_unreachable_task_of_a_former_agent_id_is_no_task(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    host = world.hosts["S3"]
    world.lose(host)
    turn(world, core, 5)
    world.come_back(host, "S9", gone=False)
    run(world, core, 6, 10)
    assert world.running() == sorted(ALL)
    assert {task.agent_id for task in core.running()} == {"S1", "S2", "S9"}
    again = subscribe(world, spec, "b")
    run(world, again, 4, 20)
    assert len(again.alive()) == len(ALL) and again.waits == {}


def test_the_group_is_right_when_its_newest_member_is_away(world: World, spec: Spec) -> None:
    """Whose reservation alone tells of the change: the member that was let go of must not come back."""
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    raft = raft_of(core)
    former = hosts_of(world, "registry")[0]
    core.heard(raft, [former])
    run(world, core, 6, 10)
    (newest,) = {each.host for each, _, _ in core.replacements() if each.service == "registry"}
    move(core, raft, [former])
    run(world, core, 6, 20)
    core.heard(raft, [])
    world.lose(next(host for host in world.hosts.values() if host.hostname == newest))
    run(world, core, 10, 30)
    assert former not in hosts_of(world, "registry") and raft["registry"][newest] in core.registry()
    assert any(f"host {newest}, a member, is not to be seen" in problem for problem in core.plan.problems)


def test_hosts_are_emptied_one_after_the_other_and_used_again(world: World, spec: Spec) -> None:
    """A host has a member again that has let go of one before."""
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    raft, now = raft_of(core), 10.0
    for leaving in ("h1", "h2", "h3", "h4", "h1"):
        core.heard(copy.deepcopy(raft), [leaving])
        for _ in range(3):
            run(world, core, 6, now)
            move(core, raft, [leaving])
            now += 10
        run(world, core, 6, now)
        for service in ("registry", "metadata.m1"):
            assert leaving not in hosts_of(world, service) and len(hosts_of(world, service)) == 3, leaving
        now += 10
    assert world.refused == []
    assert core._backoffs == {}, "to be told to end is no failure"


def test_a_voter_that_is_to_be_replaced_is_started_again_until_then(world: World, spec: Spec) -> None:
    world.add("h4")
    core = subscribe(world, spec)
    run(world, core, 4)
    leaving = hosts_of(world, "registry")[0]
    core.heard(raft_of(core), [leaving])
    run(world, core, 6, 10)
    assert core.replacements()
    world.fail(next(key for key, task in world.tasks.items() if task["name"] == f"registry.{leaving}"))
    run(world, core, 6, 20)
    assert leaving in hosts_of(world, "registry")


def look(core: Core, now: float) -> None:
    core.looked({}, now, now)


def test_another_spec_counts_from_the_next_inventory_on(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    core.heard(raft_of(core), [])
    more = parse({**DOCUMENT, "metadata": {"groups": 2}})
    run(world, core, 2, 10)
    before = len(core.planned(core.spec).wanted)
    assert len(core.planned(more).wanted) == 3 and before == 0, "it is only planned"
    run(world, core, 2, 20)
    assert world.running() == sorted(ALL)
    core.apply(more)
    run(world, core, 5, 30)
    assert world.running() == sorted([*ALL, *(f"metadata.m2.{host}" for host in ("h1", "h2", "h3"))])
    assert not core.rollout.is_under_way and len(world.launched) == len(ALL) + 3, "nothing else is touched"


def test_another_release_goes_round_and_a_pause_holds(world: World, spec: Spec) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    core.apply(parse({**DOCUMENT, "image": "v2"}))
    for now in range(100, 110):
        look(core, now)
        turn(world, core, now)
    assert core.rollout.is_under_way and core.rollout.release_for("h1") != core.rollout.release_for("h3")
    core.rollout.paused = True
    core.apply(parse({**DOCUMENT, "image": "v3"}))
    assert core.rollout.paused and core.rollout.wanted == release_of(core.spec)
    core.rollout.paused = False
    for now in range(110, 220):
        look(core, now)
        turn(world, core, now)
    assert not core.rollout.is_under_way and not core.rollout.failed
    assert {task.release for task in core.alive().values()} == {release_of(core.spec)}
    assert {image_of(world.tasks[task.id]) for task in core.alive().values()} == {"v3"}


def test_another_budget_for_latencies_counts_at_once_and_for_the_next_release(
    world: World, spec: Spec
) -> None:
    core = subscribe(world, spec)
    run(world, core, 4)
    core.apply(parse({**DOCUMENT, "image": "v2"}))
    before = core.rollout
    core.apply(parse({**DOCUMENT, "image": "v2", "p99_budget": 5}))
    assert core.rollout is before and before.p99_budget == 5
    core.apply(parse({**DOCUMENT, "image": "v3", "p99_budget": 5}))
    assert core.rollout is not before and core.rollout.p99_budget == 5
    look(core, 100)
    turn(world, core, 100)
    core.abort_rollout("it is bad", 101)
    assert core.spec.image == "" and core.spec.p99_budget == 5, "only the release is taken back"


def image_of(task: dict[str, Any]) -> str:
    return str(task["container"]["mesos"]["image"]["docker"]["name"])


def test_a_release_that_was_taken_back_is_not_in_the_spec_any_more(world: World, spec: Spec) -> None:
    """Else whoever takes over would try it once more."""
    core = subscribe(world, spec)
    run(world, core, 4)
    core.apply(parse({**DOCUMENT, "image": "bad", "replace_after_s": 7}))
    look(core, 100)
    turn(world, core, 100)
    assert core.rollout.current == "h1" and core.spec.image == "bad"
    core.abort_rollout("it is bad", 101)
    assert (core.spec.image, core.spec.replace_after_s) == ("", 7), "only the release is"
    for now in range(101, 140):
        look(core, now)
        turn(world, core, now)
    assert world.running() == sorted(ALL) and core.rollout.failed == "it is bad"
    core.apply(parse({**DOCUMENT, "image": "bad"}))
    assert core.rollout.failed == "" and core.spec.image == "bad", "on an operator's word it is"
