"""Whole clusters from seeds: registry, metadata, nodes, clients, on simulated machines that fail."""

from __future__ import annotations

import os
import sys

import pytest

from moorage.simulation import shrink as shrinking
from moorage.simulation.many import run_many
from moorage.simulation.nemesis import WEIGHTS, Fault, draw_plan
from moorage.simulation.run import Failed, Outcome, run_seed
from moorage.simulation.strand import PLOTS

SEEDS = int(os.environ.get("MOORAGE_CLUSTER_SEEDS", "3"))
SLOW_SEEDS = 200


@pytest.mark.timeout(300)
def test_histories_keep_all_promises_and_a_seed_is_one_history(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [run_seed(seed) for seed in range(SEEDS)]
    assert sum(outcome.answered for outcome in outcomes) > 500, "the workload really works"
    assert sum(outcome.blocks for outcome in outcomes) > 100
    assert not all(outcome.refused for outcome in outcomes)
    assert len({outcome.trace for outcome in outcomes}) == SEEDS
    assert any(outcome.shown for outcome in outcomes), "some use snapshots"
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000)
    monkeypatch.setattr(sys, "argv", ["a-program-of-another-name"])
    elsewhere = [bytearray(size) for size in range(20_000)]  # other addresses than before
    assert run_seed(0).trace == outcomes[0].trace
    del elsewhere


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_many_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # for the workers: the same histories as `make simulate`
    failed = []
    for result in run_many(["cluster"], 1000, SLOW_SEEDS, minutes=0, jobs=os.cpu_count() or 1):
        if result["error"]:
            failed.append(f"seed {result['seed']}: {result['error'][:500]}")
    assert not failed, "\n".join(failed)


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {fault.kind for seed in range(100) for fault in draw_plan(seed, 8.0)}
    assert drawn == {*WEIGHTS, *PLOTS}


def test_a_failure_is_shrunk_to_the_faults_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0

    def run(seed: int, plan: list[Fault]) -> Outcome:
        nonlocal runs
        runs += 1
        kinds = [fault.kind for fault in plan]
        if "rot" in kinds and "pause" in kinds and kinds.index("rot") < len(kinds) - 1:
            raise Failed(seed, plan, 1.0, AssertionError("what was acknowledged is lost"), [])
        if "kill" in kinds:
            raise Failed(seed, plan, 1.0, ValueError("something else"), [])
        return Outcome(seed)

    plan = [
        Fault(at, kind, at, 1.0)
        for at, kind in enumerate(["cut", "rot", "reset", "pause", "cut", "lossy"] * 5)
    ]
    monkeypatch.setattr(shrinking, "run_seed", run)
    monkeypatch.setattr(shrinking, "draw_plan", lambda seed, storm_s: plan)
    failed = shrinking.shrink(7)
    assert failed is not None
    assert sorted(fault.kind for fault in failed.plan) == ["pause", "rot"]
    assert runs < 100


def test_what_does_not_fail_is_not_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "run_seed", lambda seed, plan: Outcome(seed))
    assert shrinking.shrink(1) is None
