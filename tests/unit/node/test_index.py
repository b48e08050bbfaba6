"""The index in memory and its tombstones, against plain dicts."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.node.index import Index, Table
from moorage.node.page import PAGE_BLOCKS, Version, stored_locations
from moorage.node.tombstones import Tombstones
from moorage.quorum.record import BLOCK_SIZE

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(1, 50)), max_size=12)


@given(RANGES)
def test_tombstones_are_a_map_from_chunk_to_the_greatest_lsn(adds: list[tuple[int, int, int]]) -> None:
    tombstones, naive = Tombstones(), dict[int, int]()
    for first, count, lsn in adds:
        tombstones.add(first, first + count, lsn, lambda lsn, following: False)
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
        self.stored: dict[tuple[int, int], bytes | None] = {}
        self.index = Index(lambda handle, number: self.stored.get((handle, number)), pages_max)

    def store(self) -> None:
        for page in list(self.index.dirty):
            self.stored[page.table.handle, page.number] = page.pack()
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
    index.merge(table, 0, 3, 2 << 32, 77, 9)
    assert list(index.find(table, 0, 3, 1)) == [(2 << 32, 77, 9)]
    index.merge(table, 0, 3, 3 << 32, 78, 9)  # same LSN, other bytes: a record that was cut
    index.merge(table, 0, 3, 3 << 32, 77, 8)
    assert list(index.find(table, 0, 3, 1)) == [(2 << 32, 77, 9)]
    index.zero_chunks(table, 0, 1, 12)
    index.merge(table, 0, 3, 3 << 32, 77, 9)
    assert list(index.find(table, 0, 3, 1)) == [(0, 0, 0)]
    assert not any(index.live.values())


def test_forgetting_a_table_gives_its_bytes_back() -> None:
    index, table = Index(lambda handle, number: None, 10), Table(1, Tombstones())
    for block in range(0, 3 * PAGE_BLOCKS, 8):
        index.put_block(table, 0, block, (1 << 32) + block * BLOCK_SIZE, 1, 1)
    assert index.live[1] == 12 * BLOCK_SIZE
    assert index.forget(table) == {0, 1, 2}
    assert index.live[1] == 0 and not index.dirty


CHUNKS, BLOCKS = 2, 40


class History:
    """A log over few blocks, with snapshots, and what each LSN shows: (chunk, block) -> (location, LSN)."""

    def __init__(self, rng: random.Random, length: int) -> None:
        self.records: list[tuple[str, int, int, int, int, list[int]]] = []  # kind, LSN, chunk, block, count
        self.at: list[dict[tuple[int, int], tuple[int, int]]] = [{}]
        snapshots: list[int] = []
        for lsn in range(1, length + 1):
            kind = rng.choices(["put", "zero", "chunks", "create", "drop"], [12, 4, 1, 3, 2])[0]
            chunk, block = rng.randrange(CHUNKS), rng.randrange(BLOCKS - 6)
            count = rng.choice([1, 1, 6])
            shown = dict(self.at[-1])
            if kind == "create":
                snapshots = [*snapshots, lsn]
            elif kind == "drop":
                snapshots = [each for each in snapshots if rng.random() < 0.5]
            elif kind == "chunks":
                shown = {key: value for key, value in shown.items() if key[0] != chunk}
            for at in range(count if kind in ("put", "zero") else 0):
                shown.pop((chunk, block + at), None)
                if kind == "put":
                    shown[chunk, block + at] = ((lsn << 32) + at * BLOCK_SIZE, lsn)
            self.at.append(shown)
            self.records.append((kind, lsn, chunk, block, count, snapshots))

    def apply(self, index: Index, table: Table, first: int, last: int) -> None:
        for kind, lsn, chunk, block, count, snapshots in self.records[first - 1 : last]:
            if kind == "put":
                sums = b"".join((lsn * 1000 + at).to_bytes(8, "little") for at in range(count))
                index.put(table, chunk, block, lsn << 32, sums, lsn)
            elif kind == "zero":
                index.zero(table, chunk, block, count, lsn)
            elif kind == "chunks":
                index.zero_chunks(table, chunk, 1, lsn)
            else:
                index.set_snapshots(table, snapshots, lsn)

    def check(self, index: Index, table: Table, lsn: int) -> None:
        """The table shows the log up to there, each snapshot what it should, and nothing else is alive."""
        for page in list(table.pages.values()):
            index.prune(index.page(table, page.number))
        alive: dict[int, int] = {}
        refers: set[int] = set()
        for snapshot in (0, *table.snapshots):
            expected = self.at[snapshot or lsn]
            for chunk in range(CHUNKS):
                cells = index.find(table, chunk, 0, BLOCKS, snapshot)
                found = {(chunk, at): (where, lsn) for at, (where, _, lsn) in enumerate(cells) if where}
                assert found == {key: value for key, value in expected.items() if key[0] == chunk}, snapshot
                refers |= {where for where, _ in found.values()}
        for where in refers:
            alive[where >> 32] = alive.get(where >> 32, 0) + BLOCK_SIZE
        assert alive == {number: size for number, size in index.live.items() if size}
        assert table.live == sum(alive.values())


@pytest.mark.parametrize("seed", range(60))
def test_snapshots_show_what_was(seed: int) -> None:
    rng = random.Random(seed)
    history = History(rng, 120)
    backing = Backing(pages_max=2)
    table = Table(1, Tombstones())
    for lsn in range(1, 121):
        history.apply(backing.index, table, lsn, lsn)
        if rng.random() < 0.2:
            backing.store()
        if rng.random() < 0.05:
            history.check(backing.index, table, lsn)
    history.check(backing.index, table, 120)


@pytest.mark.parametrize("seed", range(60))
def test_a_replay_over_pages_and_tombstones_that_are_newer(seed: int) -> None:
    """A crash in the middle of a checkpoint: some pages, and tombstones, are of a later time."""
    rng = random.Random(seed)
    history = History(rng, 120)
    backing = Backing(pages_max=100)
    table = Table(1, Tombstones())
    began, crashed = sorted(rng.sample(range(20, 121), 2))
    history.apply(backing.index, table, 1, began)
    if rng.random() < 0.5:
        for page in list(table.pages.values()):
            backing.index.prune(page)
    backing.store()
    snapshots, lsn = list(table.snapshots), table.snapshots_lsn
    tombstones = list(table.tombstones)
    history.apply(backing.index, table, began + 1, crashed)
    for page in list(backing.index.dirty):
        if rng.random() < 0.5:
            backing.index.page(table, page.number)
            tombstones = list(table.tombstones)
            backing.stored[1, page.number] = page.pack()
    again = Table(1, Tombstones(tombstones))
    again.snapshots, again.snapshots_lsn, again.keep_all = snapshots, lsn, True
    index = Index(backing.index._load, 100)
    for stored in backing.stored.values():
        for location in stored_locations(stored) if stored else ():
            index.live[location >> 32] += BLOCK_SIZE
            again.live += BLOCK_SIZE
    history.apply(index, again, began + 1, crashed)
    again.keep_all = False
    for _, number in backing.stored:
        index.page(again, number)
    history.check(index, again, crashed)


@pytest.mark.parametrize("seed", range(400))
def test_a_copy_brings_snapshots_along(seed: int) -> None:
    """A member has the log up to ``above``, and behind ``base``; the blocks, versions and tombstones that are
    newer than ``above`` come from a source that goes on."""
    rng = random.Random(seed)
    history = History(rng, 160)
    above, base = sorted((rng.choice([0, rng.randrange(100)]), rng.randrange(100, 120)))
    source, table = Index(lambda handle, number: None, 100), Table(1, Tombstones())
    index, mine = Index(lambda handle, number: None, 100), Table(2, Tombstones())
    history.apply(index, mine, 1, above)
    mine.keep_to = base
    applied, streamed = base, base
    history.apply(source, table, 1, applied)
    pages = [chunk * 32 + number for chunk in range(CHUNKS) for number in range(BLOCKS // PAGE_BLOCKS + 1)]
    pieces = [("chunks", chunk) for chunk in range(CHUNKS)]
    pieces += [("cells", number) for number in pages] + [("versions", number) for number in pages]
    pieces[:0] = pieces[: rng.choice([0, rng.randrange(len(pieces))])]  # a source may fail, and another begin
    for what, number in pieces:
        while rng.random() < 0.6 and applied < 140:
            applied += 1
            history.apply(source, table, applied, applied)
        while rng.random() < 0.5 and streamed < applied:
            streamed += 1
            history.apply(index, mine, streamed, streamed)
        found: list[tuple[int, Version]] = []
        page = source.page(table, number if what != "chunks" else 0)
        if what == "cells":
            found = [(at, each) for at in range(PAGE_BLOCKS) for each in page.everything(at)[-1:]]
        elif what == "versions":
            found = page.by_age()
        index.set_snapshots(mine, list(table.snapshots), table.snapshots_lsn)
        mine.learn_of_snapshots()
        for lsn in table.tombstones.lsns(number) if what == "chunks" else ():
            if lsn > above:
                index.zero_chunks(mine, number, 1, lsn)
        for at, (lsn, where, check) in found:
            if lsn > above:
                index.merge(mine, number // 32, number % 32 * PAGE_BLOCKS + at, where, check, lsn)
    history.apply(index, mine, streamed + 1, 160)
    for chunk in range(CHUNKS):
        list(index.find(mine, chunk, 0, BLOCKS))
    history.check(index, mine, 160)


def test_what_is_of_a_table_that_is_gone_counts_no_more() -> None:
    """Who looked at it when it went may go on for a moment."""
    backing = Backing(pages_max=100)
    index, gone, other = backing.index, Table(1, Tombstones()), Table(2, Tombstones())
    for table in (gone, other):
        index.put_block(table, 0, 0, 1 << 32, 7, 1)
        index.set_snapshots(table, [2], 2)
        index.put_block(table, 0, 0, (1 << 32) + BLOCK_SIZE, 8, 3)
    backing.store()
    index.forget(gone)
    assert index.live[1] == other.live == 2 * BLOCK_SIZE
    index.set_snapshots(gone, [], 4)
    index.prune(index.page(gone, 0))
    index.put_block(gone, 0, 0, 1 << 32, 7, 9)
    assert index.live[1] == other.live == 2 * BLOCK_SIZE and not index.dirty


def test_a_copy_whose_next_source_is_behind_must_not_go_on_there() -> None:
    """The reason for the base of versions: the first source shows a block of LSN 4, the second one has not
    applied that, and so has what snapshot 3 shows as the block itself, not as a version."""
    sources = []
    for applied in (5, 3):
        index, table = Index(lambda handle, number: None, 100), Table(1, Tombstones())
        index.put_block(table, 0, 0, 2 << 32, 2, 2)
        index.set_snapshots(table, [3], 3)
        if applied > 3:
            index.put_block(table, 0, 0, 4 << 32, 4, 4)
        sources.append(index.page(table, 0))
    assert [page.by_age() for page in sources] == [[(0, Version(2, 2 << 32, 2))], []]


def test_what_a_prune_keeps_blindly_is_looked_at_again() -> None:
    """It comes in the middle of a copy: which snapshots there are is said later."""
    index, table = Backing(pages_max=100).index, Table(1, Tombstones())
    index.put_block(table, 0, 0, 1 << 32, 7, 5)
    index.set_snapshots(table, [7], 8)
    index.put_block(table, 0, 0, 2 << 32, 8, 10)
    index.set_snapshots(table, [], 11)
    table.keep_to, table.prune = 20, False
    index.prune(index.page(table, 0))
    assert index.page(table, 0).by_age() == [(0, Version(5, 1 << 32, 7))]
    table.learn_of_snapshots()
    assert table.prune, "the next checkpoint looks for it"
    index.prune(index.page(table, 0))
    assert index.page(table, 0).by_age() == []
