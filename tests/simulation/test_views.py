"""What the judgement of snapshots accepts and rejects: hand-made histories of two blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moorage.simulation.history import History
from moorage.simulation.operation import SECTORS, NotLinearizable, Operation


class Story:
    """Operations one after the other, unless told otherwise, on two volumes."""

    def __init__(self, durability: str = "sync") -> None:
        self.history = History({"v": durability, "w": durability})
        self.now = 0.0

    def add(self, kind: str, name: str = "v", *, known: bool = True, found: object = None) -> Operation:
        end = SECTORS if kind in ("write", "zero", "read", "shown", "restore") else 0
        operation = self.history.begin(self.now, "c", kind, name, 0, end)
        self.now += 1
        if known:
            operation.returned, operation.found = self.now, found
        self.now += 1
        return operation

    def write(self, name: str = "v") -> Operation:
        return self.add("write", name)

    def create(self, *names: str, known: bool = True) -> Operation:
        for name in names or ("v",):
            made = self.add("create", f"{name}@s", known=known, found=True)
            made.size = 1
        return made

    def shown(self, number: int, name: str = "v") -> Operation:
        operation = self.add("shown", name, found=(number,) * SECTORS)
        operation.snapshot = "s"
        return operation

    def read(self, number: int, name: str = "v") -> Operation:
        return self.add("read", name, found=(number,) * SECTORS)

    def take(self, epoch: int, rolls_back: str = "") -> Operation:
        operation = self.add("take", found=epoch)
        operation.snapshot = rolls_back
        return operation

    def restore(self, epoch: int, known: bool = True) -> Operation:
        operation = self.add("restore", known=known)
        operation.snapshot, operation.epoch, operation.durable = "s", epoch, True
        return operation


def during(made: Operation, *others: Operation) -> None:
    """The creation takes as long as all these together."""
    made.invoked = min(each.invoked for each in others) - 0.5
    made.returned = max(each.returned or 0.0 for each in others) + 0.5


def what_was_there(story: Story) -> None:
    number = story.write().number
    story.create()
    story.write()
    story.shown(number)
    story.shown(number)


def what_came_meanwhile(story: Story) -> None:
    made, later = story.create(), story.write()
    during(made, later)
    story.shown(later.number)


def created_nobody_knows_when(story: Story) -> None:
    story.create(known=False)
    number = story.write().number
    story.add("show", "v@s", found=True)
    story.shown(number)


def kept_by_the_snapshot(story: Story) -> None:
    """In writeback nothing that a snapshot shows is lost."""
    number = story.write().number
    story.create()
    story.shown(number)
    story.take(1)
    story.read(number)


def rolled_back(story: Story) -> None:
    number = story.write().number
    story.create()
    story.shown(number)
    story.write()
    story.take(1, "s")
    story.restore(1)
    story.read(number)


def rolled_back_in_part(story: Story) -> None:
    """Nobody but another rollback comes before it is complete."""
    story.create()
    story.shown(0)
    number = story.write().number
    story.take(1, "s")
    story.restore(1, known=False)
    story.take(2, "s")
    story.read(number)


def both_at_one_moment(story: Story) -> None:
    made = story.create("v", "w")
    one, other = story.write("v"), story.write("w")
    for each in story.history.operations[:2]:
        during(each, one, other)
    assert made.kind == "create"
    story.shown(one.number, "v")
    story.shown(0, "w")


def seen_in_the_volume_later(story: Story) -> None:
    """In flight at that moment, and its log is slow: as after a crash, the snapshot has it already."""
    before = story.write("w")
    story.create("v", "w")
    slow, later = story.write("v"), story.write("w")
    story.read(0, "v")
    slow.returned = story.now
    for each in story.history.operations[1:3]:
        during(each, slow, later)
    story.shown(slow.number, "v")
    story.shown(before.number, "w")


def too_old(story: Story) -> None:
    story.write()
    story.create()
    story.shown(0)


def too_new(story: Story) -> None:
    story.create()
    story.shown(story.write().number)


def changed(story: Story) -> None:
    made, later = story.create(), story.write()
    during(made, later)
    story.shown(0)
    story.shown(later.number)


def lost_after_all(story: Story) -> None:
    number = story.write().number
    story.create()
    story.shown(number)
    story.take(1)
    story.read(0)


def of_two_moments(story: Story) -> None:
    """It lacks a write that was acknowledged before another one was asked for, which it shows."""
    story.create("v", "w")
    one, other = story.write("v"), story.write("w")
    for each in story.history.operations[:2]:
        during(each, one, other)
    story.shown(0, "v")
    story.shown(other.number, "w")


def of_two_moments_by_number(story: Story) -> None:
    before = story.write("v")
    story.create("v", "w")
    one, other = story.write("v"), story.write("w")
    for each in story.history.operations[1:3]:
        during(each, one, other)
    story.shown(before.number, "v")
    story.shown(other.number, "w")


def seen_in_the_volume_before(story: Story) -> None:
    """A write that was read, though nothing had acknowledged it, is in all that comes after."""
    story.create("v", "w")
    slow = story.write("v")
    story.read(slow.number, "v")
    later = story.write("w")
    slow.returned = story.now + 1
    for each in story.history.operations[:2]:
        during(each, slow, later)
    story.now += 3
    story.shown(0, "v")
    story.shown(later.number, "w")


def not_rolled_back(story: Story) -> None:
    story.create()
    story.shown(0)
    number = story.write().number
    story.take(1, "s")
    story.restore(1)
    story.read(number)


def attached_before_it_was_complete(story: Story) -> None:
    story.create()
    story.shown(0)
    number = story.write().number
    story.take(1, "s")
    story.restore(1, known=False)
    story.take(2)
    story.read(number)


def gone_without_a_deletion(story: Story) -> None:
    story.create()
    story.add("show", "v@s", found=False)


def back_after_its_deletion(story: Story) -> None:
    story.create()
    story.add("delete", "v@s", found=True)
    story.add("show", "v@s", found=True)


GOOD = [
    what_was_there,
    what_came_meanwhile,
    created_nobody_knows_when,
    kept_by_the_snapshot,
    rolled_back,
    rolled_back_in_part,
    both_at_one_moment,
    seen_in_the_volume_later,
]
BAD = [
    too_old,
    too_new,
    changed,
    lost_after_all,
    of_two_moments,
    of_two_moments_by_number,
    seen_in_the_volume_before,
    not_rolled_back,
    attached_before_it_was_complete,
    gone_without_a_deletion,
    back_after_its_deletion,
]


@pytest.mark.parametrize("durability", ["sync", "writeback"])
@pytest.mark.parametrize("make", GOOD)
def test_accepted(make: Callable[[Story], None], durability: str) -> None:
    story = Story(durability)
    make(story)
    story.history.check()


@pytest.mark.parametrize("durability", ["sync", "writeback"])
@pytest.mark.parametrize("make", BAD)
def test_rejected(make: Callable[[Story], None], durability: str) -> None:
    story = Story(durability)
    make(story)
    with pytest.raises(NotLinearizable):
        story.history.check()
