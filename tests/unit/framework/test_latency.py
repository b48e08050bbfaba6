"""How fast a host with a new release is: who is too slow, and of whom nobody can say."""

from __future__ import annotations

from moorage.framework.latency import ENOUGH, Appends, p99_s, too_slow
from moorage.framework.rollout import JUDGED_S, Rollout

from .test_rollout import Hosts

BOUNDS = (0.001, 0.01, 0.1, 1.0)
NOTHING = Appends(BOUNDS, (0, 0, 0, 0, 0))


def counted(*counts: int) -> Appends:
    return Appends(BOUNDS, counts)


def test_the_99th_of_100() -> None:
    assert p99_s(NOTHING, counted(990, 10, 0, 0, 0)) == 0.001
    assert p99_s(NOTHING, counted(989, 11, 0, 0, 0)) == 0.01
    assert p99_s(counted(1000, 0, 0, 0, 0), counted(1000, 0, 500, 0, 0)) == 0.1, "of what came between"
    assert p99_s(NOTHING, counted(0, 0, 0, 0, 500)) == 1.0
    assert counted(1, 2, 0, 0, 0) + counted(1, 0, 0, 0, 5) == counted(2, 2, 0, 0, 5)


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert p99_s(NOTHING, counted(ENOUGH - 1, 0, 0, 0, 0)) is None
    assert p99_s(counted(500, 0, 0, 0, 0), counted(300, 600, 0, 0, 0)) is None, "it was started again"
    assert p99_s(None, NOTHING) is None and p99_s(NOTHING, None) is None
    assert p99_s(Appends((1.0,), (0, 0)), counted(500, 0, 0, 0, 0)) is None, "it is of another version"
    before = {"h1": NOTHING, "h2": NOTHING}
    slow = {"h1": counted(0, 0, 0, 500, 0), "h2": counted(0, 0, 0, 0, 0)}
    assert too_slow("h1", 3, before, slow) == "", "there is nobody to compare it with"


def test_the_bar_is_the_slowest_other_host_and_what_is_fast_is_never_too_slow() -> None:
    before = {"h1": NOTHING, "h2": NOTHING, "h3": NOTHING}
    found = {"h1": counted(0, 0, 0, 500, 0), "h2": counted(500, 0, 0, 0, 0), "h3": counted(0, 0, 500, 0, 0)}
    assert "within 1000 ms only" in too_slow("h1", 9, before, found)
    assert too_slow("h1", 10, before, found) == "" and too_slow("h3", 1, before, found) == ""
    found = {"h1": counted(0, 500, 0, 0, 0), "h2": counted(500, 0, 0, 0, 0)}
    assert too_slow("h1", 2, before, found) == ""


def rolled(budget: float, slow: str) -> tuple[Rollout, float]:
    """After two minutes in which each host has 100 appends a second, those of one release slow ones; and how
    long the first host's turn was."""
    rollout = Rollout("new", budget)
    hosts = Hosts(rollout, "old")
    found = {host: NOTHING for host in ("h1", "h2", "h3")}
    for _ in range(120):
        release = {task.instance.host: task.release for task in hosts.tasks}
        for host in found:
            found[host] += counted(*((0, 0, 100, 0, 0) if release.get(host) == slow else (100, 0, 0, 0, 0)))
        rollout.appends = dict(found)
        hosts.second()
    second = next((at for at, host in hosts.ended if host == "h2"), 0.0)
    return rollout, second - hosts.ended[0][0]


def test_a_release_that_is_slow_goes_back_and_one_that_is_not_goes_round() -> None:
    rollout, _ = rolled(5, "new")
    assert "h1, after" in rollout.failed and "too slow" in rollout.failed and not rollout.is_under_way
    rollout, took = rolled(5, "none")
    assert rollout.failed == "" and not rollout.is_under_way and took >= JUDGED_S
    rollout, took = rolled(0, "new")
    assert rollout.failed == "" and not rollout.is_under_way and took < JUDGED_S
