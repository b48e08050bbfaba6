"""How fast hosts are compared with each other, by what their nodes count. Pure.

A figure is the 99th percentile of how long small appends took to be durable, in the time between two looks.
It compares hosts under their own load, so the bar is the slowest of the others, times a budget; and where too
little was written to say anything, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENOUGH = 200  # records: two of them may be slow by chance
FINE_S = 0.01  # as fast as this is fast enough, whatever others have


@dataclass(frozen=True)
class Appends:
    """``counts[n]`` records took up to ``bounds_s[n]``, the last one longer; since the nodes' start."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]

    def __add__(self, other: Appends) -> Appends:
        pairs = zip(self.counts, other.counts, strict=True)
        return Appends(self.bounds_s, tuple(mine + theirs for mine, theirs in pairs))


def p99_s(before: Appends | None, after: Appends | None) -> float | None:
    """Of what came between; None if that was too little, or a node was started again meanwhile."""
    if before is None or after is None or before.bounds_s != after.bounds_s:
        return None
    counts = [late - early for early, late in zip(before.counts, after.counts, strict=True)]
    total, below = sum(counts), 0
    if total < ENOUGH or min(counts) < 0:
        return None
    for bound, count in zip(after.bounds_s, counts, strict=False):
        below += count
        if below * 100 >= total * 99:
            return bound
    return after.bounds_s[-1]


def too_slow(host: str, budget: float, before: Mapping[str, Appends], after: Mapping[str, Appends]) -> str:
    """Why a host is, "" if it is not or nobody can say."""
    own = p99_s(before.get(host), after.get(host))
    others = [p99_s(before.get(each), after.get(each)) for each in after if each != host]
    slowest = max((each for each in others if each is not None), default=None)
    if own is None or slowest is None or own <= max(FINE_S, budget * slowest):
        return ""
    return (
        f"99 % of its appends are durable within {own * 1000:.0f} ms only, those of the slowest other host"
        f" within {slowest * 1000:.0f} ms: more than {budget:g} times as much"
    )
