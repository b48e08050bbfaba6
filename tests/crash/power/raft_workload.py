"""A life of a Raft member's storage, to be recorded: ``raft_workload.py DIRECTORY MARKS SEED COUNT FORMER``.

It says in MARKS what it is about to commit and what it was told is durable: ``["given", N, DIGEST]`` and
``["acked", N]``, N from 1; commit 0 is the state after opening, ``["opened", INSTANCE, LIFE]``. FORMER is a
file with the model of what the directory holds already, or does not exist.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import xxhash

from moorage.quorum.raft_types import COMMAND, Config, Entry, HardState, Member, Snapshot, SnapshotChunk
from moorage.service import raft_storage
from moorage.service.identity import claim_directory
from moorage.service.lmdb_check import check
from moorage.service.raft_storage import Loaded, RaftStorage, Work

IDENTITY = {"cluster": "c", "group": "g", "name": "a"}
CONFIG = Config([Member("a", "unix:/a", True)])
IN_FLIGHT = 3


@dataclass
class Model:
    """What the storage must hold."""

    term: int = 0
    vote: str | None = None
    base: tuple[int, int] = (0, 0)  # index, term
    entries: list[tuple[int, int, bytes]] = field(default_factory=list)  # term, index, data
    applied: int = 0
    kv: dict[bytes, bytes] = field(default_factory=dict)

    def digest(self) -> str:
        kv = sorted(self.kv.items())
        packed = msgpack.packb([self.term, self.vote, self.base, self.entries, self.applied, kv])
        return str(xxhash.xxh3_64_hexdigest(packed))

    @property
    def last(self) -> int:
        return self.entries[-1][1] if self.entries else self.base[0]

    @classmethod
    def of(cls, storage: RaftStorage, loaded: Loaded) -> Model:
        log = loaded.log
        with storage.env.begin() as txn:
            keys = [bytes(key) for key, _ in txn.cursor(storage.kv_db)]
        stored = raft_storage.LmdbBase(storage.env, storage.kv_db, storage.where)
        kv = {key: value for key in keys if (value := stored.get(key)) is not None}
        entries = [(each.term, each.index, each.data) for each in log.entries]
        base = (log.base_index, log.base_term)
        return cls(loaded.hard_state.term, loaded.hard_state.vote, base, entries, loaded.applied, kv)


class Life:
    def __init__(self, model: Model, rng: Random) -> None:
        self.model = model
        self.rng = rng
        self.value = 0

    def work(self) -> Work:
        """Something to commit, and the model as it is then."""
        kinds = ["entries", "vote", "apply", "both", "compact", "snapshot"]
        match self.rng.choices(kinds, [30, 5, 15, 20, 5, 3])[0]:
            case "entries":
                return self.append(Work())
            case "vote":
                self.model.term, self.model.vote = self.model.term + 1, self.rng.choice([None, "a", "b"])
                return Work(hard_state=HardState(self.model.term, self.model.vote))
            case "apply":
                return self.apply(Work())
            case "both":
                return self.apply(self.append(Work()))
            case "compact":
                return self.compact(Work())
        return self.install(Work())

    def append(self, work: Work) -> Work:
        model, rng = self.model, self.rng
        first = model.last + 1
        if rng.random() < 0.3:  # a new leader replaces some of the tail
            first = rng.randint(model.applied + 1, first)
            model.term += 1
            work.hard_state = HardState(model.term, model.vote)
        model.entries = [each for each in model.entries if each[1] < first]
        term = max(1, model.term)
        model.term = term
        work.hard_state = HardState(term, model.vote)
        data = [rng.randbytes(rng.choice((9, 200, 5000))) for _ in range(rng.randint(1, 5))]
        work.entries = [Entry(term, first + at, COMMAND, each) for at, each in enumerate(data)]
        model.entries += [(each.term, each.index, each.data) for each in work.entries]
        return work

    def apply(self, work: Work) -> Work:
        model, rng = self.model, self.rng
        model.applied = work.applied = rng.randint(model.applied, model.last)
        for _ in range(rng.randint(1, 8)):
            key = b"key%d" % rng.randrange(40)
            value = rng.randbytes(rng.choice((20, 900, 9000))) if rng.random() < 0.8 else None
            work.batch[key] = value
            model.kv.pop(key, None)
            if value is not None:
                model.kv[key] = value
        return work

    def compact(self, work: Work) -> Work:
        model = self.model
        index = self.rng.randint(model.base[0], model.applied)
        terms = {index: term for term, index, _ in model.entries}
        model.base = (index, terms.get(index, model.base[1]))
        model.entries = [each for each in model.entries if each[1] > index]
        work.base = Snapshot(index, model.base[1], CONFIG)
        return work

    def install(self, work: Work) -> Work:
        model, rng = self.model, self.rng
        index, term = model.last + rng.randint(1, 5), max(1, model.term)
        kv = {b"key%d" % n: rng.randbytes(300) for n in range(rng.randint(1, 40))}
        work.install = Snapshot(index, term, CONFIG)
        halves = [sorted(kv.items())[:10], sorted(kv.items())[10:]]
        work.chunks = [
            SnapshotChunk(term, work.install, 1, seq, seq == 1, msgpack.packb(half))
            for seq, half in enumerate(halves)
        ]
        work.hard_state = HardState(term, model.vote)
        self.model = Model(term, model.vote, (index, term), [], index, kv)
        return work


async def check_here(path: Path, *, sealed: bool, advice: str) -> None:
    """In this process, not in a child: the same check, a hundred times faster."""
    check(path, sealed)


async def open_storage(directory: Path) -> tuple[RaftStorage, Loaded]:
    claim_directory(directory, cluster="c" * 16, name="a", kind="registry").release()
    storage = RaftStorage(directory / "raft", "g")
    return storage, await storage.open(IDENTITY, CONFIG)


async def main(directory: Path, marks: Path, seed: int, count: int, former: Path) -> None:
    raft_storage.check_in_child = check_here  # type: ignore[attr-defined]
    out = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words: Any) -> None:
        os.write(out, json.dumps(words).encode() + b"\n")

    model = Model(**pickle.loads(former.read_bytes())) if former.exists() else Model()
    say("given", 0, model.digest())
    storage, loaded = await open_storage(directory)
    say("opened", loaded.instance, loaded.life.number)
    life, running = Life(model, Random(seed)), asyncio.Semaphore(IN_FLIGHT)

    async def commit(number: int, work: Work) -> None:
        await storage.commit(work)
        say("acked", number)
        running.release()

    async with asyncio.TaskGroup() as tasks:
        for number in range(1, count + 1):
            await running.acquire()
            work = life.work()
            say("given", number, life.model.digest())
            tasks.create_task(commit(number, work))
            await asyncio.sleep(0)
    await storage.close()


if __name__ == "__main__":
    asyncio.run(
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    )
