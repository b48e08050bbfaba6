"""Power failures of a whole device at every system call: superblock, segments and index, on a real file
system.

A life of a store is recorded (``store_workload.py``), and cut after each call that writes, syncs, makes or
renames anything (``trace.py`` says which states of the disk are possible then). Each state is opened by the
real store, and must hold what was acknowledged by then, with the promise, no more than was asked for, and no
damage: a crash is no corruption. Then it goes on: one more record is written, and some states begin a second
and third life.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import xxhash

from moorage.node import store as store_module
from moorage.node.replica import Replica
from moorage.node.store import Store
from moorage.node.superblock import FILE, Superblock
from moorage.quorum.history import UNKNOWN, epoch_at
from moorage.quorum.record import BLOCK_SIZE, Kind, Record
from moorage.quorum.state import MemberState

from ...prerequisites import require
from . import store_workload as workload
from . import trace
from .store_workload import BLOCKS, CHUNKS, Plan, Step

Cells = dict[tuple[int, int], tuple[int, int]]  # (chunk, block) -> (LSN, hash of what it holds)


class Given(NamedTuple):
    said: int  # place in what was said
    step: Step
    note: bool


@dataclass
class Found:
    """What the store made of a disk."""

    fields: dict[str, Any]
    replicas: dict[int, tuple[MemberState, Cells]]


# -- what must be there ------------------------------------------------------------------------------


@cache
def touched(identity: int, epoch: int, lsn: int, blocks_max: int) -> list[tuple[tuple[int, int], int]]:
    """Blocks that a record writes, with a hash; 0: it empties them."""
    one = workload.record(identity, epoch, lsn, blocks_max)
    match one.kind:
        case Kind.WRITE:
            return [
                ((one.chunk, one.block + at), xxhash.xxh3_64_intdigest(_part(one, at)))
                for at in range(one.count)
            ]
        case Kind.ZERO:
            return [((one.chunk, one.block + at), 0) for at in range(one.count)]
        case Kind.ZERO_CHUNKS:
            return [((one.chunk + at, block), 0) for at in range(one.count) for block in range(BLOCKS)]
    return []


def _part(one: Record, at: int) -> bytes:
    return bytes(one.data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])


class Expected:
    """What the marks of one life allow, at any place of it."""

    def __init__(self, plan: Plan, said: list[str]) -> None:
        self.plan = plan
        self.blocks: list[tuple[int, dict[str, Any]]] = []
        self.given: dict[int, list[Given]] = defaultdict(list)
        self.acked: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.commits: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.merged: dict[int, list[tuple[int, str, list[int]]]] = defaultdict(list)
        for identity, step in plan.replicas.items():
            self.given[identity].append(Given(-1, step, False))
            self.acked[identity].append((-1, 0))
        for at, line in enumerate(said):
            self._take(at, *json.loads(line))
        self.epoch = max([plan.epoch, *(MemberState.unpack(g.step.state).epoch for g in self._notes())])
        self.next_id = max([plan.next_id - 1, *self.given]) + 1

    def _notes(self) -> Iterator[Given]:
        return (each for steps in self.given.values() for each in steps if each.note)

    def _take(self, at: int, what: str, *rest: Any) -> None:
        match what, rest:
            case "block", (fields,):
                self.blocks.append((at, fields))
            case "given", (identity, number, state, epochs, note):
                if not self.given[identity]:
                    self.given[identity].append(Given(-1, Step(None), False))
                    self.acked[identity].append((-1, 0))
                assert number == len(self.given[identity])
                step = Step(None if state is None else bytes.fromhex(state), tuple(epochs))
                self.given[identity].append(Given(at, step, note))
            case "acked", (identity, number):
                self.acked[identity].append((at, number))
            case "commit", (identity, lsn):
                self.commits[identity].append((at, lsn))
            case "merged", (identity, which, lsns):
                self.merged[identity].append((at, which, lsns))

    # -- checks ---------------------------------------------------------------------------------------

    def check(self, found: Found | None, said: int) -> dict[int, Step]:
        """Assert that ``found`` is possible when so much had been said; the step at which each replica is."""
        self._check_block(found, said)
        steps: dict[int, Step] = {}
        for identity in sorted({*self.given, *(found.replicas if found else ())}):
            step = self._check_replica(identity, found.replicas.get(identity) if found else None, said)
            if step.state is not None:
                steps[identity] = step
        return steps

    def _check_block(self, found: Found | None, said: int) -> None:
        durable = [fields for at, fields in self.blocks if at < said]
        coming = [fields for at, fields in self.blocks if at >= said][:1]
        if found is None:
            assert not durable, "the superblock is gone"
        else:
            assert found.fields in [*durable[-1:], *coming] or not durable, "the superblock went back"

    def _check_replica(self, identity: int, found: tuple[MemberState, Cells] | None, said: int) -> Step:
        steps = self.given[identity]
        acked = max((number for at, number in self.acked[identity] if at < said), default=0)
        given = max((number for number, each in enumerate(steps) if each.said < said), default=0)
        for number in range(acked, given + 1):
            if self._is(steps[number].step, found):
                if found is not None:
                    self._check_commit(identity, number, found[0], said)
                    self._check_cells(identity, steps[number].step, *found, said)
                return steps[number].step
        states = [_words(each.step.state) for each in steps[acked : given + 1]]
        raise AssertionError(f"replica {identity} is {_words(found and found[0].pack())}, none of {states}")

    def _is(self, step: Step, found: tuple[MemberState, Cells] | None) -> bool:
        if found is None or step.state is None:
            return found is None and step.state is None
        want, state = MemberState.unpack(step.state), found[0]
        return _summary(want) == _summary(state) and all(
            epoch_at(state.history, lsn) in (UNKNOWN, step.epochs[lsn - 1])
            for lsn in range(1, state.last + 1)
        )

    def _check_commit(self, identity: int, number: int, state: MemberState, said: int) -> None:
        steps = self.given[identity]
        told = max([0, *(lsn for at, lsn in self.commits[identity] if at < said)])
        known = [
            MemberState.unpack(each.step.state).commit for each in steps[: number + 1] if each.step.state
        ]
        noted = [
            MemberState.unpack(each.step.state).commit
            for each in steps[: number + 1]
            if each.note and each.step.state
        ]
        assert max(noted, default=0) <= state.commit <= max([told, *known])

    def _check_cells(self, identity: int, step: Step, state: MemberState, cells: Cells, said: int) -> None:
        """Exactly the records up to the commit LSN; during a copy, at least what was copied, from its log."""
        upto = state.commit if state.copy is None else max(state.commit, state.copy.until.lsn)
        writes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for lsn in range(1, upto + 1):
            for key, content in touched(identity, step.epochs[lsn - 1], lsn, self.plan.blocks_max):
                writes[key].append((lsn, content))
        for key, cell in cells.items():
            assert cell in writes[key], f"{key} of replica {identity} holds what nobody wrote"
        sure = self._sure(identity, state, upto, said)
        for key, known in writes.items():
            least = max((lsn for lsn, _ in known if lsn in sure), default=0)
            allowed = [cell for cell in known if cell[0] >= least]
            if key in cells:
                assert cells[key] in allowed, f"{key} of replica {identity} is an old version"
            else:
                empty = not least or any(content == 0 for _, content in allowed)
                assert empty, f"{key} of replica {identity} is empty, LSN {least} wrote it"

    def _sure(self, identity: int, state: MemberState, upto: int, said: int) -> set[int]:
        if state.copy is None:
            return set(range(1, upto + 1))
        which = repr(state.copy).replace("copied=True", "copied=False")
        merged = {n for at, copy, lsns in self.merged[identity] if at < said and copy == which for n in lsns}
        return merged | set(range(1, state.copy.above + 1)) | set(range(state.base + 1, state.commit + 1))


def _summary(state: MemberState) -> tuple[Any, ...]:
    copy = state.copy
    ends = (
        None
        if copy is None
        else (copy.base, copy.above, copy.until, copy.old, copy.floor, copy.copied, copy.attempt)
    )
    return (state.epoch, state.writer, state.last, ends, state.damaged, state.promise_lost)


def _words(packed: bytes | None) -> str:
    if packed is None:
        return "not there"
    state = MemberState.unpack(packed)
    return f"{_summary(state)} commit {state.commit} {state.history[-3:]}"


# -- what is there -----------------------------------------------------------------------------------


async def look(directory: Path, plan: Plan, again: bool) -> Found | None:
    """Open a device as a start does, look at all of it, go on with it; ``again``: a second time."""
    found = await _look(directory, plan, {})
    if found is not None and again:
        promised = {identity: state for identity, (state, _) in found.replicas.items()}
        after = await _look(directory, plan, promised)
        assert after is not None
    return found


async def _look(directory: Path, plan: Plan, former: dict[int, MemberState]) -> Found | None:
    if not (directory / FILE).exists() and not list(directory.glob("segments/*.seg")):
        return None
    block = Superblock(directory, None)
    try:
        found = Found(asdict(block.fields), {})
        store = Store(workload.config(directory, block, plan))
        try:
            report = await store.open()
            assert not report.damaged and not report.notes, report
            for identity, replica in store.replicas.items():
                replica.validate()
                if identity in former:
                    assert _summary(replica.state)[:3] == (
                        _next(former[identity])[0],
                        1,
                        _next(former[identity])[1],
                    )
                found.replicas[identity] = (replica.state.clone(), await _cells(store, replica))
            await _go_on(store, plan)
            assert store.failed is None
        finally:
            await store.close(checkpoint=False)
        return found
    finally:
        block.close()


def _next(state: MemberState) -> tuple[int, int]:
    """(epoch, last LSN) after `_go_on`."""
    return state.epoch + 1000, state.last + 1


async def _cells(store: Store, replica: Replica) -> Cells:
    cells: Cells = {}
    for chunk in range(CHUNKS + 1):
        got = asyncio.get_running_loop().create_future()
        store.reader.read(replica, chunk, 0, BLOCKS, got.set_result)
        result = await got
        assert isinstance(result, tuple), result
        _, data = result
        for block, (where, _, lsn) in enumerate(store.index.find(replica.table, chunk, 0, BLOCKS)):
            if where:
                part = data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
                cells[chunk, block] = (lsn, xxhash.xxh3_64_intdigest(part))
    return cells


async def _go_on(store: Store, plan: Plan) -> None:
    """A promise and a record more for each replica, which become durable."""
    waiting = []
    for identity, replica in store.replicas.items():
        state, done = replica.state.clone(), asyncio.get_running_loop().create_future()
        replica.on_persisted = lambda ticket, done=done: ticket == 2 and done.set_result(None)  # type: ignore[misc]
        epoch, lsn = _next(state)
        state.epoch, state.writer = epoch, 1
        store.note(replica, state.pack(), 1)
        store.append(replica, [workload.record(identity, epoch, lsn, plan.blocks_max)], 2)
        waiting.append(done)
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    for replica in store.replicas.values():
        replica.validate()


# -- lives -------------------------------------------------------------------------------------------


@pytest.fixture
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    require(trace.unusable())
    monkeypatch.setattr(store_module, "check_index", workload.check_here)
    return Lives(tmp_path)


class Lives:
    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.scratch = directory / "scratch"
        self.directory = directory
        self.root.mkdir()
        self.looked = self.judged = 0

    def live(self, plan: Plan) -> trace.Trace:
        """One more life of what is below ``root``."""
        marks, plan_file, output = (self.directory / name for name in ("marks", "plan", "strace"))
        marks.unlink(missing_ok=True)
        plan.store(plan_file)
        machine = trace.Machine.of(self.root, marks)
        program = [
            sys.executable,
            str(workload.__file__),
            str(self.root / "device"),
            str(marks),
            str(plan_file),
        ]
        path = os.pathsep.join(each for each in sys.path if each)
        trace.record(program, output, {**os.environ, "PYTHONPATH": path}, timeout=60)
        return trace.Trace(machine, output)

    async def check(
        self, plan: Plan, life: trace.Trace, rng: Random, *, torn: int, seconds: float, share: float
    ) -> tuple[trace.Image, Plan]:
        """Look at crash states; returns one from the second half, and the plan to go on with it."""
        expected, seen, deadline = Expected(plan, life.said), {}, time.monotonic() + trace.at_most(seconds)
        chosen: tuple[trace.Image, Plan] | None = None
        for crash in life.crashes(rng, torn=torn, share=share):
            key = crash.image.key
            try:
                if key not in seen:
                    crash.image.build(self.scratch)
                    seen[key] = await look(self.scratch / "device", plan, rng.random() < 0.2)
                    self.looked += 1
                steps = expected.check(seen[key], crash.said)
            except BaseException as error:
                crash.image.build(self.scratch)
                error.add_note(f"{plan.seed=}, {crash.name}; the disk is in {self.scratch}")
                raise
            self.judged += 1
            if crash.said > len(life.said) // 2 and (chosen is None or rng.random() < 0.01):
                chosen = crash.image, self._next(plan, expected, steps, seen[key])
            assert time.monotonic() < deadline, f"{self.looked} states in {seconds} s"
        assert chosen is not None
        return chosen

    def _next(self, plan: Plan, expected: Expected, steps: dict[int, Step], found: Found | None) -> Plan:
        assert found is not None
        replicas = {
            identity: Step(state.pack(), steps[identity].epochs)
            for identity, (state, _) in found.replicas.items()
        }
        fields = {**vars(plan), "seed": plan.seed + 1, "epoch": expected.epoch, "next_id": expected.next_id}
        return Plan(**{**fields, "replicas": replicas})


async def histories(lives: Lives, plan: Plan, count: int, *, torn: int, share: float, seconds: float) -> None:
    rng = Random(plan.seed)
    for _ in range(count):
        life = await asyncio.to_thread(lives.live, plan)
        image, plan = await lives.check(plan, life, rng, torn=torn, share=share, seconds=seconds)
        image.build(lives.root)
    print(f"{lives.looked} states were opened, {lives.judged} judged")  # noqa: T201


@pytest.mark.timeout(trace.at_most(120))
async def test_a_device_survives_power_failures(lives: Lives) -> None:
    await histories(lives, Plan(1, 120, 128 << 10, 32, 4), 3, torn=2, share=0.012, seconds=60)


@pytest.mark.slow
@pytest.mark.timeout(trace.at_most(300))
@pytest.mark.parametrize(
    "plan",
    [Plan(1000, 300, 128 << 10, 32, 4), Plan(2000, 100, 1 << 20, 16, BLOCKS)],
    ids=["small", "past the page cache"],
)
async def test_a_device_survives_many_power_failures(lives: Lives, plan: Plan) -> None:
    await histories(lives, plan, 4, torn=6, share=0.02, seconds=200)
