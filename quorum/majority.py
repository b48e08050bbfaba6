"""Quorum arithmetic: the only place that says what a majority is. Pure.

A majority of n is ``n // 2 + 1``. It promises that any two majorities of the same members share a member, and
nothing about majorities of different member sets: those need a single-member step, or both at once (joint).

A *configuration* is a tuple of replica ids. While a membership change of the quorum log is under way there
are two, and what is asked for must hold in each: any majority of the one then meets every decision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

Configuration = tuple[int, ...]


def majority(count: int) -> int:
    """How many of ``count`` members make a majority; never 0, so that nobody decides for an empty group."""
    return count // 2 + 1


def reached_by_majority(values: Sequence[int]) -> int:
    """The greatest value that a majority of the members has reached; ``values`` holds one for each member."""
    if not values:
        return 0
    return sorted(values, reverse=True)[majority(len(values)) - 1]


def is_majority(yes: Iterable[bool]) -> bool:
    """Whether a majority says yes; ``yes`` holds one answer for each member."""
    answers = list(yes)
    return sum(answers) >= majority(len(answers))


def majority_in_all(those: Collection[int], configurations: Sequence[Configuration]) -> bool:
    """Whether ``those`` (others may be among them) include a majority of every configuration."""
    return all(is_majority(member in those for member in members) for members in configurations)
