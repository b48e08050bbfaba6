"""The sentences of `moorage why`, from facts made by hand."""

from __future__ import annotations

from typing import Any

from moorage.client.places import Moves
from moorage.client.redundancy import GOOD, Copy
from moorage.client.why import Facts, about_device, about_host, about_volume

NO_MOVES = {
    "left": {},
    "moves": [],
    "blocked": [],
    "moves_count": 0,
    "blocked_count": 0,
    "unevenness": [],
}


def facts_of(
    devices: dict[str, dict[str, Any]] | None = None,
    states: dict[int, str] | None = None,
    learners: dict[int, dict[str, Any]] | None = None,
    *,
    size: int = 0,
    **moves: Any,
) -> Facts:
    row = {"health": "up", "reason": "", "since_ms": 5000, "capacity": 100, "used": 1, "drain": None}
    rows = {f"d{n}": {"host": f"h{n}", **row, **(devices or {}).get(f"d{n}", {})} for n in range(1, 6)}
    copies = {n: Copy(0, n, f"h{n}", f"d{n}", (states or {}).get(n, GOOD), 0, size) for n in (1, 2, 3)}
    view = {"hosts": {f"h{n}": {"health": "up", "reason": ""} for n in range(1, 7)}, "devices": rows}
    told = Moves(**{**NO_MOVES, "repair_after_ms": 600_000, **moves})
    return Facts(view, told, copies, learners or {}, now_ms=20_000)


def volume_of(wish: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    members = [{"replica": n, "device": f"d{n}", "host": f"h{n}"} for n in (1, 2, 3)]
    group = {"group": 0, "version": 1, "members": members, "wish": wish}
    about = {"name": "db", "state": "ready", "holder": None, "holder_alive": False, "groups": [group]}
    return {**about, **change}


DOWN = {"health": "down", "reason": "silent for 130 s", "since_ms": 120_000}


def test_all_is_well() -> None:
    assert about_volume(volume_of(), facts_of()) == []
    assert about_host("h1", facts_of()) == []


def test_a_copy_on_a_host_that_is_down() -> None:
    (found,) = about_volume(volume_of(), facts_of({"d2": DOWN}))
    assert found.what == "volume db group 0: the copy on h2 does not count"
    assert "silent for 130 s" in found.because and found.for_ms == 120_000
    assert found.doing == "it is placed anew in 480 s, unless it is back before"
    assert "`moorage device evict d2`" in found.could


def test_its_successor_is_on_the_way_or_cannot_be_placed() -> None:
    wish = {"replica": 4, "device": "d4", "host": "h4", "replaces": 2, "why": "down", "since_ms": 0}
    led_by = {"host": "h9", "program": "fio"}
    facts = facts_of(
        {"d2": DOWN}, learners={4: {"whole": False}}, moves=[{"volume": "db", "group": 0, "led_by": led_by}]
    )
    (found,) = about_volume(volume_of(wish), facts)
    assert found.doing == "its successor is made on h4 (being copied), led by fio on h9"
    facts = facts_of({"d2": DOWN}, learners={4: {"whole": False, "bytes": 64 << 20}}, size=256 << 20)
    (found,) = about_volume(volume_of(wish), facts)
    assert found.doing == "its successor is made on h4 (25 % of 256 MiB copied, about 60 s more)"
    (found,) = about_volume(volume_of({**wish, "why": "drain"}), facts_of())
    assert found.what.endswith("a copy is on its way to h4") and found.because == "drain"
    blocked = [{"name": "db", "group": 0, "device": "d2", "host": "h2", "text": "no host is up"}]
    (found,) = about_volume(volume_of(), facts_of({"d2": DOWN}, blocked=blocked))
    assert found.doing == "its successor cannot be placed: no host is up"


def test_no_majority() -> None:
    *copies, found = about_volume(volume_of(), facts_of({"d1": DOWN, "d2": DOWN}))
    assert len(copies) == 2
    assert "has no majority" in found.what and found.because == "1 of 3 copies are there, 2 are needed"


def test_a_copy_that_redundancy_does_not_count_is_told_of() -> None:
    for state in ("has 3 bad blocks", "withheld: it may have lost a promise", "does not answer: for 3 s"):
        (found,) = about_volume(volume_of(), facts_of(states={2: state}))
        assert found.what == "volume db group 0: the copy on h2 does not count" and found.because == state
        assert found.doing == "whoever leads the volume brings it up to date"
        assert "look at the log of h2" in found.could


def test_a_holder_that_is_gone() -> None:
    holder = {"program": "fio", "pid": 3, "host": "h9", "recovers": False}
    (found,) = about_volume(volume_of(holder=holder), facts_of())
    assert (
        "has a holder that metadata does not hear of" in found.what and "fio (pid 3) on h9" in found.because
    )
    assert not about_volume(volume_of(holder=holder, holder_alive=True), facts_of())


def test_devices_that_are_drained_or_full_or_down() -> None:
    drained = {"drain": {"by": "me", "to": "", "at_ms": 0}}
    (found,) = about_device("d1", facts_of({"d1": drained}, left={"d1": 4}))
    assert found.doing == "4 replicas are left, 0 are on their way"
    (found,) = about_device("d1", facts_of({"d1": drained}))
    assert found.doing == "it is empty" and "take it away" in found.could
    (found,) = about_device("d1", facts_of({"d1": {"used": 95}}))
    assert found.because == "95 % of its capacity are used"
    (found,) = about_host("h1", facts_of({"d1": DOWN}, left={"d1": 4}))
    assert found.doing == "its 4 replicas are placed anew when it has been down for 600 s"
    (found,) = about_host("h6", facts_of())
    assert found.what == "host h6 has no device"


def test_evening_out_that_is_paused() -> None:
    facts = facts_of(unevenness=["paused by me"])
    facts.view["balance"] = {"paused": True, "by": "me", "at_ms": 15_000}
    for found in (about_device("d1", facts), about_host("h1", facts)):
        assert [(each.because, each.for_ms) for each in found] == [
            ("me has paused it, and devices are not filled alike", 5_000)
        ]
    assert not about_device("d1", facts_of())


def test_snapshots_that_wait_and_a_rollback() -> None:
    entries = [
        {"id": 5, "name": "old", "state": "ready", "created_ms": 0},
        {"id": 6, "name": "new", "state": "creating", "created_ms": 17_000},
        {"id": 7, "name": "gone", "state": "deleting", "created_ms": 0},
    ]
    creating, deleting, back = about_volume(volume_of(snapshots=entries, rollback=5), facts_of())
    assert (creating.what, creating.for_ms) == ("snapshot db@new is being created", 3_000)
    assert creating.because.startswith("metadata's repairer") and "db@gone" in deleting.what
    assert back.could == "`moorage snapshot rollback db@old` completes it"
    assert back.doing == "nothing: who began it has ended"
    holder = {"program": "fio", "pid": 7, "host": "h9", "recovers": False}
    held = volume_of(snapshots=entries[:1], rollback=5, holder=holder, holder_alive=True)
    (back,) = about_volume(held, facts_of())
    assert back.doing == "fio (pid 7) on h9 is at it"
