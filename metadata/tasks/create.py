"""Create a volume's replicas: claim the name, order every replica, note that it is ready; or give it up as
a whole.

Order matters: the volume is committed first (state ``creating``), so that whatever comes to be elsewhere is
known to the state and found again after a crash. Giving up turns it into ``deleting``, and drop.py takes
back what there is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from moorage.metadata import records
from moorage.metadata.tasks.context import TaskContext, wall_ms
from moorage.wire.errors import MoorageError, NameTaken, NotEnoughHosts

log = logging.getLogger(__name__)


async def create(context: TaskContext, volume: dict[str, Any]) -> None:
    """Bring one ``creating`` volume to ``ready``, or ``deleting`` with the reason kept for its creator."""
    try:
        await _until_done(context, volume)
    except MoorageError as error:
        log.warning("volume %s (%x) is given up: %s", volume["name"], volume["id"], error)
        why = records.error_record(error)
        await context.propose({"do": "abandon", "volume": volume["id"], "error": why, "now_ms": wall_ms()})
        return
    await context.propose({"do": "ready", "volume": volume["id"]})
    log.info("volume %s (%x) is ready", volume["name"], volume["id"])


async def _until_done(context: TaskContext, volume: dict[str, Any]) -> None:
    """Raises the reason to give up; what may pass is tried again until the deadline."""
    deadline = asyncio.get_running_loop().time() + context.create_timeout_s
    waiting = _orders(volume)
    claimed = False
    while True:
        try:
            if not claimed:
                await context.directory.claim(volume, timeout=context.order_timeout_s)
                claimed = True
            await _order(context, waiting)
            return
        except MoorageError as error:
            late = asyncio.get_running_loop().time() >= deadline
            if late or not error.retriable:
                raise _reason(volume["name"], error) from error
        await asyncio.sleep(context.retry_s)


def _orders(volume: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Orders by (device, host)."""
    orders: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for group in volume["groups"]:
        for member in group["members"]:
            order = order_of(volume, group, member["replica"])
            orders.setdefault((member["device"], member["host"]), []).append(order)
    return orders


def order_of(volume: dict[str, Any], group: dict[str, Any], replica: int) -> dict[str, Any]:
    """What a device is told of a replica that it is to create."""
    return {
        "replica": replica,
        "volume": volume["id"],
        "group": group["group"],
        "durability": records.durability_of(volume),
        "members": volume["replicas"],
    }


async def _order(context: TaskContext, waiting: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Try every order in ``waiting`` once, and take out what is done. Raises the worst failure, naming the
    host.
    """
    places = list(waiting)
    outcomes = await asyncio.gather(
        *(
            context.orders.create_replicas(
                device, context.term, waiting[device, host], context.order_timeout_s
            )
            for device, host in places
        )
    )
    failures: list[MoorageError] = []
    for place, results in zip(places, outcomes, strict=True):
        left = [order for order, result in zip(waiting[place], results, strict=True) if result is not None]
        failed = [result for result in results if result is not None]
        if failed:
            waiting[place] = left
            failures.append(_at_host(place[1], min(failed, key=lambda error: error.retriable)))
        else:
            del waiting[place]
    if failures:
        raise min(failures, key=lambda error: error.retriable)  # what cannot pass decides


def _at_host(host: str, error: MoorageError) -> MoorageError:
    return type(error)(f"{host}: {error.message}", **{**error.details, "host": host})


def _reason(name: str, error: MoorageError) -> MoorageError:
    """What the creator is told. All is taken back, so the outcome is known even where the cause's was not,
    and the
    answer is final: the same request would hear it again."""
    if isinstance(error, NameTaken):
        return error
    cls: type[MoorageError] = NotEnoughHosts if error.retriable else type(error)
    return cls(
        f"volume {name!r} was not created, and what there was of it is taken back: {error.message}",
        **error.details,
    )
