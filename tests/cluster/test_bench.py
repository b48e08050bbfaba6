"""`moorage bench` on real clusters: small, for what it says and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import moorage
from moorage.wire.errors import Busy

from .s3_gateway import S3Gateway

Command = Callable[..., Awaitable[tuple[int, str, str]]]
Until = Callable[..., Awaitable[Any]]


async def test_bench_object_by_all_ways(
    cluster: moorage.Cluster, environment: dict[str, str], moorage_command: Command
) -> None:
    """The other server is a gateway of ours, too: what it is asked is what any would be."""
    key = (await cluster.keys.create("other")).to_json(with_secret=True)
    other = S3Gateway(environment)
    try:
        arguments = ("--size", "4K", "--concurrency", "2", "--seconds", "0.1", "--keys", "10", "--json")
        given = {"AWS_ACCESS_KEY_ID": key["id"], "AWS_SECRET_ACCESS_KEY": key["secret"]}
        code, out, err = await moorage_command(
            "bench", "object", *arguments, "--endpoint", other.url, env={**environment, **given}
        )
    finally:
        other.stop()
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "moorage.bench.object/1" and document["options"]["complete"]
    expected = [
        (f"{what}, concurrency 2", by)
        for what in ("list 10 keys", "put 4 KiB", "get 4 KiB", "delete 4 KiB")
        for by in ("library", "s3", "endpoint")
    ]
    assert [(one["workload"]["name"], one["by"]) for one in document["results"]] == expected
    assert all(one["operations"] > 0 and one["error"] is None for one in document["results"])
    assert len(document["s3_to_library"]) == len(document["s3_to_endpoint"]) == 4
    assert key["secret"] not in out + err
    assert await cluster.buckets.list() == [], "all is cleaned up"
    assert [each.id for each in await cluster.keys.list()] == [key["id"]]


@pytest.mark.slow
async def test_bench_object_that_is_interrupted_leaves_nothing(
    cluster: moorage.Cluster, environment: dict[str, str], until: Until
) -> None:
    arguments = ("--seconds", "60", "--concurrency", "2", "--only", "put 4 KiB", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moorage.cli.main", "bench", "object", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    async def both_are_used() -> bool:
        with contextlib.suppress(Busy):  # one that is being made
            made = [await cluster.bucket(row["name"]) for row in await cluster.buckets.list()]
            return len(made) == 2 and all([(await one.show())["objects"] for one in made])
        return False

    try:
        await until(both_are_used, "objects in both buckets", timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 130, err
    assert json.loads(out)["options"]["complete"] is False
    assert await cluster.buckets.list() == [] and await cluster.keys.list() == []


@pytest.mark.slow
async def test_bench_bucket(environment: dict[str, str], moorage_command: Command, tmp_path: Path) -> None:
    place = tmp_path / "bench"
    arguments = ("--objects", "4000", "--seconds", "0.1", "--data", str(place), "--json")
    code, out, err = await moorage_command("bench", "bucket", *arguments, env=environment, timeout=110)
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "moorage.bench.bucket/1" and document["options"]["complete"]
    assert [stage["objects"] for stage in document["stages"]] == [40, 4000]
    assert all(len(stage["ready_s"]) == len(stage["memory"]) == 3 for stage in document["stages"])
    assert document["ratios"]["metadata on disk"] > 1
    assert list(place.iterdir()) == []
