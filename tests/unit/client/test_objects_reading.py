"""Reading one object from members that lack it, are slow, or answer garbage; any range of any object."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.client.objects import reading
from moorage.client.objects.reading import AHEAD, ObjectReader, wanted_pieces
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, block_sums
from moorage.wire.errors import CannotConnect, Corrupt, Invalid, ProtocolError, Unavailable

from .object_devices import FOREVER, FakeDevices, group

MIB = 1 << 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "HEDGE_S", 0.002)
    monkeypatch.setattr(reading, "SLOW_S", 0.02)


class Stored:
    """An object on three devices. ``parts``: (size, blocks of each of its extents)."""

    def __init__(self, parts: list[tuple[int, list[int]]], shown: bool = True, seed: int = 1) -> None:
        self.devices = FakeDevices()
        self.data = random.Random(seed).randbytes(sum(size for size, _ in parts))
        extents: list[list[int]] = []
        address, at = 1020, 0
        for size, runs in parts:
            rest = self.data[at : at + size].ljust(sum(runs) * BLOCK_SIZE, b"\0")
            at += size
            for blocks in runs:
                number = len(extents) % 2
                extents.append([number, *divmod(address, BLOCKS_PER_CHUNK), blocks])
                for replica in (1, 2, 3):
                    held = self.devices.blocks.setdefault(10 * number + replica, {})
                    for each in range(blocks):
                        held[address + each] = rest[each * BLOCK_SIZE : (each + 1) * BLOCK_SIZE]
                rest = rest[blocks * BLOCK_SIZE :]
                address += blocks + 3
        self.found: dict[str, Any] = {
            "key": "k",
            "size": len(self.data),
            "extents": extents,
            "parts": [[size, len(runs)] for size, runs in parts] if shown else [],
            "groups": [group(number, *(10 * number + n for n in (1, 2, 3))) for number in (0, 1)],
        }

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        async with asyncio.timeout(10):
            return await ObjectReader(self.devices, self.found, offset, length).read()


@st.composite
def parts_of(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        runs = draw(st.lists(st.sampled_from([1, 2, 7, 300]), min_size=1, max_size=3))
        most = sum(runs) * BLOCK_SIZE
        size = draw(st.one_of(st.just(most), st.integers(most - BLOCK_SIZE + 1, most)))
        found.append((size, runs))
    return found


@settings(max_examples=60)
@given(parts_of(), st.data())
def test_ranges_are_slices(parts: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    stored = Stored(parts, shown=len(parts) > 1)
    size = len(stored.data)
    edges = sorted({0, 1, size, *(sum(each[0] for each in parts[:n]) for n in range(len(parts)))})
    place = st.one_of(st.sampled_from(edges), st.integers(0, size))

    async def run() -> None:
        assert await stored.read() == stored.data
        for _ in range(4):
            offset, length = data.draw(place), data.draw(st.one_of(st.none(), place, st.integers(0, 9000)))
            expected = stored.data[offset:] if length is None else stored.data[offset : offset + length]
            assert await stored.read(offset, length) == expected

    asyncio.run(run())


async def test_an_object_of_nothing() -> None:
    stored = Stored([(0, [1])])
    assert await stored.read() == b"" and not stored.devices.calls
    stored.found |= {"extents": [], "parts": []}
    assert await stored.read(0, 10) == b""


@pytest.mark.parametrize("offset", [-1, 5001])
async def test_an_offset_outside(offset: int) -> None:
    with pytest.raises(Invalid, match="not inside"):
        await Stored([(5000, [2])]).read(offset)


@pytest.mark.parametrize(
    "change", [{"extents": []}, {"parts": [[5000, 1], [10, 1]]}, {"size": 10_000, "parts": []}]
)
async def test_extents_that_are_not_the_object(change: dict[str, Any]) -> None:
    stored = Stored([(5000, [2])])
    stored.found |= change
    with pytest.raises(ProtocolError, match="not as long as it is"):
        await stored.read()


async def test_whoever_lacks_it_is_passed_over() -> None:
    stored = Stored([(40_000, [4, 6])])
    for replica in (1, 11):
        stored.devices.blocks[replica].clear()
    for replica in (2, 12):
        stored.devices.errors[replica] = CannotConnect("away")
    assert await stored.read() == stored.data
    for replica in (3, 13):
        stored.devices.errors[replica] = CannotConnect("away")
    with pytest.raises(Unavailable, match="'k' cannot be read from any member"):
        await stored.read()


@pytest.mark.parametrize(
    "garbage",
    [
        (block_sums(bytes(BLOCK_SIZE)), b"x" * BLOCK_SIZE),
        (bytes(8), bytes(BLOCK_SIZE)),
        (block_sums(bytes(BLOCK_SIZE)), b""),
        (block_sums(bytes(2 * BLOCK_SIZE)), bytes(2 * BLOCK_SIZE)),
        (b"", b""),
        (None, bytes(BLOCK_SIZE)),
        ("sums", bytes(BLOCK_SIZE)),
    ],
)
async def test_garbage_is_not_handed_out(garbage: Any) -> None:
    stored = Stored([(4000, [1])])
    stored.devices.garbage = {1: garbage, 2: garbage}
    for _ in range(3):
        assert await stored.read() == stored.data
    stored.devices.garbage[3] = garbage
    with pytest.raises(Corrupt):
        await stored.read()


async def test_all_bad_is_corrupt_and_one_away_is_not() -> None:
    stored = Stored([(4000, [1])])
    stored.devices.errors = {n: Corrupt("bad block") for n in (1, 2, 3)}
    with pytest.raises(Corrupt):
        await stored.read()
    stored.devices.errors[2] = CannotConnect("away")
    with pytest.raises(Unavailable):
        await stored.read()


# -- who is asked ------------------------------------------------------------------------------------------


async def test_the_nearest_is_asked_and_the_rest_by_turns() -> None:
    stored = Stored([(20 * MIB, [256] * 20)])
    await stored.read()
    asked = [stored.devices.calls.count((replica, "node.read_blocks")) for replica in (1, 2, 3, 11, 12, 13)]
    assert sum(asked) >= 20 and min(asked) >= 1, "no member has all the work"
    stored.devices.calls.clear()
    stored.devices.distance = {2: 0, 13: 0}
    await stored.read()
    assert {replica for replica, _ in stored.devices.calls} == {2, 13}


async def test_a_member_that_hangs_costs_a_moment() -> None:
    stored = Stored([(12 * MIB, [256] * 12)])
    stored.devices.delays = {1: FOREVER, 11: FOREVER}
    stored.devices.hedges.tokens = 0.0
    assert await stored.read() == stored.data
    for _ in range(3):
        await asyncio.sleep(0)
    assert not stored.devices.under_way[1]
    stored.devices.calls.clear()
    assert await stored.read() == stored.data
    assert not {replica for replica, _ in stored.devices.calls} & {1, 11}, "others are asked for a while"


async def test_all_slow_are_not_asked_twice_each_time() -> None:
    """A network that is busy would be busier with what is read twice."""
    stored = Stored([(20 * MIB, [256] * 20)])
    stored.devices.delays = dict.fromkeys((1, 2, 3, 11, 12, 13), 0.008)
    stored.devices.hedges.tokens = 2.0
    assert await stored.read() == stored.data
    pieces = len(list(wanted_pieces(stored.found, 0, 20 * MIB)))
    assert len(stored.devices.calls) <= pieces + 6


async def test_no_more_is_read_than_is_wanted_soon() -> None:
    stored = Stored([(20 * MIB, [256] * 20)])
    reader = ObjectReader(stored.devices, stored.found)
    pieces = aiter(reader)
    await anext(pieces)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(stored.devices.calls) <= AHEAD + 1
    await pieces.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    assert not any(stored.devices.under_way.values())


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    stored = Stored([(3 * MIB, [256] * 3)])
    stored.devices.delays = dict.fromkeys((1, 2, 3, 11, 12, 13), FOREVER)
    task = asyncio.create_task(stored.read())
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert not any(stored.devices.under_way.values())
