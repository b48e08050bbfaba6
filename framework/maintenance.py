"""Planned maintenance of Mesos: which hosts are to be emptied for it, and what its master is answered. Pure.

The schedule at the master says which machines are taken down when; inverse offers only ask whether we are
ready. Emptying is the registry's drain, as an operator asks for it; what it says of who asked (``BY``) tells
which drains are ours to end, also to a scheduler that has only just been started. Invariants: the answer is
yes only while nothing of the cluster is on the host; a drain of anybody else is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moorage.framework.inventory import Agent, Json
from moorage.service.options import name_of

BY = "planned maintenance of Mesos"
LATER = "its turn comes when the maintenance before it is over"
AGAIN_S = 5.0  # what was answered is asked again so soon: the answer may be another one by then


@dataclass(frozen=True)
class Window:
    """In seconds of the wall clock; ``end_s`` is inf where the schedule says none."""

    start_s: float
    end_s: float
    has_begun: bool


def windows_in(schedule: Json, status: Json, agents: Iterable[Agent], now_s: float) -> dict[str, Window]:
    """By host, what GET_MAINTENANCE_SCHEDULE says and is not over. One whose time is up while its machine
    is still down, as GET_MAINTENANCE_STATUS says, is not. The agent of such a machine is not to be seen, and
    its host has the name that it would have as a new one."""
    known = {(agent.hostname.lower(), agent.ip): agent.host for agent in agents}
    down = [_machine(each) for each in status.get("down_machines", [])]
    found = {}
    for window in schedule.get("windows", []):
        start_s = window["unavailability"]["start"]["nanoseconds"] / 1e9
        length_s = window["unavailability"].get("duration", {}).get("nanoseconds", math.inf) / 1e9
        made = Window(start_s, start_s + length_s, start_s <= now_s)
        for machine in map(_machine, window.get("machine_ids", [])):
            host = known.get(machine) or name_of(machine[0])
            if host and (now_s < made.end_s or machine in down):
                found[host] = made
    return found


def _machine(machine_id: Json) -> tuple[str, str]:
    """The master compares both, too: an id that lacks one is no machine's."""
    return machine_id.get("hostname", "").lower(), machine_id.get("ip", "")


@dataclass(frozen=True)
class Held:
    """What is on a host that is being emptied. ``groups``: the Raft groups of which a member is there;
    ``blocked``: why replicas cannot leave, or ""."""

    replicas: int
    groups: tuple[str, ...]
    blocked: str

    def __str__(self) -> str:
        found = [f"{self.replicas} replica{'s' if self.replicas > 1 else ''}"] if self.replicas else []
        found += [f"a member of {group}" for group in self.groups]
        return " and ".join(found)


class Maintenance:
    """Hosts have their turn in the order of the schedule: those whose time overlaps that of the first one,
    since they will be down together; others when that is over."""

    def __init__(self) -> None:
        self._windows: Mapping[str, Window] | None = None  # None: the schedule has not been read yet
        self._hosts: set[str] = (
            set()
        )  # that have, or had, anything of the cluster: others keep nobody waiting
        self._held: Mapping[str, Held] = {}  # of hosts that are being emptied
        self._refused: Mapping[str, str] = {}  # hosts that cannot be emptied, and why
        self._asked: dict[str, str] = {}  # agent id -> its newest inverse offer
        self._answered: set[str] = set()  # inverse offers

    # -- inputs ----------------------------------------------------------------------------------------

    def subscribed(self) -> None:
        """Inverse offers of the former stream are void."""
        self._asked.clear()
        self._answered.clear()

    def planned(self, windows: Mapping[str, Window], hosts: Iterable[str]) -> None:
        """``hosts``: those on which anything is reserved."""
        self._windows = windows
        self._hosts |= set(hosts)

    def asked(self, inverse_offers: Iterable[Json]) -> None:
        for each in inverse_offers:
            self._asked[each["agent_id"]["value"]] = each["id"]["value"]
        self._answered &= set(self._asked.values())

    def rescinded(self, inverse_offer_id: str) -> None:
        self._asked = {agent: each for agent, each in self._asked.items() if each != inverse_offer_id}

    def failed(self, body: Json) -> None:
        """An answer that may not have arrived is given once more: the master would wait for it for ever."""
        self._answered -= {each["value"] for each in body.get("inverse_offer_ids", [])}

    def looked(self, held: Mapping[str, Held], refused: Mapping[str, str]) -> None:
        """``held``: of each host of :meth:`due` that the registry wants to be emptied; ``refused``: why
        another one cannot be."""
        self._held, self._refused = held, refused

    # -- outputs ---------------------------------------------------------------------------------------

    def due(self) -> list[str]:
        windows = self._ours()
        end_s = min(((each.start_s, each.end_s) for each in windows.values()), default=(0.0, 0.0))[1]
        return sorted(host for host, each in windows.items() if each.start_s < end_s)

    def _ours(self) -> dict[str, Window]:
        return {host: each for host, each in (self._windows or {}).items() if host in self._hosts}

    def wishes(self, hosts: Iterable[str], drains: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Hosts to empty from now on, and hosts to use again. ``hosts``: all that the registry knows;
        ``drains``: those that are to be emptied already, and who asked for that."""
        self._hosts |= set(hosts)
        if self._windows is None:
            return [], []
        due = self.due()
        over = [host for host, by in sorted(drains.items()) if by == BY and host not in due]
        return [host for host in due if host not in drains], over

    def answers(self, hosts: Mapping[str, str]) -> list[tuple[str, Json]]:
        """Calls. ``hosts``: agent id to host. Of an agent that is not known yet, none."""
        made: list[tuple[str, Json]] = []
        for agent_id, offer_id in sorted(self._asked.items()):
            if agent_id in hosts and self._windows is not None and offer_id not in self._answered:
                self._answered.add(offer_id)
                kind = (
                    "ACCEPT_INVERSE_OFFERS" if self._is_empty(hosts[agent_id]) else "DECLINE_INVERSE_OFFERS"
                )
                ids = [{"value": offer_id}]
                made.append((kind, {"inverse_offer_ids": ids, "filters": {"refuse_seconds": AGAIN_S}}))
        return made

    def _is_empty(self, host: str) -> bool:
        held = self._held.get(host)
        return host in self.due() and held is not None and not str(held)

    def states(self) -> dict[str, str]:
        """Of each host with a window, how far it is."""
        due = self.due()
        return {host: self._state(host) if host in due else LATER for host in sorted(self._ours())}

    def _state(self, host: str) -> str:
        if host in self._refused:
            return f"it cannot be emptied: {self._refused[host]}"
        if host not in self._held:
            return "it is to be emptied"
        held = self._held[host]
        return f"it holds {held}: {held.blocked or 'they move'}" if str(held) else "it is empty"

    def problems(self) -> list[str]:
        """What is in the way, and what was not ready in time."""
        windows, due = self._ours(), self.due()
        late = {host for host in due if windows[host].has_begun and not self._is_empty(host)}
        stuck = {host for host in due if host in self._refused}
        stuck |= {host for host in due if host in self._held and self._held[host].blocked}
        return [
            f"{host}, {BY}{' that has begun' if host in late else ''}: {self._state(host)}"
            for host in sorted(late | stuck)
        ]
