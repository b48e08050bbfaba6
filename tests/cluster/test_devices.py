"""What a client can ask of each device."""

from __future__ import annotations

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster
from moorage.wire.errors import NotFound


async def test_a_device_says_who_it_is_and_what_it_holds(
    local: LocalCluster, cluster: moorage.Cluster
) -> None:
    volume = await cluster.create_volume("v", size=1 << 20, replicas=3)
    for device, row in (await cluster.status())["devices"].items():
        host = local.host(row["host"])
        said = await cluster.describe_device(device)
        assert (said["device"], said["host"]) == (device, host.name)
        assert said["process"]["pid"] == host.pid
        assert said["directory"] == str(host.data / "node")
        assert said["room"] > 0
        (replica,) = await cluster.list_replicas(device)
        assert (replica["volume"], replica["whole"], replica["damaged"]) == (volume.id, True, "")
    with pytest.raises(NotFound, match="is not in this cluster"):
        await cluster.describe_device("0" * 32)
    # And which services do not answer.
    assert await cluster.silent_services() == []
    await local.hosts[1].kill()
    silent = await cluster.silent_services(timeout=5)
    assert [text.partition(":")[0] for text in silent] == ["metadata h2", "registry h2"]
