"""The volume front against a byte-level reference: overlapping aligned and unaligned writes at depth 32.

The groups are memory behind a scheduler that completes in any order and takes the content of a read at any
moment between call and completion. Every write carries its own byte value, so each byte tells which write it
came from; the order of writes on a block must then be a legal one: no cycle between "was over-written by" and
real time.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter

import pytest

from moorage.client.front import Front
from moorage.quorum.record import BLOCK_SIZE, CHUNK_SIZE

MIB = 1 << 20
Done = Callable[[BaseException | None], None]


class Scheduler:
    """Completions in random order; time is the number of steps."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.steps = 0
        self.pending: list[Callable[[], None]] = []

    def now(self) -> float:
        return float(self.steps)

    def later(self, call: Callable[[], None]) -> None:
        self.pending.append(call)

    def step(self) -> None:
        self.steps += 1
        self.pending.pop(self.rng.randrange(len(self.pending)))()


class MemoryGroup:
    """The log of a group in memory: order of calls is the order of the log; acknowledgements come later."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.blocks: dict[int, bytes] = {}
        self.records = 0

    def _content(self, first: int, count: int) -> bytes:
        return b"".join(self.blocks.get(block, bytes(BLOCK_SIZE)) for block in range(first, first + count))

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        first, count = chunk * 1024 + block, len(into) // BLOCK_SIZE
        assert len(into) % BLOCK_SIZE == 0 and block + count <= 1024

        def take() -> None:
            into[:] = self._content(first, count)
            self.scheduler.later(lambda: done(None))

        self.scheduler.later(take)

    def look(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        raise NotImplementedError

    def write(self, chunk: int, block: int, data: bytes, done: Done, fua: bool) -> None:
        assert len(data) % BLOCK_SIZE == 0 and block + len(data) // BLOCK_SIZE <= 1024
        for at in range(0, len(data), BLOCK_SIZE):
            self.blocks[chunk * 1024 + block + at // BLOCK_SIZE] = bytes(data[at : at + BLOCK_SIZE])
        self._acknowledge(done)

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        assert block + count <= 1024
        for at in range(chunk * 1024 + block, chunk * 1024 + block + count):
            self.blocks.pop(at, None)
        self._acknowledge(done)

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        for at in range(chunk * 1024, (chunk + count) * 1024):
            self.blocks.pop(at, None)
        self._acknowledge(done)

    def flush(self, done: Done) -> None:
        self._acknowledge(done)

    def waiting_for(self) -> str:
        return ""

    def _acknowledge(self, done: Done) -> None:
        self.records += 1
        self.scheduler.later(lambda: done(None))


class Write:
    def __init__(self, tag: int, offset: int, length: int, start: float) -> None:
        self.tag, self.offset, self.end, self.start = tag, offset, offset + length, start
        self.finish = float("inf")


class History:
    """Writes and what reads returned, with their times."""

    def __init__(self, front: Front, scheduler: Scheduler) -> None:
        self.front, self.scheduler = front, scheduler
        self.writes: list[Write] = []
        self.in_flight = 0

    def write(self, offset: int, length: int, zero: bool) -> None:
        write = Write(0 if zero else len(self.writes) + 1, offset, length, self.scheduler.steps)
        self.writes.append(write)
        self.in_flight += 1

        def done(error: BaseException | None) -> None:
            assert error is None
            self.in_flight -= 1
            write.finish = self.scheduler.steps
            self.front.order.validate()

        if zero:
            self.front.zero_nowait(offset, length, done, discard=True)
        else:
            data = bytearray([write.tag]) * length
            self.front.write_nowait(offset, memoryview(data), done)

    def read(self, offset: int, length: int) -> None:
        into = bytearray(length)
        start = self.scheduler.steps
        self.in_flight += 1

        def done(error: BaseException | None) -> None:
            assert error is None
            self.in_flight -= 1
            self.check_read(offset, bytes(into), start, self.scheduler.steps)

        self.front.read_nowait(offset, memoryview(into), done)

    def check_read(self, offset: int, found: bytes, start: float, finish: float) -> None:
        """Each byte comes from a write that began in time and was not over-written before the read began."""
        cuts = {offset, offset + len(found)}
        cuts |= {at for w in self.writes for at in (w.offset, w.end) if offset < at < offset + len(found)}
        for at in sorted(cuts)[:-1]:
            value = found[at - offset]
            covering = [w for w in self.writes if w.offset <= at < w.end and w.start <= finish]
            latest_start = max((w.start for w in covering if w.finish <= start), default=-1.0)
            legal = {w.tag for w in covering if w.finish >= latest_start}
            if latest_start < 0:
                legal.add(0)
            assert value in legal, f"byte {at} is {value}, legal are {legal}"

    def check_final(self, content: bytes) -> None:
        by_block: dict[int, list[Write]] = defaultdict(list)
        for write in self.writes:
            for block in range(write.offset // BLOCK_SIZE, -(-write.end // BLOCK_SIZE)):
                by_block[block].append(write)
        for block, writes in by_block.items():
            self.check_block(block * BLOCK_SIZE, writes, content)

    def check_block(self, base: int, writes: list[Write], content: bytes) -> None:
        """Some order of the writes, legal in real time, leaves exactly this content."""
        after: dict[Write, set[Write]] = {w: {o for o in writes if o.finish < w.start} for w in writes}
        cuts = {base} | {at for w in writes for at in (w.offset, w.end) if base < at < base + BLOCK_SIZE}
        for at in sorted(cuts):
            covering = [w for w in writes if w.offset <= at < w.end]
            if not covering:
                assert content[at] == 0
                continue
            winners = [w for w in covering if w.tag == content[at]]
            assert winners, f"byte {at} is {content[at]}: nobody wrote that"
            if len(winners) == 1:  # zeroes may have several
                after[winners[0]] |= set(covering) - {winners[0]}
        try:
            TopologicalSorter(after).prepare()
        except CycleError as error:
            pytest.fail(f"block {base // BLOCK_SIZE}: no legal order of writes: {error}")


def pick_range(rng: random.Random, size: int) -> tuple[int, int]:
    """Mostly a few hot blocks around piece and chunk borders, so that ranges meet."""
    border = rng.choice([0, MIB, CHUNK_SIZE, 2 * CHUNK_SIZE, size - BLOCK_SIZE * 8])
    if rng.random() < 0.5:
        offset = border + rng.randrange(-4, 4) * BLOCK_SIZE
        length = rng.randrange(1, 6) * BLOCK_SIZE
    else:
        offset = border + rng.randrange(-3 * BLOCK_SIZE, 3 * BLOCK_SIZE)
        length = rng.choice([1, 17, 512, 4095, 4097, rng.randrange(1, 5 * BLOCK_SIZE)])
    offset = min(max(offset, 0), size - 1)
    return offset, min(length, size - offset)


def run(seed: int, depth: int = 32, operations: int = 200) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(rng)
    groups = [MemoryGroup(scheduler) for _ in range(rng.choice([1, 2, 3]))]
    size = 3 * CHUNK_SIZE
    front = Front(groups, size, now=scheduler.now, later=lambda *_: pytest.fail("no timer"), io_timeout=0)
    history = History(front, scheduler)
    for _ in range(operations):
        while history.in_flight >= depth or (scheduler.pending and rng.random() < 0.3):
            scheduler.step()
        offset, length = pick_range(rng, size)
        if rng.random() < 0.25:
            history.read(offset, length)
        elif rng.random() < 0.02:
            history.write(offset % 4096, size - offset % 4096 - rng.randrange(3), zero=True)
        else:
            history.write(offset, length, zero=rng.random() < 0.2)
    while scheduler.pending:
        scheduler.step()
    assert not history.in_flight and not front.order.active and not front.order.waiting
    assert front.bytes_in_flight == 0
    history.check_final(whole(front, scheduler, size))


def whole(front: Front, scheduler: Scheduler, size: int) -> bytes:
    content = bytearray(size)
    ended: list[BaseException | None] = []
    front.read_nowait(0, memoryview(content), ended.append)
    while scheduler.pending:
        scheduler.step()
    assert ended == [None]
    return bytes(content)


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_overlapping_writes_is_legal(seed: int) -> None:
    run(seed)


def test_without_order_per_block_the_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: partial writes that share. The checker must see it."""
    monkeypatch.setattr("moorage.client.ordering._meets", lambda holder, others: False)
    monkeypatch.setattr("moorage.client.ordering.BlockOrder.validate", lambda self: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        for seed in range(10):
            run(seed)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_chunks_are_striped_over_groups(count: int) -> None:
    scheduler = Scheduler(random.Random(1))
    groups = [MemoryGroup(scheduler) for _ in range(count)]
    front = Front(
        groups, 7 * CHUNK_SIZE, now=scheduler.now, later=lambda *_: pytest.fail("no timer"), io_timeout=0
    )
    for chunk in range(7):
        data = memoryview(bytes([chunk + 1]) * BLOCK_SIZE)
        front.write_nowait(chunk * CHUNK_SIZE + BLOCK_SIZE, data, lambda error: None)
    for chunk in range(7):
        blocks = groups[chunk % count].blocks
        assert blocks[(chunk // count) * 1024 + 1][0] == chunk + 1
    before = [group.records for group in groups]
    front.zero_nowait(0, 7 * CHUNK_SIZE, lambda error: None, discard=True)
    assert not any(group.blocks for group in groups)
    assert [group.records - was for group, was in zip(groups, before, strict=True)] == [1] * count
