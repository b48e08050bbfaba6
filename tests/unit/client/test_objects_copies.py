"""What copies of a bucket are worth: by what metadata notes of them, and what their devices say."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.client.objects import copies
from moorage.client.objects.buckets import Buckets
from moorage.client.objects.copies import BucketCopies, measure_bucket
from moorage.client.redundancy import GOOD, LACKS_MAX, UNTOLD
from moorage.metadata.objects import calls
from moorage.wire.errors import NotFound, Unavailable

IDENTITY = 7


class Asked:
    """A bucket of three copies. ``noted``: of each, what metadata says, time after time (the last for good);
    ``rows``: what its device says, other than that all is well; a text: why it does not count."""

    def __init__(self, noted: dict[int, list[dict[str, Any]]], rows: dict[int, Any]) -> None:
        self._noted = noted
        self._rows = rows
        self.rounds = 0

    async def show(self) -> dict[str, Any]:
        self.rounds += 1
        members = []
        for n in (1, 2, 3):
            told = self._noted.get(n, [{"lacks": 0}])
            now = told[min(self.rounds, len(told)) - 1]
            members.append({"replica": n, "host": f"h{n}", "device": f"d{n}", **now})
        return {"id": IDENTITY, "groups": [{"group": 0, "version": 1, "members": members, "wish": None}]}

    async def ask(self, bucket: int, device: str) -> list[dict[str, Any]] | str:
        assert bucket == IDENTITY
        replica = int(device[1:])
        other = self._rows.get(replica, {})
        if isinstance(other, Exception):
            raise other
        if isinstance(other, str):
            return other
        well = {"whole": True, "damaged": "", "offered": True, "bad_blocks": 0, "verified_ms": 1000 * replica}
        about = {"replica": replica, "durability": "objects", "position": [0, 0], "bytes": 4096}
        return [{**about, **well, **other}]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "ROUND_S", 0.0)


async def measured(noted: dict[int, list[dict[str, Any]]], rows: dict[int, Any]) -> tuple[BucketCopies, int]:
    asked = Asked(noted, rows)
    return await measure_bucket(asked.show, asked.ask), asked.rounds


async def test_three_good_copies() -> None:
    found, rounds = await measured({}, {})
    redundancy = found.redundancy
    assert (redundancy.survives, redundancy.loses_nothing, redundancy.verified_ms) == (1, 2, 1000)
    assert rounds == 1 and [copy.lacks for copy in redundancy.copies] == [0, 0, 0]


@pytest.mark.parametrize(
    ("noted", "row", "state"),
    [
        ({"lacks": 1}, {}, "lacks 1 extent"),
        ({"lacks": 12}, {}, "lacks 12 extents"),
        ({"lacks": LACKS_MAX}, {}, "lacks 1000 extents or more"),
        ({"lacks": 0, "built": 40}, {}, "is looked through: it was damaged"),
        ({"lacks": 5, "built": 40}, {"damaged": "a page"}, "damaged: a page"),
        ({"lacks": 0}, {"damaged": "a page"}, "damaged: a page"),
        ({"lacks": 0}, {"bad_blocks": 3}, "has 3 bad blocks"),
        ({"lacks": 0}, "its device is down: silent", "its device is down: silent"),
        ({"lacks": 0}, Unavailable("for 3 s"), "does not answer: for 3 s"),
        ({}, {}, UNTOLD),
    ],
)
async def test_one_that_is_not_good_does_not_count(noted: dict[str, Any], row: Any, state: str) -> None:
    found, _ = await measured({2: [noted]}, {2: row})
    redundancy = found.redundancy
    assert (redundancy.survives, redundancy.loses_nothing) == (0, 1)
    assert [copy.state for copy in redundancy.copies] == [GOOD, state, GOOD]
    assert redundancy.copies[1].lacks == noted.get("lacks")


async def test_what_all_say_who_has_nothing_is_not_good() -> None:
    found, _ = await measured({n: [{"lacks": 1}] for n in (1, 2, 3)}, {})
    assert (found.redundancy.survives, found.redundancy.loses_nothing) == (-2, 0)


async def test_one_that_is_only_late_is_asked_again() -> None:
    """Under load another extent is late each time: one that lacked nothing in between had all there was."""
    late = {2: [{"lacks": 3}, {"lacks": 0}, {"lacks": 2}], 3: [{"lacks": 1}, {"lacks": 1}, {"lacks": 0}]}
    found, rounds = await measured(late, {})
    assert (found.redundancy.survives, rounds) == (1, 3)
    found, rounds = await measured({2: [{"lacks": 0}, {"lacks": 5000}], 3: [{"lacks": 1}, {"lacks": 0}]}, {})
    assert (found.redundancy.survives, rounds) == (0, 2), "that is no matter of moments"


async def test_nobody_waits_for_one_that_is_down_or_lacks_much() -> None:
    for noted, row in (({"lacks": 5}, "its device is down: silent"), ({"lacks": 500}, {})):
        _, rounds = await measured({2: [noted]}, {2: row})
        assert rounds == 1


def test_metadata_counts_as_far_as_is_known_here() -> None:
    assert calls.LACKS_MAX == LACKS_MAX


async def test_metadata_that_is_older_is_asked_where_the_copies_are() -> None:
    groups = (await Asked({n: [{}] for n in (1, 2, 3)}, {}).show())["groups"]

    async def call(name: str, method: str, params: dict[str, Any], timeout: float) -> Any:
        if method != "metadata.show_bucket":
            raise NotFound(f"m1 does not serve the method {method!r}")
        return {"id": IDENTITY, "groups": groups, "objects": 0}

    unused: Any = None
    buckets = Buckets(unused, call, unused, unused, "")
    found = await measure_bucket(lambda: buckets.lacks("photos"), Asked({}, {}).ask)
    assert {copy.state for copy in found.redundancy.copies} == {UNTOLD}
    assert found.redundancy.survives < 0, "what nobody vouches for does not count"
