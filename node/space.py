"""How much the device may hold, and who gets the rest: slots for segments, a reserve, grants to writers.

Owns the arithmetic only (pure). Space is granted before an LSN is given: a record in the log
cannot be skipped, so what writers are promised must fit beside what discards, notes, compaction and
checkpoints need.

* ``slots``: segments that fit into the capacity beside the index's share;
* the reserve: slots that writers are never granted;
* a grant: bytes of records promised to one writer's session and not used yet; the sum of all of them never
  exceeds the room above the reserve.
"""

from __future__ import annotations

from dataclasses import dataclass

SEGMENT_SIZE_USUAL = 64 << 20  # some are allocated ahead: a new device should not begin with gigabytes
SEGMENTS_MAX = 4096  # each is an open file
SEGMENT_SIZE_MIN = 6 << 20  # an entry with a record of a whole chunk fits
INDEX_SHARE = 32  # 24 bytes of 4096 is 1/170; LMDB's free pages and half-full leaves cost a few times that
INDEX_MIN = 8 << 20
GRANT_FIRST = 8 << 20  # what a new session gets
GRANT_MAX = 64 << 20  # more than a writer's window: a grant never is what a fast writer waits for
GRANT_MIN = 5 << 20  # a record of a whole chunk: less than that is no use, so the device calls itself full
# The log spends more than records' bytes: a frame's header, entry heads, alignment. Most for 4 KiB in a frame
# of its own (4,608 for 4,152); and the rest of each segment, see writers_room.
OVERHEAD_PER_MILLE = 1125
ENTRY_MAX = (4 << 20) + (16 << 10)  # in the log: a record of a whole chunk, its head, what a frame adds


def segment_size_for(capacity: int) -> int:
    """About 64 segments on a small device: a reserve of a few is a few per cent. More on larger ones."""
    if capacity < 64 * (8 << 20):
        return SEGMENT_SIZE_MIN
    size = 8 << 20
    while size * 64 < capacity and (size < SEGMENT_SIZE_USUAL or size * SEGMENTS_MAX < capacity):
        size *= 2
    return size


@dataclass(frozen=True)
class Layout:
    capacity: int
    segment_size: int

    @property
    def slots(self) -> int:
        index = max(INDEX_MIN, self.capacity // INDEX_SHARE)
        return max(0, self.capacity - index) // self.segment_size

    @property
    def reserve(self) -> int:
        """Slots: one that compaction writes, one for notes and discards while it does, one for a restart, and
        some more on large devices, so that compaction can choose."""
        return max(4, self.slots // 16)

    @property
    def usable(self) -> int:
        """Bytes of live blocks that fit."""
        return max(0, self.slots - self.reserve) * self.segment_size


def writers_room(layout: Layout, free_slots: int, rest: int, granted: int) -> int:
    """Bytes of records that may still be granted. ``free_slots``: ready or not yet allocated; ``rest``: of
    the current segment; ``granted``: promised and unused.

    The log begins a segment when the next entry does not fit into the last one: that entry and what is in it
    are more than a segment. So what goes past n segments and the rest is more than they are, if each entry
    that begins one of the n counts twice. Hence half of the space is sure, and all but n largest entries."""
    slots = free_slots - layout.reserve
    bytes_free = slots * layout.segment_size + rest
    held = max(bytes_free // 2, bytes_free - max(0, slots) * ENTRY_MAX)
    return max(0, held * 1000 // OVERHEAD_PER_MILLE - granted)
