"""Large reply buffers, used again once the transport has sent them.

Why: a fresh megabyte per read costs 250 page faults, more than all else that a read does here.

Invariant: a buffer is in the pool only when the kernel has copied all its bytes; the pool never holds more
than its bound.
"""

from __future__ import annotations

from collections import deque

POOLED_SIZE_MIN = 64 * 1024
"""Below this the allocator's own free lists do as well."""


class BufferPool:
    """Free buffers by exact size: clients read in a few sizes. One pool for all connections of a server."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._free: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """A buffer of ``size`` bytes with any content."""
        free = self._free.get(size)
        if not free:
            return bytearray(size)
        self._bytes -= size
        return free.pop()

    def give(self, buffer: bytearray) -> None:
        """Take back a buffer that nobody refers to any more."""
        size = len(buffer)
        if self._bytes + size > self._bytes_max:
            self._free.clear()  # sizes have changed, or there is no use for so many
            self._bytes = 0
        if size <= self._bytes_max:
            self._bytes += size
            self._free.setdefault(size, []).append(buffer)


class SentBuffers:
    """Which buffers handed to a transport are out: counted by bytes, since it sends in order."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._handed = 0
        self._waiting: deque[tuple[int, bytearray]] = deque()

    def note(self, reply: bytes | bytearray) -> None:
        """``reply`` is the next that the transport gets."""
        self._handed += len(reply)
        if len(reply) >= POOLED_SIZE_MIN and isinstance(reply, bytearray):
            self._waiting.append((self._handed, reply))

    def recycle(self, still_queued: int) -> None:
        """``still_queued``: bytes that the transport has not sent yet."""
        sent = self._handed - still_queued
        while self._waiting and self._waiting[0][0] <= sent:
            self._pool.give(self._waiting.popleft()[1])
