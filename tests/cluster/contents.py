"""Bytes of objects for tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def in_parts(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]
