"""Ready means serving: what /readyz says has to be true for the next request already."""

from __future__ import annotations

import asyncio
from pathlib import Path

from moorage.registry.service import RegistryConfig, RegistryService
from moorage.wire.handshake import Hello
from moorage.wire.rpc import Router
from moorage.wire.secret import ClusterSecret

SECRET = ClusterSecret("0123456789abcdef", bytes(32))


async def test_a_member_that_was_chosen_is_not_ready_before_it_serves(tmp_path: Path) -> None:
    service = RegistryService(
        RegistryConfig(
            name="r1",
            directory=tmp_path,
            address="127.0.0.1:1",
            http="127.0.0.1:2",
            peers={"r1": "127.0.0.1:1"},
            secret=SECRET,
            hello=Hello("registry", SECRET.cluster, "r1", "i-r1"),
        )
    )
    router, chosen = Router(), 0
    await service.start(router)
    async with asyncio.timeout(10):
        while service.not_ready():
            chosen += service.group.leader is not None
            await asyncio.sleep(0)
    assert chosen, "it knows itself as the leader before its term's first entry is committed"
    assert service._handlers.serving
    await service.stop()
    await router.stop()
