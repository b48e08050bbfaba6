"""The node service: the shell around one device's store and the members of the replicas on it.

Owns: start and stop in order (lock, superblock, store, start token at the registry, methods, heartbeats).
Must never answer a member's message before the registry has accepted this start's token: a clone would.
"""

from __future__ import annotations

from moorage.node.config import NodeConfig
from moorage.service.embed import EmbeddedService
from moorage.wire.rpc import Router


class NodeService(EmbeddedService):
    """``NodeService(config)``, ``await start(router)``, ``await stop()``; see :class:`EmbeddedService`."""

    kind = "node"

    def __init__(self, config: NodeConfig) -> None:
        super().__init__()
        config.validate()
        self._config = config

    async def start(self, router: Router) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    @property
    def device(self) -> str:
        """The device's persistent identity, 32 hex digits; known after start."""
        raise NotImplementedError

    def hello_extra(self) -> dict[str, str]:
        """For the process's Hello: ``{"device", "token"}``: ports are reused, so a peer checks these."""
        raise NotImplementedError
