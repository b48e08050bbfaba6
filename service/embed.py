"""What a service looks like from outside, so that one process may run one of them, or all three.

Owns the shape only. A service is built from its own config dataclass, is started with the process's
:class:`~moorage.wire.rpc.Router`, on which it installs its methods, and never listens, reads the
environment or handles signals itself: `lifecycle.py` does that for all of them. docs/launch.md is the
contract that results.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from prometheus_client import CollectorRegistry

from moorage.wire.errors import MoorageError
from moorage.wire.rpc import Router

log = logging.getLogger(__name__)


Call = Callable[[dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """One call of the JSON API, always behind the bearer token: ``METHOD /v1/NAME``, such as GET
    /v1/registry.view (the same name as the binary protocol's method). ``handler`` gets the query's
    parameters (text) and the fields of the JSON body in one map, and returns something that JSON can say;
    bytes become hex. GET must change nothing."""

    method: Literal["GET", "POST"]
    name: str
    handler: Call


class EmbeddedService:
    """Base of RegistryService, MetadataService and NodeService: derive, and override what applies."""

    kind: ClassVar[str]  # "registry" | "metadata" | "node"

    def __init__(self) -> None:
        # The shell replaces this before start(): an error given to it ends the process with its exit code.
        self.fatal: Callable[[MoorageError], None] = _log_fatal

    async def start(self, router: Router) -> None:
        """Install the methods, open the state, take part. Returns when the service can serve; may wait
        for others meanwhile (say for whom in :meth:`not_ready`). Raises MoorageError when it cannot
        ever."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Leave in order, within seconds; called also when start() failed or was cancelled half-way."""
        raise NotImplementedError

    def not_ready(self) -> list[str]:
        """Why the service cannot serve at this moment, one line each; empty when it can (GET /readyz)."""
        return []

    def hello_extra(self) -> dict[str, Any]:
        """What the process's handshake says on the service's behalf, once it has started."""
        return {}

    def routes(self) -> list[Route]:
        return []

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Add the service's own metrics to the process's registry."""


def _log_fatal(error: MoorageError) -> None:
    log.critical("service failed: %s", error)
