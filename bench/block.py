"""The engine of ``moorage bench block``: workloads, and the closed loop that puts them on a ``BlockDevice``.

Owns: what is measured and how. A run keeps ``depth`` operations in flight: each slot issues its next one in
the callback of its last, with no task and no allocation of buffers between, so that what is measured is the
device. Latency runs from the call to its ``done``.

Invariants: a sample is counted only between warm-up and stop; when ``run`` returns or is cancelled, nothing
of it is in flight; the first error of the device ends the run and is raised.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moorage.bench.processes import cpu_seconds
from moorage.client.device import BlockDevice, Done
from moorage.wire import errors

KIB = 1024
MIB = 1024 * KIB
FILL_SIZE = MIB
FILL_DEPTH = 8
RANDOM_OFFSETS = 1 << 16
PROGRESS_INTERVAL_S = 0.1

Progress = Callable[[float], None]
"""Called now and then with the seconds that have passed in the current run, warm-up included."""


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    kind: str
    """``"read"`` or ``"write"``."""
    pattern: str
    """``"random"`` or ``"sequential"``."""
    size: int
    depth: int


WORKLOADS = (
    Workload("random read 4 KiB, depth 1", "read", "random", 4 * KIB, 1),
    Workload("random read 4 KiB, depth 32", "read", "random", 4 * KIB, 32),
    Workload("random write 4 KiB, depth 1", "write", "random", 4 * KIB, 1),
    Workload("random write 4 KiB, depth 32", "write", "random", 4 * KIB, 32),
    Workload("sequential read 1 MiB, depth 8", "read", "sequential", MIB, 8),
    Workload("sequential write 1 MiB, depth 8", "write", "sequential", MIB, 8),
)


@dataclass(slots=True)
class Measurement:
    """One workload, measured one way."""

    workload: Workload
    by: str
    """``"library"`` or ``"nbd"``."""
    operations: int
    seconds: float
    latency_us: dict[str, float]
    """mean, p50, p95, p99, max."""
    client_cpu_s: float
    """CPU of the process that holds the volume: the load itself (library), or the NBD server (nbd)."""
    load_cpu_s: float | None = None
    """CPU of fio."""
    server_cpu_s: dict[int, float] = field(default_factory=dict)

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.operations_per_s * self.workload.size

    def cpu_us_per_operation(self, seconds: float) -> float:
        return seconds * 1e6 / self.operations if self.operations else 0.0


def latency_figures(samples_ns: Sequence[int]) -> dict[str, float]:
    """Mean, percentiles (nearest rank) and maximum, in microseconds."""
    if not samples_ns:
        return dict.fromkeys(("mean", "p50", "p95", "p99", "max"), 0.0)
    ranked = sorted(samples_ns)
    last = len(ranked) - 1
    at = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"mean": sum(ranked) / len(ranked) / 1e3} | {
        name: ranked[min(last, int(share * len(ranked)))] / 1e3 for name, share in at.items()
    }


class CpuMeter:
    """CPU seconds of this process and of the servers since it was made."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._own = time.process_time()
        self._servers = cpu_seconds(pids)

    def read(self) -> tuple[float, dict[int, float]]:
        now = cpu_seconds(self._pids)
        used = {pid: now[pid] - before for pid, before in self._servers.items() if pid in now}
        return time.process_time() - self._own, used


class ClosedLoop:
    """``depth`` slots, each with one operation in flight over the first ``region`` bytes of a device."""

    def __init__(self, device: BlockDevice, workload: Workload, region: int) -> None:
        self.device = device
        self.workload = workload
        self.samples = array("Q")
        self.error: BaseException | None = None
        self.stopping = False
        self._count = region // workload.size
        if self._count < 1:
            raise errors.Invalid(f"{workload.name} needs at least {workload.size} bytes, not {region}")
        self._offsets = self._make_offsets()
        self._next = 0
        self._running = 0
        self._idle = asyncio.Event()

    def start(self) -> None:
        self._running = self.workload.depth
        for slot in [_Slot(self) for _ in range(self._running)]:
            slot.issue()

    async def stop(self) -> None:
        """Let what is in flight end; raise the first error."""
        self.stopping = True
        await self._idle.wait()
        if self.error is not None:
            raise self.error

    async def wait(self, seconds: float, on_progress: Callable[[], None]) -> None:
        """Sleep, but not on after an error."""
        deadline = time.perf_counter() + seconds
        while not self.stopping and (left := deadline - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, PROGRESS_INTERVAL_S))
            on_progress()

    def next_offset(self) -> int:
        at = self._next
        self._next = at + 1 if at + 1 < len(self._offsets) else 0
        return self._offsets[at]

    def slot_ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    def _make_offsets(self) -> list[int]:
        size = self.workload.size
        if self.workload.pattern == "sequential":
            return [index * size for index in range(self._count)]
        rng = random.Random(self._count)
        return [rng.randrange(self._count) * size for _ in range(RANDOM_OFFSETS)]


class _Slot:
    """One operation at a time; its buffer and its callback are made once."""

    __slots__ = ("_began", "_buffer", "_callback", "_in_call", "_loop", "_run", "_start")

    def __init__(self, run: ClosedLoop) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        size, reads = run.workload.size, run.workload.kind == "read"
        self._buffer = memoryview(bytearray(size) if reads else random.randbytes(size))
        self._callback: Done = self._done
        self._start = run.device.read_nowait if reads else run.device.write_nowait
        self._in_call = False
        self._began = 0

    def issue(self) -> None:
        run = self._run
        if run.stopping:
            run.slot_ended()
            return
        offset = run.next_offset()
        self._in_call = True
        self._began = time.perf_counter_ns()
        self._start(offset, self._buffer, self._callback)
        self._in_call = False

    def _done(self, error: BaseException | None) -> None:
        run = self._run
        run.samples.append(time.perf_counter_ns() - self._began)
        if error is not None:
            run.error = run.error or error
            run.stopping = True
        if self._in_call:  # answered within the call: go round the loop, or the stack would grow for ever
            self._loop.call_soon(self.issue)
        else:
            self.issue()


async def run_by_library(
    device: BlockDevice,
    workload: Workload,
    *,
    region: int,
    seconds: float,
    warm_up: float,
    server_pids: Sequence[int] = (),
    on_progress: Progress = lambda seconds: None,
) -> Measurement:
    """Measure one workload on ``device`` for ``seconds`` after ``warm_up``; afterwards the device is
    flushed.
    """
    loop = ClosedLoop(device, workload, region)
    began = time.perf_counter()

    def progress() -> None:
        on_progress(time.perf_counter() - began)

    loop.start()
    try:
        await loop.wait(warm_up, progress)
        loop.samples = array("Q")
        meter, measured_from = CpuMeter(server_pids), time.perf_counter()
        await loop.wait(seconds, progress)
        elapsed = time.perf_counter() - measured_from
        samples, loop.samples = loop.samples, array("Q")  # what ends later was not done in time
        own, servers = meter.read()
    finally:
        await loop.stop()
    await flush(device)
    return Measurement(
        workload, "library", len(samples), elapsed, latency_figures(samples), own, server_cpu_s=servers
    )


async def fill(device: BlockDevice, region: int, on_progress: Progress = lambda share: None) -> None:
    """Write random bytes over the region, so that reads find data and not holes, and read it once, so that
    they find it in the page cache (devices write large pieces past it); progress is 0 to 1."""
    await _pass_over(device, "write", region, lambda share: on_progress(share / 2))
    await flush(device)
    await _pass_over(device, "read", region, lambda share: on_progress(0.5 + share / 2))


async def _pass_over(device: BlockDevice, kind: str, region: int, on_progress: Progress) -> None:
    workload = Workload("fill", kind, "sequential", min(FILL_SIZE, region), FILL_DEPTH)
    loop = ClosedLoop(device, workload, region)
    target = region // workload.size
    loop.start()
    try:
        while len(loop.samples) < target and not loop.stopping:
            await asyncio.sleep(PROGRESS_INTERVAL_S / 5)
            on_progress(min(1.0, len(loop.samples) / target))
    finally:
        await loop.stop()
    on_progress(1.0)


async def flush(device: BlockDevice) -> None:
    """Wait until the device has flushed; raise its error."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    device.flush_nowait(done)
    await future
