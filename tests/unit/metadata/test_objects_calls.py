"""The calls about objects: what they bound, and how they take large things apart."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest

from moorage.metadata.attachments import Attachments
from moorage.metadata.objects import calls, layout
from moorage.metadata.objects.calls import ObjectCalls
from moorage.metadata.objects.room import STEP, Room
from moorage.metadata.objects.writers import SILENT_S, Writers
from moorage.wire import frame
from moorage.wire.errors import Invalid, LimitExceeded, Locked, MoorageError, NotFound, PreconditionFailed
from moorage.wire.secret import ClusterSecret

from .conftest import AppliedGroup
from .photos import W1, Photos

MIB = 1 << 20


class Rig:
    def __init__(self, groups: int = 1) -> None:
        self.group = AppliedGroup()
        self.photos = Photos(self.group, groups)
        self.proposed: list[dict[str, Any]] = []
        self.group_name = "m1"
        replicated: Any = SimpleNamespace(
            kv=self.group.kv, propose=self.propose, read_barrier=self.barrier, group="m1"
        )
        directory: Any = SimpleNamespace(know=self.barrier, address_of=lambda device: f"at-{device}")
        self.writers = Writers()
        secret = ClusterSecret("c" * 16, b"k" * 32)
        self.attachments = Attachments(replicated, directory, secret, lease_ms=4000)
        self.charged: list[int] = []
        self.quota: int | None = None  # of bytes
        room = Room(lambda: self.group.kv, self.charge, lambda: self.quota is not None)
        self.calls = ObjectCalls(replicated, directory, self.attachments, self.writers, room)
        self.methods = self.calls.methods()

    async def propose(self, command: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        assert len(frame.pack(command)) <= 512 << 10, "a command has its bound"
        self.proposed.append(command)
        return self.group.apply(**command)

    async def charge(self, bucket: dict[str, Any], size: int, timeout: float) -> None:
        await asyncio.sleep(0)
        if self.quota is not None and size > self.quota:
            raise LimitExceeded(f"quota {self.quota}", outcome="not_done")
        self.charged.append(size)

    async def barrier(self, *_: Any) -> None:
        await asyncio.sleep(0)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        answer = await self.methods[method](None, {"name": "photos", **params})
        assert len(frame.pack(answer)) <= frame.BODY_SIZE_MAX, "it would not fit into a frame"
        return answer

    async def deleted(self, **params: Any) -> list[bool]:
        return [outcome != 0 for outcome in (await self.call("delete_objects", **params))["outcomes"]]

    async def put(self, key: str, *extents: list[int], **more: Any) -> dict[str, Any]:
        made = self.photos.written(*extents)
        about = {key: value for key, value in made.pop("object").items() if key != "at_ms"}
        return await self.call("put_object", key=key, **{**made, **about, "size": 0, **more})


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_page_of_large_attributes_fits_and_goes_on(rig: Rig) -> None:
    rig.photos.open()
    keys = [f"k{number:03}" for number in range(60)]
    for key in keys:
        await rig.put(key, attributes={"a": "x" * 30_000})
    found: list[str] = []
    start, pages = b"", 0
    while True:
        page = await rig.call("list_objects", start=start)
        found += [each["key"] for each in page["objects"]]
        pages += 1
        if not (start := page["next"]):
            break
    assert found == keys and 3 <= pages <= 6


async def test_a_page_is_full_and_others_are_served_meanwhile(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "AT_ONCE", 7)
    for number in range(30):
        await rig.put(f"a/{number:02}")
        await rig.put(f"b{number:02}")
    page = await rig.call("list_objects", limit=20)
    assert len(page["objects"]) == 20 and page["next"] == b"a/20"
    page = await rig.call("list_objects", limit=20, delimiter="/")
    assert page["prefixes"] == ["a/"] and len(page["objects"]) == 19 and page["next"] == b"b19"
    page = await rig.call("list_objects", limit=20, delimiter="/", start=page["next"])
    assert len(page["objects"]) == 11 and page["next"] == b""
    page = await rig.call("list_objects", delimiter="/", after="a/", limit=1000)
    assert page["prefixes"] == [] and len(page["objects"]) == 30


@pytest.mark.parametrize(
    "params",
    [{"limit": 0}, {"limit": 1001}, {"start": "x"}, {"prefix": 5}, {"more": 1}, {"after": "k" * 1025}],
)
async def test_listings_that_make_no_sense(rig: Rig, params: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await rig.call("list_objects", **params)


async def test_parts_and_uploads_fit_too(rig: Rig) -> None:
    rig.photos.open()
    large = {"a": "x" * 30_000}
    for number in range(40):
        await rig.call("create_upload", upload=f"u{number}", key=f"k{number % 3}", attributes=large)
    uploads = await rig.call("list_uploads")
    assert uploads["more"] and 10 <= len(uploads["uploads"]) < 40
    order = [(row["key"], row["created_ms"], row["upload"]) for row in uploads["uploads"]]
    assert order == sorted(order)
    for number in range(1, 41):
        made = rig.photos.written([0, 0, number, 1])
        about = {key: value for key, value in made.pop("object").items() if key != "at_ms"}
        await rig.call("put_part", upload="u0", number=number, **{**made, **about, "attributes": large})
    numbers: list[int] = []
    while True:
        shown = await rig.call("show_upload", upload="u0", after=numbers[-1] if numbers else 0)
        numbers += [part["number"] for part in shown["parts"]]
        if not shown["more"]:
            break
    assert numbers == list(range(1, 41))


async def test_of_many_uploads_the_first_are_listed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "UPLOADS_PAGE", 5)
    for number in range(23):
        await rig.call("create_upload", upload=f"u{number:02}", key=f"k{22 - number:02}", attributes={})
    found = await rig.call("list_uploads")
    assert [row["key"] for row in found["uploads"]] == [f"k{number:02}" for number in range(5)]
    assert found["more"]
    found = await rig.call("list_uploads", prefix="k2")
    assert [row["key"] for row in found["uploads"]] == ["k20", "k21", "k22"] and not found["more"]


async def test_many_objects_are_deleted_by_several_commands(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is applied in one step: all else waits."""
    monkeypatch.setattr(calls, "FREED_AT_ONCE", 5)
    rig.photos.open()
    keys = [f"k{number}" for number in range(6)]
    for number, key in enumerate(keys):
        await rig.put(key, *([0, number, 2 * at, 1] for at in range(3)))
    rig.proposed.clear()
    assert await rig.deleted(keys=[*keys, "none", "k0"]) == [*[True] * 6, False, False]
    assert [len(command["keys"]) for command in rig.proposed] == [1, 1, 1, 1, 1, 2, 1]
    long = [f"{number:04}" + "k" * 1020 for number in range(1000)]
    rig.proposed.clear()
    monkeypatch.undo()
    assert len(await rig.deleted(keys=long)) == 1000
    assert len(rig.proposed) >= 8
    with pytest.raises(PreconditionFailed):
        await rig.call("delete_objects", keys=keys, condition={"etags": ["e"]})
    for bad in ([], "x", [""], ["k"] * 1001):
        with pytest.raises((Invalid, LimitExceeded)):
            await rig.call("delete_objects", keys=bad)


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "x" * 65},
        {"size": 4097},
        {"size": -1},
        {"writer": 0},
        {"extents": [[0, 0, 0]]},
        {"extents": [[0, 0, 0, True]], "stored": [[1]]},
        {"extents": [[0, 0, 0, 1]] * 8193, "stored": [[1]] * 8193},
        {"stored": []},
        {"stored": [["1"]]},
        {"attributes": {"a": "x" * 40_000}},
        {"attributes": {1: 2}},
        {"condition": {"etag": "x"}},
        {"condition": {"etags": "x"}},
        {"condition": [1]},
        {"key": ""},
        {"other": 1},
    ],
)
async def test_puts_that_make_no_sense(rig: Rig, change: dict[str, Any]) -> None:
    rig.photos.open()
    good = {"id": "i", "size": 4096, "writer": W1, "etag": "e", "attributes": {}, "key": "k"}
    good |= {"extents": [[0, 0, 0, 1]], "stored": [rig.photos.members()]}
    with pytest.raises(MoorageError) as caught:
        await rig.call("put_object", **{**good, **change})
    assert isinstance(caught.value, Invalid) and not rig.proposed
    await rig.call("put_object", **good)


async def test_regions_are_of_the_group_of_which_least_was_given() -> None:
    rig = Rig(2)
    given = [await rig.call("open_region", writer=W1, avoid=[]) for _ in range(4)]
    assert [(each["group"]["group"], each["chunk"]) for each in given] == [(0, 0), (1, 0), (0, 64), (1, 64)]
    assert given[0]["of"] == 2 and given[0]["group"]["members"][0]["address"] == "at-d1"
    assert (await rig.call("open_region", writer=W1, avoid=[0, 7]))["group"]["group"] == 1
    assert (await rig.call("open_region", writer=W1, avoid=[0, 1]))["group"]["group"] == 0
    for bad in ("x", [1.5], {0: 1}):
        with pytest.raises(Invalid):
            await rig.call("open_region", writer=W1, avoid=bad)
    await rig.call("close_regions", regions=[[0, 0], (1, 64)])
    states = {(g, c): region["state"] for g, c, region in layout.regions(rig.group.kv, rig.photos.id)}
    assert states[0, 0] == states[1, 64] == "closed" and states[0, 64] == "open"


async def test_an_object_is_shown_with_the_members_that_have_it() -> None:
    rig = Rig(2)
    rig.photos.open(1)
    await rig.put("k", [1, 0, 0, 1], size=5)
    found = await rig.call("get_object", key="k")
    assert found["extents"] == [[1, 0, 0, 1]] and [each["group"] for each in found["groups"]] == [1]
    with pytest.raises(NotFound):
        await rig.call("get_object", key="other")
    assert (await rig.call("show_bucket"))["objects"] == 1


async def test_what_members_lack_is_told_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(2)
    monkeypatch.setattr(calls, "LACKS_MAX", 3)
    rig.photos.open()
    first, second, third = rig.photos.members()
    learner = rig.photos.wish()
    for number in range(5):
        rig.photos.put(f"k{number}", [0, 0, number, 1], stored=[[first, second, learner]])
    rig.photos.do("note_lack", replica=second, extents=[[0, 0, 0, 1], [0, 0, 1, 1]])
    rig.photos.do("note_lack", replica=learner, extents=[[0, 0, 0, 1]])
    rig.photos.do("built", group=0, replica=learner, address=16 * 1024)
    rig.photos.do("rebuild", group=0, replica=second)
    found = await rig.call("show_lacks")
    assert found["id"] == rig.photos.id
    group, other = found["groups"]
    assert [(each["lacks"], each.get("built")) for each in group["members"]] == [(0, None), (2, 0), (3, None)]
    assert [each["replica"] for each in group["members"]] == [first, second, third]
    assert group["members"][0]["address"] == "at-d1"
    wish = group["wish"]
    assert (wish["replica"], wish["lacks"], wish["built"]) == (learner, 1, 25), "of 64 chunks"
    assert other["wish"] is None and [each["lacks"] for each in other["members"]] == [0, 0, 0]
    assert "lacks" not in (await rig.call("show_bucket"))["groups"][0]["members"][0], "it is asked often"


async def test_the_largest_object_can_be_shown(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {
        "id": "x" * 64,
        "size": 1 << 60,
        "etag": "e" * 255,
        "at_ms": 1 << 41,
        "attributes": {"a": "x" * 32_000},
    }
    extents = [[0, (1 << 40) + number, 1000, 1024] for number in range(calls.limits.OBJECT_EXTENTS_MAX)]
    parts = [[5 << 40, 4]] * 10_000
    layout.put_object(rig.group.kv, rig.photos.id, "k" * 1024, {**entry, "extents": extents, "parts": parts})
    rig.group.kv.commit()
    assert len((await rig.call("get_object", key="k" * 1024))["extents"]) == len(extents)
    assert len((await rig.call("list_objects"))["objects"]) == 1


async def test_a_delete_that_is_sent_again_takes_nothing_that_came_since(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what is a part of it would be another one by then."""
    monkeypatch.setattr(calls, "FREED_AT_ONCE", 4)
    rig.photos.open()
    keys = [f"k{number}" for number in range(5)]
    for number, key in enumerate(keys):
        await rig.put(key, [0, 0, number, 1])
    first = await rig.call("delete_objects", keys=keys, request="r")
    assert first == {"outcomes": [1] * 5, "markers": [None] * 5} and len(rig.proposed) > 2
    await rig.put("k1", [0, 0, 9, 1])
    for _ in range(2):
        assert await rig.call("delete_objects", keys=keys, request="r") == first
    assert rig.photos.get("k1") is not None
    assert (await rig.deleted(keys=keys, request="s")).count(True) == 1
    for bad in (3, "", "x" * 64):
        with pytest.raises(Invalid, match="request id"):
            await rig.call("delete_objects", keys=keys, request=bad)


async def test_objects_are_deleted_as_they_were_seen_in_parts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "FREED_AT_ONCE", 4)
    rig.photos.open()
    keys = [f"k{number}" for number in range(5)]
    ids = [(await rig.put(key, [0, 0, number, 1]))["id"] for number, key in enumerate(keys)]
    await rig.put("k3", [0, 0, 9, 1])
    found = await rig.deleted(keys=keys, ids=ids)
    assert found == [True, True, True, False, True] and len(rig.proposed) > 2
    for bad in (3, ids[:2]):
        with pytest.raises(Invalid, match="ids"):
            await rig.call("delete_objects", keys=keys, ids=bad)


async def test_attributes_that_are_sent_again_change_nothing_that_came_since(rig: Rig) -> None:
    rig.photos.open()
    await rig.put("a", [0, 0, 0, 1])
    made = rig.photos.get("a")
    assert made is not None
    about = {"key": "a", "id": made["id"]}
    assert (await rig.call("set_attributes", **about, attributes={"n": 1}, request="r"))["attributes"] == {
        "n": 1
    }
    await rig.call("set_attributes", **about, attributes={"n": 2}, request="s")
    again = await rig.call("set_attributes", **about, attributes={"n": 1}, request="r")
    assert again["attributes"] == {"n": 2}
    await rig.call("delete_objects", keys=["a"])
    with pytest.raises(PreconditionFailed):
        await rig.call("set_attributes", **about, attributes={"n": 1}, request="r")
    await rig.call("set_document", document="cors", text="1", request="t")
    await rig.call("set_document", document="cors", text=None, request="u")
    await rig.call("set_document", document="cors", text="1", request="t")
    assert layout.documents(rig.group.kv, rig.photos.id) == {}
    with pytest.raises(Invalid, match="was used for set_document"):
        await rig.call("set_attributes", **about, attributes={}, request="t")


async def test_a_damaged_device_hears_that_its_replica_is_of_a_bucket(rig: Rig) -> None:
    """It is offered again when that is what it knows of it."""
    answer = await rig.attachments.current_epochs(None, {"replicas": rig.photos.members()})
    assert {row["durability"] for row in answer["replicas"]} == {"objects"}


def test_a_writer_is_gone_when_it_was_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("moorage.metadata.objects.writers.time.monotonic", lambda: now)
    writers = Writers()
    writers.heard(1)
    now += SILENT_S
    writers.heard(2)
    assert not writers.is_gone(1) and not writers.is_gone(3)
    now += 1
    assert writers.is_gone(1) and writers.is_gone(3) and not writers.is_gone(2)
    writers.lead()
    assert not any(writers.is_gone(each) for each in (1, 2, 3)), "each gets all its time"
    writers.heard(1)
    now += 2 * SILENT_S + 1
    writers.forget_silent()
    assert not writers._heard and writers.is_gone(1)


# -- versions ----------------------------------------------------------------------------------------------


async def listed(rig: Rig, limit: int, **params: Any) -> list[tuple[str, str, bool, bool]]:
    """All pages: key, version, whether it is a marker, and the latest; and prefixes as keys."""
    found: list[tuple[str, str, bool, bool]] = []
    after = {"after": "", "version": ""}
    while True:
        page = await rig.call("list_versions", limit=limit, **{**params, **after})
        assert len(page["versions"]) + len(page["prefixes"]) <= limit
        rows = [(each["key"], each["version"], each["marker"], each["latest"]) for each in page["versions"]]
        rows = sorted([*rows, *((prefix, "", False, False) for prefix in page["prefixes"])], key=key_of)
        found += rows
        if page["next"] is None:
            return found
        assert page["next"][0] == rows[-1][0]
        after = dict(zip(("after", "version"), page["next"], strict=True))


def key_of(row: tuple[str, str, bool, bool]) -> bytes:
    return row[0].encode()


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
async def test_versions_are_listed_by_key_the_newest_first(rig: Rig, limit: int) -> None:
    rig.photos.open()
    blocks = iter(range(100))

    async def put(key: str) -> str:
        return str((await rig.put(key, [0, 0, next(blocks), 1]))["version"])

    long = "l" * 600
    old = [await put(key) for key in ("a", "b", "d/1", long)]
    assert old == ["null"] * 4
    assert await listed(rig, limit) == [(key, "null", False, True) for key in ("a", "b", "d/1", long)]
    await rig.call("set_versioning", state="enabled")
    a, one, two = await put("a"), await put("d/1"), await put("d/2")
    gone = (await rig.call("delete_objects", keys=["b", "c", long]))["markers"]
    assert len(set(gone)) == 1 and a < one < two < gone[0]
    all_versions = [
        ("a", a, False, True),
        ("a", "null", False, False),
        ("b", gone[0], True, True),
        ("b", "null", False, False),
        ("c", gone[0], True, True),
        ("d/1", one, False, True),
        ("d/1", "null", False, False),
        ("d/2", two, False, True),
        (long, gone[0], True, True),
        (long, "null", False, False),
    ]
    assert await listed(rig, limit) == all_versions
    assert await listed(rig, limit, prefix="d/") == all_versions[5:8]
    assert await listed(rig, limit, prefix=long[:500]) == all_versions[8:]
    assert await listed(rig, limit, delimiter="/") == [
        *all_versions[:5],
        ("d/", "", False, False),
        *all_versions[8:],
    ]
    assert [each["key"] for each in (await rig.call("list_objects"))["objects"]] == ["a", "d/1", "d/2"]
    page = await rig.call("list_versions", after="d/1", version=one, delimiter="/")
    assert [each["key"] for each in page["versions"]] == [long, long], "its prefix was told before"
    first = await rig.call("list_versions", limit=2)
    await rig.call("delete_objects", keys=["a"], versions=["null"])
    for version, begins in ((first["next"][1], "b"), ("null", "a")):
        page = await rig.call("list_versions", after="a", version=version)
        assert page["versions"][0]["key"] == begins, "where it was, if that is told; else from the beginning"
    for bad in ({"limit": 0}, {"version": 3}, {"other": 1}):
        with pytest.raises(Invalid):
            await rig.call("list_versions", **bad)


async def test_a_version_is_got_by_its_name(rig: Rig) -> None:
    rig.photos.open()
    first = await rig.put("a", [0, 0, 0, 1])
    await rig.call("set_versioning", state="enabled")
    second = await rig.put("a", [0, 0, 1, 1])
    assert (await rig.call("get_object", key="a", version="null"))["id"] == first["id"]
    assert (await rig.call("get_object", key="a", version=second["version"]))["id"] == second["id"]
    marker = (await rig.call("delete_objects", keys=["a"]))["markers"][0]
    for asked, told in (
        ({}, {"marker": marker}),
        ({"version": marker}, {"marker": marker}),
        ({"version": "0" * 16}, {"version": "0" * 16}),
        ({"version": "no name"}, {"version": "no name"}),
    ):
        with pytest.raises(NotFound) as refused:
            await rig.call("get_object", key="a", **asked)
        assert refused.value.details == {"key": "a", **told}
    shown = await rig.call("show_bucket")
    assert (shown["objects"], shown["former_versions"], shown["versioning"]) == (0, 3, "enabled")
    removed = {"keys": ["a", "a"], "versions": [marker, None]}
    assert await rig.call("delete_objects", **removed) == {"outcomes": [2, 1], "markers": [None, ANY]}
    with pytest.raises(Invalid, match="versions: use a list"):
        await rig.call("delete_objects", keys=["a"], versions=[])


async def test_what_is_noted_of_a_version_is_changed_by_its_name(rig: Rig) -> None:
    rig.photos.open()
    await rig.call("set_versioning", state="enabled", locks=True)
    first = await rig.put("a", [0, 0, 0, 1])
    await rig.put("a", [0, 0, 1, 1])
    about = {"key": "a", "id": first["id"], "version": first["version"]}
    found = await rig.call("set_attributes", **about, attributes={"n": 1})
    assert (found["version"], found["attributes"]) == (first["version"], {"n": 1})
    retention = ["COMPLIANCE", 1 << 60]
    assert (await rig.call("set_lock", **about, retention=retention))["lock"] == [*retention, False]
    assert (await rig.call("set_lock", **about, hold=True))["lock"] == [*retention, True]
    with pytest.raises(Locked, match="retained"):
        await rig.call("set_lock", **about, retention=["", 0], bypass=True)
    locked = {"keys": ["a"], "versions": [first["version"]]}
    assert await rig.call("delete_objects", **locked, bypass=True) == {"outcomes": [3], "markers": [None]}
    for bad in (["NONE", 5], ["", 5], ["GOVERNANCE", 0], "x", ["GOVERNANCE", 5, False]):
        with pytest.raises(Invalid, match=r"lock|retention"):
            await rig.call("set_lock", **about, retention=bad)
    with pytest.raises(Invalid, match="hold"):
        await rig.call("set_lock", **about, hold=1)
    with pytest.raises(Invalid, match="state"):
        await rig.call("set_versioning", state="off")


# -- quotas ------------------------------------------------------------------------------------------------


async def test_what_is_put_is_charged_before_in_steps(rig: Rig) -> None:
    for chunk in (0, 64, 128):
        assert rig.photos.open() == chunk
    chunks = iter(range(0, 192, 16))

    async def put(key: str, size: int) -> dict[str, Any]:
        return await rig.put(key, [0, next(chunks), 0, 16 * 1024], size=size)

    await put("before", MIB)
    assert rig.charged == [], "there is no quota"
    rig.quota = 2 * STEP + MIB
    await put("a", MIB)
    await put("b", MIB)
    assert rig.charged == [STEP], "what there was counts too"
    await put("b", STEP)
    assert rig.charged == [STEP, 2 * STEP]
    await put("b", STEP - MIB)
    assert rig.charged == [STEP, 2 * STEP], "what is replaced goes"
    await put("c", STEP)
    assert rig.charged[2:] == [2 * STEP + MIB], "a whole step more would be too much"
    with pytest.raises(LimitExceeded, match="quota"):
        await put("d", 1)
    await rig.deleted(keys=["b", "none"])
    assert rig.charged[3:] == [], "less than a step"
    await rig.deleted(keys=["c"])
    assert rig.charged[3:] == [STEP]
    await rig.call("set_versioning", state="enabled")
    await put("a", STEP - 2 * MIB)
    assert rig.charged[4:] == [] and rig.photos.versions("a")[1] == "null"
    await put("a", 1)
    assert rig.charged[4:] == [2 * STEP], "former versions count"


async def test_puts_at_once_do_not_pass_the_quota_together(rig: Rig) -> None:
    rig.quota = 3 * STEP
    rig.photos.open()
    rig.photos.open()
    puts = [rig.put(f"k{number}", [0, 16 * number, 0, 16 * 1024], size=STEP) for number in range(8)]
    found = await asyncio.gather(*puts, return_exceptions=True)
    refused = [each for each in found if isinstance(each, BaseException)]
    assert all(isinstance(each, LimitExceeded) for each in refused)
    assert (await rig.call("show_bucket"))["bytes"] <= 3 * STEP == max(rig.charged)
    assert 0 < len(refused) < 8


async def test_an_upload_counts_when_it_is_complete(rig: Rig) -> None:
    rig.quota = STEP
    rig.photos.open()
    rig.photos.begin("u", "k")
    for number in (1, 2):
        rig.photos.part("u", number, [0, 16 * number, 0, 16 * 1024], object=part(number, STEP - MIB))
    about = {"upload": "u", "key": "k", "id": "i", "etag": "e", "attributes": {}}
    with pytest.raises(LimitExceeded, match="quota"):
        await rig.call("complete_upload", **about, parts=[[1, "e1"], [2, "e2"]])
    assert (await rig.call("complete_upload", **about, parts=[[1, "e1"]]))["size"] == STEP - MIB
    rig.photos.begin("v", "k")
    written = {**rig.photos.written([0, 48, 0, 16 * 1024]), "size": 2 * MIB}
    about = {key: value for key, value in written.pop("object").items() if key != "at_ms"}
    with pytest.raises(LimitExceeded, match="quota"):
        await rig.call("put_part", upload="v", number=1, **{**about, **written})


def part(number: int, size: int) -> dict[str, Any]:
    return {"id": f"p{number}", "size": size, "etag": f"e{number}", "at_ms": 1, "attributes": {}}
