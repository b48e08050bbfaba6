"""The writer's log as far as it still holds it: a bounded window of recent records, and the epoch history.

Owns: entries ``first..last`` without gaps, their bytes, the cumulative cost that space grants are counted in.
Must never: drop what is not committed, or (writeback) not durable at a majority: the caller gives the limit.
"""

from __future__ import annotations

from typing import Any

from moorage.quorum import history as epochs
from moorage.quorum.history import History
from moorage.quorum.record import HEAD_SIZE, Buffer, Kind, Position, Record, encode_head

_WRITE = int(Kind.WRITE)


def cost(sums: Buffer, data: Buffer) -> int:
    """Bytes that a WRITE of the writer's own epoch is charged against space grants; all else is free."""
    return HEAD_SIZE + len(sums) + len(data)


class Entry(Record):
    """A record in the window. ``head``: packed head, check and checksums. ``end``: cumulative cost of the
    writer's records up to and with this one."""

    __slots__ = ("end", "head", "tag")

    def __init__(
        self,
        epoch: int,
        lsn: int,
        kind: int,
        chunk: int,
        block: int,
        count: int,
        sums: Buffer,
        data: Buffer,
        end: int,
        tag: Any,
    ) -> None:
        self.epoch = epoch
        self.lsn = lsn
        self.kind = kind
        self.chunk = chunk
        self.block = block
        self.count = count
        self.sums = sums
        self.data = data
        self.end = end
        self.tag = tag
        self.head = encode_head(epoch, lsn, kind, chunk, block, count, sums)


class Window:
    """See the module. ``base_end`` is the cumulative cost at ``first - 1``."""

    __slots__ = ("base_end", "bytes", "end", "entries", "first", "history", "last")

    def __init__(self, first: int, history: History) -> None:
        self.entries: dict[int, Entry] = {}
        self.first = first
        self.last = first - 1
        self.history = history
        self.bytes = 0
        self.base_end = 0
        self.end = 0

    def add(self, entry: Entry) -> None:
        """Append the next record; the history of a recovered one is known already."""
        self.entries[entry.lsn] = entry
        self.last = entry.lsn
        self.end = entry.end
        self.bytes += HEAD_SIZE + len(entry.data)
        if self.history[-1][0] < entry.epoch:
            self.history.append((entry.epoch, entry.lsn))

    def drop_to(self, lsn: int) -> None:
        """Forget every record up to ``lsn``."""
        entries = self.entries
        for at in range(self.first, lsn + 1):
            entry = entries.pop(at)
            self.bytes -= HEAD_SIZE + len(entry.data)
            self.base_end = entry.end
        self.first = max(self.first, lsn + 1)

    def end_at(self, lsn: int) -> int:
        """Cumulative cost up to ``lsn``, which is at least ``first - 1``."""
        return self.base_end if lsn < self.first else self.entries[lsn].end

    def position_at(self, lsn: int) -> Position:
        return epochs.position_at(self.history, lsn)
