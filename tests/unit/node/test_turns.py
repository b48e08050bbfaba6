"""Who is served when: by bytes, in turns, in order within an owner."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from moorage.node.turns import QUANTUM, Turns

Item = tuple[int, int, int]  # owner, number, bytes
MIB = 1 << 20


def turns() -> Turns[Item]:
    return Turns(lambda item: item[2])


def test_a_small_one_does_not_wait_for_all_of_a_large_one() -> None:
    queue = turns()
    for number in range(64):
        queue.put(1, (1, number, MIB))
    queue.put(2, (2, 0, 4096))
    assert any(queue.take()[0] == 2 for _ in range(2))


def test_one_alone_is_a_plain_queue() -> None:
    queue, items = turns(), [(1, number, number * 100_000) for number in range(80)]
    for item in items:
        queue.put(1, item)
    assert queue.owners == 1
    assert [queue.take() for _ in items] == items
    assert not queue and queue.owners == 0


@pytest.mark.parametrize("seed", range(20))
def test_owners_that_always_wait_get_the_same_in_their_order(seed: int) -> None:
    """Within a quantum and the largest item of each other, whatever the sizes (theorem 2 of the paper)."""
    rng = random.Random(seed)
    queue, owners, largest = turns(), range(1, rng.randint(3, 7)), 4 * MIB
    sizes = {owner: rng.choice((4096, 64 << 10, MIB, largest)) for owner in owners}
    put, taken, got = Counter[int](), Counter[int](), Counter[int]()

    def put_one(owner: int) -> None:
        queue.put(owner, (owner, put[owner], rng.randint(sizes[owner] // 2, sizes[owner])))
        put[owner] += 1

    for owner in owners:
        for _ in range(3):
            put_one(owner)
    for _ in range(3000):
        following = queue.first()
        owner, number, size = queue.take()
        assert following == (owner, number, size) and number == taken[owner]
        taken[owner] += 1
        got[owner] += size
        put_one(owner)
        assert max(got.values()) - min(got[each] for each in owners) <= 2 * (QUANTUM + largest)


def test_who_comes_and_goes_saves_nothing_up() -> None:
    queue = turns()
    for number in range(100):
        queue.put(1, (1, number, MIB))
        queue.put(2, (2, number, 512))
        while queue.take()[0] != 2:
            pass
    for number in range(16):
        queue.put(2, (2, number, MIB))
    for number in range(16):
        queue.put(3, (3, number, MIB))
    got = Counter(queue.take()[0] for _ in range(24))
    assert abs(got[2] - got[3]) <= 2


def test_what_is_left_is_given_back() -> None:
    queue = turns()
    for owner in (1, 2, 3):
        queue.put(owner, (owner, 0, 1))
    assert sorted(queue.clear()) == [(1, 0, 1), (2, 0, 1), (3, 0, 1)]
    assert not queue
    queue.put(2, (2, 1, QUANTUM))
    assert queue.take() == (2, 1, QUANTUM)
