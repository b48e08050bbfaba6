"""Lead the logs of a volume that nobody holds: this leader's repairer takes an epoch, as a reader's recovery
does, and makes room for whoever attaches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from moorage.metadata.tasks.context import TaskContext
from moorage.wire.errors import Busy, Fenced, MoorageError, NotLeader

log = logging.getLogger(__name__)


async def lead(context: TaskContext, volume: dict[str, Any], done: Callable[[], bool]) -> str:
    """Until ``done``, and all that answer have all. Returns early when somebody is there, or comes; or when
    it cannot be done: why."""
    try:
        await context.leading.lead(context.call(volume["name"]), done)
    except NotLeader:
        raise
    except (Busy, Fenced) as error:  # somebody is there, or came: all the better
        log.debug("volume %s: %s", volume["name"], error)
    except MoorageError as error:
        log.info("volume %s: cannot be led here now: %s", volume["name"], error)
        return str(error)
    return ""
