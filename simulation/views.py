"""What snapshots showed, and of when that can be.

Owns the judgement that is across blocks: a snapshot never changes, and what it shows is of one moment, also
over several volumes. Of each block alone it is a read of that moment, for history.py to judge.

A snapshot is of a moment of its creation. What it shows narrows that down: it shows a write, so it came after
that was invoked; it does not show one that was acknowledged, and invoked after what it shows had returned: so
it came before that acknowledgement. If nothing is left, it shows a write, and lacks one that had been
acknowledged before that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moorage.simulation.operation import (
    FOREVER,
    SECTORS,
    Block,
    NotLinearizable,
    Operation,
    count_in,
    sectors_in,
)

Key = tuple[str, int]  # volume, block


@dataclass
class View:
    """What one snapshot showed, of a volume, or of all volumes of a set: they have its name in common."""

    created: Operation
    until: float  # it was there then
    shown: dict[Key, Block] = field(default_factory=dict)
    first: float = 0.0
    last: float = FOREVER

    @property
    def is_narrow(self) -> bool:
        return self.first > self.created.invoked or self.last < self.until

    def as_read(self, key: Key, *, narrow: bool) -> Operation:
        name, block = key
        first, last = (self.first, self.last) if narrow else (self.created.invoked, self.until)
        snapshot = self.created.name.partition("@")[2]
        whole = Operation(
            self.created.number, self.created.client, "shown", name, invoked=first, snapshot=snapshot
        )
        whole.returned = None if last == FOREVER else last
        return whole.of_block(block, self.shown[key])

    def narrow(self, blocks: Mapping[Key, list[Operation]], reverting: Mapping[str, list[Operation]]) -> None:
        """``reverting``: by volume, after which its blocks may be as they were before."""
        self.first, self.last = self.created.invoked, self.until
        first, last = self.created, self.created
        for key, found in self.shown.items():
            written = {each.number: each for each in blocks.get(key, ()) if each.kind == "write"}
            for number in {*found} & written.keys():
                if written[number].invoked > self.first:
                    first, self.first = written[number], written[number].invoked
            for each in self._missing(key, written, blocks.get(key, ()), reverting.get(key[0], ())):
                if each.returned is not None and each.returned < self.last:
                    last, self.last = each, each.returned
        if self.first > self.last:
            snapshot = self.created.name.partition("@")[2]
            raise NotLinearizable(
                f"snapshot {snapshot} shows #{first.number}, and lacks #{last.number} before",
                [self.created, last, first],
            )

    def _missing(
        self,
        key: Key,
        written: dict[int, Operation],
        operations: list[Operation] | tuple[()],
        reverting: list[Operation] | tuple[()],
    ) -> list[Operation]:
        """Acknowledged ones that came after what is shown."""
        found = []
        for each in operations:
            if each.kind not in ("write", "zero") or each.returned is None:
                continue
            shown = set(self.shown[key][_part(each, key[1])])
            if any(
                number in written and (written[number].returned or FOREVER) < each.invoked for number in shown
            ) and not any(
                undo.invoked < self.until and (undo.returned or FOREVER) > each.invoked for undo in reverting
            ):
                found.append(each)
        return found


def _part(each: Operation, block: int) -> slice:
    """Which sectors of the block it is about."""
    first = max(each.first - block * SECTORS, 0)
    return slice(first, first + count_in(each, block))


def find_views(operations: list[Operation], blocks: Mapping[Key, list[Operation]]) -> dict[str, View]:
    """By the name of the snapshot. Raises NotLinearizable when one has changed."""
    views: dict[str, View] = {}
    for each in operations:
        if each.kind == "create" and "@" in each.name:
            view = views.setdefault(each.name.partition("@")[2], View(each, FOREVER))
            if each.returned is not None:
                view.until = min(view.until, each.returned)
    for each in operations:
        if each.kind == "show" and "@" in each.name and each.found and each.returned is not None:
            view = views[each.name.partition("@")[2]]
            view.until = min(view.until, each.returned)
        if each.kind == "shown" and each.returned is not None:
            _note(views[each.snapshot], each)
    return views


def _note(view: View, each: Operation) -> None:
    for block in range(each.first // SECTORS, (each.end - 1) // SECTORS + 1):
        found = each.found[sectors_in(each, block)][: count_in(each, block)]
        if view.shown.setdefault((each.name, block), found) != found:
            known = view.as_read((each.name, block), narrow=False)
            raise NotLinearizable(
                f"volume {each.name}@{each.snapshot} block {block} has changed",
                [known, each.of_block(block, found)],
            )
