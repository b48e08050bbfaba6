"""Versions of objects: what each command leaves of them. Random commands against a plain model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moorage.metadata import limits
from moorage.metadata.objects import layout, locks, versions
from moorage.metadata.objects.versions import Outcome
from moorage.wire.errors import Busy, Invalid, LimitExceeded, Locked, NotFound, PreconditionFailed

from .conftest import AppliedGroup
from .photos import W2, Photos


@pytest.fixture
def photos(metadata_group: AppliedGroup) -> Photos:
    made = Photos(metadata_group)
    made.open()
    return made


def on(photos: Photos, state: str = "enabled", with_locks: bool = False) -> None:
    photos.do("set_versioning", state=state, locks=with_locks)


def test_what_is_replaced_or_deleted_is_kept(photos: Photos) -> None:
    photos.put("a", [0, 0, 0, 1])
    on(photos)
    second = versions.name_of(photos.put("a", [0, 0, 1, 1]))
    assert photos.versions("a") == [second, "null"] and photos.frees() == []
    answer = photos.outcomes("a", "a", "none")
    assert answer["found"] == [Outcome.DELETED, Outcome.ABSENT, Outcome.ABSENT]
    marker = answer["marker"]
    assert photos.get("a") is None
    assert photos.versions("a") == [f"-{marker}", second, "null"]
    assert photos.versions("none") == [f"-{marker}"], "as S3 has it: of what is not there, too"
    assert versions.usage(photos.group.kv, photos.id) == [0, 0, 4, 20]
    third = versions.name_of(photos.put("a", [0, 0, 2, 1]))
    assert photos.versions("a") == [third, f"-{marker}", second, "null"]


def test_while_versions_are_suspended_there_is_one_without_a_name(photos: Photos) -> None:
    on(photos)
    first = versions.name_of(photos.put("a", [0, 0, 0, 1]))
    on(photos, "suspended")
    photos.put("a", [0, 0, 1, 1])
    assert photos.versions("a") == ["null", first]
    photos.put("a", [0, 0, 2, 1])
    assert photos.versions("a") == ["null", first]
    assert [extent.block for extent in photos.frees()] == [1]
    assert photos.outcomes("a")["marker"] == "null"
    assert photos.versions("a") == ["-null", first]
    assert [extent.block for extent in photos.frees()] == [1, 2]
    photos.delete("a")
    assert photos.versions("a") == ["-null", first]
    photos.put("a", [0, 0, 3, 1])
    assert photos.versions("a") == ["null", first]
    on(photos)
    last = versions.name_of(photos.put("a", [0, 0, 4, 1]))
    assert photos.versions("a") == [last, "null", first]
    on(photos, "suspended")
    photos.put("a", [0, 0, 5, 1])
    assert photos.versions("a") == ["null", last, first]
    assert [extent.block for extent in photos.frees()] == [1, 2, 3]


def test_a_version_that_is_removed_uncovers_the_one_before_it(photos: Photos) -> None:
    on(photos)
    first, second = (photos.put("a", [0, 0, block, 1]) for block in (0, 1))
    marker = photos.outcomes("a")["marker"]
    assert photos.outcomes("a", versions=[marker])["found"] == [Outcome.MARKER_DELETED]
    assert photos.get("a") == second
    assert photos.outcomes("a", versions=[versions.name_of(second)])["found"] == [Outcome.DELETED]
    assert photos.get("a") == first and [extent.block for extent in photos.frees()] == [1]
    assert photos.outcomes("a", versions=[versions.name_of(second)])["found"] == [Outcome.ABSENT]
    assert photos.outcomes("a", "b", versions=[versions.name_of(first), "null"])["found"] == [1, 0]
    assert (
        photos.versions("a") == [] and list(layout.scan_histories(photos.group.kv, photos.id, "", b"")) == []
    )
    below = photos.put("b", [0, 0, 5, 1])
    marker = photos.outcomes("b")["marker"]
    photos.outcomes("b", versions=[versions.name_of(below)])
    assert photos.versions("b") == [f"-{marker}"], "a marker alone is no object"


def test_a_former_version_that_is_current_by_now_stays(photos: Photos) -> None:
    on(photos)
    first, second = (versions.name_of(photos.put("a", [0, 0, block, 1])) for block in (0, 1))
    answer = photos.outcomes("a", "a", versions=[second, first], former=True)
    assert answer["found"] == [Outcome.ABSENT, Outcome.DELETED]
    photos.delete("a")
    marker = photos.versions("a")[0][1:]
    assert photos.outcomes("a", versions=[marker], former=True)["found"] == [Outcome.ABSENT]


def test_a_put_that_comes_again_is_the_version_that_it_was(photos: Photos) -> None:
    on(photos)
    command = {"key": "a", **photos.written([0, 0, 0, 1])}
    first = photos.do("put_object", **command)
    second = photos.put("a", [0, 0, 1, 1])
    assert photos.do("put_object", **command) == first
    marker = photos.outcomes("a")["marker"]
    assert photos.do("put_object", **command) == first
    names = [f"-{marker}", versions.name_of(second), versions.name_of(first)]
    assert photos.versions("a") == names
    photos.outcomes("a", versions=[names[-1]])
    again = photos.do("put_object", **command)
    assert photos.versions("a") == names[:2], "it was removed for good"
    assert versions.find(photos.group.kv, photos.id, "a", versions.name_of(again)) is None


def test_an_upload_that_is_completed_again_is_the_version_that_it_was(photos: Photos) -> None:
    on(photos)
    photos.begin("u", "a")
    photos.part("u", 1, [0, 0, 0, 1])
    done = photos.complete("u", "a", [[1, "e1"]])
    photos.put("a", [0, 0, 1, 1])
    assert photos.complete("u", "a", [[1, "e1"]]) == done
    assert len(photos.versions("a")) == 2


def test_conditions_are_of_the_current_object(photos: Photos) -> None:
    on(photos)
    photos.put("a", [0, 0, 0, 1])
    with pytest.raises(PreconditionFailed):
        photos.put("a", [0, 0, 1, 1], condition={"absent": True})
    photos.delete("a")
    photos.put("a", [0, 0, 1, 1], condition={"absent": True})
    with pytest.raises(PreconditionFailed):
        photos.outcomes("a", condition={"etags": ["e1"]})
    photos.delete("a", ids=["o1"])
    assert not photos.versions("a")[0].startswith("-"), "what was seen is not current any more"
    photos.delete("b", ids=["o1"])
    assert photos.versions("b") == []


def test_a_bucket_with_markers_is_not_empty_and_all_of_it_goes(photos: Photos) -> None:
    on(photos)
    photos.put("a", [0, 0, 0, 1])
    marker = photos.outcomes("a", "k" * 500)["marker"]
    delete = {"volume": photos.id, "epoch": 0, "request": "", "name": "photos", "now_ms": 9000}
    with pytest.raises(Busy, match="0 objects of 0 bytes, and 3 former versions"):
        photos.group.apply("delete", **delete)
    for key, name in (("a", marker), ("a", photos.versions("a")[1]), ("k" * 500, marker)):
        photos.outcomes(key, versions=[name])
    photos.outcomes("b")
    photos.outcomes("b", versions=[photos.versions("b")[0][1:]])
    photos.group.apply("delete", **delete)
    photos.do("purge_bucket")
    assert list(layout.all_keys(photos.group.kv, photos.id)) == []


def test_histories_of_long_keys_are_bounded(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LONG_KEYS_MAX", 2)
    on(photos)
    for number in range(2):
        photos.delete(f"{'k' * 500}{number}")
    with pytest.raises(LimitExceeded, match="2 keys begin"):
        photos.put("k" * 501, [0, 0, 0, 1])
    assert photos.delete("k" * 501, "j" * 500, f"{'k' * 500}1") == [False] * 3
    assert photos.versions("k" * 501) == [], "of what was not there, and has no room for a marker"
    photos.put(f"{'k' * 500}1", [0, 0, 1, 1])
    photos.put("j" * 500, [0, 0, 2, 1])


# -- locks -------------------------------------------------------------------------------------------------


def test_locks_are_of_buckets_where_versions_stay_on(photos: Photos) -> None:
    photos.put("a", [0, 0, 0, 1])
    about = {"key": "a", "id": "o1", "version": "null", "now_ms": 0, "bypass": False}
    for _ in range(2):
        with pytest.raises(Invalid, match="cannot be locked"):
            photos.do("set_lock", **about, retention=["GOVERNANCE", 9])
        on(photos)
    with pytest.raises(Invalid, match="cannot be suspended"):
        on(photos, "suspended", with_locks=True)
    on(photos, with_locks=True)
    on(photos)
    with pytest.raises(Invalid, match="cannot be suspended"):
        on(photos, "suspended")
    photos.do("set_lock", **about, retention=["GOVERNANCE", 9])
    for wrong in ({"version": "1" * 16}, {"key": "b"}):
        with pytest.raises(NotFound):
            photos.do("set_lock", **{**about, **wrong}, hold=False)
    with pytest.raises(PreconditionFailed):
        photos.do("set_lock", **{**about, "id": "o2"}, hold=False)


def test_what_is_locked_stays_and_the_others_go(photos: Photos) -> None:
    on(photos, with_locks=True)
    written = photos.written([0, 0, 0, 1])
    written["object"]["lock"] = ["GOVERNANCE", 6000, False]
    kept = versions.name_of(photos.do("put_object", key="a", **written))
    other = versions.name_of(photos.put("a", [0, 0, 1, 1]))
    both = {"versions": [kept, other]}
    assert photos.outcomes("a", "a", **both)["found"] == [Outcome.LOCKED, Outcome.DELETED]
    assert photos.versions("a") == [kept]
    photos.delete("a")
    assert photos.outcomes("a", versions=[kept], at_ms=6000)["found"] == [Outcome.DELETED]


def test_only_where_there_are_locks_something_is_put_locked(photos: Photos) -> None:
    written = photos.written([0, 0, 0, 1])
    written["object"]["lock"] = ["GOVERNANCE", 6000, False]
    with pytest.raises(Invalid, match="cannot be locked"):
        photos.do("put_object", key="a", **written)
    assert photos.get("a") is None


G, C = "GOVERNANCE", "COMPLIANCE"


@pytest.mark.parametrize(
    ("former", "change", "bypass", "found"),
    [
        (None, {"retention": [C, 50]}, False, [C, 50, False]),
        ([G, 50, False], {"retention": [G, 60]}, False, [G, 60, False]),
        ([G, 50, False], {"retention": [C, 50]}, False, [C, 50, False]),
        ([G, 50, False], {"retention": [G, 40]}, False, Locked),
        ([G, 50, False], {"retention": ["", 0]}, False, Locked),
        ([G, 50, False], {"retention": ["", 0]}, True, None),
        ([G, 50, True], {"retention": ["", 0]}, True, ["", 0, True]),
        ([C, 50, False], {"hold": True}, False, [C, 50, True]),
        ([C, 50, True], {"hold": False}, False, [C, 50, False]),
        ([C, 50, False], {"retention": [C, 49]}, True, Locked),
        ([C, 50, False], {"retention": [G, 90]}, True, Locked),
        ([C, 10, False], {"retention": ["", 0]}, False, None),
        (["", 0, True], {"hold": False}, False, None),
        (None, {}, False, None),
    ],
)
def test_retention_is_not_shortened(former: Any, change: Any, bypass: bool, found: Any) -> None:
    if found is Locked:
        with pytest.raises(Locked):
            locks.changed(former, change, 10, bypass)
    else:
        assert locks.changed(former, change, 10, bypass) == found


@pytest.mark.parametrize(
    ("lock", "bypass", "locked"),
    [
        (None, False, False),
        (["GOVERNANCE", 10, False], False, False),
        (["GOVERNANCE", 11, False], False, True),
        (["GOVERNANCE", 11, False], True, False),
        (["COMPLIANCE", 11, False], True, True),
        (["", 0, True], True, True),
        (["GOVERNANCE", 11, True], True, True),
    ],
)
def test_a_lock_holds_for_its_time(lock: Any, bypass: bool, locked: bool) -> None:
    assert locks.is_locked(lock, 10, bypass) is locked


# -- against a model ---------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "k" * 450 + "1", "k" * 450 + "2"])


class Versions(RuleBasedStateMachine):
    """A key is a list of versions, the newest first: (name, id); a marker has no id."""

    def __init__(self) -> None:
        super().__init__()
        self.photos = Photos(AppliedGroup(), groups=1)
        self.model: dict[str, list[tuple[str, str]]] = {}
        self.state: str | None = None
        self.blocks = 0

    @initialize()
    def begin(self) -> None:
        self.photos.open()
        self.photos.open(writer=W2)

    @rule(state=st.sampled_from(["enabled", "suspended"]))
    def switch(self, state: str) -> None:
        on(self.photos, state)
        self.state = state

    def _add(self, key: str, name: str, identity: str) -> None:
        former = self.model.get(key, [])
        if self.state is None:
            former = []
        elif self.state == "suspended":
            former = [each for each in former if each[0] != "null"]
        self.model[key] = [(name, identity), *former]

    @rule(key=KEYS)
    def put(self, key: str) -> None:
        command = {"key": key, **self.photos.written([0, 0, self.blocks, 1])}
        self.blocks += 1
        made = self.photos.do("put_object", **command)
        assert self.photos.do("put_object", **command) == made
        self._add(key, versions.name_of(made), made["id"])
        assert (versions.name_of(made) == "null") == (self.state != "enabled")

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        marker = self.photos.outcomes(key)["marker"]
        if self.state is None:
            self.model.pop(key, None)
        else:
            self._add(key, marker, "")

    @rule(key=KEYS, at=st.integers(0, 5))
    def remove(self, key: str, at: int) -> None:
        known = self.model.get(key, [])
        name = known[at][0] if at < len(known) else ("null", "0" * 16)[at % 2]
        expected = next((each for each in known if each[0] == name), None)
        (found,) = self.photos.outcomes(key, versions=[name])["found"]
        assert found == (0 if expected is None else 1 if expected[1] else 2)
        self.model[key] = [each for each in known if each != expected]

    @invariant()
    def as_in_the_model(self) -> None:
        for key, known in self.model.items():
            current = self.photos.get(key)
            assert (current and current["id"]) == (known[0][1] or None if known else None)
            names = [name if identity else f"-{name}" for name, identity in known]
            assert self.photos.versions(key) == names
            for name, identity in known:
                found = versions.find(self.photos.group.kv, self.photos.id, key, name)
                assert found is not None and versions.is_marker(found) == (not identity)
                assert found["id"] == (identity or versions.name_at(found["seq"]))


TestVersions = Versions.TestCase
TestVersions.settings = settings(max_examples=40, stateful_step_count=30)
