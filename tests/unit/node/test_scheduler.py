"""The scheduler of background work: what is due, what yields, what never starves. Time is a number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.node.checks import overdue_rate
from moorage.node.scheduler import FLOOR, MIB, PIECE_MAX, START, Gauge, Scheduler, Work

STEP_S = 0.004
DISK = 1 << 30  # bytes/s that all of it can have


@dataclass
class Bench:
    """Works that ask as often as they may, and users whose latency is a function of the load."""

    scheduler: Scheduler
    now: float = 0.0
    done: dict[Work, int] = field(default_factory=dict)
    asks_at: dict[Work, float] = field(default_factory=dict)
    room: float = 0.0  # on the disk
    recent: float = 0.0  # bytes/s of background work, as the disk feels it

    def run(
        self,
        seconds: float,
        *works: Work,
        spare: bool = True,
        latency: Callable[[float], float] | None = None,
        piece: int = MIB // 4,
    ) -> dict[Work, float]:
        """Bytes per second of each work."""
        self.done = dict.fromkeys(works, 0)
        end = self.now + seconds
        while self.now < end:
            self.room = min(self.room + DISK * STEP_S, 4.0 * MIB)
            asking = list(works)
            while asking and self.room > 0:
                asking = [work for work in asking if self._asks(work, piece, spare)]
            self.recent *= 1 - STEP_S / 0.05
            if latency is not None:
                self.scheduler.felt(Gauge.WRITE, latency(self.recent), self.now)
            self.now += STEP_S
        return {work: size / seconds for work, size in self.done.items()}

    def _asks(self, work: Work, piece: int, spare: bool) -> bool:
        """Whether it has got a piece, and asks for more."""
        if self.asks_at.get(work, 0.0) > self.now:
            return False
        wait = self.scheduler.admit(work, piece, self.now, spare=spare)
        if wait:
            self.asks_at[work] = self.now + min(wait, 0.05)
            return False
        self.done[work] += piece
        self.room -= piece
        self.recent += piece / 0.05
        return True


def test_without_users_background_work_has_all() -> None:
    bench = Bench(Scheduler(0.0))
    bench.run(10, Work.COPY, piece=PIECE_MAX)
    assert bench.run(2, Work.COPY, piece=PIECE_MAX)[Work.COPY] > 0.8 * DISK


def _disk(capacity: float) -> Callable[[float], float]:
    """Seconds that a user's write takes beside so many bytes/s of other work: as a queue has it."""
    return lambda load: 0.001 / (1 - min(0.99, load / capacity))


def test_it_yields_when_users_wait_and_takes_what_they_leave() -> None:
    """On a disk where twice the latency begins at half of the rate."""
    bench, disk = Bench(Scheduler(0.0)), _disk(400 * MIB)
    felt: list[float] = []

    def latency(load: float) -> float:
        felt.append(disk(load))
        return felt[-1]

    bench.run(30, Work.COPY, latency=latency)
    felt.clear()
    rate = bench.run(60, Work.COPY, latency=latency)[Work.COPY]
    assert sorted(felt)[len(felt) * 99 // 100] <= 0.002
    # A latency of 1.8 times idle, which is where it stops to grow, is reached with 178 MiB/s.
    assert rate >= 0.5 * 178 * MIB


def test_users_that_are_slow_anyhow_are_not_taken_for_ones_that_wait() -> None:
    bench = Bench(Scheduler(0.0))
    bench.run(5, latency=lambda load: 0.05)
    assert bench.run(20, Work.COPY, latency=lambda load: 0.05)[Work.COPY] > 100 * MIB


def test_what_comes_from_elsewhere_is_not_taken_for_waiting() -> None:
    """A machine on which every twentieth operation takes twenty times as long, whatever is done."""
    rng = random.Random(1)

    def latency(load: float) -> float:
        return rng.uniform(0.0015, 0.0025) * (20 if rng.random() < 0.05 else 1)

    bench = Bench(Scheduler(0.0))
    bench.run(5, latency=latency)
    bench.run(10, Work.COPY, latency=latency)
    assert bench.run(20, Work.COPY, latency=latency)[Work.COPY] > 100 * MIB


def test_what_users_have_without_it_is_learned_again_in_pauses() -> None:
    """Background work was there first; what users felt then is not what they should feel."""
    bench, disk = Bench(Scheduler(0.0)), _disk(200 * MIB)
    bench.run(5, Work.COPY)
    assert bench.scheduler.budget > 200 * MIB
    bench.run(60, Work.COPY, latency=disk)
    felt: list[float] = []
    bench.run(10, Work.COPY, latency=lambda load: felt.append(disk(load)) or felt[-1])  # type: ignore[func-returns-value]
    assert sorted(felt)[len(felt) * 9 // 10] <= 0.002


def test_a_deadline_is_kept_whatever_users_feel() -> None:
    scheduler = Scheduler(0.0)
    scheduler.set_due(Work.COPY, "a copy", 50 * MIB, 1e9)
    scheduler.set_due(Work.COPY, "another", 10 * MIB, 1e9)
    bench = Bench(scheduler)
    bench.run(5, latency=lambda load: 0.001)
    rate = bench.run(20, Work.COPY, latency=lambda load: 0.5 if load else 0.001)[Work.COPY]
    assert 0.95 * 60 * MIB <= rate <= 1.4 * 60 * MIB


def test_a_need_ends_with_its_time_or_when_it_is_said() -> None:
    scheduler = Scheduler(0.0)
    scheduler.set_due(Work.COPY, 1, 50 * MIB, 10.0)
    scheduler.set_due(Work.SERVE, 1, 50 * MIB, 10.0)
    assert scheduler.due(Work.COPY, 9.0) == 50 * MIB
    scheduler.set_due(Work.SERVE, 1, 0.0, 10.0)
    assert scheduler.due(Work.COPY, 11.0) == scheduler.due(Work.SERVE, 9.0) == FLOOR


def test_what_is_due_and_no_more_without_spare() -> None:
    scheduler = Scheduler(0.0)
    scheduler.set_due(Work.SCRUB, 1, 10 * MIB, 1e9)
    rate = Bench(scheduler).run(20, Work.SCRUB, spare=False)[Work.SCRUB]
    assert 0.95 * 10 * MIB <= rate <= 1.1 * 10 * MIB


def test_one_that_always_asks_does_not_starve_the_others() -> None:
    bench = Bench(Scheduler(0.0, ceiling=100 * MIB))
    rates = bench.run(20, *Work)
    assert min(rates.values()) >= 0.95 * FLOOR and sum(rates.values()) <= 105 * MIB


def test_what_cannot_wait_makes_others_wait() -> None:
    scheduler = Scheduler(0.0, ceiling=100 * MIB)
    bench = Bench(scheduler)
    while bench.now < 10:
        scheduler.charge(Work.COMPACT, int(80 * MIB * 0.1), bench.now)
        bench.run(0.1, Work.COPY)
        assert bench.done[Work.COPY] <= 40 * MIB * 0.1 + MIB
    assert scheduler.given[Work.COPY] >= 10 * 0.9 * FLOOR


def test_a_piece_is_small_while_users_are_at_work() -> None:
    scheduler = Scheduler(0.0)
    assert scheduler.piece(0.0) == PIECE_MAX
    scheduler.felt(Gauge.READ, 0.001, 5.0)
    assert scheduler.piece(5.0) == int(START * 0.005)
    assert scheduler.piece(7.0) == PIECE_MAX


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1 << 32),
    ceiling=st.sampled_from([0, 1 * MIB, 5 * MIB, 50 * MIB]),
    dues=st.dictionaries(st.sampled_from(list(Work)), st.integers(0, 40 * MIB), max_size=3),
)
def test_everybody_has_his_due_and_nobody_passes_the_ceiling(
    seed: int, ceiling: int, dues: dict[Work, int]
) -> None:
    """Whatever users feel, however unevenly time passes."""
    rng = random.Random(seed)
    scheduler = Scheduler(0.0, ceiling)
    works = rng.sample(list(Work), rng.randint(1, 3))
    for work, rate in dues.items():
        scheduler.set_due(work, "it", rate, 1e9)
    bench = Bench(scheduler)
    piece = rng.choice((128, 256, 1024)) << 10
    moods = [
        None,
        lambda load: rng.choice((0.0001, 0.001, 0.5)),
        lambda load: 1.0 if load else 0.001,
        lambda load: 0.0,
    ]
    began = bench.now
    total = dict.fromkeys(works, 0)
    for _ in range(4):
        bench.run(rng.uniform(0.5, 3), *works, latency=rng.choice(moods), piece=piece)
        for work in works:
            total[work] += bench.done[work]
    took = bench.now - began
    for work in works:
        # (what waited is asked for again in steps of time, and the last piece may be about to go)
        assert total[work] >= 0.9 * scheduler.due(work, bench.now) * took - piece
    if ceiling:
        assert sum(total.values()) <= ceiling * (took + 0.5) + len(works) * 2 * piece


@pytest.mark.parametrize(
    ("due", "rate"),
    [
        ([], 0),
        ([(10, 100)], 10),
        ([(10, 100), (20, 100)], 10),
        ([(20, 500), (10, 100)], 30),
        ([(-5, 100)], 100),
    ],
)
def test_the_rate_that_keeps_all_deadlines(due: list[tuple[float, int]], rate: float) -> None:
    assert overdue_rate(due, least_s=1.0) == rate
