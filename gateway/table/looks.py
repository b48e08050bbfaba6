"""Whether what serves a mounted file system is still there.

Owns the asking: by a process of its own, since who asks a file system whose storage is silent stays in the
kernel and cannot be ended. There is never more than one of them for a mount point.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os

from moorage.gateway.mount import system
from moorage.wire.errors import MoorageError

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 5.0
PATIENCE_S = 24 * 3600.0


class Looks:
    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def has_died(self, target: str) -> bool:
        """Its FUSE client has ended. One that is only silent is not dead."""
        if target not in self._asking:
            asking = system.run("stat", "--format=%i", target, timeout=PATIENCE_S)
            self._asking[target] = asyncio.create_task(asking, name=f"look at {target}")
        await asyncio.wait((self._asking[target],), timeout=LOOK_TIMEOUT_S)
        if not self._asking[target].done():
            log.warning("%s does not answer", target)
            return False
        try:
            await self._asking.pop(target)
        except MoorageError as error:
            return os.strerror(errno.ENOTCONN) in error.message
        return False
