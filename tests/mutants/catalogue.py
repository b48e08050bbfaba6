"""Planted bugs: what a careless version would do, each of which some simulation must catch.

Owns what a planted bug is, and how one is looked for. The bugs themselves are patches, in ``log.py``,
``raft.py``, ``store.py``, ``cluster.py``, ``moves.py``, ``snapshots.py`` and ``objects.py``; production code
has no switches for them. A bug that its simulation does not catch within the budget stays here, with the
reason (``excuse``)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from moorage.quorum.simulation.kernel import Violation
from moorage.wire import errors

BUDGET_S = 60.0  # of CPU, for one bug
SEEDS_MAX = 200  # or so many histories, whatever they cost: to be caught within one of the two is enough
SIMULATIONS = ("log", "raft", "store", "cluster", "moves", "snapshots", "objects")

Plant = Callable[[pytest.MonkeyPatch], None]


class Simulation(Protocol):
    """A module of this directory."""

    def run(self, seed: int) -> object:
        """One history; raises what broke."""

    def verdict(self, error: BaseException) -> str | None:
        """What noticed it; None: the patch is rough and broke by itself, which is no catch."""


@dataclass(frozen=True)
class Mutant:
    """``hazard``: the row of the protocol's or the store's rules that is left out. ``rare``: only for
    ``make mutants``."""

    name: str
    what: str
    hazard: str
    simulation: str
    plant: Plant
    rare: bool
    excuse: str


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    seeds: int
    cpu_s: float
    by: str  # what caught it; empty: nothing did


MUTANTS: dict[str, Mutant] = {}


def planted(
    simulation: str, hazard: str, *, rare: bool = False, excuse: str = ""
) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        what = " ".join((plant.__doc__ or "").split())
        assert what, f"{plant.__name__}: say what it is"
        assert plant.__name__ not in MUTANTS, plant.__name__
        mutant = Mutant(plant.__name__, what, hazard, simulation, plant, rare, excuse)
        MUTANTS[mutant.name] = mutant
        return plant

    return register


def load(*simulations: str) -> list[Mutant]:
    for each in simulations or SIMULATIONS:
        module_of(each)
    return [each for each in MUTANTS.values() if each.simulation in (simulations or SIMULATIONS)]


def module_of(simulation: str) -> Any:
    return importlib.import_module(f".{simulation}", __package__)


def look_for(mutant: Mutant, budget_s: float = BUDGET_S, seeds_max: int = 1 << 30) -> Outcome:
    """Histories with the bug until one breaks; then the same one without it, which must not. It is looked for
    until both limits are met; one that has an excuse, only as long as the budget is."""
    simulation: Simulation = module_of(mutant.simulation)
    began, seeds, by = time.process_time(), 0, None
    with pytest.MonkeyPatch.context() as monkeypatch:
        mutant.plant(monkeypatch)
        least = 0 if mutant.excuse else SEEDS_MAX
        while by is None and seeds < seeds_max and (seeds < least or time.process_time() - began < budget_s):
            try:
                simulation.run(seeds)
            except Exception as error:
                by = simulation.verdict(error)
            seeds += 1
    cpu_s = time.process_time() - began
    if by is not None:
        try:
            simulation.run(seeds - 1)
        except Exception as error:
            raise AssertionError(f"seed {seeds - 1} fails without {mutant.name} too: {error}") from error
    return Outcome(mutant, seeds, cpu_s, by or "")


def verdict_of_cores(error: BaseException) -> str | None:
    """For the simulations of ``quorum/simulation``."""
    cause = error.cause if isinstance(error, Violation) else error
    if isinstance(cause, errors.InvariantViolation | AssertionError):
        return first_words(cause)
    return None


def first_words(error: BaseException) -> str:
    text = str(error).split("\n")[0].removeprefix("invariant violated: ").split(" (")[0]
    known = isinstance(error, errors.InvariantViolation | AssertionError)
    return text[:70] if known else f"{type(error).__name__}: {text[:60]}"
