"""What the scheduler shows of itself: the steps of a plan, and how far it is. Pure.

One account for the command line, the JSON API and the page, so that they cannot say different things.
"""

from __future__ import annotations

from moorage.framework.core import Core, Task
from moorage.framework.inventory import Binding, Instance, Json, value_of
from moorage.framework.plan import Plan
from moorage.framework.rollout import release_of
from moorage.framework.spec import Spec

RUNNING = "TASK_RUNNING"
UNSEEN = "runs; the cluster does not see it yet"


def plan_of(core: Core, spec: Spec, made: Plan) -> Json:
    """``steps``: of each instance what is done, by the plan ``made`` for ``spec``; ``problems``: what cannot
    be done, and why."""
    tasks, release = core.alive(), release_of(spec)
    there = [
        {
            "instance": str(instance),
            "agent": agent.hostname,
            "disk_mib": _disk(binding),
            "port": binding.port,
            "step": _step(made, instance, tasks.get(instance), release),
        }
        for instance, (agent, binding) in made.bindings.items()
    ]
    wanted = [
        {
            "instance": str(each.instance),
            "agent": core.agents[each.agent_id].hostname,
            "disk_mib": int(each.disk),
            "port": each.port,
            "step": "reserve, create volume, launch",
        }
        for each in made.wanted
    ]
    return {
        "steps": sorted(there + wanted, key=lambda each: str(each["instance"])),
        "problems": made.problems,
    }


def _step(made: Plan, instance: Instance, task: Task | None, release: str) -> str:
    if instance in made.former:
        return "end" if task else "none"
    if not made.bindings[instance][1].is_whole:
        return "create volume, launch"
    if task is None:
        return "launch"
    return "keep" if task.release == release else "new release, in its turn"


def _disk(binding: Binding) -> int:
    return int(value_of(binding.rows.get("disk", {})))


def waits_of(core: Core) -> dict[str, str]:
    """By instance: what each waits for that does not run, or that does while the cluster does not see it."""
    return {str(each): why for each, why in (core.waits | dict.fromkeys(core.unseen(), UNSEEN)).items()}


def waits_for(core: Core, is_subscribed: bool) -> list[str]:
    """Why not all runs that is to run."""
    if not is_subscribed:
        return ["not subscribed to a Mesos master"]
    return [*(f"{instance}: {why}" for instance, why in waits_of(core).items()), *core.problems()]


def status_of(core: Core, is_subscribed: bool, framework_id: str, now: float) -> Json:
    """``why_not``: why the cluster is not well, nothing when it is: all runs that is to run, and the services
    said so when they were looked at last, ``looked_s`` seconds ago. ``instances``: of each what it does, and
    what it waits for; a ``former`` one is not to run, since another host has taken its place. ``declined``:
    by agent, why its offers were declined last. ``maintenance``: by host, how far it is emptied for it."""
    tasks, waits = core.alive(), waits_of(core)
    bound = {
        instance: (agent, _disk(each), each.port) for instance, (agent, each) in core.plan.bindings.items()
    }
    wanted = {
        each.instance: (core.agents[each.agent_id], int(each.disk), each.port) for each in core.plan.wanted
    }
    looked_s = core.looked_s(now)
    why_not = [*waits_for(core, is_subscribed), *core.trouble.values()]
    if looked_s is None:
        why_not.append("the services were not asked yet how they are")
    return {
        "name": core.spec.name,
        "subscribed": is_subscribed,
        "framework_id": framework_id,
        "registry": core.registry(),
        "why_not": list(dict.fromkeys(why_not)),
        "looked_s": looked_s,
        "instances": [
            {
                "instance": str(instance),
                "agent": agent.hostname,
                "reserved": instance in bound,
                "former": instance in core.plan.former,
                "disk_mib": disk,
                "port": port,
                "task": tasks[instance].id if instance in tasks else "",
                "state": tasks[instance].state if instance in tasks else "",
                "waits": waits.get(str(instance), ""),
            }
            for instance, (agent, disk, port) in sorted({**wanted, **bound}.items())
        ],
        "problems": core.problems(),
        "declined": dict(core.declined),
        "maintenance": core.maintenance.states(),
        "rollout": _rollout(core),
    }


def _rollout(core: Core) -> Json:
    rollout, running = core.rollout, core.running()
    hosts = {task.instance.host for task in running}
    return {
        "under_way": rollout.is_under_way,
        "host": rollout.current,
        "waits": rollout.waits,
        "paused": rollout.paused,
        "taken_back": rollout.failed,
        "hosts": len(hosts),
        "hosts_done": len(hosts - {each.instance.host for each in running if each.release != rollout.wanted}),
    }
