"""Filling a volume until there is no room, and what still works then.

What is written is known by its offset, so that all of it can be checked. Owns the gaps between reads that it
measures; the volume is the caller's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from moorage.client.volume import Volume
from moorage.wire.errors import NoSpace

MIB = 1 << 20
AT_ONCE = 4
READERS = 4
BLOCK = 4096


class Fill:
    def __init__(self, run: int) -> None:
        self._filler = random.Random(run).randbytes(2 * MIB)
        self._rng = random.Random(run)
        self.filled = 0  # bytes from the start that were acknowledged
        self.kept = 0  # from where on they were not discarded
        self.again = 0  # bytes from the start that were written after that
        self.read_gap = 0.0
        self.checked = 0  # blocks
        self.wrong = ""

    def content(self, at: int, second: bool = False) -> bytes:
        start = (at // BLOCK * 4177 + second * 99991) % MIB
        return at.to_bytes(8, "little") + self._filler[start : start + MIB - 8]

    async def fill(self, volume: Volume, told: Callable[[str], None]) -> NoSpace | None:
        """Write from the start until there is no room; what refused it, or None at the end of the volume."""
        while self.filled + AT_ONCE * MIB <= volume.size:
            ends = [self.filled + index * MIB for index in range(AT_ONCE)]
            writes = (volume.write(at, self.content(at)) for at in ends)
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, NoSpace):
                    return outcome
                if isinstance(outcome, BaseException):
                    raise outcome
                self.filled += MIB
            told(f"{self.filled // MIB} MiB written")
        return None

    async def read_on(self, volume: Volume, seconds: float) -> None:
        """Random reads of what is there, each checked; their longest gap."""
        end = time.perf_counter() + seconds
        self._last = time.perf_counter()

        async def reader() -> None:
            while time.perf_counter() < end:
                at = self._rng.randrange(self.kept // MIB, self.filled // MIB) * MIB
                skip = self._rng.randrange(MIB // BLOCK) * BLOCK
                data = await volume.read(at + skip, BLOCK)
                now = time.perf_counter()
                self.read_gap, self._last = max(self.read_gap, now - self._last), now
                self._judge(at + skip, data, self.content(at)[skip : skip + BLOCK])

        if self.filled:
            await asyncio.gather(*(reader() for _ in range(READERS)))

    async def discard_half(self, volume: Volume) -> None:
        self.kept = self.filled // MIB // 2 * MIB
        await volume.discard(0, self.kept)

    async def write_again(self, volume: Volume, timeout: float) -> float:
        """Write half of what was discarded; the seconds that took, above ``timeout`` when it is not done."""
        began = time.perf_counter()
        while self.again < self.kept // 2:
            try:
                await volume.write(self.again, self.content(self.again, second=True))
                self.again += MIB
            except NoSpace:
                if time.perf_counter() - began > timeout:
                    break
                await asyncio.sleep(0.1)
        return time.perf_counter() - began

    async def check(self, volume: Volume, told: Callable[[str], None]) -> str:
        """Read everything back; what was wrong first, or ""."""
        for at in range(0, self.filled, MIB):
            data = await volume.read(at, MIB)
            if at < self.again:
                want = self.content(at, second=True)
            else:
                want = bytes(MIB) if at < self.kept else self.content(at)
            self._judge(at, data, want)
            self.checked += MIB // BLOCK
            told(f"{at // MIB} of {self.filled // MIB} MiB checked")
        return self.wrong

    def _judge(self, at: int, data: bytes, want: bytes) -> None:
        if data != want and not self.wrong:
            self.wrong = f"bytes {at} to {at + len(data)} are not what was written"
