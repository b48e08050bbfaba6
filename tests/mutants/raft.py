"""Planted bugs of Raft, for the simulation of its core (``quorum/simulation/raft_cluster.py``)."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.quorum import raft_leader
from moorage.quorum.raft import Raft
from moorage.quorum.raft_leader import Flow, Leadership, Progress
from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import HardState, Ready, VoteReply
from moorage.quorum.simulation import raft_cluster
from moorage.quorum.simulation.raft_cluster import RaftCluster

from .catalogue import planted, verdict_of_cores

verdict = verdict_of_cores


def run(seed: int) -> object:
    return RaftCluster(seed, stormy=seed % 4 > 0).run()


@planted("raft", "Raft 5.1")
def term_and_vote_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart forgets the term and the vote."""

    real = Ready.__init__

    def forget(self: Ready, hard_state: HardState | None, *rest: Any) -> None:
        real(self, hard_state, *rest)

    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        before = self.state
        real(self, ready)
        self.state = before

    monkeypatch.setattr(Ready, "__init__", forget)
    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@planted("raft", "Raft 5.2")
def vote_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The term is stored, the vote in it is not: a restart votes twice."""

    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        real(self, ready)
        self.state = HardState(self.state.term, None)

    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@planted("raft", "Raft 5.2")
def votes_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member votes for each candidate of a term."""

    real = Raft._on_vote_request

    def vote(self: Raft, source: str, request: Any) -> None:
        if not request.pre:
            self.vote = None
            self.leader = None
        real(self, source, request)

    monkeypatch.setattr(Raft, "_on_vote_request", vote)


@planted("raft", "Raft 5.4.1")
def votes_for_short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote is given without comparing the logs."""

    monkeypatch.setattr(Log, "up_to_date", lambda self, term, index: True)


@planted("raft", "Raft 5")
def promises_before_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are sent before what they say is stored."""

    real = Raft.take_messages

    def hasty(self: Raft) -> Any:
        messages = self._after + real(self)
        self._after = []
        return messages

    monkeypatch.setattr(Raft, "take_messages", hasty)


@planted("raft", "Raft 10.2.1")
def leader_counts_what_its_disk_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader counts entries that its own disk has not synced."""

    def counted(self: Leadership) -> list[int]:
        me, log = self.core.name, self.core.log
        return [log.last_index if name == me else self.progress[name].match for name in log.config.voters]

    monkeypatch.setattr(Leadership, "counted", counted)


@planted("raft", "Raft 4.2.1")
def learners_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members without a vote count in the majority of a commit."""

    def counted(self: Leadership) -> list[int]:
        me, log = self.core.name, self.core.log
        return [
            log.persisted if name == me else self.progress[name].match
            for name in log.config.names
            if name == me or name in self.progress
        ]

    monkeypatch.setattr(Leadership, "counted", counted)


@planted("raft", "Raft 6.4")
def reads_without_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader answers reads without asking whether it still leads."""

    def read(self: Leadership, context: int) -> None:
        self.core.read_done(context, self.core.commit)

    monkeypatch.setattr(Leadership, "read", read)


@planted("raft", "Raft 6.4")
def reads_before_the_first_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new leader answers reads before an entry of its own term is committed."""

    real = Leadership.read

    def read(self: Leadership, context: int) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Leadership, "committed_in_term", lambda self: True)
            real(self, context)

    monkeypatch.setattr(Leadership, "read", read)


@planted("raft", "Raft 4.1")
def two_configuration_changes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of configuration begins while another one is not committed."""

    monkeypatch.setattr(Leadership, "check_change", lambda self, config: None)


@planted("raft", "Raft 4.1")
def many_voters_in_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """One change replaces many voters: two majorities need not meet."""

    real = RaftCluster._change

    def change(self: RaftCluster, member: Any) -> None:
        core = member.core
        config = core.log.config
        if len(config.voters) >= 3 and core.log.config_index <= core.commit:
            core._propose(2, config.drop(config.voters[0]).drop(config.voters[1]).encode())
        else:
            real(self, member)

    monkeypatch.setattr(RaftCluster, "_change", change)


@planted("raft", "Raft 5.3")
def conflicting_tail_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that conflicts does not take away what is behind it."""

    def merge(self: Log, entries: Any, commit: int) -> None:
        for entry in entries:
            if entry.index > self.last_index and entry.term >= self.last_term:
                self._push(entry)

    monkeypatch.setattr(Log, "merge", merge)


@planted("raft", "Raft 5.3")
def matching_tail_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry sent again takes away what is behind it."""

    def merge(self: Log, entries: Any, commit: int) -> None:
        for at, entry in enumerate(entries):
            if entry.index <= commit:
                continue
            if self.term(entry.index) is not None:
                self._cut(entry.index, commit)
            for new in entries[at:]:
                self._push(new)
            return

    monkeypatch.setattr(Log, "merge", merge)


@planted("raft", "Raft 5.3")
def previous_entry_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are appended behind whatever is there."""

    real = Raft._on_append

    def on_append(self: Raft, source: str, message: Any) -> None:
        known = self.log.term(message.prev_index)
        if known is not None and message.prev_index >= self.commit:
            message = message._replace(prev_term=known)
        real(self, source, message)

    monkeypatch.setattr(Raft, "_on_append", on_append)


@planted("raft", "Raft 5.3")
def commit_beyond_what_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower commits what it has not compared with its leader's log."""

    real = Raft._on_append

    def on_append(self: Raft, source: str, message: Any) -> None:
        self.commit_to(min(message.commit, self.log.last_index))
        real(self, source, message)

    monkeypatch.setattr(Raft, "_on_append", on_append)


@planted("raft", "19")
def answers_of_old_terms_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer from an old term counts as one of this term."""

    def stale(self: Raft, source: str, message: Any) -> None:
        self._dispatch(source, message._replace(term=self.term))

    monkeypatch.setattr(Raft, "_step_stale", stale)


@planted("raft", "19", rare=True)
def votes_of_old_terms_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote from an old term counts in this election."""

    real = Raft._step_stale

    def stale(self: Raft, source: str, message: Any) -> None:
        if isinstance(message, VoteReply) and not message.pre:
            self._dispatch(source, message._replace(term=self.term))
        else:
            real(self, source, message)

    monkeypatch.setattr(Raft, "_step_stale", stale)


@planted("raft", "Raft 7")
def snapshot_chunk_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of a snapshot that is missing is not noticed."""

    real = Raft._on_chunk

    def on_chunk(self: Raft, source: str, chunk: Any) -> None:
        if (chunk.term, chunk.attempt) == self._incoming:
            self._next_seq = chunk.seq
        real(self, source, chunk)

    monkeypatch.setattr(Raft, "_on_chunk", on_chunk)


@planted("raft", "Raft 7")
def snapshot_leaves_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is installed, and the log from before stays on disk."""

    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        entries, base = self.entries, self.base
        real(self, ready)
        if ready.install is not None and not ready.entries:
            self.entries, self.base = entries, base

    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@planted("raft", "Raft 4.1")
def cut_configuration_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration whose entry was cut stays in force."""

    real = Log._cut

    def cut(self: Log, index: int, commit: int) -> None:
        config = self.configs[-1]
        real(self, index, commit)
        if self.configs[-1] != config:
            self.configs[-1] = (self.configs[-1][0], config[1])

    monkeypatch.setattr(Log, "_cut", cut)


@planted("raft", "Raft 4.2.2")
def removed_leader_never_campaigns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks a group for ever (found by this simulation): who is being removed may hold the only full log."""
    monkeypatch.setattr(Raft, "promotable", property(lambda self: self.name in self.log.config.voters))


@planted("raft", "Raft 5.3")
def lost_append_never_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost message with entries is not sent again."""

    real = Leadership._send_append

    def send(self: Leadership, name: str, progress: Progress, with_entries: bool) -> None:
        if with_entries or progress.flow is not Flow.REPLICATE:
            real(self, name, progress, with_entries)
        else:
            self.core.send_now(name, raft_leader.Heartbeat(self.core.term, self.round))

    monkeypatch.setattr(Leadership, "_send_append", send)
