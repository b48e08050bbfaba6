"""What a store shows, held against what its replicas' writers know: blocks, tails, index, accounts of space.

Owns the comparison. What is shown must be right; where synced bytes have changed it may be ``Corrupt``
instead. Must never change the store: what it reads may only come into memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

from moorage.node import page as pages
from moorage.node.checks import Check
from moorage.node.page import PAGE_BLOCKS, Version
from moorage.node.replica import Replica
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.store import Store
from moorage.quorum.record import BLOCK_SIZE, block_sum
from moorage.simulation.chunks import blocks_per_chunk
from moorage.simulation.disk import Device
from moorage.simulation.store_model import CHUNKS, Key, Model, Wrong, contents, keys, runs
from moorage.wire.errors import Corrupt, MoorageError


def everything(
    store: Store, replica: Replica, chunks: int
) -> Iterator[tuple[tuple[int, int], list[Version]]]:
    """All that there is of each block, the oldest first."""
    for chunk in range(chunks):
        for first in range(0, blocks_per_chunk(), PAGE_BLOCKS):
            page = store.index.page(replica.table, chunk * pages.PAGES_PER_CHUNK + first // PAGE_BLOCKS)
            for at in range(PAGE_BLOCKS):
                if versions := page.everything(at):
                    yield (chunk, first + at), versions


def kept_for_nothing(replica: Replica, versions: list[Version]) -> str:
    """Of what was overwritten nothing is left but what a snapshot shows; empty when it is so."""
    for version, following in pairwise(versions):
        if not any(version.lsn <= each < following.lsn for each in replica.table.snapshots):
            return f"{version} is kept for none of {replica.table.snapshots}"
    return ""


def _written(model: Model, key: Key, lsn: int) -> tuple[int, bool]:
    """What the record at this LSN has made of the block: (LSN, whether it has contents)."""
    written, number = model.version(key, lsn)
    return written, number > 0


class Checks:
    def __init__(self, device: Device, rng: Random) -> None:
        self._device = device
        self._rng = rng

    async def all(self, store: Store, model: Model, replica: Replica) -> None:
        for snapshot in (0, *replica.table.snapshots):
            for chunk in range(CHUNKS):
                for first, count in runs():
                    await self.read(store, model, replica, chunk, first, count, snapshot)

    async def read(
        self,
        store: Store,
        model: Model,
        replica: Replica,
        chunk: int,
        block: int,
        count: int,
        snapshot: int = 0,
    ) -> None:
        count = min(count, blocks_per_chunk() - block)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lsn = snapshot or replica.state.commit
        wanted = [model.version((chunk, block + at), lsn)[1] for at in range(count)]
        store.reader.read(replica, chunk, block, count, got.set_result, snapshot)
        found = await got
        if isinstance(found, MoorageError):
            if isinstance(found, Corrupt) and not self._device.damaged:
                raise Wrong(f"a read of {chunk}/{block} of replica {model.identity}: {found}")
            return
        sums, data = found
        for at, number in enumerate(wanted):
            right = contents(number) if number else bytes(BLOCK_SIZE)
            check = int.from_bytes(sums[at * 8 : at * 8 + 8], "little")
            shown = (
                bytes(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])
                if data is not None
                else bytes(BLOCK_SIZE)
            )
            if shown != right or check != (block_sum(right) if number else 0):
                seen = int.from_bytes(shown[:8], "little")
                when = f"{'snapshot' if snapshot else 'LSN'} {lsn}"
                where = f"{chunk}/{block + at} of replica {model.identity} at {when}"
                raise Wrong(f"a read of {where} shows {seen}, not {number}")

    async def tail(self, store: Store, model: Model, replica: Replica) -> None:
        try:
            records = await store.reader.records(replica, replica.tail_from, replica.state.last, 1 << 30)
        except Corrupt as error:
            if not self._device.damaged:
                raise Wrong(f"the tail of replica {model.identity}: {error}") from error
            return
        for record in records:
            known = model.given[record.position][1]
            if bytes(record.data) != bytes(known.data) or record.kind != known.kind:
                raise Wrong(f"record {record!r} of replica {model.identity} is another one")

    def index(self, store: Store, model: Model, replica: Replica) -> None:
        """LSN by LSN, and what somebody who has all up to ``above`` would be sent."""
        lsn, above = replica.state.commit, self._rng.randint(0, replica.state.commit)
        table = replica.table
        if (table.snapshots_lsn, table.snapshots) != model.snapshots(lsn):
            found = f"{table.snapshots} by {table.snapshots_lsn}"
            raise Wrong(f"replica {model.identity} has snapshots {found}, not {model.snapshots(lsn)}")
        sent: dict[Key, set[tuple[int, bool]]] = {key: set() for key in keys()}
        try:
            for first, end, discard in table.tombstones:
                for key in keys():
                    if first <= key[0] < end and discard > above:
                        sent[key].add((discard, False))
            for chunk, block, location, _, at in self._sent(store, replica, above):
                sent[chunk, block].add((at, bool(location)))
        except Corrupt as error:
            if not self._device.damaged:
                raise Wrong(f"the index of replica {model.identity}: {error}") from error
            return
        for key, heard in sent.items():
            what = f"{key} of replica {model.identity} at LSN {lsn}, above {above}"
            shown = model.shown(key, lsn)
            if missing := [each for each in shown if each[0] > above and (each[0], each[1] > 0) not in heard]:
                raise Wrong(f"who copies {what} hears {sorted(heard)}, and not of {missing}")
            if heard and max(heard)[0] > max(shown, default=(0, 0))[0]:
                raise Wrong(f"who copies {what} hears {sorted(heard)}, written {shown}")
            if wrong := [each for each in heard if each != _written(model, key, each[0])]:
                raise Wrong(f"who copies {what} hears {wrong}, written {shown}")

    def _sent(self, store: Store, replica: Replica, above: int) -> Iterator[tuple[int, int, int, int, int]]:
        page: int | None = 0
        while page is not None:
            cells, page = store.newer_blocks(replica, above, page, 4)
            yield from cells
        limit = self._rng.choice((1, 3, 1000))
        following: tuple[int, int] | None = (0, 0)
        while following is not None:
            cells, following = store.newer_versions(replica, above, *following, limit)
            yield from cells

    def scrubbed(self, store: Store, asked: list[Replica]) -> None:
        """What a pass says of each block, held against the disk itself."""
        for replica in asked:
            if replica.damaged:
                continue
            check = store.scrubber.check(replica)
            self._stored_pages(store, replica)
            for (chunk, block), versions in everything(store, replica, CHUNKS):
                for version in versions:
                    if version.location:
                        name = store.log.segments[version.location >> OFFSET_BITS].name
                        at = version.location & OFFSET_MASK
                        data = self._device.disk.files[name].now[at : at + BLOCK_SIZE]
                        is_bad = block_sum(data) != version.check
                        if version is versions[-1]:
                            self._same(check, (chunk, block), is_bad)
                        elif is_bad != ((version.location, version.lsn) in check.versions):
                            raise Wrong(
                                f"{version} of block {(chunk, block)} is bad: {is_bad}; scrub differs"
                            )
            if bool(check.verified_ms) == bool(check.count):
                raise Wrong(
                    f"replica {replica.info.replica} is verified at {check.verified_ms}: {check.pack()!r}"
                )

    @staticmethod
    def _stored_pages(store: Store, replica: Replica) -> None:
        """One that is bad is to be stored again, from memory."""
        assert store.index_store is not None
        for handle, number, cells in store.index_store.pages(replica.table.handle, 0, 1 << 30):
            page = replica.table.pages.get(number)
            if cells is None and (page is None or not page.dirty):
                raise Wrong(f"page {number} of handle {handle} is bad, and nobody knows")

    @staticmethod
    def _same(check: Check, block: tuple[int, int], is_bad: bool) -> None:
        if (block in check.bad) != is_bad:
            raise Wrong(f"block {block} of replica {check.replica} is bad: {is_bad}, scrub says {check.bad}")

    def accounts(self, store: Store, whole: bool = False) -> None:
        """What is counted as live is what the indexes refer to; ``whole``: nothing is left over anywhere."""
        alive: dict[int, int] = {}
        for replica in store.replicas.values():
            if not whole:
                replica.validate()
            own = 0
            try:
                for key, versions in everything(store, replica, CHUNKS):
                    for location in [each.location for each in versions if each.location]:
                        number = location >> OFFSET_BITS
                        alive[number] = alive.get(number, 0) + BLOCK_SIZE
                        own += BLOCK_SIZE
                    if (
                        whole
                        and replica.state.copy is None
                        and (found := kept_for_nothing(replica, versions))
                    ):
                        raise Wrong(f"{found} of block {key} of replica {replica.info.replica}")
            except Corrupt:
                if not self._device.damaged:
                    raise
                return
            if own != replica.table.live:
                raise Wrong(f"replica {replica.info.replica} has {own} bytes, {replica.table.live} counted")
        counted = {number: size for number, size in store.index.live.items() if size}
        for number, size in alive.items():
            if counted.get(number, 0) < size:
                raise Wrong(
                    f"segment {number} holds {size} bytes alive, counted are {counted.get(number, 0)}"
                )
            if number not in store.log.segments and not self._device.damaged:
                raise Wrong(f"segment {number} is referred to, and gone")
        if whole:
            self._whole(store, alive, counted)

    def _whole(self, store: Store, alive: dict[int, int], counted: dict[int, int]) -> None:
        log = store.log
        if counted != alive:
            raise Wrong(f"live bytes {counted}, referred to are {alive}")
        known = [each.name for each in (*log.segments.values(), *log.free, *log._leaving)]
        if sorted(known) != sorted(store.all_files):
            raise Wrong(f"segment files {sorted(store.all_files)}, accounted for are {sorted(known)}")
        held = {
            location >> OFFSET_BITS for each in store.replicas.values() for _, location in each.tail.values()
        }
        for number in log.segments:
            if number < store.checkpointer.segment and number not in alive and number not in held:
                raise Wrong(f"segment {number} is kept for nothing")
