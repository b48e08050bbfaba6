"""Which former lives a daemon names when it attaches in their place."""

from __future__ import annotations

from moorage.gateway.mount.record import WRITERS_KEPT, Status
from moorage.metadata.limits import SUCCEEDS_MAX


def test_the_life_that_served_is_named_however_many_attaches_fail() -> None:
    status = Status()
    status.begin(1)
    for writer in range(2, 60):
        status.begin(writer)
        assert status.writers[0] == 1 and status.writers[-1] == writer
        assert len(status.writers) <= WRITERS_KEPT <= SUCCEEDS_MAX
    assert status.writers == [1, *range(60 - WRITERS_KEPT + 1, 60)]
