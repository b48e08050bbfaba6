"""Devices that hold blocks of objects in memory, and fail, hang, or answer garbage as they are told; and the
metadata that gives regions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from moorage.client.objects.devices import Devices
from moorage.client.objects.space import Space
from moorage.client.reader import HedgeBudget
from moorage.quorum.record import BLOCK_SIZE, BLOCKS_PER_CHUNK, Buffer, block_sums
from moorage.wire.errors import Behind, CannotConnect, Invalid, MoorageError

FOREVER = 3600.0
REGION_CHUNKS = 64


def group(number: int, *replicas: int, wish: int = 0) -> dict[str, Any]:
    """As metadata describes it; device ``dN`` holds replica N."""
    members = [_place(replica) for replica in replicas]
    return {"group": number, "members": members, "wish": _place(wish) if wish else None}


def _place(replica: int) -> dict[str, Any]:
    return {"replica": replica, "device": f"d{replica}", "host": f"h{replica}", "address": f"a{replica}"}


class FakeDevices(Devices):
    """By replica: ``errors`` are raised, ``delays`` waited for before, ``garbage`` is answered to reads.
    ``under_way``: puts that each has not answered; ``most``: the most there ever were of all at once."""

    def __init__(self) -> None:
        self.blocks: dict[int, dict[int, bytes]] = {}
        self.errors: dict[int, MoorageError] = {}
        self.delays: dict[int, float] = {}
        self.garbage: dict[int, tuple[Any, Any]] = {}
        self.distance: dict[int, int] = {}
        self.calls: list[tuple[int, str]] = []
        self.under_way: dict[int, int] = {}
        self.most: dict[int, int] = {}
        self.hedges = HedgeBudget()
        self._slow = {}

    def link(self, place: dict[str, Any]) -> Any:
        replica = place["replica"]
        down = isinstance(self.errors.get(replica), CannotConnect)
        health = SimpleNamespace(distance=self.distance.get(replica, 1))
        return SimpleNamespace(conn=None if down else 1, health=health)

    async def call(
        self,
        place: dict[str, Any],
        method: str,
        params: dict[str, Any],
        payload: Sequence[Buffer] = (),
        *,
        timeout: float,
    ) -> tuple[Any, memoryview]:
        replica = place["replica"]
        self.calls.append((replica, method))
        now = self.under_way[replica] = self.under_way.get(replica, 0) + 1
        self.most[replica] = max(self.most.get(replica, 0), now)
        try:
            if delay := self.delays.get(replica, 0.0):
                await asyncio.sleep(delay)
            else:
                await asyncio.sleep(0)
            if replica in self.errors:
                raise self.errors[replica]
            return getattr(self, method.removeprefix("node."))(replica, params, payload)
        finally:
            self.under_way[replica] -= 1

    def put_blocks(
        self, replica: int, params: dict[str, Any], payload: Sequence[Buffer]
    ) -> tuple[Any, memoryview]:
        (data,) = payload
        assert block_sums(bytes(data)) == params["sums"]
        assert params["block"] * BLOCK_SIZE + len(data) <= BLOCKS_PER_CHUNK * BLOCK_SIZE
        held = self.blocks.setdefault(replica, {})
        first = params["chunk"] * BLOCKS_PER_CHUNK + params["block"]
        for at in range(len(data) // BLOCK_SIZE):
            new = bytes(data[at * BLOCK_SIZE : (at + 1) * BLOCK_SIZE])
            if held.setdefault(first + at, new) != new:
                raise Invalid("it is written once")
        return {}, memoryview(b"")

    def read_blocks(
        self, replica: int, params: dict[str, Any], payload: Sequence[Buffer]
    ) -> tuple[Any, memoryview]:
        if replica in self.garbage:
            sums, data = self.garbage[replica]
            return sums, memoryview(data)
        held = self.blocks.setdefault(replica, {})
        first = params["chunk"] * BLOCKS_PER_CHUNK + params["block"]
        try:
            data = b"".join(held[first + at] for at in range(params["blocks"]))
        except KeyError:
            raise Behind("it does not have all of that") from None
        return block_sums(data), memoryview(data)


class FakeMetadata:
    def __init__(self, groups: int = 1) -> None:
        self.groups = [group(number, *(10 * number + n for n in (1, 2, 3))) for number in range(groups)]
        self.next = [0] * groups
        self.open: set[tuple[int, int]] = set()
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.pause = 0

    async def __call__(self, method: str, params: dict[str, Any]) -> Any:
        self.calls.append(method.removeprefix("metadata."))
        for _ in range(self.pause):
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        match method:
            case "metadata.open_region":
                numbers = [number for number in range(len(self.groups)) if number not in params["avoid"]]
                number = min(numbers or range(len(self.groups)), key=self.next.__getitem__)
                chunk = self.next[number]
                self.next[number] += REGION_CHUNKS
                self.open.add((number, chunk))
                about = {"group": self.groups[number], "of": len(self.groups)}
                return {"bucket": 1, "chunk": chunk, "chunks": REGION_CHUNKS, **about}
            case "metadata.close_regions":
                self.open -= {(number, chunk) for number, chunk in params["regions"]}
                return {}
            case "metadata.renew_regions":
                return {}
        raise AssertionError(method)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(groups: int = 1) -> tuple[Space, FakeMetadata, Clock]:
    metadata, clock = FakeMetadata(groups), Clock()
    return Space(metadata, clock), metadata, clock
