"""Quorum arithmetic against a naive version, for every n up to 7."""

from __future__ import annotations

from itertools import combinations, product

from moorage.quorum.majority import majority, majority_in_all, reached_by_majority


def naive_reached(values: tuple[int, ...]) -> int:
    return max(v for v in (0, *values) if sum(other >= v for other in values) * 2 > len(values))


def test_majorities_share_a_member() -> None:
    for n in range(1, 8):
        assert 2 * majority(n) > n >= majority(n)
        for one, two in product(combinations(range(n), majority(n)), repeat=2):
            assert set(one) & set(two)


def test_reached_is_what_a_majority_has() -> None:
    for n in range(1, 8):
        for values in product(range(4 if n < 6 else 3), repeat=n):
            assert reached_by_majority(values) == naive_reached(values)


def test_joint_needs_both() -> None:
    old, new = (1, 2, 3), (2, 3, 4)
    for there in product((False, True), repeat=4):
        those = [member for member, is_there in zip((1, 2, 3, 4), there, strict=True) if is_there]
        both = sum(m in those for m in old) >= 2 and sum(m in those for m in new) >= 2
        assert majority_in_all(those, [old, new]) == both
