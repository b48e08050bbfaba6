"""The commands of the metadata state, one after the other, without Raft."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.metadata import limits, records
from moorage.quorum.record import EPOCH_MAX
from moorage.wire.errors import (
    Busy,
    Fenced,
    Invalid,
    LimitExceeded,
    NameTaken,
    NoSpace,
    NotFound,
    StaleConfiguration,
    VersionMismatch,
)

MIB = 1 << 20


def test_created_volume_has_ids_of_its_group(metadata_group: Any) -> None:
    volume = metadata_group.create(groups=2)
    assert volume["state"] == "creating"
    assert volume["epoch"] == 0
    assert volume["holder"] is None
    assert volume["id"] >> limits.ID_COUNTER_BITS == 1
    replicas = [member["replica"] for group in volume["groups"] for member in group["members"]]
    assert len(set(replicas)) == 6
    assert all(replica >> limits.ID_COUNTER_BITS == 1 for replica in replicas)
    assert [group["group"] for group in volume["groups"]] == [0, 1]
    assert {group["version"] for group in volume["groups"]} == {1}


def test_ids_are_never_given_again_after_a_delete(metadata_group: Any) -> None:
    first = metadata_group.ready("a")
    gone(metadata_group, first)
    second = metadata_group.ready("a")
    ids = {first["id"], *replicas_of(first)}
    assert ids.isdisjoint({second["id"], *replicas_of(second)})
    assert second["id"] > max(ids)


def test_create_sent_again_gives_the_same_volume(metadata_group: Any) -> None:
    first = metadata_group.create(request="r1")
    metadata_group.apply("ready", volume=first["id"])
    again = metadata_group.create(request="r1")
    assert again["id"] == first["id"]
    assert again["state"] == "ready"
    assert metadata_group.kv.get(records.COUNTER_VOLUMES) == 1


def test_create_of_a_taken_name(metadata_group: Any) -> None:
    metadata_group.ready("db")
    before = metadata_group.dump()
    with pytest.raises(NameTaken, match="'db' is taken: choose another, or delete"):
        metadata_group.create("db")
    assert metadata_group.dump() == before


def test_request_id_of_another_command_is_refused(metadata_group: Any) -> None:
    metadata_group.create("db", request="r1")
    with pytest.raises(Invalid, match="was used for create of 'db'"):
        metadata_group.create("other", request="r1")


def test_create_checks_the_placement(metadata_group: Any) -> None:
    twice = [[{"device": "d1", "host": "h1"}, {"device": "d2", "host": "h1"}, {"device": "d3", "host": "h3"}]]
    with pytest.raises(Invalid, match="2 distinct hosts, 3 are needed"):
        metadata_group.create(placement=twice)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Db"),
        ("size", MIB + 1),
        ("size", 0),
        ("replicas", 2),
        ("durability", "none"),
        ("placement", []),
    ],
)
def test_create_validates_what_the_leader_sent(metadata_group: Any, field: str, value: Any) -> None:
    with pytest.raises(Invalid):
        metadata_group.create(**{field: value})
    assert metadata_group.dump() == []


def test_number_of_volumes_is_limited(metadata_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VOLUMES_PER_GROUP_MAX", 2)
    metadata_group.create("a")
    metadata_group.create("b")
    with pytest.raises(LimitExceeded, match="holds 2 volumes, its limit"):
        metadata_group.create("c")


def test_ids_end_cleanly(metadata_group: Any) -> None:
    metadata_group.kv.put(records.COUNTER_ID, limits.ID_COUNTER_MAX - 4)
    metadata_group.kv.commit()
    volume = metadata_group.create("a")  # one volume and three replicas
    assert max(replicas_of(volume)) & limits.ID_COUNTER_MAX == limits.ID_COUNTER_MAX
    with pytest.raises(LimitExceeded, match="has given out all its ids"):
        metadata_group.create("b")


def test_abandoned_creation_is_told_to_its_creator_and_dropped(metadata_group: Any) -> None:
    volume = metadata_group.create(request="r1")
    error = records.error_record(NoSpace("h3 is full", room=5))
    for _ in range(2):  # a task may send it again
        metadata_group.apply("abandon", volume=volume["id"], error=error, now_ms=5)
    assert [replica for replica, _, _ in records.drops(metadata_group.kv, volume["id"])] == replicas_of(
        volume
    )
    with pytest.raises(NoSpace, match="h3 is full") as caught:
        metadata_group.create(request="r1")
    assert caught.value.details == {"room": 5}
    with pytest.raises(NotFound, match="given up"):
        metadata_group.apply("ready", volume=volume["id"])


def test_ready_volume_cannot_be_abandoned(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    with pytest.raises(Invalid, match="delete it instead"):
        metadata_group.apply("abandon", volume=volume["id"], error={}, now_ms=5)


# -- attach, detach ----------------------------------------------------------------------------------------


def test_attach_raises_the_epoch_and_names_the_holder(metadata_group: Any) -> None:
    volume = metadata_group.attach(metadata_group.ready(), writer=7)
    assert volume["epoch"] == 1
    holder = {"host": "h1", "pid": 7, "program": "fio", "recovers": False, "writer": 7, "since_ms": 2007}
    assert volume["holder"] == holder


def test_attach_sent_again_gives_the_same_epoch(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    assert metadata_group.attach(volume, writer=7)["epoch"] == 1
    assert metadata_group.attach(volume, writer=7)["epoch"] == 1


def test_attach_by_another_writer_takes_a_new_epoch_only_by_compare_and_set(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    with pytest.raises(StaleConfiguration, match=r"epoch 1, taken by fio on h1 \(pid 7\), not at 0 any more"):
        metadata_group.attach(volume, writer=8, epoch=0)
    assert metadata_group.attach(volume, writer=8, epoch=1)["epoch"] == 2


def test_writer_that_detached_cannot_come_back_under_its_old_id(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    metadata_group.apply("detach", volume=volume["id"], epoch=1, writer=7, now_ms=0)
    with pytest.raises(Fenced, match="attach again with a new writer id"):
        metadata_group.attach(volume, writer=7, epoch=1)


def test_attach_that_comes_again_after_a_takeover_fences_nobody(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    metadata_group.attach(volume, writer=8, epoch=1)
    with pytest.raises(Fenced, match="attach again with a new writer id"):
        metadata_group.attach(volume, writer=7, epoch=2)
    found = records.volume_by_id(metadata_group.kv, volume["id"])
    assert (found["epoch"], found["holder"]["writer"]) == (2, 8)


def test_only_the_last_writers_are_remembered(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    for epoch in range(limits.WRITERS_KEPT + 1):
        metadata_group.attach(volume, writer=100 + epoch, epoch=epoch)
    writers = records.volume_by_id(metadata_group.kv, volume["id"])["writers"]
    assert writers == list(range(101, 101 + limits.WRITERS_KEPT))


def test_a_next_life_goes_on_when_nobody_else_came_to_write(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    assert metadata_group.attach(volume, writer=8, epoch=1, succeeds=[6, 7])["epoch"] == 2
    metadata_group.apply("detach", volume=volume["id"], epoch=2, writer=8, now_ms=0)
    assert metadata_group.attach(volume, writer=9, epoch=2, succeeds=[8])["epoch"] == 3
    metadata_group.attach(volume, writer=10, epoch=3, recovers=True)  # writes nothing of its own
    assert metadata_group.attach(volume, writer=11, epoch=4, succeeds=[8, 9])["epoch"] == 5


def test_a_next_life_comes_too_late_when_others_may_have_written(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    metadata_group.attach(volume, writer=8, epoch=1)
    with pytest.raises(Fenced, match=r"taken over by fio on h1 \(pid 8\)"):
        metadata_group.attach(volume, writer=9, epoch=2, succeeds=[7])
    metadata_group.apply("detach", volume=volume["id"], epoch=2, writer=8, now_ms=0)
    with pytest.raises(Fenced, match="may have been written"):
        metadata_group.attach(volume, writer=9, epoch=2, succeeds=[7])
    again = metadata_group.ready("db2")
    with pytest.raises(Fenced):  # another volume, which never had that writer
        metadata_group.attach(again, writer=9, succeeds=[7])


def test_volumes_of_the_first_builds_have_no_owner(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    found = records.volume_by_id(metadata_group.kv, volume["id"])
    del found["owner"]
    metadata_group.kv.put(records.volume_key(volume["id"]), found)
    with pytest.raises(Fenced):
        metadata_group.attach(volume, writer=9, epoch=1, succeeds=[8])
    assert metadata_group.attach(volume, writer=9, epoch=1, succeeds=[7])["epoch"] == 2


def test_only_the_holder_notes_the_file_system(metadata_group: Any) -> None:
    volume = metadata_group.ready(fs={"type": "xfs", "state": "new"})
    assert volume["fs"] == {"type": "xfs", "state": "new"}
    metadata_group.attach(volume, writer=7)
    about = {"volume": volume["id"], "epoch": 1, "now_ms": 0}
    noted = metadata_group.apply("note_fs", writer=7, fs={"type": "ext4", "state": "formatting"}, **about)
    assert noted["fs"] == {"type": "ext4", "state": "formatting"}
    with pytest.raises(Fenced):
        metadata_group.apply("note_fs", writer=8, fs={"type": "ext4", "state": "ready"}, **about)
    for wrong in ({"type": "ntfs", "state": "ready"}, {"type": "ext4"}, "ext4"):
        with pytest.raises(Invalid, match="is not accepted"):
            metadata_group.apply("note_fs", writer=7, fs=wrong, **about)
    assert records.volume_by_id(metadata_group.kv, volume["id"])["fs"]["state"] == "formatting"


def test_ceilings_and_principal(metadata_group: Any) -> None:
    volume = metadata_group.ready(iops=500, principal="team-a")
    assert (volume["iops"], volume["principal"]) == (500, "team-a")
    plain = metadata_group.ready("plain")
    assert not {"iops", "bw", "principal"} & plain.keys(), "as commands of before leave it"
    assert records.public(plain) | {"iops": 0, "bw": 0, "principal": "default"} == records.public(plain)
    changed = metadata_group.apply("set_ceilings", volume=plain["id"], iops=None, bw=1 << 20)
    assert (records.public(changed)["iops"], changed["bw"]) == (0, 1 << 20)
    changed = metadata_group.apply("set_ceilings", volume=plain["id"], iops=7, bw=0)
    assert (changed["iops"], changed["bw"]) == (7, 0)
    before = metadata_group.dump()
    for wrong, error in (
        ({"iops": -1}, LimitExceeded),
        ({"iops": limits.IOPS_MAX + 1}, LimitExceeded),
        ({"iops": True}, Invalid),
        ({"bw": 50}, LimitExceeded),
        ({"bw": "50M"}, Invalid),
    ):
        with pytest.raises(error):
            metadata_group.apply("set_ceilings", volume=plain["id"], **{"iops": None, "bw": None, **wrong})
        with pytest.raises(error):
            metadata_group.create("other", **wrong)
    with pytest.raises(Invalid, match="principal 'A B' is not accepted"):
        metadata_group.create("other", principal="A B")
    assert metadata_group.dump() == before
    with pytest.raises(Busy, match="being created"):
        metadata_group.apply("set_ceilings", volume=metadata_group.create("new")["id"], iops=1, bw=None)


def test_attach_needs_a_ready_volume(metadata_group: Any) -> None:
    volume = metadata_group.create()
    with pytest.raises(Busy, match="being created"):
        metadata_group.attach(volume, writer=7)
    metadata_group.apply("ready", volume=volume["id"])
    delete(metadata_group, volume)
    with pytest.raises(NotFound, match="was deleted"):
        metadata_group.attach(volume, writer=7, epoch=1)


def test_epochs_end_cleanly(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.kv.put(records.volume_key(volume["id"]), {**volume, "epoch": EPOCH_MAX - 1})
    metadata_group.kv.commit()
    assert metadata_group.attach(volume, writer=7, epoch=EPOCH_MAX - 1)["epoch"] == EPOCH_MAX
    with pytest.raises(LimitExceeded, match="used all its epochs"):
        metadata_group.attach(volume, writer=8, epoch=EPOCH_MAX)


def test_detach_ends_the_holding_and_may_be_sent_again(metadata_group: Any) -> None:
    volume = metadata_group.attach(metadata_group.ready(), writer=7)
    for _ in range(2):
        after = metadata_group.apply("detach", volume=volume["id"], epoch=1, writer=7, now_ms=0)
        assert (after["holder"], after["epoch"]) == (None, 1)


def test_detach_of_who_was_fenced_names_the_new_holder(metadata_group: Any) -> None:
    volume = metadata_group.attach(metadata_group.ready(), writer=7)
    metadata_group.attach(volume, writer=8)
    with pytest.raises(
        Fenced, match=r"taken over by fio on h1 \(pid 8\) 3\.0 s ago \(epoch 2, yours was 1\)"
    ):
        metadata_group.apply("detach", volume=volume["id"], epoch=1, writer=7, now_ms=5008)
    assert records.volume_by_id(metadata_group.kv, volume["id"])["holder"]["writer"] == 8


# -- resize, delete ------------------------------------------------------------------------------------------


def test_resize_goes_up_only(metadata_group: Any) -> None:
    volume = metadata_group.ready(size=64 * MIB)
    for _ in range(2):
        assert metadata_group.apply("resize", volume=volume["id"], size=65 * MIB)["size"] == 65 * MIB
    with pytest.raises(Invalid, match="cannot shrink"):
        metadata_group.apply("resize", volume=volume["id"], size=64 * MIB)
    with pytest.raises(LimitExceeded):
        metadata_group.apply("resize", volume=volume["id"], size=limits.SIZE_MAX + 4096)
    assert (
        metadata_group.apply("resize", volume=volume["id"], size=limits.SIZE_MAX)["size"] == limits.SIZE_MAX
    )


def test_delete_raises_the_epoch_and_ends_the_holder(metadata_group: Any) -> None:
    volume = metadata_group.attach(metadata_group.ready(), writer=7)
    deleted = delete(metadata_group, volume)
    assert (deleted["epoch"], deleted["holder"], deleted["state"]) == (2, None, "deleting")


def test_delete_by_compare_and_set_on_the_epoch(metadata_group: Any) -> None:
    volume = metadata_group.ready()
    metadata_group.attach(volume, writer=7)
    with pytest.raises(StaleConfiguration):
        delete(metadata_group, volume)  # judged free at epoch 0, attached since


def test_name_is_taken_until_it_is_released(metadata_group: Any) -> None:
    volume = metadata_group.ready("db")
    delete(metadata_group, volume)
    with pytest.raises(Busy, match="being deleted"):
        metadata_group.create("db")
    for _ in range(2):
        metadata_group.apply("released", volume=volume["id"])
    other = metadata_group.ready("db")
    assert records.volume_by_name(metadata_group.kv, "db")["id"] == other["id"]
    # the first one's replicas are still known as to be dropped, and do not touch the second volume
    metadata_group.apply("dropped", volume=volume["id"], replicas=replicas_of(volume))
    assert records.volume_by_id(metadata_group.kv, volume["id"]) is None
    assert records.volume_by_name(metadata_group.kv, "db")["id"] == other["id"]


def test_volume_is_forgotten_when_all_is_dropped_and_released_in_any_order(metadata_group: Any) -> None:
    for order in (("dropped", "released"), ("released", "dropped")):
        volume = metadata_group.ready("db")
        delete(metadata_group, volume)
        for step in order:
            assert records.volume_by_id(metadata_group.kv, volume["id"]) is not None
            more = {"replicas": replicas_of(volume)} if step == "dropped" else {}
            metadata_group.apply(step, volume=volume["id"], **more)
        assert records.volume_by_id(metadata_group.kv, volume["id"]) is None
        assert metadata_group.kv.get(records.COUNTER_VOLUMES) == 0
        assert records.provisioned(metadata_group.kv) == {}


def test_delete_sent_again_is_answered_even_when_all_is_gone(metadata_group: Any) -> None:
    volume = metadata_group.ready("db")
    for _ in range(2):
        assert delete(metadata_group, volume, request="d1")["state"] == "deleting"
    metadata_group.apply("released", volume=volume["id"])
    metadata_group.apply("dropped", volume=volume["id"], replicas=replicas_of(volume))
    metadata_group.ready("db")  # the name is used again: the retry must not delete this one
    again = metadata_group.apply("delete", volume=0, epoch=0, request="d1", name="db", now_ms=0)
    assert (again["id"], again["released"]) == (volume["id"], True)
    assert records.volume_by_name(metadata_group.kv, "db")["state"] == "ready"


def test_volume_that_is_being_created_cannot_be_deleted(metadata_group: Any) -> None:
    with pytest.raises(Busy, match="being created"):
        delete(metadata_group, metadata_group.create())


def test_unknown_volume_names_those_that_look_alike(metadata_group: Any) -> None:
    metadata_group.ready("database")
    with pytest.raises(NotFound, match=r"no volume 'databsae': did you mean database\?"):
        records.volume_by_name(metadata_group.kv, "databsae")
    with pytest.raises(NotFound, match="volume list"):
        records.volume_by_name(metadata_group.kv, "zzz")


def test_an_unknown_command_stops_the_member(metadata_group: Any) -> None:
    with pytest.raises(VersionMismatch, match="unknown metadata command 'explode'"):
        metadata_group.apply("explode")


def test_oldest_requests_are_forgotten(metadata_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_KEPT", 3)
    for number in range(5):
        metadata_group.create(f"v{number}", request=f"r{number}")
    kept = [key for key, _ in metadata_group.kv.scan(records.REQUESTS)]
    assert kept == ["request/r2", "request/r3", "request/r4"]


# -- configurations ------------------------------------------------------------------------------------------


def planned(group: Any, **more: Any) -> tuple[dict[str, Any], int, dict[str, Any]]:
    volume = group.attach(group.ready(), writer=7)
    old = volume["groups"][0]["members"][2]["replica"]
    fields = {"group": 0, "version": 1, "old": old, "device": "d4", "host": "h4"}
    wish = group.apply("plan_replacement", volume=volume["id"], **{**fields, **more})
    return volume, old, wish


def reconfigure(group: Any, volume: dict[str, Any], old: int, new: int, **more: Any) -> Any:
    fields = {"group": 0, "epoch": 1, "version": 1, "replace": {"old": old, "new": new}, "now_ms": 0}
    return group.apply("reconfigure", volume=volume["id"], **{**fields, **more})


def test_reconfigure_replaces_one_member(metadata_group: Any) -> None:
    volume, old, wish = planned(metadata_group)
    group = reconfigure(metadata_group, volume, old, wish["replica"])
    assert group["version"] == 2
    assert [member["host"] for member in group["members"]] == ["h1", "h2", "h4"]
    assert group["wish"] is None
    assert records.drops(metadata_group.kv, volume["id"]) == [(old, "d3", "h3")]
    assert reconfigure(metadata_group, volume, old, wish["replica"]) == group  # the reply was lost


def test_reconfigure_is_compare_and_set_on_epoch_and_version(metadata_group: Any) -> None:
    volume, old, wish = planned(metadata_group)
    with pytest.raises(StaleConfiguration, match="version 1, not at 3"):
        reconfigure(metadata_group, volume, old, wish["replica"], version=3)
    metadata_group.attach(volume, writer=8)
    with pytest.raises(Fenced, match="epoch 2, not 1"):
        reconfigure(metadata_group, volume, old, wish["replica"])
    assert reconfigure(metadata_group, volume, old, wish["replica"], epoch=2)["version"] == 2


def test_reconfigure_takes_only_the_planned_replica(metadata_group: Any) -> None:
    volume, old, _ = planned(metadata_group)
    with pytest.raises(StaleConfiguration, match="no plan to replace"):
        reconfigure(metadata_group, volume, old, 99)


def test_plan_is_idempotent_and_one_at_a_time(metadata_group: Any) -> None:
    volume, old, wish = planned(metadata_group)
    same = {"volume": volume["id"], "group": 0, "version": 1, "old": old, "device": "d4", "host": "h4"}
    assert metadata_group.apply("plan_replacement", **same) == wish
    with pytest.raises(Busy, match="is replacing"):
        metadata_group.apply("plan_replacement", **{**same, "device": "d5", "host": "h5"})


def test_plan_keeps_hosts_distinct(metadata_group: Any) -> None:
    with pytest.raises(Invalid, match="host h1 holds a replica of this group already"):
        planned(metadata_group, device="d9", host="h1")
    other = metadata_group.ready("other")
    old = other["groups"][0]["members"][2]["replica"]
    fields = {
        "group": 0,
        "version": 1,
        "old": old,
        "device": "d9",
        "host": "h3",
    }  # another disk of the same host
    assert metadata_group.apply("plan_replacement", volume=other["id"], **fields)["host"] == "h3"


def test_cancelled_plan_drops_the_learner(metadata_group: Any) -> None:
    volume, old, wish = planned(metadata_group)
    for _ in range(2):
        metadata_group.apply("cancel_replacement", volume=volume["id"], group=0, replica=wish["replica"])
    assert records.drops(metadata_group.kv, volume["id"]) == [(wish["replica"], "d4", "h4")]
    with pytest.raises(StaleConfiguration):
        reconfigure(metadata_group, volume, old, wish["replica"])


def test_learner_that_became_a_member_cannot_be_cancelled(metadata_group: Any) -> None:
    volume, old, wish = planned(metadata_group)
    reconfigure(metadata_group, volume, old, wish["replica"])
    with pytest.raises(StaleConfiguration, match="became a member already"):
        metadata_group.apply("cancel_replacement", volume=volume["id"], group=0, replica=wish["replica"])


def test_delete_drops_a_planned_learner_too(metadata_group: Any) -> None:
    volume, _, wish = planned(metadata_group)
    delete(metadata_group, volume)
    dropping = [replica for replica, _, _ in records.drops(metadata_group.kv, volume["id"])]
    assert wish["replica"] in dropping
    assert len(dropping) == 4


def replicas_of(volume: dict[str, Any]) -> list[int]:
    return [member["replica"] for group in volume["groups"] for member in group["members"]]


def delete(group: Any, volume: dict[str, Any], request: str = "") -> dict[str, Any]:
    fields = {"epoch": volume["epoch"], "request": request, "name": volume["name"], "now_ms": 9}
    deleted: dict[str, Any] = group.apply("delete", volume=volume["id"], **fields)
    return deleted


def gone(group: Any, volume: dict[str, Any]) -> None:
    delete(group, volume)
    group.apply("dropped", volume=volume["id"], replicas=replicas_of(volume))
    group.apply("released", volume=volume["id"])
