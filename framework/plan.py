"""What is to be reserved where, from the desired state and what there is. Pure; `moorage framework plan`
shows it, and the scheduler does it.

Invariants: a group is placed once and whole, on the hosts that its newest reservation names: what is not to
be seen just now, because its agent is away, is never placed a second time, unless an operator has called the
host gone, or wants it to be emptied; then one member at a time, each when the one before it is complete. A
host has one registry member, and one of each metadata group. No disk that is reserved for anybody is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from moorage.framework.inventory import (
    Agent,
    Binding,
    Instance,
    Json,
    Place,
    device_name,
    ranges_of,
    source_of,
    value_of,
)
from moorage.framework.spec import Devices, Members, Needs, Spec

PORTS = 2  # of each task: the binary protocol's and HTTP's


@dataclass(frozen=True)
class Wanted:
    """To be reserved on an agent: ``disk`` MiB of the disk at ``source``."""

    instance: Instance
    agent_id: str
    port: int
    place: Place
    needs: Needs
    disk: float
    source: tuple[str, str]


@dataclass
class Plan:
    """``bindings``: what is reserved already, with where; ``former``: those of them that are not to run,
    since another host has taken their place; ``joining``: those that are to take the place of another one in
    their group; ``contested``: those of which nobody can say whether they are members. ``wanted``: what is
    not reserved yet. ``founded``: by service and group, the members of new groups, host to HOST:PORT.
    ``problems``: what cannot be, and why."""

    bindings: dict[Instance, tuple[Agent, Binding]] = field(default_factory=dict)
    wanted: list[Wanted] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    former: set[Instance] = field(default_factory=set)
    joining: set[Instance] = field(default_factory=set)
    founded: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    contested: set[Instance] = field(default_factory=set)


@dataclass(frozen=True)
class Known:
    """What agents and reservations do not say.

    ``founding``: why no cluster may be founded now, "" if one may; ``unseen``: which agents may hold
    something of it, "" for none; ``is_new``: an operator says that none does. ``raft``: the voters of each
    group (the registry, m1, ...), host to HOST:PORT, as the groups say; None while nobody has been asked.
    ``chosen``: the members of groups that are being placed, by service and group. ``gone``: hosts that an
    operator called gone, for long enough. ``leaving``: hosts that are to be emptied."""

    founding: str = ""
    unseen: str = ""
    is_new: bool = False
    raft: Mapping[str, Mapping[str, str]] | None = None
    chosen: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    gone: Container[str] = ()
    leaving: Container[str] = ()


def make_plan(spec: Spec, agents: Iterable[Agent], known: Known) -> Plan:
    plan = Plan()
    room = {each.host: _Room(each) for each in _named(agents, plan)}
    for agent in sorted((each.agent for each in room.values()), key=lambda agent: agent.host):
        for instance, binding in sorted(agent.bindings.items()):
            plan.bindings[instance] = (agent, binding)
    planning = _Planning(spec, plan, room, known)
    registry = planning.place_registry()
    if registry:  # else nothing has a place yet
        reserved = {each.group for each in plan.bindings if each.service == "metadata"}
        for group in sorted({*spec.groups, *reserved}):
            planning.place_metadata(group, registry)
        for host in sorted(host for host in room if host not in known.leaving):
            for devices in spec.devices:
                _place_devices(plan, room[host], devices, registry)
    return plan


def _named(agents: Iterable[Agent], plan: Plan) -> list[Agent]:
    """Those with a name of their own."""
    found = list(agents)
    count = Counter(each.host for each in found)
    for agent in found:
        if not agent.host:
            plan.problems.append(f"agent {agent.id}: no name can be made of its host name {agent.hostname!r}")
        elif count[agent.host] > 1:
            plan.problems.append(
                f"agent {agent.id}: {count[agent.host]} agents are called {agent.host}: a host is a failure"
                " domain, give each agent a --hostname of its own"
            )
    return [each for each in found if each.host and count[each.host] == 1]


class _Room:
    """What is left of an agent's free resources while a plan is made."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.cpus = sum(value_of(row) for row in agent.free if row["name"] == "cpus")
        self.mem = sum(value_of(row) for row in agent.free if row["name"] == "mem")
        self.ports = [span for row in agent.free if row["name"] == "ports" for span in ranges_of(row)]
        self.disks = {
            source_of(row): value_of(row)
            for row in agent.free
            if row["name"] == "disk" and "persistence" not in row.get("disk", {})
        }
        self.placed = len(agent.bindings)

    def lacks(self, needs: Needs, disk: float, source: tuple[str, str]) -> str:
        """Why it has no room for that; "" if it has."""
        for what, there, wanted in (
            ("cpus", self.cpus, needs.cpus),
            ("MiB of memory", self.mem, needs.mem),
            ("ports one behind the other", max((b - a + 1 for a, b in self.ports), default=0), PORTS),
            (f"MiB of {source[0]} disk", self.disks.get(source, 0.0), disk),
        ):
            if there < wanted:
                return f"{there:g} {what} are free, {wanted:g} are needed"
        return ""

    def take(self, needs: Needs, disk: float, source: tuple[str, str]) -> int:
        """The first of its ports."""
        self.cpus -= needs.cpus
        self.mem -= needs.mem
        self.disks[source] -= disk
        self.placed += 1
        at = next(at for at, (first, last) in enumerate(self.ports) if last - first + 1 >= PORTS)
        first, last = self.ports[at]
        self.ports[at] = (first + PORTS, last)
        return first


ROOT = ("ROOT", "")


@dataclass(frozen=True)
class _Group:
    """One that is there, in part or as a whole. ``there``: its reservations by host; ``instance``: the newest
    one's; ``place``: who its members are; ``is_joining``: ``instance`` is about to replace one of them;
    ``is_born``: the group itself says who they are, so it has run: who has no state of it is no member."""

    what: str
    there: Mapping[str, Binding]
    instance: Instance
    place: Place
    wanted: Members
    is_joining: bool = False
    is_born: bool = False


@dataclass(frozen=True)
class _Planning:
    """Of the members of groups."""

    spec: Spec
    plan: Plan
    room: dict[str, _Room]
    known: Known

    def place_registry(self) -> Mapping[str, str]:
        """Its members, host to HOST:PORT; none while it may not be founded, or cannot be."""
        wanted, known = self.spec.registry, self.known
        if members := self._continue("registry", "", wanted, {}):
            return members
        others = [binding.place.registry for _, binding in self.plan.bindings.values()]
        if told := next(filter(None, others), None):
            if not known.is_new:
                self.plan.problems.append(
                    f"the cluster {self.spec.name} has its registry on {', '.join(sorted(told))}, as its"
                    " reservations say, and none of them has it: they are waited for; if the cluster has only"
                    " just been founded, and nothing of it has run yet, say --new"
                )
                return {}
            instance = Instance("registry", "", "", "")
            self._complete(_Group("registry", {}, instance, Place(told, registry=told), wanted))
            return told
        if known.founding:
            self.plan.problems.append(f"the cluster {self.spec.name} is not founded: {known.founding}")
            return {}
        return self._found("registry", "", wanted, {})

    def place_metadata(self, group: str, registry: Mapping[str, str]) -> None:
        what, wanted, known = f"metadata {group}", self.spec.metadata, self.known
        if self._continue("metadata", group, wanted, registry):
            return
        if ("registry", "") in self.plan.founded:
            self._found("metadata", group, wanted, registry)
        elif known.raft is None:
            self.plan.problems.append(f"{what}: the registry has not said yet which groups there are")
        elif group in known.raft:
            self.plan.problems.append(f"{what}: none of its members is to be seen: they are waited for")
        elif known.unseen:
            self.plan.problems.append(f"{what} is not founded: {known.unseen}")
        else:
            self._found("metadata", group, wanted, registry)

    def _continue(
        self, service: str, group: str, wanted: Members, registry: Mapping[str, str]
    ) -> Mapping[str, str]:
        """The members of a group of which something is reserved, or about to be; none if there is none."""
        there = {
            instance.host: binding
            for instance, (_, binding) in self.plan.bindings.items()
            if (instance.service, instance.group) == (service, group)
        }
        what = f"{service} {group}".strip()
        if not there:
            chosen = self.known.chosen.get((service, group), {})
            if chosen:
                self.plan.founded[service, group] = chosen
                place = Place(chosen, registry=registry or chosen)
                self._complete(_Group(what, {}, Instance(service, group, "", ""), place, wanted))
            return chosen
        newest = max(there.values(), key=lambda binding: binding.place.generation)
        born = (self.known.raft or {}).get(group or service)
        if born:
            return self._go_on(what, there, born, wanted, registry)
        rivals = [each for each in there.values() if each.place.generation == newest.place.generation]
        if any(each.place.members != newest.place.members for each in rivals):
            self.plan.contested |= {each.instance for each in there.values()}
            hosts = ", ".join(sorted(each.instance.host for each in rivals))
            self.plan.problems.append(
                f"{what}: the reservations on {hosts} say different members, and the group does not say who"
                " is right: none of them is started, and none is ended"
            )
            return newest.place.members
        self.plan.contested |= {
            each.instance for host, each in there.items() if host not in newest.place.members
        }
        place = replace(newest.place, registry=registry or newest.place.members)
        self._complete(_Group(what, there, newest.instance, place, wanted))
        return newest.place.members

    def _go_on(
        self, what: str, there: dict[str, Binding], born: Mapping[str, str],
        wanted: Members, registry: Mapping[str, str],
    ) -> Mapping[str, str]:  # fmt: skip
        """By what the Raft group itself says of its voters, ``born``: labels may be of the time before. Only
        the newest may be about to replace a voter: whom an older one replaced may be one again since."""
        newest = max(there.values(), key=lambda each: (each.place.generation, each.place.replaces in born))
        members, host = dict(born), newest.instance.host
        is_joining = newest.place.replaces in born
        if is_joining:
            self.plan.joining.add(newest.instance)
            del members[newest.place.replaces]
            members[host] = newest.place.members.get(host, "")
        for other in sorted(set(there) - set(born) - set(members)):
            self.plan.former.add(there[other].instance)
        place = Place(born, newest.place.generation, "", registry or members)
        self._complete(_Group(what, there, newest.instance, place, wanted, is_joining, is_born=True))
        return members

    def _found(
        self, service: str, group: str, wanted: Members, registry: Mapping[str, str]
    ) -> Mapping[str, str]:
        hosts = self._choose(f"{service} {group}".strip(), wanted.members, {}, wanted)
        ports = {host: self.room[host].take(wanted.needs, wanted.disk, ROOT) for host in hosts}
        members = {host: self._where(host, port) for host, port in ports.items()}
        for host in hosts:
            place = Place(members, registry=registry or members)
            self._want(Instance(service, group, host, ""), ports[host], place, wanted)
        if members:
            self.plan.founded[service, group] = members
        return members

    def _complete(self, group: _Group) -> None:
        what, wanted, members = group.what, group.wanted, group.place.members
        if len(members) != wanted.members and not group.is_joining:
            self.plan.problems.append(
                f"{what}: it has {len(members)} members, and {wanted.members} are asked for: members of"
                " a running group are added and removed by `moorage member`"
            )
        for host in sorted(set(members) - set(group.there)):
            if group.is_born and (host in self.known.gone or host in self.known.leaving):
                if self._replace(group, host):
                    return  # one at a time
            elif host not in self.room:
                self.plan.problems.append(
                    f"{what}: host {host}, a member, is not to be seen: it is waited for; if it never comes"
                    f" back, mark its agent gone, or say `moorage host drain {host}`"
                )
            elif group.is_born:
                self.plan.problems.append(
                    f"{what}: host {host}, a member, is there without what it held: say"
                    f" `moorage host drain {host}`, and another host takes its place"
                )
            elif lacks := self.room[host].lacks(wanted.needs, wanted.disk, ROOT):
                self.plan.problems.append(f"{what}: host {host}, a member: {lacks}")
            else:
                self.room[host].take(wanted.needs, wanted.disk, ROOT)
                port = int(members[host].rpartition(":")[2])
                place = replace(group.place, replaces="")
                self._want(replace(group.instance, host=host), port, place, wanted)
        for host in sorted(host for host in members if host in group.there and host in self.known.leaving):
            if self._replace(group, host):
                return

    def _replace(self, group: _Group, old: str) -> bool:
        """Have another host take the place of ``old``; whether one does, or has to be waited for."""
        what, place, wanted = group.what, group.place, group.wanted
        if group.is_joining:
            if group.there[group.instance.host].place.replaces != old:
                first = group.instance.host
                self.plan.problems.append(
                    f"{what}: {first} becomes a member before another one takes the place of {old}"
                )
            return True
        others = {host: where for host, where in place.members.items() if host != old}
        for host in self._choose(f"{what}, in place of {old}", 1, {*others, old}, wanted):
            port = self.room[host].take(wanted.needs, wanted.disk, ROOT)
            members = {**others, host: self._where(host, port)}
            registry = members if group.instance.service == "registry" else place.registry
            made = Place(members, place.generation + 1, old, registry)
            self._want(replace(group.instance, host=host), port, made, wanted)
            return True
        return False

    def _where(self, host: str, port: int) -> str:
        return f"{self.room[host].agent.ip}:{port}"

    def _want(self, instance: Instance, port: int, place: Place, wanted: Members) -> None:
        agent = self.room[instance.host].agent
        self.plan.wanted.append(Wanted(instance, agent.id, port, place, wanted.needs, wanted.disk, ROOT))

    def _choose(self, what: str, count: int, others: Container[str], wanted: Members) -> list[str]:
        """Hosts for a group, none of them and of ``others`` in one failure domain; none if there are too
        few."""
        chosen: list[str] = []
        taken = {
            self._domain(host) for host in self.room if host in others and host not in self.known.leaving
        }
        refused = []
        for host in sorted(self.room, key=lambda host: (self.room[host].placed, host)):
            domain = self._domain(host)
            if host in others:
                continue
            if host in self.known.leaving:
                refused.append(f"{host} is to be emptied")
            elif not self.room[host].agent.active:
                refused.append(f"{host} is not active")
            elif not domain:
                refused.append(f"{host} has no attribute {self.spec.failure_domain}")
            elif lacks := self.room[host].lacks(wanted.needs, wanted.disk, ROOT):
                refused.append(f"{host}: {lacks}")
            elif domain in taken:
                refused.append(f"{host}: {self.spec.failure_domain} {domain} has one already")
            else:
                chosen.append(host)
                taken.add(domain)
            if len(chosen) == count:
                return sorted(chosen)
        why = "; ".join(refused) or "there is no other agent"
        self.plan.problems.append(f"{what}: {count} hosts are needed, {len(chosen)} can be used: {why}")
        return []

    def _domain(self, host: str) -> str:
        if not self.spec.failure_domain:
            return host
        return self.room[host].agent.attributes.get(self.spec.failure_domain, "")


def _place_devices(plan: Plan, room: _Room, devices: Devices, registry: Mapping[str, str]) -> None:
    agent = room.agent
    if not agent.active or any(agent.attributes.get(key) != value for key, value in devices.agents.items()):
        return
    for row in _disks(agent, devices):
        source = source_of(row)
        instance = Instance("node", "", agent.host, device_name(row))
        if instance in agent.bindings or any(each.instance == instance for each in plan.wanted):
            continue
        # A MOUNT disk is one resource: what is taken is all of it.
        size = value_of(row) if devices.source == "MOUNT" else devices.size
        if lacks := room.lacks(devices.needs, size, source):
            plan.problems.append(f"{instance}: {lacks}")
            continue
        port, place = room.take(devices.needs, size, source), Place({}, registry=registry)
        plan.wanted.append(Wanted(instance, agent.id, port, place, devices.needs, size, source))


def _disks(agent: Agent, devices: Devices) -> list[Json]:
    return [
        row
        for row in agent.free
        if row["name"] == "disk"
        and "persistence" not in row.get("disk", {})
        and source_of(row)[0] == devices.source
        and (devices.source != "MOUNT" or value_of(row) >= devices.size)
    ]
