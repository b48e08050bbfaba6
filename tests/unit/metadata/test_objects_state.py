"""Commands about objects: what each does, refuses, and does when it comes again; every state is checked.
Random commands against a plain model."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from moorage.metadata import limits, records
from moorage.metadata.objects import layout, state
from moorage.metadata.objects.layout import REGION_CHUNKS
from moorage.wire.errors import (
    Busy,
    Invalid,
    LimitExceeded,
    MoorageError,
    NotFound,
    PreconditionFailed,
    Stale,
    StaleConfiguration,
)

from .conftest import AppliedGroup
from .photos import W1, W2, Photos


@pytest.fixture
def photos(metadata_group: AppliedGroup) -> Photos:
    return Photos(metadata_group)


# -- regions -----------------------------------------------------------------------------------------------


def test_regions_are_given_once_in_order(photos: Photos) -> None:
    assert [photos.open(), photos.open(writer=W2), photos.open(1)] == [0, REGION_CHUNKS, 0]
    with pytest.raises(Invalid, match="no group 2"):
        photos.open(2)


def test_a_group_that_has_given_out_all_says_so(photos: Photos) -> None:
    photos.group.kv.put(layout.next_region_key(photos.id, 0), (1 << 48) - 63)
    photos.group.kv.commit()
    with pytest.raises(LimitExceeded, match="all its addresses"):
        photos.open()


def test_nothing_is_put_in_a_region_that_is_closed_or_not_the_writers(photos: Photos) -> None:
    photos.open()
    with pytest.raises(Stale, match="not this writer's"):
        photos.put("a", [0, 0, 0, 1], writer=W2)
    with pytest.raises(Stale):
        photos.put("a", [0, 64, 0, 1])  # was never given
    photos.do("close_regions", regions=[[0, 0], [0, 64], [7, 0]])
    with pytest.raises(Stale):
        photos.put("a", [0, 0, 0, 1])
    assert photos.get("a") is None


def test_a_region_is_swept_once_it_is_closed_and_forgotten_once_it_is_empty(photos: Photos) -> None:
    photos.open()
    photos.put("a", [0, 0, 0, 1])
    photos.do("region_swept", group=0, chunk=0)
    photos.do("forget_region", group=0, chunk=0)
    assert photos.region(0, 0)["state"] == "open"
    photos.do("close_regions", regions=[[0, 0]])
    photos.do("region_swept", group=0, chunk=0)
    assert photos.region(0, 0) == {"owner": W1, "state": "swept"}
    with pytest.raises(Busy, match="in use"):
        photos.do("forget_region", group=0, chunk=0)
    photos.delete("a")
    photos.do("forget_region", group=0, chunk=0)
    assert photos.region(0, 0) is None and not photos.frees()
    photos.do("forget_region", group=0, chunk=0)
    assert photos.open() == REGION_CHUNKS, "no address is given twice"


# -- objects -----------------------------------------------------------------------------------------------


def test_an_object_is_put_replaced_and_deleted(photos: Photos) -> None:
    photos.open()
    first = photos.put("a", [0, 0, 0, 2], [0, 1, 0, 1024])
    assert photos.get("a") == first and first["extents"] == [[0, 0, 0, 2], [0, 1, 0, 1024]]
    second = photos.put("a", [0, 2, 0, 1])
    assert photos.get("a") == second
    assert photos.frees() == [(0, 0, 0, 2), (0, 1, 0, 1024)]
    assert photos.delete("a", "a", "b") == [True, False, False]
    assert photos.get("a") is None and len(photos.frees()) == 3


def test_a_put_that_is_sent_again_is_one(photos: Photos) -> None:
    photos.open()
    written = photos.written([0, 0, 0, 1])
    for _ in range(3):
        found = photos.do("put_object", key="a", **written, condition={"absent": True})
        assert found["id"] == written["object"]["id"]
    assert photos.group.kv.get(layout.usage_key(photos.id)) == [1, 10]


@pytest.mark.parametrize("discarded", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_put_that_comes_again_late_brings_nothing_back(
    photos: Photos, discarded: bool, replaced: bool
) -> None:
    """Its answer was lost; meanwhile it was replaced or deleted, and its blocks may be discarded."""
    photos.open()
    written = photos.written([0, 0, 0, 3])
    photos.do("put_object", key="a", **written)
    other = photos.put("a", [0, 0, 3, 1]) if replaced else None
    if not replaced:
        photos.delete("a")
    if discarded:
        photos.do("discarded", extents=[[0, 0, 0, 3]])
    again = photos.do("put_object", key="a", **written, condition={"etags": ["none has this"]})
    assert again["id"] == written["object"]["id"], "it was put once: that is what it is told"
    assert photos.get("a") == other


def test_addresses_are_used_once(photos: Photos) -> None:
    photos.open()
    photos.put("a", [0, 0, 0, 1], [0, 0, 1, 1])
    with pytest.raises(Stale, match="used for an object before"):
        photos.put("b", [0, 0, 1, 1])
    with pytest.raises(Stale, match="used for an object before"):
        photos.put("b", [0, 0, 2, 1], [0, 0, 2, 1])
    photos.delete("a")
    photos.do("discarded", extents=[[0, 0, 0, 1], [0, 0, 1, 1]])
    assert photos.region(0, 0)["gone"] == [0, 2]
    with pytest.raises(Stale, match="used for an object before"):
        photos.put("b", [0, 0, 2, 1], [0, 0, 1, 1])
    photos.put("b", [0, 0, 2, 1])
    photos.do("close_regions", regions=[[0, 0]])
    assert "gone" not in photos.region(0, 0)
    photos.delete("b")
    photos.do("discarded", extents=[[0, 0, 2, 1]])
    assert "gone" not in photos.region(0, 0)


@pytest.mark.parametrize(
    "extent",
    [[0, 0, 0, 0], [0, 0, 1024, 1], [0, 0, -1, 1], [0, 63, 1023, 2], [0, 0, 0, 1 << 40], [5, 0, 0, 1]],
)
def test_an_extent_is_inside_of_a_region(photos: Photos, extent: list[int]) -> None:
    photos.open()
    photos.open()
    with pytest.raises((Invalid, Stale)):
        photos.put("a", extent)


def test_conditions(photos: Photos) -> None:
    photos.open()
    with pytest.raises(PreconditionFailed) as caught:
        photos.put("a", [0, 0, 0, 1], condition={"etags": ["e1"]})
    assert caught.value.details["etag"] is None
    made = photos.put("a", [0, 0, 0, 1], condition={"absent": True, "not_etags": ["x"]})
    for condition in ({"absent": True}, {"etags": ["x"]}, {"not_etags": [made["etag"]]}):
        with pytest.raises(PreconditionFailed):
            photos.put("a", [0, 0, 1, 1], condition=condition)
        with pytest.raises(PreconditionFailed):
            photos.delete("b", "a", condition=condition) if "absent" in condition else photos.delete(
                "a", condition=condition
            )
        assert photos.get("a") == made
    photos.put("a", [0, 0, 1, 1], condition={"etags": ["x", made["etag"]]})


def test_an_object_needs_a_majority_of_those_that_are_members_now(photos: Photos) -> None:
    photos.open()
    a, b, c = photos.members()
    with pytest.raises(StaleConfiguration, match="other members"):
        photos.put("a", [0, 0, 0, 1], stored=[[a, 999, 998]])
    photos.put("a", [0, 0, 0, 1], stored=[[a, b, 999]])
    assert photos.lacks(c) == [(0, 0, 0, 1)] and not photos.lacks(a)
    photos.delete("a")
    assert not photos.lacks(c)
    photos.put("b", [0, 0, 1, 1], stored=[[b, c]])
    new = photos.wish()
    photos.do("built", group=0, replica=new, address=1 << 60)
    photos.reconfigure(c, new) if not photos.lacks(new) else None
    assert photos.members() == [a, b, new]
    with pytest.raises(StaleConfiguration):  # written to {b, c}: one copy would be left
        photos.put("c", [0, 0, 2, 1], stored=[[b, c]])


def test_empty_objects_and_long_keys(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    photos.open()
    photos.put("nothing")
    monkeypatch.setattr(limits, "LONG_KEYS_MAX", 2)
    long = ["k" * 401 + end for end in ("", "a", "b")]
    photos.put(long[0])
    photos.put(long[1], [0, 0, 0, 1])
    with pytest.raises(LimitExceeded, match="keys begin with the same"):
        photos.put(long[2])
    photos.put(long[1], [0, 0, 1, 1])  # what is there may be replaced
    photos.put("k" * 400)
    assert photos.delete(long[0], long[2]) == [True, False]
    photos.put(long[2])
    assert photos.delete(*long) == [False, True, True]
    photos.put(long[1])


def test_a_delete_that_is_sent_again_takes_nothing_that_was_put_since(photos: Photos) -> None:
    photos.open()
    photos.put("a", [0, 0, 0, 1])
    assert photos.delete("a", "b", request="r") == [True, False]
    photos.put("a", [0, 0, 1, 1])
    photos.put("b", [0, 0, 2, 1])
    assert photos.delete("a", "b", request="r") == [True, False]
    assert photos.get("a") and photos.get("b")
    with pytest.raises(PreconditionFailed):
        photos.delete("a", condition={"absent": True}, request="s")
    assert photos.delete("a", condition={}, request="s") == [True], "what was refused is judged anew"


def test_objects_are_deleted_as_they_were_seen(photos: Photos) -> None:
    photos.open()
    ids = [photos.put(key, [0, 0, number, 1])["id"] for number, key in enumerate("abc")]
    photos.put("b", [0, 0, 3, 1])
    assert photos.delete("a", "b", "c", "d", ids=[*ids, "o9"]) == [True, False, True, False]
    assert photos.get("b") and not photos.get("a") and not photos.get("c")


def test_answers_are_kept_for_the_last_commands_of_the_log(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ANSWERS_KEPT", 10)
    photos.open()
    for number in range(20):
        photos.delete("a", request=f"r{number}")

    def kept() -> list[str]:
        rows = [key.split("/")[-1] for key, _ in photos.group.kv.scan("answer/")]
        assert sorted(rows) == sorted(value for _, value in photos.group.kv.scan("answer-slot/"))
        return rows

    assert kept() == sorted(f"r{number}" for number in range(10, 20))
    for _ in range(20):
        photos.open()
    photos.delete("a", request="last")
    assert len(kept()) == 10 and "last" in kept(), "the oldest has made room"


def test_attributes_are_those_of_one_object(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    made = photos.put("k" * 401)
    photos.do("set_attributes", key="k" * 401, id=made["id"], attributes={"a": 1})
    assert photos.get("k" * 401) == {**made, "attributes": {"a": 1}}
    with pytest.raises(PreconditionFailed):
        photos.do("set_attributes", key="k" * 401, id="another", attributes={})
    with pytest.raises(NotFound):
        photos.do("set_attributes", key="none", id=made["id"], attributes={})
    with pytest.raises(PreconditionFailed, match="has changed meanwhile"):
        photos.do("set_attributes", key="k" * 401, id=made["id"], former={}, attributes={})
    photos.do("set_attributes", key="k" * 401, id=made["id"], former={"a": 1}, attributes={"b": 2})


def test_documents_of_a_bucket_can_be_shown_together(photos: Photos) -> None:
    for number in range(8):
        photos.do("set_document", document=f"d{number}", text="x" * (64 << 10))
    photos.do("set_document", document="d0", text="é" * (32 << 10))
    with pytest.raises(LimitExceeded, match="at most"):
        photos.do("set_document", document="more", text="x")
    photos.do("set_document", document="d1", text=None)
    photos.do("set_document", document="more", text="x")
    assert len(layout.documents(photos.group.kv, photos.id)) == 8
    with pytest.raises(LimitExceeded):
        photos.do("set_document", document="d1", text="x" * (65 << 10))


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513, "\ud800"])
def test_keys_that_are_refused(photos: Photos, key: str) -> None:
    with pytest.raises(Invalid):
        photos.put(key)
    with pytest.raises(Invalid):
        photos.delete(key)


# -- uploads -----------------------------------------------------------------------------------------------


def test_an_upload_becomes_an_object_of_some_of_its_parts(photos: Photos) -> None:
    photos.open()
    photos.begin("u", "big")
    photos.begin("u", "another key")  # sent again, as it were
    one = photos.part("u", 1, [0, 0, 0, 1])
    two = photos.part("u", 2, [0, 0, 1, 1])
    three = photos.part("u", 3, [0, 0, 2, 1])
    with pytest.raises(NotFound, match="part 2 with etag x"):
        photos.complete("u", "big", [[1, one["etag"]], [2, "x"]])
    with pytest.raises(NotFound, match="part 9"):
        photos.complete("u", "big", [[9, one["etag"]]])
    for parts in ([], [[2, two["etag"]], [1, one["etag"]]], [[1, one["etag"]], [1, one["etag"]]]):
        with pytest.raises(Invalid, match="in the order of their numbers"):
            photos.complete("u", "big", parts)
    with pytest.raises(Invalid, match="is of key 'big'"):
        photos.complete("u", "other", [[1, one["etag"]]])
    with pytest.raises(PreconditionFailed):
        photos.complete("u", "big", [[1, one["etag"]]], condition={"etags": ["x"]})
    done = photos.complete("u", "big", [[1, one["etag"]], [3, three["etag"]]])
    assert (done["size"], done["extents"]) == (20, [[0, 0, 0, 1], [0, 0, 2, 1]])
    assert done["parts"] == [[10, 1], [10, 1]] and photos.get("big") == done
    assert photos.frees() == [(0, 0, 1, 1)]
    assert photos.complete("u", "big", [[1, one["etag"]]]) == done, "sent again"
    with pytest.raises(NotFound, match="was completed, or aborted"):
        photos.part("u", 4, [0, 0, 3, 1])
    photos.put("big", [0, 0, 4, 1])
    with pytest.raises(NotFound):
        photos.complete("u", "big", [[1, one["etag"]]])


def test_a_part_is_replaced_and_one_that_is_sent_again_is_one(photos: Photos) -> None:
    photos.open()
    photos.begin("u", "big")
    first = photos.written([0, 0, 0, 1])
    assert photos.do("put_part", upload="u", number=1, **first) == photos.do(
        "put_part", upload="u", number=1, **first
    )
    second = photos.part("u", 1, [0, 0, 1, 1])
    assert photos.frees() == [(0, 0, 0, 1)]
    assert photos.do("put_part", upload="u", number=1, **first)["id"] == first["object"]["id"]
    assert photos.complete("u", "big", [[1, second["etag"]]])["extents"] == [[0, 0, 1, 1]]


def test_an_upload_is_aborted(photos: Photos) -> None:
    photos.open()
    photos.begin("u", "big")
    photos.part("u", 1, [0, 0, 0, 1])
    photos.part("u", 2, [0, 0, 1, 1])
    photos.do("abort_upload", upload="u")
    assert len(photos.frees()) == 2
    for command in ("abort_upload", "put_part", "complete_upload"):
        with pytest.raises(NotFound):
            match command:
                case "abort_upload":
                    photos.do(command, upload="u")
                case "put_part":
                    photos.part("u", 1, [0, 0, 2, 1])
                case _:
                    photos.complete("u", "big", [[1, "e"]])
    with pytest.raises(Invalid, match="part number"):
        photos.begin("v", "x")
        photos.part("v", 0, [0, 0, 2, 1])


def test_an_object_of_too_many_pieces_could_not_be_shown(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OBJECT_EXTENTS_MAX", 2)
    photos.open()
    photos.begin("u", "big")
    etags = [photos.part("u", n, [0, n, 0, 1], [0, n, 5, 1])["etag"] for n in (1, 2)]
    with pytest.raises(LimitExceeded, match="in 4 pieces"):
        photos.complete("u", "big", [[1, etags[0]], [2, etags[1]]])
    photos.complete("u", "big", [[1, etags[0]]])


# -- what members have -------------------------------------------------------------------------------------


def test_lacks_are_noted_of_what_is_there_only(photos: Photos) -> None:
    photos.open()
    b = photos.members()[1]
    photos.put("a", [0, 0, 0, 4])
    photos.do("note_lack", replica=b, extents=[[0, 0, 0, 4], [0, 9, 0, 1]])
    photos.do("note_lack", replica=12345, extents=[[0, 0, 0, 4]])
    assert photos.lacks(b) == [(0, 0, 0, 4)] and not photos.lacks(12345)
    photos.do("repaired", replica=b, extents=[[0, 0, 0, 4], [0, 9, 0, 1]])
    assert not photos.lacks(b)


def test_a_member_to_come_needs_all_that_was_there_before(photos: Photos) -> None:
    photos.open()
    a, b, c = photos.members()
    photos.put("a", [0, 0, 0, 4])
    new = photos.wish()
    with pytest.raises(StaleConfiguration, match="lacks objects yet"):
        photos.reconfigure(c, new)
    photos.do("built", group=0, replica=new, address=4)
    with pytest.raises(StaleConfiguration, match="not to become a member"):
        photos.do("built", group=0, replica=12345, address=4)
    photos.reconfigure(c, new)
    assert photos.members() == [a, b, new]
    assert photos.group.kv.get(layout.built_key(photos.id, new)) is None


def test_what_is_put_all_the_time_keeps_no_member_from_being_replaced(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos.open()
    a, _, c = photos.members()
    photos.put("a", [0, 0, 0, 4])
    new = photos.wish()
    photos.do("built", group=0, replica=new, address=4)
    photos.put("b", [0, 0, 4, 1])
    photos.put("c", [0, 0, 5, 1])
    assert len(photos.lacks(new)) == 2
    photos.do("note_lack", replica=a, extents=[[0, 0, 5, 1]])
    with pytest.raises(StaleConfiguration):  # b alone would have it
        photos.reconfigure(c, new)
    photos.do("repaired", replica=a, extents=[[0, 0, 5, 1]])
    monkeypatch.setattr(state, "LACKED_AT_CHANGE", 1)
    with pytest.raises(StaleConfiguration):
        photos.reconfigure(c, new)
    monkeypatch.undo()
    photos.reconfigure(c, new)
    assert len(photos.lacks(new)) == 2, "it is copied there later"


def test_a_replacement_that_is_called_off_leaves_nothing(photos: Photos) -> None:
    new = photos.wish()
    photos.do("built", group=0, replica=new, address=4)
    photos.group.apply("cancel_replacement", volume=photos.id, group=0, replica=new)
    assert photos.group.kv.get(layout.built_key(photos.id, new)) is None


def test_lacks_of_who_was_replaced_are_found(photos: Photos) -> None:
    photos.open()
    a, b, c = photos.members()
    photos.put("a", [0, 0, 0, 4], stored=[[a, b]])
    new = photos.wish()
    photos.do("built", group=0, replica=new, address=4)
    photos.reconfigure(c, new)
    kv = photos.group.kv
    assert list(layout.lacking_replicas(kv, photos.id)) == [c]
    photos.do("repaired", replica=c, extents=[[0, 0, 0, 4]])
    assert not list(layout.lacking_replicas(kv, photos.id))


# -- the end of a bucket -----------------------------------------------------------------------------------


def test_a_bucket_is_deleted_when_it_is_empty_and_then_all_of_it_goes(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "PURGED_AT_ONCE", 2)
    photos.open()
    photos.put("a", [0, 0, 0, 1])
    photos.begin("u", "b")
    photos.part("u", 1, [0, 0, 1, 1], stored=[photos.members()[:2]])
    delete = {"volume": photos.id, "epoch": 0, "request": "", "name": "photos", "now_ms": 9000}
    assert photos.do("purge_bucket") is False
    with pytest.raises(Busy, match="1 objects of 10 bytes"):
        photos.group.apply("delete", **delete)
    photos.delete("a")
    photos.group.apply("delete", **delete)
    for command in (lambda: photos.put("c"), lambda: photos.delete("c"), lambda: photos.begin("v", "x")):
        with pytest.raises(MoorageError):
            command()
    while photos.do("purge_bucket"):
        pass
    assert state.is_purged(photos.group.kv, photos.id)
    drops = [replica for replica, _, _ in records.drops(photos.group.kv, photos.id)]
    photos.group.apply("released", volume=photos.id)
    photos.group.apply("dropped", volume=photos.id, replicas=drops)
    assert records.volume_by_id(photos.group.kv, photos.id) is None
    assert photos.do("purge_bucket") is False


def test_a_volume_holds_no_objects(metadata_group: AppliedGroup) -> None:
    volume = metadata_group.ready()
    with pytest.raises(Invalid, match="is a volume"):
        metadata_group.apply("open_region", bucket=volume["id"], group=0, writer=W1)


# -- random commands against a model -----------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c/d", "k" * 400, "k" * 401, "k" * 401 + "é"])


@settings(max_examples=25, stateful_step_count=40, suppress_health_check=list(HealthCheck))
class Commands(RuleBasedStateMachine):
    """What is acknowledged is there until it is replaced or deleted, whatever comes again, and late."""

    sent = Bundle("sent")

    @initialize()
    def begin(self) -> None:
        self.photos = Photos(AppliedGroup(), groups=1)
        self.model: dict[str, str] = {}
        self.parts: dict[str, dict[int, str]] = {}
        self.regions: list[int] = []
        self.at = 0
        self.photos.begin("u0", "a")
        self.uploads = 1
        self.parts["u0"] = {}
        self.open()

    @rule()
    def open(self) -> None:
        self.regions.append(self.photos.open())
        self.at = self.regions[-1] * 1024

    def take(self, blocks: int) -> list[int]:
        self.at += blocks
        return [0, *divmod(self.at - blocks, 1024), blocks]

    def is_open(self) -> bool:
        region = self.photos.region(0, self.regions[-1])
        return region is not None and region["state"] == "open"

    @rule(
        target=sent,
        key=KEYS,
        blocks=st.lists(st.integers(1, 5), max_size=3),
        lost=st.integers(0, 3),
        condition=st.sampled_from([{}, {}, {"absent": True}, {"etags": ["o"]}]),
    )
    def put(self, key: str, blocks: list[int], lost: int, condition: dict[str, Any]) -> Any:
        extents = [self.take(each) for each in blocks]
        holders = [each for at, each in enumerate(self.photos.members()) if at != lost]
        written = {
            **self.photos.written(*extents, stored=[holders] * len(extents)),
            "key": key,
            "condition": condition,
        }
        allowed = not condition or ("absent" in condition and key not in self.model)
        try:
            made = self.photos.do("put_object", **written)
        except PreconditionFailed:
            assert not allowed
            return multiple()
        except Stale:
            assert not self.is_open() and extents
            return multiple()
        assert allowed
        self.model[key] = made["id"]
        return written if extents else multiple()

    @rule(written=sent)
    def put_again(self, written: dict[str, Any]) -> None:
        with contextlib.suppress(Stale, PreconditionFailed):  # when its region is closed, or forgotten
            assert self.photos.do("put_object", **written)["id"] == written["object"]["id"]

    @rule(keys=st.lists(KEYS, max_size=3))
    def delete(self, keys: list[str]) -> None:
        expected = []
        for key in keys:
            expected.append(self.model.pop(key, None) is not None)
        assert self.photos.delete(*keys) == expected

    @rule(number=st.integers(1, 3), blocks=st.integers(1, 3))
    def part(self, number: int, blocks: int) -> None:
        upload = f"u{self.uploads - 1}"
        written = self.photos.written(self.take(blocks))
        try:
            made = self.photos.do("put_part", upload=upload, number=number, **written)
        except Stale:
            assert not self.is_open()
            return
        self.parts[upload][number] = made["etag"]

    @rule(abort=st.booleans())
    def end_upload(self, abort: bool) -> None:
        upload = f"u{self.uploads - 1}"
        parts = sorted(self.parts.pop(upload).items())
        if abort or not parts:
            self.photos.do("abort_upload", upload=upload)
        else:
            done = self.photos.complete(upload, "a", [list(each) for each in parts])
            assert self.photos.complete(upload, "a", [list(each) for each in parts]) == done
            self.model["a"] = done["id"]
        self.photos.begin(f"u{self.uploads}", "a")
        self.parts[f"u{self.uploads}"] = {}
        self.uploads += 1

    @rule(data=st.data())
    def close(self, data: Any) -> None:
        chunk = data.draw(st.sampled_from(self.regions))
        self.photos.do("close_regions", regions=[[0, chunk]])

    @rule(data=st.data(), forget=st.booleans())
    def sweep(self, data: Any, forget: bool) -> None:
        chunk = data.draw(st.sampled_from(self.regions))
        self.photos.do("region_swept", group=0, chunk=chunk)
        if forget and not list(layout.frees_of_region(self.photos.group.kv, self.photos.id, 0, chunk)):
            with contextlib.suppress(Busy):
                self.photos.do("forget_region", group=0, chunk=chunk)

    @rule(data=st.data())
    def discard(self, data: Any) -> None:
        if frees := self.photos.frees():
            some = data.draw(st.lists(st.sampled_from(frees), max_size=4))
            self.photos.do("discarded", extents=[list(each) for each in some])

    @rule()
    def repair(self) -> None:
        for replica in self.photos.members():
            extents = [list(each) for each in self.photos.lacks(replica)]
            self.photos.do("repaired", replica=replica, extents=extents)

    @rule()
    def replace_member(self) -> None:
        of = self.photos.record["groups"][0]
        if of["wish"] is None:
            fields = {"volume": self.photos.id, "group": 0, "version": of["version"]}
            old, n = of["members"][0]["replica"], of["version"] + 3
            more = {"old": old, "device": f"d{n}", "host": f"h{n}"}
            self.photos.group.apply("plan_replacement", **fields, **more)
            return
        replica = of["wish"]["replica"]
        self.photos.do("built", group=0, replica=replica, address=1 << 58)
        try:
            self.photos.reconfigure(of["wish"]["replaces"], replica)
        except StaleConfiguration:
            assert self.photos.lacks(replica)

    @invariant()
    def as_in_the_model(self) -> None:
        found = layout.scan_objects(self.photos.group.kv, self.photos.id, "", b"")
        assert {key: entry["id"] for key, entry in found} == self.model


TestCommands = Commands.TestCase
