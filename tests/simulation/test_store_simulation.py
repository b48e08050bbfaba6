"""Histories of one store on a device on which everything goes wrong. Planted bugs are in ``tests/mutants``.

``MOORAGE_SEEDS`` asks for more seeds than the default.
"""

from __future__ import annotations

import os

import pytest

from moorage.simulation.store_history import run_seed

SEEDS = int(os.environ.get("MOORAGE_SEEDS", "100"))


@pytest.mark.parametrize("block", range(4))
def test_histories_keep_all_that_was_acknowledged(block: int) -> None:
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        run_seed(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", [100_000, 100_150, 100_300, 100_450])
def test_many_histories(first: int) -> None:
    for seed in range(first, first + 150):
        run_seed(seed)


def test_a_seed_is_one_history() -> None:
    assert [run_seed(seed) for seed in range(3)] == [run_seed(seed) for seed in range(3)]
    assert run_seed(1) != run_seed(2)
