"""An attachment: the epoch, its lease with metadata, and the sessions of the volume's groups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from moorage.client.nodes import NodePool
from moorage.client.volume import Volume

MetadataCall = Callable[[str, dict[str, Any], float], Awaitable[Any]]


class Attachment:
    @classmethod
    async def open(
        cls,
        call: MetadataCall,
        nodes: NodePool,
        *,
        name: str,
        read_only: bool,
        force: bool,
        io_timeout: float,
        timeout: float,
        holder: dict[str, Any],
    ) -> Volume:
        raise NotImplementedError
