"""What a replica must remember besides its records: the promise, the epoch history, the commit LSN, whether
it is whole, whether it is damaged.

``MemberState`` is a plain value. The store recovers it, hands it to ``Member``, and saves it with each
checkpoint. Two things change it durably, and the store logs both, in the order in which it gets them:

* records (``Append``): on replay, call ``replay_record`` for each, in the order of the log;
* notes (``Note``): the whole packed state; on replay it *replaces* the state (``unpack``). If it begins a
  copy, pending records up to ``copy.above`` are applied first (live, they were), unless ``drops_index`` says
  that the index is dropped; then pending records outside of ``base < lsn <= last`` are forgotten, and the
  rest up to ``commit`` is applied.

Invariants (``validate``): commit <= last; the history covers every LSN from the commit LSN to the last;
a copy's base is at or below the commit LSN.
"""

from __future__ import annotations

from typing import Any

import msgpack

from moorage.quorum import history as epochs
from moorage.quorum.history import History
from moorage.quorum.record import ZERO_POSITION, Position, Record
from moorage.wire.errors import Corrupt, InvariantViolation, VersionMismatch, invariant

VERSION = 1


class CopyState:
    """Why and until when a replica is not whole: its index is an exact prefix up to ``above`` mixed with
    blocks copied from other replicas, none newer than ``until``.

    ``base``: its log begins behind this committed position, which every source has applied.
    ``old``: the position that it had before, which is what it answers to a SEAL.
    ``floor``: what it may have acknowledged: when whole it answers with its new log, which must not be lower.
    ``copied``: everything above ``above`` was copied; once ``until`` is applied too, and the log has reached
    the floor, it is whole again.
    ``attempt``: how often it was begun without having become whole; a copy that begins anew from the same
    base differs from its former one by this alone.
    """

    __slots__ = ("above", "attempt", "base", "copied", "floor", "old", "until")

    def __init__(
        self,
        base: Position,
        above: int,
        until: Position,
        old: Position,
        floor: Position = ZERO_POSITION,
        copied: bool = False,
        attempt: int = 1,
    ) -> None:
        self.base = base
        self.above = above
        self.until = until
        self.old = old
        self.floor = floor
        self.copied = copied
        self.attempt = attempt

    def __repr__(self) -> str:
        ends = f"base={tuple(self.base)} until={tuple(self.until)} old={tuple(self.old)}"
        return f"CopyState({ends} above={self.above} copied={self.copied})"


class MemberState:
    """See the module. ``last`` is the LSN of the last record accepted, ``commit`` the greatest LSN known to
    be committed *and* matched, which is also what is (to be) applied. ``writer`` with ``epoch``: the promise.
    ``damaged``: what was lost, for people; empty when nothing was. ``promise_lost``: a later promise than
    this one may have been given; the store must not offer the replica, so no ``Member`` ever has it, before
    ``promise_again``."""

    __slots__ = ("commit", "copy", "damaged", "epoch", "history", "last", "promise_lost", "replica", "writer")

    def __init__(
        self,
        replica: int,
        *,
        epoch: int = 0,
        writer: int = 0,
        history: History | None = None,
        commit: int = 0,
        last: int = 0,
        copy: CopyState | None = None,
        damaged: str = "",
        promise_lost: bool = False,
    ) -> None:
        self.replica = replica
        self.epoch = epoch
        self.writer = writer
        self.history: History = history if history is not None else []
        self.commit = commit
        self.last = last
        self.copy = copy
        self.damaged = damaged
        self.promise_lost = promise_lost

    @property
    def position(self) -> Position:
        """Position of the last record of the log as it is now."""
        return epochs.position_at(self.history, self.last) if self.last else ZERO_POSITION

    @property
    def vote(self) -> Position:
        """The position that a SEAL is answered with: while copying, the one from before."""
        return self.copy.old if self.copy is not None else self.position

    def drops_index(self, former: MemberState) -> bool:
        """Whether the note with this state begins a copy from nothing: the index of before is dropped
        with it, since it may contain lost records."""
        if self.copy is None or self.copy.above:
            return False
        now, then = self.copy, former.copy
        return then is None or (then.base, then.attempt) != (now.base, now.attempt)

    @property
    def base(self) -> int:
        """LSN behind which the log begins: 0, but for a copy."""
        return self.copy.base.lsn if self.copy is not None else 0

    @property
    def newest(self) -> Position:
        """The greatest position that may have left a trace in the index."""
        applied = epochs.position_at(self.history, self.commit) if self.commit else ZERO_POSITION
        return applied if self.copy is None else max(applied, self.copy.until, key=lambda p: p.lsn)

    def replay_record(self, record: Record) -> None:
        """A record met in the log, in log order. One at or below ``last`` replaces that and all behind it
        (the only way in which a tail is cut); at or below the commit LSN it is an old copy: ignored."""
        if record.lsn <= self.commit:
            return
        if record.lsn <= self.last:
            epochs.cut(self.history, record.lsn)
            self.last = record.lsn - 1
        if record.lsn != self.last + 1:
            raise Corrupt(f"replica {self.replica}: record {record!r} does not follow {self.last}")
        epochs.extend(self.history, record.epoch, record.lsn)
        self.last = record.lsn

    def promise_again(self, epoch: int, writer: int) -> None:
        """Give a promise that is not lower than the lost one: ``epoch`` is the newest that metadata has given
        out, asked for after this process began. Its records stay lost. Raises :class:`Corrupt` if metadata
        itself has forgotten an epoch."""
        invariant(self.promise_lost and bool(self.damaged), "no promise was lost", replica=self.replica)
        known = max([self.epoch, *(each for each, _ in self.history)])
        if epoch < known or (epoch == self.epoch and writer != self.writer):
            raise Corrupt(
                f"replica {self.replica} knows epoch {known}, metadata says {epoch}: metadata lost what it"
                " had committed"
            )
        self.epoch, self.writer, self.promise_lost = epoch, writer, False

    def pack(self) -> bytes:
        copy = self.copy
        packed_copy = None
        if copy is not None:
            ends = [list(copy.base), list(copy.until), list(copy.old), list(copy.floor)]
            packed_copy = [ends, copy.above, copy.copied, copy.attempt]
        history = [list(entry) for entry in self.history]
        fields = [VERSION, self.replica, self.epoch, self.writer, history, self.commit, self.last]
        packed: bytes = msgpack.packb([*fields, packed_copy, self.damaged, self.promise_lost])
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> MemberState:
        """Raises :class:`Corrupt` for anything that ``pack`` did not make; VersionMismatch, which is one, for
        another version: its field stays the first."""
        try:
            version, *fields = msgpack.unpackb(packed)
            if version != VERSION:
                raise VersionMismatch(
                    f"the state of a replica in version {version!r}, this version reads {VERSION}:"
                    " use the one that wrote it"
                )
            replica, epoch, writer, history, commit, last, copy, damaged, promise_lost = fields
            state = cls(
                replica,
                epoch=epoch,
                writer=writer,
                history=[(e, first) for e, first in history],
                commit=commit,
                last=last,
                copy=_unpack_copy(copy),
                damaged=damaged,
                promise_lost=promise_lost,
            )
            _check_types(state)
            state.validate()
        except (ValueError, TypeError, msgpack.UnpackException, InvariantViolation) as error:
            raise Corrupt(f"state of a replica cannot be read: {error}") from error
        return state

    def clone(self) -> MemberState:
        return MemberState.unpack(self.pack())

    def validate(self) -> None:
        ids = {"replica": self.replica, "commit": self.commit, "last": self.last}
        invariant(0 <= self.commit <= self.last, "commit LSN past the last record", **ids)
        firsts = [first for _, first in self.history]
        invariant(firsts == sorted(set(firsts)), "epoch history out of order", **ids)
        if self.commit:
            known = epochs.epoch_at(self.history, self.commit)
            invariant(known != epochs.UNKNOWN, "epoch history does not reach the commit LSN", **ids)
        if self.copy is not None:
            invariant(self.copy.base.lsn <= self.commit, "the base of a copy is not committed", **ids)


def _check_types(state: MemberState) -> None:
    copy = state.copy
    numbers = [state.replica, state.epoch, state.writer, state.commit, state.last]
    numbers += [each for entry in state.history for each in entry]
    flags: list[Any] = [state.promise_lost]
    if copy is not None:
        numbers += [*copy.base, *copy.until, *copy.old, *copy.floor, copy.above, copy.attempt]
        flags.append(copy.copied)
    if not all(type(each) is int and each >= 0 for each in numbers):
        raise ValueError("a number expected")
    if not all(type(each) is bool for each in flags) or type(state.damaged) is not str:
        raise ValueError("a field of another type")


def _unpack_copy(packed: list[Any] | None) -> CopyState | None:
    if packed is None:
        return None
    (base, until, old, floor), above, copied, attempt = packed
    ends = Position(*base), above, Position(*until), Position(*old), Position(*floor)
    return CopyState(*ends, copied, attempt)
