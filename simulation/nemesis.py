"""What goes wrong in a history, and when: drawn from the seed before it begins, so that it can be thinned
out.

Owns the plan (a list of faults, each with its time) and how each fault is done and undone. Stays within
what the configuration promises to survive: kills, power losses, cuts and pauses as many as they come; what
loses or changes synced bytes on one device only, the victim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from moorage.simulation import snapshot_checks
from moorage.simulation.cluster import Host, Machine, SimCluster
from moorage.simulation.network import Weather
from moorage.simulation.strand import PLOTS, strand
from moorage.simulation.tunables import FAST_DISK_S
from moorage.simulation.workload import Workload

CLOCKS_APART_S = 1200.0  # wall clocks may differ by less than a capability's life, an hour

WEIGHTS = {
    "kill": 6,
    "kill client": 4,
    "power loss": 3,
    "power loss of all": 2,
    "pause": 5,
    "cut": 5,
    "one way": 3,
    "isolate": 3,
    "slow link": 2,
    "lossy": 3,
    "reset": 3,
    "clock jump": 1,
    "slow disk": 2,
    "failing disk": 1,
    "rot": 2,
    "misdirected": 1,
    "bad sector": 1,
    "full": 1,
}

BETWEEN_S = 0.1  # from the end of a strand to the beginning of the next one

LOSING = ("rot", "misdirected", "bad sector")  # of what was synced


@dataclass(frozen=True)
class Fault:
    """``seed`` decides all that is not said: a fault is the same whatever else is in the plan."""

    at_s: float
    kind: str
    seed: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:.3f} {self.kind} ({self.lasts_s:.2f} s, {self.seed})"


def draw_plan(seed: int, storm_s: float, aim: str = "") -> list[Fault]:
    """Most histories are storms; some have an aim: to strand somebody, or outages. ``aim``: this one."""
    rng = Random(f"{seed} faults")
    draws = {"storm": draw_storm, "strands": draw_strands, "outages": draw_outages}
    drawn = rng.choices(list(draws), (5, 2, 1))[0]
    return draws[aim or drawn](rng, storm_s)


def draw_strands(rng: Random, storm_s: float, kinds: Sequence[str] = ()) -> list[Fault]:
    """One after the other, each as long as it needs; those of ``kinds`` in their order, or any."""
    plan, at_s = [], 1.0
    for kind in kinds or rng.sample(list(PLOTS), len(PLOTS)):
        lasts_s = PLOTS[kind][1]
        if at_s < storm_s:
            plan.append(Fault(at_s, kind, rng.getrandbits(32), lasts_s))
        at_s += lasts_s + BETWEEN_S
    return plan


def draw_outages(rng: Random, storm_s: float) -> list[Fault]:
    """All hosts lose power again and again, each time when their disks are slow: much is under way."""
    plan, at_s = [], 2.5
    while at_s < storm_s:
        plan += [Fault(at_s - 0.4, "slow disk", rng.getrandbits(32), 0.6) for _ in range(6)]
        plan.append(Fault(at_s + rng.uniform(0, 0.2), "power loss of all", rng.getrandbits(32), 0.5))
        at_s += 2.5
    return plan


def draw_storm(rng: Random, storm_s: float) -> list[Fault]:
    # Swarm testing (Groce et al. 2012): each history has some kinds of faults only, so that they add up.
    kinds = [kind for kind in WEIGHTS if rng.random() < 0.5] or ["kill"]
    weights = [WEIGHTS[kind] for kind in kinds]
    plan = []
    at_s = 1.0
    pace = rng.choice((0.05, 0.2, 0.6))
    while at_s < storm_s:
        at_s += rng.expovariate(1 / pace)
        (kind,) = rng.choices(kinds, weights)
        lasts_s = rng.choice((0.02, 0.3, 1.2, 3.0)) * rng.random()
        plan.append(Fault(at_s, kind, rng.getrandbits(32), lasts_s))
    return plan


class Nemesis:
    def __init__(self, cluster: SimCluster, workload: Workload, plan: list[Fault], victim: Host) -> None:
        self._cluster = cluster
        self._workload = workload
        self._world = cluster.world
        self._victim = victim  # the only one whose device forgets what was synced
        self._healed = False
        self.done: dict[str, int] = {}
        self._undo: dict[int, Callable[[], None]] = {}
        for fault in plan:
            self._world.loop.at(fault.at_s, self._do, fault)

    def _do(self, fault: Fault) -> None:
        if self._healed:
            return
        rng = Random(fault.seed)
        self._world.loop.note(f"fault: {fault.kind}")
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        if fault.kind in PLOTS:
            undo = strand(fault.kind, self, self._workload, rng)
        else:
            undo = getattr(self, "_" + fault.kind.replace(" ", "_"))(rng)
        if undo is not None:
            key = fault.seed
            self._undo[key] = undo
            self._world.loop.at(fault.lasts_s, self._undo_one, key)

    def _undo_one(self, key: int) -> None:
        undo = self._undo.pop(key, None)
        if undo is not None:
            undo()

    def heal(self) -> None:
        """No fault from now on, and everything that was done is undone."""
        self._healed = True
        for key in list(self._undo):
            self._undo_one(key)
        self._world.network.heal()
        for host in self._cluster.hosts:
            device = host.device
            device.fails_at = device.misdirects_at = 0
            device.disk.free = 1 << 40
            device.unreadable.clear()  # it can be read after all, as after many tries
            device.latency_s = FAST_DISK_S

    # -- machines ------------------------------------------------------------------------------------------

    def _kill(self, rng: Random) -> None:
        self._die(rng.choice(self._cluster.hosts), rng)

    def _kill_client(self, rng: Random) -> None:
        self._die(rng.choice(self._cluster.clients), rng)

    def _die(self, machine: Machine, rng: Random) -> None:
        """At one of its next effects: between any two, not only between events."""
        process = machine.process
        if process is not None and process.alive:
            if rng.random() < 0.3:
                machine.kill()
            else:
                process.dies_at = process.effects + rng.randint(1, 200)

    def _power_loss(self, rng: Random) -> None:
        rng.choice(self._cluster.machines).lose_power()

    def _power_loss_of_all(self, rng: Random) -> None:
        """Of a majority of the hosts at least: what was not synced is nowhere."""
        hosts = self._cluster.hosts
        for host in rng.sample(hosts, rng.randint(len(hosts) // 2 + 1, len(hosts))):
            host.lose_power()
        if rng.random() < 0.5:
            for client in self._cluster.clients:
                client.lose_power()

    def _pause(self, rng: Random) -> Callable[[], None] | None:
        process = rng.choice(self._cluster.machines).process
        if process is None or not process.alive:
            return None
        process.pause()
        return process.resume

    def _clock_jump(self, rng: Random) -> None:
        machine = rng.choice(self._cluster.hosts)
        machine.wall_s = rng.uniform(-CLOCKS_APART_S, CLOCKS_APART_S)
        if machine.process is not None:
            machine.process.wall_s = machine.wall_s

    # -- links ---------------------------------------------------------------------------------------------

    def one_way(self, sources: list[Machine], targets: list[Machine], weather: Weather) -> Callable[[], None]:
        network = self._world.network
        links = [(a.address, b.address) for a in sources for b in targets if a is not b]
        for link in links:
            network.set_weather(*link, weather)

        def undo() -> None:
            for link in links:
                network.set_weather(*link, Weather())

        return undo

    def both(self, some: list[Machine], others: list[Machine], weather: Weather) -> Callable[[], None]:
        there, back = self.one_way(some, others, weather), self.one_way(others, some, weather)

        def undo() -> None:
            there()
            back()

        return undo

    def _cut(self, rng: Random) -> Callable[[], None]:
        machines = self._cluster.machines
        some = [machine for machine in machines if rng.random() < 0.5]
        return self.both(some, [each for each in machines if each not in some], Weather(cut=True))

    def _one_way(self, rng: Random) -> Callable[[], None]:
        machines = self._cluster.machines
        some = [machine for machine in machines if rng.random() < 0.4]
        return self.one_way(some, [each for each in machines if each not in some], Weather(cut=True))

    def _isolate(self, rng: Random) -> Callable[[], None]:
        machine = rng.choice(self._cluster.machines)
        return self.both([machine], self._cluster.machines, Weather(cut=True))

    def _slow_link(self, rng: Random) -> Callable[[], None]:
        machine = rng.choice(self._cluster.machines)
        slow = Weather(delay_s=(0.001, rng.choice((0.02, 0.3))), bytes_per_s=rng.choice((2e5, 2e6)))
        return self.both([machine], self._cluster.machines, slow)

    def _lossy(self, rng: Random) -> Callable[[], None]:
        machine = rng.choice(self._cluster.machines)
        return self.both([machine], self._cluster.machines, Weather(loss=rng.choice((0.05, 0.3))))

    def _reset(self, rng: Random) -> None:
        """A middle box forgets the connections of one machine: both ends are told, or one."""
        process = rng.choice(self._cluster.machines).process
        if process is not None and process.alive:
            self._world.network.reset(process, rng.random() < 0.5)

    # -- devices -------------------------------------------------------------------------------------------

    def _slow_disk(self, rng: Random) -> Callable[[], None]:
        device = rng.choice(self._cluster.hosts).device
        device.latency_s = (1e-3, rng.choice((0.01, 0.1)))

        def undo() -> None:
            device.latency_s = self._cluster.tunables.disk_s

        return undo

    def _failing_disk(self, rng: Random) -> None:
        rng.choice(self._cluster.hosts).device.fails_at = rng.randint(1, 40)

    def _full(self, rng: Random) -> Callable[[], None]:
        """The file system has no room for another segment."""
        device = rng.choice(self._cluster.hosts).device
        free, device.disk.free = device.disk.free, 0

        def undo() -> None:
            device.disk.free = free

        return undo

    def _rot(self, rng: Random) -> None:
        """In half of the cases, where there is such, in what only a snapshot shows."""
        device, versions = self._victim.device, snapshot_checks.versions_of(self._victim)
        if versions and rng.random() < 0.5:
            device.rot_at(rng, *rng.choice(versions))
        else:
            device.rot(rng)

    def _bad_sector(self, rng: Random) -> None:
        self._victim.device.lose_sector(rng)

    def _misdirected(self, rng: Random) -> None:
        self._victim.device.misdirects_at = rng.randint(1, 20)
