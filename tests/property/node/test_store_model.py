"""The store against a model of plain dicts, through power losses, kills and restarts at any moment."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest

from moorage.node.memory_disk import MemoryDisk
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import Run, RunKind
from moorage.node.store import Store, StoreConfig
from moorage.quorum.history import epoch_at
from moorage.quorum.record import BLOCK_SIZE, Kind, Position, Record, block_sum, block_sums
from moorage.quorum.state import CopyState, MemberState

SEGMENT = 256 << 10
CAPACITY = (16 << 20) + 40 * SEGMENT
CHUNKS = 6


def fill(seed: int) -> bytes:
    return seed.to_bytes(8, "little") * (BLOCK_SIZE // 8)


class Model:
    """One replica as it must be: every record handed over, and how far it is known to be durable."""

    def __init__(self, identity: int) -> None:
        self.identity = identity
        self.epoch = 1
        self.records: list[Record] = []  # LSN n at n - 1
        self.given: dict[tuple[int, int], Record] = {}  # all there ever were, by position
        self.durable = 0
        self.commit = 0
        self.tickets: dict[int, int] = {}
        self.ticket = 0

    def blocks(self, lsn: int) -> dict[tuple[int, int], bytes]:
        """Contents with the records up to ``lsn``."""
        found: dict[tuple[int, int], bytes] = {}
        for record in self.records[:lsn]:
            if record.kind == Kind.ZERO_CHUNKS:
                for key in [k for k in found if record.chunk <= k[0] < record.chunk + record.count]:
                    del found[key]
            for at in range(record.count if record.kind in (Kind.WRITE, Kind.ZERO) else 0):
                key = (record.chunk, record.block + at)
                if record.kind == Kind.WRITE:
                    found[key] = bytes(record.data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])
                else:
                    found.pop(key, None)
        return found


class Harness:
    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        self.disk = MemoryDisk()
        self.models: dict[int, Model] = {}
        self.store: Store
        self.fills = 0

    async def open(self) -> None:
        config = StoreConfig(
            self.directory,
            b"0123456789abcdef",
            CAPACITY,
            SEGMENT,
            index_pages_max=8,
            checkpoint_seconds=1e9,
        )
        self.store = Store(config, self.disk)
        report = await self.store.open()
        assert not report.damaged, report
        for identity, model in list(self.models.items()):
            replica = self.store.replica(identity)
            self.recovered(model, replica)
            await self.check(model)  # what it shows fits what it says that it has applied
            self.store.apply(replica, model.commit)

    def recovered(self, model: Model, replica: Replica) -> None:
        """Nothing durable is missing, nothing is there that was never handed over."""
        state = replica.state
        replica.validate()
        assert model.durable <= state.last
        assert state.commit <= model.commit
        # A cut that was not durable yet never happened: the log may be any that was handed over meanwhile.
        # Then what was committed on top of it elsewhere is not here, and only the common part may be applied.
        before = model.records[: model.commit]
        model.records = [model.given[epoch_at(state.history, lsn), lsn] for lsn in range(1, state.last + 1)]
        pairs = zip(before, model.records, strict=False)
        common = next((at for at, (ours, found) in enumerate(pairs) if ours is not found), len(before))
        assert state.commit <= common
        model.epoch += 1
        for lsn, (record, _) in replica.tail.items():
            expected = model.records[lsn - 1]
            assert (record.epoch, record.kind, record.chunk, record.block, record.count) == (
                expected.epoch,
                expected.kind,
                expected.chunk,
                expected.block,
                expected.count,
            )
        model.durable = state.last
        model.commit = min(common, state.last)
        replica.on_persisted = lambda ticket: self.persisted(model, ticket)

    def persisted(self, model: Model, ticket: int) -> None:
        model.durable = max(model.durable, model.tickets.get(ticket, 0))

    # -- operations ------------------------------------------------------------------------------

    async def create(self) -> None:
        identity = len(self.models) + 1
        model = self.models[identity] = Model(identity)
        done = asyncio.get_running_loop().create_future()
        self.store.create(ReplicaInfo(identity, 1, 0, "sync", 3), done.set_result)
        assert await done is None
        self.store.replica(identity).on_persisted = lambda ticket: self.persisted(model, ticket)

    def record(self, model: Model, lsn: int) -> Record:
        rng = self.rng
        kind = rng.choices([Kind.WRITE, Kind.ZERO, Kind.ZERO_CHUNKS, Kind.BARRIER], [20, 3, 1, 1])[0]
        if kind == Kind.BARRIER:
            return Record(model.epoch, lsn, kind)
        chunk = rng.randrange(CHUNKS)
        if kind == Kind.ZERO_CHUNKS:
            return Record(model.epoch, lsn, kind, chunk, 0, rng.randint(1, 3))
        block, count = rng.randrange(60), rng.randint(1, 4)
        if kind == Kind.ZERO:
            return Record(model.epoch, lsn, kind, chunk, block, count)
        parts = []
        for _ in range(count):
            self.fills += 1
            parts.append(fill(self.fills))
        data = b"".join(parts)
        return Record(model.epoch, lsn, kind, chunk, block, count, block_sums(data), data)

    def append(self, model: Model) -> None:
        replica = self.store.replica(model.identity)
        first = len(model.records) + 1
        if self.rng.random() < 0.1 and first - 1 > model.commit:  # a new epoch replaces some of the tail
            model.epoch += 1
            first = self.rng.randint(model.commit + 1, first - 1)
            del model.records[first - 1 :]
            model.durable = min(model.durable, first - 1)
            model.tickets = {t: min(lsn, first - 1) for t, lsn in model.tickets.items()}
        records = [self.record(model, first + at) for at in range(self.rng.randint(1, 4))]
        model.records += records
        model.given |= {(each.epoch, each.lsn): each for each in records}
        model.ticket += 1
        model.tickets[model.ticket] = len(model.records)
        self.store.append(replica, list(records), model.ticket)

    def apply(self, model: Model) -> None:
        model.commit = self.rng.randint(model.commit, len(model.records))
        self.store.apply(self.store.replica(model.identity), model.commit)

    def note(self, model: Model) -> None:
        """The member's state as the core would log it: with what is accepted, and applied, by now."""
        replica = self.store.replica(model.identity)
        state = MemberState(model.identity, epoch=model.epoch, commit=model.commit, last=len(model.records))
        for record in model.records:
            if not state.history or state.history[-1][0] != record.epoch:
                state.history.append((record.epoch, record.lsn))
        model.ticket += 1
        model.tickets[model.ticket] = len(model.records)
        self.store.note(replica, state.pack(), model.ticket)

    async def check(self, model: Model) -> None:
        """Every block reads as the model says, at the position that the store has applied."""
        replica = self.store.replica(model.identity)
        expected = model.blocks(replica.state.commit)
        for chunk in range(CHUNKS + 3):
            got = asyncio.get_running_loop().create_future()
            self.store.reader.read(replica, chunk, 0, 64, got.set_result)
            result = await got
            assert isinstance(result, tuple), result
            sums, data = result
            for block in range(64):
                want = expected.get((chunk, block))
                check = int.from_bytes(sums[block * 8 : block * 8 + 8], "little")
                assert check == (block_sum(want) if want is not None else 0), (chunk, block)
                if want is not None and data is not None:
                    assert data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] == want

    async def check_tail(self, model: Model) -> None:
        replica = self.store.replica(model.identity)
        found = await self.store.reader.records(replica, replica.tail_from, replica.state.last, 1 << 30)
        for record in found:
            assert bytes(record.data) == bytes(model.records[record.lsn - 1].data)

    def check_live(self) -> None:
        """What the accounts of the segments say is what the index says."""
        live: dict[int, int] = {}
        for replica in self.store.replicas.values():
            for chunk in range(CHUNKS + 3):
                for where, _, _ in self.store.index.find(replica.table, chunk, 0, 1024):
                    if where:
                        live[where >> 32] = live.get(where >> 32, 0) + BLOCK_SIZE
        assert live == {number: size for number, size in self.store.index.live.items() if size}

    async def compact(self) -> None:
        segment = self.store.compactor.choose(self.store.checkpointer.segment)
        if segment is not None:
            await self.store.compactor.compact(segment)

    # -- ends of a life ----------------------------------------------------------------------------

    async def crash(self, power: bool) -> None:
        """End without a warning, with a group commit in the middle if there is one to be had."""
        frozen, released = threading.Event(), threading.Event()

        def on_event(call: str, name: str) -> None:
            if call == "fdatasync":
                frozen.set()
                released.wait(10)
                raise OSError(5, "the power is gone")

        background = asyncio.create_task(self.store.checkpoint()) if self.rng.random() < 0.5 else None
        await asyncio.sleep(0)
        self.disk.on_event = on_event
        for model in self.models.values():
            self.append(model)
        await asyncio.to_thread(frozen.wait, 10)
        if background is not None:
            if self.rng.random() < 0.5:
                background.cancel()
            await asyncio.wait([background])
        after = self.disk.crash(self.rng if power else None)
        released.set()
        await self.store.close(checkpoint=False)
        self.disk = after
        await self.open()

    async def restart(self) -> None:
        await self.store.close(checkpoint=self.rng.random() < 0.5)
        await self.open()


async def history(directory: Path, seed: int, steps: int) -> None:
    rng = random.Random(seed)
    harness = Harness(directory, rng)
    await harness.open()
    for _ in range(2):
        await harness.create()
    for _ in range(steps):
        model = rng.choice(list(harness.models.values()))
        match rng.choices(
            [
                "append",
                "apply",
                "note",
                "yield",
                "flush",
                "check",
                "checkpoint",
                "compact",
                "kill",
                "power",
                "restart",
            ],
            [30, 15, 2, 10, 5, 3, 2, 6, 1, 2, 0.5],
        )[0]:
            case "append":
                harness.append(model)
            case "apply":
                harness.apply(model)
            case "note":
                harness.note(model)
            case "yield":
                await asyncio.sleep(0)
            case "flush":
                await harness.store.flushed()
            case "check":
                await harness.check(model)
            case "checkpoint":
                await harness.store.checkpoint()
            case "compact":
                await harness.compact()
            case "kill":
                await harness.crash(power=False)
            case "power":
                await harness.crash(power=True)
            case "restart":
                await harness.restart()
    await harness.store.flushed()
    harness.check_live()
    for model in harness.models.values():
        assert model.durable == len(model.records)
        await harness.check(model)
        await harness.check_tail(model)
    await harness.store.close()


@pytest.mark.parametrize("seed", range(8))
async def test_histories(tmp_path: Path, seed: int) -> None:
    await history(tmp_path, seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1040))
async def test_many_histories(tmp_path: Path, seed: int) -> None:
    await history(tmp_path, seed, 300)


async def test_copied_blocks_and_reset(tmp_path: Path) -> None:
    """Runs from another member: the greater LSN wins; a fresh start drops all, also after a restart."""
    harness = Harness(tmp_path, random.Random(1))
    await harness.open()
    await harness.create()
    replica = harness.store.replica(1)
    harness.models.clear()  # this log is not made of records

    async def merge(lsn: int, seed: int) -> None:
        done = asyncio.get_running_loop().create_future()
        data = fill(seed)
        run = Run(RunKind.DATA, 0, 5, (lsn,), (block_sum(data),))
        harness.store.merge(replica, [run], [data], done.set_result)
        assert await done is None

    async def read() -> bytes | None:
        got = asyncio.get_running_loop().create_future()
        harness.store.reader.read(harness.store.replica(1), 0, 5, 1, got.set_result)
        result = await got
        return None if result[1] is None else bytes(result[1])

    await merge(10, 1)
    await merge(9, 2)
    assert await read() == fill(1)
    await harness.store.close(checkpoint=True)
    await harness.open()
    assert await read() == fill(1)
    replica = harness.store.replica(1)
    fresh = CopyState(Position(3, 10), 0, Position(3, 10), Position(0, 0))
    state = MemberState(1, epoch=3, history=[(3, 10)], commit=10, last=10, copy=fresh)
    harness.store.note(replica, state.pack(), 1)
    await harness.store.flushed()
    assert await read() is None
    await merge(4, 3)
    await harness.store.close(checkpoint=False)
    await harness.open()
    assert await read() == fill(3)
    await harness.store.checkpoint()  # which sweeps the table that was given up
    harness.check_live()
    await harness.store.close()
