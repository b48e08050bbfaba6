"""The engine of ``moorage bench object``: workloads, and the closed loop that puts them on a ``Store``.

Owns what is measured and how. A run keeps ``concurrency`` operations under way until its time is over, or
until there is nothing left to do, and then waits for those that have begun: they count, and so does their
time.

Invariants: when a run returns, fails or is cancelled, nothing of it is under way; the first error ends it and
is told with what was done until then.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from moorage.bench.block import CpuMeter, latency_figures
from moorage.bench.object_stores import Store
from moorage.bench.s3_client import Payload
from moorage.wire.errors import Corrupt, MoorageError

KIB = 1024
MIB = 1024 * KIB
SIZES = (4 * KIB, MIB, 64 * MIB)
CONCURRENCIES = (1, 16)
LISTED_PREFIX = "listed/"
LISTED_SIZE = 4 * KIB
FILL_CONCURRENCY = 16
OF_SIZE = ("put", "get", "delete")


@dataclass(frozen=True, slots=True)
class Workload:
    operation: str
    """``"put"``, ``"get"``, ``"list"`` or ``"delete"``."""
    size: int
    """Of an object, in bytes; of a list, 0."""
    concurrency: int
    keys: int = 0
    """On the page that is listed."""

    @property
    def name(self) -> str:
        what = f"{self.keys} keys" if self.operation == "list" else size_name(self.size)
        return f"{self.operation} {what}, concurrency {self.concurrency}"


def size_name(size: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def workloads(sizes: Sequence[int], concurrencies: Sequence[int], listed: int) -> list[Workload]:
    """Lists first, as what is listed is there from the start; of each size, what makes its objects first."""
    lists = [Workload("list", 0, concurrency, listed) for concurrency in concurrencies]
    return lists + [
        Workload(operation, size, concurrency)
        for size in sizes
        for concurrency in concurrencies
        for operation in OF_SIZE
    ]


@dataclass(slots=True)
class Measurement:
    """One workload, measured one way."""

    workload: Workload
    by: str
    """``"library"``, ``"s3"`` or ``"endpoint"``."""
    operations: int
    seconds: float
    latency_us: dict[str, float]
    """mean, p50, p95, p99, max."""
    client_cpu_s: float
    """CPU of this process: the load, with the library or with the client of S3."""
    gateway_cpu_s: float | None = None
    server_cpu_s: dict[int, float] = field(default_factory=dict)
    error: str | None = None
    """Of the operation that failed, which ended it."""

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.operations_per_s * self.workload.size

    def cpu_us_per_operation(self, seconds: float) -> float:
        return seconds * 1e6 / self.operations if self.operations else 0.0


Step = Callable[[], Awaitable[None] | None]
"""Begin the next operation; None when there is none left."""


class Subject:
    """One store that is measured, and what it holds meanwhile. ``gateway``: the process id of what is between
    it and the servers; ``servers``: those whose CPU is counted."""

    def __init__(self, store: Store, *, gateway: int | None = None, servers: Sequence[int] = ()) -> None:
        self.store = store
        self._gateway = gateway
        self._servers = [pid for pid in servers if pid != gateway]
        self._rng = random.Random(1)
        self._payloads: dict[int, Payload] = {}
        self._keys: dict[tuple[int, int], list[str]] = {}  # by size and concurrency: there to be got

    @property
    def by(self) -> str:
        return self.store.by

    async def prepare(self, listed: int) -> None:
        """Make what is listed. It warms up connections, and what the servers have to grant first."""
        names = iter([f"{LISTED_PREFIX}{number:06}" for number in range(listed)])
        payload = self._payload(LISTED_SIZE)

        def step() -> Awaitable[None] | None:
            name = next(names, None)
            return None if name is None else self.store.put(name, payload)

        await closed_loop(step, FILL_CONCURRENCY, float("inf"), array("Q"))

    async def measure(self, workload: Workload, seconds: float, bytes_max: int) -> Measurement:
        """``bytes_max``: a put ends with them also when time is left; but each slot puts one object."""
        step = self._step(workload, bytes_max)
        pids = [*self._servers, *([] if self._gateway is None else [self._gateway])]
        meter, began = CpuMeter(pids), time.perf_counter()
        samples, error = array("Q"), None
        try:
            await closed_loop(step, workload.concurrency, seconds, samples)
        except MoorageError as failed:
            error = str(failed)
        elapsed = time.perf_counter() - began
        own, used = meter.read()
        gateway = None if self._gateway is None else used.pop(self._gateway, None)
        figures = latency_figures(samples)
        return Measurement(workload, self.by, len(samples), elapsed, figures, own, gateway, used, error)

    def _step(self, workload: Workload, bytes_max: int) -> Step:
        keys = self._keys.setdefault((workload.size, workload.concurrency), [])
        match workload.operation:
            case "put":
                return self._putting(workload, keys, bytes_max)
            case "get":
                return lambda: self._get(self._rng.choice(keys), workload.size) if keys else None
            case "delete":
                return lambda: self.store.delete(keys.pop()) if keys else None
            case "list":
                return lambda: self._list(workload.keys)
        raise AssertionError(workload.operation)

    def _putting(self, workload: Workload, keys: list[str], bytes_max: int) -> Step:
        payload = self._payload(workload.size)
        most = max(bytes_max // max(workload.size, 1), workload.concurrency)
        numbers = count()

        async def put(key: str) -> None:
            await self.store.put(key, payload)
            keys.append(key)

        def step() -> Awaitable[None] | None:
            number = next(numbers)
            return put(f"{workload.size}-{workload.concurrency}/{number:08}") if number < most else None

        return step

    async def _get(self, key: str, size: int) -> None:
        if (came := await self.store.get(key)) != size:
            raise Corrupt(f"{key} by {self.by}: {came} bytes came, {size} were put")

    async def _list(self, listed: int) -> None:
        if (came := len(await self.store.page(LISTED_PREFIX, listed))) != listed:
            raise Corrupt(f"a page by {self.by}: {came} keys came, {listed} were put")

    def _payload(self, size: int) -> Payload:
        if size not in self._payloads:
            self._payloads = {size: Payload.of(self._rng.randbytes(size))}  # one at a time: they are large
        return self._payloads[size]


async def closed_loop(step: Step, concurrency: int, seconds: float, samples: array[int]) -> None:
    """``concurrency`` slots, each with one operation after the other; to ``samples`` go the nanoseconds that
    each has taken. The first error ends all, and is raised."""
    deadline = time.perf_counter() + seconds

    async def slot() -> None:
        while (began := time.perf_counter()) < deadline and (operation := step()) is not None:
            await operation
            samples.append(int((time.perf_counter() - began) * 1e9))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(slot())
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None
