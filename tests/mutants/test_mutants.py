"""Each planted bug is caught: the quick ones here, the others by ``make mutants``."""

from __future__ import annotations

import pytest

from .catalogue import SEEDS_MAX, Mutant, load, look_for

ALL = load()


def check(mutant: Mutant, seeds_max: int) -> None:
    outcome = look_for(mutant, seeds_max=seeds_max)
    assert outcome.by or mutant.excuse, f"{mutant.name}: nothing noticed: {mutant.what}"


# Those of the store are for `make test-all`: there are many.
QUICK = [
    pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.simulation == "store" else [])
    for each in ALL
    if not each.rare
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", QUICK)
def test_planted_bug_is_caught(mutant: Mutant) -> None:
    check(mutant, SEEDS_MAX)


@pytest.mark.mutants
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", [each for each in ALL if each.rare], ids=lambda each: each.name)
def test_rare_planted_bug_is_caught(mutant: Mutant) -> None:
    check(mutant, 1 << 30)


def test_every_patch_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are looked for by ``make mutants`` only: what they replace is there."""
    for mutant in ALL:
        with monkeypatch.context() as patches:
            mutant.plant(patches)
