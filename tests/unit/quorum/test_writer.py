"""The writer of one group: choosing, counting, windows, copies, membership, without any shell."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.quorum import choice
from moorage.quorum.member import FENCED, FULL, GAP, NO_SESSION, STALLED, WHOLE
from moorage.quorum.orders import ConfigurationReady, CopyOrder, ReadTail, Seal, SealAnswer
from moorage.quorum.peer import Status
from moorage.quorum.record import LSN_MAX, ZERO_POSITION, Kind, Position, Record
from moorage.quorum.writer import NO_SPACE, WAIT, Phase, Writer
from moorage.wire.errors import DeadlineExceeded, Fenced, LimitExceeded, NoReplica

ROOM = 1 << 20
EPOCH = 9


def answer(vote: tuple[int, int] = (0, 0), commit: int = 0, **other: Any) -> SealAnswer:
    position = Position(*vote)
    history = other.pop("history", [(vote[0], 1)] if vote[1] else [])
    values: dict[str, Any] = {
        "epoch": EPOCH,
        "vote": position,
        "last": position,
        "commit": commit,
        "history": history,
        "newest": Position(vote[0], commit) if commit else ZERO_POSITION,
        "whole": True,
        "damaged": False,
        "base": ZERO_POSITION,
        "tail_from": 1,
        "space_limit": ROOM,
        "full": False,
    }
    return SealAnswer(**{**values, **other})


def make(members: tuple[int, ...] = (1, 2, 3), **other: Any) -> Writer:
    writer = Writer(epoch=EPOCH, writer=7, members=members, **{"sync": True, **other})
    for replica in writer.peers:
        writer.connected(replica)
    writer.take_orders()
    return writer


def send_all(writer: Writer) -> dict[int, list[int]]:
    """Take every batch; the LSNs that each member was sent."""
    sent: dict[int, list[int]] = {}
    for replica in writer.peers:
        while (batch := writer.take_batch(replica, 1 << 20)) is not None:
            sent.setdefault(replica, []).extend(record.lsn for record in batch.records)
    writer.validate()
    return sent


def ack(writer: Writer, replica: int, lsn: int, durable: int | None = None, **other: Any) -> None:
    peer = writer.peers[replica]
    writer.ack(
        replica,
        other.get("epoch", EPOCH),
        lsn,
        lsn if durable is None else durable,
        other.get("applied", 0),
        other.get("limit", ROOM),
        other.get("session", peer.session),
        other.get("flags", WHOLE),
    )
    writer.validate()


def serving(members: tuple[int, ...] = (1, 2, 3), **other: Any) -> Writer:
    writer = make(members, **other)
    for replica in members:
        writer.sealed(replica, 1, answer())
    send_all(writer)
    for replica in members:
        ack(writer, replica, 1)
    assert writer.phase is Phase.SERVING
    return writer


def write(writer: Writer, tag: Any = None, data: bytes = b"x" * 4096) -> int:
    return writer.submit(Kind.WRITE, 0, 0, 1, bytes(8), data, tag)


# -- choosing ----------------------------------------------------------------------------------


def test_greatest_vote_of_a_majority() -> None:
    answers = {1: answer((5, 9)), 2: answer((5, 10)), 3: answer((4, 30))}
    assert choice.choose({1: answers[1]}, [(1, 2, 3)]) is None
    assert choice.choose(answers, [(1, 2, 3)]) == 2
    assert choice.choose({1: answers[1], 3: answers[3]}, [(1, 2, 3)]) == 1


def test_damaged_and_copied_members_give_no_log() -> None:
    damaged = answer((7, 99), damaged=True, whole=False)
    copied = answer((6, 50), whole=False)
    assert choice.choose({1: answer((5, 9)), 2: damaged}, [(1, 2, 3)]) is None
    assert choice.choose({1: answer((5, 9)), 2: copied}, [(1, 2, 3)]) is None
    assert choice.choose({1: answer((5, 9)), 2: copied, 3: answer((5, 8))}, [(1, 2, 3)]) == 1
    old = answer((4, 9), whole=False)
    assert choice.choose({1: answer((5, 9)), 2: old}, [(1, 2, 3)]) == 1


def test_an_answer_for_another_epoch_is_asked_for_again() -> None:
    writer = make()
    writer.sealed(1, 1, answer(epoch=EPOCH - 1))
    assert writer.peers[1].status is Status.REFUSED
    writer.tick(10_000)
    assert [order for order in writer.take_orders() if isinstance(order, Seal)] == [Seal(1, 2)]


def test_tail_is_read_before_anything_is_sent() -> None:
    writer = make()
    writer.sealed(1, 1, answer((5, 10), commit=8))
    writer.sealed(2, 1, answer((5, 9), commit=7))
    assert writer.phase is Phase.TAIL
    assert writer.take_orders() == [ReadTail(1, 1, 9, 10)]
    assert send_all(writer) == {}
    writer.tail(1, 1, [Record(5, 9, Kind.ZERO, count=1)])
    assert send_all(writer) == {}
    writer.tail(1, 1, [Record(5, 10, Kind.ZERO, count=1)])
    assert (writer.phase, writer.barrier) == (Phase.BARRIER, 11)
    assert send_all(writer) == {1: [11], 2: [10, 11]}


def test_what_is_read_of_the_tail_fits_into_the_window() -> None:
    """Records may be of 1 MiB: who lacks many of the committed ones is copied to."""
    writer = make()
    writer.sealed(1, 1, answer((5, 1000), commit=990, history=[(5, 1)]))
    writer.sealed(3, 1, answer((5, 1), commit=1, history=[(5, 1)]))
    assert writer.take_orders() == [ReadTail(1, 1, 937, 1000)]
    writer.tail(1, 1, [Record(5, lsn, Kind.ZERO, count=1) for lsn in range(937, 1001)])
    assert writer.peers[3].status is Status.LAGGING
    writer = make()
    writer.sealed(1, 1, answer((5, 1000), commit=900, history=[(5, 1)]))
    writer.sealed(3, 1, answer((5, 1), commit=1, history=[(5, 1)]))
    assert writer.take_orders() == [ReadTail(1, 1, 901, 1000)], "all that may not be committed"


def test_another_log_may_be_chosen_until_the_tail_is_read() -> None:
    writer = make()
    writer.sealed(1, 1, answer((5, 10), commit=8))
    writer.sealed(2, 1, answer((5, 9), commit=8))
    writer.disconnected(1)
    assert writer.phase is Phase.SEALING
    writer.take_orders()
    writer.sealed(3, 1, answer((5, 9), commit=8))
    assert writer.take_orders() == [ReadTail(2, 1, 9, 9)]
    writer.tail(2, 1, [Record(5, 9, Kind.ZERO, count=1)])
    assert writer.barrier == 10
    writer.disconnected(2)
    writer.sealed(1, 1, answer((5, 10), commit=8))
    assert writer.phase is Phase.BARRIER and writer.barrier == 10, "chosen once"


def test_nothing_counts_below_the_barrier() -> None:
    writer = make()
    writer.sealed(1, 1, answer((5, 1)))
    writer.sealed(2, 1, answer())
    writer.tail(1, 1, [Record(5, 1, Kind.ZERO, count=1)])
    send_all(writer)
    ack(writer, 1, 1)
    ack(writer, 2, 1)
    assert writer.commit == 0
    ack(writer, 1, 2)
    ack(writer, 2, 2)
    assert writer.commit == 2 and writer.phase is Phase.SERVING
    assert writer.recovered(5, 1) and not writer.recovered(EPOCH, 2) and not writer.recovered(5, 2)


# -- writing -----------------------------------------------------------------------------------


def test_a_write_is_done_at_a_majority() -> None:
    writer = serving()
    assert [write(writer, "a"), write(writer, "b")] == [2, 3]
    assert send_all(writer) == {1: [2, 3], 2: [2, 3], 3: [2, 3]}
    ack(writer, 1, 3)
    assert writer.take_done() == []
    ack(writer, 2, 2)
    assert writer.take_done() == ["a"]
    ack(writer, 3, 3)
    assert writer.take_done() == ["b"]
    assert writer.read_lsn(0) == 3 and writer.read_lsn(1) == 1


def test_sync_counts_what_is_durable() -> None:
    writer = serving()
    write(writer, "a")
    send_all(writer)
    ack(writer, 1, 2, durable=1)
    ack(writer, 2, 2, durable=2)
    assert writer.take_done() == []
    ack(writer, 1, 2)
    assert writer.take_done() == ["a"]


def test_writeback_serves_once_its_barrier_is_durable() -> None:
    """A writer served, a majority lost power, and a log from before its barrier was chosen again: with
    acknowledged records that were lost before, and whose loss readers had seen."""
    writer = make(sync=False)
    for replica in (1, 2, 3):
        writer.sealed(replica, 1, answer())
    send_all(writer)
    for replica in (1, 2, 3):
        ack(writer, replica, 1, durable=0)
    assert (writer.phase, writer.commit) == (Phase.BARRIER, 0)
    ack(writer, 1, 1)
    assert writer.phase is Phase.BARRIER
    ack(writer, 3, 1)
    assert (writer.phase, writer.commit) == (Phase.SERVING, 1)


def test_writeback_and_flush() -> None:
    writer = serving(sync=False)
    ack(writer, 1, 1, durable=1)
    writer.flush("nothing to do")
    assert writer.take_done() == ["nothing to do"]
    write(writer, "a")
    send_all(writer)
    ack(writer, 1, 2, durable=1)
    ack(writer, 2, 2, durable=1)
    assert writer.take_done() == ["a"]
    writer.flush("f")
    batch = writer.take_batch(1, 1 << 20)
    assert batch is not None and batch.flags and not batch.records
    ack(writer, 1, 2)
    assert writer.take_done() == []
    ack(writer, 3, 2)
    assert writer.take_done() == ["f"]


def test_writeback_keeps_what_is_not_durable_at_a_majority() -> None:
    writer = serving(sync=False, window_records=8)
    while write(writer) > 0:
        send_all(writer)
        last = writer.window.last
        for replica in (1, 2, 3):
            ack(writer, replica, last, durable=1)
        writer.take_done()
    assert writer.window.first == 2 and writer.commit == writer.window.last
    writer.tick(10)
    batch = writer.take_batch(1, 1 << 20)
    assert batch is not None and batch.flags, "it flushes by itself"


def test_acks_of_other_epochs_and_sessions_do_not_count() -> None:
    writer = serving()
    write(writer, "a")
    send_all(writer)
    ack(writer, 1, 2, epoch=EPOCH - 1)
    ack(writer, 2, 2, session=0)
    ack(writer, 3, 2)
    assert writer.take_done() == []


def test_a_lost_record_is_sent_again() -> None:
    writer = serving()
    write(writer)
    write(writer)
    send_all(writer)
    writer.nack(1, EPOCH, EPOCH, 1, 1, GAP)
    writer.nack(1, EPOCH, EPOCH, 1, 1, GAP)
    assert send_all(writer) == {1: [2, 3]}


def test_commit_notice_follows_the_last_record() -> None:
    writer = serving()
    write(writer)
    send_all(writer)
    for replica in (1, 2, 3):
        ack(writer, replica, 2)
    assert send_all(writer) == {}
    writer.tick(10)
    batch = writer.take_batch(1, 1 << 20)
    assert batch is not None and (batch.commit, batch.count, batch.prev_lsn) == (2, 0, 2)


def test_fenced() -> None:
    writer = serving()
    write(writer, "a")
    send_all(writer)
    writer.nack(2, EPOCH, EPOCH + 1, 1, 1, FENCED)
    assert isinstance(writer.ended, Fenced)
    assert write(writer) == WAIT and writer.reads_until_ms() == 0
    assert [(lsn, tag) for lsn, _, tag in writer.take_rest()] == [(2, "a")]


def test_a_former_session_that_is_refused_does_not_end_the_writer() -> None:
    writer = serving()
    writer.connected(2)
    writer.nack(2, EPOCH, EPOCH, 1, 1, FENCED)
    assert writer.ended is None
    writer.nack(2, EPOCH, EPOCH, 1, 2, FENCED)
    assert isinstance(writer.ended, Fenced), "another writer in the same epoch"


def test_window_is_bounded() -> None:
    writer = serving(window_records=8)
    while write(writer) > 0:
        assert writer.window.last < 20
    send_all(writer)
    for replica in (1, 2):
        ack(writer, replica, writer.window.last)
    assert write(writer) == WAIT, "the third member makes progress, and is waited for"
    writer.tick(1000)
    writer.tick(1200)
    assert write(writer) > 0, "a silent one is not"


def test_a_list_of_snapshots_waits_for_no_room() -> None:
    writer = make()
    assert writer.set_snapshots([], True, "early") == WAIT, "no log is chosen yet"
    writer = serving(window_records=8)
    while write(writer) > 0:
        pass
    lsn = writer.set_snapshots([3], True, "made")
    assert lsn == writer.window.last and writer.window.entries[lsn].snapshots == [3, lsn]
    assert write(writer) == WAIT
    again = writer.set_snapshots([lsn, 3], False, "listed")
    assert writer.window.entries[again].snapshots == [3, lsn]
    assert again in send_all(writer)[1]
    for replica in (1, 2):
        ack(writer, replica, again)
    assert writer.take_done()[-2:] == ["made", "listed"]


def test_what_a_next_epoch_issues_again_has_no_lists_of_snapshots() -> None:
    writer = serving()
    first = write(writer, "a")
    writer.set_snapshots([], True, "made")
    last = write(writer, "b")
    assert [(lsn, tag) for lsn, _, tag in writer.take_rest()] == [(first, "a"), (last, "b")]


def test_space_is_granted_before_an_lsn_is() -> None:
    writer = make()
    for replica in (1, 2, 3):
        writer.sealed(replica, 1, answer(space_limit=5000))
    send_all(writer)
    for replica in (1, 2, 3):
        ack(writer, replica, 1, limit=5000)
    assert write(writer, "a") == 2
    assert write(writer, "b") == WAIT, "more may be granted"
    for replica in (1, 2):
        ack(writer, replica, 1, limit=5000, flags=WHOLE | FULL)
    assert write(writer, "b") == NO_SPACE
    assert writer.submit(Kind.ZERO, 0, 0, 8, b"", b"", "z") == 3, "a discard always goes"
    ack(writer, 1, 1, limit=9000)
    ack(writer, 2, 1, limit=9000)
    assert write(writer, "b") == 4


def test_too_few_live_members_is_not_a_full_disk() -> None:
    writer = serving()
    writer.disconnected(1)
    writer.disconnected(2)
    assert write(writer) == WAIT


def test_end_of_the_log() -> None:
    writer = serving()
    writer.window.last = LSN_MAX
    assert write(writer) == WAIT
    assert isinstance(writer.ended, LimitExceeded)


# -- members -----------------------------------------------------------------------------------


def test_a_member_that_returns_gets_what_it_lacks() -> None:
    writer = serving()
    writer.disconnected(3)
    write(writer)
    send_all(writer)
    ack(writer, 1, 2)
    ack(writer, 2, 2)
    writer.connected(3)
    assert writer.take_orders() == [Seal(3, 2)]
    writer.sealed(3, 2, answer((EPOCH, 1), commit=1))
    assert send_all(writer) == {3: [2]}


def test_a_divergent_tail_is_overwritten() -> None:
    writer = make()
    for replica in (1, 2):
        writer.sealed(replica, 1, answer())
    send_all(writer)
    writer.sealed(3, 1, answer((4, 7), history=[(4, 1)]))
    assert send_all(writer) == {3: [1]}
    assert not writer.peers[3].fresh


def lagging() -> Writer:
    """Member 3 is further behind than the window."""
    writer = serving(window_records=8)
    writer.disconnected(3)
    for _ in range(20):
        write(writer)
        send_all(writer)
        for replica in (1, 2):
            ack(writer, replica, writer.window.last, applied=writer.window.last)
        writer.take_done()
    writer.connected(3)
    writer.take_orders()
    writer.sealed(3, 2, answer((EPOCH, 1), commit=1))
    return writer


def test_a_member_behind_the_window_is_copied() -> None:
    writer = lagging()
    assert writer.peers[3].status is Status.LAGGING and send_all(writer) == {}
    writer.tick(10)
    assert writer.take_orders() == [
        CopyOrder(3, 3, 2, Position(EPOCH, 21), False, ((EPOCH, 1),), ZERO_POSITION)
    ]
    writer.copy_started(3, 2)
    assert 3 not in send_all(writer), "an old session"
    writer.copy_started(3, 3)
    write(writer, "a")
    assert send_all(writer)[3] == [], "no space is granted in this session yet"
    ack(writer, 3, 21, flags=0)
    assert send_all(writer)[3] == [22]
    ack(writer, 3, 22, flags=0)
    ack(writer, 1, 22)
    assert writer.take_done() == [], "a copy counts for nothing"
    assert 3 not in writer.readable()
    ack(writer, 3, 22)
    assert writer.take_done() == ["a"] and 3 in writer.readable()


def test_a_full_member_does_not_stay_behind_for_ever() -> None:
    writer = make()
    for replica in (1, 2, 3):
        writer.sealed(replica, 1, answer(space_limit=ROOM if replica < 3 else 100, full=replica == 3))
    send_all(writer)
    for replica in (1, 2, 3):
        ack(writer, replica, 1, applied=1, limit=0, flags=WHOLE | (FULL if replica == 3 else 0))
    write(writer)
    assert send_all(writer) == {1: [2], 2: [2]}
    writer.tick(1000)
    writer.tick(4000)
    assert writer.peers[3].status is Status.STREAMING
    writer.tick(6000)
    assert writer.peers[3].status is not Status.STREAMING


def test_a_full_member_is_not_given_up_while_nobody_can_be_copied_from() -> None:
    writer = make()
    for replica in (1, 2, 3):
        writer.sealed(replica, 1, answer(space_limit=ROOM if replica < 3 else 100, full=replica == 3))
    send_all(writer)
    for replica in (1, 2, 3):
        ack(writer, replica, 1, applied=1, limit=0, flags=WHOLE | (FULL if replica == 3 else 0))
    write(writer)
    send_all(writer)
    writer.disconnected(1)
    writer.disconnected(2)
    for now in range(0, 7000, 1000):
        writer.tick(now)
    assert writer.readable() == [3]


def test_the_only_member_may_be_full_for_long() -> None:
    """Its device is filled by others between the grant and the write, as the connection breaks."""
    writer = serving((1,))
    ack(writer, 1, 1, applied=1)
    assert write(writer, "a") == 2
    writer.disconnected(1)
    writer.connected(1)
    back = answer((EPOCH, 1), commit=1, history=[(EPOCH, 1)], space_limit=0, full=True)
    writer.sealed(1, writer.peers[1].session, back)
    send_all(writer)
    for now in range(0, 7000, 1000):
        writer.tick(now)
        assert send_all(writer) == {} and writer.ended is None
    ack(writer, 1, 1, limit=ROOM)
    assert send_all(writer) == {1: [2]}


def test_the_source_of_a_copy_may_change() -> None:
    writer = lagging()
    writer.tick(10)
    writer.take_orders()
    writer.copy_started(3, 3)
    writer.nack(3, EPOCH, EPOCH, 21, 3, STALLED)
    writer.tick(20)
    assert writer.take_orders() == [
        CopyOrder(3, 4, 1, Position(EPOCH, 21), False, ((EPOCH, 1),), ZERO_POSITION)
    ]


def test_damaged_and_forked_members_begin_anew() -> None:
    writer = serving(sync=False)
    writer.connected(3)
    writer.sealed(3, 2, answer((8, 5), commit=5, history=[(8, 1)]))
    assert writer.peers[3].fresh, "it had applied what is in no other log"
    writer.connected(2)
    writer.sealed(2, 2, answer((EPOCH, 1), commit=1, damaged=True, whole=False))
    assert writer.peers[2].fresh


def test_refusals() -> None:
    writer = serving()
    writer.connected(3)
    writer.take_orders()
    writer.refused(3, 2, NoReplica("gone"))
    writer.tick(100)
    assert writer.take_orders() == [] and writer.status()["members"][3]["reason"] == "gone"
    writer.connected(3)
    writer.take_orders()
    writer.refused(3, 3, DeadlineExceeded("late"))
    writer.tick(400)
    assert writer.take_orders() == [Seal(3, 4)]
    writer.nack(2, EPOCH, EPOCH, 0, 1, NO_SESSION)
    assert writer.take_orders() == [Seal(2, 2)]


def test_read_leases_of_a_majority() -> None:
    writer = serving()
    assert writer.reads_until_ms() == 0
    writer.lease_renewed(1, 1, 1000)
    writer.lease_renewed(2, 9, 1000)
    assert writer.reads_until_ms() == 0, "the answer came on another connection"
    writer.lease_renewed(3, 1, 1200)
    assert writer.reads_until_ms() == 1000 + 980


# -- membership --------------------------------------------------------------------------------


def joint() -> Writer:
    writer = serving()
    writer.change((1, 2, 4))
    writer.connected(4)
    writer.take_orders()
    writer.sealed(4, 1, answer())
    writer.tick(10)
    assert writer.configurations == [(1, 2, 3), (1, 2, 4)]
    return writer


def test_both_majorities_are_needed() -> None:
    writer = joint()
    assert send_all(writer)[4] == [1, 2]
    ack(writer, 1, 2)
    ack(writer, 3, 2)
    assert writer.commit == 1
    writer.tick(20)
    assert writer.take_orders() == []
    ack(writer, 4, 2)
    assert writer.commit == 2
    writer.tick(30)
    assert writer.take_orders() == [ConfigurationReady((1, 2, 4))]
    writer.tick(40)
    assert writer.take_orders() == []


@pytest.mark.parametrize("committed", [True, False])
def test_outcome_of_a_change(committed: bool) -> None:
    writer = joint()
    send_all(writer)
    writer.change_committed((1, 2, 5))
    assert len(writer.configurations) == 2, "an answer about another change"
    if committed:
        writer.change_committed((1, 2, 4))
        assert writer.configurations == [(1, 2, 4)] and set(writer.peers) == {1, 2, 4}
    else:
        writer.change_refused((1, 2, 4))
        assert writer.configurations == [(1, 2, 3)] and set(writer.peers) == {1, 2, 3}
    writer.validate()
