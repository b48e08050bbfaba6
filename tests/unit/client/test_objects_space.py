"""Addresses to write to: each is given once, regions are opened when they are needed and given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.client.objects import space as spaces
from moorage.client.objects.space import PIECE_BLOCKS, RUN_BLOCKS_MAX, Run
from moorage.wire.errors import NotFound, Unavailable

from .object_devices import made

NOBODY: frozenset[int] = frozenset()


def addresses(run: Run) -> set[tuple[int, int]]:
    number = run.region.group["group"]
    return {(number, address) for address in range(run.address, run.address + run.blocks)}


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.booleans(), st.integers(1, PIECE_BLOCKS), st.integers(0, 4)), max_size=60),
)
def test_each_address_is_given_once(groups: int, wishes: list[tuple[bool, int, int]]) -> None:
    async def run() -> None:
        space, metadata, _ = made(groups)
        taken: set[tuple[int, int]] = set()
        for large, small, grown in wishes:
            blocks = min(PIECE_BLOCKS << grown, RUN_BLOCKS_MAX) if large else small
            run = await space.take(blocks, large=large, avoid=NOBODY)
            assert run.blocks == blocks and taken.isdisjoint(addresses(run))
            taken |= addresses(run)
            first, last = run.address, run.address + blocks - 1
            assert first // (64 * 1024) == last // (64 * 1024), "inside of one region"
            assert (run.region.group["group"], first // (64 * 1024) * 64) in metadata.open
            if large:
                assert first % PIECE_BLOCKS == 0
            else:
                assert first // 1024 == last // 1024, "a piece is of one chunk"

    asyncio.run(run())


async def test_many_at_once_open_one_region_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    space, metadata, _ = made(3)
    metadata.pause = 3
    runs = await asyncio.gather(*(space.take(1, large=False, avoid=NOBODY) for _ in range(50)))
    assert len({(run.region.group["group"], run.address) for run in runs}) == 50
    for _ in range(5):
        await space.take(1, large=False, avoid=NOBODY)
    assert metadata.calls.count("open_region") == 3
    assert {number for number, _ in metadata.open} == {0, 1, 2}


async def test_objects_go_to_all_groups_in_turns() -> None:
    space, _, _ = made(4)
    runs = [await space.take(1, large=False, avoid=NOBODY) for _ in range(40)]
    counts = [sum(run.region.group["group"] == number for run in runs) for number in range(4)]
    assert min(counts) >= 6


async def test_a_full_region_is_given_back_once_nothing_of_it_is_written() -> None:
    space, metadata, _ = made()
    per_region = 64 * 1024 // RUN_BLOCKS_MAX
    runs = [await space.take(RUN_BLOCKS_MAX, large=True, avoid=NOBODY) for _ in range(per_region + 1)]
    assert metadata.open == {(0, 0), (0, 64)}
    space.release(runs[1:per_region])
    await space.take(1, large=False, avoid=NOBODY)
    assert (0, 0) in metadata.open, "one object in it is being written"
    space.release(runs[:1])
    await space.close()
    assert metadata.open == {(0, 64), (0, 128)}, "of these there is something out"


async def test_a_region_that_is_full_when_nothing_of_it_is_written_is_given_back() -> None:
    space, metadata, _ = made()
    for _ in range(2 * 64 * 1024 // RUN_BLOCKS_MAX + 1):
        space.release([await space.take(RUN_BLOCKS_MAX, large=True, avoid=NOBODY)])
    assert metadata.open == {(0, 128)}
    await space.close()
    assert not metadata.open


async def test_a_group_that_is_left_is_given_back_in_both_lanes_and_not_offered_for_a_while() -> None:
    space, metadata, clock = made(2)
    for large in (False, True):
        for _ in range(4):
            space.release([await space.take(1 if not large else 256, large=large, avoid=NOBODY)])
    assert len(metadata.open) == 4
    space.leave_group(0)
    for _ in range(10):
        run = await space.take(1, large=False, avoid=NOBODY)
        assert run.region.group["group"] == 1
    clock.now += spaces.LEFT_S
    groups = {(await space.take(1, large=False, avoid=NOBODY)).region.group["group"] for _ in range(4)}
    assert groups == {0, 1}
    assert len([each for each in metadata.open if each[0] == 0]) == 1, "what was left is closed"


async def test_when_all_groups_were_left_one_is_tried_all_the_same() -> None:
    space, _, _ = made(2)
    await space.take(1, large=False, avoid=NOBODY)
    space.leave_group(0)
    space.leave_group(1)
    run = await space.take(1, large=False, avoid=frozenset({0}))
    assert run.region.group["group"] == 1
    with pytest.raises(Unavailable, match="no replica group"):
        await space.take(1, large=False, avoid=frozenset({0, 1}))


async def test_what_is_opened_for_nothing_is_given_back() -> None:
    space, metadata, _ = made()
    for _ in range(5):
        with pytest.raises(Unavailable):
            await space.take(1, large=False, avoid=frozenset({0}))
    assert len(metadata.open) == 1
    await space.close()
    assert not metadata.open


async def test_metadata_that_is_away_stops_who_has_no_region() -> None:
    space, metadata, _ = made(2)
    metadata.error = Unavailable("no leader")
    with pytest.raises(Unavailable):
        await space.take(1, large=False, avoid=NOBODY)
    metadata.error = None
    run = await space.take(1, large=False, avoid=NOBODY)
    metadata.error = Unavailable("no leader")
    again = await space.take(1, large=False, avoid=NOBODY)
    assert again.region is run.region


async def test_what_could_not_be_given_back_is_given_back_later() -> None:
    space, metadata, _ = made()
    await space.take(1, large=False, avoid=NOBODY)
    space.release([await space.take(256, large=True, avoid=NOBODY)])
    space.leave_group(0)
    metadata.error = NotFound("bucket")
    await space.close()
    assert len(metadata.open) == 2
    metadata.error = None
    await space.close()
    assert len(metadata.open) == 1


async def test_renewing_fails_no_write_and_is_tried_again() -> None:
    space, metadata, clock = made()
    await space.renew()
    assert not metadata.calls
    clock.now += spaces.RENEW_S + 1
    metadata.error = Unavailable("no leader")
    await space.renew()
    await space.renew()
    assert metadata.calls == ["renew_regions"], "not with each piece"
    clock.now += spaces.RENEW_AGAIN_S + 1
    metadata.error = None
    await space.renew()
    await space.renew()
    assert metadata.calls == ["renew_regions"] * 2 and space.heard_at == clock.now
    assert not space.is_old


async def test_a_space_that_metadata_has_not_heard_of_is_old_also_while_it_is_used() -> None:
    space, _, clock = made()
    await space.take(1, large=False, avoid=NOBODY)
    clock.now += 2 * spaces.RENEW_S + 1
    assert space.is_old
