"""Planted bugs that only a whole cluster shows, for ``moorage.simulation.run``."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from moorage.client import attachment, front, reads, session
from moorage.client.attachment import WriterAttachment
from moorage.metadata import state as metadata_state
from moorage.metadata.attachments import Attachments
from moorage.metadata.lease import Lease, LeaseTable
from moorage.metadata.state import StateMachine
from moorage.node import copying
from moorage.node.handlers import Handlers
from moorage.node.log import Log
from moorage.quorum.counting import Phase
from moorage.quorum.member import Member
from moorage.quorum.record import Position
from moorage.registry import state as registry_state
from moorage.service.replicated import Replicated
from moorage.simulation.nemesis import draw_strands
from moorage.simulation.run import STORM_S, Failed, run_seed
from moorage.simulation.strand import PLOTS
from moorage.wire import errors
from moorage.wire.log_messages import unpack_append

from .catalogue import first_words, planted

STRANDS_S = 10.0  # three or four of them, to their end


def run(seed: int) -> object:
    """Of four histories two are of strands (all kinds in turn), one of power losses, one is a storm."""
    aim = ("strands", "outages", "strands", "storm")[seed % 4]
    plan, storm_s, kinds = None, STORM_S, [each for each in PLOTS if each not in ("apart", "kept")]
    if aim == "strands":
        first, storm_s = 3 * (seed // 2) % len(kinds), STRANDS_S
        plan = draw_strands(Random(f"{seed} faults"), storm_s, kinds[first:] + kinds[:first])
    with redirect_stderr(StringIO()):
        return run_seed(seed, plan, storm_s, aim, snapshots=False, objects=False)


def verdict(error: BaseException) -> str | None:
    cause = error.cause if isinstance(error, Failed) else error
    if isinstance(cause, errors.MoorageError | AssertionError):
        return first_words(cause)
    return None


@planted("cluster", "14", rare=True)
def partial_write_not_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of a part of a block reads, changes and writes it while others write the same block."""
    real = front._Partial.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.exclusive = False

    monkeypatch.setattr(front._Partial, "__init__", init)


@planted("cluster", "30", rare=True)
def reads_at_lsn_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's reads need not see what it was acknowledged: any member will do."""
    monkeypatch.setattr(session.GroupSession, "read_lsn", lambda self, chunk: 0)


@planted("cluster", "22", rare=True)
def client_needs_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client hands on what it has read without a majority's read leases."""

    def lease_changed(self: session.GroupSession) -> None:
        self.reads_until_ms = 1 << 62

    monkeypatch.setattr(session.GroupSession, "lease_changed", lease_changed)


@planted("cluster", "33", rare=True)
def flush_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush in writeback returns at once."""
    monkeypatch.setattr(session.GroupSession, "flush", lambda self, done: done(self.failed))


@planted("cluster", "24", rare=True)
def serves_one_group_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume is attached as soon as one of its groups serves."""
    real = WriterAttachment._moved

    def moved(self: WriterAttachment) -> None:
        real(self)
        if not self._serving.done() and any(s.writer.phase is Phase.SERVING for s in self._sessions):
            for each in self._sessions:
                each.serve()
            self._serving.set_result(None)

    monkeypatch.setattr(WriterAttachment, "_moved", moved)


@planted("cluster", "going on", rare=True)
def goes_on_after_another_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata lets a holder that was fenced attach again also when another one came to write."""
    monkeypatch.setattr(metadata_state, "check_succession", lambda *_: None)
    real = WriterAttachment._by_whom

    async def by_whom(self: WriterAttachment, error: errors.Fenced) -> errors.Fenced:
        told = await real(self, error)
        return errors.Fenced(told.message)

    monkeypatch.setattr(WriterAttachment, "_by_whom", by_whom)


@planted("cluster", "2", rare=True)
def metadata_raises_no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata gives the epoch of the former holder to the next one."""
    real = StateMachine._raise_epoch

    def raise_epoch(self: StateMachine, volume: dict[str, Any]) -> None:
        if volume["epoch"] == 0 or volume["holder"] is None:
            real(self, volume)

    monkeypatch.setattr(StateMachine, "_raise_epoch", raise_epoch)


@planted("cluster", "sync", rare=True)
def node_acknowledges_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node in sync mode acknowledges what it has received."""
    real = Member.take_ack

    def take(self: Member) -> Any:
        ack = real(self)
        return ack and (ack[0], ack[1], ack[1], *ack[3:])

    monkeypatch.setattr(Member, "take_ack", take)


@planted("cluster", "11", rare=True)
def copy_without_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who copies is not told of discarded chunks, nor of discarded blocks."""
    real = copying._to_runs

    def to_runs(found: list[tuple[int, int, int, int, int]]) -> Any:
        return real([each for each in found if each[2]])

    monkeypatch.setattr(copying, "START", [1, 0])
    monkeypatch.setattr(copying, "_to_runs", to_runs)


@planted("cluster", "Raft 6.4", rare=True)
def metadata_reads_without_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader of metadata answers questions without asking whether it still leads."""

    monkeypatch.setattr(Replicated, "read_barrier", _no_barrier)


@planted("cluster", "13", rare=True)
def unaligned_write_of_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of a part of a block leaves zeroes in the rest of it."""

    def granted(self: front._Partial) -> None:
        self.whole = bytearray(4096)
        self._read(None)

    monkeypatch.setattr(front._Partial, "granted", granted)


@planted("cluster", "22", rare=True)
def node_keeps_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node answers the next holder's SEAL while the read lease that it promised to the former one runs."""
    real = Member.take_seal_answer

    def take(self: Member, now_ms: int) -> Any:
        self._held_until_ms = 0
        return real(self, now_ms)

    monkeypatch.setattr(Member, "take_seal_answer", take)


@planted("cluster", "2", rare=True)
def node_takes_from_the_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node takes the records of a writer that it has promised to refuse."""
    real, real_append = Handlers.append, Member.append

    def handle(self: Handlers, conn: Any, kind: int, flags: int, *rest: Any) -> None:
        member = self._members.get(unpack_append(rest[2])[0])
        if member is None or member.conn is None:
            real(self, conn, kind, flags, *rest)
            return
        conn, member.conn = member.conn, conn
        try:
            real(self, member.conn, kind, flags, *rest)
        finally:
            member.conn = conn

    def append(self: Member, writer: int, epoch: int, session: int, *rest: Any) -> int:
        if epoch < self.state.epoch:
            writer, epoch, session = self.state.writer, self.state.epoch, self.session
        return real_append(self, writer, epoch, session, *rest)

    monkeypatch.setattr(Handlers, "append", handle)
    monkeypatch.setattr(Member, "append", append)


@planted("cluster", "capability", rare=True)
def seal_without_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node asks nobody who seals for metadata's word."""
    monkeypatch.setattr(Handlers, "_check_capability", lambda *args: None)


@planted("cluster", "18", rare=True)
def anybody_orders_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node takes orders from whoever knows the cluster's secret, metadata or not."""
    monkeypatch.setattr(Handlers, "_require_orderer", lambda *args: None)


@planted("cluster", "21", rare=True)
def holder_ends_with_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder whose lease cannot be renewed gives its volume up."""

    async def ask(self: WriterAttachment) -> None:
        try:
            await self._renew(3.0)
        except errors.MoorageError as error:
            self._end(error)

    monkeypatch.setattr(WriterAttachment, "_ask", ask)


@planted("cluster", "21", rare=True)
def leases_end_with_their_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a new leader of metadata all leases are over."""

    def restart(self: LeaseTable, held: Any, now_ms: int) -> None:
        self._leases = {volume: Lease(epoch, now_ms) for volume, epoch in held}

    monkeypatch.setattr(LeaseTable, "restart", restart)


@planted("cluster", "27", rare=True)
def reads_wait_for_a_silent_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was asked for a block is waited for, however long it says nothing."""
    monkeypatch.setattr(reads, "judge", lambda *args: "wait")


@planted("cluster", "start token", rare=True)
def any_copy_of_a_device_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry does not compare the token of a device's last start, nor the count of its heartbeats."""
    monkeypatch.setattr(registry_state, "check_start", lambda *args: None)


@planted("cluster", "23", rare=True)
def reader_recovers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only attachment of a volume that nobody holds reads what it finds."""

    async def recover(*args: Any) -> dict[int, int]:
        return {}

    monkeypatch.setattr(attachment, "_recover", recover)


@planted("cluster", "13 (read-only)", rare=True)
def reader_takes_any_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node shows a reader without an epoch what it has applied, though a recovery may have lost it."""

    def may_show(self: Member, position: Position) -> int | None:
        return position.lsn if self.whole and position.lsn <= self.state.commit else None

    monkeypatch.setattr(Member, "may_show", may_show)


@planted(
    "cluster",
    "lost promise",
    rare=True,
    excuse="the node that asks must have lost a promise, and reach a leader that is cut off from the others,"
    " just after the registry's majority has let it start: each host here runs all three services, so that"
    " whom it reaches hears from it who leads",
)
def epochs_told_without_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader of metadata tells a node which epochs are the newest without asking whether it still leads."""
    real = Attachments.current_epochs

    async def current_epochs(self: Attachments, *args: Any) -> Any:
        with patch.object(Replicated, "read_barrier", _no_barrier):
            return await real(self, *args)

    monkeypatch.setattr(Attachments, "current_epochs", current_epochs)


async def _no_barrier(self: Replicated, timeout: float = 5.0) -> None:
    self._running()


@planted(
    "cluster",
    "16",
    rare=True,
    excuse="a read of what is not in the file any more fails by its checksum, so the client reads elsewhere"
    " and writes the block anew: no history shows it. In the simulation of the store, which asks one device"
    " alone, the same bug is segment_freed_under_a_reader",
)
def file_reused_under_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment's file is the next one to be written again, while a read of it is under way."""

    def reclaim(self: Log) -> None:
        waiting, self._leaving = self._leaving, []
        for each in waiting:
            self.add_free(each)
            self.free.rotate(1)

    monkeypatch.setattr(Log, "reclaim", reclaim)
