"""One replica of a quorum log: what it promises, accepts, knows to be committed, and answers.

Owns: the promise (epoch, writer), the session, what is received, matched, durable, committed; space
grants; whether it may serve reads. Must never: hold data of records (the store does), read a clock, cut a
committed record, answer before what it says is durable.

Invariants (``validate``): commit <= matched-or-recovered <= last; durable <= last; acknowledgements rise
within a session; nothing is accepted under another epoch, writer or session than the promised one.

The shell (one for each device, all its members in one event loop) does per loop turn:

1. messages in: ``seal``, ``append``, ``may_read``, ``may_show``, ``copy``, ``release``; heartbeats renew the
   connection's ``GrantedLease``;
2. ``take_effects()`` to the store, in order (``orders.Effect``);
3. store says what became durable: ``persisted(ticket)`` (then possibly new effects: drain again);
4. ``take_ack()``: an acknowledgement to send, if there is one; ``take_seal_answer(now_ms)``.

A ticket is a number of this member, rising with each effect that asks for durability; ``persisted(t)`` covers
all tickets up to t.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from moorage.quorum import history as epochs
from moorage.quorum.lease import LEASE_MS, GrantedLease
from moorage.quorum.orders import Append, Apply, Effect, Note, Pull, SealAnswer, Sync
from moorage.quorum.record import HEAD_SIZE, LSN_MAX, ZERO_POSITION, Kind, Position, Record
from moorage.quorum.state import CopyState, MemberState
from moorage.wire.errors import Fenced, Invalid, ProtocolError, Stale, invariant, violated

# outcomes of ``append`` (the code of a NACK) and of ``may_read``
OK = 0
FENCED = 1  # the promise is for a higher epoch, or for another writer: the sender's attachment is over
NO_SESSION = 2  # no SEAL of this session is known (the member restarted): seal anew
GAP = 3  # the record before is not here: send again from ``matched + 1``
NO_ROOM = 4  # more bytes than were granted, or more pending records than are kept
BEHIND = 5  # a read: this member cannot show that LSN yet; ask another one
STALLED = 6  # sent by the shell of a member that is being copied: its source fails, another one is needed

# flags of APPEND
FLUSH = 1  # make what was received durable now (writeback)
# flags of an acknowledgement
WHOLE = 1
FULL = 2  # the space limit will not rise until space is freed
FORKED = 4  # its copy contains records that are not in the log: only a fresh copy helps
BAD = 8  # some of its blocks do not match their checksums: ``node.bad_blocks`` says which

PENDING_MAX = 65_536  # records accepted and not applied; a writer's window is far below

_WRITE = int(Kind.WRITE)

Ack = tuple[int, int, int, int, int, int]  # session, received, durable, applied, space limit, flags


class Member:
    """See the module. ``sync``: durability mode of the volume. ``tail_from``: asked when a SEAL is answered;
    the lowest LSN that the store can still hand out (``last + 1`` when none). ``restarted``: False only for
    a replica that this process has created: any other may have promised read leases in a former life."""

    __slots__ = (
        "_answered",
        "_applied",
        "_dirty",
        "_durable",
        "_effects",
        "_held_until_ms",
        "_holder",
        "_lease",
        "_lease_until_ms",
        "_lost",
        "_pull",
        "_quiet_until",
        "_seal",
        "_seal_session",
        "_tail_from",
        "_ticket",
        "_unsynced",
        "_whole_ticket",
        "bad",
        "charged",
        "full",
        "matched",
        "session",
        "space_limit",
        "state",
        "sync",
        "whole",
    )

    def __init__(
        self,
        state: MemberState,
        *,
        sync: bool,
        now_ms: int,
        tail_from: Callable[[], int],
        restarted: bool = True,
        lease_ms: int = LEASE_MS,
    ) -> None:
        state.validate()
        invariant(not state.promise_lost, "its promise may be lost: not to be offered", replica=state.replica)
        self.state = state
        self.sync = sync
        self.session = 0
        self.matched = state.commit  # the log equals that of the writer of this epoch up to here
        self.whole = state.copy is None and not state.damaged
        # Damaged, and no fresh copy was begun since: nothing else helps. One begun in an earlier life may be
        # older than the damage.
        self._lost = bool(state.damaged)
        self.charged = 0  # bytes of records accepted in this session
        self.space_limit = 0
        self.full = False
        self.bad = False  # of some blocks: told with each acknowledgement
        self._tail_from = tail_from
        self._ticket = 0
        self._durable = state.last
        self._unsynced: deque[tuple[int, int]] = deque()  # (ticket, LSN that is durable with it)
        self._effects: list[Effect] = []
        self._applied = state.commit  # last LSN that an Apply was given out for
        self._seal: tuple[int, GrantedLease] | None = None  # ticket that an unanswered SEAL waits for
        self._answered = False
        self._seal_session = 0
        self._dirty = False
        self._quiet_until = 0  # no acknowledgement before this ticket is durable
        self._whole_ticket = 0
        self._pull = 0
        self._lease: GrantedLease | None = None  # of the session answered last
        self._lease_until_ms = 0  # of earlier connections of the same holder
        self._holder: tuple[int, int] | None = None
        self._held_until_ms = now_ms + lease_ms if restarted and state.epoch else 0

    # -- seal and read lease ---------------------------------------------------------------------------

    def seal(self, session: int, epoch: int, writer: int, now_ms: int, lease: GrantedLease) -> bool:
        """Promise to refuse all below (epoch, writer), from this moment on. The answer comes from
        ``take_seal_answer`` once the promise is durable. False: an old or repeated message, no answer.

        ``session`` is chosen by the writer and rises with each SEAL that it sends to this replica. ``lease``
        belongs to the connection. A former, unanswered SEAL never gets an answer: the shell ends it with
        ``Fenced`` or ``Stale``. Raises :class:`Fenced`. Call ``grant`` before the next ``take_seal_answer``.
        """
        state = self.state
        if epoch < state.epoch or (epoch == state.epoch and writer != state.writer):
            whom = "to another writer" if epoch == state.epoch else f"and refuses {epoch}"
            raise Fenced(
                f"replica {state.replica} has promised epoch {state.epoch} {whom}", promised=state.epoch
            )
        if epoch > state.epoch:
            self._promise(epoch, writer)
        elif session <= self.session:
            return False
        else:
            self._sync()
        self._keep_lease()
        self.session = self._seal_session = session
        self.charged = self.space_limit = 0
        self.full = self._answered = self._dirty = False
        self._seal = (self._ticket, lease)
        return True

    def _promise(self, epoch: int, writer: int) -> None:
        self._keep_lease()
        self._held_until_ms = max(self._held_until_ms, self._lease_until_ms)
        self._lease_until_ms = 0
        self.state.epoch, self.state.writer = epoch, writer
        self.matched = self.state.commit
        self.session = 0
        self._note()

    def _keep_lease(self) -> None:
        if self._lease is not None:
            self._lease_until_ms = max(self._lease_until_ms, self._lease.until_ms)
            self._lease = None

    def take_seal_answer(self, now_ms: int) -> tuple[int, SealAnswer] | None:
        """(session, answer) when it may be given now; ask again after ``persisted`` and at
        ``seal_wait_until_ms``."""
        if self._seal is None or now_ms < self._held_until_ms or not self._is_durable(self._seal[0]):
            return None
        self._lease = self._seal[1]
        self._seal = None
        self._answered = True
        self._holder = (self.state.epoch, self.state.writer)
        return self.session, self._seal_answer()

    @property
    def seal_wait_until_ms(self) -> int:
        """Until when a SEAL is not answered because of read leases (0: no SEAL is waiting)."""
        return self._held_until_ms if self._seal is not None else 0

    def _seal_answer(self) -> SealAnswer:
        state = self.state
        return SealAnswer(
            epoch=state.epoch,
            vote=state.vote,
            last=state.position,
            commit=state.commit,
            history=list(state.history),
            newest=state.newest,
            whole=self.whole,
            damaged=bool(state.damaged),
            base=state.copy.base if state.copy is not None else ZERO_POSITION,
            tail_from=self._tail_from(),
            space_limit=self.space_limit,
            full=self.full,
        )

    def release(self, epoch: int, writer: int) -> None:
        """The holder of a read lease lets go: it hands no further read to its application. Ignored from
        anybody else, and for promises of a former life, which are not known any more."""
        if self._holder != (epoch, writer):
            return
        self._holder = None
        self._lease = None
        self._lease_until_ms = 0
        if (epoch, writer) != (self.state.epoch, self.state.writer):
            self._held_until_ms = 0

    def sealed_by(self, session: int, epoch: int, writer: int) -> bool:
        """Whether this SEAL is the one that was answered last (a heartbeat, tail read or copy of another
        is refused)."""
        state = self.state
        promised = (state.epoch, state.writer)
        return self._answered and session == self._seal_session and (epoch, writer) == promised

    # -- records -------------------------------------------------------------------------------------

    def append(
        self,
        writer: int,
        epoch: int,
        session: int,
        prev_epoch: int,
        prev_lsn: int,
        commit: int,
        flags: int,
        records: list[Record],
    ) -> int:
        """Take a message of the writer: records that follow the position (prev_epoch, prev_lsn), or none:
        then the position itself is what may match. ``records`` and their buffers belong to the member (and
        the store) afterwards. Returns OK, or the code of the NACK to send (with ``matched`` and the promised
        epoch). Raises :class:`ProtocolError` for a record of a later epoch than the writer's own: nobody can
        have written it yet, and it would never be charged."""
        state = self.state
        if epoch != state.epoch or writer != state.writer:
            return FENCED if epoch <= state.epoch else NO_SESSION
        if session != self.session or not self._answered or self._lost:
            return NO_SESSION
        if records and records[-1].epoch > epoch:  # epochs do not fall within a message
            raise ProtocolError(f"record {records[-1].lsn} is of epoch {records[-1].epoch}, past {epoch}")
        last = state.last
        if prev_lsn > last or (
            prev_lsn > state.commit and epochs.epoch_at(state.history, prev_lsn) != prev_epoch
        ):
            return GAP
        end = prev_lsn
        if records:
            if records[0].lsn != prev_lsn + 1:
                return GAP
            new = records if prev_lsn == last else self._unknown(records)
            if new and not self._accept(new):
                return NO_ROOM
            end += len(records)
            if not new or not self.sync:
                self._dirty = True
        else:
            self._dirty = True  # a notice is answered: it asks how far this member is
        if end > self.matched:
            self.matched = end
        if commit > state.commit:
            self._advance(commit)
        if state.copy is not None:
            self._maybe_whole()  # the log may have reached the floor
        if flags & FLUSH and not self.sync:
            self._sync()
        return OK

    def _unknown(self, records: list[Record]) -> list[Record]:
        """The records from the first one on that is not in the log. A record that is, is never touched."""
        state = self.state
        for at, record in enumerate(records):
            lsn = record.lsn
            if lsn > state.last or (
                lsn > state.commit and epochs.epoch_at(state.history, lsn) != record.epoch
            ):
                return records[at:] if at else records
        return []

    def _accept(self, records: list[Record]) -> bool:
        state = self.state
        epoch = state.epoch
        cost = 0
        for record in records:
            if record.kind == _WRITE and record.epoch == epoch:
                cost += HEAD_SIZE + len(record.sums) + len(record.data)
        lsn = records[-1].lsn
        if self.charged + cost > self.space_limit or lsn - state.commit > PENDING_MAX:
            return False
        self.charged += cost
        first = records[0].lsn
        if first <= state.last:
            self._cut(first)
        if not state.history or state.history[-1][0] != records[-1].epoch:
            for record in records:
                epochs.extend(state.history, record.epoch, record.lsn)
        state.last = lsn
        effects = self._effects
        if effects and type(effects[-1]) is Append:
            effects[-1].records += records
            self._unsynced[-1] = (self._ticket, lsn)
        else:
            self._ticket += 1
            effects.append(Append(self._ticket, records))
            self._unsynced.append((self._ticket, lsn))
        return True

    def _cut(self, lsn: int) -> None:
        """Forget the tail from ``lsn`` on; the record that replaces it is being accepted."""
        state = self.state
        if lsn <= state.commit or lsn <= self.matched:
            violated("a tail that matched is cut", lsn=lsn, commit=state.commit, matched=self.matched)
        epochs.cut(state.history, lsn)
        state.last = lsn - 1
        self._durable = min(self._durable, lsn - 1)
        self._unsynced = deque((ticket, min(durable, lsn - 1)) for ticket, durable in self._unsynced)

    def _advance(self, commit: int) -> None:
        """Learn a commit LSN: what did not match this writer's log yet is not applied."""
        state = self.state
        if commit > self.matched:
            commit = self.matched
        if commit <= state.commit:
            return
        state.commit = commit
        epochs.trim(state.history, commit)

    # -- durability ----------------------------------------------------------------------------------

    def take_effects(self) -> list[Effect]:
        """What the store has to do, in order."""
        if self.state.commit > self._applied:
            self._apply()
        effects = self._effects
        if effects:
            self._effects = []
        return effects

    def _apply(self) -> None:
        self._applied = self.state.commit
        self._effects.append(Apply(self._applied))

    def _note(self) -> None:
        """Log the state as it is now; what it says is committed is applied before."""
        if self.state.commit > self._applied:
            self._apply()
        self._ticket += 1
        self._unsynced.append((self._ticket, self.state.last))
        self._effects.append(Note(self._ticket, self.state.pack()))

    def _sync(self) -> None:
        """Ask for everything so far to be durable, unless it is, or was asked for already."""
        if self._unsynced and not (self._effects and type(self._effects[-1]) is Sync):
            self._ticket += 1
            self._unsynced.append((self._ticket, self.state.last))
            self._effects.append(Sync(self._ticket))

    def persisted(self, ticket: int) -> None:
        """The store made everything up to this ticket durable."""
        unsynced = self._unsynced
        before = self._durable
        while unsynced and unsynced[0][0] <= ticket:
            self._durable = unsynced.popleft()[1]
        if self._durable != before:
            self._dirty = True
        if self._whole_ticket and self._is_durable(self._whole_ticket):
            self._whole_ticket = 0
            self.whole = self._dirty = True

    def _is_durable(self, ticket: int) -> bool:
        return not self._unsynced or self._unsynced[0][0] > ticket

    @property
    def durable(self) -> int:
        """LSN of the last record of the log that would survive a power loss."""
        return self._durable

    def take_ack(self) -> Ack | None:
        """The acknowledgement to send now, if anything has changed since the last one. It is cumulative: of
        several only the last matters. In ``sync`` mode it waits for durability."""
        if not self._dirty or not self._answered or not self._is_durable(self._quiet_until):
            return None
        self._dirty = False
        matched = self.matched
        durable = self._durable if self._durable < matched else matched
        flags = (WHOLE if self.whole else 0) | (FULL if self.full else 0) | (FORKED if self._forked() else 0)
        flags |= BAD if self.bad else 0
        return self.session, matched, durable, self.state.commit, self.space_limit, flags

    def set_bad(self, bad: bool) -> None:
        """Some of its blocks are bad, or none is any more: its writer hears of it, also of more of them."""
        self._dirty = self._dirty or bad or self.bad
        self.bad = bad

    # -- space ---------------------------------------------------------------------------------------

    def grant(self, room: int, full: bool) -> None:
        """Promise room for ``room`` bytes of records beyond what was accepted (never taken back within a
        session). ``full``: more will not come until space is freed. Records of kind WRITE and of the
        session's own epoch are charged; all others (discards, barriers, recovered records) must fit into
        the reserve."""
        limit = max(self.space_limit, self.charged + room)
        if limit != self.space_limit or full != self.full:
            self.space_limit = limit
            self.full = full
            self._dirty = True

    @property
    def room(self) -> int:
        """Bytes promised and not used: the device must keep them free."""
        return self.space_limit - self.charged

    # -- reads ---------------------------------------------------------------------------------------

    def may_read(self, epoch: int, lsn: int) -> int:
        """Whether a read that must see ``lsn`` can be served now: OK (drain effects first: they may contain
        the Apply that it needs), BEHIND, FENCED or NO_SESSION. The reader vouches that ``lsn`` is
        committed."""
        state = self.state
        if epoch != state.epoch:
            return FENCED if epoch < state.epoch else NO_SESSION
        if not self.whole:
            return BEHIND
        if lsn > state.commit:
            if lsn > self.matched:
                return BEHIND
            self._advance(lsn)
        return OK

    def may_show(self, position: Position) -> int | None:
        """For a reader without an epoch, to whom a prefix of the log is shown: the LSN that it has to see, so
        that its read is not before ``position``; None: this member cannot show that. The reader vouches for
        nothing. Its position is at least of the epoch that metadata told it: who was away when that one's
        writer recovered may have applied what was lost then, and is not asked (docs/quorum-log.md)."""
        lsn = epochs.reach(self.state.history, position)
        return lsn if lsn is not None and self.whole and lsn <= self.state.commit else None

    # -- copy: a member that is too far behind ---------------------------------------------------------

    def copy(
        self,
        session: int,
        epoch: int,
        writer: int,
        source: object,
        base: Position,
        fresh: bool,
        history: Sequence[Sequence[int]] = (),
        floor: Position = ZERO_POSITION,
    ) -> None:
        """Become a copy: forget the log, begin it anew behind ``base``, and pull what is missing from
        ``source``. The order for the base that it has already resumes (perhaps with another source). It
        begins a new session: what was acknowledged before is not confused with what comes. ``history``:
        epochs of the log up to the base. ``floor``: position that its new log must reach before it is whole.
        Raises :class:`Stale` for an old session, a base that is not ahead, or a copy that would not repair
        what is damaged (its writer does not know of it yet), :class:`Invalid` for what no writer of this
        epoch can mean."""
        state = self.state
        if (epoch, writer) != (state.epoch, state.writer) or not self._answered or session <= self.session:
            raise Stale("the session of this copy is over")
        if wrong := _problem(epoch, base, history, floor):
            raise Invalid(f"an order to copy: {wrong}")
        if self._lost and not fresh:
            raise Stale("it is damaged: a fresh copy is needed, seal anew")
        resume = state.copy is not None and not fresh and state.copy.base == base
        if not resume:
            if not fresh and base.lsn <= state.commit:
                raise Stale("the base of a copy must be ahead of the replica", commit=state.commit)
            self._begin_copy(base, fresh, history, floor)
        self.session = session
        self.space_limit -= self.charged
        self.charged = 0
        self._dirty = True
        copy = state.copy
        if copy is not None and not copy.copied:
            self._pull += 1
            self._effects.append(Pull(self._pull, source, base, copy.above, fresh, resume))

    def _begin_copy(
        self, base: Position, fresh: bool, history: Sequence[Sequence[int]], floor: Position
    ) -> None:
        if self.state.commit > self._applied:
            self._apply()
        state = self.state
        above = state.copy.above if state.copy is not None else state.commit
        until = base if fresh or state.newest.lsn < base.lsn else state.newest
        attempt = 1
        if state.copy is not None:
            floor = max(floor, state.copy.floor)
            attempt = state.copy.attempt + 1
        floor = max(floor, state.vote)
        above = 0 if fresh else above
        self._lost = self._lost and not fresh
        state.copy = CopyState(base, above, until, state.vote, floor, attempt=attempt)
        known = [(e, first) for e, first in history]
        if epochs.position_at(known, base.lsn) == base:
            state.history = known
        else:
            state.history = [(base.epoch, base.lsn)]
        state.commit = state.last = self.matched = self._applied = base.lsn
        self.whole = False
        self._whole_ticket = 0
        self._durable = 0
        self._unsynced = deque((ticket, 0) for ticket, _ in self._unsynced)
        self._note()
        self._quiet_until = self._ticket

    def pulled(self, number: int, position: Position) -> bool:
        """A source that had applied ``position`` sent blocks: note it before they are logged. False: this
        pull is over, or the source does not have the base yet; the blocks must be dropped."""
        copy = self._pulling(number)
        if copy is None or position.lsn < copy.base.lsn:
            return False
        if position.lsn > copy.until.lsn:
            copy.until = position
            self._note()
        return True

    def copied(self, number: int) -> None:
        """Everything above ``above`` was pulled and handed to the store."""
        copy = self._pulling(number)
        if copy is None:
            return
        copy.copied = True
        self._note()
        self._maybe_whole()

    def _pulling(self, number: int) -> CopyState | None:
        """The copy that this pull is for, unless it is over, or cannot help any more."""
        copy = self.state.copy
        return None if number != self._pull or self._lost or copy is None or copy.copied else copy

    def _forked(self) -> bool:
        """Whether the index may contain a record that is not in the log: then only a fresh copy helps."""
        copy = self.state.copy
        if copy is None or copy.until.lsn > self.state.commit or copy.until.lsn <= copy.base.lsn:
            return False
        return epochs.epoch_at(self.state.history, copy.until.lsn) not in (copy.until.epoch, epochs.UNKNOWN)

    def _maybe_whole(self) -> None:
        state = self.state
        copy = state.copy
        if copy is None or not copy.copied or state.commit < copy.until.lsn:
            return
        if state.position < copy.floor:
            return
        if self._forked():
            self._dirty = True
            return
        state.copy = None
        state.damaged = ""
        self._note()
        self._whole_ticket = self._ticket

    def may_pull(self, base: int) -> Position | None:
        """The position that a copy taken from here now would show, or None: not whole, or behind ``base``.
        Ask *after* the blocks were read."""
        state = self.state
        if not self.whole or state.commit < base:
            return None
        return epochs.position_at(state.history, state.commit)

    def damage(self, what: str) -> None:
        """Acknowledged data was found lost: serve nothing and count nowhere until copied anew. A copy under
        way is no such copy, fresh or not: what was found lost may be of what it has brought already."""
        if self._lost:
            return
        self._lost = True
        self.state.damaged = what
        self.whole = False
        self._whole_ticket = 0
        self._note()

    # -- checks --------------------------------------------------------------------------------------

    def validate(self) -> None:
        state = self.state
        state.validate()
        ids = {"replica": state.replica, "commit": state.commit, "matched": self.matched, "last": state.last}
        invariant(state.commit <= self.matched <= state.last, "commit <= matched <= last", **ids)
        invariant(self._durable <= state.last, "durable past the last record", durable=self._durable, **ids)
        tickets = [ticket for ticket, _ in self._unsynced]
        invariant(tickets == sorted(set(tickets)), "tickets out of order", **ids)
        invariant(not (self.whole and state.copy is not None), "whole while copying", **ids)


def _problem(epoch: int, base: Position, history: Sequence[Sequence[int]], floor: Position) -> str:
    """What makes these no order to copy of a writer of ``epoch``, or the empty string. Asked before anything
    of it is taken over: it could neither be noted nor be undone."""
    if not (0 < base.epoch <= epoch and 0 < base.lsn <= LSN_MAX):
        return f"its base {tuple(base)} is no position of a record up to epoch {epoch}"
    if not (0 <= floor.epoch <= epoch and 0 <= floor.lsn <= LSN_MAX):
        return f"its floor {tuple(floor)} cannot be reached under epoch {epoch}"
    before = (0, 0)
    for known, first in history:
        if not (before[0] < known <= epoch and before[1] < first <= base.lsn):
            return f"its history does not rise up to its base at {(known, first)}"
        before = (known, first)
    return ""
