"""Which metadata group a clone is created in, and how a volume of an older service is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.client import uri
from moorage.client.cluster import Cluster, VolumeInfo
from moorage.client.config import ClusterConfig
from moorage.wire.errors import Invalid
from moorage.wire.secret import ClusterSecret

SECRET = ClusterSecret("00112233445566ff", bytes(range(32)))


class Called:
    """The registry, and every metadata group."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> Any:
        self.calls.append((method, params))
        if method == "registry.locate":
            return {"group": "m7"}
        return {"name": params["name"]}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    made = Called()
    monkeypatch.setattr(Cluster, "_leader_client", lambda *_: made)
    monkeypatch.setattr("moorage.client.cluster.RegistryClient", lambda *_, **__: made)
    return made


async def test_clone_is_created_in_the_group_of_its_parent(called: Called) -> None:
    cluster = Cluster(ClusterConfig("h:1", Path("/s")), SECRET)
    await cluster.create_volume("copy", parent="db@before")
    (_, located), (method, params) = called.calls
    assert located == {"name": "db"}
    assert method == "metadata.create_volume" and "size" not in params
    assert params["parent"] == {"volume": "db", "snapshot": "before"}
    assert cluster._owner == {"db": "m7", "copy": "m7"}
    await cluster.create_volume("large", "2G", parent="moorage:///db@before")
    assert called.calls[-1][1]["size"] == 2 << 30
    with pytest.raises(Invalid, match="'other' needs a size"):
        await cluster.create_volume("other")


@pytest.mark.parametrize("text", ["db", "@before", "db@", "db@A", "Db@before"])
def test_what_is_no_snapshot(text: str) -> None:
    with pytest.raises(Invalid):
        uri.parse_snapshot(text)


def test_volume_of_an_older_service_has_no_snapshots() -> None:
    older = VolumeInfo.from_wire({"id": 1, "name": "db"})
    assert (older.snapshots, older.parent, older.rollback, older.iops) == ([], None, 0, 0)
    assert VolumeInfo.from_wire({"id": 1, "name": "db", "rollback": 5}).rollback == 5
