"""A load that knows what it should read: every block says which block and version it is.

Owns: the closed loop of reads and writes, the model of what each block may hold, and the longest gap
between acknowledgements. Never reads a block without checking it, never counts an operation that failed.

A block's content follows from (run, block, version), so that a checker needs no copy of what was written:
a block may show any version from the last one acknowledged to the last one submitted, whole, and nothing
else. Acknowledgements can be journaled (see ``Journal``) to judge a volume after this process was killed.
"""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from moorage.client.device import BlockDevice
from moorage.wire.errors import Corrupt, MoorageError

BLOCK = 4096
TAG = struct.Struct("<8sQQQ")  # magic, run, block, version
MAGIC = b"moorverf"
FILLER_SIZE = 1 << 20
ENTRY = struct.Struct("<BQQ")  # kind, block, version
ACKED, FLUSHED = 1, 2
ERROR_PAUSE_S = 0.01


class Pattern:
    """Content of a block at a version; version 0 is a block never written (zeroes)."""

    def __init__(self, run: int) -> None:
        self.run = run
        self._filler = random.Random(run).randbytes(FILLER_SIZE + BLOCK)

    def content(self, block: int, version: int) -> bytes:
        if version == 0:
            return bytes(BLOCK)
        start = (block * 7919 + version * 104729) % FILLER_SIZE
        return TAG.pack(MAGIC, self.run, block, version) + self._filler[start : start + BLOCK - TAG.size]

    def version(self, block: int, data: bytes | bytearray | memoryview) -> int | None:
        """The version that ``data`` is, or None when it is no version of this block."""
        magic, run, tagged_block, version = TAG.unpack_from(data)
        if magic != MAGIC:
            return 0 if bytes(data) == bytes(BLOCK) else None
        if run != self.run or tagged_block != block or bytes(data) != self.content(block, version):
            return None
        return int(version)


class Journal:
    """Acknowledgements in a file, written before anybody can act on them: they outlive a SIGKILL."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("ab", buffering=0)

    def acked(self, block: int, version: int) -> None:
        self._file.write(ENTRY.pack(ACKED, block, version))

    def flushed(self) -> None:
        """All acknowledgements that stand before the matching ``flush_begins`` are on stable storage."""
        self._file.write(ENTRY.pack(FLUSHED, 0, self._mark))

    def flush_begins(self) -> None:
        self._mark = self._file.tell()

    _mark = 0

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> tuple[dict[int, int], dict[int, int]]:
    """(last version acknowledged, last version flushed) of each block."""
    data = path.read_bytes()
    entries = [ENTRY.unpack_from(data, at) for at in range(0, len(data) - ENTRY.size + 1, ENTRY.size)]
    acked: dict[int, int] = {}
    flushed: dict[int, int] = {}
    mark = max((value for kind, _, value in entries if kind == FLUSHED), default=0)
    for index, (kind, block, version) in enumerate(entries):
        if kind == ACKED:
            acked[block] = max(version, acked.get(block, 0))
            if index * ENTRY.size < mark:
                flushed[block] = max(version, flushed.get(block, 0))
    return acked, flushed


class Phase:
    """Counts of one stretch of time; gaps run from acknowledgement to acknowledgement, also across phases."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.began = now
        self.reads = self.writes = self.errors = 0
        self.read_gap = self.write_gap = 0.0
        self.first_error = ""

    def summary(self, now: float) -> dict[str, object]:
        seconds = max(now - self.began, 1e-9)
        return {
            "phase": self.name,
            "seconds": round(seconds, 3),
            "reads": self.reads,
            "writes": self.writes,
            "reads_per_s": round(self.reads / seconds, 1),
            "writes_per_s": round(self.writes / seconds, 1),
            "read_gap_ms": round(self.read_gap * 1e3, 2),
            "write_gap_ms": round(self.write_gap * 1e3, 2),
            "errors": self.errors,
            "first_error": self.first_error,
        }


class VerifyingLoad:
    """``depth`` operations in flight over the first ``blocks`` blocks of ``device`` until ``stop``.

    Raises nothing for a failed operation: it is counted, and a failed write's outcome is taken as unknown.
    ``mismatches`` lists what no history of the volume allows.
    """

    def __init__(
        self,
        device: BlockDevice,
        *,
        blocks: int,
        run: int,
        depth: int = 16,
        read_share: float = 0.5,
        journal: Journal | None = None,
    ) -> None:
        self.device = device
        self.pattern = Pattern(run)
        self.mismatches: list[str] = []
        self._blocks = blocks
        self._depth = depth
        self._read_share = read_share
        self._journal = journal
        self._rng = random.Random(run ^ 0x5EED)
        self._floor = [0] * blocks
        self._submitted = [0] * blocks
        self._writing: set[int] = set()
        self._in_flight = 0
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        now = time.perf_counter()
        self._last_read = self._last_write = now
        self.phase = Phase("start", now)

    def start(self, phase: str) -> None:
        self._last_read = self._last_write = time.perf_counter()
        self.next_phase(phase)
        self._stopping = False
        for _ in range(self._depth):
            self._issue()

    def set_read_share(self, share: float) -> None:
        """From now on ``share`` of the operations are reads. What was not asked for has no gap."""
        now = time.perf_counter()
        if self._read_share >= 1:
            self._last_write = now
        if self._read_share <= 0:
            self._last_read = now
        self._read_share = share

    def next_phase(self, name: str) -> dict[str, object]:
        """End the running phase, begin ``name``; returns the ended one's figures."""
        now = time.perf_counter()
        ended, self.phase = self.phase, Phase(name, now)
        # A stall that still lasts belongs to the phase that it began in, too.
        ended.read_gap = max(ended.read_gap, now - self._last_read if self._read_share > 0 else 0)
        ended.write_gap = max(ended.write_gap, now - self._last_write if self._read_share < 1 else 0)
        return ended.summary(now)

    async def stop(self) -> dict[str, object]:
        """Let what is in flight end, then return the last phase's figures."""
        self._stopping = True
        await self._idle.wait()
        return self.phase.summary(time.perf_counter())

    def _issue(self) -> None:
        if self._stopping:
            return
        self._in_flight += 1
        self._idle.clear()
        block = self._rng.randrange(self._blocks)
        if self._rng.random() < self._read_share:
            self._read(block)
            return
        while block in self._writing:
            block = self._rng.randrange(self._blocks)
        self._write(block)

    def _ended(self, failed: bool) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()
        # Not at once: a device that fails immediately would recurse, or keep the processor busy.
        loop = asyncio.get_running_loop()
        loop.call_later(ERROR_PAUSE_S if failed else 0, self._issue)

    def _write(self, block: int) -> None:
        version = self._submitted[block] + 1
        self._submitted[block] = version
        self._writing.add(block)

        def done(error: BaseException | None) -> None:
            self._writing.discard(block)
            if error is None:
                now = time.perf_counter()
                self._floor[block] = version
                if self._journal is not None:
                    self._journal.acked(block, version)
                self.phase.write_gap = max(self.phase.write_gap, now - self._last_write)
                self._last_write = now
                self.phase.writes += 1
            else:
                self._failed(error)
            self._ended(failed=error is not None)

        self.device.write_nowait(block * BLOCK, memoryview(self.pattern.content(block, version)), done)

    def _read(self, block: int) -> None:
        floor = self._floor[block]
        into = bytearray(BLOCK)

        def done(error: BaseException | None) -> None:
            if error is None:
                now = time.perf_counter()
                # What one read has shown, no later read may take back.
                self._floor[block] = max(self._floor[block], self._check(block, into, floor))
                self.phase.read_gap = max(self.phase.read_gap, now - self._last_read)
                self._last_read = now
                self.phase.reads += 1
            else:
                self._failed(error)
            self._ended(failed=error is not None)

        self.device.read_nowait(block * BLOCK, memoryview(into), done)

    def _failed(self, error: BaseException) -> None:
        self.phase.errors += 1
        if not self.phase.first_error:
            self.phase.first_error = f"{type(error).__name__}: {error}"
        if not isinstance(error, MoorageError | OSError):
            self.mismatches.append(f"unexpected {type(error).__name__}: {error}")

    def _check(self, block: int, data: bytes | bytearray, floor: int) -> int:
        version = self.pattern.version(block, data)
        if version is None:
            self.mismatches.append(f"block {block}: not a version of this block")
            return floor
        if not floor <= version <= self._submitted[block]:
            last = self._submitted[block]
            self.mismatches.append(f"block {block}: version {version}, not within {floor}..{last}")
        return version

    def flush_begins(self) -> None:
        if self._journal is not None:
            self._journal.flush_begins()

    def flushed(self) -> None:
        if self._journal is not None:
            self._journal.flushed()

    async def verify_all(self, progress: Callable[[int], None] = lambda done: None) -> int:
        """Read every block once and check it; returns how many were checked."""
        for first in range(0, self._blocks, 256):
            count = min(256, self._blocks - first)
            await self._verify_run(first, count)
            progress(first + count)
        return self._blocks

    async def _verify_run(self, first: int, count: int) -> None:
        self._check_run(first, count, await read(self.device, first * BLOCK, count * BLOCK))

    def _check_run(self, first: int, count: int, data: bytes | bytearray) -> None:
        for index in range(count):
            block = data[index * BLOCK : (index + 1) * BLOCK]
            self._check(first + index, block, self._floor[first + index])

    async def verify_copy(self, read_from: Callable[[int, int], Awaitable[bytes]]) -> int:
        """Check one replica's own copy of every block, by ``read_from(offset, length)``; returns how many
        runs of up to 256 blocks hold bad ones. Only while nothing is written: each must be the last."""
        bad = 0
        for first in range(0, self._blocks, 256):
            count = min(256, self._blocks - first)
            try:
                data = await read_from(first * BLOCK, count * BLOCK)
            except Corrupt:
                bad += 1
            else:
                self._check_run(first, count, data)
        return bad


def judge(
    pattern: Pattern, data: bytes | bytearray, first: int, must: dict[int, int]
) -> tuple[list[str], dict[int, int]]:
    """Check blocks read back by somebody else: each whole, and at least the version in ``must``.

    Returns (violations, version found per block).
    """
    wrong: list[str] = []
    found: dict[int, int] = {}
    for index in range(len(data) // BLOCK):
        block = first + index
        version = pattern.version(block, data[index * BLOCK : (index + 1) * BLOCK])
        if version is None:
            wrong.append(f"block {block}: torn or foreign content")
        elif version < must.get(block, 0):
            wrong.append(f"block {block}: version {version} found, {must[block]} was acknowledged")
        else:
            found[block] = version
    return wrong, found


async def read(device: BlockDevice, offset: int, length: int) -> bytearray:
    """Await one read of the callback interface."""
    into = bytearray(length)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    device.read_nowait(offset, memoryview(into), done)
    await future
    return into
