"""The volume's own duties over groups in memory: bounds, timeouts, unknown writes, detach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from moorage.client import front
from moorage.client.device import Done
from moorage.client.volume import Volume
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE, Buffer
from moorage.wire.errors import (
    DeadlineExceeded,
    Fenced,
    Invalid,
    MoorageError,
    NoQuorum,
    NoSpace,
    Overloaded,
    ReadOnly,
    ShuttingDown,
)


class Held:
    """A group that answers when told to: ``hold`` keeps acknowledgements back."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.log: list[bytes] = []
        self.hold = False
        self.held: list[Done] = []
        self.flushed = 0

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        for at in range(0, len(into), BLOCK_SIZE):
            into[at : at + BLOCK_SIZE] = self.blocks.get(
                chunk * 1024 + block + at // BLOCK_SIZE, bytes(BLOCK_SIZE)
            )
        self._answer(done)

    def look(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        first = chunk * 1024 + block
        into[:] = bytes([at in self.blocks for at in range(first, first + len(into))])
        self._answer(done)

    def write(self, chunk: int, block: int, data: Buffer, done: Done, fua: bool) -> None:
        self.log.append(bytes(data))
        for at in range(0, len(data), BLOCK_SIZE):
            self.blocks[chunk * 1024 + block + at // BLOCK_SIZE] = bytes(data[at : at + BLOCK_SIZE])
        self._answer(done)

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        for at in range(chunk * 1024 + block, chunk * 1024 + block + count):
            self.blocks.pop(at, None)
        self._answer(done)

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        self.zero(chunk, 0, count * 1024, done, fua)

    def flush(self, done: Done) -> None:
        self.flushed += 1
        self._answer(done)

    def waiting_for(self) -> str:
        return "waiting for 2 of 3: b silent for 14 s" if self.hold else ""

    def release(self) -> None:
        self.hold = False
        held, self.held = self.held, []
        for done in held:
            done(None)

    def _answer(self, done: Done) -> None:
        if self.hold:
            self.held.append(done)
        else:
            asyncio.get_running_loop().call_soon(done, None)


class Attached:
    epoch = 7

    def __init__(self) -> None:
        self.detached = 0

    async def detach(self, *, keep: bool = False) -> None:
        self.detached += 1

    async def resize(self, size: int) -> int:
        return size

    def describe(self) -> dict[str, Any]:
        return {"epoch": self.epoch}


def make(io_timeout: float = 60.0, read_only: bool = False) -> tuple[Volume, Held, Attached]:
    group, attached = Held(), Attached()
    volume = Volume(
        [group],
        name="db",
        size=4 * CHUNK_SIZE,
        durability="sync",
        attached=attached,
        io_timeout=io_timeout,
        read_only=read_only,
    )
    return volume, group, attached


async def test_any_offset_and_length() -> None:
    volume, _, _ = make()
    for offset, length in [(0, 1), (4095, 2), (CHUNK_SIZE - 3, 7000), (5000, 3 << 20), (volume.size - 1, 1)]:
        data = bytes(range(1, 252)) * (length // 251 + 1)
        await volume.write(offset, data[:length])
        assert await volume.read(offset, length) == data[:length]
    assert await volume.read(7, 0) == b""
    await volume.write(7, b"")


async def test_outside_the_volume_and_read_only() -> None:
    volume, _, _ = make()
    for offset, length in [(-1, 1), (volume.size, 1), (volume.size - 1, 2)]:
        with pytest.raises(Invalid, match="not inside the volume"):
            await volume.read(offset, length)
        with pytest.raises(Invalid, match="not inside the volume"):
            await volume.write(offset, bytes(length))
        with pytest.raises(Invalid, match="not inside the volume"):
            await volume.discard(offset, length)
    with pytest.raises(Invalid, match="not inside the volume"):
        await volume.read(0, 1 << 62)
    volume, group, _ = make(read_only=True)
    for attempt in (volume.write(0, b"x"), volume.discard(0, 1), volume.write_zeroes(0, 1)):
        with pytest.raises(ReadOnly):
            await attempt
    await volume.flush()
    assert not group.log and not group.flushed


@pytest.mark.parametrize("view", [lambda data: data, lambda data: memoryview(data).toreadonly()])
async def test_the_buffer_may_change_after_an_unknown_outcome(view: Callable[[bytearray], Buffer]) -> None:
    """The record stays in the window: members may ask for it after the caller has its buffer back."""
    volume, group, _ = make(io_timeout=0.05)
    kept: list[Buffer] = []
    group.write = lambda chunk, block, data, done, fua: kept.append(data)  # type: ignore[method-assign]
    data = bytearray(b"a" * BLOCK_SIZE)
    with pytest.raises(NoQuorum):
        await volume.write(0, view(data))
    data[:] = b"b" * BLOCK_SIZE
    assert bytes(kept[0]) == b"a" * BLOCK_SIZE
    with pytest.raises(NoQuorum):
        await volume.write(BLOCK_SIZE, whole := b"c" * 3 * BLOCK_SIZE)
    assert memoryview(kept[1]).obj is whole, "bytes are sent from where they are"


async def test_an_unknown_write_is_never_overtaken() -> None:
    volume, group, _ = make(io_timeout=0.05)
    group.hold = True
    with pytest.raises(NoQuorum, match="b silent for 14 s") as caught:
        await volume.write(0, b"1" * BLOCK_SIZE)
    assert caught.value.outcome == "unknown"
    with pytest.raises(NoQuorum):  # a part of that block: it would read first, so it must not even start
        await volume.write(1, b"2")
    assert len(group.log) == 1 and volume.order.active and not volume.order.waiting
    waiting = asyncio.create_task(volume.write(2, b"3"))
    await asyncio.sleep(0)
    assert len(group.log) == 1
    group.release()
    await waiting
    assert await volume.read(0, 4) == b"1131"
    assert not volume.order.active and not volume.bytes_in_flight


async def test_a_repair_that_was_given_up_may_be_asked_for_again() -> None:
    volume, group, _ = make(io_timeout=0.05)
    group.hold = True
    with pytest.raises(NoQuorum):
        await volume.write(1, b"x")
    volume.repair(group, 0, 0, 1)
    async with asyncio.timeout(5):
        while volume.repairs:
            await asyncio.sleep(0.01)
    group.release()


async def test_many_awaited_writes_wait_for_room() -> None:
    volume, group, _ = make()
    group.hold = True
    data = bytes(1 << 20)
    writes = [asyncio.create_task(volume.write(0, data)) for _ in range(200)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(group.log) < 100
    writes[150].cancel()
    group.release()
    ended = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(error is None for error in ended) == 199


async def crowd(volume: Volume, count: int) -> list[asyncio.Task[None]]:
    """Writes of 1 MiB each, more than there is room for."""
    writes = [asyncio.create_task(volume.write(0, bytes(1 << 20))) for _ in range(count)]
    await asyncio.sleep(0)
    return writes


async def test_writes_that_wait_for_room_hear_of_an_outage_and_of_its_end() -> None:
    volume, group, _ = make(io_timeout=0.05)
    group.hold = True
    writes = await crowd(volume, 70)
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(end) for end in ends] == [NoQuorum] * 70
    assert str(ends[-1]) == "not begun after 0.05 s: waiting for 2 of 3: b silent for 14 s"
    volume.io_timeout = 5
    late = asyncio.create_task(volume.write(0, bytes(1 << 20)))
    await asyncio.sleep(0)
    group.release()
    await late
    assert not volume.bytes_in_flight


async def test_the_end_of_cancelled_writes_makes_room_too() -> None:
    volume, group, _ = make()
    group.hold = True
    *writes, waiting = await crowd(volume, 66)
    for write in writes:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    group.release()
    async with asyncio.timeout(5):
        await waiting


async def test_a_write_cancelled_as_there_is_room_leaves_it_to_the_next() -> None:
    volume, group, _ = make()
    group.hold = True
    writes = await crowd(volume, 67)
    group.release()
    writes[65].cancel()
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*writes, return_exceptions=True)
    assert [at for at, end in enumerate(ends) if end is not None] == [65]


async def test_the_end_reaches_writes_that_wait_for_room() -> None:
    volume, group, _ = make(io_timeout=0)
    group.hold = True
    writes = await crowd(volume, 70)
    volume.close(Fenced("taken over"))
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*writes[65:], return_exceptions=True)
    assert [type(end) for end in ends] == [Fenced] * 5
    group.release()
    await asyncio.gather(*writes[:65])


async def test_fenced_ends_everything() -> None:
    volume, _, _ = make()
    volume.close(Fenced("taken over by x"))
    for attempt in (volume.read(0, 1), volume.write(0, b"x"), volume.flush(), volume.discard(0, 4096)):
        with pytest.raises(Fenced, match="taken over by x"):
            await attempt
    with pytest.raises(Fenced):
        await volume.block_status(0, BLOCK_SIZE)
    assert volume.failed is not None and volume.failed.__traceback__ is None, "they would pile up on it"


async def test_detach_finishes_what_is_in_flight() -> None:
    volume, group, attached = make()
    group.hold = True
    write = asyncio.create_task(volume.write(0, b"x"))
    await asyncio.sleep(0)
    detach = asyncio.create_task(volume.detach())
    await asyncio.sleep(0)
    assert not attached.detached
    group.release()
    await detach
    await write
    assert attached.detached == 1 and group.flushed == 1 and volume.detached
    await volume.detach()
    with pytest.raises(ShuttingDown, match="is detached"):
        await volume.read(0, 1)


async def test_each_detach_waits_for_the_first_which_nobody_cancels() -> None:
    volume, group, attached = make()
    group.hold = True
    write = asyncio.create_task(volume.write(0, b"x"))
    await asyncio.sleep(0)
    first, second = (asyncio.create_task(volume.detach()) for _ in range(2))
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert not second.done() and not attached.detached and not volume.detached
    group.release()
    await second
    assert write.done() and attached.detached == group.flushed == 1 and volume.detached


async def test_detach_lets_go_after_its_deadline() -> None:
    volume, group, attached = make()
    group.hold = True
    write = asyncio.create_task(volume.write(0, b"x" * BLOCK_SIZE))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await volume.detach(timeout=0.02)
    assert attached.detached == 1
    for done in group.held:
        done(ShuttingDown("detached"))
    with pytest.raises(MoorageError):
        await write


async def test_resize() -> None:
    volume, _, _ = make()
    await volume.resize("32M")
    assert volume.size == 32 << 20
    await volume.write(volume.size - 5, b"grown")


async def test_holes_are_found_and_nothing_else_is_called_one() -> None:
    volume, _, _ = make()
    assert await volume.block_status(0, volume.size) == [(volume.size, True)]
    await volume.write(CHUNK_SIZE, bytes(CHUNK_SIZE))  # zeroes that were written are data
    await volume.write(3 * CHUNK_SIZE, b"x" * CHUNK_SIZE)
    await volume.discard(3 * CHUNK_SIZE, CHUNK_SIZE)
    await volume.write(2 * CHUNK_SIZE + 5 * BLOCK_SIZE, b"x" * 8192)
    assert await volume.block_status(0, volume.size) == [
        (CHUNK_SIZE, True),
        (CHUNK_SIZE, False),
        (5 * BLOCK_SIZE, True),
        (8192, False),
        (2 * CHUNK_SIZE - 7 * BLOCK_SIZE, True),
    ]
    assert await volume.block_status(2 * CHUNK_SIZE + 100, 5 * BLOCK_SIZE) == [
        (5 * BLOCK_SIZE - 100, True),
        (100, False),
    ]
    assert await volume.block_status(5, 0) == []
    with pytest.raises(Invalid):
        await volume.block_status(0, volume.size + 1)


async def test_what_waits_for_a_range_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discards carry no bytes: behind one partial write they would pile up without end."""
    monkeypatch.setattr(front, "PIECES_MAX", 8)
    volume, group, _ = make()
    group.hold = True
    ends: list[BaseException | None] = []
    volume.write_nowait(1, memoryview(b"x"), ends.append)
    for _ in range(20):
        volume.zero_nowait(0, BLOCK_SIZE, ends.append, True)
    assert len(volume.order.waiting) == 8
    assert [type(end) for end in ends] == [Overloaded] * 12
    group.release()
    while volume.order.active:
        await asyncio.sleep(0)
    assert len(ends) == 21 and ends[12:] == [None] * 9
    await volume.write(0, b"y")


@pytest.mark.parametrize("unknown", [0, 1])
async def test_a_write_in_pieces_is_as_unknown_as_one_of_them(unknown: int) -> None:
    volume, group, _ = make()
    group.hold = True
    ends: list[BaseException | None] = []
    volume.write_nowait(0, memoryview(bytes(2 << 20)), ends.append)
    for at, done in enumerate(group.held):
        done(Fenced("taken over", outcome="unknown") if at == unknown else Fenced("taken over"))
    assert [getattr(end, "outcome", None) for end in ends] == ["unknown"]


@pytest.mark.parametrize("done_in_part", [False, True])
async def test_no_error_says_not_done_when_a_part_was(done_in_part: bool) -> None:
    volume, group, _ = make()
    group.hold = True
    ends: list[BaseException | None] = []
    volume.write_nowait(0, memoryview(bytes(2 << 20)), ends.append)
    group.held[0](NoSpace("full"))
    group.held[1](None if done_in_part else NoSpace("full"))
    (end,) = ends
    assert isinstance(end, NoSpace)
    assert (end.outcome, "part" in str(end)) == (("unknown", True) if done_in_part else ("not_done", False))


async def test_a_read_that_fails_in_part_says_nothing_of_effects() -> None:
    volume, group, _ = make()
    group.hold = True
    ends: list[BaseException | None] = []
    volume.read_nowait(0, memoryview(bytearray(2 << 20)), ends.append)
    group.held[0](None)
    group.held[1](Invalid("no"))
    (end,) = ends
    assert isinstance(end, Invalid) and (end.outcome, str(end)) == ("not_done", "no")
