"""One operation on a volume at a time, as orchestrators are to ask for: a second one is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import StatusCode

from moorage.gateway.csi.codes import Refused


class Pending:
    def __init__(self) -> None:
        self._names: set[str] = set()

    @asynccontextmanager
    async def on(self, name: str) -> AsyncIterator[None]:
        if name in self._names:
            raise Refused(StatusCode.ABORTED, f"another call works on volume {name!r}: try again later")
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)
