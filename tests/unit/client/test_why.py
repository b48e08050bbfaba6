"""The sentences of `moorage why`, from facts made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moorage.client.places import Moves
from moorage.client.redundancy import GOOD, UNTOLD, Copy
from moorage.client.why import Facts, about_bucket, about_device, about_host, about_volume

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


# -- buckets --------------------------------------------------------------------------------------------


def groups_of(wish: dict[str, Any] | None = None, **noted: dict[str, Any]) -> list[dict[str, Any]]:
    members = [
        {"replica": n, "device": f"d{n}", "host": f"h{n}", "lacks": 0, **noted.get(f"h{n}", {})}
        for n in (1, 2, 3)
    ]
    return [{"group": 0, "version": 1, "members": members, "wish": wish}]


def test_a_bucket_that_is_well() -> None:
    assert about_bucket("photos", groups_of(), facts_of()) == []


def test_a_copy_of_a_bucket_on_a_host_that_is_down() -> None:
    down = facts_of({"d2": DOWN}, {2: "its device is down: silent for 130 s"})
    (found,) = about_bucket("photos", groups_of(h2={"lacks": 12}), down)
    assert found.what == "bucket photos group 0: the copy on h2 does not count"
    assert "silent for 130 s" in found.because and found.for_ms == 120_000
    assert found.doing == "it is placed anew in 480 s, unless it is back before; it gets 12 extents then"
    assert "`moorage device evict d2`" in found.could
    suspect = facts_of({"d2": {**DOWN, "health": "suspect"}}, {2: "its device is suspect"})
    (found,) = about_bucket("photos", groups_of(h2={"lacks": 1000}), suspect)
    assert found.doing == "waits for h2, which gets 1000 extents or more then"
    lost = facts_of({"d2": {**DOWN, "health": "failed"}}, {2: "its device is failed"})
    (found,) = about_bucket("photos", groups_of(), lost)
    assert found.doing == "its successor is ordered within some seconds" and "placed anew" in found.could
    (found,) = about_bucket("photos", groups_of(), facts_of(states={2: "does not answer: for 3 s"}))
    assert (found.because, found.doing) == ("does not answer: for 3 s", "waits for h2")


def test_a_copy_of_a_bucket_that_lacks_something() -> None:
    (found,) = about_bucket("photos", groups_of(h2={"lacks": 3}), facts_of(states={2: "lacks 3 extents"}))
    assert found.because == "lacks 3 extents: put while it did not answer, or found to be missing"
    assert found.doing == "copying 3 extents to h2"
    away = facts_of({"d1": DOWN, "d3": DOWN}, {2: "lacks 3 extents"})
    *others, lost = about_bucket("photos", groups_of(h2={"lacks": 3}), away)
    assert others[1].doing == "waits for h1 and h3: what it lacks is there only"
    assert lost.what == "bucket photos group 0 has no majority: nothing is put there"
    assert lost.because == "1 of 3 copies are there, 2 are needed"


def test_copies_that_lack_something_take_what_is_put() -> None:
    noted = {f"h{n}": {"lacks": 1} for n in (1, 2, 3)}
    found = about_bucket(
        "photos", groups_of(**noted), facts_of(states=dict.fromkeys((1, 2, 3), "lacks 1 extent"))
    )
    assert len(found) == 3 and not any("majority" in each.what for each in found)


def test_a_copy_of_a_bucket_that_was_damaged() -> None:
    damaged = facts_of(states={2: "damaged: a page"})
    (found,) = about_bucket("photos", groups_of(), damaged)
    assert found.because == "damaged: a page" and "within half a minute" in found.doing
    (found,) = about_bucket("photos", groups_of(h2={"lacks": 2, "built": 40}), damaged)
    assert found.doing == "it is looked through, and gets what it lost from the others: 40 % done"
    bad = facts_of(states={2: "has 3 bad blocks"})
    bad = Facts(bad.view, bad.moves, {**bad.copies, 2: replace(bad.copies[2], bad_blocks=3)})
    (found,) = about_bucket("photos", groups_of(), bad)
    assert found.because == "has 3 bad blocks" and "gets what is bad from the others" in found.doing


def test_a_copy_of_a_bucket_that_is_replaced() -> None:
    wish = {"replica": 4, "device": "d4", "host": "h4", "replaces": 2, "why": "drain", "since_ms": 10_000}
    (found,) = about_bucket("photos", groups_of({**wish, "lacks": 0, "built": 25}), facts_of())
    assert found.what == "bucket photos group 0: a copy is on its way to h4" and found.because == "drain"
    assert found.doing == "its successor is made on h4 (25 % copied, about 30 s more)"
    assert found.for_ms == 10_000
    down = facts_of({"d2": DOWN}, {2: "its device is down"})
    (found,) = about_bucket("photos", groups_of({**wish, "lacks": 2, "built": 100}, h2={"lacks": 9}), down)
    assert found.doing == "its successor is made on h4 (2 extents that came meanwhile are left)"
    (found,) = about_bucket("photos", groups_of({**wish, "lacks": 0, "built": 100}), down)
    assert found.doing == "its successor is made on h4 (whole)"


def test_metadata_that_does_not_say_what_is_lacking() -> None:
    groups = groups_of({"replica": 4, "device": "d4", "host": "h4", "replaces": 2})
    for member in groups[0]["members"]:
        del member["lacks"]
    found = about_bucket("photos", groups, facts_of(states=dict.fromkeys((1, 2, 3), UNTOLD)))
    assert found[0].because == UNTOLD and found[0].could == "upgrade the hosts of its metadata group"
    assert found[1].doing == "its successor is made on h4"
