"""What users feel of a copy that brings redundancy back, and what is left for the copy: load alone, copy
alone, both.

Owns the load (paced: a user who is held up does not make less of it), the measuring of a copy by the bytes
that its device counts, and the ratios. It needs a cluster whose hosts it may kill: see cli/background.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from moorage.client.volume import Volume

BLOCK = 4096
MIB = 1 << 20
SCHEMA = "moorage.bench.background/1"
IN_FLIGHT_MAX = 64  # more than that is not users that wait, but a queue of ours
POLL_S = 0.05
COPY_TIMEOUT_S = 600.0
AIM_LATENCY, AIM_COPY = 2.0, 0.8  # users' p99 against idle; the copy's rate against what users leave


@dataclass
class Load:
    """4 KiB at random places, every other one a read, ``rate`` of them per second until ``stop``."""

    volume: Volume
    rate: float
    seed: int = 1
    finished: list[tuple[float, bool, float]] = field(default_factory=list)  # when, write?, seconds
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopped: bool = False

    async def run(self) -> None:
        rng, blocks = random.Random(self.seed), self.volume.size // BLOCK
        data = [rng.randbytes(BLOCK) for _ in range(16)]
        loop = asyncio.get_running_loop()
        began, count = loop.time(), 0
        while not self._stopped:
            count += 1
            await asyncio.sleep(max(0.0, began + count / self.rate - loop.time()))
            if len(self._tasks) < IN_FLIGHT_MAX:
                work = self._one(rng.randrange(blocks) * BLOCK, data[count % 16] if count % 2 else None)
                task = loop.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def _one(self, offset: int, data: bytes | None) -> None:
        began = time.monotonic()
        if data is None:
            await self.volume.read(offset, BLOCK)
        else:
            await self.volume.write(offset, data)
        now = time.monotonic()
        self.finished.append((now, data is not None, now - began))

    def stop(self) -> None:
        self._stopped = True

    def figures(self, since: float, until: float) -> dict[str, float]:
        """Of what was finished in between (``time.monotonic``): operations per second, latencies in us."""
        chosen = [each for each in self.finished if since <= each[0] <= until]
        found = {"operations_per_s": round(len(chosen) / max(1e-9, until - since), 1)}
        for name, writes in (("write", True), ("read", False)):
            took = sorted(each[2] for each in chosen if each[1] is writes)
            for percent in (50, 99):
                at = min(len(took) - 1, len(took) * percent // 100)
                found[f"{name}_p{percent}_us"] = round(took[at] * 1e6, 1) if took else 0.0
        return found


@dataclass(frozen=True)
class CopyRun:
    began: float
    ended: float
    bytes: int

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / max(1e-9, self.ended - self.began)


async def watch_copy(copied: Callable[[], Awaitable[int]], is_current: Callable[[], bool]) -> CopyRun:
    """From the first byte that a device has copied to the last."""
    began, first, last, ended = 0.0, 0, 0, 0.0
    async with asyncio.timeout(COPY_TIMEOUT_S):
        while not (began and is_current()):
            now, found = time.monotonic(), await copied()
            if found and not began:
                began, first = now, found
            if found > last:
                last, ended = found, now
            await asyncio.sleep(POLL_S)
    return CopyRun(began, ended, last - first)


@dataclass(frozen=True)
class Outcome:
    """``users_bytes_per_s``: what users write to each member meanwhile."""

    alone: dict[str, float]
    beside: dict[str, float]
    copy_alone: float
    copy_beside: float
    users_bytes_per_s: float

    @property
    def latency_ratio(self) -> float:
        """Of the worse kind: p99 beside the copy over p99 alone."""
        return max(
            self.beside[name] / self.alone[name]
            for name in ("write_p99_us", "read_p99_us")
            if self.alone[name]
        )

    @property
    def copy_ratio(self) -> float:
        """Of what users leave: of the rate that the copy has alone, less what users take."""
        return self.copy_beside / max(1.0, self.copy_alone - self.users_bytes_per_s)

    def document(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **asdict(self),
            "latency_ratio": round(self.latency_ratio, 2),
            "copy_ratio": round(self.copy_ratio, 2),
            "aims": {"latency_ratio": AIM_LATENCY, "copy_ratio": AIM_COPY},
        }
