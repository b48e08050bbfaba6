"""One replica: what it promises, accepts, acknowledges and serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moorage.quorum.history import reach
from moorage.quorum.lease import LEASE_MS
from moorage.quorum.member import (
    BEHIND,
    FENCED,
    FLUSH,
    FULL,
    GAP,
    NO_ROOM,
    NO_SESSION,
    OK,
    WHOLE,
    Member,
)
from moorage.quorum.orders import Note
from moorage.quorum.record import BLOCK_SIZE, Kind, Position, Record
from moorage.quorum.state import MemberState
from moorage.wire.errors import Fenced, Invalid, InvariantViolation, ProtocolError, Stale

Make = Callable[..., Any]


def test_seal_is_answered_once_it_is_durable(hands: Make) -> None:
    one = hands()
    assert one.member.seal(1, 5, 1, 0, one.lease)
    assert one.member.take_seal_answer(0) is None
    assert one.effects() == ["note"]
    assert one.member.take_seal_answer(0) is None
    one.member.persisted(one.tickets[-1])
    session, answer = one.member.take_seal_answer(0)
    assert (session, answer.epoch, answer.vote, answer.whole) == (1, 5, (0, 0), True)


def test_seal_of_a_lower_epoch_or_another_writer_is_refused(hands: Make) -> None:
    one = hands()
    one.seal(5)
    for epoch, writer in ((4, 1), (5, 2)):
        with pytest.raises(Fenced) as caught:
            one.member.seal(9, epoch, writer, 0, one.lease)
        assert caught.value.details["promised"] == 5
    assert not one.member.seal(1, 5, 1, 0, one.lease), "a repeated message"
    assert one.seal(5) is not None, "a new session of the same writer"


def test_refusal_begins_with_the_promise(hands: Make) -> None:
    one = hands()
    one.log([(1, 1)], epoch=1)
    assert one.append((1, 2), epoch=1) == OK
    one.member.seal(1, 2, 7, 0, one.lease)
    assert one.append((1, 3), epoch=1) == FENCED
    assert one.append((1, 3), epoch=1, writer=7) == FENCED
    assert one.effects() == ["append [(1, 2)]", "note"], "the promise is logged behind what was accepted"
    one.member.persisted(one.tickets[0])
    assert one.member.take_seal_answer(0) is None
    one.member.persisted(one.tickets[1])
    assert one.member.take_seal_answer(0)[1].vote == (1, 2)


def test_promise_is_not_the_last_epoch(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    assert one.seal(6, writer=2).vote == (1, 2)


def test_sessions(hands: Make) -> None:
    one = hands()
    assert one.append((1, 1), epoch=1, session=1) == NO_SESSION
    one.seal(1)
    assert one.append((1, 1), epoch=1, session=2) == NO_SESSION
    assert one.append((1, 1), epoch=2) == NO_SESSION
    assert one.append((1, 1), epoch=1) == OK
    one.seal(1)
    assert one.append((1, 2), epoch=1, session=1) == NO_SESSION


def test_records_must_follow(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    assert one.append((1, 4), epoch=1) == GAP
    one.seal(3)
    assert one.append((3, 3), epoch=3, prev=(2, 2)) == GAP
    assert one.append((3, 3), epoch=3, prev=(1, 2)) == OK


def test_a_record_that_is_there_is_acknowledged_again(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2), (1, 3)], epoch=1)
    one.member.take_ack()
    assert one.append((1, 1), (1, 2), epoch=1, prev=(0, 0)) == OK
    assert one.effects() == []
    assert one.member.take_ack()[1:3] == (3, 3)
    assert one.member.state.last == 3, "what matches is never removed"


def test_a_conflicting_record_cuts(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2), (1, 3), (1, 4)], epoch=1, commit=1)
    one.seal(3)
    assert one.member.matched == 1
    assert one.append((1, 2), (3, 3), epoch=3, prev=(1, 1)) == OK
    assert one.sync() == ["append [(3, 3)]"]
    assert one.member.state.position == (3, 3)
    assert one.member.take_ack()[1:3] == (3, 3)


def test_a_committed_record_is_never_cut(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    one.append(epoch=1, prev=(1, 2), commit=2)
    one.seal(3)
    assert one.append((3, 2), epoch=3, prev=(1, 1)) == OK
    assert one.sync() == [] and one.member.state.position == (1, 2)


def test_durable_falls_back_when_what_was_handed_over_is_cut(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2), (1, 3)], epoch=1)
    one.append((1, 4), (1, 5), epoch=1)
    one.effects()
    late = one.tickets[-1]
    one.seal(2)
    one.append((2, 4), epoch=2, prev=(1, 3))
    one.effects()
    one.member.persisted(late)
    assert one.member.durable == 3
    one.sync()
    assert one.member.durable == 4


def test_an_unmatched_tail_is_not_applied(hands: Make) -> None:
    one = hands()
    one.log([(4, 1), (4, 2), (4, 3)], epoch=4)
    one.append(epoch=4, prev=(4, 1), commit=1)
    one.seal(5)
    assert one.append(epoch=5, prev=(4, 1), commit=3) == OK
    one.effects()
    assert one.applied == 1
    one.append((5, 2), epoch=5, prev=(4, 1), commit=3)
    one.effects()
    assert one.applied == 2


def test_ack_in_sync_waits_for_durability(hands: Make) -> None:
    one = hands()
    one.log([(1, 1)], epoch=1)
    one.member.take_ack()
    one.append((1, 2), epoch=1)
    assert one.member.take_ack() is None
    one.sync()
    assert one.member.take_ack()[1:3] == (2, 2)


def test_ack_in_writeback_tells_both(hands: Make) -> None:
    one = hands(sync=False)
    one.seal(1)
    one.append((1, 1), epoch=1)
    assert one.member.take_ack()[1:3] == (1, 0)
    one.append(epoch=1, prev=(1, 1), flags=FLUSH)
    assert one.effects() == ["append [(1, 1)]", "sync"]
    one.sync()
    assert one.member.take_ack()[1:3] == (1, 1)


def test_reads(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    assert one.member.may_read(2, 1) == NO_SESSION
    assert one.member.may_read(1, 3) == BEHIND
    assert one.member.may_show(Position(1, 1)) is None, "a reader without an epoch vouches for nothing"
    assert one.member.may_read(1, 2) == OK
    assert one.effects() == ["apply 2"]
    assert one.member.may_show(Position(1, 2)) == 2
    one.seal(2)
    assert one.member.may_read(1, 1) == FENCED
    assert one.member.may_read(0, 1) == FENCED


def test_what_a_recovery_may_have_cut_off_is_not_shown(hands: Make) -> None:
    """Records 3 and 4 of epoch 1 were applied here, and lost everywhere else before epoch 2 began at 3."""
    one = hands(sync=False)
    one.log([(1, 1), (1, 2), (1, 3), (1, 4)], epoch=1, commit=4)
    show = one.member.may_show
    assert show(Position(0, 0)) == 0, "nobody had attached when this reader came"
    assert (show(Position(1, 0)), show(Position(1, 4))) == (1, 4)
    assert show(Position(1, 5)) is None
    assert show(Position(2, 0)) is None and show(Position(2, 3)) is None
    one.seal(2)
    assert show(Position(2, 0)) is None, "a promise says nothing of what is in the log"
    one.member.damage("copied anew")
    assert show(Position(1, 0)) is None


def test_where_a_log_reaches_a_position() -> None:
    history = [(2, 4), (5, 10)]
    for position, lsn in [
        *(((0, 0), 0), ((0, 7), 7)),
        *(((1, 0), 4), ((1, 9), 4)),  # that epoch left nothing behind: the next one is after it
        *(((2, 0), 4), ((2, 9), 9), ((2, 10), 10)),
        *(((3, 99), 10), ((5, 0), 10), ((5, 12), 12), ((6, 0), None)),
    ]:
        assert reach(history, Position(*position)) == lsn, position
    assert reach([], Position(1, 0)) is None


def test_higher_seal_waits_for_the_read_lease(hands: Make) -> None:
    one = hands()
    one.seal(1)
    one.lease.renew(500)
    assert one.seal(2, writer=2, now_ms=600) is None
    assert one.member.seal_wait_until_ms == 500 + LEASE_MS
    assert one.append((1, 1), epoch=1) == FENCED, "only the answer waits"
    assert one.member.take_seal_answer(500 + LEASE_MS - 1) is None
    assert one.member.take_seal_answer(500 + LEASE_MS) is not None


def test_lease_of_an_earlier_connection_still_holds(hands: Make) -> None:
    one = hands()
    one.seal(1)
    one.lease.renew(500)
    assert one.seal(1, now_ms=510) is not None, "the holder itself need not wait"
    assert one.seal(2, writer=2, now_ms=600) is None


def test_release(hands: Make) -> None:
    one = hands()
    one.seal(1)
    one.lease.renew(500)
    assert one.seal(2, writer=2, now_ms=600) is None
    one.member.release(1, 9)
    assert one.member.take_seal_answer(600) is None
    one.member.release(1, 1)
    assert one.member.take_seal_answer(600) is not None


def test_restart_holds_back_too(hands: Make) -> None:
    one = hands(state=MemberState(1, epoch=3, writer=1), now_ms=100)
    assert one.seal(4, now_ms=100 + LEASE_MS - 1) is None
    assert one.seal(4, now_ms=100 + LEASE_MS) is not None


def test_space(hands: Make) -> None:
    one = hands()
    one.seal(1)
    data, sums = bytes(BLOCK_SIZE), bytes(8)

    def write(lsn: int, epoch: int = 1) -> int:
        record = Record(epoch, lsn, Kind.WRITE, 0, 0, 1, sums, data)
        return one.member.append(1, 1, one.session, 1 if lsn > 1 else 0, lsn - 1, 0, 0, [record])

    cost = 48 + 8 + BLOCK_SIZE
    one.member.space_limit = cost
    assert write(1) == OK
    assert one.member.room == 0
    assert write(2) == NO_ROOM
    assert one.append((1, 2), epoch=1) == OK, "a discard needs no grant"
    one.sync()
    one.member.take_ack()
    one.member.grant(0, True)
    assert one.member.take_ack()[4:] == (cost, WHOLE | FULL)
    one.member.grant(cost, False)
    assert write(3) == OK


def test_records_of_a_later_epoch_than_the_writers_are_refused(hands: Make) -> None:
    one = hands()
    one.seal(3)
    with pytest.raises(ProtocolError):
        one.append((3, 1), (4, 2), epoch=3, prev=(0, 0))
    assert one.member.state.last == 0
    assert one.append((2, 1), (3, 2), epoch=3, prev=(0, 0)) == OK, "recovered ones are of earlier epochs"


def test_copy(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2), (1, 3)], epoch=1, commit=2)
    answer = one.seal(4)
    assert answer.vote == (1, 3)
    one.member.copy(3, 4, 1, "source", Position(4, 10), False)
    assert one.effects()[0] == "note"
    assert not one.member.whole and one.member.state.vote == (1, 3)
    assert one.append((4, 11), epoch=4, session=3, commit=11) == OK
    assert one.member.take_ack() is None, "nothing is acknowledged before the copy is noted"
    one.sync()
    assert one.member.take_ack()[1:] == (11, 11, 11, one.member.space_limit, 0)
    assert one.member.may_read(4, 11) == BEHIND
    assert not one.member.pulled(1, Position(4, 9)), "a source below the base"
    assert one.member.pulled(1, Position(4, 12))
    one.member.copied(1)
    one.sync()
    assert not one.member.whole, "what the copy is ahead of is not applied"
    assert one.append((4, 12), epoch=4, session=3, commit=12) == OK
    one.effects()
    assert not one.member.whole, "not before it is durable"
    one.sync()
    assert one.member.whole and one.member.state.vote == (4, 12)


def test_copy_is_resumed_by_the_same_base(hands: Make) -> None:
    one = hands()
    one.seal(1)
    one.member.copy(2, 1, 1, "a", Position(1, 10), False)
    one.sync()
    one.session = 2
    one.append((1, 11), epoch=1)
    one.member.copy(3, 1, 1, "b", Position(1, 10), False)
    assert one.member.state.last == 11
    with pytest.raises(Stale):
        one.member.copy(3, 1, 1, "b", Position(1, 20), False)
    with pytest.raises(Stale):
        one.member.copy(4, 1, 1, "b", Position(1, 5), False)


@pytest.mark.parametrize(
    ("base", "history", "floor"),
    [
        ((-1, -5), [], (0, 0)),
        ((1, 0), [], (0, 0)),
        ((0, 5), [], (0, 0)),
        ((3, 5), [], (0, 0)),
        ((1, 1 << 63), [], (0, 0)),
        ((1, 5), [(1, 0)], (0, 0)),
        ((1, 5), [(1, 6)], (0, 0)),
        ((1, 5), [(1, 3), (1, 4)], (0, 0)),
        ((1, 5), [(1, 3), (2, 3)], (0, 0)),
        ((1, 5), [(3, 1)], (0, 0)),
        ((1, 5), [], (3, 6)),
        ((1, 5), [], (1, -6)),
    ],
)
def test_an_order_to_copy_that_makes_no_sense_leaves_the_member_as_it_was(
    hands: Make, base: tuple[int, int], history: list[tuple[int, int]], floor: tuple[int, int]
) -> None:
    one = hands()
    one.seal(2)
    before = one.member.state.pack()
    with pytest.raises(Invalid):
        one.member.copy(2, 2, 1, "a", Position(*base), True, history, Position(*floor))
    assert one.member.state.pack() == before and one.member.whole and not one.effects()
    assert one.append((1, 1), epoch=2, prev=(0, 0)) == OK, "its session goes on"


def test_each_fresh_copy_drops_the_index_once(hands: Make) -> None:
    one = hands()
    one.seal(1)
    before, dropped = MemberState(1), []

    def notes() -> None:
        nonlocal before
        for effect in one.member.take_effects():
            if isinstance(effect, Note):
                state = MemberState.unpack(effect.state)
                dropped.append(state.drops_index(before))
                before = state

    for session in (2, 3):  # it was ended by a new SEAL; nobody has written meanwhile
        one.member.copy(session, 1, 1, "a", Position(1, 5), True)
        assert one.member.pulled(session - 1, Position(1, 8))
        notes()
    assert dropped == [True, False, True, False]


def test_source(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    one.append(epoch=1, prev=(1, 2), commit=2)
    assert one.member.may_pull(2) == (1, 2)
    assert one.member.may_pull(3) is None
    one.member.damage("rot")
    assert one.member.may_pull(1) is None


def test_damage(hands: Make) -> None:
    one = hands()
    one.log([(1, 1), (1, 2)], epoch=1)
    one.member.damage("record 1 is gone")
    one.sync()
    assert one.member.may_read(1, 1) == BEHIND
    assert one.append((1, 3), epoch=1) == NO_SESSION
    answer = one.seal(2)
    assert answer.damaged and not answer.whole
    one.member.copy(5, 2, 1, "a", Position(2, 9), True)
    one.sync()
    one.member.copied(1)
    one.sync()
    assert one.member.whole and not one.member.state.damaged


def _copying(one: Any, *, fresh: bool = False) -> None:
    one.log([(1, 1)], epoch=1, commit=1)
    one.member.copy(5, 1, 1, "a", Position(1, 5), fresh)
    one.sync()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_copy_under_way_does_not_repair_what_is_found_meanwhile(hands: Make, fresh: bool) -> None:
    one = hands()
    _copying(one, fresh=fresh)
    one.member.damage("a page is gone")
    assert not one.member.pulled(1, Position(1, 6))
    one.member.copied(1)
    one.sync()
    assert not one.member.whole and one.member.state.damaged and one.member.state.copy
    # Its writer hears of it with whatever it does next, and seals anew.
    assert one.append((1, 6), epoch=1, session=5) == NO_SESSION
    with pytest.raises(Stale):
        one.member.copy(6, 1, 1, "b", Position(1, 5), False)
    assert one.seal(1, session=7).damaged
    one.member.copy(8, 1, 1, "a", Position(1, 7), True)
    one.sync()
    one.member.copied(2)
    one.sync()
    assert one.member.whole and not one.member.state.damaged


def test_a_restart_amid_a_copy_needs_a_fresh_one_when_it_finds_damage(hands: Make) -> None:
    """The store calls a replica damaged whose copy was not fresh: what was there before it may be lost."""
    one = hands()
    _copying(one)
    state = one.member.state.clone()
    state.damaged = "a group commit cannot be read"
    again = hands(state=state)
    assert again.seal(2, session=1, now_ms=LEASE_MS).damaged
    with pytest.raises(Stale):
        again.member.copy(2, 2, 1, "a", Position(1, 5), False)
    with pytest.raises(Stale):
        again.member.copy(2, 2, 1, "a", Position(1, 9), False)
    again.member.copy(2, 2, 1, "a", Position(1, 5), True)
    again.member.copy(3, 2, 1, "b", Position(1, 5), False)  # another source for the fresh one
    again.sync()
    again.member.copied(2)
    again.sync()
    assert again.member.whole


def test_damage_found_as_it_becomes_whole(hands: Make) -> None:
    one = hands()
    _copying(one)
    one.member.copied(1)
    assert one.member.state.copy is None  # noted, and not durable yet
    one.member.damage("a page is gone")
    one.sync()
    assert not one.member.whole and one.member.may_read(1, 1) == BEHIND


def test_no_member_is_made_of_what_may_have_lost_a_promise() -> None:
    with pytest.raises(InvariantViolation):
        Member(MemberState(1, promise_lost=True), sync=True, now_ms=0, tail_from=lambda: 1)


def test_cutting_what_matched_is_our_own_mistake(hands: Make) -> None:
    one = hands()
    one.log([(2, 1), (2, 2)], epoch=2)
    with pytest.raises(InvariantViolation):
        one.append((1, 2), epoch=2, prev=(2, 1))
