"""The checker itself: it accepts what some order explains, and rejects hand-made histories that none does."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.simulation.linearizable import Call, is_linearizable


def register(state: Hashable, action: tuple[str, int]) -> Iterable[Hashable]:
    kind, value = action
    if kind == "write":
        return [value]
    return [state] if state == value else []


def w(value: int, invoked: float, returned: float | None) -> Call:
    return Call(invoked, returned, ("write", value))


def r(value: int, invoked: float, returned: float) -> Call:
    return Call(invoked, returned, ("read", value))


GOOD: dict[str, list[Call]] = {
    "nothing": [],
    "one after the other": [w(1, 0, 1), r(1, 2, 3), w(2, 4, 5), r(2, 6, 7)],
    "a read sees the old value of a write under way": [w(1, 0, 9), r(0, 1, 2), r(1, 3, 4)],
    "two writes at once, in either order": [w(1, 0, 5), w(2, 0, 5), r(1, 6, 7)],
    "unknown, and it took effect much later": [w(1, 0, None), r(0, 1, 2), w(2, 3, 4), r(1, 5, 6)],
    "unknown, and it never did": [w(1, 0, None), r(0, 1, 2), r(0, 9, 10)],
    "ends at the moment when another begins": [w(1, 0, 1), r(0, 1, 2)],
}
BAD: dict[str, list[Call]] = {
    "a read of what nobody wrote": [r(1, 0, 1)],
    "an acknowledged write is lost": [w(1, 0, 1), r(0, 2, 3)],
    "back to the old value": [w(1, 0, 9), r(1, 1, 2), r(0, 3, 4)],
    "readers disagree about the order of two writes": [
        w(1, 0, 5),
        w(2, 0, 5),
        r(1, 6, 7),
        r(2, 8, 9),
        r(1, 10, 11),
    ],
    "read before it was begun": [r(1, 0, 1), w(1, 2, 3)],
    "an unknown write took effect twice": [w(1, 0, None), r(1, 1, 2), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)],
    "an unknown write took effect before it was begun": [r(1, 0, 1), w(1, 2, None)],
    "a zombie's write behind its successor's": [w(1, 0, 1), w(2, 2, 3), r(2, 4, 5), r(1, 6, 7)],
}


@pytest.mark.parametrize("name", GOOD)
def test_some_order_explains_it(name: str) -> None:
    assert is_linearizable(GOOD[name], 0, register)


@pytest.mark.parametrize("name", BAD)
def test_no_order_explains_it(name: str) -> None:
    assert not is_linearizable(BAD[name], 0, register)


def test_a_state_may_lead_to_several() -> None:
    """A cell that a crash may set back to what was flushed."""

    def cell(state: Any, action: tuple[str, int]) -> Iterable[Hashable]:
        kind, value = action
        if kind == "write":
            return [(*state, value)]
        if kind == "flush":
            return [state[-1:]]
        if kind == "crash":
            return [state[:count] for count in range(1, len(state) + 1)]
        return [state] if state[-1] == value else []

    def history(*actions: tuple[str, int]) -> list[Call]:
        return [Call(at, at + 0.5, action) for at, action in enumerate(actions)]

    lost = history(("write", 1), ("write", 2), ("crash", 0), ("read", 0))
    assert is_linearizable(lost, (0,), cell)
    kept = history(("write", 1), ("flush", 0), ("write", 2), ("crash", 0), ("read", 1))
    assert is_linearizable(kept, (0,), cell)
    gone = history(("write", 1), ("flush", 0), ("write", 2), ("crash", 0), ("read", 0))
    assert not is_linearizable(gone, (0,), cell)


def brute_force(calls: list[Call]) -> bool:
    """Every order of every choice of the unknown ones."""
    known = [call for call in calls if call.returned is not None]
    unknown = [call for call in calls if call.returned is None]
    for choice in range(1 << len(unknown)):
        taken = known + [call for at, call in enumerate(unknown) if choice >> at & 1]
        for order in permutations(taken):
            late = any(
                (b.returned is not None and b.returned < a.invoked)
                for at, a in enumerate(order)
                for b in order[at + 1 :]
            )
            if late:
                continue
            state: Hashable = 0
            for call in order:
                found = list(register(state, call.action))
                if not found:
                    break
                state = found[0]
            else:
                return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    calls = []
    for _ in range(draw(st.integers(0, 5))):
        invoked = draw(st.integers(0, 12))
        returned = invoked + draw(st.integers(1, 6))
        kind = draw(st.sampled_from(("write", "read")))
        known = kind == "read" or draw(st.booleans())
        calls.append(Call(invoked, returned if known else None, (kind, draw(st.integers(0, 2)))))
    return calls


@settings(max_examples=400)
@given(histories())
def test_it_agrees_with_trying_every_order(calls: list[Call]) -> None:
    assert is_linearizable(calls, 0, register) == brute_force(calls)
