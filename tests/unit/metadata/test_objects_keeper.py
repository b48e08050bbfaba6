"""Who sees to the bytes of objects: rounds against devices in memory that fail, are silent, and change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.metadata.objects import layout
from moorage.metadata.objects.layout import REGION_CHUNKS, Extent
from moorage.metadata.objects.writers import Writers
from moorage.metadata.tasks import objects as keeping
from moorage.metadata.tasks.objects import ObjectKeeper
from moorage.wire.errors import CannotConnect, Damaged, MoorageError, NoReplica, NotLeader, Stale

from .conftest import AppliedGroup
from .photos import W1, Photos

REGION = REGION_CHUNKS * 1024


class Devices:
    """As orders are given to them. ``blocks`` and ``gone`` by replica: addresses."""

    def __init__(self) -> None:
        self.blocks: dict[int, set[int]] = {}
        self.gone: dict[int, set[int]] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda device, method: None
        self.unreadable: set[int] = set()
        self.created: list[tuple[str, int]] = []
        self.damage: dict[int, str] = {}  # by replica
        self.bad: dict[int, set[int]] = {}  # by replica: addresses

    def write(self, replicas: list[int], extent: list[int]) -> None:
        for replica in replicas:
            self.blocks.setdefault(replica, set()).update(_addresses(extent[1:]))

    async def create_replicas(
        self, device: str, term: int, orders: list[dict[str, Any]], timeout: float
    ) -> list[MoorageError | None]:
        for order in orders:
            assert order["durability"] == "objects"
            self.created.append((device, order["replica"]))
            self.blocks.setdefault(order["replica"], set())
        return [None] * len(orders)

    async def ask(self, device: str, method: str, params: dict[str, Any], term: int, timeout: float) -> Any:
        self.asked.append((device, method))
        self.before(device, method)
        await asyncio.sleep(0)
        if device in self.down:
            raise CannotConnect(f"{device} is down")
        replica = params["replica"]
        if replica not in self.blocks:
            raise NoReplica(f"{device} has no replica {replica}")
        have, gone = self.blocks[replica], self.gone.setdefault(replica, set())
        match method:
            case "node.discard_blocks":
                for piece in params.get("pieces", ()):
                    gone |= _addresses(piece)
                for chunk, chunks in params.get("regions", ()):
                    gone |= set(range(chunk * 1024, (chunk + chunks) * 1024))
                have -= gone
                return {}
            case "node.lacking_blocks" if replica in self.damage:
                raise Damaged(f"{device}: {self.damage[replica]}", damage=self.damage[replica])
            case "node.mended_blocks":
                if self.damage.get(replica, "") != params["damage"]:
                    raise Stale("it was damaged again")
                self.damage.pop(replica, None)
                return {}
            case "node.lacking_blocks":
                bad = self.bad.get(replica, set())
                lacking = [piece for piece in params["pieces"] if not _addresses(piece) <= have - bad]
                return {"lacking": lacking, "bad": len(bad)}
            case "node.fetch_blocks":
                left = [piece for piece in params["pieces"] if not self._fetch(params, piece, have, gone)]
                return {"left": left, "why": "nobody has it"}
        raise AssertionError(method)

    def _fetch(self, params: dict[str, Any], piece: list[int], have: set[int], gone: set[int]) -> bool:
        for source in params["sources"]:
            of = self.blocks[source["replica"]] - self.unreadable
            if source["device"] not in self.down and _addresses(piece) <= of and not _addresses(piece) & gone:
                have |= _addresses(piece)
                self.bad.get(params["replica"], set()).difference_update(_addresses(piece))
                return True
        return False


def _addresses(piece: list[int]) -> set[int]:
    chunk, block, blocks = piece
    return set(range(chunk * 1024 + block, chunk * 1024 + block + blocks))


class Kept:
    def __init__(self, groups: int = 1) -> None:
        self.group = AppliedGroup()
        self.photos = Photos(self.group, groups)
        self.devices = Devices()
        self.proposed: list[str] = []
        self.writers = Writers()
        self.before_proposal: Callable[[dict[str, Any]], None] = lambda command: None
        self.context: Any = SimpleNamespace(
            replicated=SimpleNamespace(kv=self.group.kv),
            directory=SimpleNamespace(address_of=lambda device: f"at-{device}", tell=lambda *_: None),
            orders=self.devices,
            propose=self.propose,
            order_timeout_s=1.0,
            term=3,
        )
        self.keeper = ObjectKeeper(self.context, self.writers)
        for group in range(groups):
            for replica in self.photos.members(group):
                self.devices.blocks[replica] = set()

    async def propose(self, command: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        self.before_proposal(command)
        self.proposed.append(command["do"])
        return self.group.apply(**command)

    def age(self, generations: int = 2) -> None:
        for _ in range(generations):
            self.group.apply("next_generation", generation=layout.generation(self.group.kv))

    async def round(self, generations: int = 2) -> None:
        self.age(generations)
        self.keeper._silent.clear()
        self.keeper._regions_next.clear()
        await self.keeper._round(self.photos.id)

    def put(self, key: str, extent: list[int], lost: tuple[int, ...] = ()) -> None:
        holders = [each for each in self.photos.members(extent[0]) if each not in lost]
        self.devices.write(holders, extent)
        self.photos.put(key, extent, stored=[holders])

    async def look(self) -> None:
        """A round in which members are asked whether they are damaged."""
        self.keeper._damage_next[self.photos.id] = 0.0
        await self.round(0)

    async def build(self) -> None:
        bucket = self.photos.record
        (group,) = [group for group in bucket["groups"] if group["wish"]]
        await self.keeper._build(bucket, group)


@pytest.fixture
def kept() -> Kept:
    return Kept()


# -- what is free ------------------------------------------------------------------------------------------


async def test_what_is_free_is_discarded_everywhere_and_noted(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    kept.put("b", [0, 0, 3, 1])
    kept.photos.delete("a")
    await kept.round()
    assert not kept.photos.frees()
    assert [kept.devices.blocks[each] for each in kept.photos.members()] == [{3}] * 3


async def test_what_is_free_is_kept_for_readers(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    kept.photos.delete("a")
    await kept.round(1)
    assert kept.photos.frees() and not kept.devices.asked


async def test_a_member_that_is_away_keeps_what_it_has_to_discard(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    kept.photos.delete("a")
    kept.devices.down = {"d2"}
    await kept.round()
    asked = len(kept.devices.asked)
    await kept.keeper._round(kept.photos.id)
    assert len(kept.devices.asked) == asked, "nobody is asked while one of them is silent"
    assert kept.photos.frees()
    kept.devices.down = set()
    await kept.round()
    assert not kept.photos.frees()


async def test_a_member_that_comes_meanwhile_is_not_passed_over(kept: Kept) -> None:
    """It was built from what was there: also from what is gone now."""
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    kept.put("b", [0, 0, 3, 1])
    kept.photos.delete("a")
    later: list[int] = []

    def change(*_: Any) -> None:
        if not later:
            later.append(kept.photos.wish())
            kept.devices.write(later, [0, 0, 0, 4])

    kept.devices.before = change
    kept.age()
    await kept.keeper._discard_free(kept.photos.id)
    assert kept.photos.frees(), "not by all who have it"
    await kept.round()
    assert not kept.photos.frees()
    assert [kept.devices.blocks[each] for each in (*kept.photos.members(), *later)] == [{3}] * 4


async def test_rounds_take_what_is_free_in_turns(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOOKED_AT", 4)
    monkeypatch.setattr(keeping, "AT_ONCE", 3)
    kept.photos.open()
    for number in range(10):
        kept.put(f"k{number}", [0, number, 0, 1])
    kept.photos.delete(*[f"k{number}" for number in range(10)])
    left = []
    while kept.photos.frees():
        await kept.round()
        left.append(len(kept.photos.frees()))
    assert left == [6, 2, 0]


# -- regions -----------------------------------------------------------------------------------------------


async def test_a_region_of_a_writer_that_is_gone_is_closed_swept_and_forgotten(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.photos.open()
    members = kept.photos.members()
    kept.put("a", [0, 1, 0, 5])
    kept.devices.write(members[1:], [0, 0, 1023, 1])  # of an object that was not put
    kept.devices.write(members[:1], [0, 63, 0, 1024])
    kept.writers.heard(W1)
    await kept.round()
    assert kept.photos.region(0, 0)["state"] == "open"
    monkeypatch.setattr(kept.writers, "is_gone", lambda writer: True)
    await kept.round()
    assert kept.photos.region(0, 0)["state"] == "closed"
    await kept.round()
    assert kept.photos.region(0, 0)["state"] == "swept"
    assert [kept.devices.blocks[each] for each in members] == [_addresses([1, 0, 5])] * 3
    kept.photos.delete("a")
    await kept.round()
    assert kept.photos.region(0, 0) is None
    assert kept.devices.gone[members[0]] == set(range(REGION))


async def test_what_readers_may_read_still_is_not_swept(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 5])
    kept.put("b", [0, 0, 5, 5])
    kept.photos.delete("a")
    kept.photos.do("close_regions", regions=[[0, 0]])
    await kept.round(0)
    await kept.round(0)
    assert kept.photos.region(0, 0)["state"] == "swept"
    kept.photos.delete("b")
    await kept.round(0)
    assert kept.photos.region(0, 0)["state"] == "swept", "it is read still"
    assert kept.devices.blocks[kept.photos.members()[0]] == set(range(10))
    await kept.round()
    assert kept.photos.region(0, 0) is None and not kept.photos.frees()


async def test_an_object_that_is_deleted_while_its_region_is_swept_is_left_to_readers(kept: Kept) -> None:
    kept.photos.open()
    for number in range(3):
        kept.put(f"k{number}", [0, number, 0, 1])
    kept.photos.do("close_regions", regions=[[0, 0]])
    sweep = asyncio.create_task(kept.keeper._sweep(kept.photos.id, 0, 0))
    for number in range(3):
        await asyncio.sleep(0)
        kept.photos.delete(f"k{number}")
    await sweep
    assert kept.devices.blocks[kept.photos.members()[0]] == {0, 1024, 2048}


async def test_rounds_take_regions_in_turns(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "REGIONS_AT_ONCE", 2)
    chunks = [kept.photos.open() for _ in range(5)]
    kept.photos.do("close_regions", regions=[[0, chunk] for chunk in chunks])
    swept = []
    for _ in range(3):
        await kept.round()
        swept.append(kept.proposed.count("region_swept"))
    assert swept == [2, 4, 5]
    for _ in range(3):
        await kept.round()
    assert not list(layout.regions(kept.group.kv, kept.photos.id))


async def test_a_sweep_does_not_look_at_all_that_is_free(kept: Kept) -> None:
    for _ in range(3):
        kept.photos.open()
    for number in range(200):
        kept.put(f"k{number}", [0, 64 + number % 100, number // 100, 1])
    kept.photos.delete(*[f"k{number}" for number in range(200)])
    assert len(list(layout.frees_of_region(kept.group.kv, kept.photos.id, 0, 0))) == 0
    assert len(list(layout.frees_of_region(kept.group.kv, kept.photos.id, 0, 64))) == 128


# -- what members lack -------------------------------------------------------------------------------------


async def test_what_a_member_lacks_is_copied_to_it(kept: Kept) -> None:
    a, b, c = kept.photos.members()
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3], lost=(b,))
    kept.put("b", [0, 0, 3, 3], lost=(c,))
    await kept.round()
    assert not kept.photos.lacks(b) and not kept.photos.lacks(c)
    assert [kept.devices.blocks[each] for each in (a, b, c)] == [set(range(6))] * 3


async def test_a_part_of_an_extent_is_not_the_extent(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parts were copied as extents were asked for: that does not make one of the other."""
    monkeypatch.setattr(keeping, "COPY_BLOCKS", 100)
    b = kept.photos.members()[1]
    kept.photos.open()
    kept.put("large", [0, 0, 0, 200], lost=(b,))
    kept.put("small", [0, 0, 200, 1], lost=(b,))
    kept.devices.unreadable = set(range(100, 200))
    await kept.round()
    assert kept.photos.lacks(b) == [(0, 0, 0, 200)]
    kept.devices.unreadable = set()
    await kept.round()
    assert not kept.photos.lacks(b)


async def test_what_nobody_has_keeps_nothing_else_from_being_copied(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "AT_ONCE", 3)
    b = kept.photos.members()[1]
    kept.photos.open()
    for number in range(8):
        kept.put(f"k{number}", [0, 0, number, 1], lost=(b,))
    kept.devices.unreadable = {0, 1, 2, 3}
    for _ in range(4):
        await kept.round()
    assert [extent.block for extent in kept.photos.lacks(b)] == [0, 1, 2, 3]
    kept.devices.unreadable = set()
    for _ in range(3):
        await kept.round()
    assert not kept.photos.lacks(b)


async def test_a_member_that_is_down_is_asked_once_in_a_while(kept: Kept) -> None:
    b = kept.photos.members()[1]
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3], lost=(b,))
    kept.devices.down = {"d2"}
    for _ in range(5):
        await kept.keeper._round(kept.photos.id)
    assert kept.devices.asked.count(("d2", "node.fetch_blocks")) == 1


async def test_verifying_finds_what_a_member_should_have(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "VERIFY_S", 0.0)
    monkeypatch.setattr(keeping, "AT_ONCE", 2)
    monkeypatch.setattr(keeping, "VERIFIED_AT_ONCE", 1)
    b = kept.photos.members()[1]
    kept.photos.open()
    for number in range(5):
        kept.put(f"k{number}", [0, 0, number, 1])
    kept.devices.blocks[b] -= {1, 4}
    rounds = 0
    while kept.devices.blocks[b] != set(range(5)):
        await kept.round()
        rounds += 1
        assert rounds < 9
    assert kept.proposed.count("note_lack") == 2 and rounds >= 3, "some in each round"


async def test_a_member_that_has_found_bad_blocks_gets_them_anew(kept: Kept) -> None:
    """Not only when all are asked for all they should have, hours later."""
    a, b, _ = kept.photos.members()
    kept.photos.open()
    for number in range(3):
        kept.put(f"k{number}", [0, 0, number, 1])
    await kept.look()
    kept.devices.bad[b] = {1}
    await kept.look()
    assert kept.photos.lacks(b) == [Extent(0, 0, 1, 1)]
    await kept.round()
    assert kept.devices.bad[b] == set() and kept.photos.lacks(b) == []
    kept.devices.bad[a] = {77}  # of no object
    asked = []
    for _ in range(3):
        kept.devices.asked.clear()
        await kept.look()
        asked.append(kept.devices.asked.count(("d1", "node.lacking_blocks")))
    assert asked == [2, 1, 1], "it is asked for all that it should have once"


async def test_lacks_of_who_is_no_member_any_more_go(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "AT_ONCE", 2)
    c = kept.photos.members()[2]
    kept.photos.open()
    for number in range(5):
        kept.put(f"k{number}", [0, 0, number, 1], lost=(c,))
    kept.devices.down = {"d3"}
    kept.photos.wish(old=c)
    await kept.build()
    assert c not in kept.photos.members() and kept.photos.lacks(c)
    for _ in range(4):
        await kept.round()
    assert not list(layout.lacking_replicas(kept.group.kv, kept.photos.id))


# -- a member to come --------------------------------------------------------------------------------------


async def test_a_member_to_come_gets_all_and_what_comes_meanwhile(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "AT_ONCE", 2)
    c = kept.photos.members()[2]
    kept.photos.open()
    for number in range(7):
        kept.put(f"k{number}", [0, number, 0, 1 + number])
    new = kept.photos.wish(old=c)
    number = 100

    def load(command: dict[str, Any]) -> None:
        """With each step there is something new: it never ends."""
        nonlocal number
        number += 1
        kept.put(f"k{number}", [0, 10 + number // 900, number % 900, 1])

    kept.before_proposal = load
    await kept.build()
    assert new in kept.photos.members()
    kept.before_proposal = lambda command: None
    for _ in range(20):
        await kept.round()
    a, b, _ = kept.photos.members()
    assert kept.devices.blocks[new] == kept.devices.blocks[a] == kept.devices.blocks[b]


async def test_a_build_goes_on_where_it_was(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "AT_ONCE", 2)
    kept.photos.open()
    for number in range(6):
        kept.put(f"k{number}", [0, number, 0, 1])
    new = kept.photos.wish()

    def fail(command: dict[str, Any]) -> None:
        if kept.proposed.count("built") == 1:
            kept.devices.down = {"d4"}

    kept.before_proposal = fail
    with pytest.raises(MoorageError):
        await kept.build()
    kept.before_proposal = lambda command: None
    assert kept.group.kv.get(layout.built_key(kept.photos.id, new)) == 3 * 1024 + 1
    kept.devices.down = set()
    kept.keeper._silent.clear()
    before = kept.devices.asked.count(("d4", "node.fetch_blocks"))
    await kept.build()
    assert new in kept.photos.members()
    assert kept.devices.asked.count(("d4", "node.fetch_blocks")) == before + 1


async def test_an_object_that_nobody_has_does_not_keep_a_member_from_being_replaced(kept: Kept) -> None:
    """The others have it, as metadata knows; one of them says that it is bad."""
    c = kept.photos.members()[2]
    kept.photos.open()
    kept.put("a", [0, 0, 0, 1])
    kept.put("bad", [0, 0, 1, 1])
    kept.put("z", [0, 0, 2, 1])
    kept.devices.unreadable = {1}
    new = kept.photos.wish(old=c)
    await kept.build()
    assert new in kept.photos.members() and kept.devices.blocks[new] == {0, 2}
    assert kept.photos.lacks(new) == [Extent(0, 0, 1, 1)]


async def test_the_only_copy_is_not_replaced_by_none(kept: Kept) -> None:
    a, b, c = kept.photos.members()
    kept.photos.open()
    kept.put("a", [0, 0, 0, 1])
    for replica in (a, b):
        kept.photos.do("note_lack", replica=replica, extents=[[0, 0, 0, 1]])
        kept.devices.blocks[replica].clear()
    kept.devices.down = {"d3"}
    kept.photos.wish(old=c)
    await kept.build()
    assert c in kept.photos.members(), "it may come back"
    kept.devices.down = set()
    kept.keeper._silent.clear()
    await kept.build()
    assert c not in kept.photos.members()


# -- members that are damaged --------------------------------------------------------------------------------


async def test_a_damaged_member_gets_what_it_lost_and_is_mended(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    victim = kept.photos.members()[1]
    kept.devices.blocks[victim] = {0}
    kept.devices.damage[victim] = "1"
    await kept.look()
    assert kept.devices.blocks[victim] == {0, 1, 2} and not kept.devices.damage
    assert kept.proposed.count("rebuild") == kept.proposed.count("rebuilt") == 1
    await kept.look()
    assert kept.proposed.count("rebuild") == 1


async def test_damage_while_a_member_is_looked_through_has_it_looked_through_anew(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    victim = kept.photos.members()[1]
    kept.devices.damage[victim] = "1"

    def damage(_device: str, method: str) -> None:
        if method == "node.mended_blocks" and kept.devices.damage[victim] == "1":
            kept.devices.blocks[victim] = set()
            kept.devices.damage[victim] = "2"

    kept.devices.before = damage
    await kept.look()
    assert kept.devices.damage and "rebuilt" not in kept.proposed
    await kept.round()
    assert kept.devices.blocks[victim] == {0, 1, 2} and not kept.devices.damage
    assert kept.proposed.count("rebuild") == 2 and kept.proposed.count("rebuilt") == 1


async def test_a_new_leader_looks_a_damaged_member_through_from_the_start(kept: Kept) -> None:
    """It does not know of which damage the former one's look was."""
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    victim = kept.photos.members()[1]
    end = 1 << 40
    about = {"bucket": kept.photos.id, "group": 0, "replica": victim}
    kept.group.apply("rebuild", **about)
    kept.group.apply("built", **about, address=end)
    kept.devices.blocks[victim] = set()
    kept.devices.damage[victim] = "2"
    await kept.round()
    assert kept.devices.blocks[victim] == {0, 1, 2} and not kept.devices.damage


async def test_a_member_that_was_mended_under_a_former_leader_is_noted_to_be(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 3])
    about = {"bucket": kept.photos.id, "group": 0, "replica": kept.photos.members()[1]}
    kept.group.apply("rebuild", **about)
    await kept.round()
    assert kept.proposed.count("rebuilt") == 1 and "rebuild" not in kept.proposed


async def test_leadership_that_ends_ends_the_rounds(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "ROUND_S", 0.0)
    kept.photos.open()
    kept.put("a", [0, 0, 0, 1])
    kept.photos.delete("a")

    kept.age()

    def lost(command: dict[str, Any]) -> None:
        raise NotLeader("another one leads")

    kept.before_proposal = lost
    async with asyncio.timeout(10):
        await kept.keeper.run()


async def test_volumes_are_not_looked_at_each_second(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "ROUND_S", 0.0)
    looks: list[int] = []
    rounds: list[int] = []
    look = kept.keeper._look_for_buckets

    async def counted() -> None:
        looks.append(1)
        await look()

    async def round_(identity: int) -> None:
        rounds.append(identity)
        if len(rounds) == 20:
            raise NotLeader("another one leads")

    monkeypatch.setattr(kept.keeper, "_look_for_buckets", counted)
    monkeypatch.setattr(kept.keeper, "_round", round_)
    async with asyncio.timeout(10):
        await kept.keeper.run()
    assert rounds == [kept.photos.id] * 20 and len(looks) == 1


async def test_what_is_noted_of_buckets_that_are_gone_goes(kept: Kept) -> None:
    kept.photos.open()
    kept.put("a", [0, 0, 0, 1], lost=(kept.photos.members()[1],))
    await kept.round()
    await kept.keeper._look_for_buckets()
    assert kept.keeper._regions_next and kept.keeper._verify_next
    kept.photos.delete("a")
    kept.group.apply("delete", volume=kept.photos.id, epoch=0, request="", name="photos", now_ms=1)
    await kept.keeper._round(kept.photos.id)
    await kept.keeper._look_for_buckets()
    assert not kept.keeper._regions_next and not kept.keeper._verify_next and not kept.keeper._free_at
