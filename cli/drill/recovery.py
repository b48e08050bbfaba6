"""How long it takes until every replica of a volume has all that is committed, as its holder sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from moorage.cli.clients import ClientProcess

POLL_S = 0.1
CURRENT = "current"


@dataclass(frozen=True)
class Recovery:
    """``missing``: who is not current yet, and why; "" when all are."""

    seconds: float
    missing: str


async def _true() -> bool:
    return True


async def await_current(
    load: ClientProcess,
    *,
    timeout: float,
    host: str | None = None,
    began: float | None = None,
    back: Callable[[], Awaitable[bool]] = _true,
    told: Callable[[str], None] = lambda text: None,
) -> Recovery:
    """Ask the holder until all replicas are current (those on ``host``, when given), and ``back`` says yes.
    ``timeout`` seconds count from ``began`` (``time.perf_counter``; default: now)."""
    began = time.perf_counter() if began is None else began
    while True:
        missing = missing_of((await load.ask("members"))["members"], host)
        if not missing and not await back():
            missing = f"{host or 'a host'} was not started again"
        seconds = time.perf_counter() - began
        if not missing or seconds > timeout:
            return Recovery(seconds, missing)
        told(f"{seconds:.1f} s: {missing}")
        await asyncio.sleep(POLL_S)


def missing_of(members: list[dict[str, Any]], host: str | None = None) -> str:
    """Who is not current, in words."""
    mine = [member for member in members if host in (None, member["host"])]
    late = [member for member in mine if member["state"] != CURRENT]
    return ", ".join(sorted({f"{member['host']}: {member['state']}" for member in late}))
