"""Which member to read from, when to ask a second one, and when to stop asking one: a core without I/O.

Owns the health of each device as a reader sees it. It decides; :mod:`moorage.client.reads` asks. Times are
seconds of one monotonic clock, given by the caller.

- The nearest member is preferred (same host, then the others in an order of the group's own, so that load
  spreads over groups while one group's reads stay together, which batches). A demoted member is asked last.
- A read is *overdue* after ``HEDGE_MULTIPLE`` times that member's recent p99, at least ``HEDGE_FLOOR_S``,
  at most ``HEDGE_CAP_S``. When that member has said nothing at all since, it is silent: it is demoted
  until something comes from it again, and its reads go elsewhere. Else only this read is slow: it is
  hedged within a budget of a few per cent of all reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

HEDGE_FLOOR_S = 0.005
HEDGE_CAP_S = 0.050
HEDGE_MULTIPLE = 3.0
HEDGE_SHARE = 0.03  # of all reads, as long as members answer
HEDGES_SAVED = 16.0  # a short burst of slow reads may spend what quiet times saved
_STEP = 0.05  # of the estimate, per sample

Verdict = Literal["wait", "hedge", "silent"]


class MemberHealth:
    """How one device answers. Shared by all groups and volumes that have a replica there."""

    __slots__ = ("demoted", "distance", "heard_at", "p99_s", "up")

    def __init__(self, distance: int = 1) -> None:
        self.distance = distance  # 0: this host, 1: elsewhere
        self.up = False  # connected
        self.demoted = False
        self.heard_at = 0.0
        self.p99_s = 0.001

    def heard(self, now: float) -> None:
        """Anything came from it: an acknowledgement, a heartbeat's answer, a reply."""
        self.heard_at = now
        self.demoted = False

    def answered(self, now: float, sent_at: float) -> None:
        """A read was answered. The estimate rises by 99 parts on a slower sample and falls by one on a faster
        one, so it rests where one in a hundred is slower."""
        self.heard_at = now
        self.demoted = False
        estimate = self.p99_s
        if now - sent_at > estimate:
            self.p99_s = estimate * (1 + 0.99 * _STEP)
        else:
            self.p99_s = max(estimate * (1 - 0.01 * _STEP), 1e-5)

    def hedge_after(self) -> float:
        return min(max(HEDGE_MULTIPLE * self.p99_s, HEDGE_FLOOR_S), HEDGE_CAP_S)


class HedgeBudget:
    """Hedges that may still be spent: a share of the reads started."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = HEDGES_SAVED

    def earn(self) -> None:
        if self.tokens < HEDGES_SAVED:
            self.tokens += HEDGE_SHARE

    def spend(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def preference(members: Sequence[MemberHealth], rotation: int) -> list[int]:
    """Indices in order of preference while all are well: near ones first, the rest rotated."""
    count = len(members)
    return sorted(range(count), key=lambda index: (members[index].distance, (index - rotation) % count))


def choose(members: Sequence[MemberHealth], order: Sequence[int], refused: Sequence[int] = ()) -> int | None:
    """The first connected member of ``order`` that is not demoted and not in ``refused`` (asked already, or
    answered that it cannot); else a demoted one; else None."""
    fallback: int | None = None
    for index in order:
        member = members[index]
        if not member.up or index in refused:
            continue
        if not member.demoted:
            return index
        if fallback is None:
            fallback = index
    return fallback


def judge(member: MemberHealth, sent_at: float, now: float) -> Verdict:
    """What to do about a read that has not been answered yet. Demotes the member when it is silent."""
    if now - sent_at < member.hedge_after():
        return "wait"
    if member.demoted or member.heard_at < sent_at:
        member.demoted = True
        return "silent"
    return "hedge"
