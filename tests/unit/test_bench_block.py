"""The block benchmark over a device in memory: counts, percentiles, errors, fio's JSON, report, processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from moorage.bench import fio, report
from moorage.bench.block import (
    WORKLOADS,
    ClosedLoop,
    Measurement,
    Workload,
    fill,
    latency_figures,
    run_by_library,
)
from moorage.bench.processes import cpu_seconds, listening_pids
from moorage.client.device import Done
from moorage.gateway.memory import MemoryDevice
from moorage.wire import errors

MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=["at once", "deferred"])
def device(request: pytest.FixtureRequest) -> Iterator[MemoryDevice]:
    device = MemoryDevice(4 * MIB, deferred=request.param)
    yield device
    device.close()


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
async def test_each_workload_runs(device: MemoryDevice, workload: Workload) -> None:
    measured = await run_by_library(device, workload, region=4 * MIB, seconds=0.05, warm_up=0.01)
    assert measured.operations > 0 and measured.seconds >= 0.05
    figures = measured.latency_us
    assert 0 < figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["max"]
    assert measured.bytes_per_s == pytest.approx(measured.operations_per_s * workload.size)


async def test_depth_is_kept_and_never_passed() -> None:
    in_flight: set[int] = set()
    peak = 0

    class Watched(MemoryDevice):
        def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
            nonlocal peak
            operation = id(into)
            assert operation not in in_flight, "a slot has one operation at a time"
            in_flight.add(operation)
            peak = max(peak, len(in_flight))

            def ended(error: BaseException | None) -> None:
                in_flight.discard(operation)
                done(error)

            super().read_nowait(offset, into, ended)

    device = Watched(MIB, deferred=True)
    workload = Workload("w", "read", "random", 4096, 7)
    await run_by_library(device, workload, region=MIB, seconds=0.02, warm_up=0)
    assert peak == 7 and not in_flight
    device.close()


async def test_what_ends_after_the_time_is_not_counted() -> None:
    class Slow(MemoryDevice):
        def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
            asyncio.get_running_loop().call_later(0.1, done, None)

    device = Slow(MIB)
    workload = Workload("w", "read", "random", 4096, 7)
    measured = await run_by_library(device, workload, region=MIB, seconds=0.15, warm_up=0)
    assert measured.operations == 7
    device.close()


async def test_the_first_error_ends_the_run(device: MemoryDevice) -> None:
    device.read_only = True
    with pytest.raises(errors.ReadOnly):
        await run_by_library(device, WORKLOADS[3], region=MIB, seconds=30, warm_up=30)


async def test_cancelled_run_leaves_nothing_in_flight() -> None:
    calls = ended = 0

    class Counting(MemoryDevice):
        def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
            nonlocal calls
            calls += 1
            super().read_nowait(offset, into, done)

        def complete(self, done: Done, error: BaseException | None) -> None:
            def later() -> None:
                nonlocal ended
                ended += 1
                done(error)

            asyncio.get_running_loop().call_later(0.001, later)

    device = Counting(MIB)
    running = asyncio.create_task(run_by_library(device, WORKLOADS[1], region=MIB, seconds=30, warm_up=0))
    while calls < 100:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert calls == ended
    device.close()


async def test_fill_leaves_no_hole(device: MemoryDevice) -> None:
    shares: list[float] = []
    await fill(device, 4 * MIB, shares.append)
    assert await device.block_status(0, 4 * MIB) == [(4 * MIB, False)]
    assert shares and shares[-1] == 1.0


def test_a_region_smaller_than_one_operation_is_refused(device: MemoryDevice) -> None:
    with pytest.raises(errors.Invalid, match="at least"):
        ClosedLoop(device, WORKLOADS[-1], MIB - 1)


def test_percentiles() -> None:
    figures = latency_figures([n * 1000 for n in range(100, 0, -1)])
    assert figures == {"mean": 50.5, "p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 100.0}
    assert latency_figures([7000]) == dict.fromkeys(("mean", "p50", "p95", "p99", "max"), 7.0)
    assert latency_figures([])["p99"] == 0.0


@pytest.mark.parametrize("workload", [WORKLOADS[1], WORKLOADS[-1]], ids=lambda one: one.name)
async def test_fio_measures_the_same_device(device: MemoryDevice, workload: Workload) -> None:
    async with fio.served(device) as uri:
        path = uri.partition("socket=")[2]
        measured = await fio.run_by_nbd(device, uri, workload, region=4 * MIB, seconds=0.3, warm_up=0)
    assert not os.path.exists(os.path.dirname(path))
    assert measured.by == "nbd" and measured.operations > 0
    assert 0 < measured.latency_us["p50"] <= measured.latency_us["p99"] <= measured.latency_us["max"]
    assert measured.load_cpu_s is not None and measured.client_cpu_s > 0


async def test_fio_that_fails_says_why(device: MemoryDevice) -> None:
    with pytest.raises(errors.MoorageError, match="fio"):
        uri = "nbd+unix:///bench?socket=/nowhere/at/all"
        await fio.run_by_nbd(device, uri, WORKLOADS[0], region=MIB, seconds=0.1, warm_up=0)


@pytest.mark.parametrize("said", ["", "fio: cannot", "{", '{"jobs": []}', "[]"])
def test_fio_output_of_another_form(said: str) -> None:
    with pytest.raises(errors.MoorageError, match="not the JSON"):
        fio.parse(said)


def test_fio_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(errors.Invalid, match="--by library"):
        fio.require_fio()


def test_fio_job_is_read() -> None:
    side = {
        "total_ios": 1000,
        "runtime": 2000,
        "lat_ns": {
            "mean": 5000.0,
            "max": 90000,
            "percentile": {"50.000000": 4000, "95.000000": 6000, "99.000000": 8000},
        },
    }
    job = {"read": side, "usr_cpu": 10.0, "sys_cpu": 40.0, "job_runtime": 2000}
    measured = fio.read_job(job, WORKLOADS[0], 0.5, {7: 0.25})
    assert measured.operations_per_s == 500 and measured.load_cpu_s == pytest.approx(1.0)
    assert measured.latency_us == {"mean": 5.0, "p50": 4.0, "p95": 6.0, "p99": 8.0, "max": 90.0}


def made(by: str, operations: int, **more: Any) -> Measurement:
    latency = {"mean": 1.0, "p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}
    return Measurement(WORKLOADS[0], by, operations, 2.0, latency, 0.01, **more)


def test_document_and_table() -> None:
    measured = [made("library", 1000, server_cpu_s={5: 0.02, 6: 0.01}), made("nbd", 600, load_cpu_s=0.03)]
    document = report.document(measured, began="2020-01-01T00:00:00+00:00", volume={"name": "v"}, options={})
    assert json.loads(json.dumps(document)) == document
    assert document["nbd_to_library"] == {WORKLOADS[0].name: 0.6}
    first, second = document["results"]
    assert first["operations_per_s"] == 500.0 and first["bytes_per_s"] == 500 * 4096
    cpu = {"client": 10.0, "load": None, "servers": 30.0, "by_server": {"5": 20.0, "6": 10.0}}
    assert first["cpu_us_per_operation"] == cpu
    assert second["cpu_us_per_operation"]["load"] == 50.0
    shown = StringIO()
    Console(file=shown, width=80).print(report.table(measured, "Volume v"))
    assert "nbd 60%" in shown.getvalue() and "read 4K x1" in shown.getvalue()
    assert "…" not in shown.getvalue()


def test_no_operations_is_no_division_by_zero() -> None:
    measured = [made("library", 0), made("nbd", 0)]
    assert report.ratios(measured) == {}
    report.table(measured, "t")


def test_processes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listening_pids([port]) == {port: os.getpid()}
    assert listening_pids([port]) == {}
    assert cpu_seconds([os.getpid(), 1 << 30]).keys() == {os.getpid()}
