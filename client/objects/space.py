"""Addresses for what is about to be written: regions that metadata has given to this writer.

Owns which addresses are taken, each once, and which regions are to be given back. Small objects lie behind
one another in a region of theirs, large ones take whole runs of another, which begin where a piece does: so a
large object is few extents, and a small one costs its blocks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from moorage.quorum.record import BLOCKS_PER_CHUNK
from moorage.wire.errors import MoorageError, Unavailable

PIECE_BLOCKS = min(256, BLOCKS_PER_CHUNK)  # 1 MiB: what goes to the devices at once
RUN_BLOCKS_MAX = 16 * PIECE_BLOCKS
RENEW_S = 120.0  # metadata believes that a writer is gone after 15 minutes
RENEW_AGAIN_S = 10.0  # when metadata could not be asked
LEFT_S = 10.0  # a group that could not be written to is not offered again
UNCLOSED_MAX = 1000  # regions; metadata closes those that were forgotten when this writer is silent

Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


@dataclass
class Region:
    group: dict[str, Any]
    first: int
    end: int
    free: int  # the first address that was not taken
    pins: int = 0  # pieces of it in objects that are not put yet
    spent: bool = False

    def take(self, blocks: int, align: int) -> int | None:
        """The first of ``blocks`` addresses; None: there are not so many left."""
        at = -(-self.free // align) * align
        if at % BLOCKS_PER_CHUNK + blocks > BLOCKS_PER_CHUNK and blocks <= PIECE_BLOCKS:
            at = (at // BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK  # a piece is of one chunk
        if at + blocks > self.end:
            return None
        self.free = at + blocks
        return at


class Run(NamedTuple):
    """Consecutive addresses that nobody else writes to."""

    region: Region
    address: int
    blocks: int


class Space:
    """Of one bucket and one writer. ``call(method, params)`` asks metadata about the bucket."""

    def __init__(self, call: Call, now: Callable[[], float]) -> None:
        self._call = call
        self._now = now
        self.writer = secrets.randbits(62) + 1
        self._small: list[Region] = []
        self._large: list[Region] = []
        self._opening = asyncio.Lock()
        self._unclosed: deque[Region] = deque(maxlen=UNCLOSED_MAX)  # spent, and of no object that is written
        self._left: dict[int, float] = {}  # groups that could not be written to: until when
        self._groups = 1
        self._turn = 0
        self._renewed_at = now()
        self.heard_at = now()  # when metadata has heard of this writer last

    @property
    def is_old(self) -> bool:
        """Its regions may be taken away at any moment: begin anew. (Who still writes in it renews it.)"""
        return self._now() - self.heard_at > 2 * RENEW_S

    async def take(self, blocks: int, *, large: bool, avoid: frozenset[int]) -> Run:
        """``avoid``: groups that cannot be written to now. Give it back with :meth:`release`, once the object
        is put."""
        lane, align = (self._large, PIECE_BLOCKS) if large else (self._small, 1)
        grown = False
        while True:
            avoided = self._avoided(avoid)
            fitting = _fitting(lane, avoided)
            wanted = len(fitting) < self._groups - len(avoided)
            if not fitting or (wanted and not grown and not self._opening.locked()):
                await self._grow(lane, avoided, len(fitting))
                grown = True
                continue  # others may have taken, or spent, what there was
            self._turn += 1
            region = fitting[self._turn % len(fitting)]
            address = region.take(blocks, align)
            if address is not None:
                region.pins += 1
                return Run(region, address, blocks)
            self._spend(lane, [region])

    def _avoided(self, avoid: frozenset[int]) -> frozenset[int]:
        """Also those that others could not write to a moment ago, while there is another one."""
        now = self._now()
        self._left = {group: until for group, until in self._left.items() if now < until}
        everything = avoid | self._left.keys()
        return everything if len(everything) < self._groups else avoid

    async def _grow(self, lane: list[Region], avoid: frozenset[int], count: int) -> None:
        """One region more. One after the other: who has waited takes of what was opened meanwhile."""
        async with self._opening:
            if len(_fitting(lane, avoid)) > count:
                return
            try:
                await self._open(lane, avoid)
            except MoorageError:
                if not _fitting(lane, avoid):
                    raise

    async def _open(self, lane: list[Region], avoid: frozenset[int]) -> None:
        await self._close_spent()
        known = sorted(avoid | {region.group["group"] for region in lane})
        found = await self._call("metadata.open_region", {"writer": self.writer, "avoid": known})
        self.heard_at = self._now()
        self._groups = found["of"]
        first = found["chunk"] * BLOCKS_PER_CHUNK
        region = Region(found["group"], first, first + found["chunks"] * BLOCKS_PER_CHUNK, first)
        lane.append(region)
        if region.group["group"] in avoid:
            self._spend(lane, [region])
            raise Unavailable("no replica group of the bucket can be written to: a majority of each is away")

    def _spend(self, lane: list[Region], regions: Iterable[Region]) -> None:
        for region in regions:
            lane.remove(region)
            region.spent = True
            if not region.pins:
                self._unclosed.append(region)

    def leave_group(self, group: int) -> None:
        """It could not be written to: who takes next asks anew, and hears of its members then."""
        self._left[group] = self._now() + LEFT_S
        for lane in (self._small, self._large):
            self._spend(lane, [region for region in lane if region.group["group"] == group])

    async def renew(self) -> None:
        """Called while something large is written. Metadata may be away for a while: that ends no write."""
        now = self._now()
        if now - self.heard_at > RENEW_S and now - self._renewed_at > RENEW_AGAIN_S:
            self._renewed_at = now
            with contextlib.suppress(MoorageError):
                await self._call("metadata.renew_regions", {"writer": self.writer})
                self.heard_at = now

    def release(self, runs: list[Run]) -> None:
        """The object is put, or will not be."""
        for run in runs:
            run.region.pins -= 1
            if run.region.spent and not run.region.pins:
                self._unclosed.append(run.region)

    async def close(self) -> None:
        """Give back what was not used."""
        for lane in (self._small, self._large):
            self._spend(lane, list(lane))
        await self._close_spent()

    async def _close_spent(self) -> None:
        regions = list(self._unclosed)
        self._unclosed.clear()
        rows = [[region.group["group"], region.first // BLOCKS_PER_CHUNK] for region in regions]
        if rows:
            try:
                await self._call("metadata.close_regions", {"regions": rows})
            except MoorageError:
                self._unclosed.extend(regions)


def _fitting(lane: list[Region], avoid: frozenset[int]) -> list[Region]:
    return [region for region in lane if region.group["group"] not in avoid]
