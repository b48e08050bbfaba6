"""A ``BlockDevice`` in memory: what tests and measurements put behind a gateway instead of a volume.

Follows the rules of :mod:`moorage.client.device` to the letter; nothing survives the process.
"""

from __future__ import annotations

import asyncio
import mmap

from moorage.client.device import Done
from moorage.wire import errors

BLOCK = 4096


class MemoryDevice:
    """Sparse anonymous memory of ``size`` bytes. ``deferred``: answer in the next loop turn, as a volume
    does.
    """

    block_size = BLOCK

    def __init__(self, size: int, *, read_only: bool = False, deferred: bool = False) -> None:
        self.read_only = read_only
        self._deferred = deferred
        self._map = mmap.mmap(-1, size)
        self._data = memoryview(self._map)
        self._written = bytearray(-(-size // BLOCK))

    @property
    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Give the memory back. Nothing may be in flight."""
        self._data.release()
        self._map.close()

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        error = self._why_not(offset, len(into), changes=False)
        if error is None:
            into[:] = self._data[offset : offset + len(into)]
        self.complete(done, error)

    def write_nowait(self, offset: int, data: memoryview, done: Done, fua: bool = False) -> None:
        error = self._why_not(offset, len(data), changes=True)
        if error is None and len(data):
            self._data[offset : offset + len(data)] = data
            first, last = offset // BLOCK, (offset + len(data) - 1) // BLOCK
            self._written[first : last + 1] = b"\1" * (last + 1 - first)
        self.complete(done, error)

    def zero_nowait(self, offset: int, length: int, done: Done, discard: bool, fua: bool = False) -> None:
        error = self._why_not(offset, length, changes=True)
        if error is None:
            self._zero(offset, length, discard)
        self.complete(done, error)

    def flush_nowait(self, done: Done) -> None:
        self.complete(done, None)

    async def block_status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        extents: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end:
            step = min(BLOCK - offset % BLOCK, end - offset)
            is_hole = not self._written[offset // BLOCK]
            if extents and extents[-1][1] == is_hole:
                extents[-1] = (extents[-1][0] + step, is_hole)
            else:
                extents.append((step, is_hole))
            offset += step
        return extents

    def complete(self, done: Done, error: BaseException | None) -> None:
        """Where every operation ends: a test overrides it to hold or to fail operations."""
        if self._deferred:
            asyncio.get_running_loop().call_soon(done, error)
        else:
            done(error)

    def _why_not(self, offset: int, length: int, *, changes: bool) -> errors.MoorageError | None:
        if offset < 0 or offset + length > len(self._data):
            return errors.Invalid(f"offset {offset} + length {length} is beyond the end ({len(self._data)})")
        if changes and self.read_only:
            return errors.ReadOnly("the device is read-only")
        return None

    def _zero(self, offset: int, length: int, discard: bool) -> None:
        self._data[offset : offset + length] = bytes(length)
        first, last = -(-offset // BLOCK), (offset + length) // BLOCK
        if discard and last > first:
            self._written[first:last] = bytes(last - first)
