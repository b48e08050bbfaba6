"""Writing one object to devices that fail, hang and are full: a majority of each group, bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.client.objects import writing
from moorage.client.objects.space import Space
from moorage.client.objects.writing import LATE_PIECES, WINDOW, Body, ObjectWriter, Written
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK
from moorage.wire.errors import CannotConnect, Invalid, NoQuorum, NoSpace, Unavailable

from .object_devices import FOREVER, FakeDevices, FakeMetadata, group, made

MIB = 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def in_parts(data: bytes, *sizes: int) -> AsyncIterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    if at < len(data):
        yield data[at:]


class Rig:
    def __init__(self, groups: int = 1) -> None:
        self.space: Space
        self.metadata: FakeMetadata
        self.space, self.metadata, self.clock = made(groups)
        self.devices = FakeDevices()

    async def store(self, body: Body) -> Written:
        writer = ObjectWriter(self.devices, self.space)
        try:
            return await writer.store(body)
        finally:
            await writer.end()

    def stored(self, written: Written, replica: int) -> bytes:
        """What one replica has of it; zeroes for what it lacks."""
        held = self.devices.blocks.get(replica, {})
        found = b""
        for _, chunk, block, blocks in written.extents:
            first = chunk * BLOCKS_PER_CHUNK + block
            found += b"".join(held.get(first + at, bytes(BLOCK_SIZE)) for at in range(blocks))
        return found[: written.size]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LATE_S", 0.005)


@settings(max_examples=25)
@given(
    st.one_of(
        st.sampled_from([0, 1, BLOCK_SIZE, BLOCK_SIZE + 1, MIB, MIB + 1, 3 * MIB]), st.integers(0, 3 * MIB)
    ),
    st.lists(st.integers(0, 2 * MIB), max_size=4),
    st.booleans(),
)
def test_all_members_get_all_of_it(size: int, sizes: list[int], streamed: bool) -> None:
    async def run() -> None:
        rig, data = Rig(), content(size)
        for _ in range(2):  # behind one another
            written = await rig.store(in_parts(data, *sizes) if streamed else data)
            assert (written.size, written.md5) == (size, hashlib.md5(data).hexdigest())
            assert written.holders == [[1, 2, 3]] * len(written.extents)
            assert [rig.stored(written, replica) for replica in (1, 2, 3)] == [data] * 3
            assert sum(extent[3] for extent in written.extents) == max(-(-size // BLOCK_SIZE), 1)
        await rig.space.close()
        assert not rig.metadata.open

    asyncio.run(run())


async def test_a_large_object_is_few_extents() -> None:
    rig = Rig()
    written = await rig.store(bytes(9 * MIB))
    assert len(written.extents) <= 4


async def test_a_body_that_is_no_bytes() -> None:
    with pytest.raises(Invalid, match="not str"):
        await Rig().store("text")  # type: ignore[arg-type]


async def test_a_body_that_fails_leaves_nothing_pinned() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield bytes(5 * MIB)
        raise ValueError("the upload ended")

    rig = Rig()
    with pytest.raises(ValueError, match="the upload ended"):
        await rig.store(body())
    await rig.space.close()
    assert not rig.metadata.open


# -- a majority --------------------------------------------------------------------------------------------


async def test_a_majority_is_enough_and_who_has_it_is_said() -> None:
    rig = Rig()
    rig.devices.errors[2] = CannotConnect("h2 cannot be reached")
    data = content(2 * MIB + 5)
    written = await rig.store(data)
    assert all(holders == [1, 3] for holders in written.holders)
    assert rig.stored(written, 1) == rig.stored(written, 3) == data


async def test_a_minority_is_not_enough_and_is_told_at_once() -> None:
    rig = Rig()
    rig.devices.errors = {1: CannotConnect("h1 is away"), 2: CannotConnect("h2 is away")}
    rig.devices.delays[3] = FOREVER  # it is not waited for
    with pytest.raises(NoQuorum, match=r"2 of 3 members are needed.*h1 is away"):
        async with asyncio.timeout(5):
            await rig.store(b"x")


async def test_full_devices_say_so_and_other_groups_are_tried_before() -> None:
    rig = Rig(2)
    for replica in (1, 2):
        rig.devices.errors[replica] = NoSpace("full")
    for _ in range(4):
        written = await rig.store(b"x" * 5000)
        assert written.extents[0][0] == 1 and written.holders == [[11, 12, 13]]
    for replica in (12, 13):
        rig.devices.errors[replica] = NoSpace("full")
    with pytest.raises(NoSpace, match="are full"):
        await rig.store(b"x")


async def test_one_full_device_of_three_is_a_minority() -> None:
    rig = Rig()
    rig.devices.errors[1] = NoSpace("full")
    assert (await rig.store(b"x")).holders == [[2, 3]]


async def test_a_group_that_fails_in_the_middle_is_left_and_all_bytes_are_there() -> None:
    rig = Rig(2)
    data = content(6 * MIB)

    async def body() -> AsyncIterator[bytes]:
        yield data[: 2 * MIB]
        for _ in range(20):
            await asyncio.sleep(0)
        first = next(number for number in (0, 1) if rig.devices.blocks.get(10 * number + 1))
        rig.devices.errors |= {10 * first + n: CannotConnect("away") for n in (1, 2)}
        yield data[2 * MIB :]

    written = await rig.store(body())
    groups = {extent[0] for extent in written.extents}
    assert written.size == len(data) and 1 <= len(groups) <= 2
    found = b""
    for number, chunk, block, blocks in written.extents:
        held = rig.devices.blocks[10 * number + 3]
        first = chunk * BLOCKS_PER_CHUNK + block
        found += b"".join(held[first + at] for at in range(blocks))
    assert found[: len(data)] == data


async def test_who_is_to_become_a_member_gets_it_and_does_not_count() -> None:
    rig = Rig()
    rig.metadata.groups = [group(0, 1, 2, 3, wish=4)]
    assert (await rig.store(b"x")).holders == [[1, 2, 3, 4]]
    rig.devices.errors = {2: CannotConnect("away"), 3: CannotConnect("away")}
    with pytest.raises(NoQuorum):
        await rig.store(b"x")
    rig = Rig()
    rig.metadata.groups = [group(0, 1, wish=4)]
    rig.devices.errors[4] = CannotConnect("not yet there")
    assert (await rig.store(b"x")).holders == [[1]]


async def test_no_regions_no_object() -> None:
    rig = Rig()
    rig.metadata.error = Unavailable("no leader")
    with pytest.raises(Unavailable):
        await rig.store(b"x")


# -- who is late -------------------------------------------------------------------------------------------


async def test_a_member_that_is_a_little_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LATE_S", 5.0)
    rig = Rig()
    rig.devices.delays[3] = 0.002
    written = await rig.store(content(3 * MIB))
    assert all(holders == [1, 2, 3] for holders in written.holders)


async def test_a_member_that_hangs_holds_little_in_memory() -> None:
    rig = Rig()
    rig.devices.delays[3] = FOREVER
    async with asyncio.timeout(20):
        written = await rig.store(bytes(30 * MIB))
    assert all(holders == [1, 2] for holders in written.holders) and len(written.extents) <= 5
    assert rig.devices.most[1] <= WINDOW and rig.devices.most[3] <= WINDOW + LATE_PIECES + 1
    await asyncio.sleep(0)
    assert rig.devices.under_way[3] == 0, "none is left behind"


async def test_a_majority_that_is_slow_holds_the_body_back() -> None:
    rig = Rig()
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield bytes(MIB)

    rig.devices.delays = {2: FOREVER, 3: FOREVER}
    task = asyncio.create_task(rig.store(body()))
    for _ in range(200):
        await asyncio.sleep(0)
    assert taken <= WINDOW + 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert not any(rig.devices.under_way.values())
    await rig.space.close()
    assert not rig.metadata.open


async def test_what_is_kept_of_a_large_object_does_not_grow_with_it() -> None:
    """But for its extents."""
    rig = Rig()
    writer = ObjectWriter(rig.devices, rig.space)
    most = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal most
        for _ in range(40):
            most = max(most, len(writer._tasks) + len(writer._sent))
            yield bytes(MIB)

    written = await writer.store(body())
    await writer.end()
    assert most <= WINDOW + LATE_PIECES + 1 and written.size == 40 * MIB


async def test_a_writer_that_ends_twice_as_long_renews(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(8):
            rig.clock.now += 60.0
            yield bytes(MIB)

    await rig.store(body())
    assert rig.metadata.calls.count("renew_regions") >= 2
    assert not rig.space.is_old


def test_extents_are_joined_where_the_same_have_what_lies_together() -> None:
    found = writing._Extents()
    for address, holders in ((0, {1, 2}), (256, {2, 1}), (512, {1, 3}), (768, {1, 3})):
        found.add(writing._Sent(0, 0, address, 256, holders))
    found.add(writing._Sent(0, 1024, 1024, 256, {1, 3}))  # of the region that follows
    found.add(writing._Sent(1, 1024, 1024 + 256, 7, {1, 3}))
    assert found.extents == [[0, 0, 0, 512], [0, 0, 512, 512], [0, 1, 0, 256], [1, 1, 256, 7]]
    assert found.holders == [[1, 2], [1, 3], [1, 3], [1, 3]]


def test_what_is_sent_to_metadata() -> None:
    written = Written("i", 3, "m", 7, [[0, 0, 0, 1]], [[1]])
    expected: dict[str, Any] = {"id": "i", "size": 3, "writer": 7, "extents": [[0, 0, 0, 1]], "stored": [[1]]}
    assert written.to_wire() == expected
