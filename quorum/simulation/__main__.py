"""``python -m moorage.quorum.simulation``: run histories of both clusters, report failing seeds, replay one.

``--seeds N`` histories of each cluster from ``--seed FIRST`` on; with ``--seeds 1`` a failing history is told
to its end. Exit code 1 when a history broke an invariant.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

from moorage.quorum.simulation import quorum_cluster, raft_cluster
from moorage.quorum.simulation.kernel import Violation
from moorage.wire.errors import InvariantViolation

CLUSTERS: dict[str, Callable[[int], str]] = {
    "raft": raft_cluster.run_seed,
    "log": quorum_cluster.run_seed,
}
FAILURES_MAX = 5


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _failed(cluster: str, seed: int, error: Exception, whole: bool) -> None:
    _tell(f"{cluster}: seed {seed} FAILED: {error}")
    _tell(f"  replay it: make simulate SEEDS=1 SEED={seed}")
    if whole:
        cause = error.cause if isinstance(error, Violation) else error
        _tell("".join(traceback.format_exception(cause)))
        for line in error.story if isinstance(error, Violation) else ():
            _tell("  " + line[:300])


def run(cluster: str, first: int, count: int) -> int:
    """The number of failing seeds."""
    began, failures = time.monotonic(), 0
    for seed in range(first, first + count):
        try:
            CLUSTERS[cluster](seed)
        except (Violation, InvariantViolation) as error:
            failures += 1
            _failed(cluster, seed, error, whole=count == 1)
            if failures == FAILURES_MAX:
                break
    _tell(
        f"{cluster}: {count} histories from seed {first}, {failures} failed, {time.monotonic() - began:.1f} s"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulate", description="Run histories of simulated clusters.")
    parser.add_argument("--seeds", type=int, default=200, help="histories of each cluster")
    parser.add_argument("--seed", type=int, default=0, nargs="?", const=0, help="the first seed")
    parser.add_argument("--cluster", choices=sorted(CLUSTERS), help="only this one")
    chosen = parser.parse_args()
    names = [chosen.cluster] if chosen.cluster else sorted(CLUSTERS)
    return 1 if sum(run(name, chosen.seed, chosen.seeds) for name in names) else 0


if __name__ == "__main__":
    sys.exit(main())
