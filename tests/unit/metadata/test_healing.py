"""What healing.py decides, from views and volumes made by hand."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from moorage.metadata import healing
from moorage.metadata.healing import DOWN, DRAIN, LOST, MISSING, MOVES_MAX, Flapping

GIB = 1 << 30
MINUTE_MS = 60_000


def view_of(hosts: int, **changes: dict[str, Any]) -> dict[str, Any]:
    """Hosts h1..., a device d1... on each; ``changes``: fields of a device by its id."""
    names = range(1, hosts + 1)
    device = {"capacity": 100 * GIB, "used": 0, "health": "up", "reason": "", "since_ms": 0, "drain": None}
    return {
        "hosts": {f"h{n}": {"labels": {}, "health": "up", "reason": "", "drain": None} for n in names},
        "devices": {f"d{n}": {**device, "host": f"h{n}", **changes.get(f"d{n}", {})} for n in names},
    }


def volume_of(
    number: int, on: tuple[int, ...] = (1, 2, 3), wish: dict[str, Any] | None = None
) -> dict[str, Any]:
    members = [{"replica": 100 * number + n, "device": f"d{n}", "host": f"h{n}"} for n in on]
    return {
        "id": number,
        "name": f"v{number}",
        "size": GIB,
        "replicas": len(on),
        "groups": [{"group": 0, "version": 1, "members": members, "wish": wish}],
    }


def wish_of(number: int, device: int, replaces: int, why: str) -> dict[str, Any]:
    where = {"device": f"d{device}", "host": f"h{device}"}
    return {"replica": 100 * number + 99, "replaces": 100 * number + replaces, "why": why, **where}


def decide(
    view: dict[str, Any],
    *volumes: dict[str, Any],
    flapping: Flapping | None = None,
    missing: Collection[int] = (),
) -> healing.Decisions:
    return healing.decide(view, volumes, {}, flapping or Flapping(), 10 * MINUTE_MS, missing)


DRAINED = {"drain": {"to": "", "by": "me", "at_ms": 0}}


def down(minutes: float) -> dict[str, Any]:
    return {"health": "down", "since_ms": int(minutes * MINUTE_MS), "reason": "silent"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"health": "suspect", "since_ms": 100 * MINUTE_MS}, None),
        (down(9.9), None),
        (down(10), DOWN),
        ({"health": "refused", "reason": "evicted"}, LOST),
        ({"health": "failed", "reason": "EIO"}, LOST),
        (DRAINED, DRAIN),
        ({**down(1), **DRAINED}, DRAIN),
    ],
)
def test_which_devices_are_left(change: dict[str, Any], why: str | None) -> None:
    made = decide(view_of(4, d2=change), volume_of(1))
    assert [(move.old, move.where.device, move.why) for move in made.moves] == (
        [(102, "d4", why)] if why else []
    )
    assert not made.blocked and not made.called_off


def test_nothing_moves_where_there_is_no_host_for_it() -> None:
    made = decide(view_of(3, d2=down(20)), volume_of(1))
    assert not made.moves
    (blocked,) = made.blocked
    assert (blocked.name, blocked.device) == ("v1", "d2") and "bring a host up" in blocked.text


def test_nothing_is_planned_where_nothing_can_be_copied() -> None:
    made = decide(view_of(5, d2=down(20), d3={"health": "refused", "reason": "evicted"}), volume_of(1))
    assert not made.moves
    assert made.blocked[0].text.startswith("1 of its 3 replicas are there")
    assert not decide(view_of(5, d2=down(20)), volume_of(1, on=(2,))).moves


def test_one_change_at_a_time_in_a_group_and_the_lost_one_first() -> None:
    view = view_of(5, d1=DRAINED, d3={"health": "refused", "reason": "evicted"})
    made = decide(view, volume_of(1))
    assert [(move.old, move.why) for move in made.moves] == [(103, LOST)]
    wish = wish_of(1, 5, 3, LOST)
    assert decide(view, volume_of(1, wish=wish)) == healing.Decisions()


def test_what_is_most_at_risk_goes_first_and_not_all_at_once() -> None:
    view = view_of(12, d1=DRAINED, d2=down(20))
    safe = [volume_of(n, on=(1, 5, 6)) for n in range(1, 12)]
    made = decide(view, *safe, volume_of(21, on=(2, 5, 6, 7, 8)), volume_of(20, on=(2, 3, 4)))
    assert [move.name for move in made.moves[:2]] == ["v20", "v21"]
    assert len(made.moves) == MOVES_MAX
    assert {blocked.text for blocked in made.blocked} == {healing.TURN}
    into = [move.where.device for move in made.moves]
    assert max(into.count(device) for device in into) <= healing.INTO_MAX


def test_one_that_comes_back_calls_its_replacement_off() -> None:
    wished = volume_of(1, wish=wish_of(1, 4, 2, DOWN))
    assert decide(view_of(4, d2=down(20)), wished) == healing.Decisions()
    assert decide(view_of(4, d2={"health": "suspect"}), wished) == healing.Decisions()
    (off,) = decide(view_of(4), wished).called_off
    assert off.replica == 199 and "is back" in off.text


def test_one_that_comes_and_goes_is_not_waited_for() -> None:
    wished, flapping = volume_of(1, wish=wish_of(1, 4, 2, DOWN)), Flapping()
    for minute in (0, 20):
        flapping.look(view_of(4, d2=down(12)), minute * MINUTE_MS)
        flapping.look(view_of(4), (minute + 12) * MINUTE_MS)
        off = decide(view_of(4), wished, flapping=flapping).called_off
        assert bool(off) is (minute == 0)
    flapping.look(view_of(4), 200 * MINUTE_MS)
    assert decide(view_of(4), wished, flapping=flapping).called_off


def test_a_drain_that_is_taken_back_and_a_new_place_that_is_lost() -> None:
    wished = volume_of(1, wish=wish_of(1, 4, 2, DRAIN))
    assert "not drained any more" in decide(view_of(4), wished).called_off[0].text
    assert decide(view_of(4, d2=DRAINED), wished) == healing.Decisions()
    (off,) = decide(view_of(4, d2=DRAINED, d4=DRAINED), wished).called_off
    assert "the device of the new replica is being drained" in off.text


def test_a_replacement_goes_where_it_is_told() -> None:
    to = {"drain": {"to": "d5", "by": "me", "at_ms": 0}}
    assert decide(view_of(6, d2=to), volume_of(1)).moves[0].where.device == "d5"
    assert decide(view_of(6, d2=to, d5=down(1)), volume_of(1)).blocked[0].text.startswith("needs device d5")
    # Another replica of the group is there already: anywhere else is better than nowhere.
    assert decide(view_of(6, d2=to), volume_of(1, on=(2, 3, 5))).moves[0].where.device in ("d1", "d4", "d6")


def test_leaving_is_checked_before() -> None:
    volumes = [volume_of(1), volume_of(2, on=(1, 2, 4))]
    assert not healing.check_departure(view_of(4), volumes, {"d3"}, at_once=False)
    (blocked,) = healing.check_departure(view_of(4, d4=down(1)), volumes[:1], {"d3"}, at_once=False)
    assert blocked.name == "v1" and "d3" in blocked.device
    assert not healing.check_departure(view_of(4), volumes, {"d3"}, at_once=True)
    (blocked,) = healing.check_departure(view_of(4, d4=down(1)), volumes, {"d2"}, at_once=True)
    assert blocked.name == "v2" and "1 of its 3 replicas would be left" in blocked.text


def told(*devices: int, **changes: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """What devices say of the replicas of volume 1; ``changes``: by device."""
    row = {"whole": True, "damaged": "", "epoch": 4, "commit": 9, "last": 9}
    return {f"d{n}": {100 + n: {**row, **changes.get(f"d{n}", {})}} for n in devices}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"whole": False}, "the copy on h2 is not whole"),
        ({"damaged": "rot"}, "the copy on h2 is not whole"),
        ({"bad_blocks": 2}, "2 blocks on h2 are bad"),
        ({"epoch": 3}, "h2 may lack"),
        ({"commit": 8}, "h2 may lack"),
        ({"commit": 8, "last": 8}, "differ in length"),
    ],
)
def test_which_volumes_are_out_of_step(change: dict[str, Any], says: str) -> None:
    volume, replicas = {**volume_of(1), "epoch": 4}, told(1, 2, 3, d2=change)
    found = healing.out_of_step(volume, view_of(4), replicas)
    assert says in found if says else found == ""
    assert not healing.out_of_step(volume, view_of(4, d2=down(1)), replicas), "what is down is another matter"
    del replicas["d2"]
    assert not healing.out_of_step(volume, view_of(4), replicas), "nothing is known of it"
    assert not healing.out_of_step({**volume, "epoch": 0}, view_of(4), told(1, d1={"commit": 8}))


@pytest.mark.parametrize(("hosts", "where"), [(4, "d4"), (3, "d2")])
def test_what_a_device_has_lost_is_placed_anew(hosts: int, where: str) -> None:
    """Elsewhere, or there again."""
    volume, view, replicas = volume_of(1), view_of(hosts, d2={"used": GIB}), told(1, 2, 3)
    assert not healing.missing([volume], replicas)
    del replicas["d2"]
    assert not healing.missing([volume], replicas), "it did not answer"
    replicas["d2"] = {777: {}}
    assert healing.missing([volume], replicas) == {102}
    (move,) = decide(view, volume, missing={102}).moves
    assert (move.old, move.where.device, move.why) == (102, where, MISSING)
    assert move.text == "its device has lost it"
    wished = volume_of(1, wish={**wish_of(1, int(where[1]), 2, MISSING)})
    made = decide(view, wished, missing={102})
    assert not made.moves and not made.called_off, "that is under way, though its device is up"


def test_nothing_is_copied_from_a_minority() -> None:
    made = decide(view_of(4, d3=down(1)), volume_of(1), missing={102})
    assert not made.moves and "1 of its 3 replicas are there" in made.blocked[0].text


def test_what_was_lost_has_the_same_limits_and_goes_before_drains() -> None:
    volumes = [volume_of(n, on=(1, 2, 3)) for n in range(1, 30)]
    lost = {100 * n + 2 for n in range(1, 30)}
    made = decide(view_of(9, d1=DRAINED), *volumes, missing=lost)
    assert len(made.moves) == MOVES_MAX and {move.why for move in made.moves} == {MISSING}
    assert {each.text for each in made.blocked} == {healing.TURN}
    into = [move.where.device for move in made.moves]
    assert max(map(into.count, into)) <= healing.INTO_MAX


def test_what_moves_or_cannot_is_called_what_it_is() -> None:
    bucket = {**volume_of(1), "kind": "bucket"}
    wished = {**volume_of(3, wish=wish_of(3, 4, 2, DRAIN)), "kind": "bucket"}
    made = decide(view_of(4, d1=DRAINED), bucket, volume_of(2), wished)
    assert [each.what for each in made.moves] == ["bucket v1 group 0", "volume v2 group 0"]
    assert [each.what for each in made.called_off] == ["bucket v3 group 0"]
    (blocked,) = healing.check_departure(view_of(3), [bucket], {"d1"}, at_once=False)
    assert (blocked.kind, blocked.what) == ("bucket", "bucket v1 group 0")
