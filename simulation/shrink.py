"""From a failing history to a short story: which of its faults matter.

Owns the search: delta debugging (Zeller and Hildebrandt 2002) over the plan of faults, which are each the
same whatever else is in the plan. A history counts as the same failure when its cause has the same first
words: the rest (times, numbers) moves with the plan.
"""

from __future__ import annotations

from collections.abc import Callable

from moorage.simulation.nemesis import Fault, draw_plan
from moorage.simulation.run import STORM_S, Failed, run_seed

RUNS_MAX = 200
WORDS = 4


def kind_of(failed: Failed) -> str:
    return f"{type(failed.cause).__name__} " + " ".join(str(failed.cause).split()[:WORDS])


def shrink(seed: int, tell: Callable[[str], None] = lambda _: None) -> Failed | None:
    """The failure of ``seed`` with as few faults as were found to do; None if the seed does not fail."""
    failed = _attempt(seed, draw_plan(seed, STORM_S))
    if failed is None:
        return None
    wanted = kind_of(failed)
    plan, pieces, runs = failed.plan, 2, 0
    while len(plan) > 1 and runs < RUNS_MAX:
        size = -(-len(plan) // pieces)
        for start in range(0, len(plan), size):
            rest = plan[:start] + plan[start + size :]
            found = _attempt(seed, rest)
            runs += 1
            if found is not None and kind_of(found) == wanted:
                failed, plan, pieces = found, rest, max(pieces - 1, 2)
                tell(f"seed {seed}: fails with {len(plan)} faults, after {runs} runs")
                break
            if runs >= RUNS_MAX:
                break
        else:
            if pieces >= len(plan):
                break
            pieces = min(2 * pieces, len(plan))
    return failed


def _attempt(seed: int, plan: list[Fault]) -> Failed | None:
    try:
        run_seed(seed, plan)
    except Failed as failed:
        return failed
    return None
