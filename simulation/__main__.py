"""``python -m moorage.simulation``: run histories from seeds, report those that fail, replay one, shrink one.

Three kinds: ``raft`` and ``log`` are the protocol cores alone (milliseconds each), ``cluster`` is everything
(seconds each). Exit code 1 when a history broke a promise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

from rich.console import Console
from rich.markup import escape

from moorage.quorum.simulation import quorum_cluster, raft_cluster
from moorage.quorum.simulation.kernel import Violation
from moorage.simulation.run import Failed
from moorage.simulation.run import run_seed as run_cluster
from moorage.simulation.shrink import shrink
from moorage.wire.errors import InvariantViolation

KINDS = ("raft", "log", "cluster")
FAILURES_MAX = 5  # of each kind; then there is enough to look at

Result = dict[str, Any]  # kind, seed, seconds, error, story, trace


def run_one(kind: str, seed: int) -> Result:
    """One history, in whatever process."""
    began = time.perf_counter()
    result: Result = {"kind": kind, "seed": seed, "error": "", "story": [], "trace": ""}
    try:
        match kind:
            case "raft":
                result["trace"] = raft_cluster.run_seed(seed)
            case "log":
                result["trace"] = quorum_cluster.run_seed(seed)
            case _:
                result["trace"] = run_cluster(seed).trace
    except Failed as failed:
        faults = [f"planned: {fault}" for fault in failed.plan]
        result |= {"error": str(failed), "story": faults + failed.story + failed.where.splitlines()}
    except (Violation, InvariantViolation) as error:
        cause = error.cause if isinstance(error, Violation) else error
        story = error.story if isinstance(error, Violation) else []
        result |= {"error": str(error), "story": [*story, *traceback.format_exception(cause)]}
    result["seconds"] = time.perf_counter() - began
    return result


def _work(kinds: list[str], first: int, count: int | None) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that a run that is cut short has looked at all kinds."""
    for seed in itertools.count(first) if count is None else range(first, first + count):
        for kind in kinds:
            yield kind, seed


def run_many(kinds: list[str], first: int, count: int | None, minutes: float, jobs: int) -> Iterator[Result]:
    """Results as they come; ends with the last seed, or with the time. ``count`` None: until the time is
    over."""
    until = time.monotonic() + minutes * 60 if minutes else float("inf")
    work = _work(kinds, first, count)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=50) as pool:
        running: set[Future[Result]] = set()
        try:
            while True:
                if time.monotonic() < until:
                    for kind, seed in itertools.islice(work, 2 * jobs - len(running)):
                        running.add(pool.submit(run_one, kind, seed))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            for each in running:
                each.cancel()


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


if __name__ == "__main__":
    sys.exit(main())
