"""What the objects of buckets count for quotas of their principals: bytes, charged in steps before they come.

Owns, under this leader, how much each bucket is charged with (charges.py tells the registry), and what is
being put. So what is charged is never less than what there is: all versions of all objects; parts of an
upload count once it is complete. Before the cluster has a quota nothing is charged, and nobody is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from moorage.metadata.objects import versions
from moorage.service.kv import KV
from moorage.wire.errors import LimitExceeded, MoorageError

STEP: Final = 64 << 20  # bytes: so seldom the registry is asked

Bucket = dict[str, Any]
Charge = Callable[[Bucket, int, float], Awaitable[None]]


class Room:
    """``kv()``: the state; ``charge(bucket, bytes, timeout)`` raises LimitExceeded; ``is_charging``: whether
    there has been a quota."""

    def __init__(self, kv: Callable[[], KV], charge: Charge, is_charging: Callable[[], bool]) -> None:
        self._kv = kv
        self._charge = charge
        self.is_charging = is_charging
        self._charged: dict[int, int] = {}  # by bucket; of one that is not here nothing is known
        self._under_way: Counter[int] = Counter()
        self._one = asyncio.Lock()  # what is charged of a bucket changes step by step

    def lead(self) -> None:
        """Leadership begins: of what others have charged nothing is known."""
        self._charged.clear()

    def settled(self, bucket: Bucket) -> int:
        """What it counts from now on: the registry is being told."""
        size = self._charged[bucket["id"]] = _in_steps(self._used(bucket["id"]))
        return size

    @asynccontextmanager
    async def held(self, bucket: Bucket, size: int, timeout: float) -> AsyncIterator[None]:
        """There is room for so many bytes more, while they are put. Raises LimitExceeded with the numbers,
        and what speaks against asking the registry."""
        identity = bucket["id"]
        self._under_way[identity] += size
        try:
            if self.is_charging() and self._used(identity) > self._charged.get(identity, -1):
                async with self._one:
                    await self._grow(bucket, timeout)
            yield
        finally:
            self._under_way[identity] -= size
            if not self._under_way[identity]:
                del self._under_way[identity]

    async def _grow(self, bucket: Bucket, timeout: float) -> None:
        used = self._used(bucket["id"])
        if used <= self._charged.get(bucket["id"], -1):
            return  # by another put
        try:
            await self._set(bucket, _in_steps(used), timeout)
        except LimitExceeded:
            await self._set(bucket, used, timeout)

    async def shrink(self, bucket: Bucket, timeout: float) -> None:
        """Much of it may be gone: others have that room now."""
        if not self.is_charging():
            return
        async with self._one:
            size = _in_steps(self._used(bucket["id"]))
            if self._charged.get(bucket["id"], 0) >= size + STEP:
                with contextlib.suppress(MoorageError):  # too much until the next leader, else
                    await self._set(bucket, size, timeout)

    async def _set(self, bucket: Bucket, size: int, timeout: float) -> None:
        former = self._charged.pop(bucket["id"], None)  # while it is not known whether it was heard
        try:
            await self._charge(bucket, size, timeout)
        except MoorageError as error:
            if error.outcome == "not_done" and former is not None:
                self._charged[bucket["id"]] = former
            raise
        self._charged[bucket["id"]] = size

    def _used(self, identity: int) -> int:
        _, size, _, former_size = versions.usage(self._kv(), identity)
        return size + former_size + self._under_way[identity]


def _in_steps(size: int) -> int:
    return -(-size // STEP) * STEP
