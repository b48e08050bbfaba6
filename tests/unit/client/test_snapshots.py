"""What a client asks metadata about snapshots, and what a holder reports of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from moorage.client.attachment import Attachment
from moorage.client.snapshotting import SnapshotKeeper
from moorage.client.volume import Volume
from moorage.wire.errors import MoorageError, NotFound, Unavailable


async def test_a_snapshot_is_asked_for_by_its_name() -> None:
    """It is there while its volume is being rolled back, which nobody else may attach."""
    asked: list[dict[str, Any]] = []

    async def call(method: str, params: dict[str, Any], timeout: float) -> Any:
        asked.append(params)
        raise NotFound("there is none")

    async def no_parent(name: str) -> Volume:
        raise AssertionError(name)

    with pytest.raises(NotFound):
        await Attachment.open(
            call,
            cast(Any, None),
            name="db",
            read_only=True,
            force=False,
            io_timeout=1.0,
            timeout=1.0,
            holder={},
            snapshot="monday",
            open_snapshot=no_parent,
        )
    assert [params["snapshot"] for params in asked] == ["monday"]


class Session:
    """Of a group; what it takes is durable at once."""

    index = 0
    failed = None

    def __init__(self) -> None:
        self.lsn = 0
        self.held = False

    def set_snapshots(self, lsns: list[int], new: bool, done: Callable[[BaseException | None], None]) -> int:
        self.lsn += 1
        done(None)
        return self.lsn

    def hold(self) -> int:
        self.held = True
        return 1

    def holds(self, number: int) -> bool:
        return self.held

    def release_held(self, number: int = 0) -> None:
        self.held = False


def keeper(session: Session, ask: Callable[[str, dict[str, Any], float], Awaitable[Any]]) -> SnapshotKeeper:
    entry = {"id": 5, "name": "s", "state": "creating", "set": 9, "put": False, "lsns": []}
    shared = SimpleNamespace(epoch=1, writer=2, volume=3, name="db", ask=ask)
    volume = {"snapshots": [entry], "snapshots_version": 1}
    return SnapshotKeeper(cast(Any, shared), [cast(Any, session)], volume)


async def test_one_of_a_set_that_was_not_waited_for_is_not_reported() -> None:
    """Metadata does not answer while acknowledgements are held back: they are let go, so what they were held
    back for must not come to be."""
    session = Session()
    reported: list[dict[str, Any]] = []

    async def ask(method: str, params: dict[str, Any], timeout: float) -> Any:
        if method == "metadata.snapshots_put":
            assert session.held
            raise Unavailable("no leader", outcome="unknown")
        reported.append(params)
        return {"version": 2}

    ours = keeper(session, ask)
    with pytest.raises(MoorageError):
        await ours._carry_out()
    assert not session.held
    await ours._carry_out()
    assert [params["created"] for params in reported] == [[]]
