"""The counting half of the writer: peers, configurations, what is committed, durable, and has room.

Invariants: nothing counts below the barrier; the commit LSN never falls; a member that is not whole counts
nothing; durable <= commit <= last. While a membership change is under way everything must hold in both
configurations.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Any

from moorage.quorum.lease import LEASE_MS, held_ms
from moorage.quorum.majority import Configuration, reached_by_majority
from moorage.quorum.orders import Order
from moorage.quorum.peer import Peer, Status
from moorage.quorum.read_map import ReadMap
from moorage.quorum.record import Kind
from moorage.quorum.window import Window
from moorage.wire.errors import MoorageError, violated

WINDOW_BYTES = 64 << 20
WINDOW_RECORDS = 16_384
READ_MAP_CHUNKS = 8_192
SILENT_MS = 100  # a member that owes acknowledgements and gives none for so long is silent

_BARRIER = int(Kind.BARRIER)
_ZERO_CHUNKS = int(Kind.ZERO_CHUNKS)


class Phase(IntEnum):
    SEALING = 1
    TAIL = 2
    BARRIER = 3
    SERVING = 4


class Counting:
    """State of the writer, and how it counts. See ``writer.Writer`` for the parameters."""

    def __init__(
        self,
        *,
        epoch: int,
        writer: int,
        members: Configuration,
        learners: Configuration = (),
        sync: bool,
        window_bytes: int = WINDOW_BYTES,
        window_records: int = WINDOW_RECORDS,
        read_map_chunks: int = READ_MAP_CHUNKS,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self.epoch = epoch
        self.writer = writer
        self.sync = sync
        self.phase = Phase.SEALING
        self.ended: MoorageError | None = None
        self.window_bytes = window_bytes
        self.window_records = window_records
        self.configurations: list[Configuration] = [members]
        self.peers = {replica: Peer(replica) for replica in (*members, *learners)}
        self.window = Window(1, [])
        self.barrier = 0
        self.commit = 0  # every record up to it is done
        self.durable = 0  # every record up to it is on stable storage at a majority
        self.reads = ReadMap(0, read_map_chunks)
        self._voters: list[list[Peer]] = []
        self._space_end = 0  # cumulative cost that a majority has room for
        self._orders: list[Order] = []
        self._done: list[Any] = []
        self._flushes: deque[tuple[int, Any]] = deque()
        self._flush_to = 0  # LSN that members are asked to make durable (writeback)
        self._held_ms = held_ms(lease_ms)
        self._now_ms = 0
        self._set_configurations([members])

    def _set_configurations(self, configurations: list[Configuration]) -> None:
        self.configurations = configurations
        self._voters = [[self.peers[member] for member in members] for members in configurations]

    # -- committed and durable -------------------------------------------------------------------------

    def _count(self) -> None:
        """Look whether a majority has more than is committed; complete what is."""
        reached = min([reached_by_majority([peer.value for peer in peers]) for peers in self._voters])
        if reached > self.commit and reached >= self.barrier > 0 and self._may_commit():
            self._advance(reached)
        if self.sync:
            self.durable = self.commit
        else:
            self._count_durable()
        if self._flushes:
            self._finish_flushes()

    def _may_commit(self) -> bool:
        """In writeback the barrier must be durable at a majority: then the choice of a log is never undone.
        Else another loss of power could bring back a log from before it, with acknowledged records that this
        writer has lost, and whose loss it has shown."""
        return self.sync or self.phase is not Phase.BARRIER or self._durable_at_majority() >= self.barrier

    def _durable_at_majority(self) -> int:
        return min(
            reached_by_majority([peer.durable if peer.whole else 0 for peer in peers])
            for peers in self._voters
        )

    def _advance(self, commit: int) -> None:
        if commit > self.window.last:
            violated("committed what was never written", commit=commit, last=self.window.last)
        entries, done, reads = self.window.entries, self._done, self.reads
        for lsn in range(self.commit + 1, commit + 1):
            entry = entries[lsn]
            if entry.tag is not None:
                done.append(entry.tag)
                entry.tag = None
            if entry.kind == _ZERO_CHUNKS:
                reads.wrote_all(lsn)
            elif entry.kind != _BARRIER:
                reads.wrote(entry.chunk, lsn)
        self.commit = commit
        if self.phase is Phase.BARRIER and commit >= self.barrier:
            self.phase = Phase.SERVING
            reads.wrote_all(commit)

    def _count_durable(self) -> None:
        durable = min(self.commit, self._durable_at_majority())
        if durable >= self.barrier > 0 and durable > self.durable:
            self.durable = durable

    def _finish_flushes(self) -> None:
        waiting = self._flushes
        for _ in range(len(waiting)):
            lsn, tag = waiting.popleft()
            if lsn <= self.durable:
                self._done.append(tag)
            else:
                waiting.append((lsn, tag))

    def _trim(self) -> None:
        """Drop records that nobody will ask for; if there are too many, also those that a member which
        does not keep up lacks (it gets a copy), but never what is not durable at a majority."""
        window = self.window
        if self.durable < self.commit and (
            window.bytes > self.window_bytes // 2 or len(window.entries) > self.window_records // 2
        ):
            self._flush_to = max(self._flush_to, self.commit)  # else a full window would wait for ever
        if window.first > self.durable:
            return
        lowest = min([peer.durable for peer in self.peers.values()])
        window.drop_to(min(lowest, self.durable))
        if window.bytes < self.window_bytes and len(window.entries) < self.window_records:
            return
        keep = min([self._needs(peer) for peer in self.peers.values()])
        limit = min(keep, self.durable)
        while window.first <= limit and (
            window.bytes > self.window_bytes // 2 or len(window.entries) > self.window_records // 2
        ):
            window.drop_to(window.first)

    def _needs(self, peer: Peer) -> int:
        """The LSN up to which the window may be dropped for this member's sake: one that makes progress is
        waited for rather than lost, one that is silent is not."""
        if peer.status < Status.ORDERED or self._now_ms - peer.progressed_ms >= SILENT_MS:
            return self.window.last
        return max(peer.received, peer.base.lsn) if peer.status is Status.ORDERED else peer.received

    # -- values of a peer ------------------------------------------------------------------------------

    def _revalue(self, peer: Peer) -> None:
        """What a member counts with: durable records in sync mode, received ones else; only if whole."""
        peer.value = (peer.durable if self.sync else peer.received) if peer.whole else 0

    def _update_space(self) -> None:
        """Cumulative cost that a majority of the members granted: a write up to there gets an LSN."""
        self._space_end = min(
            reached_by_majority([peer.limit_end if peer.status is Status.STREAMING else 0 for peer in voters])
            for voters in self._voters
        )

    def _no_space(self, end: int) -> bool:
        """Whether so many live members are full that no majority can get room up to ``end``. Too few live
        ones is another matter (waiting helps)."""
        for voters in self._voters:
            need = len(voters) // 2 + 1
            live = [peer for peer in voters if peer.status is Status.STREAMING]
            roomy = [peer for peer in live if peer.limit_end >= end or not peer.full]
            if len(live) >= need > len(roomy):
                return True
        return False

    # -- read leases -----------------------------------------------------------------------------------

    def lease_renewed(self, replica: int, session: int, sent_ms: int) -> None:
        """The heartbeat sent at ``sent_ms`` on the connection of the Seal order with ``session`` was
        answered."""
        peer = self.peers.get(replica)
        if peer is None or not peer.answered or session != peer.seal_session:
            return
        # a damaged member counts in no seal's majority, so its promise protects nothing
        if peer.whole or (peer.answer is not None and not peer.answer.damaged):
            peer.lease_until_ms = max(peer.lease_until_ms, sent_ms + self._held_ms)

    def reads_until_ms(self) -> int:
        """Until when reads may be handed to the application: a majority's read leases run so long. Check
        with the clock *after* the answer of the read arrived. 0: not at all."""
        if self.phase is not Phase.SERVING or self.ended is not None:
            return 0
        return min(reached_by_majority([peer.lease_until_ms for peer in peers]) for peers in self._voters)
