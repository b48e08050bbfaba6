"""Drop what a committed decision gave up: the replicas of deleted volumes, replaced and unused learners;
and names.

A node drops a replica on this order only, and the order is given only for what ``drop/`` says in the
committed state: never because a replica is unknown here. Order matters: the epoch was raised with the
decision itself, then replicas go, then the name. A device that is away keeps its entry until it is back,
and does not hold the name.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from moorage.metadata import records
from moorage.metadata.tasks.context import TaskContext
from moorage.wire.errors import MoorageError

log = logging.getLogger(__name__)


async def drop(context: TaskContext, volume_id: int) -> None:
    """Work until nothing of this volume is left to be dropped or released."""
    pause_s = context.retry_s
    while await context.propose({"do": "purge_bucket", "bucket": volume_id}):
        pass  # of a bucket that is deleted: what it says of objects that are gone
    while True:
        left = await _drop_once(context, volume_id)
        left = await _release_once(context, volume_id) or left
        if left is None:
            return
        log.info("volume %x: not all is dropped yet, next try in %.1f s: %s", volume_id, pause_s, left)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, context.drop_retry_max_s)


async def _drop_once(context: TaskContext, volume_id: int) -> MoorageError | None:
    """Order each drop once; what went is noted in the state. Returns a cause when some are left."""
    by_device: dict[str, list[int]] = {}
    gone: list[int] = []
    for replica, device, _host in records.drops(context.replicated.kv, volume_id):
        if context.directory.is_refused(device):  # for good: what is there will never be served again
            gone.append(replica)
        else:
            by_device.setdefault(device, []).append(replica)
    outcomes = await asyncio.gather(
        *(
            context.orders.drop_replicas(device, context.term, volume_id, replicas, context.order_timeout_s)
            for device, replicas in by_device.items()
        )
    )
    cause: MoorageError | None = None
    for replicas, results in zip(by_device.values(), outcomes, strict=True):
        gone += [replica for replica, result in zip(replicas, results, strict=True) if result is None]
        cause = next((result for result in results if result is not None), cause)
    if gone:
        await context.propose({"do": "dropped", "volume": volume_id, "replicas": gone})
    return cause


async def _release_once(context: TaskContext, volume_id: int) -> MoorageError | None:
    volume: dict[str, Any] | None = records.volume_by_id(context.replicated.kv, volume_id)
    if volume is None or volume["state"] != records.DELETING or volume["released"]:
        return None
    try:
        await context.directory.release(volume["name"], volume_id, timeout=context.order_timeout_s)
    except MoorageError as error:
        return error
    await context.propose({"do": "released", "volume": volume_id})
    log.info("volume %s (%x) is deleted", volume["name"], volume_id)
    return None
