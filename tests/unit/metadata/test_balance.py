"""What balance.py decides, from views, volumes and devices' words made by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from moorage.metadata import balance, healing
from moorage.metadata.balance import MOVES_MAX, WITHIN
from moorage.metadata.healing import BALANCE, DRAIN, Flapping

from .test_healing import GIB, decide, down, view_of, volume_of, wish_of

Held = dict[str, dict[int, dict[str, Any]]]


def held_of(view: dict[str, Any], *volumes: dict[str, Any], size: int = 10 * GIB) -> Held:
    """Each replica of them is ``size`` bytes, whole; what the registry has heard is put into the view."""
    held: Held = {device: {} for device in view["devices"]}
    for volume in volumes:
        for group in volume["groups"]:
            for member in group["members"]:
                held[member["device"]][member["replica"]] = {"bytes": size, "whole": True, "damaged": ""}
    for device, rows in held.items():
        view["devices"][device]["used"] = sum(row["bytes"] for row in rows.values())
    return held


def fills(view: dict[str, Any], held: Held) -> list[float]:
    used = {device: sum(row["bytes"] for row in rows.values()) for device, rows in held.items()}
    return [used[device] / row["capacity"] for device, row in view["devices"].items()]


def test_a_new_device_takes_from_the_fullest() -> None:
    view = view_of(4)
    volumes = [volume_of(n) for n in range(1, 5)]
    held = held_of(view, *volumes)
    made = balance.decide(view, volumes, held)
    assert len(made.moves) == MOVES_MAX and {move.where.device for move in made.moves} == {"d4"}
    assert len({move.volume for move in made.moves}) == MOVES_MAX, "one change per group"
    assert all(move.why == BALANCE for move in made.moves)
    assert "2 replicas are on the way" in made.text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"d1": {"drain": {"to": "", "by": "me", "at_ms": 0}}}, id="it is left anyhow"),
        pytest.param({"d4": down(1)}, id="the empty one is down"),
    ],
)
def test_a_device_that_is_not_in_use_counts_for_nothing(change: dict[str, Any]) -> None:
    view = view_of(4, **change)
    volumes = [volume_of(n) for n in range(1, 5)]
    held = held_of(view, *volumes)
    made = balance.decide(view, volumes, held)
    if "d4" in change:
        assert not made.moves and not made.text and not balance.is_uneven(view)
    else:
        assert made.moves and all(move.off != "h1" for move in made.moves)


def test_a_group_of_which_a_member_is_away_or_damaged_stays_as_it_is() -> None:
    view = view_of(5, d3=down(1))
    volumes = [volume_of(1)]
    made = balance.decide(view, volumes, held_of(view, *volumes, size=40 * GIB))
    assert not made.moves and "no replica can move that helps" in made.text
    view = view_of(5)
    held = held_of(view, *volumes, size=40 * GIB)
    held["d3"][103]["damaged"] = "rot"
    assert not balance.decide(view, volumes, held).moves


def test_a_device_that_does_not_say_what_it_holds_is_no_empty_one() -> None:
    view, volumes = view_of(4), [volume_of(n) for n in range(1, 5)]
    held = held_of(view, *volumes)
    del held["d4"]
    made = balance.decide(view, volumes, held)
    assert not made.moves and made.text == "device d4 does not say what it holds"


def test_never_two_of_a_group_on_one_host_nor_nearer_than_they_are() -> None:
    view = view_of(5)
    for number, rack in enumerate(("a", "b", "c", "a", "b"), start=1):
        view["hosts"][f"h{number}"]["labels"] = {"rack": rack}
    del view["devices"]["d5"]
    view["devices"]["d6"] = {**view["devices"]["d4"], "host": "h1"}  # a second device of the first host
    volumes = [volume_of(n) for n in range(1, 5)]
    held = held_of(view, *volumes)
    while made := balance.decide(view, volumes, held).moves:
        for move in made:
            assert move.off == "h1" and move.where.device in ("d4", "d6"), "from rack to the same rack"
            carry_out(volumes, held, move)
    assert held["d4"] and held["d6"] and not set(held["d2"]) ^ {102, 202, 302, 402}


def carry_out(volumes: list[dict[str, Any]], held: Held, move: healing.Move) -> None:
    (volume,) = (each for each in volumes if each["id"] == move.volume)
    (member,) = (each for each in volume["groups"][0]["members"] if each["replica"] == move.old)
    row = held[member["device"]].pop(move.old)
    member.update(device=move.where.device, host=move.where.host)
    held[move.where.device][move.old] = row


def test_what_is_under_way_counts_as_done() -> None:
    view = view_of(4)
    wished = [volume_of(n, wish=wish_of(n, 4, n, BALANCE)) for n in (1, 2)]
    volumes = [*wished, volume_of(3), volume_of(4)]
    held = held_of(view, *volumes)
    held["d4"][199] = {"bytes": 3 * GIB, "whole": False, "damaged": ""}  # half way
    made = balance.decide(view, volumes, held)
    assert not made.moves, "so many are enough at once"
    volumes[0]["groups"][0]["wish"] = None
    (move,) = balance.decide(view, volumes, held).moves
    assert move.off == "h3", "from the first two something is gone, or soon"


@pytest.mark.parametrize("seed", range(20))
def test_it_comes_to_an_end_within_the_bound(seed: int) -> None:
    """Many volumes, some devices twice as large, and two that are new: replicas are small against devices."""
    rng = random.Random(seed)
    count = rng.randint(5, 9)
    view = view_of(count + 2)
    for device in rng.sample(sorted(view["devices"]), 2):
        view["devices"][device]["capacity"] *= 2
    volumes = [volume_of(n, on=tuple(rng.sample(range(1, count + 1), 3))) for n in range(1, 80)]
    held = held_of(view, *volumes, size=2 * GIB)
    for rows in held.values():
        for row in rows.values():
            row["bytes"] = rng.randint(GIB // 2, 3 * GIB)
    moved = 0
    while made := balance.decide(view, volumes, held).moves:
        for move in made:
            carry_out(volumes, held, move)
            moved += 1
        assert moved < 240
    found = fills(view, held)
    assert max(found) - min(found) <= WITHIN
    assert moved, "they were filled unequally"


def test_it_is_called_off_when_it_is_paused_or_something_is_at_risk() -> None:
    volume = volume_of(1, wish=wish_of(1, 4, 1, BALANCE))
    view = view_of(5)
    assert not decide(view, volume).called_off
    view["balance"] = {"paused": True, "by": "me", "at_ms": 0}
    (off,) = decide(view, volume).called_off
    assert off.text == "evening out devices is paused by me"
    (off,) = decide(view_of(5, d2=down(20)), volume).called_off
    assert "that goes first" in off.text
    drained = volume_of(1, wish=wish_of(1, 4, 1, DRAIN))
    view["devices"]["d1"]["drain"] = {"to": "", "by": "me", "at_ms": 0}
    assert not healing.decide(view, [drained], {}, Flapping(), 600_000).called_off, (
        "a pause is not for drains"
    )


def test_what_evens_out_does_not_keep_repairs_waiting() -> None:
    moving = [volume_of(n, on=(1, 2, 3), wish=wish_of(n, 5, 1, BALANCE)) for n in range(1, 20)]
    lost = volume_of(20, on=(1, 2, 4))
    made = decide(view_of(5, d4={"health": "failed", "reason": "EIO"}), *moving, lost)
    assert [move.volume for move in made.moves] == [20] and not made.called_off
