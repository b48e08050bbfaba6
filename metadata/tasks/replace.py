"""Carry the changes of one volume's groups out: create each learner, and have the logs led until it counts.

Whoever holds the volume does the rest: it hears of the wish with its lease. When nobody does, this leader's
repairer takes an epoch, as a reader's recovery does, and makes room for whoever attaches. Each step may be
repeated: a learner that is there is not created again, and what was called off is looked up in the state.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from moorage.metadata import records
from moorage.metadata.tasks.context import TaskContext
from moorage.metadata.tasks.create import order_of
from moorage.metadata.tasks.lead import lead

log = logging.getLogger(__name__)

POLL_S = 1.0  # the holder is at it


async def replace(context: TaskContext, volume_id: int) -> None:
    """Work until the state wishes for no change of this volume any more. A wish may come while others are
    under way: so whoever leads does it beside this."""
    created: set[int] = set()
    leading: asyncio.Task[None] | None = None
    try:
        while (volume := _wishing(context, volume_id)) is not None or leading is not None:
            if volume is not None:
                await _create_learners(context, volume, created)
            if leading is not None and leading.done():
                leading.result()
                leading = None
            if volume is None:
                if leading is not None:
                    await asyncio.wait((leading,), timeout=POLL_S)  # it lets go, unless there is another wish
                continue
            if leading is None and context.lapsed_ms(volume) > 0:
                log.info("volume %s: nobody holds it, its groups are led here", volume["name"])
                leading = asyncio.create_task(_lead(context, volume), name=f"lead {volume['name']}")
            await asyncio.sleep(POLL_S)
    finally:
        if leading is not None:  # also one that has just ended: somebody has to hear of it
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)


def _wishing(context: TaskContext, volume_id: int) -> dict[str, Any] | None:
    volume = records.volume_by_id(context.replicated.kv, volume_id)
    if volume is None or volume["state"] != records.READY or not records.wishes(volume):
        return None
    return volume


async def _create_learners(context: TaskContext, volume: dict[str, Any], created: set[int]) -> None:
    for group in records.wishes(volume):
        wish = group["wish"]
        if wish["replica"] in created:
            continue
        orders = [order_of(volume, group, wish["replica"])]
        (error,) = await context.orders.create_replicas(
            wish["device"], context.term, orders, context.order_timeout_s
        )
        if error is None:
            created.add(wish["replica"])
        else:
            where = f"{wish['host']}, device {wish['device']}"
            log.info("volume %s: no replica at %s yet: %s", volume["name"], where, error)


async def settle(context: TaskContext, volume: dict[str, Any], why: str) -> None:
    """Nobody holds the volume, and a member lacks something: lead it until all that answer have all."""
    log.info("volume %s: %s; nobody holds it, so it is led here for a moment", volume["name"], why)
    await _lead(context, volume)


async def _lead(context: TaskContext, volume: dict[str, Any]) -> None:
    """Until no member is to be replaced, and those that answer have all."""
    await lead(context, volume, lambda: _wishing(context, volume["id"]) is None)
