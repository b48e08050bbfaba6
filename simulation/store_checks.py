"""What a store shows, held against what its replicas' writers know: blocks, tails, index, accounts of space.

Owns the comparison. What is shown must be right; where synced bytes have changed it may be ``Corrupt``
instead. Must never change the store: what it reads may only come into memory.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from moorage.node.checks import Check
from moorage.node.replica import Replica
from moorage.node.segment import OFFSET_BITS, OFFSET_MASK
from moorage.node.store import Store
from moorage.quorum.record import BLOCK_SIZE, block_sum
from moorage.simulation.chunks import blocks_per_chunk
from moorage.simulation.disk import Device
from moorage.simulation.store_model import CHUNKS, Model, Wrong, contents, keys, runs
from moorage.wire.errors import Corrupt, MoorageError


class Checks:
    def __init__(self, device: Device, rng: Random) -> None:
        self._device = device
        self._rng = rng

    async def all(self, store: Store, model: Model, replica: Replica) -> None:
        for chunk in range(CHUNKS):
            for first, count in runs():
                await self.read(store, model, replica, chunk, first, count)

    async def read(
        self, store: Store, model: Model, replica: Replica, chunk: int, block: int, count: int
    ) -> None:
        count = min(count, blocks_per_chunk() - block)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        lsn = replica.state.commit
        wanted = [model.version((chunk, block + at), lsn)[1] for at in range(count)]
        store.reader.read(replica, chunk, block, count, got.set_result)
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
                where = f"{chunk}/{block + at} of replica {model.identity} at LSN {lsn}"
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
        try:
            ranges = list(replica.table.tombstones)
            sent: dict[tuple[int, int], tuple[int, bool]] = {}
            for first, end, discard in ranges:
                for key in keys():
                    if first <= key[0] < end and discard > above:
                        sent[key] = (discard, False)
            following: int | None = 0
            while following is not None:
                cells, following = store.newer_blocks(replica, above, following, 4)
                for chunk, block, location, _, at in cells:
                    if at > sent.get((chunk, block), (0, False))[0]:
                        sent[chunk, block] = (at, bool(location))
        except Corrupt as error:
            if not self._device.damaged:
                raise Wrong(f"the index of replica {model.identity}: {error}") from error
            return
        for key in keys():
            written, number = model.version(key, lsn)
            if written > above and sent.get(key) != (written, bool(number)):
                what = f"{key} of replica {model.identity} at LSN {lsn}, above {above}"
                raise Wrong(f"who copies {what} hears {sent.get(key)}, written {written}")
            if written <= above and key in sent:
                raise Wrong(f"{key} of replica {model.identity} has LSN {sent[key][0]}, not {written}")

    def scrubbed(self, store: Store, asked: list[Replica]) -> None:
        """What a pass says of each block, held against the disk itself."""
        for replica in asked:
            if replica.damaged:
                continue
            check = store.scrubber.check(replica)
            self._stored_pages(store, replica)
            for chunk in range(CHUNKS):
                for block, (location, expected, _) in enumerate(
                    store.index.find(replica.table, chunk, 0, blocks_per_chunk())
                ):
                    if location:
                        name = store.log.segments[location >> OFFSET_BITS].name
                        at = location & OFFSET_MASK
                        data = self._device.disk.files[name].now[at : at + BLOCK_SIZE]
                        self._same(check, (chunk, block), block_sum(data) != expected)
            if bool(check.verified_ms) == bool(check.bad):
                raise Wrong(f"replica {replica.info.replica} is verified at {check.verified_ms}: {check.bad}")

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
                for chunk in range(CHUNKS):
                    for location, _, _ in store.index.find(replica.table, chunk, 0, blocks_per_chunk()):
                        if location:
                            number = location >> OFFSET_BITS
                            alive[number] = alive.get(number, 0) + BLOCK_SIZE
                            own += BLOCK_SIZE
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
