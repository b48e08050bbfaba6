"""One operation of a client, as a history has it: what was asked, what was told, when.

Owns the form of it, what a block is in a history (the ids of the operations that wrote each of its sectors),
and the bytes that tell an operation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moorage.quorum.record import BLOCK_SIZE

SECTOR = 512
SECTORS = BLOCK_SIZE // SECTOR

Block = tuple[int, ...]  # id of the operation that wrote each sector; 0: zeroes
EMPTY: Block = (0,) * SECTORS
FOREVER = float("inf")
SMALLER = -1  # a resize is refused: there is more already
GARBAGE = -1  # a sector whose bytes no operation has written


@dataclass(slots=True)
class Operation:
    """``kind``: write, zero, read, flush, take (an attach that took an epoch), create, resize, delete, show;
    shown (a read at a snapshot), restore (a rollback: a write of the whole volume). ``name``: of a volume, or
    of a snapshot that was created, deleted or looked for, ``VOLUME@SNAPSHOT``.
    ``sectors``: first and end, of the volume; ``found``: what a read or a show saw; ``epoch``: of the
    attachment that a write or a zero came by; ``attached``: number of the take that it came by (0: of none);
    ``since``: of a read-only attachment's read, as of when it may be (None: as of when it began);
    ``snapshot``: name of the one that is read, or to which the volume is rolled back; ``size``: that a create
    or a resize asks for, 1 of a snapshot."""

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
    snapshot: str = ""
    size: int = 0

    def __str__(self) -> str:
        where = f" sectors {self.first}..{self.end}" if self.end else ""
        when = "?" if self.returned is None else f"{self.returned:.6f}"
        kind = self.kind + (" with FUA" if self.durable else "")
        name = self.name + (f"@{self.snapshot}" if self.snapshot else "")
        what = f"{self.client} {kind} #{self.number} {name}{where} {self.found}"
        return f"{self.invoked:.6f}..{when} {what}"

    @property
    def has_contents(self) -> bool:
        """Whether ``found`` is what its sectors are."""
        return self.kind in ("read", "shown", "restore")

    def of_block(self, block: int, found: Block) -> Operation:
        """The part of it that one block has."""
        return replace(self, first=block * SECTORS, end=(block + 1) * SECTORS, found=found)


def content(number: int, sectors: int) -> bytes:
    """Of operation ``number``: it can be told from each sector, and a torn one too."""
    return (number.to_bytes(8, "big") * (SECTOR // 8)) * sectors


def writers(data: bytes) -> tuple[int, ...]:
    """The operation that each sector comes from."""
    found = []
    for at in range(0, len(data), SECTOR):
        number = int.from_bytes(data[at : at + 8], "big")
        whole = data[at : at + SECTOR] == content(number, 1)
        found.append(number if whole else GARBAGE)
    return tuple(found)


class NotLinearizable(AssertionError):
    """No order explains what was seen of this key. ``operations``: those on it."""

    def __init__(self, key: str, operations: list[Operation]) -> None:
        self.key = key
        self.operations = operations
        lines = "\n".join(f"  {each}" for each in operations[-40:])
        super().__init__(f"{key}: no order of these operations explains what was seen\n{lines}")


def sectors_in(each: Operation, block: int) -> slice:
    """Where in what was read this block's sectors begin."""
    return slice(max(block * SECTORS - each.first, 0), None)


def count_in(each: Operation, block: int) -> int:
    return min(each.end, (block + 1) * SECTORS) - max(each.first, block * SECTORS)
