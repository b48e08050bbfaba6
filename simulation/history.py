"""What clients asked and what they were told, and whether one order explains it.

Owns the record of every operation (invoked, returned, or never), the models of what a block of a volume and
the name of a volume are, and the check of the whole history, key by key. Must never drop an operation whose
outcome is not known.

The model of a block: the ids of the operations that wrote each of its sectors, so a torn block, a lost
write, an old value and an undone one are all the same: no order explains them. In ``writeback`` mode a
takeover may set the block back to any version since the last flush, and only then. What a holder wrote takes
effect before the attach of the next one returns, or never: also where nobody looked at the moment. What a
snapshot shows of a block is a read of the time when it was created (views.py), and keeps what it shows as a
flush does; a rollback writes all blocks as a snapshot shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from moorage.simulation.linearizable import Call, is_linearizable
from moorage.simulation.operation import (
    EMPTY,
    FOREVER,
    SECTORS,
    SMALLER,
    NotLinearizable,
    Operation,
    count_in,
    sectors_in,
)
from moorage.simulation.views import View, find_views


@dataclass
class History:
    durability: dict[str, str] = field(default_factory=dict)  # of each volume
    operations: list[Operation] = field(default_factory=list)
    _takes: dict[str, list[Operation]] = field(default_factory=dict)  # by name, those that gave an epoch
    _fences: dict[tuple[str, int], float] = field(default_factory=dict)

    def begin(self, now: float, client: str, kind: str, name: str, first: int = 0, end: int = 0) -> Operation:
        made = Operation(len(self.operations) + 1, client, kind, name, first, end, now)
        self.operations.append(made)
        return made

    # -- judging ---------------------------------------------------------------------------------------------

    def check(self) -> int:
        """Raises NotLinearizable; returns the number of keys."""
        self._takes, self._fences = defaultdict(list), {}
        for each in self.operations:
            if each.kind == "take" and each.found:
                self._takes[each.name].append(each)
        survived = self._find_survived()
        self._complete_rollbacks()
        blocks: dict[tuple[str, int], list[Operation]] = defaultdict(list)
        whole: dict[str, list[Operation]] = defaultdict(list)  # flushes and takeovers touch every block
        names: dict[str, list[Operation]] = defaultdict(list)
        for each in self.operations:
            if each.gone or each.number in survived:
                continue
            if each.kind in ("flush", "take"):
                whole[each.name].append(each)
            elif each.kind in ("create", "resize", "delete", "show"):
                names[each.name].append(each)
            elif each.kind not in ("restore", "shown") and (each.kind != "read" or each.returned is not None):
                for block in range(each.first // SECTORS, (each.end - 1) // SECTORS + 1):
                    blocks[each.name, block].append(each)
        views = find_views(self.operations, blocks)
        self._add_rollbacks(views, blocks)
        for view in views.values():
            view.narrow(blocks, self._reverting(whole))
        shown = {key for view in views.values() for key in view.shown}
        for key in sorted({*blocks, *shown}):
            name, block = key
            operations = blocks[key]
            at = [view for view in views.values() if key in view.shown]
            writeback = self.durability[name] == "writeback"
            if writeback:
                # Before the first write there is nothing that a flush could keep, or a takeover lose.
                begun = min(
                    (each.invoked for each in operations if each.kind != "read"), default=float("inf")
                )
                operations = operations + [
                    each for each in whole[name] if each.returned is None or each.returned > begun
                ]
            wide = [view.as_read(key, narrow=False) for view in at]
            self._check_block(name, block, operations + wide, writeback)
            for view in at:
                if view.is_narrow:
                    self._check_block(name, block, _around(view, key, operations, at), writeback)
        for name, operations in whole.items():
            self._check_epochs(name, [each for each in operations if each.kind == "take" and each.found])
        for name, operations in names.items():
            calls = [Call(each.invoked, each.returned, each) for each in operations]
            if not is_linearizable(calls, 0, _name_step):
                raise NotLinearizable(f"volume {name}", operations)
        return len(blocks) + len(names)

    def _complete_rollbacks(self) -> None:
        """Nobody attaches before one is complete: one of unknown outcome is, where somebody did."""
        for each in self.operations:
            if each.kind == "restore" and each.returned is None:
                later = [take for take in self._takes[each.name] if take.found > each.epoch]
                after = min(later, key=lambda take: take.found, default=None)
                if after is not None and not after.snapshot:
                    each.returned = after.returned

    def _add_rollbacks(self, views: dict[str, View], blocks: dict[tuple[str, int], list[Operation]]) -> None:
        """To the blocks that somebody has looked at, or written."""
        for each in self.operations:
            if each.kind == "restore":
                shown = views[each.snapshot].shown
                for (name, block), operations in blocks.items():
                    if name == each.name:
                        operations.append(each.of_block(block, shown[name, block]))

    def _reverting(self, whole: dict[str, list[Operation]]) -> dict[str, list[Operation]]:
        """By volume, after which of its blocks may be as they were before."""
        found: dict[str, list[Operation]] = defaultdict(list)
        for name, operations in whole.items():
            if self.durability[name] == "writeback":
                found[name] += [each for each in operations if each.kind == "take"]
        for each in self.operations:
            if each.kind == "restore":
                found[each.name].append(each)
        return found

    def _check_epochs(self, name: str, takes: list[Operation]) -> None:
        """An epoch is given once, and a later attach gets a greater one."""
        takes = sorted(takes, key=lambda each: each.found)
        for former, later in pairwise(takes):
            if former.found == later.found or (later.returned or FOREVER) < former.invoked:
                raise NotLinearizable(f"epochs of volume {name}", [former, later])

    def _find_survived(self) -> set[int]:
        """Recoveries before a read (or attaches that came to nothing) after which a holder went on: all that
        it was acknowledged it has kept."""
        began = {each.number: each for takes in self._takes.values() for each in takes}
        used: dict[int, float] = {}  # by take: when an operation began that went well
        for each in self.operations:
            if each.attached in began and each.returned is not None and not each.gone:
                used[each.attached] = max(used.get(each.attached, 0.0), each.invoked)
        return {
            each.number
            for each in self.operations
            if each.kind == "take" and not each.found and each.returned is not None
            for number, last in used.items()
            if began[number].name == each.name
            and (began[number].returned or FOREVER) < each.invoked
            and each.returned < last
        }

    def _fenced_at(self, each: Operation) -> float:
        """From when on it has no effect any more: the attach of a later holder had returned. A holder that
        goes on after a recovery has another epoch, which no attach was seen to give."""
        key = each.name, each.epoch
        if key not in self._fences:
            later = (take.returned or FOREVER for take in self._takes[each.name] if take.found > each.epoch)
            self._fences[key] = min(later, default=FOREVER) if each.epoch else FOREVER
        return self._fences[key]

    def _check_block(self, name: str, block: int, operations: list[Operation], writeback: bool) -> None:
        seen: set[int] = set()
        for each in operations:
            if each.kind in ("read", "shown", "restore"):
                seen.update(each.found[sectors_in(each, block)][: count_in(each, block)])
        calls = []
        for each in operations:
            # What nobody knows the outcome of, and nobody saw, explains nothing: it may never have been.
            if each.returned is None and each.kind in ("write", "flush") and each.number not in seen:
                continue
            fenced = self._fenced_at(each)
            if each.invoked > fenced:
                if each.kind in ("zero", "restore") and each.returned is None:
                    continue
                raise NotLinearizable(f"volume {name} block {block}: of a holder fenced before", [each])
            first = max(each.first - block * SECTORS, 0)
            end = min(each.end - block * SECTORS, SECTORS)
            found = each.found[sectors_in(each, block)][: end - first] if each.has_contents else ()
            at = each.invoked if each.kind == "flush" else FOREVER if each.returned is None else each.returned
            action = (kind_of(each, fenced), first, end, each.number, tuple(found), each.durable, at)
            alike = (each.kind, first, end, found) if each.kind in ("zero", "take", "restore") else None
            returned = min(FOREVER if each.returned is None else each.returned, fenced)
            invoked = each.invoked if each.since is None else each.since
            calls.append(Call(invoked, None if returned == FOREVER else returned, action, alike))
        if writeback:
            fine = is_linearizable(calls, ((EMPTY, 0.0),), _volatile_step)
        else:
            fine = is_linearizable(calls, EMPTY, _block_step)
        if not fine:
            raise NotLinearizable(f"volume {name} block {block}", sorted(operations, key=lambda e: e.invoked))


def _around(view: View, key: tuple[str, int], operations: list[Operation], at: list[View]) -> list[Operation]:
    """What explains a snapshot at the moment that it narrows itself down to. Who reads without an epoch may
    see what it lacks, before that is acknowledged. What it shows may have been in flight then, and be seen
    in the volume later only: as after a crash of that moment, each log by itself."""
    kept = [
        each
        for each in operations
        if each.since is None and not (each.kind == "read" and each.invoked > view.last)
    ]
    return kept + [other.as_read(key, narrow=other.last >= view.last) for other in at]


def kind_of(each: Operation, fenced: float) -> str:
    """Of zeroes nobody can say whose they are: those of a fenced holder that did not return may be there. So
    may what a rollback has written."""
    is_open = each.kind in ("zero", "restore") and each.returned is None and fenced < FOREVER
    return f"perhaps {each.kind}" if is_open else each.kind


def _block_step(state: Any, action: Any) -> Iterable[Hashable]:
    kind, first, end, number, found, *_ = action
    if kind in ("read", "shown"):
        return [state] if state[first:end] == found else []
    if kind in ("restore", "perhaps restore"):
        return [found] if kind == "restore" else [found, state]
    value = number if kind == "write" else 0
    after = (*state[:first], *(value,) * (end - first), *state[end:])
    return [after, state] if kind == "perhaps zero" else [after]


def _volatile_step(state: Any, action: Any) -> Iterable[Hashable]:
    """``state``: (version, when its write returned) of what a loss may go back to, the newest at the end. A
    flush keeps what had returned before it began; what it finds in flight it may keep or not."""
    kind, *_, durable, at = action
    if kind == "flush":
        kept = [index for index, (_, returned) in enumerate(state) if returned < at]
        return [state[kept[-1] :] if kept else state]
    if kind == "take":
        return [state[:count] for count in range(1, len(state) + 1)]
    after = _block_step(state[-1][0], action)
    if kind == "read":
        return [state for _ in after]
    if kind == "shown":
        return [state[-1:] for _ in after]  # its record is durable, and all that comes before
    if durable and at < FOREVER:
        return [((newest, at),) for newest in after]
    return [(*state, (newest, at)) for newest in after]


def _name_step(state: Any, action: Any) -> Iterable[Hashable]:
    """``state``: the size of the volume, 0: there is none. A command whose outcome is unknown (found is None)
    may do nothing. ``found``: the size, for a show; SMALLER, when a resize is told that it cannot shrink."""
    there = bool(state)
    if action.kind == "create":
        return [action.size] if action.found is None or action.found == (not there) else []
    if action.kind == "delete":
        # Of two that delete at once both may say that it is done: each has seen it go.
        return [0] if action.found is None or action.found or not there else []
    if action.kind == "resize":
        if action.found is None:
            return [max(state, action.size) if there else 0]
        if action.found == SMALLER:
            return [state] if state > action.size else []
        fits = there and state <= action.size
        return [action.size if fits else state] if action.found == fits and (fits or not there) else []
    return [state] if action.found == state else []
