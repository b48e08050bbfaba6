"""The simulation kernel: virtual time, a network, journals on simulated disks, and a nemesis.

Owns: the order of events, every random choice (one ``Random`` from the seed), the trace and its hash.
Must never: read a clock, sleep, touch a socket or file, iterate over a set.
Invariants: the same seed and the same code give the same trace hash; events run in (time, sequence) order; an
event of a crashed process never runs; after every event each check runs, and its failure names the seed.

How a cluster is built from it::

    kernel = Kernel(seed)
    network = Network(kernel)                 # network.conditions: delay, loss, duplication, stragglers
    network.attach("a", on_message)           # on_message(source, message)
    kernel.later(5_000, tick, owner="a", label="tick")
    kernel.checks.append(check_invariants)    # raise anything to fail the history
    nemesis = Nemesis(kernel, network, {"a": Hooks(crash, restart)}, quiet_after_us=3_000_000)
    kernel.run(until_us=10_000_000)
    kernel.trace_hash()
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import xxhash

STORY_LENGTH = 120  # events kept for the report of a failure

Action = Callable[[], None]


class Violation(AssertionError):
    """A history broke an invariant, or the code raised. ``seed`` replays it; ``story``: its last events."""

    def __init__(self, seed: int, now_us: int, cause: BaseException, story: list[str]) -> None:
        self.seed = seed
        self.now_us = now_us
        self.cause = cause
        self.story = story
        super().__init__(f"seed {seed} at {now_us} us: {type(cause).__name__}: {cause}")


class Event:
    """A thing that will happen; ``cancel()`` makes it not happen."""

    __slots__ = ("action", "label", "life", "owner")

    def __init__(self, action: Action | None, owner: str, life: int, label: str) -> None:
        self.action = action
        self.owner = owner
        self.life = life
        self.label = label

    def cancel(self) -> None:
        self.action = None


class Kernel:
    """Scheduler of one history. Times are microseconds of virtual time."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now_us = 0
        self.steps = 0
        self.checks: list[Action] = []
        self.story: deque[str] = deque(maxlen=STORY_LENGTH)
        self._heap: list[tuple[int, int, Event]] = []
        self._sequence = 0
        self._hash = xxhash.xxh3_64()
        self._lives: dict[str, int] = {}
        self._paused: dict[str, list[Event]] = {}

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def later(self, delay_us: int, action: Action, owner: str = "", label: str = "") -> Event:
        """Run ``action`` after ``delay_us``. With an owner it dies with that process (``kill``), and waits
        while it is paused. Without a label it is not part of the trace."""
        event = Event(action, owner, self._lives.get(owner, 0), label)
        self._push(self.now_us + max(0, delay_us), event)
        return event

    def _push(self, when_us: int, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (when_us, self._sequence, event))

    def kill(self, owner: str) -> None:
        """Forget every event that this process was going to see (a crash)."""
        self._lives[owner] = self._lives.get(owner, 0) + 1
        self._paused.pop(owner, None)

    def pause(self, owner: str) -> None:
        """Freeze a process (SIGSTOP): its events wait, its sockets stay open."""
        self._paused.setdefault(owner, [])

    def resume(self, owner: str) -> None:
        """Thaw it: what waited happens now, in the order in which it came."""
        for event in self._paused.pop(owner, []):
            self._push(self.now_us, event)

    def paused(self, owner: str) -> bool:
        return owner in self._paused

    def note(self, line: str) -> None:
        """Add a line to the trace (and to the story that a failure prints)."""
        entry = f"{self.now_us} {line}"
        self._hash.update(entry.encode())
        self.story.append(entry)

    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def step(self) -> bool:
        """Run the next event and then every check; False when nothing is left."""
        while self._heap:
            when_us, _, event = heapq.heappop(self._heap)
            action = event.action
            if action is None or event.life != self._lives.get(event.owner, 0):
                continue
            if event.owner in self._paused:
                self._paused[event.owner].append(event)
                continue
            self.now_us = when_us
            self.steps += 1
            try:
                if event.label:
                    self.note(f"{event.owner}: {event.label}")
                action()
                for check in self.checks:
                    check()
            except Exception as error:
                raise Violation(self.seed, self.now_us, error, list(self.story)) from error
            return True
        return False

    def run(self, until_us: int, stop: Callable[[], bool] | None = None) -> bool:
        """Run up to a time, or until ``stop()`` is true (asked after each event); True when it was."""
        while self._heap and self._heap[0][0] <= until_us:
            if not self.step():
                break
            if stop is not None and stop():
                return True
        self.now_us = max(self.now_us, until_us)
        return False


@dataclass(slots=True)
class Conditions:
    """How the network treats each message. A straggler is late by far more than others: reordering."""

    delay_us: tuple[int, int] = (200, 3_000)
    loss: float = 0.0
    duplication: float = 0.0
    straggling: float = 0.0
    straggler_us: tuple[int, int] = (20_000, 500_000)


class Network:
    """Delivers messages between named processes, badly when told so. Links are directed.

    ``attach`` names who listens; a message to a process that is down (detached) is lost. Messages are not
    copied: senders and receivers must treat them as immutable (pass ``copy`` to the constructor otherwise).
    A message outlives the crash of its sender *and* of its target: it may reach the next life of either.
    """

    def __init__(
        self, kernel: Kernel, conditions: Conditions | None = None, copy: Callable[[Any], Any] | None = None
    ) -> None:
        self.kernel = kernel
        self.conditions = conditions or Conditions()
        self.delivered = 0
        self.dropped = 0
        self._copy = copy
        self._handlers: dict[str, Callable[[str, Any], None]] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._held: dict[tuple[str, str], tuple[str, list[Any]]] = {}

    def attach(self, name: str, handler: Callable[[str, Any], None]) -> None:
        self._handlers[name] = handler

    def detach(self, name: str) -> None:
        self._handlers.pop(name, None)

    def send(self, source: str, target: str, message: Any) -> None:
        rng, how = self.kernel.rng, self.conditions
        kind, waiting = self._held.get((source, target), ("", []))
        if kind and message[0] == kind:
            waiting.append(message)
            return
        if (source, target) in self._cut or (how.loss and rng.random() < how.loss):
            self.dropped += 1
            return
        copies = 2 if how.duplication and rng.random() < how.duplication else 1
        for _ in range(copies):
            late = how.straggling and rng.random() < how.straggling
            delay_us = rng.randint(*(how.straggler_us if late else how.delay_us))
            payload = message if self._copy is None else self._copy(message)
            self._deliver_later(delay_us, source, target, payload)

    def _deliver_later(self, delay_us: int, source: str, target: str, message: Any) -> None:
        def deliver() -> None:
            if self.kernel.paused(target):
                self.kernel.later(0, deliver, target)  # waits in its socket until it is thawed
                return
            handler = self._handlers.get(target)
            if handler is None or (source, target) in self._cut:
                self.dropped += 1
                return
            self.delivered += 1
            self.kernel.note(f"{source}>{target} {message!r}")
            handler(source, message)

        self.kernel.later(delay_us, deliver)

    # -- messages of one kind that take their time ---------------------------------------------------

    def hold(self, source: str, target: str, kind: str) -> None:
        """Keep messages of a kind (their first field) under way until :meth:`release`."""
        self._held[source, target] = kind, []

    def release(self, source: str, target: str) -> None:
        """They arrive now, after others that were sent later."""
        _, waiting = self._held.pop((source, target), ("", []))
        for message in waiting:
            self._deliver_later(self.kernel.rng.randint(*self.conditions.delay_us), source, target, message)

    def held(self, source: str, target: str) -> int:
        return len(self._held.get((source, target), ("", []))[1])

    def forget(self, source: str, target: str) -> None:
        """They are lost."""
        self._held.pop((source, target), None)

    # -- partitions -------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Lose everything from ``source`` to ``target`` (one way)."""
        self._cut[(source, target)] = None

    def mend(self, source: str, target: str) -> None:
        self._cut.pop((source, target), None)

    def isolate(self, name: str, others: list[str]) -> None:
        """Cut a process off, both ways."""
        for other in others:
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    def split(self, left: list[str], right: list[str]) -> None:
        for a in left:
            for b in right:
                self.cut(a, b)
                self.cut(b, a)

    def heal(self) -> None:
        """Mend every link; conditions (loss and so on) are another matter."""
        self._cut.clear()


class Journal:
    """An append-only journal on a simulated disk. What was not synced may be lost at a crash, from the end.

    ``items`` is what the process sees; ``synced`` of them survive a crash for sure. ``sync`` calls ``done``
    after the disk's latency, unless the process dies first; syncs finish in the order they were asked
    for. ``replace`` puts a checkpoint in place of it all. The owner's crash hook calls ``crash``.
    """

    def __init__(self, kernel: Kernel, owner: str, latency_us: tuple[int, int] = (200, 2_000)) -> None:
        self.kernel = kernel
        self.owner = owner
        self.latency_us = latency_us
        self.items: list[Any] = []
        self.synced = 0
        self._busy_until_us = 0

    def append(self, item: Any) -> None:
        self.items.append(item)

    def sync(self, done: Action) -> None:
        """Make everything appended so far durable, then call ``done``."""
        target = len(self.items)
        start_us = max(self.kernel.now_us, self._busy_until_us)
        self._busy_until_us = start_us + self.kernel.rng.randint(*self.latency_us)

        def finish() -> None:
            self.synced = max(self.synced, min(target, len(self.items)))
            done()

        self.kernel.later(self._busy_until_us - self.kernel.now_us, finish, self.owner, "synced")

    def replace(self, items: list[Any]) -> None:
        """Put a checkpoint in place of everything, atomically and durably (write aside, sync, rename).
        No sync may be under way, since its count would mean other items."""
        self.items = list(items)
        self.synced = len(items)

    def crash(self) -> None:
        """Keep what was synced, and a random part of what was not, without holes."""
        kept = self.kernel.rng.randint(self.synced, len(self.items))
        del self.items[kept:]
        self.synced = len(self.items)
        self._busy_until_us = 0


@dataclass(frozen=True, slots=True)
class Hooks:
    """How the nemesis crashes and restarts one process (both called outside of that process)."""

    crash: Action
    restart: Action


@dataclass(slots=True)
class Plan:
    """What the nemesis does, and how often. Weights of 0 switch a fault off."""

    every_us: tuple[int, int] = (50_000, 600_000)
    down_us: tuple[int, int] = (50_000, 1_500_000)
    down_max: int | None = None  # processes down or paused at once; None: a minority
    weights: Mapping[str, int] = field(
        default_factory=lambda: {
            "crash": 4,
            "pause": 2,
            "isolate": 3,
            "split": 3,
            "one_way": 3,
            "heal": 4,
            "weather": 3,
            "blackout": 1,
        }
    )


class Nemesis:
    """Breaks things at random until ``quiet_after_us``; then heals everything: liveness can be asked for.

    Faults: crash and restart, pause, isolation, split, one-way cut, weather (loss, duplication, stragglers)
    and blackout (every process crashes at once).
    """

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        processes: Mapping[str, Hooks],
        quiet_after_us: int,
        plan: Plan | None = None,
    ) -> None:
        self.kernel = kernel
        self.network = network
        self.processes = processes  # may grow while the history runs
        self.quiet_after_us = quiet_after_us
        self.plan = plan or Plan()
        self.down: dict[str, None] = {}
        self.healed = False
        self._calm = network.conditions
        self._schedule()

    def _schedule(self) -> None:
        delay_us = self.kernel.rng.randint(*self.plan.every_us)
        if self.kernel.now_us + delay_us >= self.quiet_after_us:
            self.kernel.later(self.quiet_after_us - self.kernel.now_us, self.heal_all)
        else:
            self.kernel.later(delay_us, self._act)

    def _act(self) -> None:
        names = [name for name, weight in self.plan.weights.items() if weight]
        weights = [self.plan.weights[name] for name in names]
        fault = self.kernel.rng.choices(names, weights)[0]
        self.kernel.note(f"nemesis: {fault}")
        getattr(self, f"_{fault}")()
        self._schedule()

    def _victim(self) -> str | None:
        names = sorted(self.processes)
        limit = self.plan.down_max if self.plan.down_max is not None else (len(names) - 1) // 2
        up = [name for name in names if name not in self.down]
        if not up or len(self.down) >= limit:
            return None
        return self.kernel.rng.choice(up)

    def _crash(self) -> None:
        victim = self._victim()
        if victim is not None:
            self.crash_one(victim)

    def crash_one(self, name: str) -> None:
        """Crash a process now; it comes back by itself after a random time, or when everything heals."""
        self.kernel.note(f"nemesis: crash {name}")
        self.down[name] = None
        self.processes[name].crash()
        self.kernel.kill(name)
        self.kernel.later(self._down_us(), lambda: self.restart_one(name))

    def _down_us(self) -> int:
        """Rather short than long: who comes back within an election is the more interesting one."""
        low, high = self.plan.down_us
        return max(low, self.kernel.rng.randint(low, high) >> self.kernel.rng.randint(0, 6))

    def restart_one(self, name: str) -> None:
        if name in self.down and not self.kernel.paused(name):
            del self.down[name]
            self.kernel.note(f"nemesis: restart {name}")
            self.processes[name].restart()

    def _pause(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        self.kernel.note(f"nemesis: pause {victim}")
        self.down[victim] = None
        self.kernel.pause(victim)
        self.kernel.later(self._down_us(), lambda: self._resume(victim))

    def _resume(self, name: str) -> None:
        if self.kernel.paused(name):
            self.down.pop(name, None)
            self.kernel.note(f"nemesis: resume {name}")
            self.kernel.resume(name)

    def _isolate(self) -> None:
        names = sorted(self.processes)
        self.network.isolate(self.kernel.rng.choice(names), names)

    def _split(self) -> None:
        names = sorted(self.processes)
        self.kernel.rng.shuffle(names)
        middle = self.kernel.rng.randint(0, len(names))
        self.network.split(names[:middle], names[middle:])

    def _one_way(self) -> None:
        names = sorted(self.processes)
        if len(names) > 1:
            self.network.cut(*self.kernel.rng.sample(names, 2))

    def mend(self) -> None:
        """The network is well again, unless that is another one's business by now."""
        if not self.healed:
            self.kernel.note("nemesis: mend")
            self._heal()

    def _heal(self) -> None:
        self.network.heal()
        self.network.conditions = self._calm

    def _weather(self) -> None:
        rng = self.kernel.rng
        self.network.conditions = Conditions(
            delay_us=(200, rng.choice((3_000, 20_000, 80_000))),
            loss=rng.choice((0.0, 0.02, 0.2)),
            duplication=rng.choice((0.0, 0.1, 0.4)),
            straggling=rng.choice((0.0, 0.05, 0.2)),
        )

    def _blackout(self) -> None:
        for name in sorted(self.processes):
            if name not in self.down:
                self.crash_one(name)

    def heal_all(self) -> None:
        """End of the faults: mend the network, restart and resume everybody."""
        self.kernel.note("nemesis: all quiet")
        self._heal()
        for name in sorted(self.down):
            self._resume(name)
            self.restart_one(name)
        self.healed = True
