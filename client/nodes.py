"""Connections to devices: one per (client process, device), shared by all volumes and groups."""

from __future__ import annotations

from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret


class NodePool:
    def __init__(self, hello: Hello, secret: ClusterSecret) -> None:
        self._hello = hello
        self._secret = secret

    async def close(self) -> None:
        """End all connections."""
