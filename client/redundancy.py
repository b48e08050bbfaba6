"""How many more host losses a volume or bucket survives now, from what its copies say of themselves.

Owns the counting (pure) and the asking. Must never count a copy that does not answer, is being copied, is
damaged, has a bad block, or lacks a record that another one has; nor hide that a copy was never read back.
Copies of a bucket have no records to compare: metadata notes what each lacks, and one of which that is not
known does not count either (objects/copies.py asks).

A volume goes on without waiting as long as each group has a majority of good copies, and nothing of it is
lost as long as each has one. That a copy is *good* says what is known of it; *checked* says how old that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from moorage.quorum.majority import majority
from moorage.wire.errors import MoorageError

ROUNDS = 6  # a copy that hears of a record later than others, or was asked earlier, is not behind for long
ROUND_S = 0.2
GOOD = "good"
OBJECTS = "objects"  # the durability of what a bucket has on a device
UNTOLD = "its metadata is older, and does not say what it lacks"
LACKS_MAX = 1000  # extents: metadata counts no further

Row = dict[str, Any]  # of ``node.list_replicas``
Answers = dict[int, Row | str]  # by replica; a text says why there is none
Ask = Callable[[str], Awaitable[list[Row] | str]]  # of a device: its replicas; a text says why none counts


@dataclass(frozen=True)
class Copy:
    """``verified_ms``: all that it holds was read back, or written, at this time or later; 0: never.
    ``lacks``: extents of a bucket that it is noted to lack, ``LACKS_MAX`` for more; None: nobody said, and of
    a volume."""

    group: int
    replica: int
    host: str
    device: str
    state: str  # GOOD, or why it does not count
    verified_ms: int
    bytes: int
    bad_blocks: int = 0
    lacks: int | None = None


@dataclass(frozen=True)
class Redundancy:
    """``survives``: hosts that may be lost now, whichever, and it goes on without waiting; below 0: it waits
    already. ``loses_nothing``: the same, and all of the data is there. ``verified_ms``: the oldest check of a
    good copy that was checked; 0: none was. ``never_verified``: good copies that nobody has read back."""

    survives: int
    loses_nothing: int
    verified_ms: int
    never_verified: int
    copies: tuple[Copy, ...]

    def good(self) -> list[Copy]:
        """The copies that count."""
        return [copy for copy in self.copies if copy.state == GOOD]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def count(groups: Iterable[dict[str, Any]], answers: Answers, reached: dict[int, list[int]]) -> Redundancy:
    """``groups``: as metadata describes them. ``reached``: by group, the position that a copy must have."""
    copies: list[Copy] = []
    survives: list[int] = []
    left: list[int] = []
    for group in groups:
        number, members = group["group"], group["members"]
        own = [_copy(number, member, answers, reached.get(number, [0, 0])) for member in members]
        good = sum(copy.state == GOOD for copy in own)
        survives.append(good - majority(len(members)))
        left.append(good - 1)
        copies += own
    checked = [copy.verified_ms for copy in copies if copy.state == GOOD]
    return Redundancy(
        survives=min(survives, default=0),
        loses_nothing=max(0, min(left, default=0)),
        verified_ms=min((each for each in checked if each), default=0),
        never_verified=checked.count(0),
        copies=tuple(copies),
    )


def newest(groups: Iterable[dict[str, Any]], answers: Answers) -> dict[int, list[int]]:
    """By group, the greatest position of a copy that is whole."""
    return {
        group["group"]: max(
            (
                list(row["position"])
                for member in group["members"]
                if isinstance(row := answers.get(member["replica"]), dict)
                and "verified_ms" in row
                and not _trouble(row)
            ),
            default=[0, 0],
        )
        for group in groups
    }


def _copy(group: int, member: dict[str, Any], answers: Answers, reached: list[int]) -> Copy:
    row = answers.get(member["replica"], "its device does not know it")
    where = group, member["replica"], member["host"], member["device"]
    lacks = member.get("lacks")
    if isinstance(row, str):
        return Copy(*where, row, 0, 0, lacks=lacks)
    if "verified_ms" not in row:
        return Copy(*where, "its node is older, and does not say", 0, 0, lacks=lacks)
    state = _trouble(row) or (_noted(member) if row.get("durability") == OBJECTS else _behind(row, reached))
    return Copy(*where, state or GOOD, row["verified_ms"], row["bytes"], row["bad_blocks"], lacks)


def _behind(row: Row, reached: list[int]) -> str:
    return "" if list(row["position"]) >= reached else "lacks records that another has"


def _noted(member: dict[str, Any]) -> str:
    """What metadata knows of a copy of a bucket."""
    if (lacks := member.get("lacks")) is None:
        return UNTOLD
    if member.get("built") is not None:
        return "is looked through: it was damaged"
    return f"lacks {extents(lacks)}" if lacks else ""


def extents(lacks: int) -> str:
    return f"{lacks} extent{'s' * (lacks > 1)}{' or more' * (lacks >= LACKS_MAX)}"


def _trouble(row: Row) -> str:
    if not row["offered"]:
        return "withheld: it may have lost a promise"
    if row["damaged"]:
        return f"damaged: {row['damaged']}"
    if not row["whole"]:
        return "is being copied to"
    return f"has {row['bad_blocks']} bad blocks" if row["bad_blocks"] else ""


async def measure(groups: list[dict[str, Any]], ask: Ask) -> Redundancy:
    """``ask(device)``: its replicas of this volume. Asks again while some copy seems to be behind."""
    answers = await ask_all(groups, ask)
    reached = newest(groups, answers)
    found = count(groups, answers, reached)
    for _ in range(ROUNDS):
        if not any(copy.state.startswith("lacks") for copy in found.copies):
            break
        await asyncio.sleep(ROUND_S)
        found = count(groups, await ask_all(groups, ask), reached)
    return found


async def ask_all(groups: list[dict[str, Any]], ask: Ask) -> Answers:
    """What the devices of all members say."""
    devices = sorted({member["device"] for group in groups for member in group["members"]})
    found = await asyncio.gather(*(_ask_one(device, ask) for device in devices))
    by_device = dict(zip(devices, found, strict=True))
    answers: Answers = {}
    for group in groups:
        for member in group["members"]:
            told = by_device[member["device"]]
            if isinstance(told, str):
                answers[member["replica"]] = told
            else:
                answers |= {row["replica"]: row for row in told}
    return answers


async def _ask_one(device: str, ask: Ask) -> list[Row] | str:
    try:
        return await ask(device)
    except MoorageError as error:
        return f"does not answer: {error}"
