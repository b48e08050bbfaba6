"""Read routing: preference, silence, hedging, budget."""

from __future__ import annotations

import random

from moorage.client.reader import (
    HEDGE_CAP_S,
    HEDGE_FLOOR_S,
    HedgeBudget,
    MemberHealth,
    choose,
    judge,
    preference,
)


def members(*distances: int) -> list[MemberHealth]:
    found = [MemberHealth(distance) for distance in distances]
    for member in found:
        member.up = True
    return found


def test_the_own_host_is_preferred_and_the_rest_is_rotated() -> None:
    assert preference(members(1, 0, 1), rotation=2) == [1, 2, 0]
    assert {preference(members(1, 1, 1), rotation)[0] for rotation in range(3)} == {0, 1, 2}


def test_what_is_down_refused_or_demoted_is_passed_over() -> None:
    three = members(1, 1, 1)
    assert choose(three, [0, 1, 2]) == 0
    three[0].up = False
    assert choose(three, [0, 1, 2]) == 1
    three[1].demoted = True
    assert choose(three, [0, 1, 2]) == 2
    assert choose(three, [0, 1, 2], refused=[2]) == 1, "a demoted member is better than none"
    assert choose(three, [0, 1, 2], refused=[1, 2]) is None


def test_a_silent_member_is_demoted_until_it_answers() -> None:
    (member,) = members(1)
    member.heard(10.0)
    assert judge(member, 10.1, 10.1 + HEDGE_FLOOR_S / 2) == "wait"
    assert judge(member, 10.1, 10.2) == "silent" and member.demoted
    assert judge(member, 9.9, 10.2) == "silent", "also of what was asked before it fell silent"
    member.heard(10.3)
    assert not member.demoted
    assert judge(member, 10.2, 10.4) == "hedge", "it answers others: only this read is slow"


def test_the_delay_follows_the_p99_within_its_bounds() -> None:
    (member,) = members(1)
    rng = random.Random(1)
    for _ in range(20_000):
        member.answered(1.0, 1.0 - rng.uniform(0.0, 0.010))
    assert 0.0085 < member.p99_s < 0.012
    assert member.hedge_after() == 3 * member.p99_s
    for _ in range(5_000):
        member.answered(1.0, 0.0)
    assert member.hedge_after() == HEDGE_CAP_S
    for _ in range(50_000):
        member.answered(1.0, 1.0)
    assert member.hedge_after() == HEDGE_FLOOR_S


def test_hedges_are_a_few_per_cent_of_reads() -> None:
    budget = HedgeBudget()
    while budget.spend():
        pass
    hedges = 0
    for _ in range(10_000):
        budget.earn()
        hedges += budget.spend()
    assert 200 < hedges <= 310
