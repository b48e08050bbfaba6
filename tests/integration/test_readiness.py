"""Ready means serving: what /readyz says has to be true for the next request already."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moorage.registry.service import RegistryConfig, RegistryService
from moorage.wire.errors import NotLeader
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

SECRET = ClusterSecret("0123456789abcdef", bytes(32))


def registry(directory: Path) -> RegistryService:
    return RegistryService(
        RegistryConfig(
            name="r1",
            directory=directory,
            address="127.0.0.1:1",
            http="127.0.0.1:2",
            peers={"r1": "127.0.0.1:1"},
            secret=SECRET,
            hello=Hello("registry", SECRET.cluster, "r1", "i-r1"),
        )
    )


async def test_a_member_that_was_chosen_is_not_ready_before_it_serves(tmp_path: Path) -> None:
    service, router, chosen = registry(tmp_path), Router(), 0
    await service.start(router)
    async with asyncio.timeout(10):
        while service.not_ready():
            chosen += service.group.leader is not None
            await asyncio.sleep(0)
    assert chosen, "it knows itself as the leader before its term's first entry is committed"
    assert service._handlers.serving
    await service.stop()
    await router.stop()


async def test_a_leader_whose_barrier_is_refused_at_once_lets_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, router, turns = registry(tmp_path), Router(), 0
    barrier, refused_in = service.group.read_barrier, []

    async def refused() -> None:
        refused_in.append(turns)
        if len(refused_in) <= 3:
            raise NotLeader("r1 does not lead: it is not told yet")
        await barrier()

    monkeypatch.setattr(service.group, "read_barrier", refused)
    await service.start(router)
    async with asyncio.timeout(10):
        while service.not_ready():
            turns += 1
            await asyncio.sleep(0)
    assert len(set(refused_in)) == 4, "it would be told by what waits for the loop"
    await service.stop()
    await router.stop()
