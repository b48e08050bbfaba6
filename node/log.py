"""The log: gathers entries of all replicas into numbered group commits, one at a time, and writes them.

Owns: the segments and which are free, the current end of the log, the queue of entries. Must never write
group n + 1 before n is synced (recovery tells a torn tail from corruption by that), retry a failed write, or
allocate on the way of a commit: free segments are made ready beforehand (``add_free``).
Invariant: a group commit's frame lies in one segment; entries of a volume become durable in the order in
which they were put, and volumes take turns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from moorage.node.disk import File
from moorage.node.metrics import StoreMetrics
from moorage.node.replica import Replica
from moorage.node.segment import (
    ENTRY_SIZE,
    FIRST_FRAME,
    FRAME_HEADER_SIZE,
    OFFSET_BITS,
    PAGE,
    Entry,
    EntryKind,
    SegmentHeader,
    align,
    build_frame,
    pack_segment_header,
)
from moorage.node.turns import Turns
from moorage.quorum.record import Buffer
from moorage.wire.errors import DeviceFailed, LimitExceeded, invariant, violated

log = logging.getLogger(__name__)

FRAME_BYTES_MAX = 16 << 20  # a group commit is bounded, so that none waits long for its sync
SHARED_BYTES_MAX = 1 << 20  # ... and less so while several volumes write
SHARED_S = 1.0  # since two of them did
FRAME_OVERHEAD = FRAME_HEADER_SIZE + PAGE  # data may begin at the next page
ENTRY_BYTES_MAX = 1 << 20  # heads and data: records join one entry up to here (the first may be larger)

Queued = tuple[Replica, Entry]
Folded = Callable[[Replica, Entry, int], None]  # (replica, entry, location of its data)


class Runner(Protocol):
    """The device's lane."""

    def submit(
        self, work: Callable[[], object], done: Callable[[object, BaseException | None], None]
    ) -> None: ...


class Segment:
    __slots__ = ("end", "file", "name", "number", "readers")

    def __init__(self, name: str, file: File, number: int = 0, end: int = 0) -> None:
        self.name = name
        self.file = file
        self.number = number  # 0: free
        self.end = end
        self.readers = 0  # reads in threads: the file is not written again before they have left


class Log:
    def __init__(
        self,
        *,
        device: bytes,
        seed: int,
        segment_size: int,
        lane: Runner,
        call_soon: Callable[[Callable[[], None]], object],
        fold: Folded,
        committed: Callable[[], None],
        fail: Callable[[DeviceFailed], None],
        metrics: StoreMetrics,
        clock: Callable[[], float],
        wrote: Callable[[int, float], None],
    ) -> None:
        self._device = device
        self.seed = seed
        self.segment_size = segment_size
        self._lane = lane
        self._call_soon = call_soon
        self._fold = fold
        self._committed = committed
        self._fail = fail
        self._metrics = metrics
        self._clock = clock
        # Told (bytes, seconds) of each group commit with records: what their writers felt.
        self._wrote = wrote
        self._records_at = 0.0  # when the first record that is queued now was; 0: none is
        self.segments: dict[int, Segment] = {}  # in use, by number
        self.free: deque[Segment] = deque()
        self._leaving: list[Segment] = []
        self.current: Segment | None = None
        self.group = 0  # number of the last durable group commit
        self.last_number = 0  # of a segment
        self._durable_segment: Segment | None = None  # in which the last durable group commit is
        self._previous = 0
        self._previous_end = 0
        self._queue: Turns[Queued] = Turns(lambda queued: _cost(queued[1]))
        self._last_volume = 0
        self._shared_at = -SHARED_S  # when another volume than the one before wrote something
        self.queued_bytes = 0
        self._in_flight: list[Queued] = []
        self._busy = False
        self._scheduled = False
        self._proved = True  # the last group commit is empty, or there is none
        self._seen = 0  # the last group commit when `prove_last` was called last
        self.stalled = False  # no free segment to go on with
        self.failed: DeviceFailed | None = None
        self.written_bytes = 0

    # -- queue -----------------------------------------------------------------------------------

    def put(self, replica: Replica, entry: Entry) -> None:
        """Queue an entry; it is folded, and its ``done`` called, once it is durable."""
        if self.failed is not None:
            raise self.failed
        replica.last_entry = entry
        if entry.kind == EntryKind.RECORDS:
            entry.queued_at = self._clock()
            self._records_at = self._records_at or entry.queued_at
        self.queued_bytes += entry.data_size
        if replica.info.volume != self._last_volume:
            self._last_volume, self._shared_at = replica.info.volume, self._clock()
        self._queue.put(replica.info.volume, (replica, entry))
        self._schedule()

    def _schedule(self) -> None:
        # The commit begins after this loop turn: what arrives in one turn goes into one group.
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self._call_soon(self._begin)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._busy

    def end(self) -> tuple[int, int, int]:
        """(segment, offset, group) behind the last durable group commit: where a replay from now would begin.
        The current segment is not it while its first group is under way: a crash may lose its header."""
        if self._durable_segment is None:
            violated("the log has no segment yet")
        return self._durable_segment.number, self._durable_segment.end, self.group + 1

    def room(self) -> int:
        """Bytes in free segments and in the rest of the current one."""
        rest = self.segment_size - self.current.end if self.current is not None else 0
        return len(self.free) * (self.segment_size - FIRST_FRAME) + rest

    def release(self, segment: Segment) -> None:
        """Nothing refers to it any more: free once its last reader has left."""
        self._leaving.append(segment)
        self.reclaim()

    def reclaim(self) -> None:
        waiting, self._leaving = self._leaving, []
        for segment in waiting:
            if segment.readers:
                self._leaving.append(segment)
            else:
                self.add_free(segment)

    def add_free(self, segment: Segment) -> None:
        segment.number, segment.end = 0, 0
        self.free.append(segment)
        if self.stalled:
            self.stalled = False
            self._schedule()

    # -- group commit ------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._scheduled = False
        if not self._queue or self._busy or self.failed is not None:
            return
        current = self.current
        buffers: list[Buffer] = []
        if current is None or not self._fits(current.end):
            if not self.free:
                self.stalled = True
                log.warning("store has no free segment: group commits wait for compaction")
                return
            current = self._roll()
            buffers.append(self._header(current))
        taken = self._take(self.segment_size - current.end)
        try:
            self._write(current, taken, buffers)
        except Exception as failure:  # our own mistake: nothing of it is written
            self._broken(taken, failure)

    def _fits(self, end: int) -> bool:
        _, entry = self._queue.first()
        return end + align(_cost(entry) + FRAME_OVERHEAD) <= self.segment_size

    def _roll(self) -> Segment:
        if self.current is not None:
            self._previous, self._previous_end = self.current.number, self.current.end
        self.last_number += 1
        segment = self.free.popleft()
        segment.number, segment.end = self.last_number, FIRST_FRAME
        self.segments[segment.number] = segment
        self.current = segment
        return segment

    def _header(self, segment: Segment) -> bytes:
        return pack_segment_header(
            SegmentHeader(segment.number, self.group + 1, self._previous, self._previous_end, self._device),
            self.seed,
        )

    def begin_life(self, previous: int, previous_end: int, number: int, group: int) -> None:
        """Go on in a fresh segment ``number`` behind what recovery kept: its header records where the old one
        ended, and the empty group commit in it makes that durable. ``idle`` again when it is."""
        self._previous, self._previous_end = previous, previous_end
        self.last_number, self.group = number - 1, group
        segment = self._roll()
        self._write(segment, [], [self._header(segment)])

    def prove_last(self) -> None:
        """Called again and again. When nothing came since the last call, an empty group commit is written
        behind the last one. It proves that the last one was synced: damage to that is not taken for a torn
        write then, however long nothing else follows."""
        seen, self._seen = self._seen, self.group
        if self._proved or self.group != seen or not self.idle or self.failed is not None:
            return
        if self.current is not None and self.current.end + align(FRAME_OVERHEAD) <= self.segment_size:
            self._write(self.current, [], [])

    def _take(self, room: int) -> list[Queued]:
        """Entries for one frame, at least one, in order."""
        shared = self._clock() - self._shared_at < SHARED_S
        room = min(room, SHARED_BYTES_MAX if shared else FRAME_BYTES_MAX) - FRAME_OVERHEAD
        taken: list[Queued] = []
        queue = self._queue
        while queue:
            replica, entry = queue.first()
            cost = _cost(entry)
            if taken and cost > room:
                break
            room -= cost
            taken.append(queue.take())
            if replica.open_entry is entry:
                replica.open_entry = None
        return taken

    def _write(self, segment: Segment, taken: list[Queued], buffers: list[Buffer]) -> None:
        start = segment.end
        entries = [(replica.info.replica, entry) for replica, entry in taken]
        frame = build_frame(segment.number, self.group + 1, start, entries, self.seed)
        invariant(start + frame.size <= self.segment_size, "a frame lies in one segment", size=frame.size)
        offset = start - FIRST_FRAME if buffers else start
        buffers.append(frame.front)
        if not frame.direct:
            buffers += frame.data
        self._in_flight, self._busy = taken, True
        records_at, self._records_at = self._records_at, 0.0
        file = segment.file

        def work() -> None:
            file.pwritev(buffers, offset)
            if frame.direct:
                file.pwritev_direct(frame.data, start + frame.data_at)
            file.fdatasync()

        def done(_: object, error: BaseException | None) -> None:
            now, records = self._clock(), [each for _, each in taken if each.kind == EntryKind.RECORDS]
            if records_at:
                self._wrote(sum([each.data_size for each in records]), now - records_at)
            if error is None:
                for each in records:
                    self._metrics.durable(each.data_size, now - each.queued_at, each.count)
            self._finished(segment, start, frame.size, frame.data_at, error)

        self._lane.submit(work, done)

    def _finished(
        self, segment: Segment, start: int, size: int, data_at: int, error: BaseException | None
    ) -> None:
        taken, self._in_flight, self._busy = self._in_flight, [], False
        if self.failed is not None:
            self._tell(taken, self.failed)  # durable or not: only a restart says
            return
        if error is not None:
            self._broken(taken, error)
            return
        try:
            self._fold_group(segment, start, size, data_at, taken)
        except Exception as failure:
            # Our own mistake: what memory says is not what is on disk any more. Only a restart helps.
            log.exception("folding group commit %d failed", self.group)
            self._broken(taken, failure)
            return
        if self._queue:
            self._begin()
        self._committed()
        self._tell(taken, None)

    def _tell(self, taken: list[Queued], outcome: DeviceFailed | None) -> None:
        for _, entry in taken:
            for each in entry.done:
                try:
                    each(outcome)
                except Exception as failure:
                    self.give_up(failure)

    def give_up(self, failure: BaseException) -> None:
        """Our own mistake, in telling somebody what is durable or in upkeep: the others hear of it all the
        same, and then the device is out of use."""
        log.error("the store failed at group commit %d", self.group, exc_info=failure)
        if self.failed is None:
            self._broken([], failure, "the store failed")

    def _fold_group(self, segment: Segment, start: int, size: int, data_at: int, taken: list[Queued]) -> None:
        """No await in here: ``group``, ``end`` and the replicas' states move together."""
        self.group += 1
        segment.end = start + size
        self._durable_segment = segment
        self._proved = not taken
        self._metrics.group_commit(len(taken), size)
        self.written_bytes += size
        location = segment.number << OFFSET_BITS | (start + data_at)
        for replica, entry in taken:
            if replica.last_entry is entry:
                replica.last_entry = None
            self.queued_bytes -= entry.data_size
            self._fold(replica, entry, location)
            location += entry.data_size

    def _broken(
        self, taken: list[Queued], error: BaseException, what: str = "writing the log failed"
    ) -> None:
        self.failed = DeviceFailed(
            f"{what}: {error!r}; the device is out of use: look at the disk, then restart it"
        )
        log.critical("%s", self.failed)
        lost = [*taken, *self._queue.clear()]
        self._fail(self.failed)
        self._committed()
        self._tell(lost, self.failed)


def _cost(entry: Entry) -> int:
    return ENTRY_SIZE + entry.size


def check_size(segment_size: int, size: int) -> None:
    """What can never fit into a segment is refused before it is queued."""
    if align(size + FRAME_OVERHEAD + ENTRY_SIZE) > segment_size - FIRST_FRAME:
        raise LimitExceeded(f"{size} bytes at once do not fit into a segment of {segment_size}")
