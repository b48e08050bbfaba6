"""``python -m moorage.simulation``: run histories from seeds, report those that fail, replay one, shrink one.

Four kinds: ``raft`` and ``log`` are the protocol cores alone, ``store`` is one device with its store (all
milliseconds each), ``cluster`` is everything (seconds each). Exit code 1 when a history broke a promise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from rich.console import Console
from rich.markup import escape

from moorage.simulation.many import KINDS, Result, run_many
from moorage.simulation.shrink import shrink

FAILURES_MAX = 5  # of each kind; then there is enough to look at


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulate", description="Run histories of simulated clusters.")
    parser.add_argument("--seeds", type=int, help="histories of each kind (50; without limit with --minutes)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long")
    parser.add_argument("--only", choices=KINDS, help="this kind alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--shrink", action="store_true", help="of a failing cluster: which faults matter")
    parser.add_argument("--json", action="store_true", help="one line for each history")
    chosen = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a history
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    kinds = [chosen.only] if chosen.only else list(KINDS)
    count = chosen.seeds if chosen.seeds is not None else (None if chosen.minutes else 50)
    return _report(kinds, count, chosen)


def _report(kinds: list[str], count: int | None, chosen: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    done = dict.fromkeys(kinds, 0)
    spent = dict.fromkeys(kinds, 0.0)
    failures: dict[str, list[Result]] = {kind: [] for kind in kinds}
    with console.status("simulating") as status:
        try:
            for result in run_many(kinds, chosen.seed, count, chosen.minutes, chosen.jobs):
                kind = result["kind"]
                done[kind] += 1
                spent[kind] += result["seconds"]
                if chosen.json:
                    sys.stdout.write(json.dumps({**result, "story": []}) + "\n")
                if result["error"]:
                    failures[kind].append(result)
                    _tell_failure(console, result, whole=count == 1, shrinks=chosen.shrink)
                    if len(failures[kind]) >= FAILURES_MAX:
                        break
                status.update(", ".join(f"{kind}: {done[kind]} histories" for kind in kinds))
        except KeyboardInterrupt:
            console.print("interrupted")
    for kind in kinds:
        console.print(
            f"{kind}: {done[kind]} histories from seed {chosen.seed}, {len(failures[kind])} failed,"
            f" {spent[kind]:.1f} s of a core"
        )
    return 1 if any(failures.values()) else 0


def _tell_failure(console: Console, result: Result, *, whole: bool, shrinks: bool) -> None:
    kind, seed = result["kind"], result["seed"]
    console.print(f"[red]{kind}: seed {seed} FAILED[/red]: {escape(result['error'])}")
    console.print(f"  replay it: make simulate ONLY={kind} SEED={seed} SEEDS=1")
    if whole:
        for line in result["story"]:
            console.print("  " + escape(line[:300]), soft_wrap=True)
    if kind == "cluster" and shrinks:
        failed = shrink(seed, lambda line: console.print(f"  {line}"))
        if failed is not None:
            console.print(f"  fails with {len(failed.plan)} faults: {escape(str(failed))}")
            for fault in failed.plan:
                console.print(f"    {fault}")
            for line in failed.story:
                console.print("  " + escape(line[:300]), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
