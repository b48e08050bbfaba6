"""Access keys as the gateway knows them, each for a moment.

Owns how long a key that was revoked is still taken: :data:`FRESH_S`. Holds secrets: must never log one, nor
show one in a ``repr``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from moorage.client.keys import AccessKey
from moorage.gateway.s3.errors import S3Error
from moorage.wire.errors import Invalid, NotFound

FRESH_S: Final = 2.0
KEYS_MAX: Final = 10_000
_KEY = re.compile(r"[A-Za-z0-9]{1,128}", re.ASCII)


class Credentials:
    """``find``: asks the registry for a key, see :class:`moorage.client.keys.Keys`."""

    def __init__(self, find: Callable[[str], Awaitable[AccessKey]], now: Callable[[], float]) -> None:
        self._find = find
        self._now = now
        self._kept: dict[str, tuple[float, AccessKey | None]] = {}

    async def get(self, identity: str) -> AccessKey:
        """Raises InvalidAccessKeyId."""
        until, found = self._kept.get(identity, (0.0, None))
        if self._now() >= until:
            found = await self._ask(identity)
            if len(self._kept) >= KEYS_MAX:
                self._kept.clear()
            self._kept[identity] = (self._now() + FRESH_S, found)
        if found is None:
            raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=identity)
        return found

    async def _ask(self, identity: str) -> AccessKey | None:
        if not _KEY.fullmatch(identity):
            return None
        try:
            return await self._find(identity)
        except (NotFound, Invalid):
            return None
