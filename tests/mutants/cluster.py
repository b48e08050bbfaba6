"""Planted bugs that only a whole cluster shows, for ``moorage.simulation.run``."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from random import Random
from typing import Any

import pytest

from moorage.client import front, session
from moorage.client.attachment import WriterAttachment
from moorage.metadata.state import StateMachine
from moorage.node import copying
from moorage.quorum.counting import Phase
from moorage.quorum.member import Member
from moorage.service.replicated import Replicated
from moorage.simulation.nemesis import draw_outages, draw_storm, draw_strands
from moorage.simulation.run import STORM_S, Failed, run_seed
from moorage.wire import errors

from .catalogue import first_words, planted


def run(seed: int) -> object:
    """Of three histories one is of zombies alone, one of power losses, one has the faults that it draws."""
    draw = (draw_strands, draw_outages, draw_storm)[seed % 3]
    with redirect_stderr(StringIO()):
        return run_seed(seed, draw(Random(f"{seed} faults"), STORM_S))


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


@planted(
    "cluster",
    "22",
    rare=True,
    excuse="caught in some histories of zombies only: the next holder must serve, write and be answered "
    "while the zombie still reads the same block",
)
def client_needs_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client hands on what it has read without a majority's read leases."""

    def lease_changed(self: session.GroupSession) -> None:
        self.reads_until_ms = 1 << 62

    monkeypatch.setattr(session.GroupSession, "lease_changed", lease_changed)


@planted(
    "cluster",
    "33",
    rare=True,
    excuse="a host's own group commit is done within milliseconds, and a client that lives sends all "
    "again: all hosts and the client must lose power between a flush and the next sync, and the "
    "block be read before it is written",
)
def flush_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush in writeback returns at once."""
    monkeypatch.setattr(session.GroupSession, "flush", lambda self, done: done(self.failed))


@planted(
    "cluster",
    "24",
    rare=True,
    excuse="a group that is not sealed has no read leases and gives no LSN, so each block stays"
    " linearizable; that two writers live on different groups is no difference that a block can show",
)
def serves_one_group_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume is attached as soon as one of its groups serves."""
    real = WriterAttachment._moved

    def moved(self: WriterAttachment) -> None:
        real(self)
        if not self._serving.done() and any(s.writer.phase is Phase.SERVING for s in self._sessions):
            for each in self._sessions:
                each.serving = True
                each.kick()
            self._serving.set_result(None)

    monkeypatch.setattr(WriterAttachment, "_moved", moved)


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


@planted(
    "cluster",
    "Raft 6.4",
    rare=True,
    excuse="the host that is cut off must lead metadata and hold no vote yet: one strand in three cuts the "
    "leader, and it stops leading within an election timeout",
)
def metadata_reads_without_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader of metadata answers questions without asking whether it still leads."""

    async def read_barrier(self: Replicated, timeout: float = 5.0) -> None:
        self._running()

    monkeypatch.setattr(Replicated, "read_barrier", read_barrier)


@planted("cluster", "13", rare=True)
def unaligned_write_of_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of a part of a block leaves zeroes in the rest of it."""

    def granted(self: front._Partial) -> None:
        self.whole = bytearray(4096)
        self._read(None)

    monkeypatch.setattr(front._Partial, "granted", granted)
