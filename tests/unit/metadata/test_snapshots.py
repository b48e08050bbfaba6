"""The commands about snapshots, clones and rollbacks, one after the other, without Raft."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.metadata import limits, records
from moorage.wire.errors import (
    Busy,
    Fenced,
    Invalid,
    InvariantViolation,
    LimitExceeded,
    NameTaken,
    NotFound,
    StaleConfiguration,
)

MIB = 1 << 20


def held(group: Any, name: str = "db", **more: Any) -> dict[str, Any]:
    """A ready volume, held by writer 7 in epoch 1."""
    attached: dict[str, Any] = group.attach(group.ready(name, **more), 7)
    return attached


def ask(group: Any, *volumes: Any, name: str = "before", request: str = "s1") -> list[dict[str, Any]]:
    wanted = [{"volume": volume["id"], "name": name} for volume in volumes]
    made: list[dict[str, Any]] = group.apply(
        "create_snapshots", request=request, wanted=wanted, created_ms=5000
    )
    return made


def holder(volume: Any, epoch: int = 1, writer: int = 7) -> dict[str, Any]:
    return {"volume": volume["id"], "epoch": epoch, "writer": writer, "now_ms": 9000}


def done(group: Any, volume: Any, *created: Any, deleted: Any = (), **who: Any) -> None:
    rows = [[entry["id"], [10 + n for n in range(len(volume["groups"]))]] for entry in created]
    group.apply("snapshots_done", created=rows, deleted=list(deleted), **holder(volume, **who))


def ready(group: Any, volume: Any, name: str = "before", **who: Any) -> dict[str, Any]:
    (entry,) = ask(group, volume, name=name, request=f"s-{name}-{group.index}")
    done(group, volume, entry, **who)
    return entry


def now(group: Any, volume: Any) -> dict[str, Any]:
    found: dict[str, Any] = records.existing_volume(group.kv, volume["id"])
    return found


def states(group: Any, *volumes: Any) -> list[list[str]]:
    return [[entry["state"] for entry in records.snapshots(now(group, volume))] for volume in volumes]


def give_up(group: Any, volume: Any, *entries: Any) -> None:
    error = records.error_record(Busy("too slow"))
    group.apply("abandon_snapshots", volume=volume["id"], ids=[each["id"] for each in entries], error=error)


def delete(group: Any, volume: Any, name: str = "before", request: str = "d1") -> Any:
    return group.apply("delete_snapshot", volume=volume["id"], snapshot=name, request=request)


def clone(group: Any, volume: Any, entry: Any, name: str = "copy", **more: Any) -> dict[str, Any]:
    parent = {"volume": volume["id"], "snapshot": entry["id"]}
    placement = [[{"device": f"d{n}", "host": f"h{n}"} for n in (4, 5, 6)]]
    fields = {"request": f"clone-{name}", "name": name, "size": 64 * MIB, "replicas": 3, "durability": "sync"}
    made: dict[str, Any] = group.apply(
        "create_clone", **{**fields, "placement": placement, "created_ms": 1, "parent": parent, **more}
    )
    return made


# -- the life of a snapshot ------------------------------------------------------------------------------


def test_volume_of_before_has_no_snapshots(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    assert "snapshots" not in volume
    shown = records.public(volume)
    assert (shown["snapshots"], shown["snapshots_version"], shown["parent"], shown["rollback"]) == (
        [],
        0,
        None,
        0,
    )


def test_snapshot_is_ready_once_its_holder_says_where(metadata_group: Any) -> None:
    volume = held(metadata_group, groups=2)
    (entry,) = ask(metadata_group, volume)
    assert entry == {
        "volume": "db",
        "id": entry["id"],
        "name": "before",
        "state": "creating",
        "size": 64 * MIB,
        "lsns": [],
        "epoch": 0,
        "set": 0,
        "put": False,
        "created_ms": 5000,
        "request": "s1",
        "children": [],
    }
    assert entry["id"] > volume["id"] and now(metadata_group, volume)["snapshots_version"] == 1
    for _ in range(2):  # it may be sent again
        done(metadata_group, volume, entry)
        (shown,) = records.public(now(metadata_group, volume))["snapshots"]
        assert (shown["state"], shown["lsns"]) == ("ready", [10, 11])
        assert "request" not in shown and now(metadata_group, volume)["snapshots_version"] == 2


def test_asked_for_again_it_is_the_same(metadata_group: Any) -> None:
    volume = held(metadata_group)
    first = ask(metadata_group, volume)
    assert ask(metadata_group, volume) == first
    done(metadata_group, volume, *first)
    (again,) = ask(metadata_group, volume)
    assert (again["id"], again["state"]) == (first[0]["id"], "ready")
    delete(metadata_group, volume)
    done(metadata_group, volume, deleted=[again["id"]])
    with pytest.raises(NotFound, match="created by this request, and deleted since"):
        ask(metadata_group, volume)
    with pytest.raises(Invalid, match="was used for create_snapshots of 'db'"):
        delete(metadata_group, volume, request="s1")


def test_what_speaks_against_a_snapshot(metadata_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    young = metadata_group.create("young")
    with pytest.raises(Busy, match="is being created"):
        ask(metadata_group, young)
    volume = held(metadata_group)
    with pytest.raises(Invalid, match="snapshot name 'A' is not accepted"):
        ask(metadata_group, volume, name="A")
    with pytest.raises(Invalid, match="each named once"):
        ask(metadata_group, volume, volume)
    with pytest.raises(NotFound, match="is gone"):
        ask(metadata_group, volume, {"id": 99})
    assert records.snapshots(now(metadata_group, volume)) == []
    (entry,) = ask(metadata_group, volume)
    with pytest.raises(NameTaken, match="has a snapshot 'before': choose another name"):
        ask(metadata_group, volume, request="s2")
    give_up(metadata_group, volume, entry)
    with pytest.raises(Busy, match="'before' of 'db' is being deleted: try again"):
        ask(metadata_group, volume, request="s2")
    monkeypatch.setattr(limits, "SNAPSHOTS_MAX", 1)
    with pytest.raises(LimitExceeded, match="has 1 snapshots, its limit: delete some"):
        ask(metadata_group, volume, name="other", request="s2")
    monkeypatch.setattr(limits, "SNAPSHOTS_AT_ONCE_MAX", 1)
    with pytest.raises(LimitExceeded, match="of 2 volumes at once: ask for 1"):
        ask(metadata_group, volume, young)


def test_only_the_current_holder_says_what_is_there(metadata_group: Any) -> None:
    volume = held(metadata_group)
    (entry,) = ask(metadata_group, volume)
    for who in ({"epoch": 2}, {"writer": 8}):
        with pytest.raises(Fenced):
            done(metadata_group, volume, entry, **who)
        with pytest.raises(Fenced):
            metadata_group.apply("snapshots_put", ids=[entry["id"]], **holder(volume, **who))
        with pytest.raises(Fenced):
            metadata_group.apply("rolled_back", **holder(volume, **who))
    assert states(metadata_group, volume) == [["creating"]]
    with pytest.raises(Invalid, match="2 lsns for the 1 groups"):
        metadata_group.apply("snapshots_done", created=[[entry["id"], [1, 2]]], deleted=[], **holder(volume))


def test_unknown_ids_are_passed_over(metadata_group: Any) -> None:
    volume = held(metadata_group)
    entry = ready(metadata_group, volume)
    before = now(metadata_group, volume)
    metadata_group.apply("snapshots_done", created=[[999, [1]]], deleted=[entry["id"], 998], **holder(volume))
    metadata_group.apply("snapshots_put", ids=[997], **holder(volume))
    give_up(metadata_group, volume, entry, {"id": 996})
    metadata_group.apply("abandon_snapshots", volume=12345, ids=[1], error={})
    assert now(metadata_group, volume) == before


def test_deleted_one_goes_when_its_holder_says_so(metadata_group: Any) -> None:
    volume = held(metadata_group)
    first, second = (ready(metadata_group, volume, name) for name in ("a", "b"))
    with pytest.raises(NotFound, match="has no snapshot 'aa': did you mean a"):
        delete(metadata_group, volume, "aa")
    with pytest.raises(NotFound, match="has no snapshot 'xyz': 2 are there"):
        delete(metadata_group, volume, "xyz")
    for request in ("d1", "d1", "d2"):
        assert delete(metadata_group, volume, "a", request)["id"] == first["id"]
    assert states(metadata_group, volume) == [["deleting", "ready"]]
    version = now(metadata_group, volume)["snapshots_version"]
    for _ in range(2):
        done(metadata_group, volume, deleted=[first["id"], second["id"]])  # the second is not deleted
        assert states(metadata_group, volume) == [["ready"]]
    assert now(metadata_group, volume)["snapshots_version"] == version + 1
    assert delete(metadata_group, volume, "a", "d1") is None
    third = ready(metadata_group, volume, "a")
    assert delete(metadata_group, volume, "a", "d1") is None  # late: that one was meant
    assert [entry["id"] for entry in now(metadata_group, volume)["snapshots"]] == [second["id"], third["id"]]


def test_one_that_is_created_is_not_deleted(metadata_group: Any) -> None:
    volume = held(metadata_group)
    ask(metadata_group, volume)
    with pytest.raises(Busy, match="'before' of 'db' is being created"):
        delete(metadata_group, volume)


def test_given_up_it_stays_so_and_who_asked_is_told(metadata_group: Any) -> None:
    volume = held(metadata_group)
    (entry,) = ask(metadata_group, volume)
    for _ in range(2):
        give_up(metadata_group, volume, entry)
    done(metadata_group, volume, entry)  # it was under way
    assert states(metadata_group, volume) == [["deleting"]]
    with pytest.raises(Busy, match="too slow"):
        ask(metadata_group, volume)
    done(metadata_group, volume, deleted=[entry["id"]])
    assert states(metadata_group, volume) == [[]]
    ready(metadata_group, volume)


def test_next_holder_goes_on(metadata_group: Any) -> None:
    volume = held(metadata_group)
    (entry,) = ask(metadata_group, volume)
    metadata_group.attach(now(metadata_group, volume), 8)
    done(metadata_group, volume, entry, epoch=2, writer=8)
    assert states(metadata_group, volume) == [["ready"]]


def test_volume_with_snapshots_is_not_deleted(metadata_group: Any) -> None:
    volume = held(metadata_group)
    ready(metadata_group, volume, "a")
    ask(metadata_group, volume, name="b", request="s2")
    fields = {"volume": volume["id"], "epoch": 1, "name": "db", "request": "", "now_ms": 1}
    with pytest.raises(Busy, match="has 2 snapshots: delete them first"):
        metadata_group.apply("delete", **fields)
    give_up(metadata_group, volume, now(metadata_group, volume)["snapshots"][1])
    with pytest.raises(Busy, match="has 1 snapshot: delete it first"):
        metadata_group.apply("delete", **fields)
    delete(metadata_group, volume, "a")
    assert metadata_group.apply("delete", **fields)["state"] == "deleting"  # with its data they go, too
    assert delete(metadata_group, volume, "a") is None
    with pytest.raises(NotFound, match="was deleted"):
        delete(metadata_group, volume, "a", "d9")


# -- sets ------------------------------------------------------------------------------------------------


def test_set_is_ready_together(metadata_group: Any) -> None:
    first, second, third = (held(metadata_group, name) for name in ("a", "b", "c"))
    made = ask(metadata_group, first, second, third)
    (number,) = {entry["set"] for entry in made}
    assert number and records.snapshot_set(metadata_group.kv, number) == [
        first["id"],
        second["id"],
        third["id"],
    ]
    done(metadata_group, second, made[1])
    for _ in range(2):
        done(metadata_group, first, made[0])
        assert now(metadata_group, first)["snapshots_version"] == 2
    assert states(metadata_group, first, second, third) == [["creating"]] * 3
    done(metadata_group, third, made[2])
    assert states(metadata_group, first, second, third) == [["ready"]] * 3
    assert records.snapshot_set(metadata_group.kv, number) == []
    give_up(metadata_group, first, made[0])
    assert states(metadata_group, first, second, third) == [["ready"]] * 3
    delete(metadata_group, first)  # each for itself
    assert states(metadata_group, first, second, third) == [["deleting"], ["ready"], ["ready"]]


def test_all_holders_of_a_set_hear_of_a_put(metadata_group: Any) -> None:
    first, second = (held(metadata_group, name) for name in ("a", "b"))
    made = ask(metadata_group, first, second)
    for _ in range(2):
        metadata_group.apply("snapshots_put", ids=[made[0]["id"]], **holder(first))
        volumes = [now(metadata_group, each) for each in (first, second)]
        assert [volume["snapshots_version"] for volume in volumes] == [2, 2]
        assert [volume["snapshots"][0]["put"] for volume in volumes] == [True, False]


def test_set_is_given_up_together(metadata_group: Any) -> None:
    first, second = (held(metadata_group, name) for name in ("a", "b"))
    made = ask(metadata_group, first, second)
    done(metadata_group, first, made[0])
    give_up(metadata_group, second, made[1])
    assert states(metadata_group, first, second) == [["deleting"]] * 2
    done(metadata_group, second, made[1])
    assert states(metadata_group, first, second) == [["deleting"]] * 2
    for volume, entry in zip((first, second), made, strict=True):
        done(metadata_group, volume, deleted=[entry["id"]])
    assert states(metadata_group, first, second) == [[], []]
    with pytest.raises(Busy, match="too slow"):
        ask(metadata_group, first, second)


def test_set_is_asked_for_of_all_or_none(metadata_group: Any) -> None:
    first, second = (held(metadata_group, name) for name in ("a", "b"))
    ready(metadata_group, second)
    before = metadata_group.dump()
    with pytest.raises(NameTaken, match="volume 'b' has a snapshot 'before'"):
        ask(metadata_group, first, second)
    assert metadata_group.dump() == before


# -- clones ----------------------------------------------------------------------------------------------


def test_clone_is_a_child_of_its_parent(metadata_group: Any) -> None:
    volume = held(metadata_group)
    entry = ready(metadata_group, volume)
    for _ in range(2):
        made = clone(metadata_group, volume, entry)
        assert made["parent"] == {
            "volume": volume["id"],
            "name": "db",
            "snapshot": entry["id"],
            "snapshot_name": "before",
            "size": 64 * MIB,
        }
        assert now(metadata_group, volume)["snapshots"][0]["children"] == [made["id"]]
    with pytest.raises(Busy, match="'before' of volume 'db' is the parent of copy: delete what was cloned"):
        delete(metadata_group, volume)
    metadata_group.apply("ready", volume=made["id"])
    metadata_group.apply("delete", volume=made["id"], epoch=0, name="copy", request="", now_ms=1)
    assert now(metadata_group, volume)["snapshots"][0]["children"] == []
    delete(metadata_group, volume)
    done(metadata_group, volume, deleted=[entry["id"]])


def test_clone_that_is_not_created_leaves_its_parent(metadata_group: Any) -> None:
    volume = held(metadata_group)
    entry = ready(metadata_group, volume)
    made = clone(metadata_group, volume, entry)
    for _ in range(2):
        metadata_group.apply("abandon", volume=made["id"], error={}, now_ms=1)
        assert now(metadata_group, volume)["snapshots"][0]["children"] == []


def test_what_speaks_against_a_clone(metadata_group: Any) -> None:
    volume = held(metadata_group)
    (entry,) = ask(metadata_group, volume)
    with pytest.raises(Busy, match="'before' of volume 'db' is creating: only a ready one"):
        clone(metadata_group, volume, entry)
    done(metadata_group, volume, entry)
    with pytest.raises(Invalid, match=f"db@before has at least its {64 * MIB} bytes: {32 * MIB} are too few"):
        clone(metadata_group, volume, entry, size=32 * MIB)
    metadata_group.apply("resize", volume=volume["id"], size=128 * MIB)
    clone(metadata_group, volume, entry)  # the size that it had then is enough
    with pytest.raises(NotFound, match="no such snapshot any more"):
        clone(metadata_group, volume, {"id": 999}, "other")
    with pytest.raises(NotFound, match="is gone"):
        clone(metadata_group, {"id": 999}, entry, "other")


def test_clone_has_ceilings_of_its_own(metadata_group: Any) -> None:
    volume = held(metadata_group)
    made = clone(metadata_group, volume, ready(metadata_group, volume), iops=5, principal="a", size=128 * MIB)
    assert (made["iops"], made["principal"], made["size"]) == (5, "a", 128 * MIB)


# -- rollbacks -------------------------------------------------------------------------------------------


def roll_back(group: Any, volume: Any, writer: int, name: str = "before") -> dict[str, Any]:
    current = now(group, volume)
    attached: dict[str, Any] = group.apply(
        "attach_to_roll_back",
        volume=volume["id"],
        epoch=current["epoch"],
        writer=writer,
        holder={"host": "h1", "pid": writer, "program": "moorage"},
        recovers=False,
        succeeds=[],
        rolls_back=name,
        now_ms=1,
    )
    return attached


def test_rollback_is_finished_before_anything_else(metadata_group: Any) -> None:
    volume = held(metadata_group)
    entry = ready(metadata_group, volume)
    ready(metadata_group, volume, "other")
    attached = roll_back(metadata_group, volume, 8)
    assert (attached["epoch"], attached["rollback"]) == (2, entry["id"])
    message = "db is being rolled back to snapshot before: finish with `moorage snapshot rollback db@before`"
    with pytest.raises(Busy, match=message):
        metadata_group.attach(now(metadata_group, volume), 9)
    with pytest.raises(Busy, match=message):
        roll_back(metadata_group, volume, 9, "other")
    with pytest.raises(Busy, match=message):
        ask(metadata_group, volume, name="new")
    with pytest.raises(Busy, match=message):
        delete(metadata_group, volume)
    with pytest.raises(Busy, match="snapshots: delete them"):
        metadata_group.apply("delete", volume=volume["id"], epoch=2, name="db", request="", now_ms=1)
    assert metadata_group.attach(now(metadata_group, volume), 10, recovers=True)["rollback"] == entry["id"]
    with pytest.raises(Fenced):
        metadata_group.apply("rolled_back", **holder(volume, epoch=2, writer=8))
    assert roll_back(metadata_group, volume, 11)["epoch"] == 4  # another one goes on
    for _ in range(2):
        metadata_group.apply("rolled_back", **holder(volume, epoch=4, writer=11))
        assert now(metadata_group, volume)["rollback"] == 0
    assert metadata_group.attach(now(metadata_group, volume), 12)["epoch"] == 5
    delete(metadata_group, volume)


def test_rollback_begins_with_a_ready_snapshot_and_the_epoch(metadata_group: Any) -> None:
    volume = held(metadata_group)
    (entry,) = ask(metadata_group, volume)
    with pytest.raises(Busy, match="is creating: only a ready one"):
        roll_back(metadata_group, volume, 8)
    with pytest.raises(NotFound, match="has no snapshot 'nothere'"):
        roll_back(metadata_group, volume, 8, "nothere")
    done(metadata_group, volume, entry)
    fields = {"holder": {"host": "h", "pid": 1, "program": "p"}, "succeeds": [], "recovers": False}
    with pytest.raises(StaleConfiguration):
        metadata_group.apply(
            "attach_to_roll_back",
            volume=volume["id"],
            epoch=0,
            writer=8,
            rolls_back="before",
            now_ms=1,
            **fields,
        )
    assert now(metadata_group, volume).get("rollback", 0) == 0
    assert roll_back(metadata_group, volume, 8)["epoch"] == 2
    assert roll_back(metadata_group, volume, 8)["epoch"] == 2  # its answer was lost


# -- who is told -----------------------------------------------------------------------------------------


def test_leader_hears_of_work_and_waiters_of_changes(metadata_group: Any) -> None:
    work: list[int] = []
    changed: list[int] = []
    volume = held(metadata_group)
    metadata_group.machine._on_work, metadata_group.machine._on_change = work.append, changed.append
    (entry,) = ask(metadata_group, volume)
    assert (work, changed) == ([volume["id"]], [volume["id"]])
    metadata_group.apply("detach", **holder(volume))
    assert (work, changed) == ([volume["id"]] * 2, [volume["id"]] * 2)  # nobody holds it: it is led
    metadata_group.attach(now(metadata_group, volume), 8)
    done(metadata_group, volume, entry, epoch=2, writer=8)
    assert (work, changed) == ([volume["id"]] * 3, [volume["id"]] * 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lsns", []), ("children", [5]), ("set", 77)],
)
def test_what_is_wrong_is_found(metadata_group: Any, field: str, value: Any) -> None:
    volume = held(metadata_group)
    ready(metadata_group, volume)
    other = held(metadata_group, "other")
    (entry,) = ask(metadata_group, other)
    damaged = now(metadata_group, volume if field != "set" else other)
    damaged["snapshots"][0][field] = value
    metadata_group.kv.put(records.volume_key(damaged["id"]), damaged)
    metadata_group.kv.commit()
    with pytest.raises(InvariantViolation):
        metadata_group.apply("snapshots_put", ids=[], **holder(volume))
    assert entry["state"] == "creating"
