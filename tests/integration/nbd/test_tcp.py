"""The server on TCP: both families, port 0, a client that others wrote."""

from __future__ import annotations

import pytest

from moorage.gateway.memory import MemoryDevice

from .conftest import Play
from .support import MIB, Bench


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_tcp(play: Play, host: str) -> None:
    async def scenario(bench: Bench) -> None:
        bound = await bench.server.serve(f"tcp:{host}:0")
        port = bound.rpartition(":")[2]
        assert bound == f"tcp:{host}:{port}" and int(port) > 0
        uri = f"nbd://{host}:{port}/vol"
        assert (await bench.program("nbdinfo", "--size", uri)).strip() == str(MIB)
        steps = ("-c", "write -P 9 100 300000", "-c", "read -P 9 100 300000", "-c", "flush")
        await bench.program("qemu-io", "-f", "raw", *steps, uri)
        steps = ("-c", "read -P 9 100 300000", "-c", "read -P 0 0 100")
        await bench.program("qemu-io", "-f", "raw", *steps, bench.uri())

    device = MemoryDevice(MIB, deferred=True)
    play(scenario, {"vol": device})
    device.close()
