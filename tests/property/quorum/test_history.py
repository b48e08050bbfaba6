"""Epoch histories, the read map and states against naive models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moorage.quorum import history as epochs
from moorage.quorum.read_map import ReadMap
from moorage.quorum.record import Position
from moorage.quorum.state import CopyState, MemberState

# a log as the list of the epochs of its records
LOGS = st.lists(st.integers(1, 5), max_size=14).map(sorted)


def history_of(log: list[int]) -> epochs.History:
    history: epochs.History = []
    for at, epoch in enumerate(log):
        epochs.extend(history, epoch, at + 1)
    return history


@given(LOGS)
def test_epoch_at(log: list[int]) -> None:
    history = history_of(log)
    assert [epochs.epoch_at(history, lsn) for lsn in range(1, len(log) + 1)] == log


@given(LOGS, st.integers(1, 15))
def test_cut(log: list[int], lsn: int) -> None:
    history = history_of(log)
    epochs.cut(history, lsn)
    assert history == history_of(log[: lsn - 1])


@given(LOGS, LOGS, st.data())
def test_common(ours: list[int], theirs: list[int], data: st.DataObject) -> None:
    """Logs that obey Prefix: equal epoch at an LSN means equal up to there."""
    shared = data.draw(st.integers(0, min(len(ours), len(theirs))))
    ours = ours[:shared] + [e * 2 for e in ours[shared:]]
    theirs = ours[:shared] + [e * 2 + 1 for e in theirs[shared:]]
    ours, theirs = sorted(ours), sorted(theirs)
    equal = 0
    while equal < min(len(ours), len(theirs)) and ours[equal] == theirs[equal]:
        equal += 1
    if any(a == b for a, b in zip(ours[equal:], theirs[equal:], strict=False)):
        return  # no pair of logs that the protocol can make
    found = epochs.common(history_of(ours), len(ours), history_of(theirs), len(theirs), 0)
    assert found <= equal
    run_begins = max([0, *(lsn for lsn in range(equal) if lsn and ours[lsn] != ours[lsn - 1])])
    assert found >= min(equal, run_begins)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=60), st.integers(1, 4))
def test_read_map_never_asks_for_less(writes: list[tuple[int, bool]], size: int) -> None:
    reads = ReadMap(3, size)
    exact: dict[int, int] = {}
    everywhere = 3
    for lsn, (chunk, all_chunks) in enumerate(writes, start=4):
        if all_chunks:
            reads.wrote_all(lsn)
            exact.clear()
            everywhere = lsn
        else:
            reads.wrote(chunk, lsn)
            exact[chunk] = lsn
        for asked in range(7):
            assert exact.get(asked, everywhere) <= reads.must_see(asked) <= lsn


@given(LOGS.filter(bool), st.integers(0, 1 << 62), st.data())
def test_states_come_back(log: list[int], writer: int, data: st.DataObject) -> None:
    commit = data.draw(st.integers(1, len(log)))
    begun = CopyState(Position(log[0], 1), 0, Position(9, 9), Position(1, 1), Position(9, 12), True, 3)
    copy = data.draw(st.sampled_from((None, begun)))
    state = MemberState(
        5,
        epoch=9,
        writer=writer,
        history=history_of(log),
        commit=commit,
        last=len(log),
        copy=copy,
        damaged="x",
        promise_lost=data.draw(st.booleans()),
    )
    again = MemberState.unpack(state.pack())
    assert again.pack() == state.pack()
    assert again.position == state.position and again.vote == state.vote and again.newest == state.newest
