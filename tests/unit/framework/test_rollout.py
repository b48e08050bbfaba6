"""A release that goes round the hosts, and one that is taken back."""

from __future__ import annotations

from dataclasses import replace

from moorage.framework.inventory import Instance
from moorage.framework.rollout import FAILURES_MAX, SETTLE_S, TURN_S, Rollout, Running

HOSTS = ("h1", "h2", "h3")
SERVICES = ("node", "registry")


class Hosts:
    """Tasks end when they are told to, and come back with what the rollout says; ``bad``: a release whose
    tasks never run."""

    def __init__(self, rollout: Rollout, release: str, bad: str = "") -> None:
        self.rollout = rollout
        self.bad = bad
        self.now = 0.0
        self.ended: list[tuple[float, str]] = []
        self.trouble: dict[str, str] | None = {}
        self.bound = [Instance(service, "", host, "") for host in HOSTS for service in SERVICES]
        self.tasks = [Running(f"{each}.0", "S", each, release, 0.0) for each in self.bound]

    def second(self) -> None:
        self.now += 1.0
        for task in self.rollout.decide(self.now, self.tasks, self.bound, self.trouble):
            self.tasks.remove(task)
            self.ended.append((self.now, task.instance.host))
        for instance in self.bound:
            if all(task.instance != instance for task in self.tasks):
                release = self.rollout.release_for(instance.host)
                if release == self.bad:
                    self.rollout.task_failed(instance.host)
                else:
                    task_id = f"{instance}.{self.now}"
                    self.tasks.append(Running(task_id, "S", instance, release, self.now))

    def releases(self) -> set[str]:
        return {task.release for task in self.tasks}


def test_all_hosts_have_it_one_after_the_other() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    for _ in range(30):
        hosts.second()
        down = {each.host for each in hosts.bound} - {task.instance.host for task in hosts.tasks}
        assert len(down) <= 1
    assert hosts.releases() == {"new"} and not rollout.is_under_way and rollout.failed == ""
    turns = [at for at, host in hosts.ended if host == "h2"] + [
        at for at, host in hosts.ended if host == "h1"
    ]
    assert turns[0] - turns[-1] >= SETTLE_S and len(hosts.ended) == 6


def test_nothing_happens_to_those_who_have_it() -> None:
    rollout = Rollout("old")
    hosts = Hosts(rollout, "old")
    hosts.second()
    assert hosts.ended == [] and not rollout.is_under_way


def test_it_waits_while_something_is_wrong() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    for trouble in (
        None,
        {"h3": "device d1 is down"},
        {"h1": "is down"},
        {"": "nobody answers"},
        {"h1": "a", "h2": "b"},
    ):
        hosts.trouble = trouble
        hosts.second()
        assert hosts.ended == [] and rollout.waits
    hosts.trouble = {}
    hosts.second()
    assert {host for _, host in hosts.ended} == {"h1"}
    hosts.trouble = {"h1": "m1: h1 catches up"}
    for _ in range(10):
        hosts.second()
    assert {host for _, host in hosts.ended} == {"h1"} and "catches up" in rollout.waits
    hosts.trouble = {}
    for _ in range(30):
        hosts.second()
    assert hosts.releases() == {"new"}


def test_a_pause_holds_the_next_host_back() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    hosts.second()
    rollout.paused = True
    for _ in range(20):
        hosts.second()
    assert {host for _, host in hosts.ended} == {"h1"} and rollout.waits == "it is paused"
    rollout.paused = False
    for _ in range(20):
        hosts.second()
    assert hosts.releases() == {"new"}


def test_a_bad_release_is_taken_back_from_the_first_host() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old", bad="new")
    for _ in range(FAILURES_MAX + 10):
        hosts.second()
    assert hosts.releases() == {"old"} and len(hosts.tasks) == 6 and not rollout.is_under_way
    assert {host for _, host in hosts.ended} == {"h1"} and "h1" in rollout.failed


def test_one_that_turns_out_badly_later_is_taken_back_everywhere_one_host_at_a_time() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    while len({host for _, host in hosts.ended}) < 2:
        hosts.second()
    hosts.trouble = {"h1": "node of h1 hangs"}
    for _ in range(int(TURN_S) + 10):
        hosts.second()
    assert rollout.failed and "h1 hangs" in rollout.failed
    for _ in range(20):
        hosts.second()
    assert [host for at, host in hosts.ended][-2:] == ["h1", "h1"], "what is wrong with h1 does not keep it"
    assert hosts.releases() == {"old"}
    hosts.trouble = {}
    for _ in range(10):
        hosts.second()
    assert not rollout.is_under_way


def test_a_host_in_trouble_has_the_corrected_release_first() -> None:
    rollout = Rollout("better")
    hosts = Hosts(rollout, "old")
    hosts.tasks = [
        replace(task, release="bad") if task.instance.host == "h2" else task for task in hosts.tasks
    ]
    hosts.trouble = {"h2": "node of h2 hangs"}
    hosts.second()
    assert {host for _, host in hosts.ended} == {"h2"} and rollout.former == "old"
    hosts.trouble = {}
    for _ in range(30):
        hosts.second()
    assert hosts.releases() == {"better"}


def test_what_did_not_run_before_need_not_run_afterwards() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    hosts.bound.append(Instance("node", "", "h1", "foreign"))
    for _ in range(30):
        running = [task for task in hosts.tasks if task.instance.device != "foreign"]
        hosts.tasks = running
        hosts.second()
    assert {task.release for task in hosts.tasks} == {"new"} and rollout.failed == ""


def test_an_operator_forces_it() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    hosts.trouble = {"": "nobody answers"}
    hosts.second()
    assert hosts.ended == []
    rollout.forced = True
    for _ in range(30):
        hosts.second()
    assert hosts.releases() == {"new"} and not rollout.forced


def test_an_operator_takes_it_back() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    for _ in range(6):
        hosts.second()
    rollout.abort("an operator says so", hosts.now, hosts.tasks, hosts.bound)
    for _ in range(30):
        hosts.second()
    assert hosts.releases() == {"old"} and rollout.failed == "an operator says so"


def test_another_scheduler_goes_on_in_the_middle() -> None:
    rollout = Rollout("new")
    hosts = Hosts(rollout, "old")
    while len({host for _, host in hosts.ended}) < 2:
        hosts.second()
    hosts.rollout = Rollout("new")
    for _ in range(30):
        hosts.second()
    assert hosts.releases() == {"new"} and len(hosts.ended) == 6
