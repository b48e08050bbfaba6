"""The half of the writer that deals with members: seal, choose, read the tail, bring every member up to the
log (window or copy), change the configuration.

Invariants: the log is chosen once, and nothing is sent before its tail is read; within a session what a
member acknowledged never falls; a copy begins a session of its own.
"""

from __future__ import annotations

from moorage.quorum import choice
from moorage.quorum.counting import Counting, Phase
from moorage.quorum.history import UNKNOWN
from moorage.quorum.majority import Configuration
from moorage.quorum.member import FENCED, FORKED, FULL, NO_SESSION, STALLED, WHOLE
from moorage.quorum.orders import ConfigurationReady, CopyOrder, ReadTail, Seal, SealAnswer
from moorage.quorum.peer import Peer, Status
from moorage.quorum.record import LSN_MAX, ZERO_POSITION, Kind, Record
from moorage.quorum.window import Entry, Window
from moorage.wire.errors import (
    AttachmentLost,
    Fenced,
    LimitExceeded,
    MoorageError,
    NoReplica,
    ProtocolError,
)

RETRY_MS = 200  # a refused member is sealed again after this
BLOCKED_MS = 5_000  # a full member gets a copy after this, if the others have room
TAIL_RECORDS = 64  # read besides what may be uncommitted, for members a little behind; 64 MiB at most
PROBE_MS = 100  # a member that owes acknowledgements is asked how far it is


class Recovery(Counting):
    """See the module and ``writer.Writer``."""

    _chosen: int | None = None
    _tail_next = 0
    _wish: Configuration | None = None
    _joint_from = 0  # first LSN that needs both majorities; 0: no change under way
    _joint_told = False

    # -- connections and seals -------------------------------------------------------------------------

    def connected(self, replica: int) -> None:
        """A new connection to this member's device is up: a Seal order with a new session follows."""
        peer = self.peers.get(replica)
        if peer is not None and self.ended is None:
            self._seal(peer)

    def _seal(self, peer: Peer) -> None:
        self._lose(peer, Status.SEALING, "waiting for its promise")
        peer.session += 1
        peer.seal_session = peer.session
        self._orders.append(Seal(peer.replica, peer.session))

    def disconnected(self, replica: int) -> None:
        """Its connection ended: what it had only in memory does not count any more."""
        peer = self.peers.get(replica)
        if peer is not None:
            self._lose(peer, Status.DOWN, "not connected")

    def _lose(self, peer: Peer, status: Status, reason: str) -> None:
        was_chosen = self.phase is Phase.TAIL and self._chosen == peer.replica
        peer.status = status
        peer.reason = reason
        peer.received = peer.durable
        peer.source = 0
        self._revalue(peer)
        self._update_space()
        if was_chosen:
            self.phase = Phase.SEALING  # nothing was sent yet: another log may be chosen
            self._maybe_choose()

    def refused(self, replica: int, session: int, error: MoorageError) -> None:
        """A Seal, ReadTail or CopyOrder failed. ``Fenced`` ends the writer; ``NoReplica`` counts as dead; for
        all others a new Seal order follows after a while, if still connected."""
        if isinstance(error, Fenced):
            self._end(error)
            return
        peer = self.peers.get(replica)
        if peer is None or session != peer.session or peer.status is Status.DOWN:
            return
        self._lose(peer, Status.REFUSED, str(error))
        peer.retry_ms = self._now_ms + RETRY_MS * (10 if isinstance(error, NoReplica) else 1)

    def _end(self, error: MoorageError) -> None:
        if self.ended is None:
            self.ended = error

    def sealed(self, replica: int, session: int, answer: SealAnswer) -> None:
        """The answer to a Seal order."""
        peer = self.peers.get(replica)
        if peer is None or session != peer.session or peer.status is not Status.SEALING:
            return
        if answer.epoch != self.epoch:
            error = ProtocolError(f"replica {replica} answered a SEAL of {self.epoch} for {answer.epoch}")
            self.refused(replica, session, error)
            return
        peer.answer = answer
        peer.status = Status.SEALED
        peer.reason = ""
        if self.phase in (Phase.SEALING, Phase.TAIL):
            self._maybe_choose()
        else:
            self._join(peer)
            self._count()

    # -- choosing a log, once --------------------------------------------------------------------------

    def _maybe_choose(self) -> None:
        if self.phase is not Phase.SEALING:
            return
        members = self.configurations[0]
        answers = {
            peer.replica: peer.answer
            for peer in self.peers.values()
            if peer.status is Status.SEALED and peer.answer is not None and peer.replica in members
        }
        chosen = choice.choose(answers, self.configurations)
        if chosen is None:
            return
        self._chosen = chosen
        answer = answers[chosen]
        others = [its for replica, its in answers.items() if replica != chosen and not its.damaged]
        first = choice.tail_begin(answer, others, min(TAIL_RECORDS, self.window_records // 2))
        self.window = Window(first, [*answer.history] or [(0, 0)])
        self._tail_next = first
        if first > answer.last.lsn:
            self._adopt(answer)
        else:
            self.phase = Phase.TAIL
            peer = self.peers[chosen]
            self._orders.append(ReadTail(chosen, peer.session, first, answer.last.lsn))

    def tail(self, replica: int, session: int, records: list[Record]) -> None:
        """Records asked for with ReadTail, a piece in order, at least one record each."""
        peer = self.peers.get(replica)
        if self.phase is not Phase.TAIL or replica != self._chosen or peer is None or session != peer.session:
            return
        answer = peer.answer
        if answer is None:
            return
        for r in records:
            if r.lsn != self._tail_next or r.epoch != self.window.position_at(r.lsn).epoch:
                self.refused(replica, session, MoorageError(f"its tail has {r!r} at {self._tail_next}"))
                return
            self.window.add(Entry(r.epoch, r.lsn, r.kind, r.chunk, r.block, r.count, r.sums, r.data, 0, None))
            self._tail_next += 1
        if self._tail_next > answer.last.lsn:
            self._adopt(answer)

    def _adopt(self, answer: SealAnswer) -> None:
        """The log is chosen for good: write the barrier, bring everybody up to it."""
        self.commit = answer.commit
        self.durable = answer.commit if self.sync else 0
        self.phase = Phase.BARRIER
        self.barrier = self._flush_to = self._add_barrier()
        for peer in self.peers.values():
            if peer.status is Status.SEALED:
                self._join(peer)

    def _add_barrier(self) -> int:
        lsn = self.window.last + 1
        if lsn > LSN_MAX:
            self._end(LimitExceeded(f"LSN {lsn} is past the end of the log"))
            return lsn
        self.window.add(Entry(self.epoch, lsn, Kind.BARRIER, 0, 0, 0, b"", b"", self.window.end, None))
        return lsn

    def recovered(self, epoch: int, lsn: int) -> bool | None:
        """Whether the log that was chosen contains the record that ``epoch`` had written at ``lsn``: how a
        holder that goes on in another epoch finds out what of its own is there. None: the log is known to
        begin later, and does not tell."""
        if not 0 < lsn < self.barrier:
            return False
        found = self.window.position_at(lsn).epoch
        return None if found == UNKNOWN else found == epoch

    # -- bringing a member up to the log -----------------------------------------------------------------

    def _join(self, peer: Peer) -> None:
        """A sealed member, and the log is chosen: stream from where both are equal, or copy."""
        answer = peer.answer
        if answer is None:
            return
        window = self.window
        match = choice.matches_up_to(window.history, window.last, answer)
        forked = choice.is_forked(window.history, window.last, answer, self.sync)
        forgot = answer.whole and match < peer.durable
        peer.full = answer.full
        peer.applied = 0 if forked else min(answer.commit, window.last)
        peer.whole = answer.whole and not answer.damaged and not forked and not forgot
        peer.fresh = answer.damaged or forked or forgot
        if not forked and min(answer.newest.lsn, window.last) > self.commit:
            self._advance(min(answer.newest.lsn, window.last))  # somebody knew that it is committed
        peer.base = answer.base
        if peer.fresh or match + 1 < window.first:
            self._lag(peer, fresh=peer.fresh)
        elif not peer.whole:
            self._lag(peer, fresh=False, base_known=True)
            peer.received = peer.durable = match
        else:
            self._stream(peer, match, answer.space_limit)

    def _stream(self, peer: Peer, match: int, space_limit: int) -> None:
        """Send from ``match + 1`` on; up to there it has everything, durably."""
        peer.status = Status.STREAMING if peer.whole else Status.COPYING
        peer.reason = "" if peer.whole else f"copies from {peer.source}"
        peer.received = peer.durable = match
        peer.next = match + 1
        peer.commit_sent = peer.flush_sent = 0
        peer.notice = True  # asserts the match, so that it may apply
        peer.progressed_ms = self._now_ms
        peer.limit_base = self.window.end_at(match)
        peer.limit_end = peer.limit_base + space_limit
        self._revalue(peer)
        self._update_space()

    def _lag(self, peer: Peer, *, fresh: bool, base_known: bool = False) -> None:
        peer.status = Status.LAGGING
        peer.reason = "is damaged or forked: needs a fresh copy" if fresh else "is behind the window"
        peer.whole = False
        peer.fresh = fresh
        if fresh:
            # it may have acknowledged anything up to here, and will answer seals with its new log when whole
            peer.floor = self.window.position_at(self.window.last)
        peer.source = 0
        if not base_known:
            peer.base = ZERO_POSITION
            peer.received = peer.durable = 0
        self._revalue(peer)
        self._update_space()
        self._maybe_lost()

    def _maybe_lost(self) -> None:
        """Everybody is there, and nobody has what was acknowledged: this cannot be made good."""
        voters = self._voters[0]
        if self.phase >= Phase.BARRIER and all(peer.status is Status.LAGGING for peer in voters):
            self._end(AttachmentLost("no member has what was acknowledged: attach again"))

    def _order_copies(self) -> None:
        """Find a source for each member that lags, or that has lost its source."""
        for peer in self.peers.values():
            lost = peer.status is Status.COPYING and not self._is_source(peer.source)
            if (peer.status is Status.LAGGING or lost) and self._now_ms >= peer.retry_ms:
                self._order_copy(peer)

    def _is_source(self, replica: int) -> bool:
        peer = self.peers.get(replica)
        return peer is not None and peer.status is Status.STREAMING

    def _order_copy(self, peer: Peer) -> None:
        """Base: what the source has applied; the window must reach down to it. A copy under way, whose log
        the window still reaches, keeps its base."""
        window = self.window
        keep = peer.base.lsn > 0 and peer.received + 1 >= window.first and not peer.fresh
        needed = peer.base.lsn if keep else window.first - 1
        sources = [
            other
            for other in self.peers.values()
            if other is not peer and other.status is Status.STREAMING and other.applied >= needed
        ]
        if not sources:
            return
        source = max(sources, key=lambda other: (other.replica != peer.avoided, other.applied, other.replica))
        if not keep:
            peer.base = window.position_at(min(source.applied, self.commit))
            peer.received = peer.durable = 0
        if not peer.base.lsn:
            return
        peer.progressed_ms = self._now_ms
        peer.source = source.replica
        peer.session += 1
        peer.status = Status.ORDERED
        history = tuple(entry for entry in window.history if 0 < entry[1] <= peer.base.lsn)
        order = CopyOrder(
            peer.replica, peer.session, source.replica, peer.base, peer.fresh, history, peer.floor
        )
        self._orders.append(order)

    def copy_started(self, replica: int, session: int) -> None:
        """The member took the CopyOrder: records behind its base follow."""
        peer = self.peers.get(replica)
        if peer is None or session != peer.session or peer.status is not Status.ORDERED:
            return
        peer.fresh = False
        begin = max(peer.received, peer.base.lsn)
        if begin + 1 < self.window.first:
            self._lag(peer, fresh=False)
        else:
            self._stream(peer, begin, 0)

    # -- acknowledgements --------------------------------------------------------------------------------

    def ack(
        self,
        replica: int,
        epoch: int,
        received: int,
        durable: int,
        applied: int,
        limit: int,
        session: int,
        flags: int,
    ) -> None:
        """An ACK (same order of fields as on the wire). Of an old session or epoch: ignored."""
        peer = self.peers.get(replica)
        if peer is None or session != peer.session or epoch != self.epoch or peer.status < Status.COPYING:
            return
        if received > peer.received:
            peer.received = received
            peer.progressed = True
            if received >= peer.next:  # it was sent before a rewind
                peer.next = received + 1
        if durable > peer.durable:
            peer.durable = durable
        if applied > peer.applied:
            peer.applied = applied
            peer.progressed = True
        if limit + peer.limit_base > peer.limit_end or (flags & FULL != 0) != peer.full:
            peer.limit_end = max(peer.limit_end, limit + peer.limit_base)
            peer.full = flags & FULL != 0
            self._update_space()
        if peer.status is Status.COPYING:
            self._copied(peer, flags)
        if peer.whole:
            peer.value = value = peer.durable if self.sync else peer.received
            if value > self.commit or not self.sync:
                self._count()

    def _copied(self, peer: Peer, flags: int) -> None:
        if flags & WHOLE:
            peer.whole = True
            peer.status = Status.STREAMING
            peer.reason = ""
            self._update_space()
        elif flags & FORKED:
            self._lag(peer, fresh=True)

    def nack(self, replica: int, epoch: int, promised: int, received: int, session: int, code: int) -> None:
        """A NACK (same order of fields as on the wire)."""
        peer = self.peers.get(replica)
        if epoch != self.epoch or peer is None:
            return
        if code == FENCED:
            if promised <= self.epoch and session != peer.session:
                return  # it serves a later session of this very writer
            self._end(
                Fenced(f"replica {replica} has promised epoch {promised} to another", promised=promised)
            )
        elif session == peer.session and peer.status >= Status.ORDERED:
            if code == NO_SESSION:
                self._seal(peer)
            elif code == STALLED:
                peer.avoided = peer.source
                peer.source = 0
            elif peer.sends:
                self._rewind(peer, received)

    def _rewind(self, peer: Peer, received: int) -> None:
        """Something before what it got is missing: send again, once per tick however many say so."""
        if peer.rewound:
            return
        peer.rewound = True
        begin = max(received, peer.received) + 1
        if begin < self.window.first:
            self._lag(peer, fresh=False)
        else:
            peer.next = min(peer.next, begin)

    # -- time ----------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Time passes: commit notices, probes, retries, copies, learners that are ready."""
        self._now_ms = now_ms
        if self.ended is not None:
            return
        for peer in self.peers.values():
            if peer.status is Status.REFUSED and now_ms >= peer.retry_ms:
                self._seal(peer)
            elif peer.sends:
                self._tick_peer(peer, now_ms)
        if self.phase >= Phase.BARRIER:
            self._order_copies()
            self._trim()
            self._maybe_joint()

    def _tick_peer(self, peer: Peer, now_ms: int) -> None:
        peer.rewound = False
        if peer.next < self.window.first:
            self._lag(peer, fresh=False)
            return
        if self._is_blocked(peer, now_ms):
            self._lag(peer, fresh=False)
            return
        owes = (
            (peer.durable if self.sync else peer.received) < peer.next - 1
            or peer.durable < min(self._flush_to, peer.received)
            or peer.applied < min(self.commit, peer.received)
            or not peer.whole  # a copy: that it is whole again may have been said and lost
        )
        if peer.progressed or not owes:
            peer.progressed = False
            peer.progressed_ms = now_ms
        if self.commit > peer.commit_sent:
            peer.notice = True
        if owes and now_ms - peer.progressed_ms >= PROBE_MS:
            peer.notice = True
            peer.flush_sent = 0

    def _is_blocked(self, peer: Peer, now_ms: int) -> bool:
        """A full member cannot get at the discards behind the write that it has no room for. Once others have
        room again, and one is there to copy from, it is copied to, which skips both."""
        entry = self.window.entries.get(peer.next)
        if not peer.full or entry is None or entry.end <= peer.limit_end:
            peer.blocked_ms = 0
            return False
        peer.blocked_ms = peer.blocked_ms or now_ms
        if now_ms - peer.blocked_ms < BLOCKED_MS:
            return False
        others = [other for other in self.peers.values() if other is not peer]
        return not any(other.full for other in others) and any(self._is_source(o.replica) for o in others)

    # -- membership change -----------------------------------------------------------------------------

    def change(self, members: Configuration) -> None:
        """Metadata wishes this configuration: new replicas become learners (the shell connects them); once
        they are caught up the writer needs both majorities, and orders ConfigurationReady when a record was
        committed that way."""
        if self._joint_from:
            return
        self._wish = members
        self._keep_peers((*self.configurations[0], *members))
        for replica in members:
            self.peers.setdefault(replica, Peer(replica))

    def _keep_peers(self, members: Configuration) -> None:
        self.peers = {replica: peer for replica, peer in self.peers.items() if replica in members}

    def _maybe_joint(self) -> None:
        if self._joint_from:
            if not self._joint_told and self.commit >= self._joint_from:
                self._joint_told = True
                self._orders.append(ConfigurationReady(self.configurations[1]))
        elif self._wish is not None and self.phase is Phase.SERVING:
            new = [self.peers[replica] for replica in self._wish]
            if all(peer.replica in self.configurations[0] or self._caught_up(peer) for peer in new):
                self._joint_from = self.window.last + 1
                self._set_configurations([self.configurations[0], self._wish])
                self._add_barrier()  # a record to be committed both ways, also when nobody writes
                self._update_space()

    def _caught_up(self, peer: Peer) -> bool:
        return peer.status is Status.STREAMING and peer.received >= self.commit - self.window_records // 8

    def change_committed(self, members: Configuration) -> None:
        """Metadata committed it: this configuration alone counts from now on. An answer that is about
        another change is ignored."""
        if self._joint_from and members == self.configurations[1]:
            self._settle(members)

    def change_refused(self, members: Configuration) -> None:
        """Metadata certainly did not and will not commit this configuration: back to the old one."""
        if members == self._wish:
            self._settle(self.configurations[0])

    def _settle(self, members: Configuration) -> None:
        self._wish = None
        self._joint_from = 0
        self._joint_told = False
        self._keep_peers(members)
        self._set_configurations([members])
        self._update_space()
        self._count()
