"""The plugin on a real socket, as an engine speaks to it; the cluster behind it hangs or is made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moorage.client.cluster import VolumeInfo
from moorage.client.uri import Address
from moorage.gateway.docker import plugin as plugin_module
from moorage.gateway.docker.known import Known
from moorage.gateway.docker.ledger import Entry
from moorage.gateway.docker.plugin import DockerPlugin
from moorage.gateway.docker.volumes import HostVolumes
from moorage.wire.errors import Busy, Invalid, NotFound, Unavailable

Answer = dict[str, Any]


class MadeUpCluster:
    """Of volumes that exist by name alone."""

    def __init__(self) -> None:
        self.volumes: dict[str, VolumeInfo] = {}
        self.created: list[dict[str, Any]] = []

    def check_here(self, address: Address) -> None:
        if address.cluster:
            raise Invalid(f"{address} is not here")

    async def show(self, name: str) -> VolumeInfo:
        if name not in self.volumes:
            raise NotFound(f"volume {name!r} does not exist")
        return self.volumes[name]

    async def create_volume(self, name: str, size: str, **options: Any) -> VolumeInfo:
        self.created.append({"name": name, "size": size, **options})
        self.volumes[name] = info(name)
        return self.volumes[name]

    async def delete(self, name: str) -> None:
        if name == "held":
            raise Busy("held by another host")
        await self.show(name)
        del self.volumes[name]


def info(name: str) -> VolumeInfo:
    return VolumeInfo.from_wire(
        {"name": name, "size": 1 << 30, "state": "ready", "created_ms": 1_700_000_000_000}
    )


class Engine:
    """What an engine sends: no content type, and ``null`` for what it has not."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __aenter__(self) -> Engine:
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: bytes) -> tuple[int, Answer]:
        async with self._session.post(
            f"http://plugin/{path}", data=body, skip_auto_headers=["Content-Type"]
        ) as response:
            assert "Content-Type" not in response.request_info.headers
            return response.status, json.loads(await response.read())

    async def call(self, call: str, **params: Any) -> Answer:
        status, answer = await self.post(f"VolumeDriver.{call}", json.dumps(params).encode())
        assert (status == 200) == ("Err" not in answer)
        return answer


class Bench:
    def __init__(self, directory: Path) -> None:
        self.cluster: MadeUpCluster | None = MadeUpCluster()
        self.asked = 0
        self.volumes = HostVolumes(self._connect, directory / "state", directory / "root")
        self.volumes.prepare()
        self.known = Known(self.volumes.notes)
        self.socket = directory / "plugin.sock"
        self.refreshes = 0
        self.plugin = DockerPlugin(self.volumes, self.known, self.socket, self._refresh_soon)

    async def _connect(self) -> Any:
        self.asked += 1
        if self.cluster is None:
            await asyncio.Event().wait()
        return self.cluster

    def _refresh_soon(self) -> None:
        self.refreshes += 1


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.plugin.start()
    yield made
    await made.plugin.stop()
    assert not made.socket.exists()


@pytest.fixture
async def engine(bench: Bench) -> AsyncIterator[Engine]:
    async with Engine(bench.socket) as connected:
        yield connected


async def test_the_way_of_a_volume(bench: Bench, engine: Engine) -> None:
    assert await engine.post("Plugin.Activate", b"") == (200, {"Implements": ["VolumeDriver"]})
    assert await engine.call("Capabilities") == {"Capabilities": {"Scope": "global"}}
    assert "does not exist" in (await engine.call("Get", Name="db"))["Err"]
    assert bench.refreshes == 1  # it may have been made elsewhere
    wish = {"size": "1G", "fs": "xfs", "mode": "ro", "iops": "100", "bw": "50M", "principal": "team-a"}
    assert await engine.call("Create", Name="db", Opts=wish) == {}
    assert bench.cluster is not None
    assert bench.cluster.created == [
        {"name": "db", "size": "1G", "fs": "xfs", "iops": 100, "bw": "50M", "principal": "team-a"}
    ]
    assert bench.volumes.notes.load("db") == Entry(options={"mode": "ro"})
    assert await engine.call("Create", Name="db", Opts=None) == {}  # again, by another engine
    volume = (await engine.call("Get", Name="db"))["Volume"]
    assert (volume["Name"], volume["Mountpoint"], volume["Status"]) == ("db", "", {"size": 1 << 30})
    assert datetime.fromisoformat(volume["CreatedAt"]).year == 2023
    assert await engine.call("List") == {"Volumes": [{"Name": "db", "Mountpoint": ""}]}
    assert await engine.call("Path", Name="db") == {"Mountpoint": ""}
    assert await engine.call("Unmount", Name="db", ID="never-mounted") == {}
    assert await engine.call("Unmount", Name="db") == {}
    assert await engine.call("Remove", Name="db") == {}
    assert await engine.call("Remove", Name="db") == {}
    assert "does not exist" in (await engine.call("Get", Name="db"))["Err"]


async def test_a_uri_is_called_what_it_was_called(bench: Bench, engine: Engine) -> None:
    name = "moorage:///db?size=1G"
    await engine.call("Create", Name=name, Opts=None)
    assert (await engine.call("Get", Name=name))["Volume"]["Name"] == name
    assert (await engine.call("Get", Name="db"))["Volume"]["Name"] == "db"


@pytest.mark.parametrize(
    ("call", "params", "words"),
    [
        ("Create", {"Name": "db"}, "give its size"),
        ("Create", {"Name": "db", "Opts": {"size": "1G", "iops": "five"}}, "iops='five'"),
        ("Create", {"Name": "db", "Opts": {"size": 5}}, "map of texts"),
        ("Create", {"Name": "DB", "Opts": {"size": "1G"}}, "not a volume name"),
        ("Create", {"Opts": {}}, "Name"),
        ("Get", {"Name": None}, "Name"),
        ("Mount", {"Name": "db", "ID": 5}, "ID"),
        ("Remove", {"Name": "held"}, "held by another host"),
        ("Create", {"Name": "moorage://other/db?size=1G"}, "is not here"),
        ("Remove", {"Name": "moorage://other/db"}, "is not here"),
    ],
)
async def test_what_is_refused_is_said(engine: Engine, call: str, params: Answer, words: str) -> None:
    assert words in (await engine.call(call, **params))["Err"]


async def test_what_is_no_call(engine: Engine) -> None:
    assert (await engine.post("VolumeDriver.Frob", b"{}"))[0] == 404
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
        status, answer = await engine.post("VolumeDriver.Get", body)
        assert (status, "the body is not" in answer["Err"]) == (500, True)


async def test_get_list_and_path_never_wait_for_a_cluster(bench: Bench, engine: Engine) -> None:
    bench.known.replace([info("db")])
    bench.cluster = None
    waiting = [asyncio.ensure_future(engine.call("Create", Name=f"v{i}", Opts=None)) for i in range(20)]
    while bench.asked < len(waiting):
        await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        assert (await engine.call("Get", Name="db"))["Volume"]["Name"] == "db"
        assert "Err" in await engine.call("Get", Name="other")
        assert await engine.call("List") == {"Volumes": [{"Name": "db", "Mountpoint": ""}]}
        assert await engine.call("Path", Name="db") == {"Mountpoint": ""}
        assert "Capabilities" in await engine.call("Capabilities")
    assert bench.asked == len(waiting)
    await bench.plugin.stop()
    assert all("try again" in answer["Err"] for answer in await asyncio.gather(*waiting))


@pytest.mark.parametrize("call", ["Create", "Mount", "Remove", "Unmount"])
async def test_every_call_ends_within_its_deadline(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Also where it does not let itself be cancelled at once, or another one works on the volume."""
    monkeypatch.setitem(plugin_module.DEADLINES, call, 0.1)
    released = asyncio.Event()

    async def stubborn(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await released.wait()

    monkeypatch.setattr(bench.volumes, call.lower(), stubborn)
    async with asyncio.timeout(2):
        answer = await engine.call(call, Name="db", ID="a", Opts=None)
    assert "did not end within 0.1 s" in answer["Err"]
    released.set()


async def test_a_volume_that_another_call_works_on_is_waited_for(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugin_module.DEADLINES, "Mount", 0.1)
    async with bench.volumes.notes.locked("db"):
        assert "did not end" in (await engine.call("Mount", Name="db", ID="a"))["Err"]
        assert bench.volumes.notes.load("db") == Entry()


async def test_a_mount_that_fails_leaves_no_user(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(address: Address, by: str) -> str:
        assert bench.volumes.notes.load("db").users == {"a"}  # noted before it is done
        raise Unavailable("no majority")

    monkeypatch.setattr(bench.volumes, "_mount_now", fail)
    assert await engine.call("Mount", Name="db", ID="a") == {"Err": "no majority"}
    assert bench.volumes.notes.names() == []


async def test_a_user_of_a_mount_that_is_no_more_does_not_keep_a_volume(bench: Bench, engine: Engine) -> None:
    bench.volumes.notes.save("db", Entry(frozenset({"of-before-a-crash"})))
    assert await engine.call("Remove", Name="db") == {}
    bench.volumes.notes.save("db", Entry(frozenset({"of-before-a-crash"})))
    assert await bench.volumes.put_right() == []
    assert bench.volumes.notes.names() == []


async def test_what_is_put_right_beside_something_else_takes_no_longer_than_it_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> list[str]:
        await asyncio.Event().wait()
        return []

    assert await bench.volumes.put_right_within(1.0) == []
    monkeypatch.setattr(bench.volumes, "put_right", hang)
    (problem,) = await bench.volumes.put_right_within(0.05)
    assert "not cleaned up yet" in problem


async def test_options_of_a_volume_do_not_touch_its_users(bench: Bench, engine: Engine) -> None:
    entry = Entry(frozenset({"a"}), {}, {"a": "process:1:1"})
    bench.volumes.notes.save("db", entry)
    await engine.call("Create", Name="db", Opts={"size": "1G", "mode": "ro"})
    assert bench.volumes.notes.load("db") == Entry(entry.users, {"mode": "ro"}, entry.engines)


async def test_options_of_a_volume_that_is_gone_are_forgotten(bench: Bench) -> None:
    bench.volumes.notes.save("db", Entry(options={"mode": "ro"}))
    bench.volumes.forget("db")
    assert bench.volumes.notes.names() == []
    bench.volumes.notes.save("db", Entry(frozenset({"a"}), {"mode": "ro"}))
    bench.volumes.forget("db")
    assert bench.volumes.notes.names() == ["db"]
