"""The front of a volume: any offset and length in, whole blocks of replica groups out.

Owns addressing (chunk ``i`` is ``i // G`` of group ``i % G``), read-modify-write of partial blocks, the order
of writes per block, bounds and the io timeout of writes. It never looks at members, connections or epochs.
Under ceilings a request waits at the gate first, and everything else begins when it is let through: no
ceiling makes an operation fail.

Invariants:
- A range stays held until the group knows the outcome of its record, also when the caller was told
  ``unknown`` long before: nothing overtakes an unknown write.
- What is handed to a group never changes again: data that is not read-only is copied once, on arrival.
- ``done`` runs exactly once per call.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from moorage.client.device import Done
from moorage.client.gate import Gate
from moorage.client.group import GroupLog
from moorage.client.ordering import BlockOrder, Holder
from moorage.client.outcome import callback_failed, fresh
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, Buffer
from moorage.wire.errors import Invalid, MoorageError, NoQuorum, Overloaded, ReadOnly

BLOCK_MASK = BLOCK_SIZE - 1
CHUNK_MASK = CHUNK_SIZE - 1
PIECE_SIZE = 1 << 20  # one record, one read request: small beside the window, large beside its overhead
# writes in flight or waiting for their range; the bytes behind them are the caller's or copies of them
PIECES_MAX = 1 << 16
BYTES_MAX = 1 << 30
ROOM_SIZE = 64 << 20  # awaited writes wait beyond that many bytes in flight
REPAIRS_MAX = PIECE_SIZE // BLOCK_SIZE  # all of one read: which of its blocks are bad may not be known
LOOK_CHUNKS = 64  # looked at together


class _Piece(Holder):
    """One write of whole blocks in one chunk: holds its range until the group is done with it."""

    __slots__ = ("block", "chunk", "data", "done", "front", "fua", "group", "size", "started")

    def __init__(self, front: Front, first: int, end: int, data: Buffer, done: Done, fua: bool) -> None:
        self.front = front
        self.first = first
        self.end = end
        self.exclusive = False
        self.data = data
        self.size = len(data)
        self.done: Done | None = done  # None: the caller has been told (timeout)
        self.fua = fua
        chunk, self.block = divmod(first, BLOCKS_PER_CHUNK)
        self.chunk, index = divmod(chunk, front.group_count)
        self.group = front.groups[index]
        self.started = front.now()

    def granted(self) -> None:
        self.group.write(self.chunk, self.block, self.data, self.finished, self.fua)

    def finished(self, error: BaseException | None) -> None:
        """The group knows the outcome: only now may others touch the range."""
        front, done = self.front, self.done
        front.bytes_in_flight -= self.size
        if front.room:
            front.next_in_room()
        front.order.release(self)
        if done is not None:
            self.done = None
            done(error)

    def give_up(self, error: MoorageError) -> None:
        """Tell the caller; keep the range unless nothing was sent yet."""
        front = self.front
        done, self.done = self.done, None
        if front.order.abandon(self):
            front.bytes_in_flight -= self.size
            front.next_in_room()
        if done is not None:
            done(error)


class _Partial(_Piece):
    """A write inside one block: read it, lay the new bytes over it, write it whole."""

    __slots__ = ("at", "whole")

    def __init__(self, front: Front, first: int, at: int, data: Buffer, done: Done, fua: bool) -> None:
        super().__init__(front, first, first + 1, data, done, fua)
        self.exclusive = True
        self.at = at
        self.whole = bytearray(0)

    def granted(self) -> None:
        self.whole = bytearray(BLOCK_SIZE)
        self.group.read(self.chunk, self.block, memoryview(self.whole), self._read)

    def _read(self, error: BaseException | None) -> None:
        if error is None and self.done is None:
            error = NoQuorum(
                "given up before it was sent"
            )  # the caller was told: better not at all than late
        if error is not None:
            self.finished(error)
            return
        self.whole[self.at : self.at + len(self.data)] = self.data
        self.group.write(self.chunk, self.block, self.whole, self.finished, self.fua)


class _Repair(_Piece):
    """Read a block from a member that has it well, and write it again."""

    __slots__ = ("whole",)

    def __init__(self, front: Front, block: int) -> None:
        super().__init__(front, block, block + 1, b"", _ignore, False)
        self.exclusive = True

    def granted(self) -> None:
        self.whole = bytearray(BLOCK_SIZE)
        self.group.read(self.chunk, self.block, memoryview(self.whole), self._read)

    def _read(self, error: BaseException | None) -> None:
        if error is not None:
            self.finished(error)
        else:
            self.group.write(self.chunk, self.block, self.whole, self.finished, False)

    def finished(self, error: BaseException | None) -> None:
        self.front.repairs.discard(self.first)
        super().finished(error)

    def give_up(self, error: MoorageError) -> None:
        super().give_up(error)
        if self not in self.front.order.active:  # it never began: another read may ask for it again
            self.front.repairs.discard(self.first)


class _Zero(_Piece):
    """Blocks inside one chunk that shall read as zeroes."""

    __slots__ = ()

    def granted(self) -> None:
        self.group.zero(self.chunk, self.block, self.end - self.first, self.finished, self.fua)


class _ZeroChunks(_Piece):
    """The whole chunks of one group within a range; holds the whole range, which hurts nobody (shared)."""

    __slots__ = ("count",)

    count: int

    def granted(self) -> None:
        self.group.zero_chunks(self.chunk, self.count, self.finished, self.fua)


class _Flush:
    """A flush of one group."""

    __slots__ = ("done", "front", "group", "started")

    def __init__(self, front: Front, group: GroupLog, done: Done) -> None:
        self.front = front
        self.group = group
        self.done: Done | None = done
        self.started = front.now()

    def finished(self, error: BaseException | None) -> None:
        self.front.flushes.pop(self, None)
        done, self.done = self.done, None
        if done is not None:
            done(error)

    def give_up(self, error: MoorageError) -> None:
        self.finished(error)


class _Join:
    """Several pieces, one ``done``: waits for all of them, reports the first error whose outcome is unknown,
    else the first. When other pieces of a change took effect, no error may say that nothing did."""

    __slots__ = ("changes", "done", "error", "in_part", "left")

    def __init__(self, left: int, done: Done, changes: bool = True) -> None:
        self.left = left
        self.done = done
        self.error: BaseException | None = None
        self.changes = changes
        self.in_part = False

    def piece_done(self, error: BaseException | None) -> None:
        self.left -= 1
        if error is None:
            self.in_part = self.changes
        elif self.error is None or _unknown(error) > _unknown(self.error):
            self.error = error
        if not self.left:
            self.done(_in_part(self.error) if self.in_part else self.error)


class Front:
    """A :class:`~moorage.client.device.BlockDevice` over the groups of one volume.

    ``now`` is a monotonic clock in seconds, ``later(seconds, call)`` a timer that returns a handle with
    ``cancel()``. ``io_timeout`` is in seconds, 0 waits for ever.
    """

    block_size = BLOCK_SIZE

    def __init__(
        self,
        groups: Sequence[GroupLog],
        size: int,
        *,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        io_timeout: float = 60.0,
        read_only: bool = False,
    ) -> None:
        self.groups = list(groups)
        self.group_count = len(self.groups)
        self.size = size
        self.read_only = read_only
        self.now = now
        self.io_timeout = io_timeout
        self.failed: MoorageError | None = None  # terminal: fenced, lost or detached
        self.gate: Gate | None = None  # only with ceilings
        self.order = BlockOrder()
        self.repairs: set[int] = set()  # volume blocks being repaired
        self.flushes: dict[_Flush, None] = {}
        self.bytes_in_flight = 0
        self.room: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # writes that wait for room
        self._later = later
        self._sweep: asyncio.TimerHandle | None = None

    # -- ceilings --------------------------------------------------------------------------------------

    def limit(self, iops: int, bw: int) -> None:
        """Take on no more than ``iops`` operations and ``bw`` bytes a second from now on; 0: no limit.
        Zeroes and discards are operations without bytes; flushes, repairs and the reads of partial writes
        are none."""
        if self.failed is not None or not (iops or bw):
            self.lift()
        elif self.gate is None:
            self.gate = Gate(iops, bw, now=self.now, later=self._later)
        elif self.gate.rates != (iops, bw):
            self.gate.change(iops, bw)

    def lift(self) -> None:
        """No ceilings any more: what waits for them goes on."""
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.open()

    def _in_turn(
        self, gate: Gate, offset: int, length: int, size: int, start: Callable[..., None], *arguments: Any
    ) -> None:
        """Through the gate; what would be refused is refused at once, and costs nothing. The third argument
        is ``done``."""
        error = self._refusal(offset, length, write=start != self._read)
        if error is None and len(gate) >= PIECES_MAX:
            error = Overloaded(f"{len(gate)} requests wait for the ceilings of the volume: wait for some")
        if error is not None:
            arguments[2](error)
        else:
            gate.submit(size, start, arguments)

    # -- reads ---------------------------------------------------------------------------------------

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        if self.gate is None:
            self._read(offset, into, done)
        else:
            self._in_turn(self.gate, offset, len(into), len(into), self._read, offset, into, done)

    def _read(self, offset: int, into: memoryview, done: Done) -> None:
        length = len(into)
        if (
            (offset | length) & BLOCK_MASK
            or not 0 < length <= PIECE_SIZE
            or not 0 <= offset <= self.size - length
            or (offset & CHUNK_MASK) + length > CHUNK_SIZE
            or self.failed is not None
        ):
            self._read_pieces(offset, into, done)
            return
        chunk = offset // CHUNK_SIZE
        group = self.groups[chunk % self.group_count]
        group.read(chunk // self.group_count, (offset & CHUNK_MASK) // BLOCK_SIZE, into, done)

    def _read_pieces(self, offset: int, into: memoryview, done: Done) -> None:
        error = self._refusal(offset, len(into))
        if error is not None or not len(into):
            done(error)
            return
        pieces = split(offset, len(into))
        join = _Join(len(pieces), done, changes=False)
        for at, length in pieces:
            self._read_piece(at, into[at - offset : at - offset + length], join.piece_done)

    def _read_piece(self, offset: int, into: memoryview, done: Done) -> None:
        if not (offset | len(into)) & BLOCK_MASK:
            self._read(offset, into, done)
            return
        first = offset & ~BLOCK_MASK
        whole = memoryview(bytearray(_round_up(offset + len(into)) - first))

        def copy(error: BaseException | None) -> None:
            if error is None:
                into[:] = whole[offset - first : offset - first + len(into)]
            done(error)

        self._read(first, whole, copy)

    # -- writes --------------------------------------------------------------------------------------

    def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
        if self.gate is None:
            self._write(offset, data, done, fua)
        else:
            self._in_turn(self.gate, offset, len(data), len(data), self._write, offset, data, done, fua)

    def _write(self, offset: int, data: memoryview, done: Done, fua: bool) -> None:
        error = self._refusal(offset, len(data), write=True)
        if error is not None or not len(data):
            done(error)
            return
        if not data.readonly:
            data = memoryview(bytes(data))
        if (offset | len(data)) & BLOCK_MASK or (offset & CHUNK_MASK) % PIECE_SIZE + len(data) > PIECE_SIZE:
            self._write_pieces(offset, data, done, fua)
            return
        first = offset // BLOCK_SIZE
        self._start(_Piece(self, first, first + len(data) // BLOCK_SIZE, data, done, fua))

    def _write_pieces(self, offset: int, data: memoryview, done: Done, fua: bool) -> None:
        parts = split_blocks(offset, len(data))
        join = _Join(len(parts), done)
        for at, length in parts:
            first, skip = divmod(at, BLOCK_SIZE)
            part = data[at - offset : at - offset + length]
            if skip or length & BLOCK_MASK:
                self._start(_Partial(self, first, skip, part, join.piece_done, fua))
            else:
                self._start(_Piece(self, first, first + length // BLOCK_SIZE, part, join.piece_done, fua))

    def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
        if self.gate is None:
            self._zero(offset, length, done, fua)
        else:  # no bytes: else to discard a whole volume would take as long as to write it
            self._in_turn(self.gate, offset, length, 0, self._zero, offset, length, done, fua)

    def _zero(self, offset: int, length: int, done: Done, fua: bool) -> None:
        error = self._refusal(offset, length, write=True)
        if error is not None or not length:
            done(error)
            return
        pieces: list[_Piece] = []
        first, end = _round_up(offset) // BLOCK_SIZE, (offset + length) // BLOCK_SIZE
        join = _Join(0, done)
        if first > end:  # inside one block
            pieces.append(self._zero_part(offset, length, join, fua))
        else:
            for at, until in ((offset, first * BLOCK_SIZE), (end * BLOCK_SIZE, offset + length)):
                if at < until:
                    pieces.append(self._zero_part(at, until - at, join, fua))
            self._zero_blocks(first, end, join, fua, pieces)
        join.left = len(pieces)
        for piece in pieces:
            self._start(piece)

    def _zero_part(self, at: int, length: int, join: _Join, fua: bool) -> _Piece:
        first, skip = divmod(at, BLOCK_SIZE)
        return _Partial(self, first, skip, bytes(length), join.piece_done, fua)

    def _zero_blocks(self, first: int, end: int, join: _Join, fua: bool, pieces: list[_Piece]) -> None:
        """Whole blocks: the chunks they fill as one record per group, the rest at both ends by block."""
        chunk = -(-first // BLOCKS_PER_CHUNK)
        chunk_end = end // BLOCKS_PER_CHUNK
        if chunk >= chunk_end:
            middle = min(chunk * BLOCKS_PER_CHUNK, end)
            ends = ((first, middle), (middle, end))
        else:
            ends = ((first, chunk * BLOCKS_PER_CHUNK), (chunk_end * BLOCKS_PER_CHUNK, end))
            for start in range(chunk, min(chunk + self.group_count, chunk_end)):
                piece = _ZeroChunks(
                    self, start * BLOCKS_PER_CHUNK, chunk_end * BLOCKS_PER_CHUNK, b"", join.piece_done, fua
                )
                piece.count = -(-(chunk_end - start) // self.group_count)
                pieces.append(piece)
        pieces += [_Zero(self, at, until, b"", join.piece_done, fua) for at, until in ends if at < until]

    def flush_nowait(self, done: Done) -> None:
        if self.failed is not None or self.read_only:
            done(self.failed)
            return
        join = _Join(self.group_count, done)
        flushes = [_Flush(self, group, join.piece_done) for group in self.groups]
        self.flushes.update(dict.fromkeys(flushes))
        if self._sweep is None and self.io_timeout:
            self._arm()
        for flush in flushes:
            flush.group.flush(flush.finished)

    def repair(self, group: GroupLog, chunk: int, block: int, count: int) -> None:
        """Write blocks again that a replica holds badly: the log brings the good bytes to every member. A
        bounded number at once; what is dropped is found again when it is read again."""
        if self.failed is not None or self.read_only:
            return
        volume_chunk = chunk * self.group_count + self.groups.index(group)
        first = volume_chunk * BLOCKS_PER_CHUNK + block
        for at in range(first, first + count):
            if at not in self.repairs and len(self.repairs) < REPAIRS_MAX:
                self.repairs.add(at)
                self._start(_Repair(self, at))

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """From the members' indexes: a block that was never written, or was discarded or zeroed whole, is a
        hole; no data is read."""
        error = self._refusal(offset, length)
        if error is not None:
            raise fresh(error)
        extents: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end:
            until = min(end, (offset // CHUNK_SIZE + LOOK_CHUNKS) * CHUNK_SIZE)
            first = offset // BLOCK_SIZE
            for run_end, is_hole in _runs(await self._look(first, _round_up(until) // BLOCK_SIZE)):
                at = min(until, (first + run_end) * BLOCK_SIZE)
                size, offset = at - offset, at
                if extents and extents[-1][1] == is_hole:
                    size += extents.pop()[0]
                extents.append((size, is_hole))
        return extents

    async def _look(self, first: int, end: int) -> bytearray:
        """One byte for each block, 0 for a hole: all chunks at once."""
        into = bytearray(end - first)
        future: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not future.done():
                future.set_result(error)

        cuts = [first, *range((first // BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK, end, BLOCKS_PER_CHUNK), end]
        join = _Join(len(cuts) - 1, done, changes=False)
        for at, until in pairwise(cuts):
            chunk, block = divmod(at, BLOCKS_PER_CHUNK)
            part = memoryview(into)[at - first : until - first]
            group = self.groups[chunk % self.group_count]
            group.look(chunk // self.group_count, block, part, join.piece_done)
        if (error := await future) is not None:
            raise fresh(error)
        return into

    # -- bounds and time -----------------------------------------------------------------------------

    def _refusal(self, offset: int, length: int, write: bool = False) -> MoorageError | None:
        if self.failed is not None:
            return self.failed
        if offset < 0 or length < 0 or offset + length > self.size:
            return Invalid(
                f"bytes {offset} to {offset + length} are not inside the volume: its size is {self.size}",
                offset=offset,
                length=length,
                size=self.size,
            )
        if not write:
            return None
        if self.read_only:
            return ReadOnly("the volume is attached read-only: attach it for writing to change it")
        pieces = len(self.order.active) + len(self.order.waiting)
        if self.bytes_in_flight > BYTES_MAX or pieces > PIECES_MAX:
            return Overloaded("too many writes are in flight: wait for some of them")
        return None

    def _start(self, piece: _Piece) -> None:
        self.bytes_in_flight += piece.size
        if self._sweep is None and self.io_timeout:
            self._arm()
        self.order.acquire(piece)

    def has_room(self) -> bool:
        """Whether a write that can wait may begin, or will hear at once that it cannot."""
        return self.bytes_in_flight <= ROOM_SIZE or self.failed is not None

    def next_in_room(self) -> None:
        """Wake one of those that wait: it looks again, takes its bytes in that loop turn, and wakes the
        next."""
        while self.room and self.has_room():
            waiter, _ = self.room.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return

    def _arm(self) -> None:
        self._sweep = self._later(self.io_timeout / 16, self._expire)

    def _expire(self) -> None:
        """Tell the callers of writes that took too long; the writes themselves stay in order."""
        self._sweep = None
        before = self.now() - self.io_timeout
        open_now = [*self.order.active, *self.order.waiting, *self.flushes]
        for each in open_now:
            if isinstance(each, _Piece | _Flush) and each.started < before and each.done is not None:
                try:
                    each.give_up(self._timeout(each.group))
                except Exception as error:
                    callback_failed(error)
        if self.order.active or self.flushes:
            self._arm()

    def _timeout(self, group: GroupLog) -> NoQuorum:
        reason = group.waiting_for() or "the group answers too slowly"
        return NoQuorum(f"no outcome after {self.io_timeout:g} s, the write may still happen: {reason}")

    def close(self, error: MoorageError) -> None:
        """Refuse everything from now on with ``error``. What is in flight is the groups' to end."""
        if self.failed is None:
            self.failed = error
        self.lift()
        self.next_in_room()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None


def split(offset: int, length: int) -> list[tuple[int, int]]:
    """Cut a byte range at multiples of ``PIECE_SIZE`` (which divides a chunk)."""
    end = offset + length
    cuts = [offset, *range((offset // PIECE_SIZE + 1) * PIECE_SIZE, end, PIECE_SIZE), end]
    return [(at, until - at) for at, until in pairwise(cuts)]


def split_blocks(offset: int, length: int) -> list[tuple[int, int]]:
    """Cut a byte range into a partial first block, pieces of whole blocks, and a partial last block."""
    end = offset + length
    first, last = _round_up(offset), end & ~BLOCK_MASK
    if first > last:  # inside one block
        return [(offset, length)]
    head = [(offset, first - offset)] if first > offset else []
    tail = [(last, end - last)] if end > last else []
    return head + (split(first, last - first) if last > first else []) + tail


def _runs(blocks: bytearray) -> Iterator[tuple[int, bool]]:
    """Runs of a map with one byte for each block, 0 for a hole: (one past the last block, is it a hole)."""
    at = 0
    while at < len(blocks):
        data = blocks[at]
        found = blocks.find(1 - data, at)
        at = len(blocks) if found < 0 else found
        yield at, not data


def _unknown(error: BaseException) -> bool:
    return isinstance(error, MoorageError) and error.outcome == "unknown"


def _in_part(error: BaseException | None) -> BaseException | None:
    if not isinstance(error, MoorageError) or _unknown(error):
        return error
    return type(error)(f"{error.message} (a part was done)", **{**error.details, "outcome": "unknown"})


def _ignore(error: BaseException | None) -> None:
    pass


def _round_up(offset: int) -> int:
    return (offset + BLOCK_MASK) & ~BLOCK_MASK
