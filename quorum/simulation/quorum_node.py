"""One device with one replica in simulation: the shell around ``Member`` with its store and its copies.

Messages are tuples (kind, fields...); the first field is always the replica's id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage.quorum.lease import GrantedLease
from moorage.quorum.member import FENCED, NO_SESSION, OK, STALLED, Member
from moorage.quorum.orders import Append, Apply, Note, Pull, Sync
from moorage.quorum.record import HEAD_SIZE, Position
from moorage.quorum.simulation.quorum_store import BLOCKS, CHUNKS, SimStore
from moorage.quorum.state import MemberState
from moorage.wire.errors import Fenced, Stale, invariant

if TYPE_CHECKING:
    from moorage.quorum.simulation.quorum_cluster import QuorumCluster

COST = HEAD_SIZE + 8  # what a WRITE of the workload is charged
PULL_BLOCKS = 3  # cells per answer to a pull
PULL_RETRY_US = 40_000
PULL_TRIES = 4
TAIL_RECORDS = 5


class SimNode:
    """See the module. ``capacity``: blocks that fit, or None. ``dropped``: the replica is gone for good."""

    def __init__(self, cluster: QuorumCluster, replica: int, capacity: int | None) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.replica = replica
        self.name = f"r{replica}"
        self.capacity = capacity
        self.store = SimStore(self.kernel, self.name, replica, cluster.disk_us)
        self.member: Member | None = None
        self.dropped = False
        self.rotten = False  # a fault to come: the next restart finds acknowledged records missing
        self.forgetful = False  # and its promise too
        self.held: set[Position] = set()
        self.copied_to = 0  # LSN up to which a finished copy stands in for records
        self._holder = ""
        self._pull: Pull | None = None
        self._cursor = 0
        self._tries = 0
        self._copy_base = 0
        self._former: MemberState = MemberState(replica)
        self._acked: tuple[int, int, int] = (0, 0, 0)
        self._start(MemberState(replica), restarted=False)

    # -- life ------------------------------------------------------------------------------------------

    def _start(self, state: MemberState, *, restarted: bool) -> None:
        self.member = Member(
            state,
            sync=self.cluster.sync,
            now_ms=self.kernel.now_ms,
            tail_from=self.store.tail_from,
            restarted=restarted,
            lease_ms=self.cluster.lease_ms,
        )
        self._former = state.clone()
        self.cluster.network.attach(self.name, self.on_message)
        self._schedule_checkpoint()

    def crash(self) -> None:
        if self.member is not None:
            self.member = None
            self.store.journal.crash()
        self._pull = None
        self._cursor = 0  # known to a process only: what was not synced of its pieces is gone
        self.cluster.network.detach(self.name)

    def restart(self) -> None:
        if self.dropped or self.member is not None:
            return
        if self.rotten:
            self._rot()
        state = self.store.replay()
        if self.rotten:
            self.rotten = False
            self._found_damaged(state)
        self.cluster.observer.restarted(self.replica, state.newest.lsn)
        self.cluster.observer.remembers(self.replica, state.epoch)
        self._hold()
        self._start(state, restarted=True)

    def _found_damaged(self, state: MemberState) -> None:
        """As the store does: noted durably before anybody is answered. Else a crash would forget that records
        are missing, which here nothing else tells."""
        state.damaged = "records are missing"
        if self.forgetful:
            self._forget(state)
        self.store.checkpoint(state)
        self.cluster.observer.acknowledged.pop(self.replica, None)

    def copying(self) -> bool:
        return self._pull is not None

    def source(self) -> str:
        return f"r{self._pull.source}" if self._pull is not None else self.name

    def _forget(self, state: MemberState) -> None:
        """The notes are lost too, and metadata is asked before anybody is answered."""
        state.epoch = state.writer = 0
        state.promise_lost = True
        metadata = self.cluster.metadata
        state.promise_again(metadata.epoch, metadata.writers)

    def _rot(self) -> None:
        """Lose the newest synced records."""
        items = self.store.journal.items
        for at in range(len(items) - 1, 0, -1):
            if items[at][0] == "records":
                del items[at]
                break
        self.store.journal.synced = len(items)

    def drop(self) -> None:
        """Metadata's committed word: this replica is not a member any more."""
        self.dropped = True
        self.member = None
        self._pull = None

    def _schedule_checkpoint(self) -> None:
        delay_us = self.kernel.rng.randint(20_000, 400_000)
        self.kernel.later(delay_us, self._checkpoint, self.name)

    def _checkpoint(self) -> None:
        journal = self.store.journal
        if self.member is None:
            return
        if self.store.syncs == 0 and journal.synced == len(journal.items):
            self.kernel.note(f"{self.name}: checkpoint")
            self.store.checkpoint(self.member.state)
        self._schedule_checkpoint()

    # -- messages ------------------------------------------------------------------------------------------

    def on_message(self, source: str, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if self.dropped:
            if kind == "seal":
                self._send(source, "no_replica", message[2])
            elif kind == "heartbeat":
                self._send(source, "lost", message[3], message[2])
            return
        if self.member is not None:
            getattr(self, "_on_" + kind)(self.member, source, *message[2:])
            if self.member is not None:
                self.turn()

    def _send(self, target: str, kind: str, *fields: Any) -> None:
        self.cluster.network.send(self.name, target, (kind, self.replica, *fields))

    def _on_seal(self, member: Member, source: str, session: int, epoch: int, writer: int) -> None:
        try:
            if member.seal(session, epoch, writer, self.kernel.now_ms, GrantedLease(self.cluster.lease_ms)):
                self._holder = source
                self._acked = (0, 0, 0)
        except Fenced:
            self._send(source, "fenced", session, epoch, member.state.epoch)

    def _on_append(
        self,
        member: Member,
        source: str,
        writer: int,
        epoch: int,
        session: int,
        prev_epoch: int,
        prev_lsn: int,
        commit: int,
        flags: int,
        records: tuple[Any, ...],
    ) -> None:
        promised = member.state.epoch
        code = member.append(writer, epoch, session, prev_epoch, prev_lsn, commit, flags, list(records))
        if code == OK:
            invariant(epoch >= promised, "Fencing: an older epoch was accepted", replica=self.replica)
            self._holder = source
        else:
            self._send(source, "nack", epoch, member.state.epoch, member.matched, session, code)

    def _on_heartbeat(
        self, member: Member, source: str, session: int, epoch: int, writer: int, sent_ms: int
    ) -> None:
        lease = member._lease
        if member.sealed_by(session, epoch, writer) and lease is not None:
            lease.renew(self.kernel.now_ms)
            self._send(source, "lease", session, epoch, sent_ms)
        elif (epoch, writer) == (member.state.epoch, member.state.writer):
            # as a connection that ends with the process would tell
            self._send(source, "lost", epoch, session)

    def _on_release(self, member: Member, source: str, epoch: int, writer: int) -> None:
        member.release(epoch, writer)

    def _on_read(self, member: Member, source: str, number: int, epoch: int, lsn: int, block: int) -> None:
        code = member.may_read(epoch, lsn)
        if code == OK:
            self._effects(member)
            applied = member.state.commit
            value = self.store.index.get(block, (0, 0))[1]
            self.cluster.observer.shows(self.replica, epoch, block, applied, value)
            self._send(source, "value", epoch, number, value)
        elif code != FENCED:
            self._send(source, "behind", epoch, number)

    def _on_tail(
        self, member: Member, source: str, session: int, epoch: int, writer: int, from_lsn: int, to_lsn: int
    ) -> None:
        if not member.sealed_by(session, epoch, writer):
            self._send(source, "nack", epoch, member.state.epoch, member.matched, session, NO_SESSION)
            return
        records = []
        for lsn in range(from_lsn, min(to_lsn, from_lsn + TAIL_RECORDS - 1) + 1):
            record = self.store.record_at(lsn)
            if record is None:
                self._send(source, "no_tail", epoch, session)
                return
            records.append(record)
        self._send(source, "tail", epoch, session, tuple(records))

    # -- copies ----------------------------------------------------------------------------------------------

    def _on_copy(
        self,
        member: Member,
        source: str,
        session: int,
        epoch: int,
        writer: int,
        copy_from: int,
        base: Position,
        fresh: bool,
        history: tuple[tuple[int, int], ...],
        floor: Position,
    ) -> None:
        try:
            member.copy(session, epoch, writer, copy_from, base, fresh, history, floor)
        except Stale:
            self._send(source, "no_copy", epoch, session)
            return
        self._holder = source
        self._acked = (0, 0, 0)
        self._copy_base = base.lsn
        self._send(source, "copying", epoch, session)

    def _pull_more(self) -> None:
        pull, member = self._pull, self.member
        if pull is None or member is None:
            return
        self._tries += 1
        if self._tries > PULL_TRIES:  # it goes on asking, and says again and again that nobody answers
            state = member.state
            self._send(
                self._holder, "nack", state.epoch, state.epoch, member.matched, member.session, STALLED
            )
        self.cluster.network.send(
            self.name,
            f"r{pull.source}",
            ("pull", pull.source, pull.number, pull.base.lsn, pull.above, self._cursor),
        )
        cursor = self._cursor

        def again() -> None:
            if self._pull is pull and self._cursor == cursor:
                self._pull_more()

        self.kernel.later(PULL_RETRY_US, again, self.name)

    def _on_pull(self, member: Member, source: str, number: int, base: int, above: int, cursor: int) -> None:
        index = self.store.index
        blocks = [b for b in range(cursor, BLOCKS * CHUNKS) if index.get(b, (0, 0))[0] > above]
        cells = [(block, index[block]) for block in blocks[:PULL_BLOCKS]]
        behind = blocks[PULL_BLOCKS] if len(blocks) > PULL_BLOCKS else -1
        position = member.may_pull(base)
        if position is not None:
            self._send(source, "pulled", number, position, cursor, behind, tuple(cells))

    def _on_pulled(
        self,
        member: Member,
        source: str,
        number: int,
        position: Position,
        cursor: int,
        behind: int,
        cells: tuple[Any, ...],
    ) -> None:
        pull = self._pull
        if pull is None or number != pull.number or source != f"r{pull.source}" or cursor != self._cursor:
            return
        if not member.pulled(number, position):
            return
        self._effects(member)
        self.store.blocks(list(cells))
        self._tries = 0
        if behind >= 0:
            self._cursor = behind
            self._pull_more()
        else:
            self._pull = None
            member.copied(number)

    # -- a turn of the loop ----------------------------------------------------------------------------------

    def turn(self) -> None:
        member = self.member
        if member is None:
            return
        self._grant(member)
        self._effects(member)
        self._answer(member)
        ack = member.take_ack()
        if ack is not None:
            self._ack(member, ack)
        member.validate()

    def _grant(self, member: Member) -> None:
        if self.capacity is None:
            member.grant(1 << 30, False)
            return
        promised = member.room // COST
        free = self.capacity - self.store.used() - promised
        more = max(0, free)
        member.grant(member.room + more * COST, full=promised + more == 0)

    def _effects(self, member: Member) -> None:
        ticket = 0
        for effect in member.take_effects():
            if isinstance(effect, Append):
                self._check_append(member, effect)
                self.store.append(effect.records)
                ticket = effect.ticket if self.cluster.sync else ticket
            elif isinstance(effect, Note):
                self.store.note(effect.state, self._former)
                state = MemberState.unpack(effect.state)
                if state.drops_index(self._former):
                    self.cluster.observer.restarted(self.replica, 0)
                self._former = state
                ticket = effect.ticket
            elif isinstance(effect, Sync):
                ticket = effect.ticket
            elif isinstance(effect, Apply):
                for record in self.store.apply(effect.lsn):
                    self.cluster.observer.applied(self.replica, record)
            else:
                self._pull = effect
                self._cursor = self._cursor if effect.resume else 0
                self._tries = 0
                self._pull_more()
        if ticket:
            self._sync(member, ticket)

    def _hold(self) -> None:
        """Note from outside what is on stable storage here, and would survive anything but rot."""
        journal = self.store.journal
        for item in journal.items[: journal.synced]:
            if item[0] == "records":
                self.held.update(record.position for record in item[1])

    def _check_append(self, member: Member, effect: Append) -> None:
        for record in effect.records:
            if record.lsn in self.store.pending:
                self.cluster.observer.cuts(self.replica, record.lsn, member.state.epoch)
            before = self._before(record.lsn - 1)
            if before is not None:
                self.cluster.observer.wrote(self.replica, record, before)
            self.store._take(record)

    def _before(self, lsn: int) -> int | None:
        """Epoch of the record that the store has at ``lsn``; None when it is applied and gone."""
        record = self.store.record_at(lsn)
        return record.epoch if record is not None else (0 if lsn == 0 else None)

    def _sync(self, member: Member, ticket: int) -> None:
        self.store.syncs += 1

        def synced() -> None:
            self.store.syncs -= 1
            self._hold()
            if self.member is member:
                member.persisted(ticket)
                if member.whole:
                    self.copied_to = max(self.copied_to, self._copy_base)
                self.turn()

        self.store.journal.sync(synced)

    def _answer(self, member: Member) -> None:
        found = member.take_seal_answer(self.kernel.now_ms)
        if found is not None:
            session, answer = found
            self.cluster.observer.promises(self.replica, answer.epoch)
            if not answer.damaged:
                self.cluster.observer.votes(self.replica, answer.vote)
            self._send(self._holder, "sealed", session, answer)
        elif member.seal_wait_until_ms > self.kernel.now_ms:
            wait_us = (member.seal_wait_until_ms - self.kernel.now_ms) * 1000
            self.kernel.later(wait_us, self.turn, self.name)

    def _ack(self, member: Member, ack: tuple[int, int, int, int, int, int]) -> None:
        session, received, durable, applied, limit, flags = ack
        was_session, was_received, was_durable = self._acked
        if session == was_session:
            rises = received >= was_received and durable >= was_durable
            invariant(rises, "an acknowledgement falls", replica=self.replica, ack=ack, was=self._acked)
        self._acked = (session, received, durable)
        state = member.state
        if member.whole:
            self._check_whole(state)
        if member.whole and durable:
            self.cluster.observer.acks(self.replica, self._position(state, durable), state.epoch)
        self._send(self._holder, "ack", state.epoch, received, durable, applied, limit, session, flags)

    def _check_whole(self, state: MemberState) -> None:
        """What counts as whole is what the log up to here adds up to, block by block."""
        observer = self.cluster.observer
        if self.replica not in observer.tainted:
            for block in range(BLOCKS * CHUNKS):
                value = self.store.index.get(block, (0, 0))[1]
                observer.shows(self.replica, state.epoch, block, state.commit, value)

    def _position(self, state: MemberState, lsn: int) -> Position:
        epoch = next((e for e, first in reversed(state.history) if first <= lsn), 0)
        return Position(epoch, lsn)
