"""`moorage bench block` in front of a cluster that is not one: what it prints, and what it leaves behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

import moorage
from moorage.bench.block import WORKLOADS
from moorage.cli.bench import block
from moorage.client.device import Done
from moorage.gateway.memory import MemoryDevice
from moorage.wire import errors


class FakeVolume(MemoryDevice):
    def __init__(self, name: str, size: int) -> None:
        super().__init__(size, deferred=True)
        self.name = name
        self.failing_reads = False

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size}

    def read_nowait(self, offset: int, into: memoryview, done: Done) -> None:
        if self.failing_reads:
            self.complete(done, errors.NoQuorum("waiting for 2 of 3"))
        else:
            super().read_nowait(offset, into, done)

    async def __aenter__(self) -> FakeVolume:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class FakeCluster:
    def __init__(self) -> None:
        self.volumes: dict[str, int] = {"mine": 8 << 20}
        self.created: list[str] = []
        self.failing_reads = False

    async def status(self) -> dict[str, Any]:
        return {"devices": {"d1": {"address": "127.0.0.1:1"}, "d2": {"address": "unix:/x"}}}

    async def create_volume(self, name: str, size: int, replicas: int, durability: str) -> None:
        self.created.append(name)
        self.volumes[name] = size

    async def attach(self, name: str) -> FakeVolume:
        if name not in self.volumes:
            raise errors.NotFound(f"no volume {name}")
        volume = FakeVolume(name, self.volumes[name])
        volume.failing_reads = self.failing_reads
        return volume

    async def delete(self, name: str, *, force: bool) -> None:
        del self.volumes[name]

    async def __aenter__(self) -> FakeCluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster()

    async def connect(*args: object, **kwargs: object) -> FakeCluster:
        return made

    monkeypatch.setattr(moorage, "connect", connect, raising=False)
    return made


def bench(*argv: str) -> Result:
    return CliRunner().invoke(block, ["--seconds", "0.1", "--region", "4M", *argv])


def test_json_of_a_temporary_volume(cluster: FakeCluster) -> None:
    ended = bench("--by", "library", "--json")
    assert ended.exit_code == 0, ended.output
    document = json.loads(ended.stdout)
    assert document["schema"] == "moorage.bench.block/1" and document["options"]["complete"]
    assert [one["workload"]["name"] for one in document["results"]] == [one.name for one in WORKLOADS]
    assert all(one["operations"] > 0 for one in document["results"])
    assert len(cluster.created) == 1 and cluster.created[0] not in cluster.volumes


def test_table_of_both_ways_on_a_volume_of_ones_own(cluster: FakeCluster) -> None:
    ended = bench("--volume", "mine", "--overwrite", "--only", "read 4 KiB, depth 1")
    assert ended.exit_code == 0, ended.output
    assert "library" in ended.stdout and "nbd" in ended.stdout and "Volume mine" in ended.stdout
    assert cluster.volumes == {"mine": 8 << 20} and not cluster.created


def test_a_volume_is_not_overwritten_unasked(cluster: FakeCluster) -> None:
    ended = bench("--volume", "mine")
    assert ended.exit_code == 2 and "--overwrite" in ended.stderr


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--only", "nonsense"), "random read 4 KiB, depth 1"),
        (("--volume", "other", "--overwrite"), "other"),
    ],
)
def test_mistakes_are_one_line(cluster: FakeCluster, argv: tuple[str, ...], says: str) -> None:
    ended = bench(*argv)
    assert ended.exit_code not in (0, 1) and says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert cluster.volumes == {"mine": 8 << 20}


def test_an_error_of_the_volume_ends_it_with_what_was_measured(cluster: FakeCluster) -> None:
    cluster.failing_reads = True
    ended = bench("--by", "library", "--json")
    assert ended.exit_code not in (0, 1) and "waiting for 2 of 3" in ended.stderr
    assert json.loads(ended.stdout)["options"]["complete"] is False
    assert cluster.volumes == {"mine": 8 << 20}
