"""Leading the logs of what nobody holds: how that ended is looked at, also when nobody waits any more."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from moorage.metadata.tasks import replace as replacing
from moorage.metadata.tasks import snapshot as snapshotting
from moorage.metadata.tasks.replace import replace
from moorage.metadata.tasks.snapshot import Snapshotting
from moorage.wire.errors import NotLeader

VOLUME = {"id": 1, "name": "db", "holder": None}


async def _lead(*args: Any) -> str:
    raise NotLeader("it ended")


async def _nothing(*args: Any) -> None:
    pass


@pytest.mark.parametrize("kind", ["replace", "snapshot"])
async def test_an_end_that_comes_with_the_end_of_the_task_is_heard(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_lead", _lead)
    monkeypatch.setattr(replacing, "_wishing", lambda *_: VOLUME)
    monkeypatch.setattr(replacing, "_create_learners", _nothing)
    monkeypatch.setattr(snapshotting, "lead", _lead)
    monkeypatch.setattr(Snapshotting, "_under_way", lambda *_: VOLUME)
    monkeypatch.setattr(Snapshotting, "_looked_after", lambda *_: [])
    changes = SimpleNamespace(next=lambda *_: asyncio.sleep(10.0), wake=lambda *_: None)
    context = cast(Any, SimpleNamespace(lapsed_ms=lambda _: 1 << 40, changes=changes))
    unheard: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
    work = replace(context, 1) if kind == "replace" else Snapshotting(context).work(1)
    await _cancelled(asyncio.create_task(work))
    del work
    await asyncio.sleep(0)
    gc.collect()
    assert not unheard


async def _cancelled(task: asyncio.Task[None]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)  # the leading has ended, and the task not looked yet
    task.cancel()
    await asyncio.wait([task])
