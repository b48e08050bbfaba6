"""The Raft core, a message at a time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.quorum.majority import is_majority, majority, reached_by_majority
from moorage.quorum.raft import Raft, Role
from moorage.quorum.raft_log import Log
from moorage.quorum.raft_types import (
    COMMAND,
    Append,
    AppendReply,
    Config,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Member,
    Message,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    decode,
    encode,
)
from moorage.wire import errors


def config(*names: str) -> Config:
    """``"a?"`` is a learner."""
    return Config(Member(name.rstrip("?"), f"{name}:1", not name.endswith("?")) for name in names)


def core(name: str = "a", members: Config | None = None, **rest: Any) -> Raft:
    return Raft(name, Log(Snapshot(0, 0, members or config("a", "b", "c"))), Random(1), **rest)


def store(raft: Raft) -> list[tuple[str, Message]]:
    """Be the shell: store whatever is ready; all messages, in order."""
    sent = raft.take_messages()
    while ready := raft.ready():
        sent += ready.messages
        raft.advance(ready)
        sent += raft.take_messages()
    raft.validate()
    return sent


def elected(members: Config | None = None) -> Raft:
    raft = core(members=members)
    for _ in range(24):
        raft.tick()
        store(raft)
    raft.step("b", VoteReply(1, True, True))
    store(raft)
    raft.step("b", VoteReply(1, False, True))
    store(raft)
    assert raft.is_leader
    raft.step("b", AppendReply(1, True, 1, 0, 0, 0))
    store(raft)
    assert raft.commit == 1
    return raft


# -- majority ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 8))
def test_majority_agrees_with_a_naive_count(count: int) -> None:
    rng = Random(count)
    assert all(2 * size > count for size in range(majority(count), count + 1))
    assert 2 * (majority(count) - 1) <= count
    for _ in range(200):
        values = [rng.randrange(5) for _ in range(count)]
        naive = max(value for value in range(6) if 2 * sum(each >= value for each in values) > count)
        assert reached_by_majority(values) == naive
        answers = [rng.random() < 0.5 for _ in range(count)]
        assert is_majority(answers) == (2 * sum(answers) > count)


def test_nobody_decides_for_an_empty_group() -> None:
    assert not is_majority([])
    assert reached_by_majority([]) == 0


# -- elections -----------------------------------------------------------------------------------------


def test_a_pre_vote_disturbs_no_term() -> None:
    raft = core()
    for _ in range(24):
        raft.tick()
    sent = store(raft)
    assert raft.role is Role.PRE_CANDIDATE and raft.term == 0 and raft.vote is None
    assert ("b", VoteRequest(1, 0, 0, True, False)) in sent


def test_a_vote_is_stored_before_it_is_told() -> None:
    raft = core()
    raft.step("b", VoteRequest(3, 0, 0, False, False))
    assert raft.take_messages() == []
    ready = raft.ready()
    assert ready is not None
    assert ready.hard_state == HardState(3, "b")
    assert ready.messages == [("b", VoteReply(3, False, True))]


def test_one_vote_per_term_also_after_a_restart() -> None:
    raft = core(hard_state=HardState(3, "b"))
    raft.step("c", VoteRequest(3, 9, 9, False, False))
    assert store(raft) == [("c", VoteReply(3, False, False))]
    raft.step("b", VoteRequest(3, 9, 9, False, False))
    assert store(raft) == [("b", VoteReply(3, False, True))]


def test_who_hears_a_leader_does_not_vote() -> None:
    raft = core()
    raft.step("b", Append(2, 0, 0, 0, 0, ()))
    store(raft)
    raft.step("c", VoteRequest(7, 9, 9, False, False))
    assert store(raft) == [] and raft.term == 2
    raft.step("c", VoteRequest(7, 9, 9, False, True))  # the leader hands over
    assert store(raft) == [("c", VoteReply(7, False, True))]


def test_a_leader_that_hears_nobody_steps_down() -> None:
    raft = elected()
    for _ in range(40):
        raft.tick()
        store(raft)
    assert not raft.is_leader
    with pytest.raises(errors.NotLeader):
        raft.propose(b"x")


def test_a_member_in_a_newer_term_tells_an_old_leader() -> None:
    raft = core(hard_state=HardState(5, None))
    raft.step("b", Append(4, 0, 0, 0, 0, ()))
    assert store(raft) == [("b", AppendReply(5, False, 0, 0, 0, 0))]


def test_a_lone_voter_leads_at_once_but_speaks_when_stored() -> None:
    raft = core(members=config("a", "b?"))
    raft.tick()
    assert raft.is_leader
    assert raft.take_messages() == []
    assert [target for target, _ in store(raft)] == ["b"]
    assert raft.commit == 1


def test_a_learner_never_campaigns() -> None:
    raft = core("c", config("a", "b", "c?"))
    for _ in range(100):
        raft.tick()
    assert raft.role is Role.FOLLOWER and store(raft) == []
    raft.step("a", TimeoutNow(1))
    assert raft.role is Role.FOLLOWER


# -- replication ---------------------------------------------------------------------------------------


def test_a_leader_counts_its_own_disk_only_when_stored() -> None:
    raft = elected(config("a", "b"))
    index, _ = raft.propose(b"x")
    messages = raft.take_messages()
    assert any(isinstance(message, Append) and message.entries for _, message in messages)
    ready = raft.ready()
    assert ready is not None
    raft.step("b", AppendReply(1, True, index, 0, 0, 0))
    assert raft.commit < index
    raft.advance(ready)
    assert raft.commit == index


def test_entries_of_old_terms_are_not_committed_by_counting() -> None:
    """Raft section 5.4.2, figure 8: such an entry may still be replaced, although a majority holds it."""
    entries = [Entry(1, 1, COMMAND, b"old")]
    raft = Raft("a", Log(Snapshot(0, 0, config("a", "b", "c")), entries), Random(1), HardState(3, None))
    raft.step("b", VoteRequest(4, 0, 0, False, False))
    raft.step("b", TimeoutNow(4))
    store(raft)
    raft.step("c", VoteReply(5, False, True))
    store(raft)
    assert raft.is_leader and raft.log.last_index == 2
    raft.step("b", AppendReply(5, True, 1, 0, 0, 0))
    raft.step("c", AppendReply(5, True, 1, 0, 0, 0))
    assert raft.commit == 0
    raft.step("b", AppendReply(5, True, 2, 0, 0, 0))
    assert raft.commit == 2


def test_an_acknowledgement_waits_for_the_disk() -> None:
    raft = core()
    entry = Entry(1, 1, COMMAND, b"x")
    raft.step("b", Append(1, 0, 0, 1, 4, (entry,)))
    assert raft.take_messages() == []
    ready = raft.ready()
    assert ready is not None and ready.entries == [entry]
    assert ready.messages == [("b", AppendReply(1, True, 1, 0, 0, 4))]
    assert raft.take_committed() == [entry]


def test_a_conflicting_tail_is_replaced_and_a_matching_one_is_not_cut() -> None:
    raft = core()
    old = tuple(Entry(1, at, COMMAND, b"old") for at in range(1, 5))
    raft.step("b", Append(1, 0, 0, 0, 0, old))
    store(raft)
    new = Entry(2, 3, COMMAND, b"new")
    raft.step("c", Append(2, 2, 1, 0, 0, (new,)))
    store(raft)
    assert raft.log.entries == [*old[:2], new]
    raft.step("c", Append(2, 1, 1, 0, 0, old[1:2]))  # late, and shorter
    assert raft.log.last_index == 3


def test_a_committed_entry_is_never_cut() -> None:
    raft = core()
    raft.step("b", Append(1, 0, 0, 1, 0, (Entry(1, 1, COMMAND, b"x"), Entry(1, 2, COMMAND, b"y"))))
    with pytest.raises(errors.InvariantViolation):
        raft.log.merge((Entry(2, 1, COMMAND, b"z"),), raft.commit)


def test_a_refusal_skips_a_whole_term() -> None:
    entries = [Entry(1, at, COMMAND, b"") for at in range(1, 4)]
    entries += [Entry(4, at, COMMAND, b"") for at in range(4, 40)]
    raft = Raft("a", Log(Snapshot(0, 0, config("a", "b")), entries), Random(1), HardState(4, None))
    raft.step("b", Append(5, 60, 5, 0, 0, ()))
    [(_, reply)] = store(raft)
    assert isinstance(reply, AppendReply) and not reply.ok and (reply.hint_index, reply.hint_term) == (39, 4)
    leader_log = Log(
        Snapshot(0, 0, config("a")), [*entries[:3], *(Entry(5, at, 1, b"") for at in range(4, 61))]
    )
    assert leader_log.agree_below(reply.hint_index, reply.hint_term) == 3


def test_a_refusal_of_what_was_acknowledged_before_it_was_asked_for_is_noticed() -> None:
    raft = elected()
    acknowledged_in = raft.lead.round if raft.lead else 0
    raft.step("b", AppendReply(1, False, 1, 0, 0, acknowledged_in))  # late: asked before that
    assert raft.take_forgetful() == {}
    for _ in range(raft.settings.heartbeat_ticks):
        raft.tick()
    [asked] = [message for target, message in store(raft) if target == "b"]
    assert isinstance(asked, Append) and asked.round > acknowledged_in
    raft.step("b", AppendReply(1, False, asked.prev_index, 0, 0, asked.round))
    assert raft.take_forgetful() == {"b": 1} and raft.take_forgetful() == {}
    raft.step("c", AppendReply(1, False, asked.prev_index, 0, 0, asked.round))  # it never had anything
    assert raft.take_forgetful() == {}


def test_in_flight_appends_are_bounded() -> None:
    raft = elected()
    raft.step("b", AppendReply(1, True, 1, 0, 0, 0))
    sent = 0
    for _ in range(200):
        raft.propose(b"x" * 10)
        sent += sum(target == "b" for target, _ in raft.take_messages())
    assert sent <= raft.settings.inflight_max


def test_proposals_are_bounded() -> None:
    raft = elected()
    with pytest.raises(errors.Overloaded):
        for _ in range(raft.settings.uncommitted_max + 1):
            raft.propose(b"x")


# -- reads ---------------------------------------------------------------------------------------------


def test_a_read_waits_for_a_round_that_began_after_it() -> None:
    raft = elected()
    raft.read(7)
    sent = store(raft)
    assert raft.take_reads() == []
    rounds = [message.round for _, message in sent if isinstance(message, Append)]
    raft.step("b", AppendReply(1, True, 1, 0, 0, rounds[0] - 1))
    assert raft.take_reads() == []
    raft.step("b", AppendReply(1, True, 1, 0, 0, rounds[0]))
    assert raft.take_reads() == [(7, 1)]


def test_reads_end_with_the_leadership() -> None:
    raft = elected()
    raft.read(7)
    raft.step("c", Append(2, 1, 1, 0, 0, ()))
    assert raft.take_reads() == [(7, None)]


# -- membership ----------------------------------------------------------------------------------------


def test_changes_of_the_members_are_refused_with_reasons() -> None:
    raft = elected()
    with pytest.raises(errors.Invalid, match="learner first"):
        raft.propose_config(config("a", "b", "c", "d"))
    with pytest.raises(errors.Invalid, match="one voter at a time"):
        raft.propose_config(config("a"))
    raft.propose_config(config("a", "b", "c", "d?"))
    with pytest.raises(errors.Busy):
        raft.propose_config(config("a", "b", "c"))


def test_a_member_knows_since_when_it_is_one() -> None:
    raft = elected()
    for members in (config("a", "b", "c", "d?"), config("a", "b", "c"), config("a", "b", "c", "d?")):
        index, _ = raft.propose_config(members)
        store(raft)
        raft.step("b", AppendReply(1, True, index, 0, 0, raft.lead.round if raft.lead else 0))
    assert [member.since for member in raft.log.config.members] == [0, 0, 0, index]
    raft.propose_config(config("a", "b", "c", "d"))  # who promotes it need not know
    assert [member.since for member in raft.log.config.members] == [0, 0, 0, index]
    assert Config.decode(raft.log.config.encode()) == raft.log.config


def test_a_learner_far_behind_is_not_promoted() -> None:
    raft = elected()
    index, _ = raft.propose_config(config("a", "b", "c", "d?"))
    for _ in range(300):
        index, _ = raft.propose(b"x")
    store(raft)
    raft.step("b", AppendReply(1, True, index, 0, 0, 0))
    with pytest.raises(errors.Busy, match="behind"):
        raft.propose_config(config("a", "b", "c", "d"))


def test_hand_over_goes_to_who_has_everything() -> None:
    raft = elected()
    index, _ = raft.propose(b"x")
    store(raft)
    assert raft.transfer()
    with pytest.raises(errors.NotLeader):
        raft.propose(b"y")
    assert not any(isinstance(message, TimeoutNow) for _, message in store(raft))
    raft.step("b", AppendReply(1, True, index, 0, 0, 0))
    assert ("b", TimeoutNow(1)) in store(raft)


# -- snapshots -----------------------------------------------------------------------------------------


def chunk(attempt: int, seq: int, last: bool = False, index: int = 50) -> SnapshotChunk:
    return SnapshotChunk(3, Snapshot(index, 2, config("a", "b", "c")), attempt, seq, last, b"%d" % seq)


def test_a_snapshot_is_taken_chunk_by_chunk() -> None:
    raft = core()
    raft.step("b", chunk(1, 0))
    raft.step("b", chunk(1, 2))
    raft.step("b", chunk(1, 0))
    raft.step("b", chunk(1, 1, last=True))
    ready = raft.ready()
    assert ready is not None
    assert [each.seq for each in ready.chunks] == [0, 1] and ready.install is not None
    replies = [message for _, message in ready.messages]
    assert replies[:3] == [SnapshotReply(3, 1, 1)] * 3
    assert replies[3] == AppendReply(3, True, 50, 0, 0, 0)


def test_nothing_is_applied_while_a_snapshot_is_installed() -> None:
    raft = core()
    raft.step("b", chunk(1, 0, last=True))
    raft.step("b", Append(3, 50, 2, 51, 0, (Entry(3, 51, COMMAND, b"x"),)))
    assert raft.installing and raft.take_committed() == []
    store(raft)
    assert [entry.index for entry in raft.take_committed()] == [51]


def test_chunks_of_two_attempts_never_mix() -> None:
    raft = core()
    raft.step("b", chunk(1, 0))
    raft.step("b", chunk(2, 0, index=60))
    raft.step("b", chunk(1, 1, last=True))
    ready = raft.ready()
    assert ready is not None and ready.install is None
    assert [(each.attempt, each.seq) for each in ready.chunks] == [(1, 0), (2, 0)]


def test_compaction_waits_for_living_members() -> None:
    raft = elected()
    for _ in range(100):
        index, _ = raft.propose(b"x")
    store(raft)
    raft.step("b", AppendReply(1, True, index, 0, 0, 0))
    raft.step("c", AppendReply(1, True, 10, 0, 0, 0))
    raft.take_committed()
    raft.compact(90)
    assert raft.log.base_index == 10
    store(raft)


# -- the wire form -------------------------------------------------------------------------------------

numbers = st.integers(0, 2**63 - 1)
entries = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.binary(max_size=9)), max_size=4)
messages = st.one_of(
    st.builds(VoteRequest, numbers, numbers, numbers, st.booleans(), st.booleans()),
    st.builds(VoteReply, numbers, st.booleans(), st.booleans()),
    st.builds(
        lambda prev, rows: Append(
            1,
            prev,
            2,
            3,
            4,
            tuple(Entry(term, prev + 1 + at, kind, data) for at, (term, kind, data) in enumerate(rows)),
        ),
        st.integers(0, 2**62),
        entries,
    ),
    st.builds(AppendReply, numbers, st.booleans(), numbers, numbers, numbers, numbers),
    st.builds(Heartbeat, numbers, numbers),
    st.builds(HeartbeatReply, numbers, numbers),
    st.builds(lambda seq, data: chunk(1, seq)._replace(data=data), numbers, st.binary(max_size=9)),
    st.builds(SnapshotReply, numbers, numbers, numbers),
    st.builds(TimeoutNow, numbers),
)


@given(messages)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=12,
)


@given(junk, st.integers(0, 10), st.lists(junk, max_size=7))
def test_garbage_is_a_protocol_error(value: Any, code: int, fields: list[Any]) -> None:
    for raw in (value, [code, *fields]):
        try:
            message = decode(raw)
        except errors.ProtocolError:
            continue
        assert decode(encode(message)) == message
