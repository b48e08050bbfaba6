"""The owner of the leader's tasks: one per volume, none beyond the leadership."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.metadata.changes import Changes
from moorage.metadata.tasks import runner as runner_module
from moorage.metadata.tasks.runner import TaskRunner
from moorage.wire.errors import DeadlineExceeded, NotLeader


class World:
    """A creating volume, and a task of it that never ends by itself."""

    def __init__(self, group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.ended = 0
        self.volume = group.create()["id"]
        group.apply("found", uid="u1")
        replicated = SimpleNamespace(kv=group.kv, leader=None, term=1, read_barrier=self._barrier)
        self.runner = TaskRunner(SimpleNamespace(replicated=replicated, retry_s=0.01, changes=Changes()))  # type: ignore[arg-type]
        monkeypatch.setattr(runner_module, "create", self._create)

    async def _barrier(self) -> None:
        """At once, so that the next leadership's tasks begin before the cancelled ones have ended."""

    async def _create(self, context: Any, volume: Any) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def turns(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def world(metadata_group: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(metadata_group, monkeypatch)


async def test_leader_takes_up_what_is_unfinished(world: World) -> None:
    world.runner.lead()
    await world.turns()
    assert (world.begun, world.runner.count) == (1, 1)
    world.runner.start_volume(world.volume)  # a handler asks for it as well
    await world.turns()
    assert world.begun == 1
    await world.runner.stop()
    assert (world.ended, world.runner.count) == (1, 0)


async def test_follower_begins_nothing(world: World) -> None:
    world.runner.start_volume(world.volume)
    await world.turns()
    assert (world.begun, world.runner.count) == (0, 0)


async def test_next_leadership_does_not_wait_for_the_last_ones_tasks(world: World) -> None:
    world.runner.lead()
    await world.turns()
    world.runner.follow()
    world.runner.lead()
    world.runner.start_volume(world.volume)  # at once: the cancelled task has not ended yet
    assert world.ended == 0
    await world.turns()
    assert (world.begun, world.ended, world.runner.count) == (2, 1, 1)
    await world.runner.stop()


async def test_who_waits_hears_of_the_end_of_leadership(world: World) -> None:
    world.runner.lead()
    waiting = asyncio.create_task(world.runner.wait_until(1, lambda: False, 5, "it"))
    await world.turns()
    world.runner.follow()
    with pytest.raises(NotLeader):
        await waiting
    await world.runner.stop()


async def test_who_waits_too_long_hears_that_it_goes_on(world: World) -> None:
    world.runner.lead()
    with pytest.raises(DeadlineExceeded, match=r"the creation takes longer than 0\.0 s; it goes on"):
        await world.runner.wait_until(1, lambda: False, 0.01, "the creation")
    await world.runner.stop()


async def test_what_comes_while_a_task_is_at_its_end_is_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    end = asyncio.Event()

    async def replace(context: Any, volume: int) -> None:
        begun.append(volume)
        await end.wait()  # has looked already

    monkeypatch.setattr(runner_module, "replace", replace)
    world.runner.lead()
    await world.turns()
    for _ in range(2):
        world.runner.start_volume(world.volume)
    end.set()
    await world.turns()
    assert begun == [world.volume] * 2
    await world.runner.stop()
