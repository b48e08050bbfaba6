"""Who waits for a volume to change. Costs nothing until it does: the commands that are applied wake them."""

from __future__ import annotations

import asyncio
import contextlib


class Changes:
    """For one event loop. What has changed is looked up in the state: a wake may come for nothing."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}  # by volume

    def wake(self, volume: int) -> None:
        for future in self._waiting.pop(volume, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        for volume in list(self._waiting):
            self.wake(volume)

    async def next(self, volume: int, timeout: float) -> None:
        """Until it changes, at most so many seconds. No await between a look at the state and this."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(volume, set()).add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await future
        finally:
            left = self._waiting.get(volume, set())
            left.discard(future)
            if not left:
                self._waiting.pop(volume, None)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))
