"""What the record of a cluster's clients accepts and rejects: hand-made histories of blocks and of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moorage.simulation.history import History
from moorage.simulation.operation import SECTORS, SMALLER, NotLinearizable, Operation

BLOCK = SECTORS


class Story:
    """Operations one after the other, unless told otherwise. Numbers are those of the operations."""

    def __init__(self, durability: str) -> None:
        self.history = History({"v": durability})
        self.now = 0.0

    def add(
        self, kind: str, first: int = 0, end: int = BLOCK, *, known: bool = True, found: Any = None
    ) -> Operation:
        operation = self.history.begin(self.now, "c", kind, "v", first, end)
        self.now += 1
        if known:
            operation.returned, operation.found = self.now, found
        self.now += 1
        return operation

    def write(self, first: int = 0, end: int = BLOCK, *, known: bool = True, fua: bool = False) -> int:
        operation = self.add("write", first, end, known=known)
        operation.durable = fua
        return operation.number

    def read(self, *sectors: int) -> None:
        self.add("read", 0, len(sectors), found=sectors)


def last_write(story: Story) -> None:
    story.write()
    story.read(*[story.write()] * BLOCK)


def part_of_a_block(story: Story) -> None:
    old = story.write()
    new = story.write(2, 5)
    story.read(old, old, new, new, new, old, old, old)


def two_blocks(story: Story) -> None:
    number = story.write(4, BLOCK + 4)
    story.read(*[0] * 4, *[number] * BLOCK, *[0] * 4)


def unknown_shows_later(story: Story) -> None:
    number = story.write(known=False)
    story.read(*[0] * BLOCK)
    story.read(*[number] * BLOCK)


def zeroes(story: Story) -> None:
    story.write()
    story.add("zero", 0, 4)
    story.read(0, 0, 0, 0)


def torn(story: Story) -> None:
    old, new = story.write(), story.write(known=False)
    story.read(*[old] * 4, *[new] * 4)


def lost(story: Story) -> None:
    story.write()
    story.read(*[0] * BLOCK)


def undone_by_a_neighbour(story: Story) -> None:
    """The other half is written back as it was: a read, modify, write around an acknowledged write."""
    story.write(0, 4)
    new = story.write(4, 8)
    story.read(*[0] * 4, *[new] * 4)


def back_again(story: Story) -> None:
    old, new = story.write(), story.write()
    story.read(*[new] * BLOCK)
    story.read(*[old] * BLOCK)


def garbage(story: Story) -> None:
    story.write()
    story.read(*[-1] * BLOCK)


def lost_at_a_takeover(story: Story) -> None:
    story.write()
    story.add("take")
    story.read(*[0] * BLOCK)


def flushed_and_lost(story: Story) -> None:
    story.write()
    story.add("flush")
    story.add("take")
    story.read(*[0] * BLOCK)


def fua_and_lost(story: Story) -> None:
    story.write(fua=True)
    story.add("take")
    story.read(*[0] * BLOCK)


def lost_without_a_takeover(story: Story) -> None:
    old = story.write()
    story.write()
    story.read(*[old] * BLOCK)


def a_hole_in_the_log(story: Story) -> None:
    """The later of two writes survives a takeover on one half, the earlier one is lost on the other."""
    story.write(0, 4)
    late = story.write(4, 8)
    story.add("take")
    story.read(*[0] * 4, *[late] * 4)


def in_flight_at_a_flush(story: Story) -> None:
    """A flush need not keep what had not returned when it began, also when somebody had seen it."""
    write = story.add("write")
    story.read(*[write.number] * BLOCK)
    flush = story.add("flush")
    write.returned = flush.returned
    story.add("take")
    story.read(*[0] * BLOCK)


def by_a_holder(story: Story, kind: str, epoch: int, known: bool = True) -> int:
    operation = story.add(kind, known=known)
    operation.epoch = epoch
    return operation.number


def recovered_by_the_next_holder(story: Story) -> None:
    """What was under way at a takeover may be found by it: zeroes of nobody knows when too."""
    story.add("take", found=1)
    number = by_a_holder(story, "write", 1, known=False)
    by_a_holder(story, "zero", 1, known=False)
    story.add("take", found=2)
    story.read(*[number] * BLOCK)


def fenced_and_acknowledged(story: Story) -> None:
    story.add("take", found=1)
    story.add("take", found=2)
    by_a_holder(story, "write", 1)


def fenced_and_shown_later(story: Story) -> None:
    story.add("take", found=1)
    number = by_a_holder(story, "write", 1, known=False)
    story.add("take", found=2)
    story.read(*[0] * BLOCK)
    story.read(*[number] * BLOCK)


def zeroed_by_the_fenced(story: Story) -> None:
    story.add("take", found=1)
    number = by_a_holder(story, "write", 1)
    by_a_holder(story, "zero", 1, known=False)
    story.add("take", found=2)
    story.read(*[number] * BLOCK)
    story.read(*[0] * BLOCK)


def read_as_of(story: Story, since: float) -> None:
    old = story.write()
    story.write()
    story.add("read", found=[old] * BLOCK).since = since


def a_prefix(story: Story) -> None:
    read_as_of(story, 0.0)


def not_all_that_had_returned(story: Story) -> None:
    read_as_of(story, 3.5)


GOOD = [
    (last_write, "sync"),
    (part_of_a_block, "sync"),
    (two_blocks, "sync"),
    (unknown_shows_later, "sync"),
    (zeroes, "sync"),
    (last_write, "writeback"),
    (lost_at_a_takeover, "writeback"),
    (in_flight_at_a_flush, "writeback"),
    (recovered_by_the_next_holder, "sync"),
    (recovered_by_the_next_holder, "writeback"),
    (a_prefix, "sync"),
]
BAD = [
    *(
        (each, mode)
        for each in (torn, lost, undone_by_a_neighbour, back_again, garbage)
        for mode in ("sync", "writeback")
    ),
    (lost_at_a_takeover, "sync"),
    (flushed_and_lost, "writeback"),
    (fua_and_lost, "writeback"),
    (lost_without_a_takeover, "writeback"),
    (a_hole_in_the_log, "writeback"),
    (fenced_and_acknowledged, "sync"),
    (fenced_and_shown_later, "sync"),
    (fenced_and_shown_later, "writeback"),
    (zeroed_by_the_fenced, "sync"),
    (zeroed_by_the_fenced, "writeback"),
    (not_all_that_had_returned, "sync"),
]


def check(make: Callable[[Story], None], durability: str) -> None:
    story = Story(durability)
    make(story)
    story.history.check()


@pytest.mark.parametrize(("make", "durability"), GOOD)
def test_accepted(make: Callable[[Story], None], durability: str) -> None:
    check(make, durability)


@pytest.mark.parametrize(("make", "durability"), BAD)
def test_rejected(make: Callable[[Story], None], durability: str) -> None:
    with pytest.raises(NotLinearizable, match="block 0"):
        check(make, durability)


def test_names() -> None:
    story = Story("sync")
    story.add("show", 0, 0, found=0)
    story.add("create", 0, 0, found=True)
    story.history.operations[-1].size = 8
    story.add("show", 0, 0, found=8)
    story.add("delete", 0, 0, known=False)
    story.add("show", 0, 0, found=8)
    story.add("show", 0, 0, found=0)
    assert story.history.check() == 1
    story.add("show", 0, 0, found=8)
    with pytest.raises(NotLinearizable, match="volume v"):
        story.history.check()


def sizes(*steps: tuple[str, int, Any]) -> Story:
    """``steps``: kind, size that was asked for, what was found."""
    story = Story("sync")
    for kind, size, found in steps:
        story.add(kind, 0, 0, found=found, known=found is not None)
        story.history.operations[-1].size = size
    return story


@pytest.mark.parametrize(
    "steps",
    [
        [("create", 8, True), ("resize", 9, True), ("show", 0, 9), ("resize", 9, True), ("show", 0, 9)],
        [("create", 8, True), ("resize", 9, None), ("show", 0, 8), ("show", 0, 9)],
        [("create", 8, True), ("resize", 9, True), ("resize", 8, SMALLER), ("delete", 0, True)],
        [("resize", 9, False), ("create", 8, True), ("resize", 9, None), ("delete", 0, True), ("show", 0, 0)],
    ],
)
def test_sizes(steps: list[tuple[str, int, Any]]) -> None:
    assert sizes(*steps).history.check() == 1


@pytest.mark.parametrize(
    "steps",
    [
        [("create", 8, True), ("resize", 9, True), ("show", 0, 8)],
        [("create", 8, True), ("resize", 9, None), ("show", 0, 9), ("show", 0, 8)],
        [("create", 8, True), ("resize", 9, True), ("resize", 8, True)],
        [("create", 8, True), ("resize", 8, SMALLER)],
        [("create", 8, True), ("resize", 9, False)],
        [("resize", 9, True)],
    ],
)
def test_sizes_that_no_order_explains(steps: list[tuple[str, int, Any]]) -> None:
    with pytest.raises(NotLinearizable, match="volume v"):
        sizes(*steps).history.check()


@pytest.mark.parametrize("epochs", [(1, 2, 2), (1, 3, 2)])
def test_epochs_that_do_not_rise_are_rejected(epochs: tuple[int, ...]) -> None:
    story = Story("sync")
    for epoch in epochs:
        story.add("take", found=epoch)
    with pytest.raises(NotLinearizable, match="epochs of volume v"):
        story.history.check()


def test_many_unknown_operations_that_are_alike_are_no_burden() -> None:
    story = Story("sync")
    for _ in range(60):
        story.add("zero", known=False)
    number = story.write()
    for _ in range(10):
        story.read(*[number] * BLOCK)
        story.read(*[number] * BLOCK)
    assert story.history.check() == 1
