"""The service as its process sees it: readiness, JSON API, metrics, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from moorage.client.repairer import Repairer
from moorage.metadata.service import MetadataConfig, MetadataService
from moorage.service.http import HttpServer
from moorage.wire.errors import (
    CannotConnect,
    DeviceFailed,
    IdentityConflict,
    Invalid,
    MoorageError,
    NotLeader,
    Unavailable,
)
from moorage.wire.handshake import Hello
from moorage.wire.secret import ClusterSecret

GIB = 1 << 30
TOKEN = "a-token-of-some-length"


def routes(service: Any) -> dict[str, Any]:
    return {f"{route.method} {route.name}": route.handler for route in service.routes()}


async def test_json_api_has_the_calls_of_an_operator(cluster: Any) -> None:
    led = routes(cluster.leader())
    fields = {"name": "db", "size": GIB, "request": "r1"}
    assert (await led["POST metadata.create_volume"](fields))["state"] == "ready"
    assert (await led["GET metadata.show_volume"]({"name": "db"}))["name"] == "db"
    assert len((await led["GET metadata.list_volumes"]({}))["volumes"]) == 1
    assert (await led["GET metadata.status"]({}))["volumes"] == 1
    assert (await led["POST metadata.resize_volume"]({"name": "db", "size": 2 * GIB}))["size"] == 2 * GIB
    limited = await led["POST metadata.set_volume"]({"name": "db", "iops": 100, "bw": 1 << 20})
    assert (limited["iops"], limited["bw"], limited["principal"]) == (100, 1 << 20, "default")
    assert (await led["POST metadata.delete_volume"]({"name": "db"}))["left"] == []
    followed = routes(cluster.services["host2"])
    assert (await followed["GET metadata.describe"]({}))["leader"]["name"] == "host1"
    with pytest.raises(NotLeader):
        await followed["GET metadata.list_volumes"]({})


@pytest.mark.slow
async def test_a_second_group_of_the_same_name_ends_and_serves_nothing(
    new_cluster: Any, fake_log: Any
) -> None:
    new_cluster.registry.uids["m1"] = "of the first one"
    service = new_cluster.services["host1"]
    ended: list[MoorageError] = []
    service.fatal = ended.append
    fake_log.elect("host1")
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.sleep(0.01)
    assert isinstance(ended[0], IdentityConflict)
    with pytest.raises(Unavailable, match="serves once the registry knows it"):
        await new_cluster.create("db")
    assert not new_cluster.replicas()


async def test_a_group_serves_without_the_registry_once_it_was_admitted(cluster: Any) -> None:
    await cluster.create("db")
    cluster.registry.failing = CannotConnect("the registry is away")
    await cluster.stop_member("host2")
    await cluster.restart_member("host2")
    assert (await cluster.attach("db", 7))["epoch"] == 1


@pytest.mark.parametrize("text", ["false", "true", "0", "no", ""])
async def test_force_as_text_in_a_query_deletes_no_held_volume(cluster: Any, text: str) -> None:
    await cluster.create("db")
    await cluster.attach("db", 7)
    http = HttpServer(token=TOKEN, metrics=CollectorRegistry(), not_ready=list)
    http.add_routes(cluster.leader().routes())
    url = (
        f"http://127.0.0.1:{await http.start('127.0.0.1', 0)}/v1/metadata.delete_volume?name=db&force={text}"
    )
    try:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
            client.post(url) as answer,
        ):
            assert answer.status == 400
            assert 'write {"force": true} or false' in (await answer.json())["error"]["message"]
    finally:
        await http.stop()
    assert len(cluster.replicas()) == 3


async def test_readiness_says_for_whom_it_waits(cluster: Any, fake_log: Any) -> None:
    fake_log.elect(None)
    service = cluster.services["host2"]
    assert service.not_ready()[0] == "group m1 has no leader: a majority of its members must be up"
    service.replicated.failed = CannotConnect("fsync: EIO")
    assert service.not_ready() == ["group m1: this member has failed: fsync: EIO"]
    service.replicated.failed = None
    service.directory.joined = False
    assert service.not_ready()[1].startswith("not known to the registry yet")


async def test_metrics(cluster: Any) -> None:
    await cluster.create("db")
    await cluster.attach("db", 7)
    registry = CollectorRegistry()
    cluster.leader().register_metrics(registry)
    page = generate_latest(registry).decode()
    assert 'moorage_metadata_leader{group="m1"} 1.0' in page
    assert 'moorage_metadata_volumes{group="m1"} 1.0' in page
    assert 'moorage_metadata_leases{group="m1"} 1.0' in page


async def test_failed_member_ends_the_process(cluster: Any) -> None:
    service = cluster.services["host2"]
    ended: list[MoorageError] = []
    service.fatal = ended.append
    for callback in service.replicated.on_failure:
        callback(DeviceFailed("fsync: EIO"))
    assert [type(error) for error in ended] == [DeviceFailed]


async def test_mistake_in_the_background_ends_the_process(cluster: Any) -> None:
    service = cluster.services["host2"]
    ended: list[MoorageError] = []
    service.fatal = ended.append

    async def broken(timeout: float = 0) -> None:
        raise KeyError("devices")

    service.directory.fetch_view = broken
    async with asyncio.timeout(5):
        while not ended:
            await asyncio.sleep(0.01)
    assert "KeyError" in str(ended[0])


@pytest.mark.parametrize(
    ("change", "says"), [({"group": "meta"}, "use m1 to"), ({"lease_ms": 1999}, "at least 2000 ms")]
)
def test_configuration_is_checked_before_anything_is_touched(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    secret = ClusterSecret("00112233445566ff", bytes(32))
    fields: dict[str, Any] = {
        "name": "host1",
        "group": "m1",
        "directory": tmp_path / "d",
        "address": "127.0.0.1:1",
        "http": "127.0.0.1:2",
        "registry": "127.0.0.1:3",
        "secret": secret,
        "hello": Hello("metadata", secret.cluster, "host1", "i"),
        "peers": {},
    }
    with pytest.raises(Invalid, match=says):
        MetadataService(MetadataConfig(**{**fields, **change}), Repairer(fields["hello"], secret))
    assert not (tmp_path / "d").exists()
