"""How many more host losses a volume survives: the counting, and when a copy is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.cli.redundancy import redundancy_text
from moorage.client import redundancy
from moorage.client.redundancy import GOOD, count, measure, newest
from moorage.wire.errors import Unavailable

GROUP = {
    "group": 0,
    "version": 1,
    "members": [{"replica": each, "host": f"h{each}", "device": f"d{each}"} for each in (1, 2, 3)],
}


def row(replica: int, **others: Any) -> dict[str, Any]:
    good = {
        "replica": replica,
        "position": [2, 10],
        "bytes": 4096,
        "whole": True,
        "damaged": "",
        "offered": True,
        "bad_blocks": 0,
        "verified_ms": 1000 * replica,
    }
    return {**good, **others}


def answers(**others: Any) -> dict[int, Any]:
    return {each: row(each, **(others if each == 2 else {})) for each in (1, 2, 3)}


def found(given: dict[int, Any]) -> Any:
    return count([GROUP], given, newest([GROUP], given))


def test_three_good_copies() -> None:
    result = found(answers())
    assert (result.survives, result.loses_nothing, result.verified_ms, result.never_verified) == (
        1,
        2,
        1000,
        0,
    )
    text = " ".join(redundancy_text(result))
    assert "survives 1 more host loss now without waiting, 2 more host losses without losing data" in text


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"whole": False}, "is being copied to"),
        ({"damaged": "a segment"}, "damaged: a segment"),
        ({"offered": False}, "withheld"),
        ({"bad_blocks": 3}, "has 3 bad blocks"),
        ({"position": [2, 9]}, "lacks records"),
        ({"position": [1, 12]}, "lacks records"),
    ],
)
def test_one_that_is_not_good_does_not_count(others: dict[str, Any], why: str) -> None:
    result = found(answers(**others))
    assert (result.survives, result.loses_nothing) == (0, 1)
    assert result.copies[1].state.startswith(why) and result.copies[0].state == GOOD


def test_one_that_is_copied_or_damaged_does_not_say_what_others_lack() -> None:
    assert found(answers(whole=False, position=[9, 99])).survives == 0
    assert found(answers(position=[9, 99])).survives == -1, "then the other two lack something"


def test_one_without_an_answer_does_not_count() -> None:
    for told in ("does not answer", {"replica": 2, "position": [2, 10]}):
        result = found({**answers(), 2: told})
        assert (result.survives, result.loses_nothing) == (0, 1)
    assert found({1: row(1)}).survives == -1
    assert "no more host loss now" in redundancy_text(found({1: row(1)}))[0]


def test_one_that_was_never_checked_counts_and_is_said() -> None:
    result = found(answers(verified_ms=0))
    assert (result.survives, result.verified_ms, result.never_verified) == (1, 1000, 1)
    assert "1 copies were never checked" in redundancy_text(result)[1]
    nobody = found({each: row(each, verified_ms=0) for each in (1, 2, 3)})
    assert redundancy_text(nobody)[1] == "no copy was ever checked"


def test_the_worst_group_counts() -> None:
    second = {**GROUP, "group": 1, "members": [{"replica": 4, "host": "h1", "device": "d1"}]}
    given = {**answers(), 4: row(4, position=[1, 1])}
    result = count([GROUP, second], given, newest([GROUP, second], given))
    assert (result.survives, result.loses_nothing) == (0, 0)


async def test_one_that_is_only_late_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redundancy, "ROUND_S", 0.0)
    asked = 0

    async def ask(device: str) -> list[dict[str, Any]]:
        nonlocal asked
        asked += 1
        if device == "d3":
            raise Unavailable("it is silent")
        # the second one hears of each record a bit later, while more and more are written
        return [row(int(device[1:]), position=[2, 10 + asked - 3 * (device == "d2")])]

    result = await measure([GROUP], ask)
    assert (result.survives, result.loses_nothing) == (0, 1) and asked > 3
    assert result.copies[2].state == "does not answer: it is silent"
