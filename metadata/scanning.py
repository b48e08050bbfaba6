"""Looking at all volumes without keeping others waiting: a group may have thousands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from moorage.metadata import records
from moorage.service.replicated import Replicated

SCAN_AT_ONCE: Final = 500  # volumes looked at before others are served


async def ready_volumes(replicated: Replicated) -> AsyncIterator[dict[str, Any]]:
    """All that are there to stay. The state may change while it goes on."""
    for number, volume in enumerate(records.volumes(replicated.kv)):
        if number % SCAN_AT_ONCE == SCAN_AT_ONCE - 1:
            await asyncio.sleep(0)
        if volume["state"] == records.READY:
            yield volume
