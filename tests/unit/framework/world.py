"""A master and agents in memory, by the rules of docs/mesos-api.md, for the scheduler's core alone.

It refuses what a real master refuses: a row that is not offered, a persistence id that exists, a task whose
id is in use, an offer that is void. Resources are conserved: ``check`` adds everything up.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moorage.framework.core import ENDED, Core
from moorage.framework.inventory import is_free, less, ranges_of, source_of, value_of
from moorage.framework.spec import Spec

Json = dict[str, Any]


def scalar(name: str, value: float, **more: Any) -> Json:
    return {"name": name, "type": "SCALAR", "scalar": {"value": float(value)}, **more}


def mount(root: str, size: float) -> Json:
    return scalar("disk", size, disk={"source": {"type": "MOUNT", "mount": {"root": root}}})


def ports(first: int, last: int) -> Json:
    return {"name": "ports", "type": "RANGES", "ranges": {"range": [{"begin": first, "end": last}]}}


def plain(row: Json) -> Json:
    return {key: value for key, value in row.items() if key != "allocation_info"}


@dataclass
class Host:
    """``rows``: all that it has, cut into reservations and volumes; ``used``: by which task."""

    id: str
    hostname: str
    ip: str
    attributes: dict[str, str]
    rows: list[Json]
    reachable: bool = True
    used: dict[str, list[Json]] = field(default_factory=dict)


class World:
    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.tasks: dict[str, Json] = {}
        self.offers: dict[str, tuple[str, list[Json]]] = {}
        self.events: list[tuple[str, Any]] = []
        self.refused: list[str] = []
        self.launched: list[Json] = []
        self.answers: list[str] = []  # to inverse offers
        self._ids = itertools.count()

    def add(
        self,
        hostname: str,
        *rows: Json,
        cpus: float = 4,
        mem: float = 4096,
        disk: float = 10000,
        **attributes: str,
    ) -> Host:
        number = len(self.hosts) + 1
        host = Host(
            f"S{number}", hostname, f"10.0.0.{number}", attributes,
            [scalar("cpus", cpus), scalar("mem", mem), scalar("disk", disk), ports(31000, 31999), *rows],
        )  # fmt: skip
        self.hosts[host.id] = host
        return host

    # -- what a master tells -----------------------------------------------------------------------------

    def agents(self) -> Json:
        return {
            "get_agents": {
                "agents": [
                    {
                        "agent_info": {
                            "id": {"value": host.id},
                            "hostname": host.hostname,
                            "attributes": [
                                {"name": key, "type": "TEXT", "text": {"value": value}}
                                for key, value in host.attributes.items()
                            ],
                        },
                        "active": True,
                        "pid": f"slave(1)@{host.ip}:5051",
                        "total_resources": copy.deepcopy(host.rows),
                        "allocated_resources": [row for rows in host.used.values() for row in rows],
                    }
                    for host in self.hosts.values()
                    if host.reachable
                ]
            }
        }

    def unreachable(self) -> int:
        return sum(not host.reachable for host in self.hosts.values())

    def known_tasks(self) -> Json:
        alive = [task for task in self.tasks.values() if task["state"] not in ENDED]
        return {
            "get_tasks": {
                "completed_tasks": [task for task in self.tasks.values() if task["state"] in ENDED],
                "tasks": [task for task in alive if self._reachable(task)],
                "unreachable_tasks": [
                    {**task, "state": "TASK_UNREACHABLE"} for task in alive if not self._reachable(task)
                ],
            }
        }

    def _reachable(self, task: Json) -> bool:
        host = self.hosts.get(task["agent_id"]["value"])
        return host is not None and host.reachable

    def offer(self, *hosts: Host) -> list[Json]:
        """All that is free of each agent that has no offer out."""
        made = []
        out = {agent_id for agent_id, _ in self.offers.values()}
        for host in hosts or self.hosts.values():
            rows = self._unused(host)
            if host.reachable and host.id not in out and rows:
                offer_id = f"O{next(self._ids)}"
                rows = [{**row, "allocation_info": {"role": "moorage"}} for row in rows]
                self.offers[offer_id] = (host.id, rows)
                made.append({"id": {"value": offer_id}, "agent_id": {"value": host.id}, "resources": rows})
        return made

    @staticmethod
    def _unused(host: Host) -> list[Json]:
        used = [row for rows in host.used.values() for row in rows]
        free = less(filter(is_free, host.rows), filter(is_free, used))
        rows = [row for row in host.rows if not is_free(row) and row not in used]
        return [row for row in [*free, *rows] if value_of(row) > 0 or ranges_of(row)]

    # -- what a framework asks ---------------------------------------------------------------------------

    def call(self, kind: str, body: Json) -> None:
        if kind == "DECLINE":
            for each in body["offer_ids"]:
                self.offers.pop(each["value"], None)
        elif kind == "ACCEPT":
            self._accept(body)
        elif kind == "RECONCILE":
            for each in body["tasks"]:
                task = self.tasks.get(each["task_id"]["value"])
                state = task["state"] if task is not None else "TASK_UNKNOWN"
                if task is not None and state not in ENDED and not self._reachable(task):
                    state = "TASK_UNREACHABLE"
                self.events.append(("update", {"task_id": each["task_id"], "state": state}))
        elif kind == "KILL":
            if self.tasks[body["task_id"]["value"]]["state"] == "TASK_RUNNING":
                self.fail(body["task_id"]["value"], "killed")
        elif kind.endswith("_INVERSE_OFFERS"):
            self.answers.append(kind)
        else:
            assert kind in ("REVIVE", "ACKNOWLEDGE", "ACKNOWLEDGE_OPERATION_STATUS"), kind

    def _accept(self, body: Json) -> None:
        found = [self.offers.pop(each["value"], None) for each in body["offer_ids"]]
        for operation in body["operations"]:
            error = "attempted with invalid offers"
            if all(found):
                host = self.hosts[found[0][0]]  # type: ignore[index]
                error = getattr(self, f"_{operation['type'].lower()}")(host, operation)
            if error:
                self.refused.append(f"{operation['type']}: {error}")
            if operation["type"] == "LAUNCH":
                continue
            state = "OPERATION_ERROR" if error else "OPERATION_FINISHED"
            status = {"operation_id": operation["id"], "state": state, "message": error}
            self.events.append(("operation", status))

    def _reserve(self, host: Host, operation: Json) -> str:
        rows = [plain(row) for row in operation["reserve"]["resources"]]
        bare = [{key: value for key, value in row.items() if key != "reservations"} for row in rows]
        free = [row for row in self._unused(host) if is_free(row)]
        for row in bare:
            same = [each for each in free if (each["name"], source_of(each)) == (row["name"], source_of(row))]
            if sum(map(value_of, same)) < value_of(row) or not _spans_fit(ranges_of(row), same):
                return f"does not contain {row}"
            if source_of(row)[0] == "MOUNT" and value_of(same[0]) != value_of(row):
                return f"does not contain {row}: it is indivisible"
        host.rows = [
            *less(filter(is_free, host.rows), bare),
            *(r for r in host.rows if not is_free(r)),
            *rows,
        ]
        return ""

    def _create(self, host: Host, operation: Json) -> str:
        (volume,) = map(plain, operation["create"]["volumes"])
        disk = copy.deepcopy(volume)
        persistence = disk["disk"].pop("persistence")
        del disk["disk"]["volume"]
        if not disk["disk"]:
            del disk["disk"]
        ids = {row.get("disk", {}).get("persistence", {}).get("id") for row in host.rows}
        if persistence["id"] in ids:
            return f"Persistence ID '{persistence['id']}' is not unique"
        if disk not in host.rows:
            return "does not contain the reserved disk"
        host.rows[host.rows.index(disk)] = volume
        return ""

    def _launch(self, host: Host, operation: Json) -> str:
        (task,) = operation["launch"]["task_infos"]
        task_id = task["task_id"]["value"]
        rows = [plain(row) for row in task["resources"]]
        unused = self._unused(host)
        if task_id in self.tasks:
            return f"Task has duplicate ID {task_id}"
        if any(row not in unused for row in rows):
            self._end(task["task_id"], "TASK_ERROR", "uses more than is offered")
            return "uses more than is offered"
        host.used[task_id] = rows
        self.tasks[task_id] = {**task, "state": "TASK_RUNNING"}
        self.launched.append(task)
        self.events.append(("update", {"task_id": task["task_id"], "state": "TASK_RUNNING"}))
        return ""

    def _end(self, task_id: Json, state: str, message: str) -> None:
        self.events.append(("update", {"task_id": task_id, "state": state, "message": message}))

    # -- what happens to it --------------------------------------------------------------------------------

    def fail(self, task_id: str, message: str = "Command exited with status 1") -> None:
        task = self.tasks[task_id]
        task["state"] = "TASK_FAILED"
        del self.hosts[task["agent_id"]["value"]].used[task_id]
        self._end(task["task_id"], "TASK_FAILED", message)

    def lose(self, host: Host) -> None:
        """Its agent is silent: tasks may run on."""
        host.reachable = False
        for offer_id in [key for key, (agent_id, _) in self.offers.items() if agent_id == host.id]:
            del self.offers[offer_id]
            self.events.append(("rescind", offer_id))
        for task_id in host.used:
            self._end({"value": task_id}, "TASK_UNREACHABLE", "agent is silent")
        self.events.append(("lost", host.id))

    def come_back(self, host: Host, new_id: str = "", gone: bool = True) -> None:
        """``new_id``: as another agent, with its reservations and volumes, and without its tasks; what became
        of those, the master says if an operator called the former one ``gone``."""
        host.reachable = True
        if new_id:
            for task_id in list(host.used):
                self.tasks[task_id]["state"] = "TASK_GONE_BY_OPERATOR" if gone else "TASK_UNREACHABLE"
                self._end({"value": task_id}, self.tasks[task_id]["state"], "its agent has another id")
            host.used.clear()
            del self.hosts[host.id]
            host.id = new_id
            self.hosts[new_id] = host
        for task_id in host.used:
            self._end({"value": task_id}, "TASK_RUNNING", "agent is back")

    def call_gone(self, host: Host) -> None:
        """By an operator: its agent id is never used again."""
        self.lose(host)
        for task_id in host.used:
            self.tasks[task_id]["state"] = "TASK_GONE_BY_OPERATOR"
            self._end({"value": task_id}, "TASK_GONE_BY_OPERATOR", "gone")
        host.used.clear()
        del self.hosts[host.id]

    def add_again(self, host: Host, new_id: str) -> None:
        host.id, host.reachable = new_id, True
        self.hosts[new_id] = host

    def running(self) -> list[str]:
        return sorted(task["name"] for task in self.tasks.values() if task["state"] == "TASK_RUNNING")

    def check(self) -> None:
        """No volume twice, nothing used twice, no task refused."""
        for host in self.hosts.values():
            ids = [
                row["disk"]["persistence"]["id"] for row in host.rows if "persistence" in row.get("disk", {})
            ]
            assert len(set(ids)) == len(ids)
            volumes = [str(row) for rows in host.used.values() for row in rows if not is_free(row)]
            assert len(set(volumes)) == len(volumes), "a reserved row is used by two tasks"
            spans = sorted(span for row in host.rows for span in ranges_of(row))
            assert sum(b - a + 1 for a, b in spans) == 1000 and all(
                a[1] < b[0] for a, b in itertools.pairwise(spans)
            )
            for name, total in (("cpus", 4), ("mem", 4096)):
                assert abs(sum(value_of(row) for row in host.rows if row["name"] == name) - total) < 1e-6


def _spans_fit(wanted: list[tuple[int, int]], rows: list[Json]) -> bool:
    there = [span for row in rows for span in ranges_of(row)]
    return all(any(a <= first and last <= b for a, b in there) for first, last in wanted)


def numbers(prefix: str = "t") -> Iterator[str]:
    return (f"{prefix}{number}" for number in itertools.count())


def subscribe(world: World, spec: Spec, prefix: str = "t") -> Core:
    """A new scheduler: it knows what the master knows."""
    tokens = numbers(prefix)
    core = Core(spec, lambda: next(tokens))
    world.offers.clear()
    world.events.clear()
    core.subscribed()
    core.known_tasks(world.known_tasks(), 0.0)
    return core


def turn(world: World, core: Core, now: float) -> None:
    """One second: what happened is told, decided on, and done."""
    events, world.events = world.events, []
    for kind, body in events:
        if kind == "update":
            core.update(body, now)
        elif kind == "operation":
            core.operation(body, now)
        elif kind == "rescind":
            core.rescinded(body)
        else:
            core.lost_agent()
    if core.stale:
        core.inventory(world.agents(), world.unreachable(), now)
    core.offers(world.offer())
    for kind, body in core.decide(now):
        world.call(kind, body)
    world.check()
