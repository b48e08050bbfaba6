"""Requests of a volume with ceilings, on a clock of their own: counted, in order, and never lost."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest

from moorage.client import front as fronts
from moorage.client.device import Done
from moorage.client.front import Front
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE
from moorage.wire.errors import Fenced, Invalid, MoorageError, Overloaded

from .test_volume import make

KIB, MIB = 1 << 10, 1 << 20


class Clock:
    """Time passes only when it is told to; every timer comes ``late_s`` after its time."""

    def __init__(self) -> None:
        self.time = 50.0
        self.late_s = 0.001
        self.timers: list[tuple[float, int, Any]] = []
        self.fired = self._number = 0

    def now(self) -> float:
        return self.time

    def later(self, seconds: float, call: Callable[[], None]) -> Any:
        assert seconds > 0, "nothing is polled"
        return self.at(self.time + seconds + self.late_s, Timer(call))

    def at(self, when: float, timer: Timer) -> Timer:
        self._number += 1
        heapq.heappush(self.timers, (when, self._number, timer))
        return timer

    def run(self, seconds: float) -> None:
        end = self.time + seconds
        while self.timers and self.timers[0][0] <= end:
            self.time, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                self.fired += not timer.io
                timer.call()
        self.time = end


class Timer:
    def __init__(self, call: Callable[[], None], io: bool = False) -> None:
        self.call = call
        self.io = io
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Group:
    """Answers soon, and remembers what came."""

    def __init__(self, clock: Clock) -> None:
        self.log: list[tuple[str, int]] = []
        self._clock = clock

    def _answer(self, done: Done) -> None:
        self._clock.at(self._clock.time + 20e-6, Timer(lambda: done(None), io=True))

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        self.log.append(("read", len(into)))
        self._answer(done)

    def write(self, chunk: int, block: int, data: Any, done: Done, fua: bool) -> None:
        self.log.append(("write", len(data)))
        self._answer(done)

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        self.log.append(("zero", count))
        self._answer(done)

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        self.zero(chunk, 0, count, done, fua)

    def flush(self, done: Done) -> None:
        done(None)

    def waiting_for(self) -> str:
        return ""


class Load:
    """``depth`` requests at once, each followed by the next one when it is done."""

    def __init__(self, front: Front, sizes: list[int], depth: int) -> None:
        self.count = self.bytes = self.issued = 0
        self.errors: list[BaseException] = []
        self.stopping = False
        self._front = front
        self._sizes = sizes
        for _ in range(depth):
            self.issue()

    def issue(self) -> None:
        size = self._sizes[self.issued % len(self._sizes)]
        self.issued += 1

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.errors.append(error)
                return
            self.count += 1
            self.bytes += size
            if not self.stopping:
                self.issue()

        if self.issued % 3:
            self._front.read_nowait(0, memoryview(bytearray(size)), done)
        else:
            self._front.write_nowait(0, memoryview(bytes(size)), done)


def limited(iops: int, bw: int) -> tuple[Front, Group, Clock]:
    clock = Clock()
    group = Group(clock)
    front = Front([group], 4 * CHUNK_SIZE, now=clock.now, later=clock.later, io_timeout=0)  # type: ignore[list-item]
    front.limit(iops, bw)
    return front, group, clock


@pytest.mark.parametrize("depth", [1, 32])
@pytest.mark.parametrize(
    ("iops", "bw", "sizes"),
    [
        (500, 0, [4 * KIB]),
        (5000, 0, [4 * KIB]),
        (0, 50 * MIB, [MIB]),
        (0, 5 * MIB, [4 * KIB, MIB, 1000, 4 * MIB]),
        (40, 100 * MIB, [64 * KIB, MIB]),
        (1000, 2 * MIB, [4 * KIB, 5000]),
    ],
)
def test_what_is_measured_is_the_ceiling(iops: int, bw: int, sizes: list[int], depth: int) -> None:
    front, _, clock = limited(iops, bw)
    load = Load(front, sizes, depth)
    clock.run(1.0)
    count, size = load.count, load.bytes
    clock.run(10.0)
    operations, bytes_ = (load.count - count) / 10, (load.bytes - size) / 10
    nearest = max(operations / iops if iops else 0.0, bytes_ / bw if bw else 0.0)
    assert not load.errors
    assert 0.9 < nearest < 1.1, f"{operations} operations/s, {bytes_ / MIB:.2f} MiB/s"


def test_they_wait_in_the_order_in_which_they_came() -> None:
    front, group, clock = limited(10, 0)
    Load(front, [4 * KIB, 8 * KIB, 12 * KIB], 3).stopping = True
    first = len(group.log)
    order = []
    for number in range(1, 30):
        kind = "write" if number % 2 else "read"
        order.append((kind, number * BLOCK_SIZE))
        buffer = memoryview(bytearray(number * BLOCK_SIZE))
        (front.write_nowait if number % 2 else front.read_nowait)(0, buffer, lambda error: None)
    clock.run(5.0)
    assert group.log[first:][-29:] == order


def test_zeroes_are_operations_without_bytes_and_flushes_are_nothing() -> None:
    front, group, _ = limited(0, MIB)
    for _ in range(100):
        front.zero_nowait(0, front.size, lambda error: None, True)
        front.flush_nowait(lambda error: None)
    assert len(group.log) == 100 and not front.gate


def test_nothing_runs_where_nothing_waits_or_nothing_is_limited() -> None:
    front, _, clock = limited(100, 0)
    front.read_nowait(0, memoryview(bytearray(4096)), lambda error: None)
    assert all(timer.io for _, _, timer in clock.timers)
    front.limit(0, 0)
    assert front.gate is None
    Load(front, [4096], 1).stopping = True
    clock.run(100.0)
    assert not clock.fired


def test_timers_are_no_more_than_what_goes_by_them() -> None:
    front, _, clock = limited(50, 0)
    load = Load(front, [4096], 16)
    clock.run(10.0)
    assert clock.fired <= load.count + 1


def test_what_would_be_refused_is_refused_at_once_and_costs_nothing() -> None:
    front, _, clock = limited(1, 0)
    errors: list[BaseException | None] = []
    for _ in range(10):
        front.read_nowait(front.size, memoryview(bytearray(4096)), errors.append)
    assert len(errors) == 10 and all(isinstance(error, Invalid) for error in errors)
    front.read_nowait(0, memoryview(bytearray(4096)), errors.append)
    clock.run(0.001)
    assert errors[10:] == [None]


def test_too_many_are_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "PIECES_MAX", 5)
    front, _, clock = limited(1, 0)
    load = Load(front, [4096], 8)
    clock.run(30.0)
    assert all(isinstance(error, Overloaded) for error in load.errors) and 0 < len(load.errors) < 8


def test_other_ceilings_hold_at_once() -> None:
    front, _, clock = limited(10, 0)
    load = Load(front, [4 * KIB], 8)
    clock.run(5.0)
    front.limit(1000, 0)
    count = load.count
    clock.run(5.0)
    assert 4900 <= load.count - count <= 5200
    front.limit(0, 400 * KIB)
    count = load.count
    clock.run(5.0)
    assert 490 <= load.count - count <= 520
    load.stopping = True
    front.limit(0, 0)
    clock.run(0.001)
    assert load.count == load.issued and front.gate is None


def test_the_end_tells_all_that_wait() -> None:
    front, _, clock = limited(1, 0)
    load = Load(front, [4096], 8)
    front.close(Fenced("taken over"))
    clock.run(0.001)
    assert len(load.errors) + load.count == load.issued
    assert {type(error) for error in load.errors} == {Fenced} and front.gate is None
    front.limit(5, 5)
    assert front.gate is None
    clock.run(10.0)
    assert not clock.fired


async def test_a_ceiling_fails_nothing_and_keeps_nobody_who_lets_go() -> None:
    """The io timeout is for members that do not answer, not for turns that have not come."""
    volume, group, attached = make(io_timeout=0.05)
    volume.limit(20, 0)
    await asyncio.gather(*(volume.write(at * BLOCK_SIZE, b"x" * BLOCK_SIZE) for at in range(8)))
    volume.limit(1, 0)
    waiting = [asyncio.ensure_future(volume.write(0, b"y" * BLOCK_SIZE)) for _ in range(5)]
    await asyncio.sleep(0)
    assert volume.describe()["waiting_for_ceilings"] == 5 and volume.describe()["iops"] == 1
    async with asyncio.timeout(1):
        await volume.detach()
    results: list[MoorageError | None] = await asyncio.gather(*waiting, return_exceptions=True)  # type: ignore[arg-type]
    assert results == [None] * 5 and attached.detached and len(group.log) == 13
