"""A life of a store, to be recorded: ``store_workload.py DIRECTORY MARKS PLAN`` (a pickled ``Plan``).

Everything a device does is in it: replicas made and dropped, promises, records (often of equal length), tails
that are replaced, checkpoints, compaction, segments used again, copies with and without a fresh start. Before
it asks the store for anything it says so in MARKS, and again when it was told that it is durable:

``["block", FIELDS]``            the superblock holds this; the only one said afterwards
``["given", ID, N, STATE, EPOCHS, NOTE]``  step N of a replica was asked for; NOTE: its whole state was
``["acked", ID, N]``             all steps of it up to N are durable
``["commit", ID, LSN]``          the store was told that these are committed
``["merged", ID, COPY, LSNS]``   the blocks of these records were copied, in this copy, and are durable
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import pickle
import random
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from moorage.node import store as store_module
from moorage.node.replica import Replica, ReplicaInfo
from moorage.node.segment import Run, RunKind
from moorage.node.store import Store, StoreConfig
from moorage.node.superblock import Superblock
from moorage.quorum.record import BLOCK_SIZE, Kind, Position, Record, block_sum, block_sums
from moorage.quorum.state import CopyState, MemberState
from moorage.service import lmdb_check

CHUNKS = 4
BLOCKS = 24  # of each chunk
MERGED_AT_ONCE = 6


@dataclass(frozen=True)
class Step:
    """What a replica is after it: ``state`` packed, None when it is not there; ``epochs``: of each LSN of its
    group's log from 1 to ``last``, also of those that it only has by a copy."""

    state: bytes | None
    epochs: tuple[int, ...] = ()


@dataclass
class Plan:
    seed: int
    steps: int
    segment: int
    slots: int
    blocks_max: int
    epoch: int = 1  # none up to here is given again
    replicas: dict[int, Step] = field(default_factory=dict)
    next_id: int = 1

    @property
    def capacity(self) -> int:
        return (8 << 20) + self.slots * self.segment

    def store(self, path: Path) -> None:
        replicas = {each: (step.state, step.epochs) for each, step in self.replicas.items()}
        path.write_bytes(pickle.dumps({**vars(self), "replicas": replicas}))

    @classmethod
    def load(cls, path: Path) -> Plan:
        fields = pickle.loads(path.read_bytes())
        return cls(**{**fields, "replicas": {each: Step(*step) for each, step in fields["replicas"].items()}})


def fill(*of: int) -> bytes:
    return b"".join(each.to_bytes(8, "little") for each in of) * (BLOCK_SIZE // 8 // len(of))


@cache
def record(replica: int, epoch: int, lsn: int, blocks_max: int) -> Record:
    """The record at a position: the same whenever it is asked for."""
    rng = random.Random(f"{replica} {epoch} {lsn}")
    kind = rng.choices([Kind.WRITE, Kind.ZERO, Kind.ZERO_CHUNKS, Kind.BARRIER], [24, 2, 0.5, 1])[0]
    if kind == Kind.BARRIER:
        return Record(epoch, lsn, kind)
    chunk = rng.randrange(CHUNKS)
    if kind == Kind.ZERO_CHUNKS:
        return Record(epoch, lsn, kind, chunk, 0, rng.randint(1, 2))
    count = rng.choice((1, 1, 1, 2, blocks_max) if blocks_max < 16 else (1, blocks_max, blocks_max))
    block = rng.randrange(BLOCKS - count + 1)
    if kind == Kind.ZERO:
        return Record(epoch, lsn, kind, chunk, block, count)
    data = b"".join(fill(replica, epoch, lsn, block + at) for at in range(count))
    return Record(epoch, lsn, kind, chunk, block, count, block_sums(data), _aligned(data))


def _aligned(data: bytes) -> memoryview:
    """In memory that begins at a page, as a connection has it: only that is written past the page cache."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memoryview(memory)


def runs(one: Record) -> tuple[list[Run], list[bytes]]:
    """A record as a copy would bring it."""
    lsns = (one.lsn,) * one.count
    match one.kind:
        case Kind.WRITE:
            data = bytes(one.data)
            parts = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
            return [Run(RunKind.DATA, one.chunk, one.block, lsns, tuple(map(block_sum, parts)))], [data]
        case Kind.ZERO:
            return [Run(RunKind.ZERO, one.chunk, one.block, lsns, ())], []
        case Kind.ZERO_CHUNKS:
            return [Run(RunKind.CHUNKS, one.chunk, one.count, (one.lsn,), ())], []
    return [], []


def config(directory: Path, block: Superblock, plan: Plan) -> StoreConfig:
    fields = block.fields
    device, seed = bytes.fromhex(fields.device), int(fields.seed, 16)
    return StoreConfig(
        directory, device, plan.capacity, plan.segment, seed, index_pages_max=4, checkpoint_seconds=1e9
    )


async def check_here(path: Path) -> None:
    """The index is looked at in this process, not in a child: the same check, a hundred times faster."""
    lmdb_check.check(path, sealed=False)


class Member:
    """One replica as its writer drives it."""

    def __init__(self, life: Life, identity: int, step: Step) -> None:
        self.life = life
        self.identity = identity
        self.state = MemberState(identity) if step.state is None else MemberState.unpack(step.state)
        self.epochs = list(step.epochs)
        self.step = 0
        self.to_copy: list[int] = []
        self.copying: list[asyncio.Future[Any]] = []

    @property
    def replica(self) -> Replica:
        return self.life.store.replica(self.identity)

    def took(self) -> None:
        self.replica.on_persisted = lambda step: self.life.say("acked", self.identity, step)

    def given(self, note: bool = False, gone: bool = False) -> int:
        self.step += 1
        state = None if gone else self.state.pack().hex()
        self.life.say("given", self.identity, self.step, state, self.epochs, note)
        return self.step

    def note(self) -> None:
        self.life.store.note(self.replica, self.state.pack(), self.given(note=True))

    def seal(self) -> None:
        self.life.epoch += 1
        self.state.epoch, self.state.writer = self.life.epoch, self.life.rng.randint(1, 1 << 40)
        self.note()

    def append(self, count: int) -> None:
        rng, state = self.life.rng, self.state
        first, epoch = state.last + 1, self.epochs[-1] if self.epochs else state.epoch
        if epoch < state.epoch and (rng.random() < 0.5 or state.copy is not None):
            epoch = state.epoch
            if rng.random() < 0.5 and state.last > state.commit:  # it replaces some of the tail
                first = rng.randint(state.commit + 1, state.last)
        del self.epochs[first - 1 :]
        self.epochs += [epoch] * count
        records = [record(self.identity, epoch, first + at, self.life.plan.blocks_max) for at in range(count)]
        for each in records:
            state.replay_record(each)
        self.life.store.append(self.replica, records, self.given())

    def apply(self) -> None:
        state = self.state
        state.commit = self.life.rng.randint(state.commit, state.last)
        self.life.say("commit", self.identity, state.commit)
        self.life.store.apply(self.replica, state.commit)

    # -- copies ---------------------------------------------------------------------------------------

    def begin_copy(self, fresh: bool) -> None:
        """The group went on without it: it gets what it missed as blocks, and its log begins anew."""
        rng, state = self.life.rng, self.state
        self.seal()
        former = state.copy
        above = 0 if fresh or former is not None else state.commit
        until = state.commit + rng.randint(1, 6)
        del self.epochs[state.commit :]
        self.epochs += [state.epoch] * (until - len(self.epochs))
        at = Position(self.epochs[until - 1], until)
        attempt = 1 if former is None else former.attempt + 1
        state.copy = CopyState(at, above, at, state.vote, state.vote, attempt=attempt)
        state.history, state.commit, state.last = [(at.epoch, at.lsn)], until, until
        self.note()
        self.to_copy = list(range(above + 1, until + 1))
        rng.shuffle(self.to_copy)

    def copy_some(self) -> None:
        lsns, self.to_copy = self.to_copy[:MERGED_AT_ONCE], self.to_copy[MERGED_AT_ONCE:]
        records = [record(self.identity, self.epochs[n - 1], n, self.life.plan.blocks_max) for n in lsns]
        pairs = [runs(each) for each in records]
        which = repr(self.state.copy)
        done = self.life.loop.create_future()
        self.copying.append(done)

        def merged(error: object) -> None:
            assert error is None
            self.life.say("merged", self.identity, which, lsns)
            done.set_result(None)

        self.life.store.merge(
            self.replica,
            [run for some, _ in pairs for run in some],
            [d for _, data in pairs for d in data],
            merged,
        )

    async def end_copy(self) -> None:
        await asyncio.gather(*self.copying)
        self.copying = []
        assert self.state.copy is not None
        self.state.copy.copied = True
        self.note()
        self.state.copy = None
        self.note()


class Life:
    def __init__(self, directory: Path, marks: int, plan: Plan) -> None:
        self.directory = directory
        self.marks = marks
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.epoch = plan.epoch
        self.loop = asyncio.get_running_loop()
        self.members: dict[int, Member] = {}
        self.next_id = plan.next_id
        self.store: Store

    def say(self, *words: object) -> None:
        os.write(self.marks, json.dumps(words).encode() + b"\n")

    async def run(self) -> None:
        block = Superblock(self.directory, self.plan.capacity)
        self.say("block", asdict(block.fields))
        self.store = Store(config(self.directory, block, self.plan))
        await self.store.open()
        block.begin_move()
        self.say("block", asdict(block.fields))
        block.moved()
        self.say("block", asdict(block.fields))
        for identity, step in self.plan.replicas.items():
            member = self.members[identity] = Member(self, identity, step)
            member.took()
            member.seal()
        for _ in range(max(0, 2 - len(self.members))):
            await self.create()
        for at in range(self.plan.steps):
            if at % 40 == 0:
                block.reserve_counts()
                self.say("block", asdict(block.fields))
            await self.one()
        await self.store.flushed()
        await self.store.close(checkpoint=self.rng.random() < 0.5)
        block.close()

    async def create(self) -> None:
        identity, self.next_id = self.next_id, self.next_id + 1
        member = Member(self, identity, Step(None))
        step = member.given()
        done = self.loop.create_future()
        self.store.create(ReplicaInfo(identity, 1, 0, "sync", 3), done.set_result)
        assert await done is None
        self.say("acked", identity, step)
        member.took()
        self.members[identity] = member
        member.seal()

    async def drop(self, member: Member) -> None:
        del self.members[member.identity]
        step = member.given(gone=True)
        done = self.loop.create_future()
        self.store.drop(member.identity, done.set_result)
        assert await done is None
        self.say("acked", member.identity, step)

    async def one(self) -> None:
        rng = self.rng
        member = rng.choice(list(self.members.values()))
        if member.state.copy is not None and rng.random() < 0.6:
            await self.copy(member)
            return
        names = [
            "append",
            "equal",
            "apply",
            "seal",
            "yield",
            "flush",
            "checkpoint",
            "compact",
            "copy",
            "drop",
        ]
        match rng.choices(names, [30, 10, 20, 2, 10, 12, 3, 5, 1, 0.5])[0]:
            case "append":
                member.append(rng.randint(1, 4))
            case "equal":  # one at a time: frames of equal length, as often as not
                for _ in range(4):
                    member.append(1)
                    await self.store.flushed()
            case "apply":
                member.apply()
            case "seal":
                member.seal()
            case "yield":
                await asyncio.sleep(0.001)
            case "flush":
                await self.store.flushed()
            case "checkpoint":
                await self.store.checkpoint()
            case "compact":
                await self.compact()
            case "copy" if not member.copying and not member.to_copy:
                member.begin_copy(fresh=rng.random() < 0.6)
            case "drop" if not member.copying:
                await self.drop(member)
                await self.create()

    async def copy(self, member: Member) -> None:
        if member.to_copy:
            member.copy_some()
        elif member.copying:
            await member.end_copy()
        else:
            member.begin_copy(fresh=True)  # it was under way when the former life ended

    async def compact(self) -> None:
        segment = self.store.compactor.choose(self.store.checkpointer.segment)
        if segment is None:
            return
        running = asyncio.create_task(self.store.compactor.compact(segment))
        for member in list(self.members.values()):
            member.append(1)
        await running
        await self.store.checkpoint()


async def main(directory: Path, marks: Path, plan_file: Path) -> None:
    store_module.check_index = check_here  # type: ignore[attr-defined]
    plan = Plan.load(plan_file)
    life = Life(directory, os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND), plan)
    await life.run()


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:4])))
