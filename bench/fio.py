"""The same workloads by NBD, put there by fio: a load generator that others wrote.

Owns: the command line of fio, and the reading of its JSON. The volume is served by a gateway in this
process, so that its CPU is measured as in the library's run, and fio's own beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from moorage.bench.block import PROGRESS_INTERVAL_S, CpuMeter, Measurement, Progress, Workload, flush
from moorage.client.device import BlockDevice
from moorage.gateway.nbd import NbdServer
from moorage.wire import errors

EXPORT = "bench"
GRACE_S = 60.0
_MODES = {
    ("read", "random"): "randread",
    ("write", "random"): "randwrite",
    ("read", "sequential"): "read",
    ("write", "sequential"): "write",
}


def require_fio() -> str:
    """The path of fio; Invalid when it is not installed."""
    found = shutil.which("fio")
    if found is None:
        raise errors.Invalid("fio is not installed: `apt-get install fio`, or measure with --by library")
    return found


@asynccontextmanager
async def served(device: BlockDevice) -> AsyncIterator[str]:
    """Serve ``device`` on a private unix socket while the context lasts; its NBD URI."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as directory:
        path = Path(directory) / "nbd"
        server = NbdServer({EXPORT: device})
        await server.serve(f"unix:{path}")
        try:
            yield f"nbd+unix:///{EXPORT}?socket={path}"
        finally:
            await server.stop()


async def run_by_nbd(
    device: BlockDevice,
    uri: str,
    workload: Workload,
    *,
    region: int,
    seconds: float,
    warm_up: float,
    server_pids: Sequence[int] = (),
    on_progress: Progress = lambda seconds: None,
) -> Measurement:
    """Measure one workload by fio over ``uri``, which :func:`served` gave for ``device``."""
    fio, began = require_fio(), time.perf_counter()

    async def run(duration: float) -> dict[str, Any]:
        argv = _arguments(fio, uri, workload, region, duration)
        return await _run_fio(argv, duration, lambda: on_progress(time.perf_counter() - began))

    if warm_up > 0:
        await run(warm_up)
    meter = CpuMeter(server_pids)
    job = await run(seconds)
    own, servers = meter.read()
    await flush(device)
    return read_job(job, workload, own, servers)


def _arguments(fio: str, uri: str, workload: Workload, region: int, seconds: float) -> list[str]:
    return [
        fio,
        "--name=bench",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={_MODES[workload.kind, workload.pattern]}",
        f"--bs={workload.size}",
        f"--iodepth={workload.depth}",
        f"--size={region // workload.size * workload.size}",
        "--time_based",
        f"--runtime={seconds * 1000:.0f}ms",
        "--norandommap",
        "--randrepeat=0",
        "--lat_percentiles=1",
        "--percentile_list=50:95:99",
        "--output-format=json",
    ]


async def _run_fio(argv: list[str], seconds: float, on_progress: Any) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    ending = asyncio.ensure_future(process.communicate())
    deadline = time.perf_counter() + seconds + GRACE_S
    try:
        while not ending.done():
            if time.perf_counter() > deadline:
                raise errors.DeadlineExceeded(f"fio did not end {GRACE_S:.0f} s after its time was up")
            await asyncio.wait({ending}, timeout=PROGRESS_INTERVAL_S)
            on_progress()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        output, complaint = await ending
    if process.returncode:
        words = (complaint or output).decode(errors="replace").strip().splitlines()
        said = words[-1] if words else "nothing"
        raise errors.MoorageError(f"fio ended with exit code {process.returncode} and said: {said}")
    return parse(output.decode(errors="replace"))


def parse(output: str) -> dict[str, Any]:
    """The one job in fio's JSON, which stands behind whatever fio said first."""
    start = output.find("{")
    try:
        job: dict[str, Any] = json.loads(output[max(start, 0) :])["jobs"][0]
    except (ValueError, LookupError, TypeError) as error:
        raise errors.MoorageError(f"fio's output is not the JSON expected: {output[:200]!r}") from error
    if job["error"]:
        raise errors.MoorageError(f"fio reports error {job['error']}")
    return job


def read_job(
    job: dict[str, Any], workload: Workload, own_cpu_s: float, server_cpu_s: dict[int, float]
) -> Measurement:
    """A measurement from a job of fio's JSON (times there are in ms and ns, CPU in per cent)."""
    side = job[workload.kind]
    latency = side["lat_ns"]
    ranks = latency.get("percentile", {})
    figures = {"mean": latency["mean"] / 1e3}
    for name, key in (("p50", "50.000000"), ("p95", "95.000000"), ("p99", "99.000000")):
        figures[name] = ranks.get(key, 0) / 1e3
    figures["max"] = latency["max"] / 1e3
    seconds = side["runtime"] / 1e3
    fio_cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    return Measurement(
        workload, "nbd", side["total_ios"], seconds, figures, own_cpu_s, fio_cpu_s, server_cpu_s
    )
