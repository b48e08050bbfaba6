"""A new release of the services, host by host: what runs where, whose turn it is, when all goes back. Pure.

A *release* is the command, the image and the options that tasks are launched with. Each task carries its own
as a label, so the running tasks say what there was before. Invariants: tasks are ended on one host at a time,
and only while nothing is wrong elsewhere; a host whose tasks do not come up well takes everything back to the
former release, unattended, in the same way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from moorage.framework.inventory import Instance
from moorage.framework.latency import Appends, too_slow
from moorage.framework.spec import Spec

SETTLE_S = 3.0  # tasks have run so long, and nothing is wrong, before the next host
JUDGED_S = 15.0  # for so long it is measured how fast a host is, once it is well
TURN_S = 180.0  # within which a host is well again
FAILURES_MAX = 3  # of tasks of the host whose turn it is


@dataclass(frozen=True)
class Running:
    """A task that is alive. ``since``: when it came to run; None while it does not yet."""

    id: str
    agent_id: str
    instance: Instance
    release: str
    since: float | None


def release_of(spec: Spec) -> str:
    found = {"command": spec.command, "image": spec.image, "options": dict(spec.options)}
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def with_release(spec: Spec, release: str) -> Spec:
    """The spec as it was with that release; one that says nothing is of a time without releases."""
    if not release:
        return spec
    found = json.loads(release)
    return replace(spec, command=tuple(found["command"]), image=found["image"], options=found["options"])


class Rollout:
    """``wanted``: the release that all are to have in the end. ``failed``: why it was taken back, or "".
    ``p99_budget``: how many times slower than the slowest other host a host may be; 0: it is not judged."""

    def __init__(self, wanted: str, p99_budget: float = 0.0) -> None:
        self.wanted = wanted
        self.p99_budget = p99_budget
        self.appends: Mapping[str, Appends] = {}  # what nodes counted, when they were looked at last
        self.former: str | None = None  # what hosts whose turn has not come have; None: all have ``wanted``
        self.failed = ""
        self.paused = False
        self.waits = ""  # for what the next host's turn is waited
        self.current = ""  # the host whose turn it is
        self.forced = False  # an operator says that hosts need not wait for each other's health
        self._turned: set[str] = set()
        self._expected: set[Instance] = set()  # those that ran on the host when its turn came
        self._since = 0.0
        self._failures = 0
        self._measured: tuple[float, Mapping[str, Appends]] | None = None  # since when, from what on

    @property
    def is_under_way(self) -> bool:
        return self.former is not None

    def release_for(self, host: str) -> str:
        """What a task is to be launched with there."""
        return self.wanted if self.former is None or host in self._turned else self.former

    def task_failed(self, host: str) -> None:
        """A task ended, and nobody had asked for that."""
        self._failures += host == self.current

    def decide(
        self,
        now: float,
        running: Iterable[Running],
        bound: Iterable[Instance],
        trouble: Mapping[str, str] | None,
    ) -> list[Running]:
        """The tasks that are to end, until they have. ``bound``: the instances that are to run. ``trouble``:
        what is wrong with the cluster, by host; "" for what is of none; None while it is not known."""
        tasks = list(running)
        if self.former is None:
            others = Counter(task.release for task in tasks if task.release != self.wanted)
            if not others:
                return []
            self.former = max(sorted(others), key=lambda release: others[release])
        if self.forced:
            trouble = {}
        if self.current:
            return self._go_on(now, tasks, bound, trouble)
        return self._next(now, tasks, trouble)

    def _next(self, now: float, tasks: list[Running], trouble: Mapping[str, str] | None) -> list[Running]:
        left = sorted({task.instance.host for task in tasks if task.release != self.wanted})
        self.waits = ""
        if not left:
            self.former, self.forced = None, False
            self._turned.clear()
        elif self.paused:
            self.waits = "it is paused"
        elif trouble is None:
            self.waits = "whether all is well is not known yet"
        elif host := self._whose_turn(left, tasks, trouble):
            return self._turn(host, now, tasks)
        else:
            self.waits = "; ".join(trouble.values())
        return []

    def _whose_turn(self, left: list[str], tasks: list[Running], trouble: Mapping[str, str]) -> str:
        """The next host, "" if none may be touched. Nobody's while anything is wrong, unless it is wrong on
        that host alone, and its release may be why: the one that is taken back, or an earlier bad one."""
        if not trouble:
            return left[0]
        for host in left:
            releases = {task.release for task in tasks if task.instance.host == host}
            suspect = self.failed or releases - {self.wanted, self.former}
            if suspect and not trouble.keys() - {host}:
                return host
        return ""

    def _turn(self, host: str, now: float, tasks: list[Running]) -> list[Running]:
        self.current, self._since, self._failures = host, now, 0
        self._turned.add(host)
        self._expected = {task.instance for task in tasks if task.instance.host == host}
        return self._old(tasks)

    def _old(self, tasks: list[Running]) -> list[Running]:
        return [task for task in tasks if task.instance.host == self.current and task.release != self.wanted]

    def _go_on(
        self,
        now: float,
        tasks: list[Running],
        bound: Iterable[Instance],
        trouble: Mapping[str, str] | None,
    ) -> list[Running]:
        new = {
            task.instance: task.since
            for task in tasks
            if task.release == self.wanted and task.since is not None
        }
        missing = [str(each) for each in sorted(self._expected.intersection(bound)) if each not in new]
        young = any(
            since is not None and now - since < SETTLE_S
            for instance, since in new.items()
            if instance.host == self.current
        )
        # On the way back, others may be in trouble until their turn has come.
        wrong = trouble
        if trouble is not None and self.failed:
            wrong = {host: text for host, text in trouble.items() if host == self.current}
        slow = ""
        if missing or young or wrong is None or wrong:
            self._measured = None
        elif not self.p99_budget or self.failed or self.forced:
            return self._pass(now, tasks, trouble)
        else:
            since, before = self._measured = self._measured or (now, self.appends)
            if now - since >= JUDGED_S:
                slow = too_slow(self.current, self.p99_budget, before, self.appends)
                if not slow:
                    return self._pass(now, tasks, trouble)
        if slow:
            self.waits = slow
        elif self._measured:
            self.waits = "it is measured how fast it is"
        elif missing:
            self.waits = f"{', '.join(missing)} to run"
        else:
            self.waits = "; ".join((wrong or {}).values()) or "it has just been started"
        if not self.failed and (slow or self._failures >= FAILURES_MAX or now - self._since > TURN_S):
            how = "too slow" if slow else "not well again"
            if self._failures >= FAILURES_MAX:
                how = f"tasks failed {self._failures} times"
            why = f"{self.current}, after {now - self._since:.0f} s: {how}: {self.waits}"
            self.abort(why, now, tasks, bound)
        return self._old(tasks)

    def _pass(self, now: float, tasks: list[Running], trouble: Mapping[str, str] | None) -> list[Running]:
        self.current, self._measured = "", None
        return self._next(now, tasks, trouble)

    def abort(self, why: str, now: float, tasks: Iterable[Running], bound: Iterable[Instance]) -> None:
        """All goes back to the former release, the host whose turn it is first."""
        if self.former is None or self.failed:
            return
        self.failed, self.paused = why, False
        self.wanted, self.former = self.former, self.wanted
        mixed = {task.instance.host for task in tasks if task.release != self.wanted}
        self._turned = {instance.host for instance in bound} - mixed - self._turned
        self._since, self._failures = now, 0
        if self.current:
            self._turned.add(self.current)
