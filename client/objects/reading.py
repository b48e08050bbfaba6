"""Reading one object: its blocks from whatever member has them well.

Owns which member is asked, when a second one is asked beside it, and that every block matches its checksum.
Must never hand out bytes of another object than the one that was looked up: its blocks are written once, and
kept for a while after it is gone; then reading ends with an error."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, NamedTuple

from moorage.client.objects.devices import Devices
from moorage.client.objects.space import PIECE_BLOCKS
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, first_bad_block
from moorage.wire.errors import Corrupt, Invalid, MoorageError, ProtocolError, Unavailable

AHEAD = 4  # pieces that are asked for before they are wanted
HEDGE_S = 0.05  # then another member is asked as well, for a share of all pieces, or the network would be ...
SLOW_S = 1.0  # ... busy with what is read twice; and after so long in any case
PIECE_S = 10.0


class Wanted(NamedTuple):
    """Blocks of one chunk, and which of their bytes."""

    group: int
    chunk: int
    block: int
    blocks: int
    first: int
    end: int


def wanted_pieces(found: dict[str, Any], offset: int, length: int) -> Iterator[Wanted]:
    """``found``: an object as metadata describes it. Its bytes fill the blocks of its extents one after the
    other, but for what is at the end of each of its parts."""
    stop = offset + length
    at = 0  # in the object
    extents = iter(found["extents"])
    for size, count in found["parts"] or [[found["size"], len(found["extents"])]]:
        end = at + size  # of the part
        for group, chunk, block, blocks in islice(extents, count):
            address = chunk * BLOCKS_PER_CHUNK + block
            for piece, part in _cut(address, blocks):
                first, last = max(at, offset), min(at + part * BLOCK_SIZE, end, stop)
                if first < last:
                    low, high = (first - at) // BLOCK_SIZE, -(-(last - at) // BLOCK_SIZE)
                    chunk, block = divmod(piece + low, BLOCKS_PER_CHUNK)
                    skip = first - at - low * BLOCK_SIZE
                    yield Wanted(group, chunk, block, high - low, skip, skip + last - first)
                at = min(at + part * BLOCK_SIZE, end)
        if at != end:
            raise ProtocolError(f"the extents of object {found['key']!r} are not as long as it is")


def _cut(address: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Pieces of at most 1 MiB, none across chunks: (address, blocks)."""
    while blocks:
        part = min(blocks, PIECE_BLOCKS, BLOCKS_PER_CHUNK - address % BLOCKS_PER_CHUNK)
        yield address, part
        address, blocks = address + part, blocks - part


class ObjectReader:
    """``found``: the object, with the members of its groups. An asynchronous iterator of its bytes from
    ``offset``, ``length`` of them; memory is bounded by what is asked for ahead."""

    def __init__(
        self, devices: Devices, found: dict[str, Any], offset: int = 0, length: int | None = None
    ) -> None:
        size = found["size"]
        if not 0 <= offset <= size:
            raise Invalid(f"offset {offset} is not inside of an object of {size} bytes")
        self._devices = devices
        self._found = found
        self._members = {group["group"]: group["members"] for group in found["groups"]}
        left = size - offset
        self._pieces = wanted_pieces(found, offset, left if length is None else min(length, left))
        self._ahead: deque[asyncio.Task[memoryview]] = deque()

    def range(self, offset: int, length: int | None = None) -> ObjectReader:
        """Of the very same object, whatever has become of its key meanwhile."""
        return ObjectReader(self._devices, self._found, offset, length)

    def __aiter__(self) -> AsyncIterator[memoryview]:
        return self._run()

    async def _run(self) -> AsyncIterator[memoryview]:
        try:
            while True:
                while len(self._ahead) < AHEAD and (piece := next(self._pieces, None)) is not None:
                    self._ahead.append(asyncio.create_task(self._read(piece), name="object piece"))
                if not self._ahead:
                    return
                yield await self._ahead.popleft()
        finally:
            for task in self._ahead:
                task.cancel()
            await asyncio.gather(*self._ahead, return_exceptions=True)

    async def read(self) -> bytes:
        """All of it at once."""
        return b"".join([piece async for piece in self])

    async def _read(self, piece: Wanted) -> memoryview:
        """From the nearest member; from others too when it is slow, or does not have it."""
        members = self._in_order(piece)
        hedges = self._devices.hedges
        hedges.earn()
        failures: list[MoorageError] = []
        asked: dict[asyncio.Task[memoryview], str] = {}  # device
        waiting = 0.0  # for all that are asked
        try:
            while members or asked:
                # One that failed is followed at once; a slow one when that is seldom, or it lasts.
                if members and (not asked or waiting >= SLOW_S or (waiting and hedges.spend())):
                    member = members.pop(0)
                    asked[asyncio.create_task(self._ask(member, piece))] = member["device"]
                    waiting = 0.0
                done, _ = await asyncio.wait(
                    asked, timeout=HEDGE_S if members else None, return_when=asyncio.FIRST_COMPLETED
                )
                waiting += HEDGE_S
                found = None
                for task in done:
                    del asked[task]
                    error = task.exception()
                    if error is None:
                        found = task.result()
                    elif isinstance(error, MoorageError):
                        failures.append(error)
                    else:
                        raise error
                if found is not None:
                    for device in asked.values():
                        self._devices.note_slow(device)
                    return found[piece.first : piece.end]
        finally:
            for task in asked:
                task.cancel()
        why = "; ".join(map(str, failures))
        corrupt = all(isinstance(error, Corrupt) for error in failures)
        key = self._found["key"]
        raise (Corrupt if corrupt else Unavailable)(f"object {key!r} cannot be read from any member: {why}")

    def _in_order(self, piece: Wanted) -> list[dict[str, Any]]:
        """Those that can be reached, and are not slow, first; then the nearest; the rest by turns, or one
        would have all the work."""
        members = self._members[piece.group]
        turn = piece.chunk * BLOCKS_PER_CHUNK + piece.block >> 8

        def rank(at: int) -> tuple[bool, bool, int, int]:
            link = self._devices.link(members[at])
            slow = self._devices.is_slow(members[at]["device"])
            return link.conn is None, slow, link.health.distance, (at - turn) % len(members)

        return [members[at] for at in sorted(range(len(members)), key=rank)]

    async def _ask(self, member: dict[str, Any], piece: Wanted) -> memoryview:
        params = {"chunk": piece.chunk, "block": piece.block, "blocks": piece.blocks}
        sums, data = await self._devices.call(member, "node.read_blocks", params, timeout=PIECE_S)
        if (
            not isinstance(sums, bytes)
            or len(sums) != 8 * piece.blocks
            or len(data) != piece.blocks * BLOCK_SIZE
            or first_bad_block(sums, data) >= 0
        ):
            raise ProtocolError(f"what {member['host']} sent of the object does not match its checksums")
        return data
