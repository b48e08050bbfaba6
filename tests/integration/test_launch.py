"""docs/launch.md by the letter: each service as its own process, started from environment variables alone."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any

import aiohttp


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_registry_alone(launcher: Any) -> None:
    registry = await launcher.start("registry")
    assert registry.ready["service"] == "registry"
    status, described = await launcher.get(registry, "/v1/registry.describe")
    assert status == 200
    assert described["members"] == [{"name": "h1", "address": registry.address}]
    assert (await launcher.get(registry, "/readyz"))[0] == 200
    status, metrics = await launcher.get(registry, "/metrics")
    assert status == 200 and "moorage_registry_leader 1.0" in metrics and "process_open_fds" in metrics
    assert await registry.stop() == 0


async def test_mesos_says_where_to_listen(launcher: Any) -> None:
    wire, http = free_port(), free_port()
    registry = await launcher.start("registry", LIBPROCESS_IP="127.0.0.2", PORTS=f"{wire},{http}")
    assert (registry.address, registry.ready["http"]) == (f"127.0.0.2:{wire}", f"127.0.0.2:{http}")
    assert (await launcher.get(registry, "/healthz"))[0] == 200
    assert await health(LIBPROCESS_IP="127.0.0.2", PORTS=f"{wire},{http}") == 0
    assert await registry.stop(signal.SIGINT) == 0
    assert await health(LIBPROCESS_IP="127.0.0.2", PORTS=f"{wire},{http}") == 9, "nobody answers"
    assert await health() == 3, "no port is set"


async def health(**environ: str) -> int:
    """The exit code of `moorage health`, which knows the service's environment and nothing else."""
    command = (sys.executable, "-m", "moorage.cli.main", "health")
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


async def test_each_service_as_its_own_process(launcher: Any) -> None:
    registry = await launcher.start("registry")
    where = {"MOORAGE_REGISTRY": registry.address}
    metadata = await launcher.start("metadata", **where)
    node = await launcher.start("node", MOORAGE_CAPACITY="1G", MOORAGE_LABELS="rack=r1", **where)
    view = await view_with_health(launcher, registry, "up")
    (device,) = view["devices"]
    assert view["devices"][device]["address"] == node.address
    assert view["hosts"]["h1"]["labels"] == {"rack": "r1"}
    assert view["groups"] == ["m1"]
    assert (await launcher.get(metadata, "/readyz"))[0] == 200
    for service, path in ((metadata, "/v1/metadata.list_volumes"), (node, "/v1/node.describe")):
        assert (await launcher.get(service, path))[0] == 200, path
        status, metrics = await launcher.get(service, "/metrics")
        assert status == 200 and f"moorage_{service.ready['service']}_" in metrics

    assert await node.stop(signal.SIGKILL) == -signal.SIGKILL
    node = await launcher.start("node", MOORAGE_CAPACITY="1G", MOORAGE_LABELS="rack=r1", **where)
    view = await view_with_health(launcher, registry, "up")
    assert list(view["devices"]) == [device], "a restart on another port is the same device"
    assert view["devices"][device]["address"] == node.address

    for service in (node, metadata, registry):
        assert await service.stop() == 0, service.log.read_text()
        assert "Traceback" not in service.log.read_text()


async def view_with_health(launcher: Any, registry: Any, health: str) -> dict[str, Any]:
    view: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while [each["health"] for each in view.get("devices", {}).values()] != [health]:
            await asyncio.sleep(0.05)
            view = (await launcher.get(registry, "/v1/registry.view"))[1]
    return view


async def test_a_node_waits_for_its_registry(launcher: Any) -> None:
    port, http = free_port(), free_port()
    node = await launcher.launch(
        "node", MOORAGE_CAPACITY="1G", MOORAGE_REGISTRY=f"127.0.0.1:{port}", MOORAGE_HTTP_PORT=str(http)
    )
    node.ready = {"http": f"127.0.0.1:{http}"}
    async with asyncio.timeout(20):
        while True:
            try:
                status, answer = await launcher.get(node, "/readyz")
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    assert status == 503 and answer["reasons"][0].startswith("node: ")
    registry = await launcher.start("registry", MOORAGE_PORT=str(port))
    await node.wait_ready()
    assert await node.stop() == 0
    assert await registry.stop() == 0
