"""Ceilings against any pattern of arrivals: never more than they allow, and all of it for who waits."""

from __future__ import annotations

import random

import pytest

from moorage.client.ceiling import BURST_S, Ceiling

SLACK = 1e-6


def window_holds(taken: list[tuple[float, int]], iops: int, bw: int) -> None:
    """Every window from one request to a later one, that one left out: it may borrow."""
    for first in range(len(taken)):
        count = size = 0
        for at, length in taken[first:]:
            allowed = at - taken[first][0] + BURST_S + SLACK
            assert not iops or count <= iops * allowed
            assert not bw or size <= bw * allowed
            count, size = count + 1, size + length


@pytest.mark.parametrize("seed", range(20))
def test_no_window_sees_more(seed: int) -> None:
    rng = random.Random(seed)
    iops, bw = rng.choice([(0, 1 << 20), (50, 0), (300, 1 << 20), (7, 100_000)])
    ceiling, now, taken = Ceiling(iops, bw), 1000.0, []
    for _ in range(300):
        size = rng.choice([0, 512, 4096, 65536, 1 << 20])
        now += rng.choice([0.0, 0.0, rng.expovariate(20), rng.expovariate(1)])
        if not ceiling.admit(size, now):
            assert ceiling.due() > now
            now = max(now, ceiling.due()) if rng.random() < 0.7 else now
            if not ceiling.admit(size, now):
                continue
        taken.append((now, size))
    window_holds(taken, iops, bw)


@pytest.mark.parametrize("late_s", [0.0, 0.004, BURST_S * 0.9])
@pytest.mark.parametrize(
    ("iops", "bw", "size"), [(1000, 0, 4096), (0, 50 << 20, 1 << 20), (30, 1 << 20, 4096)]
)
def test_who_always_waits_gets_all_of_it(iops: int, bw: int, size: int, late_s: float) -> None:
    """Also when a timer comes late, by less than a burst."""
    ceiling, now, count = Ceiling(iops, bw), 0.0, 0
    while now < 20.0:
        while ceiling.admit(size, now):
            count += 1
        now = ceiling.due() + late_s
    expected = 20.0 * min(rate for rate in (iops or 1e18, bw / size if bw else 1e18))
    assert expected * 0.99 <= count <= expected * 1.02 + 2


def test_a_large_request_is_charged_whole_and_paid_back() -> None:
    ceiling = Ceiling(0, 1 << 20)
    assert ceiling.admit(4 << 20, 100.0)
    assert not ceiling.admit(0, 103.8) and ceiling.due() == pytest.approx(103.9)
    assert ceiling.admit(0, 103.9)


def test_what_is_borrowed_is_paid_back_at_the_new_rate() -> None:
    ceiling = Ceiling(10, 1 << 20)
    assert ceiling.admit(8 << 20, 0.0)
    ceiling.change(0, 8 << 20, 0.9)  # 7 MiB are left to be paid
    assert ceiling.due() == pytest.approx(0.9 + 7 / 8)
    ceiling.change(5, 0, 1.0)
    assert ceiling.admit(1 << 30, 1.0)
