"""SIGKILL of every process at once, in the middle of writes: what was acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.bench.verify import BLOCK, Pattern, judge, read_journal
from moorage.cli.clients import ClientProcess
from moorage.cli.local_cluster import LocalCluster
from moorage.wire.errors import AttachmentLost, MoorageError

BLOCKS = 2048


async def _write_until_killed(
    local: LocalCluster,
    journal: Path,
    run: int,
    environment: dict[str, str],
    until: Callable[..., Awaitable[Any]],
) -> None:
    """Load at depth 32 until some hundred acknowledgements are journaled, then kill everything at once."""
    arguments = ["bench", "verify", "data", "--steps", "--depth", "32", "--blocks", str(BLOCKS), "--force"]
    arguments += ["--run", str(run), "--journal", str(journal), "--flush-every", "0.1"]
    load = ClientProcess(arguments, environment, journal.with_suffix(".log"))
    await load.__aenter__()
    size = journal.stat().st_size

    async def enough() -> bool:
        return journal.stat().st_size > size + 400 * 17

    await until(enough, "400 acknowledgements")
    load.signal(signal.SIGKILL)
    await local.kill()
    await load.__aexit__()


async def _judge(local: LocalCluster, must: dict[int, int], run: int) -> list[str]:
    async with (
        await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster,
        await cluster.attach("data", force=True) as volume,
    ):
        wrong, _ = judge(Pattern(run), await volume.read(0, BLOCKS * BLOCK), 0, must)
    return wrong


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["sync", pytest.param("writeback", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_what_was_promised_survives_a_power_loss(
    local: LocalCluster,
    environment: dict[str, str],
    tmp_path: Path,
    durability: str,
    rounds: int,
    until: Callable[..., Awaitable[Any]],
) -> None:
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        await cluster.create_volume("data", size=64 << 20, replicas=3, durability=durability)
    run = 1000 + os.getpid()
    journals: list[Path] = []
    for index in range(rounds):
        # Each life numbers its versions anew, so each gets its own run number and its own journal.
        journal = tmp_path / f"journal{index}"
        journals.append(journal)
        await _zero(local)
        await _write_until_killed(local, journal, run + index, environment, until)
        await local.start()
        acked, flushed = read_journal(journal)
        assert acked, "the load never acknowledged anything: the test shows nothing"
        assert await _judge(local, acked if durability == "sync" else flushed, run + index) == []


async def _zero(local: LocalCluster) -> None:
    async with (
        await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster,
        await cluster.attach("data", force=True) as volume,
    ):
        await volume.write_zeroes(0, BLOCKS * BLOCK)
        await volume.flush()


async def test_lost_unflushed_data_is_an_error_not_silence(
    local: LocalCluster, cluster: moorage.Cluster
) -> None:
    """All members die while a writeback writer lives on: it restores all that it acknowledged, or its I/O
    fails; it never reads old data as if nothing had happened."""
    await cluster.create_volume("data", size=16 << 20, replicas=3, durability="writeback")
    async with await cluster.attach("data") as volume:
        await volume.write(0, b"a" * BLOCK)
        await volume.flush()
        await volume.write(0, b"b" * BLOCK)
        await local.kill()
        await local.start()
        try:
            async with asyncio.timeout(60):
                await volume.write(BLOCK, b"c" * BLOCK)
                assert await volume.read(0, BLOCK) == b"b" * BLOCK
        except AttachmentLost:
            pass
        except MoorageError as error:
            pytest.fail(f"neither restored nor clearly lost: {error!r}")
