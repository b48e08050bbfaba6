"""What a disk or a peer says of a member: read, or refused with the reader's own error."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from moorage.quorum.orders import SealAnswer
from moorage.quorum.record import Position
from moorage.quorum.state import CopyState, MemberState
from moorage.wire.errors import Corrupt, InvariantViolation

P = Position
STATE = MemberState(
    7,
    epoch=2,
    writer=5,
    history=[(1, 1), (2, 4)],
    commit=4,
    last=6,
    copy=CopyState(P(1, 3), 2, P(2, 5), P(1, 2)),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, "7"),
        (2, None),
        (3, -1),
        (4, [["1", 1]]),
        (4, [[1, 4], [2, 1]]),  # out of order
        (4, [[2, 6]]),  # does not reach the commit LSN
        (5, 7),  # past the last record
        (5, "4"),
        (6, True),
        (7, [[[1, 5], [2, 5], [1, 2], [0, 0]], 2, False, 1]),  # a base that is not committed
        (7, [[[1, 3], [2, 5], [1, 2], [0, 0]], 2, 0, 1]),
        (7, [[[1, 3]], 2, False, 1]),
        (7, "copy"),
        (8, b"bytes"),
        (9, 1),
    ],
)
def test_a_state_that_makes_no_sense_is_corrupt(field: int, value: Any) -> None:
    assert MemberState.unpack(STATE.pack()).pack() == STATE.pack()
    fields = msgpack.unpackb(STATE.pack())
    fields[field] = value
    with pytest.raises(Corrupt) as caught:
        MemberState.unpack(msgpack.packb(fields))
    assert not isinstance(caught.value, InvariantViolation)


ANSWER = SealAnswer(
    2, P(2, 6), P(2, 6), 4, [(1, 1), (2, 4)], P(2, 4), True, False, P(0, 0), 3, 1 << 20, False
)


@pytest.mark.parametrize(
    "packed",
    [
        None,
        7,
        {},
        [],
        ANSWER.pack()[:-1],
        ["2", *ANSWER.pack()[1:]],
        [-1, *ANSWER.pack()[1:]],
        [2, [[2, 6], [2, 6], [2, 4]], *ANSWER.pack()[2:]],
        [2, [[2, 6], [2, 6], [2, 4], [0, 1 << 63]], *ANSWER.pack()[2:]],
        [*ANSWER.pack()[:3], [[1, 1, 1]], *ANSWER.pack()[4:]],
        [*ANSWER.pack()[:3], [1], *ANSWER.pack()[4:]],
        [*ANSWER.pack()[:-1], 0.5],
    ],
)
def test_an_answer_to_seal_that_makes_no_sense(packed: Any) -> None:
    assert SealAnswer.unpack(ANSWER.pack()) == ANSWER
    with pytest.raises(ValueError, match="answer to SEAL"):
        SealAnswer.unpack(packed)
