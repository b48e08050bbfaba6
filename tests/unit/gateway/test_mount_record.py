"""Which former lives a daemon names when it attaches in their place, and what others see of its lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.gateway.mount.mounting import describe
from moorage.gateway.mount.record import MOUNTED, OPENING, WRITERS_KEPT, Place, Record, Status
from moorage.metadata.limits import SUCCEEDS_MAX


def test_the_life_that_served_is_named_however_many_attaches_fail() -> None:
    status = Status()
    status.begin(1)
    for writer in range(2, 60):
        status.begin(writer)
        assert status.writers[0] == 1 and status.writers[-1] == writer
        assert len(status.writers) <= WRITERS_KEPT <= SUCCEEDS_MAX
    assert status.writers == [1, *range(60 - WRITERS_KEPT + 1, 60)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One whose keeper lives: it is us."""
    place = Place(tmp_path)
    with place.keeper_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place


@pytest.mark.parametrize("state", ["starting", "attaching", "attached"])
def test_what_is_mounted_is_restarting_until_its_next_daemon_serves(place: Place, state: str) -> None:
    """Whoever looks after mounts takes down those that come to nothing: not one that only waits."""
    record = Record("1", "db", "127.0.0.1:1", "", "", "/mnt")
    place.save(record)
    place.save_status(Status(state, os.getpid()))
    assert (record.phase, describe(place).state) == (OPENING, state)
    record.phase = MOUNTED
    place.save(record)
    assert describe(place).state == "restarting"
    place.save_status(Status("serving", os.getpid()))
    assert describe(place).state == "serving"
    place.save_status(Status("lost", os.getpid()))
    assert describe(place).state == "lost"
