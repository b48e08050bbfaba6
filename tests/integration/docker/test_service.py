"""The service around the plugin: when it begins to answer, and how it keeps what it answers from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from moorage.client.cluster import VolumeInfo
from moorage.gateway.docker import service as service_module
from moorage.gateway.docker.discovery import DiscoveryFile
from moorage.gateway.docker.service import DockerService
from moorage.wire.errors import AuthenticationFailed, Unavailable

from .test_plugin import Engine, MadeUpCluster, info


class Cluster(MadeUpCluster):
    """One that can be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal: Exception | None = None
        self.asked = 0

    async def connect(self) -> Any:
        self.check()
        return self

    async def list_volumes(self) -> list[VolumeInfo]:
        self.check()
        return list(self.volumes.values())

    async def close(self) -> None:
        pass

    def check(self) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "PERIOD_S", 0.02)
    monkeypatch.setattr(service_module, "AGAIN_S", 0.02)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def service(cluster: Cluster, directory: Path) -> DockerService:
    socket = directory / "run" / "plugin.sock"
    discovery = DiscoveryFile(directory / "etc" / "moorage.spec", socket)
    where = {"state_dir": directory / "state", "root": directory / "root"}
    return DockerService(cluster.connect, **where, socket=socket, discovery=discovery)


async def until_asked(cluster: Cluster, times: int = 4) -> None:
    end = cluster.asked + times
    async with asyncio.timeout(10):
        while cluster.asked < end:
            await asyncio.sleep(0.01)


async def test_nothing_listens_until_the_volumes_are_known(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refusal, cluster.volumes["db"] = Unavailable("nobody answers"), info("db")

    async def serve() -> None:
        async with service(cluster, tmp_path).running(), Engine(tmp_path / "run" / "plugin.sock") as engine:
            assert (await engine.call("Get", Name="db"))["Volume"]["Name"] == "db"
            assert (tmp_path / "etc" / "moorage.spec").exists()

    serving = asyncio.ensure_future(serve())
    await until_asked(cluster)
    assert not (tmp_path / "run").exists() and not (tmp_path / "etc").exists()
    cluster.refusal = None
    async with asyncio.timeout(10):
        await serving
    assert (
        not (tmp_path / "run" / "plugin.sock").exists() and not (tmp_path / "etc" / "moorage.spec").exists()
    )


async def test_what_a_former_life_knew_is_served_through_an_outage(cluster: Cluster, tmp_path: Path) -> None:
    cluster.volumes["db"] = info("db")
    async with service(cluster, tmp_path).running():
        pass
    cluster.refusal = Unavailable("nobody answers")
    async with service(cluster, tmp_path).running(), Engine(tmp_path / "run" / "plugin.sock") as engine:
        assert (await engine.call("Get", Name="db"))["Volume"]["Name"] == "db"
        assert "nobody answers" in (await engine.call("Create", Name="v", Opts={"size": "1G"}))["Err"]


async def test_a_secret_that_is_refused_ends_the_start_and_not_the_service(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.refusal = AuthenticationFailed("another secret")
    with pytest.raises(AuthenticationFailed):
        async with service(cluster, tmp_path).running():
            pass
    cluster.refusal = None
    async with service(cluster, tmp_path).running() as tasks:
        cluster.refusal = AuthenticationFailed("another secret")
        await until_asked(cluster)
        assert not any(task.done() for task in tasks)


async def test_what_others_make_and_delete_is_heard_of(cluster: Cluster, tmp_path: Path) -> None:
    async with service(cluster, tmp_path).running(), Engine(tmp_path / "run" / "plugin.sock") as engine:
        cluster.volumes["db"] = info("db")
        await until_asked(cluster)
        assert "Volume" in await engine.call("Get", Name="db")
        await engine.call("Create", Name="db", Opts={"mode": "ro"})
        assert list((tmp_path / "state" / "docker" / "volumes").iterdir()) != []
        del cluster.volumes["db"]
        await until_asked(cluster)
        assert "Err" in await engine.call("Get", Name="db")
        assert list((tmp_path / "state" / "docker" / "volumes").iterdir()) == []
