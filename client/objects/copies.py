"""What the copies of a bucket are worth: what metadata notes of each, and what their devices say.

Owns the asking; the counting is `redundancy.py`'s. Its cost is bounded: metadata counts what a copy lacks up
to a limit, and no extent is looked at here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from moorage.client.redundancy import LACKS_MAX, ROUND_S, ROUNDS, Copy, Redundancy, Row, ask_all, count

FEW = 100  # extents: so many may have come just now, and be copied in a moment


@dataclass(frozen=True)
class BucketCopies:
    """``groups``: as ``metadata.show_lacks`` answers: ``{group, version, members, wish}`` each. A member, and
    a ``wish`` that is to take the place of one, has ``lacks``, extents, and ``built`` while it is built or
    looked through, per cent; neither when metadata is older."""

    groups: list[dict[str, Any]]
    redundancy: Redundancy


async def measure_bucket(
    show: Callable[[], Awaitable[dict[str, Any]]],
    ask: Callable[[int, str], Awaitable[list[Row] | str]],
) -> BucketCopies:
    """``show()``: ``{id, groups}`` of the bucket; ``ask(id, device)``: its replicas there. Asks again while
    some copy lacks a few extents: one that lacked nothing at some time meanwhile has all that there was when
    it was asked first."""
    had_all: set[int] = set()
    for left in reversed(range(ROUNDS + 1)):
        about = await show()
        for member in (member for group in about["groups"] for member in group["members"]):
            if (lacks := member.get("lacks", LACKS_MAX)) == 0:
                had_all.add(member["replica"])
            elif member["replica"] in had_all and lacks <= FEW:
                member["lacks"] = 0
        answers = await ask_all(about["groups"], partial(ask, about["id"]))
        found = count(about["groups"], answers, {})
        if not left or not any(map(_is_late, found.copies)):
            break
        await asyncio.sleep(ROUND_S)
    return BucketCopies(about["groups"], found)


def _is_late(copy: Copy) -> bool:
    return copy.lacks is not None and copy.lacks <= FEW and copy.state.startswith("lacks")
