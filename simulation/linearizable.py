"""Is there an order of these operations in which a sequential thing would have answered the same?

The algorithm is Wing and Gong's search (1993) with Lowe's memory of configurations seen (2017): operations
are tried in the order of their invocation, an operation may come next if it was invoked before every other
one that is left has returned. Histories are partitioned by key first (linearizability is local, Herlihy and
Wing 1990); an operation without a known outcome may take effect at any later time, or never.

Owns the search. Knows nothing of what is modelled: a ``Model`` says which states an operation may lead to, so
nondeterministic ones (a crash that may lose a suffix) are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

# From a state, by an operation, to the states that it may lead to: none when it cannot have answered so.
Step = Callable[[Any, Any], Iterable[Hashable]]

STEPS_MAX = 2_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One operation on one key. ``returned`` is None when its outcome is not known: ``action`` then says what
    it would have done. Of unknown ones that are ``alike`` any may stand for another: the first is tried only.
    """

    invoked: float
    returned: float | None
    action: Any
    alike: Hashable = None


class TooHard(Exception):
    """The search was given up: neither yes nor no."""


class _Node:
    __slots__ = ("after", "call", "index", "next", "previous", "returns")

    def __init__(self, call: Call | None, index: int) -> None:
        self.call = call
        self.index = index
        self.previous: _Node | None = None
        self.next: _Node | None = None
        self.returns: _Node | None = None  # of a node that is an invocation: the one where it returns
        self.after = 0  # bit of the one alike that is to be tried before


def _build(calls: list[Call]) -> _Node:
    """All invocations and returns in order of time, behind a head; an invocation comes before a return of the
    same moment (they overlap)."""
    events: list[tuple[float, int, int, _Node]] = []
    alike: dict[Hashable, int] = {}  # -> bit of the last one
    for index, call in sorted(enumerate(calls), key=lambda each: each[1].invoked):
        node = _Node(call, index)
        if call.returned is None and call.alike is not None:
            node.after = alike.get(call.alike, 0)
            alike[call.alike] = 1 << index
        events.append((call.invoked, 0, index, node))
        if call.returned is not None:
            node.returns = _Node(None, index)
            events.append((call.returned, 1, index, node.returns))
    events.sort(key=lambda each: each[:3])
    head = last = _Node(None, -1)
    for *_, node in events:
        last.next, node.previous = node, last
        last = node
    return head


def _lift(node: _Node) -> None:
    """Take an operation out of the list."""
    for each in (node, node.returns):
        if each is not None:
            assert each.previous is not None
            each.previous.next = each.next
            if each.next is not None:
                each.next.previous = each.previous


def _put_back(node: _Node) -> None:
    for each in (node.returns, node):
        if each is not None:
            assert each.previous is not None
            each.previous.next = each
            if each.next is not None:
                each.next.previous = each


def is_linearizable(calls: list[Call], initial: Hashable, step: Step) -> bool:
    """Whether some order explains the history of one key. Raises :class:`TooHard`."""
    head = _build(calls)
    missing = sum(call.returned is not None for call in calls)  # that must take effect
    if not missing:
        return True
    state = initial
    done = 0  # bits of the operations that have taken effect
    seen: set[tuple[int, Hashable]] = set()
    # (node, state before, states still to try): the choices made so far
    chosen: list[tuple[_Node, Hashable, list[Hashable]]] = []
    node = head.next
    for _ in range(STEPS_MAX):
        if node is not None and node.call is not None:
            fresh = []
            bits = done | 1 << node.index
            waits = node.after & ~done
            for next_state in () if waits else step(state, node.call.action):
                if (bits, next_state) not in seen:
                    seen.add((bits, next_state))
                    fresh.append(next_state)
            if fresh:
                chosen.append((node, state, fresh))
                state, done = fresh.pop(), bits
                missing -= node.returns is not None
                if not missing:
                    return True
                _lift(node)
                node = head.next
            else:
                node = node.next
            continue
        # A return of what has not taken effect, or the end: one of the choices was wrong.
        while True:
            if not chosen:
                return False
            last, before, others = chosen[-1]
            if others:
                state = others.pop()  # the same operation, with another effect
                node = head.next
                break
            chosen.pop()
            _put_back(last)
            missing += last.returns is not None
            state, done = before, done & ~(1 << last.index)
            node = last.next
            if node is not None:
                break
            # nothing behind it to try: go on going back
        continue
    raise TooHard(f"{len(calls)} operations")
