"""Who uses a mount, row by row, and in random histories with crashes between a note and its deed."""

from __future__ import annotations

import random

import pytest

from moorage.gateway.docker import ledger
from moorage.gateway.docker.ledger import Do, Entry, Seen

ANONYMOUS = ""


def entry(*users: str) -> Entry:
    return Entry(frozenset(users), {"mode": "ro"})


@pytest.mark.parametrize(
    ("seen", "before", "user", "after", "do"),
    [
        (Seen.NOTHING, (), "a", ("a",), Do.MOUNT),
        (Seen.NOTHING, ("a",), "a", ("a",), Do.MOUNT),  # a crash between the note and the mount
        (Seen.NOTHING, ("b",), "a", ("a",), Do.MOUNT),  # b's mount is no more, b cannot be waited for
        (Seen.DEAD, ("a", "b"), "c", ("c",), Do.MOUNT),
        (Seen.OPENING, ("a",), "a", ("a",), Do.WAIT),
        (Seen.OPENING, ("a",), "b", ("a", "b"), Do.WAIT),
        (Seen.SERVING, ("a",), "a", ("a",), Do.ANSWER),  # asked again
        (Seen.SERVING, ("a",), "b", ("a", "b"), Do.ANSWER),
        (Seen.SERVING, (), "a", ("a",), Do.ANSWER),  # its unmount had failed
        (Seen.SERVING, ("a",), ANONYMOUS, ("a", ANONYMOUS), Do.ANSWER),
        (Seen.SERVING, (ANONYMOUS,), ANONYMOUS, (ANONYMOUS,), Do.ANSWER),
        (Seen.BROKEN, ("a",), "b", ("b",), Do.REPLACE),
    ],
)
def test_mount(seen: Seen, before: tuple[str, ...], user: str, after: tuple[str, ...], do: Do) -> None:
    assert ledger.mount(entry(*before), user, seen) == (entry(*after), do)


@pytest.mark.parametrize(
    ("seen", "before", "user", "after", "do"),
    [
        (Seen.SERVING, ("a",), "a", (), Do.UNMOUNT),
        (Seen.SERVING, ("a", "b"), "a", ("b",), Do.ANSWER),
        (Seen.SERVING, ("b",), "a", ("b",), Do.ANSWER),  # an id that is not known
        (Seen.SERVING, (), "a", (), Do.UNMOUNT),  # a crash between the note and the unmount
        (Seen.SERVING, ("a", ANONYMOUS), ANONYMOUS, ("a",), Do.ANSWER),
        (Seen.BROKEN, ("a",), "a", (), Do.UNMOUNT),
        (Seen.OPENING, ("a",), "a", (), Do.UNMOUNT),
        (Seen.DEAD, ("a",), "a", (), Do.UNMOUNT),
        (Seen.NOTHING, ("a",), "a", (), Do.ANSWER),
        (Seen.NOTHING, (), "a", (), Do.ANSWER),
        (Seen.NOTHING, ("b",), "a", ("b",), Do.ANSWER),
    ],
)
def test_unmount(seen: Seen, before: tuple[str, ...], user: str, after: tuple[str, ...], do: Do) -> None:
    assert ledger.unmount(entry(*before), user, seen) == (entry(*after), do)


@pytest.mark.parametrize(
    ("seen", "before", "after", "do"),
    [
        (Seen.NOTHING, ("a",), (), Do.ANSWER),
        (Seen.NOTHING, (), (), Do.ANSWER),
        (Seen.DEAD, ("a",), (), Do.UNMOUNT),
        (Seen.SERVING, ("a",), ("a",), Do.ANSWER),
        (Seen.SERVING, ("a", "dead"), ("a",), Do.ANSWER),
        (Seen.SERVING, ("dead",), (), Do.UNMOUNT),
        (Seen.SERVING, (), (), Do.UNMOUNT),
        (Seen.OPENING, ("a",), ("a",), Do.ANSWER),
        (Seen.OPENING, (), (), Do.UNMOUNT),
        (Seen.BROKEN, ("a",), ("a",), Do.ANSWER),
        (Seen.BROKEN, (), (), Do.UNMOUNT),
    ],
)
def test_put_right(seen: Seen, before: tuple[str, ...], after: tuple[str, ...], do: Do) -> None:
    assert ledger.put_right(entry(*before), seen, lambda user: user != "dead") == (entry(*after), do)


def test_every_thing_seen_has_a_row() -> None:
    for seen in Seen:
        for users in ((), ("a",), ("a", "b")):
            assert ledger.mount(entry(*users), "a", seen)[0].users >= {"a"}
            assert "a" not in ledger.unmount(entry(*users), "a", seen)[0].users


class World:
    """One volume on one host, and engines that repeat what they do not know the outcome of."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.entry = Entry()
        self.mount: int | None = None  # which one
        self.made = 0
        self.dead = False
        self.holding: dict[str, int] = {}  # who was given a path -> of which mount

    def seen(self) -> Seen:
        if self.mount is None:
            return Seen.NOTHING
        return Seen.DEAD if self.dead else Seen.SERVING

    def crashes(self) -> bool:
        return self.rng.random() < 0.15

    def do(self, do: Do) -> bool:
        """False when it crashed, before or after the deed."""
        if self.crashes():
            return False
        if do in (Do.UNMOUNT, Do.REPLACE):
            assert self.dead or self.mount not in self.holding.values(), "unmounted under a user"
            self.mount = None
        if do in (Do.MOUNT, Do.REPLACE):
            self.made += 1
            self.mount, self.dead = self.made, False
        return not self.crashes()

    def ask_to_mount(self, user: str) -> None:
        for _ in range(100):
            self.entry, do = ledger.mount(self.entry, user, self.seen())
            if self.do(do):
                assert self.mount is not None and not self.dead
                self.holding[user] = self.mount
                return

    def ask_to_unmount(self, user: str) -> None:
        self.holding.pop(user, None)
        for _ in range(100):
            self.entry, do = ledger.unmount(self.entry, user, self.seen())
            if self.do(do):
                return

    def die(self) -> None:
        """The mount's processes, not those who use it: they see errors, and will unmount some time."""
        self.dead = self.mount is not None

    def put_right(self) -> None:
        self.entry, do = ledger.put_right(self.entry, self.seen(), lambda user: True)
        self.do(do)


@pytest.mark.parametrize("seed", range(200))
def test_no_history_unmounts_under_a_user_or_leaves_a_mount_without_one(seed: int) -> None:
    world = World(random.Random(seed))
    users = ["a", "b", "c", ANONYMOUS]
    for _ in range(60):
        user = world.rng.choice(users)
        draw = world.rng.random()
        if draw < 0.4:
            world.ask_to_mount(user)
        elif draw < 0.8:
            world.ask_to_unmount(user)
        elif draw < 0.9:
            world.put_right()
        else:
            world.die()
        if world.mount is not None and not world.dead:
            current = {user for user, mount in world.holding.items() if mount == world.mount}
            assert current <= world.entry.users
    for user in users:
        world.ask_to_unmount(user)
    assert world.mount is None and not world.entry.users
