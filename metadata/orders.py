"""Orders to nodes: create and drop replicas. Only committed decisions are ordered (the tasks see to that).

Owns short connections to devices. It must never order anything at a process that is not the device meant:
ports are used again, so the peer has to name the device in its handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from moorage.metadata.directory import Directory
from moorage.wire.connection import Connection
from moorage.wire.errors import CannotConnect, MoorageError, NoReplica, ProtocolError, Unavailable
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret
from moorage.wire.server import connect

AT_ONCE: Final = 32  # orders under way per device; a node takes them one by one anyhow
NODE_SERVICES: Final = ("node", "host")
PING_AFTER_S: Final = 1.0
SILENCE_S: Final = 10.0  # of a host that lost its power: an order that may take a minute must not wait for it


class NodeOrders:
    def __init__(self, directory: Directory, *, group: str, hello: Hello, secret: ClusterSecret) -> None:
        self._directory = directory
        self._group = group
        self._hello = hello
        self._secret = secret

    async def create_replicas(
        self, device: str, term: int, orders: list[dict[str, Any]], timeout: float
    ) -> list[MoorageError | None]:
        """Send ``node.create_replica`` for each; one outcome per order, None: it is there. ``term``: of the
        leadership that orders it, so that a node refuses what a former leader still sends."""
        return await self._send(device, "node.create_replica", term, orders, timeout)

    async def drop_replicas(
        self, device: str, term: int, volume: int, replicas: list[int], timeout: float
    ) -> list[MoorageError | None]:
        """Send ``node.drop_replica`` for each; None: it is gone, or never was there."""
        orders = [{"replica": replica, "volume": volume} for replica in replicas]
        outcomes = await self._send(device, "node.drop_replica", term, orders, timeout)
        return [None if isinstance(outcome, NoReplica) else outcome for outcome in outcomes]

    async def list_replicas(self, device: str, timeout: float) -> list[dict[str, Any]]:
        """What a device says of its replicas. Raises Unavailable when it does not answer."""
        try:
            async with asyncio.timeout(timeout), self._connected(device, timeout) as conn:
                rows, _ = await conn.call("node.list_replicas", {}, timeout=timeout)
        except TimeoutError:
            raise CannotConnect(f"device {device} did not answer within {timeout:.1f} s") from None
        return list(rows)

    async def ask(
        self, device: str, method: str, params: dict[str, Any], term: int, timeout: float
    ) -> dict[str, Any]:
        """One order about objects. Raises what the device answers, or that it does not."""
        order = {**params, "metadata": self._group, "term": term}
        try:
            async with asyncio.timeout(timeout), self._connected(device, timeout) as conn:
                answer, _ = await conn.call(method, order, timeout=timeout)
        except TimeoutError:
            raise CannotConnect(f"device {device} did not answer within {timeout:.1f} s") from None
        if not isinstance(answer, dict):
            raise ProtocolError(f"device {device} answered {method} with {answer!r}")
        return answer

    async def _send(
        self, device: str, method: str, term: int, orders: list[dict[str, Any]], timeout: float
    ) -> list[MoorageError | None]:
        orders = [{**order, "metadata": self._group, "term": term} for order in orders]
        try:
            async with asyncio.timeout(timeout):
                return await self._send_over_one_connection(device, method, orders, timeout)
        except TimeoutError:
            late = CannotConnect(f"device {device} did not answer within {timeout:.1f} s", device=device)
            return [late] * len(orders)
        except MoorageError as error:
            return [error] * len(orders)

    async def _send_over_one_connection(
        self, device: str, method: str, orders: list[dict[str, Any]], timeout: float
    ) -> list[MoorageError | None]:
        slots = asyncio.Semaphore(AT_ONCE)
        async with self._connected(device, timeout) as conn:

            async def send(order: dict[str, Any]) -> MoorageError | None:
                try:
                    async with slots:
                        await conn.call(method, order, timeout=timeout)
                except MoorageError as error:
                    return error
                return None

            return list(await asyncio.gather(*(send(order) for order in orders)))

    @contextlib.asynccontextmanager
    async def _connected(self, device: str, timeout: float) -> AsyncIterator[Connection]:
        address = await self._directory.reach(device)
        conn = await connect(address, hello=self._hello, secret=self._secret, timeout=timeout)
        try:
            found = conn.peer.extra.get("device")
            if conn.peer.service not in NODE_SERVICES or found != device:
                raise Unavailable(  # passes: the registry hears of the new address with the next heartbeat
                    f"{address} is {conn.peer.service} {conn.peer.name} with device {found}, not {device}",
                    device=device,
                )
            conn.keepalive(PING_AFTER_S, SILENCE_S)
            yield conn
        finally:
            conn.close()
