"""Whole quorum logs under faults. Planted bugs are in ``tests/mutants``.

``MOORAGE_SEEDS`` asks for more seeds than the default.
"""

from __future__ import annotations

import os

import pytest

from moorage.quorum.simulation.quorum_cluster import QuorumCluster, run_seed

SEEDS = int(os.environ.get("MOORAGE_SEEDS", "100"))


@pytest.mark.parametrize("block", range(4))
def test_histories_hold_all_invariants(block: int) -> None:
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        run_seed(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(8))
def test_many_histories(block: int) -> None:
    for seed in range(100_000 + block * 125, 100_000 + block * 125 + 125):
        run_seed(seed)


def test_a_seed_is_one_history() -> None:
    assert [run_seed(seed) for seed in range(3)] == [run_seed(seed) for seed in range(3)]
    assert run_seed(1) != run_seed(2)


def test_the_workload_really_works() -> None:
    clusters = [QuorumCluster(seed) for seed in range(60, 92)]
    for cluster in clusters:
        cluster.run()
    assert sum(cluster.writes for cluster in clusters) > 1500
    assert sum(cluster.reads for cluster in clusters) > 1000
    assert sum(cluster.refusals for cluster in clusters) > 20
    assert sum(cluster.takeovers for cluster in clusters) > 50
    assert sum(cluster.metadata.version - 1 for cluster in clusters) > 10
