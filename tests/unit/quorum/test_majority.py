"""Quorum arithmetic against a naive version, for every n up to 7."""

from __future__ import annotations

from itertools import combinations, product

from moorage.quorum.majority import majority, majority_in_all, reached_by_majority, reached_in_all


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
    for values in product(range(3), repeat=4):
        by_member = dict(zip((1, 2, 3, 4), values, strict=True))
        expected = min(
            naive_reached(tuple(by_member[m] for m in old)), naive_reached(tuple(by_member[m] for m in new))
        )
        assert reached_in_all(by_member, [old, new]) == expected
        those = [m for m in by_member if by_member[m]]
        both = sum(m in those for m in old) >= 2 and sum(m in those for m in new) >= 2
        assert majority_in_all(those, [old, new]) == both
