"""The scheduler's page: true, small, and nobody's text is HTML."""

from __future__ import annotations

import re
from typing import Any

from moorage.framework.core import Core
from moorage.framework.inventory import Instance, Json
from moorage.framework.maintenance import BY, LATER, Window
from moorage.framework.page import render
from moorage.framework.spec import parse
from moorage.framework.view import plan_of, status_of

from .test_core import DOCUMENT, raft_of, run
from .world import World, subscribe


def cluster(steps: int = 6) -> tuple[World, Core]:
    world = World()
    for name in ("h1", "h2", "h3"):
        world.add(name)
    core = subscribe(world, parse(DOCUMENT))
    run(world, core, steps)
    core.heard(raft_of(core), [], nodes(core))
    return world, core


def nodes(core: Core) -> list[str]:
    found = core.plan.bindings.items()
    return [f"{agent.ip}:{each.port}" for instance, (agent, each) in found if instance.service == "node"]


def status(core: Core, now: float = 10.0) -> Json:
    return status_of(core, True, "F-1", now)


def test_all_is_well_only_when_the_services_have_said_so() -> None:
    _, core = cluster()
    assert status(core)["why_not"] == ["the services were not asked yet how they are"]
    assert "All is well" not in render(status(core))
    core.looked({}, 6.0, 7.0)
    shown = render(status(core))
    assert "All is well. The services were looked at 3 s ago." in shown and "9 of 9 tasks run" in shown
    core.looked({"h2": "device ab of h2 is down"}, 8.0, 9.0)
    shown = render(status(core))
    assert "Not all is well" in shown and "<li>device ab of h2 is down</li>" in shown
    assert "not subscribed to a Mesos master" in render(status_of(core, False, "F-1", 10.0))


def test_what_runs_is_waited_for_until_the_cluster_sees_it() -> None:
    _, core = cluster()
    core.heard(raft_of(core), [], nodes(core)[1:])
    (instance,) = core.unseen()
    assert instance.service == "node"
    assert f"{instance}: runs; the cluster does not see it yet" in status(core)["why_not"]
    core.heard({"registry": raft_of(core)["registry"]}, [], nodes(core))
    assert {each.service for each in core.unseen()} == {"metadata"}


def test_what_is_waited_for_and_declined_has_its_reason() -> None:
    world, core = cluster()
    (victim,) = [key for key, task in world.tasks.items() if task["name"] == "node.h1.root"]
    world.fail(victim, "Command exited with status 5")
    run(world, core, 3, 10)
    core.looked({}, 12.0, 12.0)
    found = status(core, 13.0)
    assert any("node.h1.root: TASK_FAILED" in each for each in found["why_not"])
    shown = render(found)
    assert "8 of 9 tasks run" in shown and "Command exited with status 5" in shown
    assert set(found["declined"]) == {"h1", "h2", "h3"} and "nothing of ours is to run there" in shown


def test_who_lost_its_place_is_not_waited_for() -> None:
    _, core = cluster()
    core.looked({}, 6.0, 7.0)
    core.plan.former.add(Instance("registry", "", "h1", ""))
    del core.tasks[next(key for key, task in core.tasks.items() if str(task.instance) == "registry.h1")]
    shown = render(status(core))
    assert "8 of 8 tasks run" in shown and "nothing: another host has its place" in shown
    steps = {each["instance"]: each["step"] for each in plan_of(core, core.spec, core.plan)["steps"]}
    assert steps["registry.h1"] == "none"


def test_a_release_that_goes_round_is_seen() -> None:
    world, core = cluster()
    core.apply(parse({**DOCUMENT, "image": "moorage:2"}))
    core.looked({}, 200.0, 200.0)
    run(world, core, 1, 200)
    rollout = status(core, 201.0)["rollout"]
    assert (rollout["under_way"], rollout["hosts"], rollout["host"]) == (True, 3, "h1")
    assert "It is the turn of h1." in render(status(core, 201.0))


def test_planned_maintenance_is_seen_and_what_is_in_its_way_is_a_reason() -> None:
    _, core = cluster()
    core.looked({}, 6.0, 7.0)
    assert "<h2>Planned maintenance</h2><p>None.</p>" in render(status(core))
    core.maintenance.planned({"h1": Window(10, 20, False), "h2": Window(30, 40, False)}, ["h1", "h2"])
    shown = render(status(core))
    assert "<td>h1</td><td>it is to be emptied</td>" in shown and f"<td>h2</td><td>{LATER}</td>" in shown
    assert "All is well" in shown, "it takes its time"
    core.maintenance.looked({}, {"h1": "there are too few hosts"})
    shown = render(status(core))
    assert "Not all is well" in shown
    assert f"<li>h1, {BY}: it cannot be emptied: there are too few hosts</li>" in shown


def test_nothing_that_others_say_is_html() -> None:
    """Each text in it is replaced by one that would be a script."""
    _, core = cluster()
    core.looked({}, 6.0, 7.0)
    evil = "<script>alert('\"&')</script>"

    def poisoned(value: Any) -> Any:
        match value:
            case str():
                return evil
            case list():
                return [poisoned(each) for each in [*value, *([""] if not value else [])]]
            case dict():
                return {key: poisoned(each) for key, each in value.items()}
        return value

    found = status(core)
    found["declined"] = found["maintenance"] = {evil: evil}
    instances = [poisoned(each) for each in found["instances"]]
    for why_not in ([], [evil]):
        page = poisoned({**found, "why_not": []}) | {"why_not": why_not, "instances": instances}
        page["declined"] = page["maintenance"] = {evil: evil}
        page["rollout"] = {**poisoned(found["rollout"]), "under_way": True}
        shown = render(page)
        assert "<script" not in shown and "alert('" not in shown and shown.count("&lt;script&gt;") > 40


def test_it_needs_nothing_from_elsewhere() -> None:
    _, core = cluster()
    shown = render(status(core))
    assert not re.search(r"src=|href=|url\(|@import|<script|<form|http", shown.replace("http-equiv", ""))
    assert '<meta http-equiv="refresh" content="5">' in shown and len(shown) < 5000


def test_a_plan_says_what_becomes_of_each_task() -> None:
    world, core = cluster()
    spec = parse({**DOCUMENT, "image": "moorage:2", "metadata": {"groups": 2}})
    core.heard({"registry": {}, "m1": {}}, [])
    core.inventory(world.agents(), 0, 20.0)
    (victim,) = [key for key, task in world.tasks.items() if task["name"] == "node.h1.root"]
    world.fail(victim)
    core.update({"task_id": {"value": victim}, "state": "TASK_FAILED"}, 21.0)
    steps = {each["instance"]: each["step"] for each in plan_of(core, spec, core.planned(spec))["steps"]}
    assert steps.pop("node.h1.root") == "launch"
    assert {steps.pop(f"metadata.m2.{host}") for host in ("h1", "h2", "h3")} == {
        "reserve, create volume, launch"
    }
    assert set(steps.values()) == {"new release, in its turn"} and len(steps) == 8
    kept = plan_of(core, core.spec, core.planned(core.spec))["steps"]
    assert {each["step"] for each in kept} == {"keep", "launch"} and len(kept) == 9
