"""A clone's replica group over the snapshot that it was cloned from.

Owns which blocks are the clone's own: those of which its log has a record. What was never written, nor
discarded, is read from the snapshot below, block by block: a write needs no copy of what is around it.
The layers know nothing of each other's groups or replicas: the one below is a volume.

Invariant: a block that was the clone's own once stays so; where that is remembered, it is noted before
whoever wrote it is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from moorage.client.device import Done
from moorage.client.front import Front
from moorage.client.group import GroupLog
from moorage.client.nodes import boot_clock_ms
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, Buffer

CHUNKS_KNOWN = 65_536  # of which it is remembered: 128 bytes for each 4 MiB


class LayeredGroup(GroupLog, Protocol):
    """What a clone needs to know of its own group besides."""

    reads_until_ms: int
    """Until when (boot clock) reads may be handed out."""


class Layer:
    """A :class:`~moorage.client.group.GroupLog`. ``index`` of ``count`` groups; ``fixed``: nobody else can
    make a block the clone's own, so that it is remembered which are."""

    def __init__(self, group: LayeredGroup, index: int, count: int, below: Front, *, fixed: bool) -> None:
        self._group = group
        self._index, self._count = index, count
        self._below = below
        self._fixed = fixed
        self._own: OrderedDict[int, int] = OrderedDict()  # chunk -> a bit for each block
        self._asking: dict[int, tuple[int, list[Callable[[int, BaseException | None], None]]]] = {}
        self.flush, self.stamps, self.waiting_for = group.flush, group.stamps, group.waiting_for

    # -- which blocks are its own ----------------------------------------------------------------------

    def _learn(self, chunk: int, then: Callable[[int, BaseException | None], None]) -> None:
        """``then(bits, error)``: at once, or when the members have said."""
        known = self._own.get(chunk)
        if known is not None:
            self._own.move_to_end(chunk)
            then(known, None)
            return
        _, waiting = self._asking.setdefault(chunk, (0, []))
        waiting.append(then)
        if len(waiting) > 1 and self._fixed:
            return
        into = memoryview(bytearray(8 * BLOCKS_PER_CHUNK))
        self._group.stamps(chunk, 0, into, partial(self._learned, chunk, into, then))

    def _learned(
        self,
        chunk: int,
        into: memoryview,
        asked: Callable[[int, BaseException | None], None],
        error: BaseException | None,
    ) -> None:
        noted, waiting = self._asking[chunk]
        bits = noted
        for at, lsn in enumerate(into.cast("Q")):
            bits |= bool(lsn) << at
        if self._fixed:
            del self._asking[chunk]
            if error is None:
                self._own[chunk] = bits
                if len(self._own) > CHUNKS_KNOWN:
                    self._own.popitem(last=False)
        else:  # an answer is for who asked: another one may have to see more
            waiting.remove(asked)
            if not waiting:
                del self._asking[chunk]
            waiting = [asked]
        for then in waiting:
            then(bits, error)

    def _noting(self, chunk: int, chunks: int, bits: int, done: Done) -> Done:
        def noted(error: BaseException | None) -> None:
            if error is None:
                for each in self._of(self._own, chunk, chunks):
                    self._own[each] |= bits
                for each in self._of(self._asking, chunk, chunks):
                    known, waiting = self._asking[each]
                    self._asking[each] = known | bits, waiting
            done(error)

        return noted

    @staticmethod
    def _of(known: Mapping[int, object], chunk: int, chunks: int) -> list[int]:
        if chunks == 1:
            return [chunk] if chunk in known else []
        return [each for each in known if chunk <= each < chunk + chunks]

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        self._read(self._group.read, chunk, block, into, done)

    def read_from(self, host: str, chunk: int, block: int, into: memoryview, done: Done) -> None:
        self._read(partial(self._group.read_from, host), chunk, block, into, done)

    def _read(
        self,
        own: Callable[[int, int, memoryview, Done], None],
        chunk: int,
        block: int,
        into: memoryview,
        done: Done,
    ) -> None:
        def learned(bits: int, error: BaseException | None) -> None:
            if error is not None:
                done(error)
                return
            runs = list(_runs(bits >> block, len(into) // BLOCK_SIZE))
            again = partial(self._read, own, chunk, block, into, done)
            finished = _all(len(runs), self._vouched(chunk, bits, runs, done, again))
            for first, end, is_own in runs:
                part = into[first * BLOCK_SIZE : end * BLOCK_SIZE]
                if is_own:
                    own(chunk, block + first, part, finished)
                else:
                    self._read_below(chunk, block + first, part, finished)

        self._learn(chunk, learned)

    def _vouched(
        self,
        chunk: int,
        bits: int,
        runs: list[tuple[int, int, bool]],
        done: Done,
        again: Callable[[], None],
    ) -> Done:
        """What comes from below is what the clone shows only as long as nobody else writes to the clone: so
        while its own reads may be handed out, looked at after the answer. Else the clone's members are asked
        anew which blocks are its own."""

        def answered(error: BaseException | None) -> None:
            below = not all(is_own for _, _, is_own in runs)
            if error is None and below and self._group.reads_until_ms <= boot_clock_ms():
                self._own.pop(chunk, None)
                again()
            else:
                done(error)

        return answered

    def _read_below(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        offset = self._offset(chunk, block)
        there = max(0, min(len(into), self._below.size - offset))
        into[there:] = bytes(len(into) - there)
        if there:
            self._below.read_nowait(offset, into[:there], done)
        else:
            done(None)

    def _offset(self, chunk: int, block: int) -> int:
        return (chunk * self._count + self._index) * CHUNK_SIZE + block * BLOCK_SIZE

    def look(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        """A block that is not its own is as the one below has it."""

        def learned(bits: int, error: BaseException | None) -> None:
            if error is not None:
                done(error)
                return
            runs = list(_runs(bits >> block, len(into)))
            again = partial(self.look, chunk, block, into, done)
            finished = _all(len(runs), self._vouched(chunk, bits, runs, done, again))
            for first, end, is_own in runs:
                if is_own:
                    self._group.look(chunk, block + first, into[first:end], finished)
                else:
                    self._look_below(chunk, block + first, into[first:end], finished)

        self._learn(chunk, learned)

    def _look_below(self, chunk: int, block: int, into: memoryview, done: Done) -> None:
        blocks = (self._below.size - self._offset(chunk, block)) // BLOCK_SIZE
        there = max(0, min(len(into), blocks))
        into[there:] = bytes(len(into) - there)
        if not there:
            done(None)
            return
        number = chunk * self._count + self._index
        group = self._below.groups[number % self._below.group_count]
        group.look(number // self._below.group_count, block, into[:there], done)

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, chunk: int, block: int, data: Buffer, done: Done, fua: bool) -> None:
        noting = self._noting(chunk, 1, _bits(block, len(data) // BLOCK_SIZE), done)
        self._group.write(chunk, block, data, noting, fua)

    def zero(self, chunk: int, block: int, count: int, done: Done, fua: bool) -> None:
        self._group.zero(chunk, block, count, self._noting(chunk, 1, _bits(block, count), done), fua)

    def zero_chunks(self, chunk: int, count: int, done: Done, fua: bool) -> None:
        noting = self._noting(chunk, count, _bits(0, BLOCKS_PER_CHUNK), done)
        self._group.zero_chunks(chunk, count, noting, fua)


def _bits(block: int, count: int) -> int:
    return ((1 << count) - 1) << block


def _runs(bits: int, count: int) -> Iterator[tuple[int, int, bool]]:
    """(first, end, whether the bits are set) of what is alike, of so many bits."""
    first = 0
    while first < count:
        is_set = bool(bits >> first & 1)
        rest = ~(bits >> first) if is_set else bits >> first
        alike = (rest & -rest).bit_length() - 1 if rest else count
        end = min(count, first + alike)
        yield first, end, is_set
        first = end


def _all(count: int, done: Done) -> Done:
    """One ``done`` for several: the first error, when all are over."""
    left, failed = count, None

    def finished(error: BaseException | None) -> None:
        nonlocal left, failed
        left -= 1
        failed = failed or error
        if not left:
            done(failed)

    return finished
