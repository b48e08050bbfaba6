"""Many histories, on all cores, seed by seed.

Owns the processes that run them, and what is kept of a history. Must never let one failing history hide
others.
"""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

from moorage.quorum.simulation import quorum_cluster, raft_cluster
from moorage.quorum.simulation.kernel import Violation
from moorage.simulation.run import Failed
from moorage.simulation.run import run_seed as run_cluster
from moorage.simulation.store_history import Failed as StoreFailed
from moorage.simulation.store_history import run_seed as run_store
from moorage.wire.errors import InvariantViolation

KINDS = ("raft", "log", "store", "cluster")

Result = dict[str, Any]  # kind, seed, seconds, error, story, trace


def run_one(kind: str, seed: int) -> Result:
    """One history, in whatever process."""
    began = time.process_time()
    result: Result = {"kind": kind, "seed": seed, "error": "", "story": [], "trace": ""}
    try:
        match kind:
            case "raft":
                result["trace"] = raft_cluster.run_seed(seed)
            case "log":
                result["trace"] = quorum_cluster.run_seed(seed)
            case "store":
                result["trace"] = run_store(seed)
            case _:
                result["trace"] = run_cluster(seed).trace
    except Failed as failed:
        faults = [f"planned: {fault}" for fault in failed.plan]
        result |= {"error": str(failed), "story": faults + failed.story + failed.where.splitlines()}
    except StoreFailed as wrong:
        story = [*wrong.story, *traceback.format_exception(wrong.cause)]
        result |= {"error": str(wrong), "story": story}
    except (Violation, InvariantViolation) as error:
        cause = error.cause if isinstance(error, Violation) else error
        story = error.story if isinstance(error, Violation) else []
        result |= {"error": str(error), "story": [*story, *traceback.format_exception(cause)]}
    result["seconds"] = time.process_time() - began
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
