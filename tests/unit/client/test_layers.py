"""A clone's group over a snapshot, against plain dicts: whatever is asked in whatever order, also of members
that answer later."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.client import layers
from moorage.client.layers import Layer
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE
from moorage.wire.errors import Unavailable

CHUNKS, BLOCKS = 3, 12
Key = tuple[int, int]


class Group:
    """Calls are answered when ``pump`` says so, each from the state of that moment."""

    def __init__(self) -> None:
        self.blocks: dict[Key, bytes | None] = {}  # None: discarded
        self.calls: list[Callable[[], None]] = []
        self.fails = False
        self.reads_until_ms = 1 << 62

    def pump(self, rng: random.Random) -> None:
        while self.calls:
            self.calls.pop(rng.randrange(len(self.calls)))()

    def _later(self, work: Callable[[], None], done: Any) -> None:
        def run() -> None:
            if self.fails:
                done(Unavailable("away"))
                return
            work()
            done(None)

        self.calls.append(run)

    def read(self, chunk: int, block: int, into: memoryview, done: Any) -> None:
        def work() -> None:
            for at in range(len(into) // BLOCK_SIZE):
                found = self.blocks.get((chunk, block + at)) or bytes(BLOCK_SIZE)
                into[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE] = found

        self._later(work, done)

    def read_from(self, host: str, chunk: int, block: int, into: memoryview, done: Any) -> None:
        self.read(chunk, block, into, done)

    def look(self, chunk: int, block: int, into: memoryview, done: Any) -> None:
        def work() -> None:
            into[:] = bytes(self.blocks.get((chunk, block + at)) is not None for at in range(len(into)))

        self._later(work, done)

    def stamps(self, chunk: int, block: int, into: memoryview, done: Any) -> None:
        def work() -> None:
            for at in range(len(into) // 8):
                lsn = int((chunk, block + at) in self.blocks)
                into[8 * at : 8 * at + 8] = lsn.to_bytes(8, "little")

        self._later(work, done)

    def write(self, chunk: int, block: int, data: Any, done: Any, fua: bool) -> None:
        def work() -> None:
            for at in range(len(data) // BLOCK_SIZE):
                self.blocks[chunk, block + at] = bytes(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])

        self._later(work, done)

    def zero(self, chunk: int, block: int, count: int, done: Any, fua: bool) -> None:
        self._later(lambda: self.blocks.update({(chunk, block + at): None for at in range(count)}), done)

    def zero_chunks(self, chunk: int, count: int, done: Any, fua: bool) -> None:
        keys = [(each, at) for each in range(chunk, chunk + count) for at in range(BLOCKS_PER_CHUNK)]
        self._later(lambda: self.blocks.update(dict.fromkeys(keys)), done)

    def flush(self, done: Any) -> None:
        done(None)

    def waiting_for(self) -> str:
        return ""


class Below:
    """A snapshot of one group, shorter than the clone."""

    def __init__(self, rng: random.Random) -> None:
        self.size = 2 * CHUNK_SIZE + 5 * BLOCK_SIZE
        self.group = Group()
        self.group_count, self.groups = 1, [self.group]
        for chunk in range(CHUNKS):
            for block in range(BLOCKS):
                if rng.random() < 0.6 and chunk * CHUNK_SIZE + (block + 1) * BLOCK_SIZE <= self.size:
                    self.group.blocks[chunk, block] = bytes([rng.randrange(1, 256)]) * BLOCK_SIZE

    def read_nowait(self, offset: int, into: memoryview, done: Any) -> None:
        self.group.read(offset // CHUNK_SIZE, offset % CHUNK_SIZE // BLOCK_SIZE, into, done)


class Rig:
    def __init__(self, seed: int, fixed: bool) -> None:
        self.rng = random.Random(seed)
        self.own, self.below = Group(), Below(self.rng)
        self.layer = Layer(self.own, 0, 1, self.below, fixed=fixed)  # type: ignore[arg-type]
        self.model = dict(self.below.group.blocks)

    def pump(self) -> None:
        while self.own.calls or self.below.group.calls:
            self.own.pump(self.rng)
            self.below.group.pump(self.rng)

    def ask(self, method: Callable[..., None], *arguments: Any) -> SimpleNamespace:
        answer = SimpleNamespace(over=0, error=None)

        def done(error: BaseException | None) -> None:
            answer.over += 1
            answer.error = error

        method(*arguments, done)
        return answer

    def check(self, chunk: int, block: int, count: int) -> None:
        into, seen = memoryview(bytearray(count * BLOCK_SIZE)), memoryview(bytearray(b"\xff" * count))
        answers = [
            self.ask(self.layer.read, chunk, block, into),
            self.ask(self.layer.look, chunk, block, seen),
        ]
        self.pump()
        assert [(each.over, each.error) for each in answers] == [(1, None)] * 2
        expected = [self.model.get((chunk, block + at)) for at in range(count)]
        assert bytes(into) == b"".join([each or bytes(BLOCK_SIZE) for each in expected])
        assert list(seen) == [each is not None for each in expected]


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_layer_shows_its_own_and_what_is_below(
    seed: int, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "CHUNKS_KNOWN", 1)
    rig = Rig(seed, fixed)
    rng = rig.rng
    for number in range(60):
        chunk, block = rng.randrange(CHUNKS), rng.randrange(BLOCKS)
        count = rng.randint(1, BLOCKS - block)
        what = rng.choice(["write", "write", "zero", "chunks", "read", "read", "read"])
        if what == "read":
            rig.check(chunk, block, count)
            continue
        read = memoryview(bytearray(BLOCK_SIZE))  # one on its way, begun before
        reading = rig.ask(rig.layer.read, chunk, block, read)
        before = rig.model.get((chunk, block)) or bytes(BLOCK_SIZE)
        if what == "write":
            data = bytes([number % 255 + 1]) * BLOCK_SIZE * count
            answer = rig.ask(lambda *a: rig.layer.write(*a, False), chunk, block, data)
            keys = [(chunk, block + at) for at in range(count)]
            value: bytes | None = data[:BLOCK_SIZE]
        elif what == "zero":
            answer = rig.ask(lambda *a: rig.layer.zero(*a, False), chunk, block, count)
            keys, value = [(chunk, block + at) for at in range(count)], None
        else:
            answer = rig.ask(lambda *a: rig.layer.zero_chunks(*a, False), chunk, 1)
            keys, value = [(chunk, at) for at in range(BLOCKS_PER_CHUNK)], None
        rig.pump()
        assert (answer.over, answer.error, reading.over, reading.error) == (1, None, 1, None)
        rig.model |= dict.fromkeys(keys, value)
        assert bytes(read) in (before, rig.model.get((chunk, block)) or bytes(BLOCK_SIZE))
        rig.check(chunk, block, count)
    for chunk in range(CHUNKS):
        rig.check(chunk, 0, BLOCKS)


def test_an_error_is_told_once_and_nothing_is_remembered_of_it() -> None:
    rig = Rig(3, fixed=True)
    rig.own.fails = True
    answers = [rig.ask(rig.layer.read, 0, 0, memoryview(bytearray(BLOCK_SIZE))) for _ in range(3)]
    rig.pump()
    assert all(each.over == 1 and isinstance(each.error, Unavailable) for each in answers)
    rig.own.fails = False
    rig.check(0, 0, BLOCKS)


def test_nothing_from_below_is_handed_out_without_a_lease() -> None:
    """Another one may hold the clone by now, and have written."""
    rig = Rig(4, fixed=True)
    rig.check(0, 0, BLOCKS)  # it is remembered which are its own: none
    rig.own.reads_until_ms = 0
    into = memoryview(bytearray(BLOCK_SIZE))
    answer = rig.ask(rig.layer.read, 0, 0, into)
    rig.below.group.pump(rig.rng)
    assert not answer.over, "its own members are asked again"
    rig.own.blocks[0, 0] = b"n" * BLOCK_SIZE  # by another holder
    rig.own.reads_until_ms = 1 << 62  # and their answer comes when a lease runs
    rig.pump()
    assert answer.over == 1 and bytes(into) == b"n" * BLOCK_SIZE
