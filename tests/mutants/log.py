"""Planted bugs of the quorum log, for the simulation of its cores (``quorum/simulation/quorum_*.py``)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moorage.quorum import choice
from moorage.quorum import history as epochs
from moorage.quorum.counting import Counting, Phase
from moorage.quorum.majority import Configuration
from moorage.quorum.member import Member
from moorage.quorum.orders import ConfigurationReady, SealAnswer
from moorage.quorum.peer import Peer, Status
from moorage.quorum.record import Position, Record
from moorage.quorum.recovery import Recovery
from moorage.quorum.simulation.quorum_client import SimClient
from moorage.quorum.simulation.quorum_cluster import Grant, Metadata, run_seed
from moorage.quorum.simulation.quorum_node import SimNode
from moorage.quorum.simulation.quorum_store import SimStore
from moorage.quorum.state import MemberState
from moorage.quorum.writer import Writer

from .catalogue import planted, verdict_of_cores

verdict = verdict_of_cores


def run(seed: int) -> object:
    return run_seed(seed)


@planted("log", "1", rare=True)
def rechoose_same_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen member is lost, and another log is chosen under the same epoch."""
    real = Recovery._lose

    def lose(self: Recovery, peer: Peer, status: Status, reason: str) -> None:
        real(self, peer, status, reason)
        if self.phase is Phase.BARRIER and self._chosen == peer.replica:
            self.phase = Phase.SEALING
            self.commit = self.durable = self.barrier = 0
            for other in self.peers.values():
                if other.answered:
                    other.status = Status.SEALED
                other.value = other.received = other.durable = 0
            self._maybe_choose()

    def observe(self: SimClient, writer: Writer, real: Any = SimClient._observe) -> None:
        self._committed = min(self._committed, writer.commit)
        real(self, writer)

    monkeypatch.setattr(Recovery, "_lose", lose)
    monkeypatch.setattr(SimClient, "_observe", observe)


@planted("log", "19")
def acks_of_any_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a member acknowledged to a former attachment of the process counts for the present one."""
    real = Recovery.ack

    def ack(self: Recovery, replica: int, epoch: int, *numbers: int) -> None:
        *counts, _, flags = numbers
        peer = self.peers.get(replica)
        if peer is not None:
            real(self, replica, self.epoch, *counts, peer.session, flags)

    monkeypatch.setattr(Recovery, "ack", ack)


@planted("log", "19")
def acks_of_any_epoch_in_the_same_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, where sessions are told apart: each attachment counts them from one."""
    real = Recovery.ack

    def ack(self: Recovery, replica: int, epoch: int, *numbers: int) -> None:
        real(self, replica, self.epoch, *numbers)

    monkeypatch.setattr(Recovery, "ack", ack)


@planted("log", "2", rare=True)
def reuse_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that starts again goes on with the epoch and id of its first life."""
    real = Metadata.attach

    def attach(self: Metadata, name: str, repairer: bool, kept: dict[str, Grant] = {}) -> Grant:  # noqa: B006
        if self.epoch == 0:
            kept.clear()
        if self.holder != name or self.wish is not None or name not in kept:
            kept[name] = real(self, name, repairer)
        return replace(kept[name], members=self.members)

    monkeypatch.setattr(Metadata, "attach", attach)


@planted("log", "2")
def other_writer_same_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with the same capability, told apart by nothing."""
    real = Metadata.attach

    def attach(self: Metadata, name: str, repairer: bool) -> Grant:
        grant = real(self, name, repairer)
        if self.epoch > 1 and self.epoch % 2 == 0:
            self.epoch -= 1
        return replace(grant, epoch=self.epoch, writer=1)

    monkeypatch.setattr(Metadata, "attach", attach)


@planted("log", "3", rare=True)
def apply_unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A divergent tail is applied because its LSNs are committed."""

    def advance(self: Member, commit: int) -> None:
        state = self.state
        commit = min(commit, state.last)
        if commit > state.commit:
            state.commit = commit
            self.matched = max(self.matched, commit)

    def may_read(self: Member, epoch: int, lsn: int, real: Any = Member.may_read) -> int:
        if epoch == self.state.epoch and lsn <= self.state.last:
            self.matched = max(self.matched, lsn)
        return int(real(self, epoch, lsn))

    monkeypatch.setattr(Member, "_advance", advance)
    monkeypatch.setattr(Member, "may_read", may_read)


@planted("log", "4")
def cut_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seal cuts the tail to what is known to be committed."""
    real = Member._promise

    def promise(self: Member, epoch: int, writer: int) -> None:
        state = self.state
        state.last = state.commit
        epochs.cut(state.history, state.commit + 1)
        self._durable = min(self._durable, state.commit)
        real(self, epoch, writer)

    monkeypatch.setattr(Member, "_promise", promise)


@planted("log", "4")
def resend_cuts_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record sent again removes itself and what is behind it."""

    def unknown(self: Member, records: list[Record]) -> list[Record]:
        return [record for record in records if record.lsn > self.state.commit]

    def cut(self: Member, lsn: int) -> None:
        epochs.cut(self.state.history, lsn)
        self.state.last = lsn - 1
        self.matched = min(self.matched, lsn - 1)
        self._durable = min(self._durable, lsn - 1)

    monkeypatch.setattr(Member, "_unknown", unknown)
    monkeypatch.setattr(Member, "_cut", cut)


@planted("log", "5")
def promise_as_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promised epoch is taken for the epoch of the last record."""
    real = Member._seal_answer
    earlier: dict[int, int] = {}

    def seal_answer(self: Member) -> SealAnswer:
        its = real(self)
        # what an earlier promise left behind, as the position of a log that was sealed and never written to
        return replace(its, vote=Position(max(its.vote.epoch, earlier.get(id(self), 0)), its.vote.lsn))

    def remember(self: Member, epoch: int, writer: int, real: Any = Member._promise) -> None:
        earlier[id(self)] = self.state.epoch
        real(self, epoch, writer)

    monkeypatch.setattr(Member, "_promise", remember)
    monkeypatch.setattr(Member, "_seal_answer", seal_answer)


@planted("log", "6")
def checkpoint_drops_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that are not applied yet are missing from a checkpoint."""

    def checkpoint(self: SimStore, state: MemberState) -> None:
        kept = state.clone()
        kept.last = kept.commit
        epochs.cut(kept.history, kept.commit + 1)
        self.journal.replace([("checkpoint", kept.pack(), dict(self.index), [])])

    monkeypatch.setattr(SimStore, "checkpoint", checkpoint)


@planted("log", "7")
def config_before_joint_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata is told before anything was committed in both configurations."""

    def maybe_joint(self: Recovery) -> None:
        if self._wish is not None and self.phase is Phase.SERVING and not self._joint_told:
            self._joint_told = True
            self._joint_from = self.window.last + 1
            self._orders.append(ConfigurationReady(self._wish))

    def committed(self: Recovery, members: Configuration) -> None:
        if self._joint_from and members == self._wish:
            self._settle(members)

    monkeypatch.setattr(Recovery, "_maybe_joint", maybe_joint)
    monkeypatch.setattr(Recovery, "change_committed", committed)


@planted("log", "7")
def joint_counts_new_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """While metadata may still hand out the old configuration, only the new one counts."""
    real = Counting._set_configurations

    def set_configurations(self: Counting, configurations: list[Configuration]) -> None:
        real(self, configurations)
        if len(configurations) == 2:
            self._voters = self._voters[1:]

    monkeypatch.setattr(Counting, "_set_configurations", set_configurations)


@planted("log", "25")
def a_learner_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new replica counts before it has caught up."""
    monkeypatch.setattr(Recovery, "_caught_up", lambda self, peer: True)
    monkeypatch.setattr(Recovery, "_revalue", lambda self, peer: setattr(peer, "value", self.window.last))


@planted("log", "8")
def wiped_answers_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member comes back with nothing, and says so as if that were its log."""
    real = SimNode.restart

    def restart(self: SimNode) -> None:
        if self.rotten:
            self.rotten = False
            self.store.journal.replace([("checkpoint", MemberState(self.replica).pack(), {}, [])])
            self.held.clear()
        real(self)

    monkeypatch.setattr(SimNode, "restart", restart)


@planted("log", "9")
def rot_taken_for_torn_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost records are not noticed; the member answers low."""
    monkeypatch.setattr(SimNode, "_found_damaged", lambda self, state: None)


@planted("log", "9", rare=True)
def damaged_member_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a damaged member says counts in the majority of a seal."""
    real = choice.choose

    def choose(answers: Mapping[int, SealAnswer], configurations: Sequence[Configuration]) -> int | None:
        trusting = {r: replace(a, damaged=False, whole=True) for r, a in answers.items()}
        return real(trusting, configurations)

    monkeypatch.setattr(choice, "choose", choose)


@planted("log", "8")
def promise_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member whose promise is lost does not ask metadata for the newest epoch."""

    def promise_again(self: MemberState, epoch: int, writer: int) -> None:
        self.promise_lost = False

    monkeypatch.setattr(MemberState, "promise_again", promise_again)


@planted("log", "11")
def tombstones_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who copies hears nothing of a discarded block."""
    real = SimNode._on_pull

    def on_pull(self: SimNode, member: Member, source: str, *rest: int) -> None:
        index = self.store.index
        self.store.index = {b: cell for b, cell in index.items() if cell[1] not in self.cluster.zeroes}
        real(self, member, source, *rest)
        self.store.index = index

    monkeypatch.setattr(SimNode, "_on_pull", on_pull)


@planted("log", "12")
def seal_answered_before_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that a crash forgets."""
    real = Member.take_seal_answer

    def take(self: Member, now_ms: int) -> Any:
        unsynced, self._unsynced = self._unsynced, type(self._unsynced)()
        answer = real(self, now_ms)
        self._unsynced = unsynced
        return answer

    monkeypatch.setattr(Member, "take_seal_answer", take)


@planted("log", "12")
def old_epoch_accepted_after_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusal begins with the answer instead of with the promise."""
    real = Member.append

    def append(self: Member, writer: int, epoch: int, session: int, *rest: Any) -> int:
        state = self.state
        if epoch < state.epoch:
            epoch, writer, session = state.epoch, state.writer, self.session
        return real(self, writer, epoch, session, *rest)

    monkeypatch.setattr(Member, "append", append)


@planted("log", "13", rare=True)
def fork_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that had applied what the others lost goes on as if it had not."""
    monkeypatch.setattr(choice, "is_forked", lambda *args: False)


@planted("log", "13")
def window_dropped_at_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In writeback the writer forgets what is only in memories."""

    def count_durable(self: Counting) -> None:
        self.durable = self.commit

    monkeypatch.setattr(Counting, "_count_durable", count_durable)


@planted("log", "Raft 5.4.2", rare=True)
def counts_below_the_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raft, section 5.4.2: what was recovered is committed by counting."""

    def count(self: Counting, real: Any = Counting._count) -> None:
        barrier, self.barrier = self.barrier, 1 if self.barrier else 0
        real(self)
        self.barrier = barrier
        if self.phase is Phase.BARRIER and self.commit >= barrier:
            self.phase = Phase.SERVING

    def validate(self: Writer) -> None:
        return None

    monkeypatch.setattr(Counting, "_count", count)
    monkeypatch.setattr(Writer, "validate", validate)


@planted("log", "24")
def serves_before_the_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of a recovered tail that is not committed yet."""
    real = Recovery._adopt

    def adopt(self: Recovery, answer: SealAnswer) -> None:
        real(self, answer)
        self.phase = Phase.SERVING
        self.reads.wrote_all(self.commit)

    monkeypatch.setattr(Recovery, "_adopt", adopt)


@planted("log", "22")
def reads_without_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie hands what it reads to its application."""
    monkeypatch.setattr(Counting, "reads_until_ms", lambda self: 1 << 60)


@planted("log", "22", rare=True)
def seal_ignores_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The member does not keep what it promised with a heartbeat."""
    monkeypatch.setattr(Member, "_keep_lease", lambda self: None)


@planted("log", "22", rare=True)
def restart_forgets_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart the promise of a heartbeat is forgotten."""
    real = Member.__init__

    def init(self: Member, *args: Any, **named: Any) -> None:
        real(self, *args, **named)
        self._held_until_ms = 0

    monkeypatch.setattr(Member, "__init__", init)


@planted("log", "30")
def reads_at_the_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read need not see what was acknowledged."""
    monkeypatch.setattr(Writer, "read_lsn", lambda self, chunk: self.barrier)


@planted("log", "25")
def whole_while_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is a mix counts and serves."""
    real = Member._begin_copy

    def begin(self: Member, base: Position, *rest: Any) -> None:
        real(self, base, *rest)
        self.whole = True

    monkeypatch.setattr(Member, "_begin_copy", begin)
    monkeypatch.setattr(Member, "validate", lambda self: None)


@planted("log", "25")
def whole_before_until(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied, but what the copy is ahead of is not applied."""

    def pulled(self: Member, number: int, position: Position) -> bool:
        copy = self.state.copy
        return number == self._pull and copy is not None and not copy.copied

    monkeypatch.setattr(Member, "pulled", pulled)


@planted("log", "25", rare=True)
def copy_forgotten_by_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle of a copy forgets that the state is a mix."""
    real = SimNode.restart

    def restart(self: SimNode) -> None:
        real(self)
        member = self.member
        if member is not None and member.state.copy is not None and not member.state.damaged:
            member.state.copy = None
            member.whole = True

    monkeypatch.setattr(SimNode, "restart", restart)


@planted("log", "25")
def whole_before_it_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as whole before that is durable: a crash brings the old position back."""
    real = Member._maybe_whole

    def maybe_whole(self: Member) -> None:
        real(self)
        if self._whole_ticket:
            self._durable = self.state.last
            self._quiet_until = 0
            self.whole = self._dirty = True

    monkeypatch.setattr(Member, "_maybe_whole", maybe_whole)


@planted("log", "25")
def source_lacks_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is ahead of what the source has applied: what is between is in neither copy nor log."""
    real = Recovery._order_copy

    def order(self: Recovery, peer: Peer) -> None:
        applied = {other.replica: other.applied for other in self.peers.values()}
        for other in self.peers.values():
            if other.status is Status.STREAMING:
                other.applied = self.commit
        real(self, peer)
        for other in self.peers.values():
            other.applied = applied[other.replica]

    def may_pull(self: Member, base: int) -> Position | None:
        return epochs.position_at(self.state.history, max(base, self.state.commit)) if self.whole else None

    monkeypatch.setattr(Recovery, "_order_copy", order)
    monkeypatch.setattr(Member, "may_pull", may_pull)


@planted("log", "25", rare=True)
def cursor_survives_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy goes on behind blocks that the crash took."""
    real = SimNode.crash

    def crash(self: SimNode) -> None:
        cursor = self._cursor
        real(self)
        self._cursor = cursor

    monkeypatch.setattr(SimNode, "crash", crash)


@planted("log", "25", rare=True)
def copied_block_wins_over_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greater LSN must win per block, in whichever order they come."""

    def merge(self: SimStore, cells: list[tuple[int, tuple[int, int]]]) -> None:
        self.index.update(cells)

    monkeypatch.setattr(SimStore, "_merge", merge)


@planted("log", "13")
def acknowledged_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync mode: an acknowledgement for what is in memory only."""
    real = Member.take_ack

    def take(self: Member) -> Any:
        ack = real(self)
        return ack and (ack[0], ack[1], ack[1], *ack[3:])

    monkeypatch.setattr(Member, "take_ack", take)


@planted("log", "Prefix")
def position_before_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is accepted behind whatever is there."""
    real = Member.append

    def append(
        self: Member, writer: int, epoch: int, session: int, prev_epoch: int, prev_lsn: int, *rest: Any
    ) -> int:
        prev_epoch = epochs.epoch_at(self.state.history, prev_lsn)
        return real(self, writer, epoch, session, prev_epoch, prev_lsn, *rest)

    def matches(history: epochs.History, last: int, answer: SealAnswer) -> int:
        return min(last, answer.last.lsn)

    monkeypatch.setattr(Member, "append", append)
    monkeypatch.setattr(choice, "matches_up_to", matches)


@planted("log", "majority")
def minority_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is chosen when one member less than a majority has answered. (Half of an even number would do:
    what is committed is at one more than half.)"""

    def enough(those: Collection[int], configurations: Sequence[Configuration]) -> bool:
        return len(those) >= max(1, len(configurations[0]) // 2 + len(configurations[0]) % 2 - 1)

    monkeypatch.setattr(choice, "majority_in_all", enough)
