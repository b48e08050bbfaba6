"""The writer of ONE replica group: it leads the group's log for one epoch, as a Raft leader leads a term.

Owns: which log is chosen (once), which LSN a record gets, what each member was sent and has, what is
committed and durable, the window of recent records, where reads may go. Must never: give an LSN to two
records, count anything below its barrier, send a record before the tail is read, read a clock (``tick``
brings the time).

Phases: SEALING (until a majority answered and a log is chosen) -> TAIL (reading the chosen tail) -> BARRIER
(sending it and the barrier) -> SERVING. ``ended`` is an error once the attachment is over (``Fenced``,
``AttachmentLost``): terminal in every phase.

The shell (one event loop) feeds events and drains what came of them once per loop turn:

* events: ``connected``/``disconnected`` (a connection to the member's device came up / ended), ``sealed``,
  ``refused``, ``tail``, ``ack``, ``nack``, ``lease_renewed``, ``tick`` (every ``TICK_MS``); from the
  application ``submit``, ``flush``; from metadata ``change``, ``change_committed``, ``change_refused``;
* drains: ``take_orders()``; for each member whose connection has room ``take_batch(replica, bytes_max)``
  until None; ``take_done()`` (tags in the order of their LSNs).

One writer serves one group. The shell serves nothing of a volume before *all* its groups are SERVING.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moorage.quorum.counting import Phase
from moorage.quorum.majority import reached_by_majority
from moorage.quorum.member import FLUSH
from moorage.quorum.orders import Order
from moorage.quorum.peer import Peer, Status
from moorage.quorum.record import LSN_MAX, Buffer, Kind, Record, pack_lsns
from moorage.quorum.recovery import Recovery
from moorage.quorum.window import Entry, cost
from moorage.wire.errors import LimitExceeded, invariant

__all__ = ["NO_SPACE", "TICK_MS", "WAIT", "Batch", "Phase", "Status", "Writer"]

TICK_MS = 10
BATCH_RECORDS_MAX = 512
BATCH_HEADS_MAX = 512 << 10  # bytes of heads: well below the limit of a frame's body

# outcomes of ``submit``
WAIT = 0  # not now: the window is full, or too few members are there; try again after the next events
NO_SPACE = -1  # a majority of the members has no room: ENOSPC, nothing was sent

_WRITE, _BARRIER, _SNAPSHOTS = int(Kind.WRITE), int(Kind.BARRIER), int(Kind.SNAPSHOTS)


class Batch:
    """One APPEND to send: ``pack_append(replica, writer, epoch, prev_epoch, prev_lsn, commit, session, count)
    + heads`` is the body, ``buffers`` the payload, ``flags`` the flags of the frame. The buffers must not
    change before they have left; ``heads`` and ``buffers`` may be shared with other members' batches.
    ``records``: the same, for who wants no bytes."""

    __slots__ = (
        "asked",
        "buffers",
        "commit",
        "count",
        "end",
        "flags",
        "heads",
        "prev_epoch",
        "prev_lsn",
        "records",
        "session",
    )

    def __init__(self, prev_epoch: int, prev_lsn: int, records: list[Record], heads: bytes) -> None:
        self.prev_epoch = prev_epoch
        self.prev_lsn = prev_lsn
        self.records = records
        self.heads = heads
        self.buffers: list[Buffer] = []
        self.count = len(records)
        self.end = 0
        self.asked = (0, 0, 0)
        self.session = self.commit = self.flags = 0


class Writer(Recovery):
    """See the module. ``members``: replica ids of the configuration; ``learners``: replicas that a membership
    change has already created; ``sync``: durability mode of the volume. Public state: ``phase``, ``ended``,
    ``commit`` (every record up to it is done), ``durable`` (at a majority), ``barrier``, ``peers``."""

    _shared: Batch | None = None

    # -- the application -----------------------------------------------------------------------------

    def submit(
        self, kind: int, chunk: int, block: int, count: int, sums: Buffer, data: Buffer, tag: Any
    ) -> int:
        """Give a record the next LSN and queue it for all members. Returns the LSN, WAIT or NO_SPACE. ``tag``
        comes back from ``take_done`` when it is committed (None: nobody asks). ``sums`` and ``data`` must
        stay unchanged as long as the window holds the record: hand them over. Only while SERVING."""
        window = self.window
        if self.phase is not Phase.SERVING or self.ended is not None:
            return WAIT
        if window.bytes >= self.window_bytes or len(window.entries) >= self.window_records:
            self._trim()
            if window.bytes >= self.window_bytes or len(window.entries) >= self.window_records:
                return WAIT
        end = window.end
        if kind == _WRITE:
            end += cost(sums, data)
            if end > self._space_end:
                return NO_SPACE if self._no_space(end) else WAIT
        lsn = window.last + 1
        if lsn > LSN_MAX:
            self._end(LimitExceeded(f"LSN {lsn} is past the end of the log"))
            return WAIT
        window.add(Entry(self.epoch, lsn, kind, chunk, block, count, sums, data, end, tag))
        return lsn

    def set_snapshots(self, lsns: Sequence[int], new: bool, tag: Any) -> int:
        """Queue a record that says which snapshots there are; ``new``: and one of what was written so far,
        whose LSN is the one that is returned. Else as :meth:`submit`; but it is small, and does not wait for
        room: a window that is always full would keep it out for ever."""
        window, lsn = self.window, self.window.last + 1
        if self.phase is not Phase.SERVING or self.ended is not None:
            return WAIT
        if lsn > LSN_MAX:
            self._end(LimitExceeded(f"LSN {lsn} is past the end of the log"))
            return WAIT
        listed = sorted({*lsns, lsn} if new else set(lsns))
        packed = pack_lsns(listed)
        window.add(Entry(self.epoch, lsn, _SNAPSHOTS, 0, 0, len(listed), packed, b"", window.end, tag))
        return lsn

    def flush(self, tag: Any, lsn: int = 0) -> None:
        """``tag`` comes back from ``take_done`` once all that is committed now, or all up to ``lsn`` (FUA),
        is durable at a majority. At once in sync mode, when ``lsn`` is not given."""
        lsn = lsn or self.commit
        if lsn <= self.durable:
            self._done.append(tag)
            return
        self._flushes.append((lsn, tag))
        self._flush_to = max(self._flush_to, lsn)

    def take_done(self) -> list[Any]:
        """Tags of records that were committed and of flushes that are complete."""
        done = self._done
        if done:
            self._done = []
            self._trim()
        return done

    def take_rest(self) -> list[tuple[int, Entry | None, Any]]:
        """When the epoch is over: what is not known to be durable at a majority, in the order of the log, as
        (LSN, record, tag). A record without a tag was acknowledged (writeback), or nobody asks for it; in
        place of a flush there is no record, and all up to the LSN is what it waits for. Whether the records
        are in the log of a later epoch, ``recovered`` of its writer says."""
        window = self.window
        flushes: dict[int, list[Any]] = {}
        while self._flushes:
            lsn, tag = self._flushes.popleft()
            flushes.setdefault(lsn, []).append(tag)
        rest: list[tuple[int, Entry | None, Any]] = []
        for lsn in range(max(self.durable + 1, self.barrier, window.first), window.last + 1):
            entry = window.entries[lsn]
            if entry.kind not in (_BARRIER, _SNAPSHOTS):  # who wishes for snapshots, wishes in the next epoch
                rest.append((lsn, entry, entry.tag))
                entry.tag = None
            rest += [(lsn, None, tag) for tag in flushes.get(lsn, ())]
        return rest

    def read_lsn(self, chunk: int) -> int:
        """The LSN that a read in this chunk must see (the last write acknowledged there, at least the
        barrier)."""
        return self.reads.must_see(chunk)

    def readable(self) -> list[int]:
        """Replicas that may be asked for reads now: sealed in this session, and whole."""
        return [peer.replica for peer in self.peers.values() if peer.status is Status.STREAMING]

    # -- drains ------------------------------------------------------------------------------------------

    def take_orders(self) -> list[Order]:
        """Control messages to send."""
        orders = self._orders
        if orders:
            self._orders = []
        return orders

    def take_batch(self, replica: int, bytes_max: int) -> Batch | None:
        """The next APPEND for this member: at most ``bytes_max`` bytes of data (but at least one record), or
        a notice without records; None when there is nothing to send now."""
        peer = self.peers.get(replica)
        if peer is None or peer.status < Status.COPYING or self.ended is not None:
            return None
        window = self.window
        lsn = peer.next
        batch = None
        if window.first <= lsn <= window.last:
            shared = self._shared
            if shared is None or shared.asked != (lsn, window.last, bytes_max):
                shared = self._gather(lsn, bytes_max)
            batch = self._limited(peer, shared)
        if batch is None:
            return self._notice(peer)
        peer.next = lsn + batch.count
        return self._address(peer, batch)

    def _gather(self, lsn: int, bytes_max: int) -> Batch:
        """A batch from ``lsn`` on, as one member after the other will ask for it."""
        window = self.window
        entries = window.entries
        records: list[Record] = []
        heads: list[bytes] = []
        buffers: list[Buffer] = []
        size = heads_size = 0
        end = 0
        for at in range(lsn, min(window.last, lsn + BATCH_RECORDS_MAX - 1) + 1):
            entry = entries[at]
            data_size = len(entry.data)
            head = entry.head
            if records and (size + data_size > bytes_max or heads_size + len(head) > BATCH_HEADS_MAX):
                break
            size += data_size
            heads_size += len(head)
            records.append(entry)
            heads.append(head)
            if data_size:
                buffers.append(entry.data)
            end = entry.end
        batch = Batch(window.position_at(lsn - 1).epoch, lsn - 1, records, b"".join(heads))
        batch.buffers = buffers
        batch.end = end
        batch.asked = (lsn, window.last, bytes_max)
        self._shared = batch
        return batch

    def _limited(self, peer: Peer, shared: Batch) -> Batch | None:
        """As much of the batch as this member has granted space for (recovered records need no grant)."""
        if shared.end <= peer.limit_end or shared.end <= peer.limit_base:
            return shared
        entries = self.window.entries
        count = 0
        while count < shared.count and entries[peer.next + count].end <= peer.limit_end:
            count += 1
        if not count:
            return None
        records = shared.records[:count]
        heads = b"".join(entries[record.lsn].head for record in records)
        batch = Batch(shared.prev_epoch, shared.prev_lsn, records, heads)
        batch.buffers = [record.data for record in records if len(record.data)]
        return batch

    def _address(self, peer: Peer, shared: Batch) -> Batch:
        """The batch with what differs from member to member."""
        batch = Batch(shared.prev_epoch, shared.prev_lsn, shared.records, shared.heads)
        batch.buffers = shared.buffers
        batch.session = peer.session
        batch.commit = peer.commit_sent = self.commit
        peer.notice = False
        if peer.flush_sent < self._flush_to < peer.next and not self.sync:
            peer.flush_sent = self._flush_to
            batch.flags = FLUSH
        return batch

    def _notice(self, peer: Peer) -> Batch | None:
        """No record to send: the commit LSN, the position where the logs match, a wish to flush."""
        flush = peer.flush_sent < self._flush_to < peer.next and not self.sync
        if not (peer.notice or flush):
            return None
        prev = peer.next - 1
        return self._address(peer, Batch(self.window.position_at(prev).epoch, prev, [], b""))

    # -- for people and tests ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Phase, positions, and per member its state ("waiting for ...")."""
        return {
            "phase": self.phase.name,
            "epoch": self.epoch,
            "commit": self.commit,
            "durable": self.durable,
            "last": self.window.last,
            "configurations": [list(members) for members in self.configurations],
            "members": {
                peer.replica: {
                    "status": peer.status.name,
                    "reason": peer.reason,
                    "received": peer.received,
                    "durable": peer.durable,
                    "applied": peer.applied,
                }
                for peer in self.peers.values()
            },
        }

    def validate(self) -> None:
        """Whole-state check, for tests and simulation."""
        window = self.window
        ids = {"commit": self.commit, "durable": self.durable, "last": window.last, "barrier": self.barrier}
        if self.phase >= Phase.BARRIER:
            invariant(self.commit <= window.last, "commit past the last record", **ids)
            invariant(self.durable <= self.commit, "durable past the commit LSN", **ids)
            invariant(window.first <= self.commit + 1, "an uncommitted record was dropped", **ids)
            counted = min(reached_by_majority([p.value for p in peers]) for peers in self._voters)
            if self._may_commit():
                invariant(counted <= max(self.commit, self.barrier - 1), "counted, not committed", **ids)
        invariant(len(window.entries) == window.last - window.first + 1, "the window has gaps", **ids)
        invariant(window.bytes >= 0, "negative size of the window", **ids)
        for peer in self.peers.values():
            here = {"replica": peer.replica, "received": peer.received, "next": peer.next}
            if peer.sends:
                invariant(peer.received < peer.next, "acknowledged what was not sent", **here)
            invariant(peer.whole or not peer.value, "a member that is not whole counts", **here)
