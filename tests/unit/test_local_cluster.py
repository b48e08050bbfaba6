"""What `moorage up` finds in its directory: a cluster, half of one, or none that it can use."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from moorage.cli import up
from moorage.cli.local_cluster import LocalCluster, LocalHost
from moorage.service.exits import Exit, exit_code
from moorage.wire import errors
from moorage.wire.secret import ClusterSecret


def test_a_cluster_is_found_again(tmp_path: Path) -> None:
    made = LocalCluster(tmp_path / "c")
    again = LocalCluster(tmp_path / "c", hosts=5)
    assert again.registry == made.registry
    assert [host.name for host in again.hosts] == ["h1", "h2", "h3"]
    assert ClusterSecret.load(again.secret_file).cluster == ClusterSecret.load(made.secret_file).cluster


@pytest.mark.parametrize("left", ["secret", "secret.new"])
def test_a_start_that_crashed_before_its_plan_is_taken_up(tmp_path: Path, left: str) -> None:
    ClusterSecret.create(tmp_path / left)
    made = LocalCluster(tmp_path)
    assert ClusterSecret.load(made.secret_file)
    assert {each.name for each in tmp_path.iterdir()} == {"secret", "cluster.json"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"h1": 7}',
        '{"h1": [1]}',
        '{"h1": ["a", "b"]}',
        '{"h1": [1, 99999]}',
        "\xff",
    ],
)
def test_a_damaged_plan_is_told_with_the_next_step(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(errors.Corrupt, match=r"cluster.json is damaged: restore this file, or .* --data"):
        LocalCluster(tmp_path)
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize("where", ["/proc/nope", "{tmp}/file"])
def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Invalid, match=r"cannot keep a cluster in .*--data"):
        LocalCluster(Path(where.format(tmp=tmp_path)))


@pytest.mark.parametrize("code", [Exit.INTERNAL, *range(3, 8), Exit.UNAVAILABLE])
async def test_a_host_that_ends_at_once_hands_on_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho why >&2; exit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    host = LocalHost("h1", tmp_path / "h1", {})
    await host.launch()
    with pytest.raises(
        errors.MoorageError, match=f"h1 ended with exit code {code:d}; see .*/log: why"
    ) as found:
        await host.wait_ready()
    assert exit_code(found.value) == code


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"registry": "10.0.0.1:7"}'])
def test_a_default_cluster_that_is_not_ours_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = LocalCluster(tmp_path / "c")
    path = up._configure(made)
    assert path is not None and json.loads(path.read_text())["registry"] == made.registry
    path.write_text(content)
    assert up._configure(made) is None
    assert path.read_text() == content


def test_a_home_that_cannot_be_written_stops_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nope")
    assert up._configure(LocalCluster(tmp_path)) is None
