"""The registry's replicated state, command by command."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.registry import state
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import (
    IdentityConflict,
    Invalid,
    LimitExceeded,
    MoorageError,
    NameTaken,
    NotFound,
    VersionMismatch,
)


class Registry:
    """Applies commands as a member does: what is refused leaves nothing behind."""

    def __init__(self) -> None:
        self.kv = KV()
        self._machine = RegistryMachine()
        self._index = 0

    def __call__(self, op: str, **fields: Any) -> Any:
        self._index += 1
        try:
            result = self._machine.apply(self.kv, {"op": op, **fields}, self._index)
        except MoorageError:
            self.kv.rollback()
            raise
        self.kv.commit()
        return result

    def start(self, device: str = "d1", **changes: Any) -> Any:
        fields = {
            "host": "h1",
            "address": "10.0.0.1:7",
            "capacity": 1 << 40,
            "old_token": "",
            "new_token": "t1",
            "count": 0,
        }
        return self("start_device", device=device, **{**fields, **changes})


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_a_restart_on_another_port_is_the_same_device(registry: Registry) -> None:
    registry.start()
    registry.start(old_token="t1", new_token="t2", address="10.0.0.1:8", count=5)
    assert state.table(registry.kv, "device") == {
        "d1": {
            "host": "h1",
            "address": "10.0.0.1:8",
            "capacity": 1 << 40,
            "token": "t2",
            "count": 5,
            "refused": "",
        }
    }


def test_a_start_whose_answer_was_lost_may_be_repeated(registry: Registry) -> None:
    registry.start()
    registry.start()
    registry.start(old_token="t1", new_token="t2")
    registry.start(old_token="t1", new_token="t2")
    assert state.table(registry.kv, "device")["d1"]["token"] == "t2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"old_token": "t0", "new_token": "t3"}, "another copy of its directory"),
        ({"old_token": "", "new_token": "t3"}, "another copy of its directory"),
        ({"old_token": "t1", "new_token": "t3"}, "another copy of its directory"),
        ({"old_token": "t2", "new_token": "t3", "count": 6}, "remembers 6 heartbeats, the registry 7"),
        ({"old_token": "t2", "new_token": "t3", "count": 7, "host": "h2"}, "belongs to host h1"),
    ],
)
def test_a_copy_of_a_device_is_refused_and_changes_nothing(
    registry: Registry, changes: dict[str, Any], words: str
) -> None:
    registry.start()
    registry.start(old_token="t1", new_token="t2")
    registry("note_counts", counts={"d1": ["t2", 7]})
    before = state.table(registry.kv, "device")
    with pytest.raises(IdentityConflict, match=words):
        registry.start(**changes)
    assert state.table(registry.kv, "device") == before
    registry.start(old_token="t2", new_token="t9", count=7)  # the true one goes on


def test_a_device_of_another_cluster_is_refused(registry: Registry) -> None:
    with pytest.raises(IdentityConflict, match="never saw it"):
        registry.start(old_token="t0")


def test_counts_never_fall_and_never_cross_tokens(registry: Registry) -> None:
    registry.start()
    for token, count in (("t1", 9), ("t0", 99), ("t1", 4)):
        registry("note_counts", counts={"d1": [token, count], "unknown": ["t", 1]})
    assert state.table(registry.kv, "device")["d1"]["count"] == 9


def test_a_refused_device_stays_refused(registry: Registry) -> None:
    registry.start()
    registry("refuse_device", device="d1", token="t0", reason="late")
    registry("refuse_device", device="d1", token="t1", reason="its count went back")
    registry("refuse_device", device="d1", token="t1", reason="again")
    with pytest.raises(IdentityConflict, match="refused for good: its count went back"):
        registry.start(old_token="t1", new_token="t2")


def test_a_host_that_moved_is_the_same_host(registry: Registry) -> None:
    registry("join_host", host="h1", labels={"rack": "a"}, address="10.0.0.1:7", http="10.0.0.1:8")
    registry("join_host", host="h1", labels={"rack": "b"}, address="10.0.0.1:9", http="10.0.0.1:8")
    assert state.table(registry.kv, "host") == {
        "h1": {"labels": {"rack": "b"}, "address": "10.0.0.1:9", "http": "10.0.0.1:8"}
    }
    assert registry.kv.get("count/host") == 1


def test_services_are_listed_in_order(registry: Registry) -> None:
    for name, group in (("h2", "m1"), ("h1", "m1"), ("h1", "m2")):
        registry(
            "join_service",
            service="metadata",
            group=group,
            name=name,
            address="10.0.0.1:7",
            http="",
            uid="u1",
        )
    found = [(each["group"], each["name"]) for each in state.services(registry.kv)]
    assert found == [("m1", "h1"), ("m1", "h2"), ("m2", "h1")]


def join_metadata(registry: Registry, group: str, uid: str, name: str = "h1") -> None:
    where = {"name": name, "address": "10.0.0.1:7", "http": ""}
    registry("join_service", service="metadata", group=group, uid=uid, **where)


def test_a_second_metadata_group_of_one_name_is_refused(registry: Registry) -> None:
    join_metadata(registry, "m1", "u1")
    join_metadata(registry, "m1", "u1", "h2")
    join_metadata(registry, "m2", "u2")
    with pytest.raises(IdentityConflict, match=r"has a metadata group m1 already.*--join"):
        join_metadata(registry, "m1", "u3", "h4")
    with pytest.raises(Invalid, match="uid"):
        join_metadata(registry, "m3", "")
    assert [each["name"] for each in state.services(registry.kv)] == ["h1", "h2", "h1"]


def test_a_late_release_or_claim_does_not_touch_a_name_in_use_again(registry: Registry) -> None:
    registry("claim", name="db", kind="volume", group="m1", id=5)
    registry("release", name="db", group="m1", id=5)
    registry("claim", name="db", kind="volume", group="m1", id=9)
    registry("release", name="db", group="m1", id=5)
    with pytest.raises(NameTaken):
        registry("claim", name="db", kind="volume", group="m1", id=5)
    assert state.locate(registry.kv, "db")["id"] == 9
    registry("release", name="db", group="m1", id=9)
    registry("claim", name="db", kind="volume", group="m1", id=5)  # late: nobody will release it
    registry("claim", name="db", kind="volume", group="m1", id=12)
    assert state.locate(registry.kv, "db")["id"] == 12


def test_a_name_belongs_to_one_group(registry: Registry) -> None:
    assert registry("claim", name="db", kind="volume", group="m1", id=5) == {"group": "m1"}
    assert registry("claim", name="db", kind="volume", group="m1", id=5) == {"group": "m1"}
    assert state.locate(registry.kv, "db") == {"group": "m1", "kind": "volume", "id": 5}
    for group, kind in (("m2", "volume"), ("m1", "bucket")):
        with pytest.raises(NameTaken, match="'db' is taken by a volume") as found:
            registry("claim", name="db", kind=kind, group=group, id=5)
        assert found.value.details["group"] == "m1"
    with pytest.raises(NameTaken, match="belongs to group m1"):
        registry("release", name="db", group="m2", id=5)
    registry("release", name="db", group="m1", id=5)
    registry("release", name="db", group="m1", id=5)
    with pytest.raises(NotFound, match="'db'"):
        state.locate(registry.kv, "db")
    registry("claim", name="db", kind="bucket", group="m2", id=5)


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "a.b_c-d"])
def test_names_within_the_limit(registry: Registry, name: str) -> None:
    registry("claim", name=name, kind="volume", group="m1", id=5)


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "A", "-a", ".a", "a/b", "a b", "ä", "a\n", 7, None, ["a"], b"a"]
)
def test_names_just_past_it(registry: Registry, name: Any) -> None:
    with pytest.raises(Invalid, match="1 to 63"):
        registry("claim", name=name, kind="volume", group="m1", id=5)
    with pytest.raises(Invalid, match="1 to 63"):
        state.locate(registry.kv, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "H"},
        {"address": "nowhere"},
        {"address": 7},
        {"capacity": -1},
        {"capacity": "much"},
        {"capacity": 1 << 63},
        {"count": True},
        {"new_token": ""},
        {"new_token": "x" * 65},
        {"device": "a/b"},
        {"old_token": "x" * 257},
    ],
)
def test_fields_of_the_wrong_kind_are_named(registry: Registry, changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        registry.start(**changes)
    assert state.table(registry.kv, "device") == {}


@pytest.mark.parametrize(
    "labels", [None, {"a": 1}, {1: "a"}, {str(i): "x" for i in range(9)}, {"a": "x" * 64}, {"": "x"}]
)
def test_labels(registry: Registry, labels: Any) -> None:
    with pytest.raises(Invalid):
        registry("join_host", host="h1", labels=labels, address="10.0.0.1:7", http="", uid="u1")


def test_labels_at_their_limit(registry: Registry) -> None:
    labels = {str(i) * 63: "x" * 63 for i in range(state.LABELS_MAX)}
    registry("join_host", host="h1", labels=labels, address="10.0.0.1:7", http="", uid="u1")


def test_a_kind_that_is_none_and_a_command_of_a_later_version(registry: Registry) -> None:
    with pytest.raises(Invalid, match="volume, bucket"):
        registry("claim", name="db", kind="table", group="m1", id=5)
    with pytest.raises(VersionMismatch, match="upgrade"):
        registry("split")


def test_the_limits_of_hosts_and_devices_at_and_just_past_their_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in range(state.DEVICES_MAX):
        registry.start(f"d{device}", new_token=f"t{device}")
    with pytest.raises(LimitExceeded, match=f"{state.DEVICES_MAX} devices"):
        registry.start("one-more")
    registry.start("d7", old_token="t7", new_token="t7b")  # those that are there go on
    for host in range(state.HOSTS_MAX):
        registry("join_host", host=f"h{host}", labels={}, address="10.0.0.1:7", http="", uid="u1")
    with pytest.raises(LimitExceeded, match=f"{state.HOSTS_MAX} hosts"):
        registry("join_host", host="one-more", labels={}, address="10.0.0.1:7", http="", uid="u1")


def test_two_members_that_apply_the_same_commands_hold_the_same() -> None:
    def history() -> list[tuple[str, Any]]:
        registry = Registry()
        registry.start()
        registry("join_host", host="h1", labels={"b": "1", "a": "2"}, address="10.0.0.1:7", http="", uid="u1")
        registry("note_counts", counts={"d1": ["t1", 3], "d0": ["t", 1]})
        registry("claim", name="db", kind="volume", group="m1", id=5)
        return list(registry.kv.scan_raw(b""))

    assert history() == history()
