"""One replica at work: the shell around a :class:`moorage.quorum.member.Member`, on the store.

Owns the order "effects to the store, then answers": what a member says is durable is. Must never decide
anything about the log itself. A read waits here until the store has applied what it must see (the core may
know of a commit before this device has synced the record).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from moorage.node.replica import Replica
from moorage.node.space import GRANT_FIRST, GRANT_MAX, GRANT_MIN
from moorage.node.store import Store
from moorage.quorum.member import FENCED, NO_SESSION, STALLED, Member
from moorage.quorum.orders import Append, Apply, Note, Pull, SealAnswer, Sync
from moorage.quorum.record import Record
from moorage.wire.connection import Connection
from moorage.wire.errors import Fenced, MoorageError, NoReplica, Stale
from moorage.wire.frame import ACK, NACK, ONEWAY
from moorage.wire.log_messages import pack_ack, pack_nack

# Called once: with None when what it waits for is in the index, or with the error that ends the wait.
Parked = Callable[[MoorageError | None], None]


def boot_ms() -> int:
    """Milliseconds of a clock that counts suspended time: a promise must not outlive a suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class MemberShell:
    """All replicas of a device have one; ``on_pull`` is told when a copy is to begin."""

    def __init__(self, store: Store, replica: Replica, *, created: bool) -> None:
        self.store = store
        self.replica = replica
        self.sync = replica.info.durability != "writeback"
        self.core = Member(
            replica.state.clone(),
            sync=self.sync,
            now_ms=boot_ms(),
            tail_from=lambda: replica.tail_from,
            restarted=not created,
        )
        replica.on_persisted = self.persisted
        self.conn: Connection | None = None  # of the session that is served
        self.on_pull: Callable[[MemberShell, Pull], None] = _no_pull
        self._loop = asyncio.get_running_loop()
        self._parked: list[tuple[int, Parked]] = []
        self._sealing: asyncio.Future[SealAnswer] | None = None
        self._sealing_conn: Connection | None = None
        self._seal_timer: asyncio.TimerHandle | None = None
        self._ack_scheduled = False
        self._grant_target = GRANT_FIRST
        self._accounted = 0  # bytes of the store's ``granted`` that are this session's
        self.gone = False

    # -- effects --------------------------------------------------------------------------------------

    def drain(self, records: list[Record] | None = None, heads: bytes | None = None) -> None:
        """Give the core's effects to the store. ``heads`` are those of ``records``, as they were sent."""
        effects = self.core.take_effects()
        if not effects or self.store.failed is not None:
            return
        store, replica = self.store, self.replica
        for effect in effects:
            kind = type(effect)
            if kind is Append:
                raw = heads if effect.records is records else None  # type: ignore[union-attr]
                store.append(replica, effect.records, effect.ticket, raw)  # type: ignore[union-attr]
            elif kind is Apply:
                store.apply(replica, effect.lsn)  # type: ignore[union-attr]
            elif kind is Note:
                store.note(replica, effect.state, effect.ticket)  # type: ignore[union-attr]
            elif kind is Sync:
                store.sync(replica, effect.ticket)  # type: ignore[union-attr]
            elif isinstance(effect, Pull):
                self.on_pull(self, effect)
        if self._parked:
            self._serve_parked()

    def persisted(self, ticket: int) -> None:
        """From the store, once per group commit that held something of this replica."""
        if self.gone:
            return
        self.core.persisted(ticket)
        self.drain()
        self.send_ack()
        if self._sealing is not None:
            self._try_seal_answer()
        if self._parked:
            self._serve_parked()

    # -- acknowledgements ---------------------------------------------------------------------------

    def accepted(self) -> None:
        """Records were accepted: in writeback mode say so, once per loop turn."""
        if self.core.room < self._low_water():
            self.grant()
        else:
            self._account(self.core.room)
        if not self._ack_scheduled:
            self._ack_scheduled = True
            self._loop.call_soon(self._ack_soon)

    def _ack_soon(self) -> None:
        self._ack_scheduled = False
        self.send_ack()

    def send_ack(self) -> None:
        conn = self.conn
        if conn is None:
            return
        ack = self.core.take_ack()
        if ack is None:
            return
        session, received, durable, applied, limit, flags = ack
        state = self.core.state
        conn.send(
            ONEWAY,
            ACK,
            0,
            pack_ack(state.replica, state.epoch, received, durable, applied, limit, session, flags),
        )

    def nack(self, conn: Connection, epoch: int, session: int, code: int) -> None:
        state = self.core.state
        body = pack_nack(state.replica, epoch, state.epoch, self.core.matched, session, code)
        conn.send(ONEWAY, NACK, 0, body)

    # -- space ----------------------------------------------------------------------------------------

    def grant(self) -> None:
        """Promise room for more records. An eager writer is promised more each time, up to ``GRANT_MAX``:
        idle ones must not sit on what others need."""
        core = self.core
        if core.charged and core.room < self._low_water():
            self._grant_target = min(2 * self._grant_target, GRANT_MAX)
        held = core.room
        wanted = min(self._grant_target, held + self.store.room())
        # Too little for any one record is promised all the same: a member that lacks some when all are full
        # would never get them.
        core.grant(max(held, wanted), wanted < GRANT_MIN)
        self._account(core.room)

    def _low_water(self) -> int:
        """Above this no more is promised: so it has to be enough for any one record."""
        return self._grant_target * 3 // 4

    def _account(self, room: int) -> None:
        self.store.granted += room - self._accounted
        self._accounted = room

    def regrant(self) -> None:
        """From time to time: space may have come back."""
        core = self.core
        if self.conn is not None and (core.full or core.room < self._low_water()):
            self.grant()
            self.send_ack()

    # -- seal -------------------------------------------------------------------------------------------

    async def seal(self, conn: Connection, session: int, epoch: int, writer: int, lease: Any) -> SealAnswer:
        """Promise, and answer once the promise is durable and former read leases have run out."""
        core, former = self.core, self.conn
        was_epoch, was_session = core.state.epoch, core.session
        if not core.seal(session, epoch, writer, boot_ms(), lease):
            raise Stale(f"replica {self.replica.info.replica}: a later SEAL of this writer has come before")
        self._end_seal(Stale("sealed anew meanwhile") if epoch == was_epoch else _fenced(epoch))
        self._account(0)
        if former is not None and (former is not conn or was_epoch != epoch):
            self.nack_former(former, was_epoch, was_session)
        self.conn = None
        self._grant_target = GRANT_FIRST
        self.grant()
        waiting: asyncio.Future[SealAnswer] = self._loop.create_future()
        self._sealing = waiting
        self._sealing_conn = conn
        self.drain()
        self._try_seal_answer()
        try:
            return await waiting
        finally:
            if self._sealing is waiting:
                self._seal_abandoned()

    def nack_former(self, conn: Connection, epoch: int, session: int) -> None:
        """Before another heartbeat is answered there: it is what ends the read lease at its holder."""
        if not conn.closed:
            self.nack(conn, epoch, session, FENCED)

    def _try_seal_answer(self) -> None:
        waiting = self._sealing
        if waiting is None:
            return
        if waiting.done():
            self._seal_abandoned()
            return
        now_ms = boot_ms()
        found = self.core.take_seal_answer(now_ms)
        if found is not None:
            self._sealing, self.conn = None, self._sealing_conn
            waiting.set_result(found[1])
            self.send_ack()
        elif self.core.seal_wait_until_ms > now_ms and self._seal_timer is None:
            delay = (self.core.seal_wait_until_ms - now_ms) / 1000 + 0.001
            self._seal_timer = self._loop.call_later(delay, self._seal_timed)

    def _seal_abandoned(self) -> None:
        """The caller has gone: what it would have been promised is free for others."""
        self._sealing = None
        self._account(0)

    def _seal_timed(self) -> None:
        self._seal_timer = None
        self._try_seal_answer()

    def release(self, epoch: int, writer: int) -> None:
        self.core.release(epoch, writer)
        if (epoch, writer) == (self.core.state.epoch, self.core.state.writer):
            self.conn = None  # a detach: what it was promised is free for others
            self._account(0)
        self._try_seal_answer()

    def _end_seal(self, error: MoorageError) -> None:
        waiting, self._sealing = self._sealing, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)

    # -- reads --------------------------------------------------------------------------------------------

    def park(self, lsn: int, action: Parked) -> None:
        """Run ``action`` once ``lsn`` is in the index; it must look again whether it may be served."""
        self._parked.append((lsn, action))

    def _serve_parked(self) -> None:
        applied = self.replica.state.commit
        ready = [action for lsn, action in self._parked if lsn <= applied]
        if ready:
            self._parked = [each for each in self._parked if each[0] > applied]
            for action in ready:
                action(None)

    def _end_parked(self, error: MoorageError) -> None:
        parked, self._parked = self._parked, []
        for _, action in parked:
            action(error)

    # -- the end ----------------------------------------------------------------------------------------

    def damage(self, what: str) -> None:
        """Its writer is told, or a volume that is idle would stay with one replica less."""
        self.core.damage(what)
        self.drain()
        if self.conn is not None:
            self.nack(self.conn, self.core.state.epoch, self.core.session, NO_SESSION)

    def bad_blocks(self, bad: bool) -> None:
        """Scrub has found some, or the last one is mended."""
        self.core.set_bad(bad)
        self.send_ack()

    def stalled(self) -> None:
        """The source of the copy fails: the writer has to choose another one."""
        if self.conn is not None:
            self.nack(self.conn, self.core.state.epoch, self.core.session, STALLED)

    def connection_lost(self, conn: Connection) -> None:
        if self.conn is conn:
            self.conn = None
            self._account(0)  # nothing more is taken of this session: its writer seals anew

    def fail(self, error: MoorageError) -> None:
        self._end_seal(error)
        self._end_parked(error)

    def dropped(self) -> None:
        """The replica is gone from this device."""
        self.gone = True
        self._account(0)
        error = NoReplica(f"replica {self.replica.info.replica} was dropped")
        self._end_seal(error)
        self._end_parked(error)
        if self._seal_timer is not None:
            self._seal_timer.cancel()


def _fenced(epoch: int) -> Fenced:
    return Fenced(f"epoch {epoch} has been promised meanwhile", promised=epoch)


def _no_pull(member: MemberShell, pull: Pull) -> None:
    raise NotImplementedError
