"""The benchmark of large buckets over one in memory: what it asks, what it compares, and what it shows."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from moorage.bench import bucket_report
from moorage.bench.bucket import OBJECTS_MIN, PAGE_MAX, SHARE, Load, Stage, key_of, page_size
from moorage.bench.processes import Memory, disk_usage, memory_of, parse_status
from moorage.cli import output
from moorage.cli.bench_bucket import bucket as command
from moorage.client.objects.bucket import Bucket, Listing, ObjectInfo
from moorage.wire.errors import Corrupt, NotFound


class MemoryBucket:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lost = 0

    async def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    async def get(self, key: str) -> bytes:
        return self.objects[key]

    async def page(self, prefix: str, *, delimiter: str, after: str, limit: int) -> Listing:
        names: dict[str, bool] = {}
        for key in sorted(each for each in self.objects if each.startswith(prefix)):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            name = prefix + head + found if found else key
            if name > after:
                names[name] = bool(found)
        shown = list(names)[: limit - self.lost]
        objects = [ObjectInfo(name, 0, "", 0) for name in shown if not names[name]]
        return Listing(objects, [name for name in shown if names[name]], b"")


async def loaded(objects: int) -> tuple[Load, MemoryBucket]:
    made = MemoryBucket()
    load = Load(cast(Bucket, made), objects, size=10, concurrency=8)
    await load.fill(objects // SHARE, lambda count: None)
    return load, made


def test_keys_differ_and_do_not_come_in_order() -> None:
    keys = [key_of(number) for number in range(10_000)]
    assert len(set(keys)) == 10_000 and keys != sorted(keys)
    assert {key[:2] for key in keys} == {"0/", "1/", "2/", "3/"}
    assert len({key.rpartition("/")[0] for key in keys}) == 5000


def test_pages_of_a_million_objects_have_a_thousand_keys() -> None:
    assert page_size(1_000_000) == page_size(50_000_000) == PAGE_MAX
    assert page_size(OBJECTS_MIN) == 4


@pytest.mark.parametrize("objects", [OBJECTS_MIN, 4999, 5100, 7777, 10_000, 33_333])
async def test_all_pages_are_full_with_a_hundredth_of_the_objects(objects: int) -> None:
    load, made = await loaded(objects)
    assert len(made.objects) == objects // SHARE
    steps = load._operations()
    for name, (step, entries) in steps.items():
        assert (entries is not None) is name.startswith("page")
        for _ in range(50):
            operation = step()
            assert operation is not None
            await operation  # raises Corrupt for a page that is not full


async def test_fill_goes_on_where_it_was() -> None:
    load, made = await loaded(OBJECTS_MIN)
    seen: list[int] = []
    assert await load.fill(300, seen.append) > 0
    assert seen == [50, 100, 150, 200, 250, 300] and sorted(made.objects) == sorted(map(key_of, range(300)))


async def test_figures_of_each_operation() -> None:
    load, made = await loaded(OBJECTS_MIN)
    told: list[str] = []
    found = await load.ask(0.01, told.append)
    assert told == list(found) and all(one.operations > 0 for one in found.values())
    assert found["page from anywhere"].entries == 4 and found["get"].entries is None
    made.lost = 1
    with pytest.raises(Corrupt, match="3 entries, not 4"):
        await load.ask(0.01, told.append)


def stage(objects: int, factor: int, operations: Any) -> Stage:
    memory = [Memory(factor * 10**6, factor * 10**6, factor * 10**6)]
    return Stage(objects, 100 / factor, operations, memory, [factor * 10**6], [float(factor), 1.0])


async def test_report() -> None:
    load, _ = await loaded(OBJECTS_MIN)
    operations = await load.ask(0.01, lambda name: None)
    stages = [stage(40, 1, operations), stage(4000, 2, operations)]
    document = bucket_report.document(stages, began="2026-11-24T12:00:00+00:00", options={"complete": True})
    assert json.loads(json.dumps(document))["schema"] == "moorage.bench.bucket/1"
    assert [each["objects"] for each in document["stages"]] == [40, 4000]
    ratios = document["ratios"]
    assert ratios["page of a prefix, p50"] == 1 and ratios["filling, per s"] == 0.5
    assert ratios["memory of a host"] == ratios["metadata on disk"] == ratios["a host is back, s"] == 2
    shown = StringIO()
    columns = ("what", "40", "4,000", "ratio")
    Console(file=shown, width=80).print(output.table("Bucket", columns, bucket_report.rows(stages)))
    assert "page of small folders, p99, ms" in shown.getvalue() and "memory of a host, MB" in shown.getvalue()


def test_report_of_one_stage_that_was_not_ended() -> None:
    stages = [Stage(40, 100.0)]
    assert bucket_report.ratios(stages) == {}
    assert bucket_report.rows(stages) == [("filling, per s", "100")]


def test_memory_of_processes() -> None:
    of_this = memory_of(os.getpid())
    assert 0 < of_this.private <= of_this.resident <= of_this.peak
    lines = ["Name:\tx", "VmHWM:\t  30 kB", "VmRSS:\t  20 kB", "RssAnon:\t  10 kB"]
    assert parse_status(lines) == Memory(20 << 10, 10 << 10, 30 << 10)
    with pytest.raises(NotFound):
        memory_of(1 << 30)


def test_disk_usage_counts_what_is_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "full").write_bytes(os.urandom(1 << 16))
    assert 1 << 16 <= disk_usage(tmp_path) < 1 << 20


def test_the_command_knows_the_least() -> None:
    least = next(each for each in command.params if each.name == "objects")
    assert getattr(least.type, "min", None) == OBJECTS_MIN
