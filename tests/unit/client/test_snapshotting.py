"""The keeper of a volume's snapshots, over groups and metadata made by hand: sets hold acknowledgements back,
for one epoch, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.client import snapshotting
from moorage.client.snapshotting import SnapshotKeeper
from moorage.wire.errors import Fenced, Unavailable

SET, ID = 9, 5


class Group:
    """``answers``: its records are committed at once."""

    failed = None

    def __init__(self, index: int, answers: bool = True) -> None:
        self.index, self.answers = index, answers
        self.lists: list[list[int]] = []
        self.number = 0
        self.held = False

    def set_snapshots(self, lsns: list[int], new: bool, done: Callable[[None], None]) -> int:
        lsn = 10 * (len(self.lists) + 1) + self.index
        self.lists.append([*lsns, *([lsn] if new else [])])
        if self.answers:
            done(None)
        return lsn

    def hold(self) -> int:
        self.number += 1
        self.held = True
        return self.number

    def holds(self, number: int) -> bool:
        return self.held and number == self.number

    def release_held(self, number: int = 0) -> None:
        if not number or number == self.number:
            self.held = False


def entry(**change: Any) -> dict[str, Any]:
    made = {"id": ID, "name": "s", "state": "creating", "set": SET, "put": False, "lsns": []}
    return {**made, **change}


class Metadata:
    """``put``: whether all of the set are."""

    def __init__(self) -> None:
        self.put = asyncio.Event()
        self.reports: list[dict[str, Any]] = []
        self.answers_put: Callable[[dict[str, Any]], Any] = self._yes

    async def _yes(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"version": 2}

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> Any:
        if method == "metadata.snapshots_put":
            return await self.answers_put(params)
        if method == "metadata.snapshots_done":
            self.reports.append(params)
            return {"version": 3}
        await self.put.wait()
        return {"version": 2, "snapshots": [entry(put=True)], "sets": {SET: True}}


def keeper(
    metadata: Metadata, groups: list[Group], epoch: int = 1, **change: Any
) -> tuple[SnapshotKeeper, Any]:
    pool = SimpleNamespace(watches=asyncio.Semaphore(4))
    fenced: list[Fenced] = []
    shared = SimpleNamespace(
        epoch=epoch, writer=2, volume=3, name="db", ask=metadata.ask, pool=pool, suspect=fenced.append
    )
    about = {"snapshots": [entry(**change)], "snapshots_version": 1}
    return SnapshotKeeper(shared, groups, about), shared  # type: ignore[arg-type]


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_set_is_held_back_until_all_are_put_and_reported_then() -> None:
    metadata, groups = Metadata(), [Group(0), Group(1)]
    made, _ = keeper(metadata, groups)
    task = asyncio.create_task(made.run())
    await turn()
    assert [group.held for group in groups] == [True, True] and not metadata.reports
    metadata.put.set()
    await turn()
    assert [group.held for group in groups] == [False, False]
    assert [report["created"] for report in metadata.reports[:1]] == [[[ID, [10, 11]]]]
    task.cancel()


async def test_a_group_without_a_majority_holds_back_the_others_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshotting, "HOLD_S", 0.05)
    metadata, groups = Metadata(), [Group(0), Group(1, answers=False)]
    made, _ = keeper(metadata, groups)
    task = asyncio.create_task(made.run())
    await turn()
    assert groups[0].held
    async with asyncio.timeout(5):
        while groups[0].held:
            await asyncio.sleep(0.01)
    assert not metadata.reports, "what was acknowledged since may be in one of them and not in another"
    task.cancel()


async def test_a_set_of_which_metadata_could_not_be_told_is_never_reported() -> None:
    async def away(params: dict[str, Any]) -> None:
        raise Unavailable("metadata is away")

    metadata, groups = Metadata(), [Group(0)]
    metadata.answers_put = away
    made, _ = keeper(metadata, groups)
    task = asyncio.create_task(made.run())
    await turn()
    assert not groups[0].held
    metadata.answers_put = metadata._yes
    metadata.put.set()
    await turn()
    assert all(not report["created"] for report in metadata.reports)
    task.cancel()


async def test_the_keeper_of_a_former_epoch_lets_go_of_nothing_that_the_next_one_holds() -> None:
    asked = asyncio.Event()

    async def fenced(params: dict[str, Any]) -> dict[str, Any]:
        if params["epoch"] == 1:
            await asked.wait()
            raise Fenced("epoch 2 has begun")
        return {"version": 2}

    metadata, groups = Metadata(), [Group(0)]
    metadata.answers_put = fenced
    first, shared = keeper(metadata, groups)
    one = asyncio.create_task(first.run())
    await turn()
    groups[0].release_held()  # the epoch is over
    shared.epoch = 2
    second, _ = keeper(metadata, groups, epoch=2)
    two = asyncio.create_task(second.run())
    await turn()
    assert groups[0].held
    asked.set()
    await turn()
    assert one.done() and groups[0].held
    metadata.put.set()
    await turn()
    assert {report["epoch"] for report in metadata.reports if report["created"]} == {2}
    two.cancel()


async def test_one_that_lost_its_hold_on_the_way_is_not_reported() -> None:
    metadata, groups = Metadata(), [Group(0)]
    made, _ = keeper(metadata, groups)
    task = asyncio.create_task(made.run())
    await turn()
    groups[0].release_held()  # the epoch ended, and what was held back was told
    metadata.put.set()
    await turn()
    assert all(not report["created"] for report in metadata.reports)
    task.cancel()


async def test_what_a_former_epoch_has_put_is_left_alone() -> None:
    metadata, groups = Metadata(), [Group(0)]
    made, _ = keeper(metadata, groups, put=True)
    task = asyncio.create_task(made.run())
    await turn()
    assert groups[0].lists == [] and not groups[0].held
    task.cancel()


async def test_a_list_has_all_that_metadata_knows_and_not_what_is_deleted() -> None:
    metadata, groups = Metadata(), [Group(0)]
    made, _ = keeper(metadata, groups, set=0)
    made._listed += [
        entry(id=6, state="ready", set=0, lsns=[3]),
        entry(id=7, state="deleting", set=0, lsns=[4]),
        entry(id=8, put=True, lsns=[5]),  # of a set that waits for others
    ]
    task = asyncio.create_task(made.run())
    await turn()
    assert groups[0].lists[0] == [3, 5, 10]
    (report,) = metadata.reports[:1]
    assert (report["created"], report["deleted"]) == ([[ID, [10]]], [7])
    task.cancel()
