"""Power failures of a Raft member's storage at every system call: hard state, entries, state and snapshots.

As ``test_store_power.py`` for the store: each state of the disk that a cut can leave is opened, and is
exactly what some commit made, none older than the last one that was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from pathlib import Path
from random import Random

import pytest

from moorage.service import raft_storage
from moorage.service.raft_storage import Work

from ...prerequisites import require
from . import raft_workload as workload
from . import trace
from .raft_workload import Life, Model


async def look(directory: Path) -> tuple[Model, str, int]:
    """What a start finds; then something more is committed, and found by the next start."""
    storage, loaded = await workload.open_storage(directory)
    try:
        model = Model.of(storage, loaded)
        life = Life(Model(**vars(model)), Random(1))
        life.model.entries, life.model.kv = list(model.entries), dict(model.kv)
        work: Work = life.apply(life.append(Work()))
        await storage.commit(work)
    finally:
        await storage.close()
    storage, again = await workload.open_storage(directory)
    try:
        assert Model.of(storage, again).digest() == life.model.digest()
        assert again.instance == loaded.instance and again.life.number >= loaded.life.number
    finally:
        await storage.close()
    return model, loaded.instance, loaded.life.number


class Lives:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root, self.scratch = directory / "root", directory / "scratch"
        self.root.mkdir()
        self.looked = self.judged = 0

    def live(self, seed: int, count: int, model: Model | None) -> trace.Trace:
        marks, former, output = (self.directory / name for name in ("marks", "former", "strace"))
        marks.unlink(missing_ok=True)
        former.unlink(missing_ok=True)
        if model is not None:
            former.write_bytes(pickle.dumps(vars(model)))
        machine = trace.Machine.of(self.root, marks)
        program = [sys.executable, str(workload.__file__), str(self.root / "a" / "b"), str(marks)]
        path = os.pathsep.join(each for each in sys.path if each)
        environment = {**os.environ, "PYTHONPATH": path}
        trace.record([*program, str(seed), str(count), str(former)], output, environment, timeout=60)
        return trace.Trace(machine, output)

    async def check(
        self, life: trace.Trace, rng: Random, *, torn: int, share: float, seconds: float
    ) -> tuple[trace.Image, Model]:
        said, seen, deadline = (
            [json.loads(line) for line in life.said],
            {},
            time.monotonic() + trace.at_most(seconds),
        )
        chosen: tuple[trace.Image, Model] | None = None
        for crash in life.crashes(rng, torn=torn, share=share):
            try:
                if crash.image.key not in seen:
                    crash.image.build(self.scratch)
                    seen[crash.image.key] = await look(self.scratch / "a" / "b")
                    self.looked += 1
                self._judge(said[: crash.said], *seen[crash.image.key])
            except BaseException as error:
                crash.image.build(self.scratch)
                error.add_note(f"{crash.name}; the disk is in {self.scratch}")
                raise
            self.judged += 1
            if crash.said > len(said) // 2 and (chosen is None or rng.random() < 0.01):
                chosen = crash.image, seen[crash.image.key][0]
            assert time.monotonic() < deadline, f"{self.looked} states in {seconds} s"
        assert chosen is not None
        return chosen

    def _judge(self, said: list[list[str]], model: Model, instance: str, life: int) -> None:
        given = [words[2] for words in said if words[0] == "given"]
        acked = max([0, *(int(words[1]) for words in said if words[0] == "acked")])
        opened = next((words[1:] for words in said if words[0] == "opened"), None)
        digest = model.digest()
        if given:
            assert digest in given[acked:], (
                f"{digest} is commit {given.index(digest) if digest in given else None}"
            )
        else:
            assert digest == Model().digest()
        if opened is not None:
            assert (instance, True) == (opened[0], life >= int(opened[1]))


@pytest.mark.timeout(trace.at_most(300))
@pytest.mark.parametrize(
    ("seed", "lives", "commits", "torn", "share"),
    [(1, 2, 20, 2, 0.04), pytest.param(2, 3, 100, 6, 0.04, marks=pytest.mark.slow)],
)
async def test_what_was_committed_survives_a_power_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    lives: int,
    commits: int,
    torn: int,
    share: float,
) -> None:
    require(trace.unusable())
    monkeypatch.setattr(raft_storage, "check_in_child", workload.check_here)
    rng, all_lives, model = Random(seed), Lives(tmp_path), None
    for number in range(lives):
        life = await asyncio.to_thread(all_lives.live, seed * 100 + number, commits, model)
        image, model = await all_lives.check(life, rng, torn=torn, share=share, seconds=120)
        image.build(all_lives.root)
    print(f"{all_lives.looked} states were opened, {all_lives.judged} judged")  # noqa: T201
