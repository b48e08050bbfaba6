"""Planned maintenance: whose turn it is, what is drained and by whom, and what the master is answered."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moorage.framework.core import Core
from moorage.framework.inventory import agent_from
from moorage.framework.maintenance import BY, LATER, Held, Maintenance, Window, windows_in
from moorage.framework.spec import Spec, parse

from .test_core import DOCUMENT, move, raft_of, run
from .world import World, subscribe, turn

EMPTY = Held(0, (), "")
ACCEPT, DECLINE = "ACCEPT_INVERSE_OFFERS", "DECLINE_INVERSE_OFFERS"


def window(start: float, end: float, now: float = 0.0) -> Window:
    return Window(start, end, start <= now)


def inverse(number: int, agent_id: str) -> dict[str, Any]:
    return {"id": {"value": f"I{number}"}, "agent_id": {"value": agent_id}}


def planned(**windows: Window) -> Maintenance:
    made = Maintenance()
    made.planned(windows, windows)
    return made


def answers(maintenance: Maintenance) -> list[tuple[str, str]]:
    calls = maintenance.answers({"S1": "h1", "S2": "h2"})
    return [(kind, each["value"]) for kind, body in calls for each in body["inverse_offer_ids"]]


def entry(hostname: str, ip: str) -> dict[str, str]:
    return {"hostname": hostname, "ip": ip}


def test_what_the_master_says_is_read() -> None:
    world = World()
    world.add("H1.example")
    world.add("h2")
    agents = [agent_from("moorage", each) for each in world.agents()["get_agents"]["agents"]]

    def of(*machines: dict[str, str], start: int, seconds: int | None = None) -> dict[str, Any]:
        when: dict[str, Any] = {"start": {"nanoseconds": start * 10**9}}
        if seconds is not None:
            when["duration"] = {"nanoseconds": seconds * 10**9}
        return {"machine_ids": list(machines), "unavailability": when}

    schedule = {
        "windows": [
            of(entry("h1.Example", "10.0.0.1"), start=100),
            of(entry("h2", "10.0.0.2"), entry("h3", "10.0.0.3"), start=50, seconds=10),
        ]
    }
    assert windows_in(schedule, {}, agents, 55) == {
        "h1.example": Window(100, math.inf, False),
        "h2": Window(50, 60, True),
        "h3": Window(50, 60, True),
    }
    down = {"down_machines": [entry("h3", "10.0.0.3")]}
    assert windows_in(schedule, down, agents, 60).keys() == {"h1.example", "h3"}, "it is not back yet"
    assert windows_in({}, {}, agents, 55) == {}


def test_hosts_that_are_down_together_are_emptied_together_and_others_later() -> None:
    maintenance = planned(h1=window(10, 20), h2=window(19, 30), h3=window(20, 40))
    assert maintenance.due() == ["h1", "h2"]
    assert maintenance.wishes(["h1", "h2", "h3"], {}) == (["h1", "h2"], [])
    assert maintenance.states()["h3"] == LATER
    maintenance.planned({"h2": window(19, 30), "h3": window(20, 40)}, [])
    assert maintenance.due() == ["h2", "h3"]


def test_a_machine_that_holds_nothing_of_the_cluster_keeps_nobody_waiting() -> None:
    maintenance = Maintenance()
    maintenance.planned({"other": window(5, 10), "h1": window(20, 30)}, ["h1"])
    assert maintenance.due() == ["h1"] and maintenance.states().keys() == {"h1"}


def test_only_our_own_drain_is_ended() -> None:
    maintenance = planned(h1=window(10, 20))
    drains = {"h1": BY, "h2": BY, "h3": "moorage (pid 7) on h9"}
    assert maintenance.wishes(["h1", "h2", "h3"], drains) == ([], ["h2"])
    assert Maintenance().wishes(["h1"], drains) == ([], []), "the schedule has not been read yet"
    maintenance.planned({"h3": window(10, 20)}, ["h3"])
    assert maintenance.wishes(["h3"], {"h3": "moorage"}) == ([], []), "it is being emptied already"


def test_the_answer_is_yes_only_once_the_host_is_empty() -> None:
    maintenance = planned(h1=window(10, 20), h2=window(30, 40))
    maintenance.asked([inverse(1, "S1"), inverse(2, "S2"), inverse(3, "S9")])
    assert answers(maintenance) == [(DECLINE, "I1"), (DECLINE, "I2")]
    assert answers(maintenance) == [], "each is answered once"
    for held, answer, state in (
        (Held(2, ("m1", "registry"), ""), DECLINE, "2 replicas and a member of m1 and a member of registry"),
        (Held(0, ("registry",), ""), DECLINE, "it holds a member of registry: they move"),
        (Held(1, (), "there is no room"), DECLINE, "it holds 1 replica: there is no room"),
        (EMPTY, ACCEPT, "it is empty"),
    ):
        maintenance.looked({"h1": held}, {})
        maintenance.asked([inverse(4, "S1")])
        assert answers(maintenance) == [(answer, "I4")] and state in maintenance.states()["h1"]
        maintenance.rescinded("I4")
        maintenance.asked([])
    maintenance.planned({}, [])
    maintenance.asked([inverse(5, "S1")])
    assert answers(maintenance) == [(DECLINE, "I5")], "its time is over"


def test_an_answer_that_was_lost_is_given_again_and_one_that_is_void_is_not() -> None:
    maintenance = planned(h1=window(10, 20))
    maintenance.asked([inverse(1, "S1")])
    ((_, body),) = maintenance.answers({"S1": "h1"})
    maintenance.failed(body)
    maintenance.failed({"offer_ids": []})
    assert answers(maintenance) == [(DECLINE, "I1")]
    maintenance.failed(body)
    maintenance.rescinded("I1")
    assert answers(maintenance) == []
    maintenance.asked([inverse(2, "S1")])
    maintenance.subscribed()
    assert answers(maintenance) == []


def test_what_is_in_the_way_is_a_problem_and_what_only_takes_its_time_is_none() -> None:
    maintenance = planned(h1=window(10, 20))
    assert maintenance.problems() == []
    maintenance.looked({"h1": Held(3, (), "")}, {})
    assert maintenance.problems() == []
    maintenance.looked({"h1": Held(3, (), "no other host has room")}, {})
    assert maintenance.problems() == [f"h1, {BY}: it holds 3 replicas: no other host has room"]
    maintenance.looked({}, {"h1": "there are too few hosts"})
    assert maintenance.problems() == [f"h1, {BY}: it cannot be emptied: there are too few hosts"]
    maintenance.looked({"h1": Held(3, (), "")}, {})
    maintenance.planned({"h1": window(10, 20, now=11)}, [])
    assert maintenance.problems() == [f"h1, {BY} that has begun: it holds 3 replicas: they move"]
    maintenance.looked({"h1": EMPTY}, {})
    assert maintenance.problems() == []


@pytest.fixture
def spec() -> Spec:
    return parse(DOCUMENT)


def answered(world: World, core: Core, now: float) -> list[str]:
    """Of the answers to one inverse offer for the first host."""
    world.answers.clear()
    core.inverse_offers([inverse(int(now), "S1")])
    turn(world, core, now)
    return world.answers


def test_members_move_first_and_then_the_answer_is_yes(spec: Spec) -> None:
    world = World()
    for name in ("h1", "h2", "h3", "h4"):
        world.add(name)
    core = subscribe(world, spec)
    run(world, core, 4)
    raft = raft_of(core)
    host = world.hosts["S1"].hostname
    core.heard(raft, [])
    machine = entry(host, world.hosts["S1"].ip)
    schedule = {"windows": [{"machine_ids": [machine], "unavailability": {"start": {"nanoseconds": 10**12}}}]}
    core.maintenance_planned(schedule, {}, 5.0)
    assert answered(world, core, 9) == [DECLINE]
    assert core.maintenance.wishes([host], {}) == ([host], [])
    core.heard(raft, [host])
    core.maintenance.looked({host: core.held(host, 0, "")}, {})
    assert answered(world, core, 10) == [DECLINE] and "a member of" in core.maintenance.states()[host]
    for now in (20, 30, 40):
        run(world, core, 6, now)
        move(core, raft, [host])
    run(world, core, 6, 50)
    core.maintenance.looked({host: core.held(host, 0, "")}, {})
    assert answered(world, core, 60) == [ACCEPT]
    assert [name for name in world.running() if host in name] == [f"node.{host}.root"]
