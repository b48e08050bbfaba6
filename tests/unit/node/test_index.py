"""The index in memory and its tombstones, against plain dicts."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.node.index import PAGE_BLOCKS, Index, Table
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(1, 50)), max_size=12)


@given(RANGES)
def test_tombstones_are_a_map_from_chunk_to_the_greatest_lsn(adds: list[tuple[int, int, int]]) -> None:
    tombstones, naive = Tombstones(), dict[int, int]()
    for first, count, lsn in adds:
        tombstones.add(first, first + count, lsn)
        for chunk in range(first, first + count):
            naive[chunk] = max(naive.get(chunk, 0), lsn)
    assert {chunk: tombstones.lsn(chunk) for chunk in range(70) if tombstones.lsn(chunk)} == naive
    ranges = list(tombstones)
    assert all(first < end for first, end, _ in ranges)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    again = Tombstones(ranges)
    assert [again.lsn(chunk) for chunk in range(70)] == [tombstones.lsn(chunk) for chunk in range(70)]


class Backing:
    """Pages that were stored, as LMDB would keep them."""

    def __init__(self, pages_max: int) -> None:
        self.stored: dict[tuple[int, int], bytes] = {}
        self.index = Index(lambda handle, number: self.stored.get((handle, number)), pages_max)

    def store(self) -> None:
        for page in list(self.index.dirty):
            self.stored[page.table.handle, page.number] = page.cells.tobytes()
            self.index.stored(page, page.version)


@pytest.mark.parametrize("seed", range(20))
def test_the_greater_lsn_wins_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    backing = Backing(pages_max=4)
    index, table = backing.index, Table(1, Tombstones())
    operations = []
    for lsn in range(1, 80):
        chunk, block, count = rng.randrange(3), rng.randrange(100), rng.randint(1, 60)
        operations.append((rng.choice(["put", "put", "put", "zero", "chunks"]), lsn, chunk, block, count))
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for kind, lsn, chunk, block, count in operations:
        if kind == "chunks":
            expected = {key: cell for key, cell in expected.items() if key[0] != chunk}
        for at in range(count if kind != "chunks" else 0):
            where = (lsn << 32) + at * BLOCK_SIZE
            if kind == "put":
                expected[chunk, block + at] = (where, lsn)
            else:
                expected.pop((chunk, block + at), None)
    rng.shuffle(operations)
    for kind, lsn, chunk, block, count in operations + rng.sample(operations, 20):
        if kind == "put":
            sums = b"".join((lsn * 1000 + at).to_bytes(8, "little") for at in range(count))
            index.put(table, chunk, block, lsn << 32, sums, lsn)
        elif kind == "zero":
            index.zero(table, chunk, block, count, lsn)
        else:
            index.zero_chunks(table, chunk, 1, lsn)
        if rng.random() < 0.2:
            backing.store()
    live: dict[int, int] = {}
    for chunk in range(3):
        cells = list(index.find(table, chunk, 0, 200))
        found = {(chunk, block): (where, lsn) for block, (where, _, lsn) in enumerate(cells) if where}
        assert found == {key: cell for key, cell in expected.items() if key[0] == chunk}
        for where, _ in found.values():
            live[where >> 32] = live.get(where >> 32, 0) + BLOCK_SIZE
    assert live == {number: size for number, size in index.live.items() if size}


def test_memory_is_bounded_and_dirty_pages_stay() -> None:
    backing = Backing(pages_max=10)
    index, table = backing.index, Table(1, Tombstones())
    for number in range(100):
        index.put_block(table, 0, 0, 1 << 32, 1, number + 1)
        index.page(table, 1000 + number)
    assert len(table.pages) < 40
    for number in range(100):
        index.put_block(table, 1 + number, 0, (1 << 32) + number * BLOCK_SIZE, 7, 500)
    assert len(index.dirty) == 101, "no dirty page is dropped"
    backing.store()
    for number in range(2000, 2100):
        index.page(table, number)
    assert len(table.pages) < 40
    for number in range(100):
        ((where, _, lsn),) = index.find(table, 1 + number, 0, 1)
        assert (where, lsn) == ((1 << 32) + number * BLOCK_SIZE, 500)


def test_a_moved_block_keeps_its_lsn_and_must_be_the_same() -> None:
    index, table = Index(lambda handle, number: None, 10), Table(1, Tombstones())
    index.put_block(table, 0, 3, 1 << 32, 77, 9)
    index.move_block(table, 0, 3, 2 << 32, 77, 9)
    assert list(index.find(table, 0, 3, 1)) == [(2 << 32, 77, 9)]
    index.move_block(table, 0, 3, 3 << 32, 78, 9)  # same LSN, other bytes: a record that was cut
    index.move_block(table, 0, 3, 3 << 32, 77, 8)
    assert list(index.find(table, 0, 3, 1)) == [(2 << 32, 77, 9)]
    index.zero_chunks(table, 0, 1, 12)
    index.move_block(table, 0, 3, 3 << 32, 77, 9)
    assert list(index.find(table, 0, 3, 1)) == [(0, 0, 0)]
    assert not any(index.live.values())


def test_forgetting_a_table_gives_its_bytes_back() -> None:
    index, table = Index(lambda handle, number: None, 10), Table(1, Tombstones())
    for block in range(0, 3 * PAGE_BLOCKS, 8):
        index.put_block(table, 0, block, (1 << 32) + block * BLOCK_SIZE, 1, 1)
    assert index.live[1] == 12 * BLOCK_SIZE
    assert index.forget(table) == {0, 1, 2}
    assert index.live[1] == 0 and not index.dirty
