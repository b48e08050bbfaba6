"""``python -m tests.mutants``: look for each planted bug; tell which were caught, by what, how soon.

Exit code 1 when fewer than 95 of 100 were caught within the budget, or one was not caught and has no excuse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .catalogue import BUDGET_S, MUTANTS, SEEDS_MAX, SIMULATIONS, Outcome, load, look_for

REQUIRED_PER_CENT = 95


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _look(name: str, budget_s: float) -> tuple[int, float, str]:
    load()
    found = look_for(MUTANTS[name], budget_s)
    return found.seeds, found.cpu_s, found.by


def _within(outcome: Outcome) -> bool:
    return bool(outcome.by) and (outcome.seeds <= SEEDS_MAX or outcome.cpu_s <= BUDGET_S)


def _line(outcome: Outcome) -> str:
    mutant = outcome.mutant
    how = outcome.by if outcome.by else "NOT CAUGHT"
    return (
        f"{mutant.simulation:7} {mutant.name:36} {outcome.seeds:5} {outcome.cpu_s:6.1f} s  {how}\n"
        f"{'':8}{mutant.what} [{mutant.hazard}]"
    )


def _row(outcome: Outcome) -> dict[str, object]:
    mutant = outcome.mutant
    return {
        "name": mutant.name,
        "what": mutant.what,
        "hazard": mutant.hazard,
        "simulation": mutant.simulation,
        "caught": bool(outcome.by),
        "within_budget": _within(outcome),
        "by": outcome.by,
        "seeds": outcome.seeds,
        "cpu_s": round(outcome.cpu_s, 2),
        "excuse": mutant.excuse,
    }


def outcomes(names: list[str], budget_s: float, jobs: int) -> Iterator[Outcome]:
    """In the order of ``names``; each in a process that has its patches for itself."""
    if jobs == 1:
        for name in names:
            yield Outcome(MUTANTS[name], *_look(name, budget_s))
        return
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(_look, name, budget_s) for name in names]
        for name, each in zip(names, running, strict=True):
            yield Outcome(MUTANTS[name], *each.result())


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description="Look for planted bugs.")
    parser.add_argument("names", nargs="*", help="only these bugs")
    parser.add_argument("--simulation", choices=SIMULATIONS, action="append", help="only those of this one")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of CPU for each")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    chosen = parser.parse_args()
    mutants = load(*(chosen.simulation or ()))
    names = [each.name for each in mutants if not chosen.names or each.name in chosen.names]
    _tell(f"{'':7} {'planted bug':36} {'seeds':>5} {'CPU':>6}    caught by")
    found = []
    for outcome in outcomes(names, chosen.budget, chosen.jobs):
        found.append(outcome)
        _tell(_line(outcome))
    within = sum(_within(each) for each in found)
    missed = [each for each in found if not _within(each)]
    _tell(f"{within} of {len(found)} caught within {SEEDS_MAX} seeds or {BUDGET_S:.0f} s of CPU each")
    for each in missed:
        _tell(f"  not within it: {each.mutant.name}: {each.mutant.excuse or 'NO REASON IS KNOWN'}")
    if chosen.json is not None:
        summary = {"caught": within, "of": len(found), "mutants": [_row(each) for each in found]}
        chosen.json.write_text(json.dumps(summary, indent=1) + "\n")
    enough = within * 100 >= len(found) * REQUIRED_PER_CENT
    return 0 if enough and all(each.mutant.excuse for each in missed) else 1


if __name__ == "__main__":
    sys.exit(main())
