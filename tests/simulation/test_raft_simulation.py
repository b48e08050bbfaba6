"""Whole Raft groups under faults; and planted bugs, each of which must be caught.

``MOORAGE_SEEDS`` asks for more seeds than the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from moorage.quorum import raft, raft_leader, raft_log
from moorage.quorum.raft import Raft
from moorage.quorum.raft_leader import Flow, Leadership, Progress
from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import HardState, Ready, VoteReply
from moorage.quorum.simulation import raft_cluster
from moorage.quorum.simulation.kernel import Violation
from moorage.quorum.simulation.raft_cluster import RaftCluster, run_seed
from moorage.wire import errors

SEEDS = int(os.environ.get("MOORAGE_SEEDS", "100"))


@pytest.mark.parametrize("block", range(4))
def test_histories_hold_all_invariants(block: int) -> None:
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        run_seed(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(8))
def test_many_histories(block: int) -> None:
    for seed in range(100_000 + block * 125, 100_000 + block * 125 + 125):
        run_seed(seed)


def test_a_seed_is_one_history() -> None:
    assert [run_seed(seed) for seed in range(3)] == [run_seed(seed) for seed in range(3)]
    assert run_seed(1) != run_seed(2)


def test_the_workload_really_works() -> None:
    clusters = [RaftCluster(seed) for seed in range(20)]
    for cluster in clusters:
        cluster.run()
    assert sum(cluster.acknowledged_count for cluster in clusters) > 500
    assert sum(cluster.reads_done for cluster in clusters) > 200
    assert sum(cluster.changes for cluster in clusters) > 50
    assert sum(len(cluster.leader_of) for cluster in clusters) > 40


# -- planted bugs --------------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Patch] = {}


def bug(patch: Patch) -> Patch:
    BUGS[patch.__name__] = patch
    return patch


@bug
def term_and_vote_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Ready.__init__

    def forget(self: Ready, hard_state: HardState | None, *rest: Any) -> None:
        real(self, hard_state, *rest)

    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        before = self.state
        real(self, ready)
        self.state = before

    monkeypatch.setattr(Ready, "__init__", forget)
    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@bug
def vote_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        real(self, ready)
        self.state = HardState(self.state.term, None)

    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@bug
def votes_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft._on_vote_request

    def vote(self: Raft, source: str, request: Any) -> None:
        if not request.pre:
            self.vote = None
            self.leader = None
        real(self, source, request)

    monkeypatch.setattr(Raft, "_on_vote_request", vote)


@bug
def votes_for_short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "up_to_date", lambda self, term, index: True)


@bug
def promises_before_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft.take_messages

    def hasty(self: Raft) -> Any:
        messages = self._after + real(self)
        self._after = []
        return messages

    monkeypatch.setattr(Raft, "take_messages", hasty)


@bug
def leader_counts_what_its_disk_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(self: Leadership) -> list[int]:
        me, log = self.core.name, self.core.log
        return [log.last_index if name == me else self.progress[name].match for name in log.config.voters]

    monkeypatch.setattr(Leadership, "counted", counted)


@bug
def learners_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(self: Leadership) -> list[int]:
        me, log = self.core.name, self.core.log
        return [
            log.persisted if name == me else self.progress[name].match
            for name in log.config.names
            if name == me or name in self.progress
        ]

    monkeypatch.setattr(Leadership, "counted", counted)


@bug
def reads_without_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Leadership, context: int) -> None:
        self.core.read_done(context, self.core.commit)

    monkeypatch.setattr(Leadership, "read", read)


@bug
def reads_before_the_first_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Leadership.read

    def read(self: Leadership, context: int) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Leadership, "committed_in_term", lambda self: True)
            real(self, context)

    monkeypatch.setattr(Leadership, "read", read)


@bug
def two_configuration_changes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leadership, "check_change", lambda self, config: None)


@bug
def many_voters_in_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RaftCluster._change

    def change(self: RaftCluster, member: Any) -> None:
        core = member.core
        config = core.log.config
        if len(config.voters) >= 3 and core.log.config_index <= core.commit:
            core._propose(2, config.drop(config.voters[0]).drop(config.voters[1]).encode())
        else:
            real(self, member)

    monkeypatch.setattr(RaftCluster, "_change", change)


@bug
def conflicting_tail_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def merge(self: Log, entries: Any, commit: int) -> None:
        for entry in entries:
            if entry.index > self.last_index and entry.term >= self.last_term:
                self._push(entry)

    monkeypatch.setattr(Log, "merge", merge)


@bug
def matching_tail_cut(monkeypatch: pytest.MonkeyPatch) -> None:
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


@bug
def previous_entry_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft._on_append

    def on_append(self: Raft, source: str, message: Any) -> None:
        known = self.log.term(message.prev_index)
        if known is not None and message.prev_index >= self.commit:
            message = message._replace(prev_term=known)
        real(self, source, message)

    monkeypatch.setattr(Raft, "_on_append", on_append)


@bug
def commit_beyond_what_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft._on_append

    def on_append(self: Raft, source: str, message: Any) -> None:
        self.commit_to(min(message.commit, self.log.last_index))
        real(self, source, message)

    monkeypatch.setattr(Raft, "_on_append", on_append)


@bug
def answers_of_old_terms_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(self: Raft, source: str, message: Any) -> None:
        self._dispatch(source, message._replace(term=self.term))

    monkeypatch.setattr(Raft, "_step_stale", stale)


@bug
def votes_of_old_terms_count(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft._step_stale

    def stale(self: Raft, source: str, message: Any) -> None:
        if isinstance(message, VoteReply) and not message.pre:
            self._dispatch(source, message._replace(term=self.term))
        else:
            real(self, source, message)

    monkeypatch.setattr(Raft, "_step_stale", stale)


@bug
def snapshot_chunk_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Raft._on_chunk

    def on_chunk(self: Raft, source: str, chunk: Any) -> None:
        if (chunk.term, chunk.attempt) == self._incoming:
            self._next_seq = chunk.seq
        real(self, source, chunk)

    monkeypatch.setattr(Raft, "_on_chunk", on_chunk)


@bug
def snapshot_leaves_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(self: raft_cluster.Disk, ready: Ready, real: Any = raft_cluster.Disk._fold_one) -> None:
        entries, base = self.entries, self.base
        real(self, ready)
        if ready.install is not None and not ready.entries:
            self.entries, self.base = entries, base

    monkeypatch.setattr(raft_cluster.Disk, "_fold_one", fold)


@bug
def cut_configuration_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Log._cut

    def cut(self: Log, index: int, commit: int) -> None:
        config = self.configs[-1]
        real(self, index, commit)
        if self.configs[-1] != config:
            self.configs[-1] = (self.configs[-1][0], config[1])

    monkeypatch.setattr(Log, "_cut", cut)


@bug
def removed_leader_never_campaigns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks a group for ever (found by this simulation): who is being removed may hold the only full log."""
    monkeypatch.setattr(Raft, "promotable", property(lambda self: self.name in self.log.config.voters))


@bug
def lost_append_never_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Leadership._send_append

    def send(self: Leadership, name: str, progress: Progress, with_entries: bool) -> None:
        if with_entries or progress.flow is not Flow.REPLICATE:
            real(self, name, progress, with_entries)
        else:
            self.core.send_now(name, raft_leader.Heartbeat(self.core.term, self.round))

    monkeypatch.setattr(Leadership, "_send_append", send)


# Rare ones: where they were caught when this was written. A changed core or simulation has other histories:
# the search goes on from there, which may take minutes.
CAUGHT_AT = {
    "vote_not_stored": 17,
    "votes_of_old_terms_count": 305,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(BUGS))
def test_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name](monkeypatch)
    first = CAUGHT_AT.get(name, 0)
    for seed in range(first, first + 1000):
        try:
            RaftCluster(seed, stormy=seed % 4 > 0).run()
        except (Violation, errors.InvariantViolation):
            monkeypatch.undo()
            RaftCluster(seed, stormy=seed % 4 > 0).run()  # it was the bug, and not a false alarm
            return
    pytest.fail(f"{name}: no seed out of 1000 noticed")


def test_the_real_code_is_back() -> None:
    assert raft.Raft.promotable.fget is not None
    assert raft_log.Log.up_to_date(Log(raft_cluster.Snapshot(0, 0, raft_cluster.Config(()))), 0, 0)
