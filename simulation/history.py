"""What clients asked and what they were told, and whether one order explains it.

Owns the record of every operation (invoked, returned, or never), the models of what a block of a volume and
the name of a volume are, and the check of the whole history, key by key. Must never drop an operation whose
outcome is not known.

The model of a block: the ids of the operations that wrote each of its sectors, so a torn block, a lost
write, an old value and an undone one are all the same: no order explains them. In ``writeback`` mode a
takeover may set the block back to any version since the last flush, and only then. What a holder wrote takes
effect before the attach of the next one returns, or never: also where nobody looked at the moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from moorage.quorum.record import BLOCK_SIZE
from moorage.simulation.linearizable import Call, is_linearizable

SECTOR = 512
SECTORS = BLOCK_SIZE // SECTOR

Block = tuple[int, ...]  # id of the operation that wrote each sector; 0: zeroes
EMPTY: Block = (0,) * SECTORS
FOREVER = float("inf")
GARBAGE = -1  # a sector whose bytes no operation has written


@dataclass(slots=True)
class Operation:
    """``kind``: write, zero, read, flush, take (an attach that took an epoch), create, delete, show.
    ``sectors``: first and end, of the volume; ``found``: what a read or a show saw; ``epoch``: of the
    attachment that a write or a zero came by; ``attached``: number of the take that it came by (0: of none);
    ``since``: of a read-only attachment's read, as of when it may
    be (None: as of when it began)."""

    number: int
    client: str
    kind: str
    name: str
    first: int = 0
    end: int = 0
    invoked: float = 0.0
    returned: float | None = None
    found: Any = None
    gone: bool = False  # it certainly had no effect
    durable: bool = False  # a write with FUA
    epoch: int = 0
    attached: int = 0
    since: float | None = None

    def __str__(self) -> str:
        where = f" sectors {self.first}..{self.end}" if self.end else ""
        when = "?" if self.returned is None else f"{self.returned:.6f}"
        kind = self.kind + (" with FUA" if self.durable else "")
        what = f"{self.client} {kind} #{self.number} {self.name}{where} {self.found}"
        return f"{self.invoked:.6f}..{when} {what}"


class NotLinearizable(AssertionError):
    """No order explains what was seen of this key. ``operations``: those on it."""

    def __init__(self, key: str, operations: list[Operation]) -> None:
        self.key = key
        self.operations = operations
        lines = "\n".join(f"  {each}" for each in operations[-40:])
        super().__init__(f"{key}: no order of these operations explains what was seen\n{lines}")


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
        blocks: dict[tuple[str, int], list[Operation]] = defaultdict(list)
        whole: dict[str, list[Operation]] = defaultdict(list)  # flushes and takeovers touch every block
        names: dict[str, list[Operation]] = defaultdict(list)
        for each in self.operations:
            if each.gone or each.number in survived:
                continue
            if each.kind in ("flush", "take"):
                whole[each.name].append(each)
            elif each.kind in ("create", "delete", "show"):
                names[each.name].append(each)
            elif each.kind != "read" or each.returned is not None:
                for block in range(each.first // SECTORS, (each.end - 1) // SECTORS + 1):
                    blocks[each.name, block].append(each)
        for (name, block), operations in blocks.items():
            writeback = self.durability[name] == "writeback"
            if writeback:
                # Before the first write there is nothing that a flush could keep, or a takeover lose.
                begun = min(
                    (each.invoked for each in operations if each.kind != "read"), default=float("inf")
                )
                operations = operations + [
                    each for each in whole[name] if each.returned is None or each.returned > begun
                ]
            self._check_block(name, block, operations, writeback)
        for name, operations in whole.items():
            self._check_epochs(name, [each for each in operations if each.kind == "take" and each.found])
        for name, operations in names.items():
            calls = [Call(each.invoked, each.returned, each) for each in operations]
            if not is_linearizable(calls, False, _name_step):
                raise NotLinearizable(f"volume {name}", operations)
        return len(blocks) + len(names)

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
            if each.kind == "read":
                seen.update(each.found[_within(each.first, block)][: _count(each, block)])
        calls = []
        for each in operations:
            # What nobody knows the outcome of, and nobody saw, explains nothing: it may never have been.
            if each.returned is None and each.kind in ("write", "flush") and each.number not in seen:
                continue
            fenced = self._fenced_at(each)
            if each.invoked > fenced:
                if each.kind == "zero" and each.returned is None:
                    continue
                raise NotLinearizable(f"volume {name} block {block}: of a holder fenced before", [each])
            first = max(each.first - block * SECTORS, 0)
            end = min(each.end - block * SECTORS, SECTORS)
            found = each.found[_within(each.first, block)][: end - first] if each.kind == "read" else ()
            at = each.invoked if each.kind == "flush" else FOREVER if each.returned is None else each.returned
            action = (kind_of(each, fenced), first, end, each.number, tuple(found), each.durable, at)
            alike = (each.kind, first, end) if each.kind in ("zero", "take") else None
            returned = min(FOREVER if each.returned is None else each.returned, fenced)
            invoked = each.invoked if each.since is None else each.since
            calls.append(Call(invoked, None if returned == FOREVER else returned, action, alike))
        if writeback:
            fine = is_linearizable(calls, ((EMPTY, 0.0),), _volatile_step)
        else:
            fine = is_linearizable(calls, EMPTY, _block_step)
        if not fine:
            raise NotLinearizable(f"volume {name} block {block}", sorted(operations, key=lambda e: e.invoked))


def kind_of(each: Operation, fenced: float) -> str:
    """Of zeroes nobody can say whose they are: those of a fenced holder that did not return may be there."""
    return "perhaps zero" if each.kind == "zero" and each.returned is None and fenced < FOREVER else each.kind


def _within(first: int, block: int) -> slice:
    """Where in what was read from ``first`` on this block's sectors begin."""
    return slice(max(block * SECTORS - first, 0), None)


def _count(each: Operation, block: int) -> int:
    return min(each.end, (block + 1) * SECTORS) - max(each.first, block * SECTORS)


def _block_step(state: Any, action: Any) -> Iterable[Hashable]:
    kind, first, end, number, found, *_ = action
    if kind == "read":
        return [state] if state[first:end] == found else []
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
    if durable and at < FOREVER:
        return [((newest, at),) for newest in after]
    return [(*state, (newest, at)) for newest in after]


def _name_step(state: Any, action: Any) -> Iterable[Hashable]:
    """``state``: whether the volume exists. A command whose outcome is unknown (found is None) may do
    nothing."""
    if action.kind == "create":
        if action.found is None:
            return [True]
        return [True] if action.found == (not state) else []
    if action.kind == "delete":
        if action.found is None:
            return [False]
        # Of two that delete at once both may say that it is done: each has seen it go.
        return [False] if action.found or not state else []
    return [state] if action.found == state else []
