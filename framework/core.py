"""The scheduler's decisions: offers, updates and inventories in; calls out, with a reason for each refusal.

Sans-IO: no clock, no chance, no socket. What it knows can be forgotten at any time: it is read again from the
master (agents with their reservations, tasks) whenever the scheduler subscribes.

Why no instance ever runs twice: an instance is launched on its own persistent volume only, which is offered
only while no task uses it. Nothing here unreserves or destroys; tasks are ended only for a new release, as
rollout.py says, and where another member has taken their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from moorage.framework import operations
from moorage.framework.inventory import (
    Agent,
    Binding,
    Instance,
    Json,
    agent_from,
    bindings_in,
    instance_of,
    is_free,
    less,
    pairs_of,
)
from moorage.framework.latency import Appends
from moorage.framework.maintenance import Held, Maintenance, windows_in
from moorage.framework.plan import Known, Plan, Wanted, make_plan
from moorage.framework.rollout import Rollout, Running, release_of, with_release
from moorage.framework.spec import Spec
from moorage.service.options import BY_NAME

ENDED = {
    *("TASK_FINISHED", "TASK_FAILED", "TASK_KILLED", "TASK_ERROR", "TASK_LOST", "TASK_DROPPED"),
    *("TASK_GONE", "TASK_GONE_BY_OPERATOR", "TASK_UNKNOWN"),
}
GONE = "TASK_GONE_BY_OPERATOR"
OPERATION_S = 30.0  # an operation whose outcome is not heard by then is looked for in the inventory
AWAITED_REFUSE_S = 1.0  # an agent that something waits for is offered again so soon
IDLE_REFUSE_S = 600.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
HOPELESS_S = 600.0  # for exit codes of which docs/launch.md says that a restart does not help
HOPELESS = {2, 3, 4, 5, 7}
FAILURES_SHOWN = 3  # so often in a row is no chance: somebody should look
STEADY_S = 60.0  # a task that ran so long is no failure to be counted
RECONCILE_S = 5.0
KILL_AGAIN_S = 15.0  # a kill may be lost
LOOK_AGE_S = 10.0  # what was seen before that may be otherwise by now
STAGING_S = 60.0  # a launch that nothing was heard of for so long is asked about
INVENTORY_S = 10.0  # so often it is asked for in any case: disks and attributes come and go


@dataclass
class Task:
    """``release``: what it was launched with (rollout.py). ``since``: when its state was first heard of."""

    id: str
    instance: Instance
    agent_id: str
    release: str
    state: str
    since: float
    message: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


@dataclass
class _Pending:
    instance: Instance
    until: float
    done: bool = False


@dataclass
class _Backoff:
    failures: int
    not_before: float
    why: str
    release: str | None  # that failed; another one is tried at once
    is_bad: bool  # it does not get well by itself, as it seems

    def holds(self, now: float, release: str) -> bool:
        return now < self.not_before and self.release in (None, release)


class Core:
    """``tokens``: gives a new unique text each time, for ids of tasks and operations. ``is_new``: an operator
    says that no agent holds anything of this cluster."""

    def __init__(self, spec: Spec, tokens: Callable[[], str], is_new: bool = False) -> None:
        self.spec = spec  # with the release that all are to have: another one once it was taken back
        self._is_new = is_new
        self._seen = False  # a reservation of the cluster
        self._raft: Mapping[str, Mapping[str, str]] | None = None
        self._seen_at: frozenset[str] = frozenset()  # HOST:PORT of the services that the cluster sees
        self._chosen: dict[tuple[str, str], Mapping[str, str]] = {}
        self.rollout = Rollout(release_of(spec), spec.p99_budget)
        self.maintenance = Maintenance()
        self.trouble: Mapping[str, str] = {}  # what was wrong, by host, when it was looked at last
        self._look = (float("-inf"), float("-inf"))  # when it began, and when it ended
        self._known: Known | None = None  # what the plan was made by
        self.plan = Plan()
        self.agents: dict[str, Agent] = {}
        self.tasks: dict[str, Task] = {}
        self.waits: dict[Instance, str] = {}  # what each that does not run waits for
        self.declined: dict[str, str] = {}  # by agent's host name: why its offers were declined last
        self.blind = ""  # why the cluster could not be looked at last
        self.unkept = ""  # why the spec would not be found by another scheduler
        self.troubles: dict[Instance, str] = {}  # of replacements that were tried
        self.failing: dict[Instance, str] = {}  # what fails again and again, and does not run steadily yet
        self.stale = True  # the inventory is to be asked for again
        self._tokens = tokens
        self._offers: dict[str, Json] = {}
        self._pending: dict[str, _Pending] = {}
        self._backoffs: dict[Instance, _Backoff] = {}
        self._calls: list[tuple[str, Json]] = []
        self._gone: dict[str, float] = {}  # host that an operator has called gone -> when it was heard
        self._killed_at = float("-inf")
        self._leaving: frozenset[str] = frozenset()
        self._ended: dict[str, float] = {}  # task that we want to end -> when it was told so last
        self._unanswered: set[str] = set()  # tasks that the master did not know of when we subscribed
        self._asked_at = self._inventory_at = float("-inf")
        self._awaited: set[str] = set()

    # -- inputs ----------------------------------------------------------------------------------------

    def subscribed(self) -> None:
        """Offers of the former stream are void."""
        self._offers.clear()
        self._pending.clear()
        self.maintenance.subscribed()
        self.stale = True

    def inventory(self, found: Json, unreachable: int, now: float) -> None:
        """What GET_AGENTS gave; and how many agents the master has lost sight of."""
        agents = [agent_from(self.spec.name, each) for each in found["get_agents"].get("agents", [])]
        self.agents = {each.id: each for each in agents}
        self._pending = {key: each for key, each in self._pending.items() if not each.done}
        self.stale, self._inventory_at = False, now
        for agent in agents:
            self._gone.pop(agent.host, None)  # it is back, under another id
        after = self.spec.replace_after_s
        gone = {host for host, since in self._gone.items() if now - since >= after}
        there = {(each.service, each.group) for agent in agents for each in agent.bindings}
        if not self._pending:  # else of what was chosen some may be reserved already, unseen
            self._chosen = {group: members for group, members in self._chosen.items() if group in there}
        unseen = self._unseen(len(found["get_agents"].get("recovered_agents", [])), unreachable)
        founding = self._why_not_found() or unseen
        self._seen |= bool(there)
        self._known = Known(founding, unseen, self._is_new, self._raft, self._chosen, gone, self._leaving)
        self.plan = make_plan(self.spec, agents, self._known)
        self._chosen |= self.plan.founded

    @property
    def has_inventory(self) -> bool:
        return self._known is not None

    def planned(self, spec: Spec) -> Plan:
        """What would follow from that spec, by the last inventory."""
        return make_plan(spec, self.agents.values(), self._known or Known())

    def apply(self, spec: Spec) -> None:
        """From now on this one counts. If its release is another one, it goes round; a pause holds."""
        if (release := release_of(spec)) != release_of(self.spec):
            paused = self.rollout.is_under_way and self.rollout.paused
            self.rollout = Rollout(release)
            self.rollout.paused = paused
        self.rollout.p99_budget = spec.p99_budget
        self.spec, self.stale = spec, True

    def maintenance_planned(self, schedule: Json, status: Json, wall_s: float) -> None:
        """What the master knows of it, after an inventory; ``wall_s``: since 1970."""
        windows = windows_in(schedule, status, self.agents.values(), wall_s)
        self.maintenance.planned(windows, {instance.host for instance in self.plan.bindings})

    def _why_not_found(self) -> str:
        """Of a cluster that is there already, whatever is not to be seen just now would be placed a second
        time: with nobody's data, under the same name."""
        if self._seen:
            return "its reservations were to be seen before, and are not now: they are waited for"
        if any(not each.is_over for each in self.tasks.values()):
            return "the master knows tasks of it, but no agent with its reservations: they are waited for"
        return ""

    def _unseen(self, recovered: int, unreachable: int) -> str:
        if recovered:
            return f"{recovered} agents have not come back to the master yet, and may hold it"
        if unreachable and not self._is_new:
            return f"{unreachable} agents are unreachable, and may hold it: if it is a new one, say --new"
        return ""

    def known_tasks(self, found: Json, now: float) -> None:
        """What GET_TASKS gave after a subscription: those of ours that live, or are out of reach."""
        listed = found["get_tasks"]
        alive = self._ours([*listed.get("tasks", []), *listed.get("unreachable_tasks", [])])
        there = {task["task_id"]["value"] for _, task in alive}
        # A host that has tasks again has come back, under another id, since it was called gone.
        back = {instance.host for instance, _ in alive}
        for instance, task in self._ours(listed.get("completed_tasks", [])):
            if task["state"] == GONE and instance.host not in back:
                self._gone.setdefault(instance.host, now)
        for instance, task in alive:
            task_id, agent_id = task["task_id"]["value"], task["agent_id"]["value"]
            release = pairs_of(task["labels"]).get(operations.RELEASE, "")
            known = self.tasks.setdefault(task_id, Task(task_id, instance, agent_id, release, "", now))
            self._note(known, task["state"], "", now)
        self._unanswered = {task.id for task in self.tasks.values() if not task.is_over} - there

    def _ours(self, tasks: Iterable[Json]) -> list[tuple[Instance, Json]]:
        found = [(instance_of(self.spec.name, task.get("labels", {})), task) for task in tasks]
        return [(instance, task) for instance, task in found if instance is not None]

    def offers(self, offers: Iterable[Json]) -> None:
        for offer in offers:
            self._offers[offer["id"]["value"]] = offer
            self.stale = self.stale or offer["agent_id"]["value"] not in self.agents

    def rescinded(self, offer_id: str) -> None:
        self._offers.pop(offer_id, None)

    def inverse_offers(self, inverse_offers: Iterable[Json]) -> None:
        self.maintenance.asked(inverse_offers)
        self.stale = True  # the schedule is another one

    def inverse_offer_rescinded(self, inverse_offer_id: str) -> None:
        self.maintenance.rescinded(inverse_offer_id)
        self.stale = True

    def replaced(self, instance: Instance) -> None:
        """Its Raft group has taken it in, and let go of whom it replaces."""
        self.troubles.pop(instance, None)
        self.stale = True

    def looked(
        self,
        trouble: Mapping[str, str],
        began: float,
        ended: float,
        appends: Mapping[str, Appends] | None = None,
    ) -> None:
        """What is wrong with the cluster, by host ("" for what is of none); and what its nodes counted, if
        they were asked."""
        self.trouble, self._look = trouble, (began, ended)
        self.rollout.appends = appends or {}

    def looked_s(self, now: float) -> float | None:
        """How long ago; None if it never was."""
        return None if self._look[1] == float("-inf") else now - self._look[1]

    def heard(
        self, raft: Mapping[str, Mapping[str, str]], leaving: Iterable[str], up: Iterable[str] = ()
    ) -> None:
        """From the cluster: the voters of each group (the registry, m1, ...), host to HOST:PORT; the hosts
        that an operator wants to be emptied; and where its services and devices are that are up."""
        found = raft, frozenset(leaving)
        self.stale |= found != (self._raft, self._leaving)
        self._raft, self._leaving = found
        self._seen_at = frozenset(up).union(*(voters.values() for voters in raft.values()))

    def lost_agent(self) -> None:
        self.stale = True

    def update(self, status: Json, now: float) -> None:
        task_id = status["task_id"]["value"]
        self._unanswered.discard(task_id)
        if "uuid" in status:  # else it is the master's own word
            names = ("agent_id", "task_id", "uuid")
            self._calls.append(("ACKNOWLEDGE", {name: status[name] for name in names}))
        task = self.tasks.get(task_id)
        if task is None:
            return
        self._note(task, status["state"], status.get("message", ""), now)

    def operation(self, status: Json, now: float) -> None:
        """The outcome of a RESERVE or CREATE."""
        if {"uuid", "agent_id", "operation_id"} <= status.keys():
            names = {name: status[name] for name in ("agent_id", "operation_id")}
            self._calls.append(("ACKNOWLEDGE_OPERATION_STATUS", {**names, "uuid": status["uuid"]["value"]}))
        pending = self._pending.get(status.get("operation_id", {}).get("value", ""))
        if pending is None:
            return
        pending.done = self.stale = True
        if status["state"] != "OPERATION_FINISHED":
            self._failed(pending.instance, str(status.get("message") or status["state"]), now)

    def _note(self, task: Task, state: str, message: str, now: float) -> None:
        was_over, ran = task.is_over, task.state == "TASK_RUNNING" and now - task.since >= STEADY_S
        if state != task.state:
            task.since = now
        task.state, task.message = state, message
        if was_over or not task.is_over:
            return
        instance = task.instance
        if ran:
            self._backoffs.pop(instance, None)
        if state == GONE:
            self._gone.setdefault(instance.host, now)
        if state != "TASK_DROPPED" and task.id not in self._ended:  # else nothing has failed
            self._failed(instance, f"{state}: {message}", now, task.release)
            self.rollout.task_failed(instance.host)
        for other in [each for each in self.tasks.values() if each.instance == instance]:
            if other.is_over and other.id != task.id:
                del self.tasks[other.id]
        self.stale = True

    def _failed(self, instance: Instance, why: str, now: float, release: str | None = None) -> None:
        failures = self._backoffs[instance].failures + 1 if instance in self._backoffs else 1
        pause = min(BACKOFF_FIRST_S * 2 ** (failures - 1), BACKOFF_MAX_S)
        code = re.search(r"exited with status (\d+)", why)
        is_bad = failures >= FAILURES_SHOWN
        if code is not None and int(code[1]) in HOPELESS:
            pause, is_bad = HOPELESS_S, True
        why = f"{why}; tried again after {pause:g} s"
        self._backoffs[instance] = _Backoff(failures, now + pause, why, release, is_bad)

    def failed(self, kind: str, body: Json, now: float) -> None:
        """A call that may not have arrived. An offer goes back, since the master takes it for ours; a task is
        asked about; of an operation the inventory tells. The rest is said again by who waits for it."""
        self.stale = True
        self.maintenance.failed(body)
        if "offer_ids" in body:
            again = {"offer_ids": body["offer_ids"], "filters": {"refuse_seconds": AWAITED_REFUSE_S}}
            self._calls.append(("DECLINE", again))
        for operation in body.get("operations", []):
            for task in operation.get("launch", {}).get("task_infos", []):
                self._unanswered.add(task["task_id"]["value"])

    # -- outputs -----------------------------------------------------------------------------------------

    def decide(self, now: float) -> list[tuple[str, Json]]:
        """The calls to be made now, in order: (kind, body)."""
        self._expire(now)
        by_agent: dict[str, list[Json]] = {}
        for offer in self._offers.values():
            by_agent.setdefault(offer["agent_id"]["value"], []).append(offer)
        for agent_id, offers in sorted(by_agent.items()):
            agent = self.agents.get(agent_id)
            if agent is None:
                continue  # kept until the inventory knows it
            self._use(agent, offers, now)
        self._end_tasks(now)
        self._calls += self.maintenance.answers({agent.id: agent.host for agent in self.agents.values()})
        self._explain(now)
        self._revive()
        self._reconcile(now)
        calls, self._calls = self._calls, []
        return calls

    def _expire(self, now: float) -> None:
        due = [since + self.spec.replace_after_s for since in self._gone.values()]
        self.stale |= now - self._inventory_at >= INVENTORY_S
        self.stale |= any(self._inventory_at < each <= now for each in due)
        for pending in self._pending.values():
            if pending.until <= now and not pending.done:
                pending.done = self.stale = True

    def _use(self, agent: Agent, offers: list[Json], now: float) -> None:
        rows = [row for offer in offers for row in offer["resources"]]
        done: list[Json] = []
        awaited = False
        for instance, binding in sorted(bindings_in(self.spec.name, rows).items()):
            what = self._for_binding(agent, binding, now)
            if isinstance(what, str):
                self.waits[instance] = what
                awaited = True
            else:
                done.append(what)
                self.waits.pop(instance, None)
        free = [row for row in rows if is_free(row)]
        for wanted in [each for each in self.plan.wanted if each.agent_id == agent.id]:
            made, free = self._for_wanted(wanted, free, now)
            if isinstance(made, str):
                self.waits[wanted.instance] = made
                awaited = True
            else:
                done += made
                self.waits.pop(wanted.instance, None)
        ids = [offer["id"] for offer in offers]
        for each in ids:
            del self._offers[each["value"]]
        filters = {"refuse_seconds": AWAITED_REFUSE_S if awaited or done or self.stale else IDLE_REFUSE_S}
        if done:
            self._calls.append(
                ("ACCEPT", {"offer_ids": ids, "operations": done, "filters": {"refuse_seconds": 0.0}})
            )
            self.declined.pop(agent.hostname, None)
        else:
            waits = [f"{each}: {why}" for each, why in self.waits.items() if each.host == agent.host]
            self.declined[agent.hostname] = "; ".join(waits) or "nothing of ours is to run there"
            self._calls.append(("DECLINE", {"offer_ids": ids, "filters": filters}))

    def _for_binding(self, agent: Agent, binding: Binding, now: float) -> Json | str:
        """The operation that brings an instance whose resources are offered on; or what it waits for."""
        instance = binding.instance
        if any(each.instance == instance for each in self._pending.values()):
            return "the outcome of an operation is not known yet"
        release = self.rollout.release_for(instance.host)
        if (backoff := self._backoffs.get(instance)) is not None and backoff.holds(now, release):
            return backoff.why
        if not binding.has_volume:
            if "disk" not in binding.rows:
                return "its disk is not in the offer"
            self._pending[key := self._tokens()] = _Pending(instance, now + OPERATION_S)
            return operations.create(self.spec, instance, binding.place, binding.rows["disk"], key)
        if not binding.is_whole:
            return "not all that is reserved for it is in the offer"
        alive = [each for each in self.tasks.values() if each.instance == instance and not each.is_over]
        # A task of the same disk under a former agent id is never heard of again. Should it still run, the
        # lock of its directory keeps the new one waiting.
        if here := [each for each in alive if each.agent_id == agent.id]:
            self._unanswered |= {each.id for each in here if now - each.since >= RECONCILE_S}
            return f"task {here[0].id} is {here[0].state}: its end was not heard of yet"
        if instance in self.plan.former:
            return "another host has taken its place"
        if instance in self.plan.contested:
            return "nobody can say whether it is a member"
        newest = self.plan.bindings.get(instance)
        if newest is not None and newest[1].place.generation != binding.place.generation:
            return "it was reserved anew since"
        registry = self.registry()
        if not registry:
            return "no member of the registry has its place yet"
        spec = with_release(self.spec, release)
        variables = operations.environment(spec, agent, binding, registry)
        task_id = f"{self.spec.name}.{instance}.{self._tokens()}"
        self.tasks[task_id] = Task(task_id, instance, agent.id, release, "TASK_STAGING", now)
        return operations.launch(spec, agent, binding, variables, task_id)

    def problems(self) -> list[str]:
        """What an operator should look at."""
        troubles = (f"{instance}: {why}" for instance, why in self.troubles.items())
        return [
            *self.plan.problems,
            *troubles,
            *(f"{instance}: {why}" for instance, why in self.failing.items()),
            *self.maintenance.problems(),
            *filter(None, [self.blind, self.unkept]),
        ]

    def held(self, host: str, replicas: int, blocked: str) -> Held:
        """What is on a host: replicas are counted by metadata, members are known here."""
        groups = {group for group, voters in (self._raft or {}).items() if host in voters}
        groups |= {
            each.group or each.service
            for each in self.alive()
            if each.host == host and each.service != "node"
        }
        return Held(replicas, tuple(sorted(groups)), blocked)

    def abort_rollout(self, why: str, now: float) -> None:
        self.rollout.abort(why, now, self.running(), self.plan.bindings)
        self._take_back()

    def _take_back(self) -> None:
        """Who takes over is not to try once more what was taken back."""
        if self.rollout.failed:
            self.spec = with_release(self.spec, self.rollout.wanted)

    def unseen(self) -> list[Instance]:
        """Those whose tasks run and that the cluster does not see, as of when it was heard last."""
        running = {each.instance for each in self.tasks.values() if each.state == "TASK_RUNNING"}
        return [
            instance
            for instance, (agent, binding) in sorted(self.plan.bindings.items())
            if instance in running - self.plan.former and f"{agent.ip}:{binding.port}" not in self._seen_at
        ]

    def replacements(self) -> list[tuple[Instance, str, str]]:
        """Members that run, and are to take the place of another one in their Raft group: each with its
        address, and whom it replaces."""
        running = {each.instance for each in self.tasks.values() if each.state == "TASK_RUNNING"}
        return [
            (instance, f"{agent.ip}:{binding.port}", binding.place.replaces)
            for instance, (agent, binding) in self.plan.bindings.items()
            if instance in self.plan.joining and instance in running
        ]

    def registry(self) -> list[str]:
        """HOST:PORT of its members: as the group says, else the newest reservation; each where it is now."""
        there = {
            instance.host: (agent, binding)
            for instance, (agent, binding) in self.plan.bindings.items()
            if instance.service == "registry"
        }
        if born := (self._raft or {}).get("registry"):
            found = dict(born)
        elif there:
            newest = max((binding for _, binding in there.values()), key=lambda each: each.place.generation)
            found = dict(newest.place.members)
        else:
            told = (binding.place.registry for _, binding in self.plan.bindings.values())
            found = dict(next(filter(None, told), {}))
        found |= {host: f"{agent.ip}:{each.port}" for host, (agent, each) in there.items() if host in found}
        return [where for _, where in sorted(found.items())]

    def _for_wanted(
        self, wanted: Wanted, free: list[Json], now: float
    ) -> tuple[list[Json] | str, list[Json]]:
        """(operations or what it waits for, what of ``free`` is left)."""
        instance = wanted.instance
        if any(each.instance == instance for each in self._pending.values()):
            return "the outcome of an operation is not known yet", free
        if (backoff := self._backoffs.get(instance)) is not None and backoff.holds(now, ""):
            return backoff.why, free
        rows = operations.carve(self.spec, wanted, free)
        if isinstance(rows, str):
            return rows, free
        first, second = self._tokens(), self._tokens()
        for key in (first, second):
            self._pending[key] = _Pending(instance, now + OPERATION_S)
        made = [
            operations.reserve(rows, first),
            operations.create(self.spec, instance, wanted.place, rows[-1], second),
        ]
        return made, less(free, rows)

    def alive(self) -> dict[Instance, Task]:
        """The tasks that have not ended. One that is unreachable under a former id of its agent is never
        heard of again, and is none."""
        return {
            task.instance: task
            for task in self.tasks.values()
            if not task.is_over
            and not (
                task.state == "TASK_UNREACHABLE"
                and task.instance in self.plan.bindings
                and self.plan.bindings[task.instance][0].id != task.agent_id
            )
        }

    def running(self) -> list[Running]:
        """The same, for the rollout."""
        return [
            Running(
                each.id, each.agent_id, each.instance, each.release,
                each.since if each.state == "TASK_RUNNING" else None,
            )
            for each in self.alive().values()
        ]  # fmt: skip

    def _end_tasks(self, now: float) -> None:
        """Of members whose place another host has taken, in their Raft group, too; and for a new release."""
        running = self.running()
        ending = [task for task in running if task.instance in self.plan.former]
        ending += self.rollout.decide(
            now, running, self.plan.bindings.keys() - self.plan.former, self._trouble_now(now, running)
        )
        self._take_back()
        self._ended = {task.id: self._ended[task.id] for task in running if task.id in self._ended}
        for task in ending:
            if now - self._ended.get(task.id, float("-inf")) >= KILL_AGAIN_S:
                self._ended[task.id] = self._killed_at = now
                body = {"task_id": {"value": task.id}, "agent_id": {"value": task.agent_id}}
                self._calls.append(("KILL", body))

    def _trouble_now(self, now: float, running: list[Running]) -> Mapping[str, str] | None:
        """What the last look saw; None if that was before something changed, or is long ago."""
        changed = max([self._killed_at, *(task.since for task in running if task.since is not None)])
        # A device that hangs after its start is noticed by its silence.
        suspect_s = float(self.spec.options.get("suspect_ms", BY_NAME["suspect_ms"].default or "0")) / 1000
        is_new = self._look[0] > changed + suspect_s + 1 and now - self._look[1] <= LOOK_AGE_S
        return self.trouble if is_new else None

    def _explain(self, now: float) -> None:
        """Keep a reason for each that is to run and does not; the newest that is known."""
        alive = self.alive().keys()
        idle = {*self.plan.bindings, *(each.instance for each in self.plan.wanted)} - alive
        idle -= self.plan.former
        backoffs = {
            each: found.why
            for each, found in self._backoffs.items()
            if found.holds(now, self.rollout.release_for(each.host))
        }
        self.waits = {
            each: backoffs.get(each) or self.waits.get(each, "no offer of its agent") for each in sorted(idle)
        }
        steady = {
            each.instance
            for each in self.tasks.values()
            if each.state == "TASK_RUNNING" and now - each.since >= STEADY_S
        }
        self.failing = {
            each: f"failed {found.failures} times, last with {found.why}"
            for each, found in sorted(self._backoffs.items())
            if found.is_bad and each in self.plan.bindings.keys() - self.plan.former - steady
        }

    def _revive(self) -> None:
        """Filters of what was declined while nothing was wanted would keep offers back now."""
        running = {(each.instance, each.agent_id) for each in self.tasks.values() if not each.is_over}
        bound = {
            (instance, agent.id)
            for instance, (agent, _) in self.plan.bindings.items()
            if instance not in self.plan.former
        }
        awaited = {str(each.instance) for each in self.plan.wanted}
        awaited |= {f"{instance} on {agent_id}" for instance, agent_id in bound - running}
        if awaited - self._awaited:
            self._calls.append(("REVIVE", {}))
        self._awaited = awaited

    def _reconcile(self, now: float) -> None:
        silent = {
            each.id
            for each in self.tasks.values()
            if each.state == "TASK_STAGING" and now - each.since >= STAGING_S
        }
        asked = [self.tasks[each] for each in sorted(self._unanswered | silent) if each in self.tasks]
        if not asked or now - self._asked_at < RECONCILE_S:
            return
        self._asked_at = now
        listed = [{"task_id": {"value": each.id}, "agent_id": {"value": each.agent_id}} for each in asked]
        self._calls.append(("RECONCILE", {"tasks": listed}))
