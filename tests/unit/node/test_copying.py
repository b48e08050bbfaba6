"""The two ends of a copy, without a network: what a source sends, and what a pull makes of an answer."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from moorage.node import copying
from moorage.node.copying import START, Batch, Copier, _parse
from moorage.node.segment import Run, RunKind
from moorage.node.tombstones import Tombstones
from moorage.quorum.orders import Pull
from moorage.quorum.record import BLOCKS_PER_CHUNK, CHUNKS_MAX, LSN_MAX, Position
from moorage.wire.errors import Invalid, ProtocolError, Unavailable


def copier() -> Copier:
    nothing: Any = None
    return Copier(nothing, nothing, nothing)


def source(*ranges: tuple[int, int, int]) -> Any:
    return SimpleNamespace(replica=SimpleNamespace(table=SimpleNamespace(tombstones=Tombstones([*ranges]))))


def covered(batch: Batch) -> list[tuple[int, int, int]]:
    return [(run.chunk, run.chunk + run.block, run.lsns[0]) for run in batch.runs]


async def test_a_discard_between_two_batches_hides_no_tombstone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_RANGES_MAX", 3)
    ranges = [(10 * at, 10 * at + 1, at + 1) for at in range(6)]
    member = source(*ranges)
    first = await copier()._batch(member, 0, START, 1 << 20, False)
    assert covered(first) == ranges[:3] and first.cursor is not None
    # the ones that were sent become one
    member.replica.table.tombstones.add(0, 21, 100, lambda lsn, following: False)
    second = await copier()._batch(member, 0, first.cursor, 1 << 20, False)
    assert covered(second) == ranges[3:] and second.cursor == [1, 0]


async def test_a_copy_goes_on_at_a_source_that_holds_other_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_RANGES_MAX", 2)
    first = await copier()._batch(source((0, 1, 5), (10, 11, 6), (20, 30, 7)), 0, START, 1 << 20, False)
    assert first.cursor is not None
    other = source((0, 11, 6), (20, 25, 7), (25, 30, 8), (40, 41, 3))
    second = await copier()._batch(other, 4, first.cursor, 1 << 20, False)
    assert covered(second) == [(20, 25, 7), (25, 30, 8)] and second.cursor == [1, 0]


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), struct.error("x"), Unavailable("x")])
async def test_a_pull_that_ends_in_any_error_is_told_to_the_writer(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(copying, "RETRY_S", 0.0)
    told: list[bool] = []
    member: Any = SimpleNamespace(
        replica=SimpleNamespace(info=SimpleNamespace(replica=1)), stalled=lambda: told.append(True)
    )

    async def fail(*_: Any) -> bool:
        raise error

    pulls = copier()
    monkeypatch.setattr(pulls, "_pull_all", fail)
    await pulls._run(member, Pull(1, {}, Position(1, 1), 0, False, False))
    assert told == [True]


@pytest.mark.parametrize(
    "run",
    [
        Run(RunKind.CHUNKS, 0, 1, (), ()),
        Run(RunKind.CHUNKS, 0, 1, (5, 6), ()),
        Run(RunKind.CHUNKS, 0, 0, (5,), ()),
        Run(RunKind.CHUNKS, CHUNKS_MAX - 1, 2, (5,), ()),
        Run(RunKind.ZERO, CHUNKS_MAX, 0, (5,), ()),
        Run(RunKind.ZERO, 0, 0, (), ()),
        Run(RunKind.ZERO, 0, BLOCKS_PER_CHUNK - 1, (5, 5), ()),
        Run(RunKind.ZERO, 0, 0, (0,), ()),
        Run(RunKind.ZERO, 0, 0, (LSN_MAX + 1,), ()),
    ],
)
def test_a_run_that_the_fold_could_not_take_is_refused(run: Run) -> None:
    with pytest.raises(ProtocolError):
        _parse([run.pack(), [1, 5], None], memoryview(b""))


def test_runs_at_the_ends_of_their_ranges_are_taken() -> None:
    runs = [
        Run(RunKind.CHUNKS, CHUNKS_MAX - 2, 2, (5,), ()),
        Run(RunKind.ZERO, CHUNKS_MAX - 1, BLOCKS_PER_CHUNK - 1, (LSN_MAX,), ()),
    ]
    body = b"".join(run.pack() for run in runs)
    assert _parse([body, [1, 5], None], memoryview(b"")) == (runs, Position(1, 5), None)


@pytest.mark.parametrize("position", [[-1, 5], [1, 1 << 63], ["1", 5], [1]])
def test_a_source_that_shows_no_position_is_refused(position: Any) -> None:
    with pytest.raises(ProtocolError):
        _parse([b"", position, None], memoryview(b""))


@pytest.mark.parametrize(
    "change",
    [
        {"base": -1},
        {"base": "1"},
        {"above": 1 << 63},
        {"max_bytes": 0},
        {"max_bytes": None},
        {"cursor": [1, -7]},
        {"cursor": [1, 1 << 60]},
        {"cursor": [2, 0]},
        {"cursor": [0]},
        {"cursor": "00"},
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    params = {"base": 0, "above": 0, "cursor": START, "max_bytes": 1 << 20}
    assert copying._read_request(params) == (0, 0, START, 1 << 20)
    with pytest.raises(Invalid, match=r"node\.pull: use"):
        await copier().serve(source(), {**params, **change})


@pytest.mark.parametrize("cursor", [[1, -7], [2, 0], 5, "", [1, "0"]])
def test_an_answer_with_another_cursor(cursor: Any) -> None:
    assert _parse([b"", [1, 1], [1, 9]], memoryview(b""))[2] == [1, 9]
    with pytest.raises(ProtocolError, match="no cursor"):
        _parse([b"", [1, 1], cursor], memoryview(b""))
