"""The device and the registry: the start token, heartbeats, and being refused.

Owns the calls to the registry. Must never let the node answer a member's message before the registry has
agreed to this start's token (a clone, or a restored copy, has forgotten what it promised), nor send a count
twice. An unreachable registry stops nothing that runs: the node goes on, and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from moorage.node.config import NodeConfig
from moorage.node.superblock import Superblock
from moorage.wire.errors import Behind, IdentityConflict, MoorageError, NoSpace
from moorage.wire.leader import LeaderClient

log = logging.getLogger(__name__)

CALL_S = 5.0
RETRY_S = 0.2


class Registration:
    """``used``: bytes of live data; ``failed``: why the device is out, or None."""

    def __init__(
        self,
        config: NodeConfig,
        superblock: Superblock,
        client: LeaderClient,
        used: Callable[[], int],
        failed: Callable[[], str | None],
    ) -> None:
        self._config = config
        self._superblock = superblock
        self._client = client
        self._used = used
        self._failed = failed
        self.waiting_for = "the registry"  # why start() has not returned; "" afterwards
        self.last_error = ""

    async def start(self) -> None:
        """Join the host, and move the device to a fresh token. Waits for the registry as long as it takes;
        raises IdentityConflict when it refuses."""
        config = self._config
        if config.register_host:
            labels = dict(config.labels)
            place = {"address": config.address(), "http": config.http()}
            await self._until_done("registry.join_host", {"host": config.name, "labels": labels, **place})
        if self._superblock.fields.next_token:
            # The outcome of the last move is not known. It is asked for again, so that it is known, and then
            # there is a fresh move: of two copies that remember the same question, one gets through.
            await self._move()
        await self._move()
        self.waiting_for = ""

    async def _move(self) -> None:
        superblock = self._superblock
        old, new = await asyncio.to_thread(superblock.begin_move)
        fields = superblock.fields
        await self._until_done(
            "registry.start_device",
            {
                "device": fields.device,
                "host": self._config.name,
                "address": self._config.address(),
                "capacity": fields.capacity,
                "old_token": old,
                "new_token": new,
                "count": superblock.count,
            },
        )
        await asyncio.to_thread(superblock.moved)

    async def _until_done(self, method: str, params: dict[str, Any]) -> None:
        while True:
            try:
                await self._client.call(method, params, timeout=CALL_S)
                return
            except IdentityConflict:
                raise
            except MoorageError as error:
                if not error.retriable and error.outcome == "not_done":
                    raise
                waiting_for = f"the registry: {error}"
                if waiting_for != self.waiting_for:  # it may be told several times a second
                    log.info("%s: %s", method, error)
                self.waiting_for = waiting_for
            await asyncio.sleep(RETRY_S)

    # -- heartbeats -----------------------------------------------------------------------------------

    async def heartbeats(self) -> None:
        """For ever. Raises IdentityConflict once the registry refuses the device for good."""
        interval_s = self._config.heartbeat_ms / 1000
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._reserve_counts()
            except NoSpace as error:  # it passes; silent meanwhile, since a count that goes back is refused
                self._failed_beat(error)
                await asyncio.sleep(interval_s)
                continue
            try:
                answer = await self._heartbeat(max(interval_s, 1.0))
                interval_s = max(0.05, float(answer["interval_ms"]) / 1000)
                self.last_error = ""
            except IdentityConflict:
                raise
            except Behind:
                pass  # a later one has overtaken it
            except MoorageError as error:
                self._failed_beat(error)
            took = asyncio.get_running_loop().time() - started
            await asyncio.sleep(max(0.01, interval_s - took))

    def _failed_beat(self, error: MoorageError) -> None:
        if str(error) != self.last_error:
            log.warning("heartbeat to the registry: %s", error)
        self.last_error = str(error)

    async def _reserve_counts(self) -> None:
        if self._superblock.needs_count():
            await asyncio.to_thread(self._superblock.reserve_counts)

    async def _heartbeat(self, timeout: float) -> dict[str, Any]:
        superblock = self._superblock
        fields = superblock.fields
        params = {
            "device": fields.device,
            "token": fields.token,
            "count": superblock.take_count(),
            "address": self._config.address(),
            "capacity": fields.capacity,
            "used": self._used(),
            "failed": self._failed(),
        }
        # Not sent twice: a repeated count would look like a second process.
        answer: dict[str, Any] = await self._client.call(
            "registry.heartbeat", params, timeout=timeout, idempotent=False
        )
        return answer
