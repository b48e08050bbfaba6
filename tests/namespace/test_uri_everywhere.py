"""The URI of a volume means the same by whatever way it comes to be mounted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import Agent, Cluster
from .test_table import MakeAgent, apply, far, set_table

__all__ = ["far"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_numbers = itertools.count()


@dataclass(frozen=True)
class Effect:
    size: int
    replicas: int
    durability: str
    fs: str
    read_only: bool
    io_timeout: float


MIB = 1 << 20
URIS = {
    "size=64M&replicas=1": Effect(64 * MIB, 1, "sync", "ext4", False, 60),
    "size=512MiB&fs=xfs&durability=writeback&io_timeout=7.5": Effect(
        512 * MIB, 3, "writeback", "xfs", False, 7.5
    ),
    "size=67108864&replicas=1&groups=2&fs=ext4&mode=rw&io_timeout=0": Effect(
        64 * MIB, 1, "sync", "ext4", False, 0
    ),
}
EXISTING = {
    "": Effect(64 * MIB, 1, "sync", "ext4", False, 60),
    "?mode=ro": Effect(64 * MIB, 1, "sync", "ext4", True, 60),
    "?size=1G&replicas=3&io_timeout=9": Effect(64 * MIB, 1, "sync", "ext4", False, 9),  # it is there as it is
}


def by_command(agent: Agent, uri: str, target: Path) -> Path:
    agent.moorage("mount", uri, str(target))
    return target


def by_python(agent: Agent, uri: str, target: Path) -> Path:
    agent.python(f"import moorage.sync as m\nwith m.connect() as c: c.mount({uri!r}, {str(target)!r})")
    return target


def by_table(agent: Agent, uri: str, target: Path) -> Path:
    set_table(agent, f"{uri} {target} auto")
    assert apply(agent)[str(target)] == ("mounted", "")
    return target


def by_table_options(agent: Agent, uri: str, target: Path) -> Path:
    """In the options of the line, instead of in the URI."""
    address, _, options = uri.partition("?")
    set_table(agent, f"{address} {target} auto {options.replace('&', ',')}".rstrip())
    assert apply(agent)[str(target)] == ("mounted", "")
    return target


def by_automount(agent: Agent, uri: str, target: Path) -> Path:
    service = agent.start("automount", str(target), uri)
    service.answer()
    name = uri.partition("?")[0].rpartition("/")[2]
    agent.sh(f"ls {target}/{name}")
    return target / name


WAYS = [by_command, by_python, by_table, by_table_options, by_automount]


def effect(agent: Agent, volume: str, at: Path) -> Effect:
    info = agent.moorage("volume", "show", volume)
    record = agent.record(volume)
    kind, options = agent.sh(f"findmnt --noheadings --output FSTYPE,OPTIONS {at}").split()
    read_only = "ro" in options.split(",")
    assert record["read_only"] == read_only
    return Effect(info["size"], info["replicas"], info["durability"], kind, read_only, record["io_timeout"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", URIS)
def test_a_volume_is_made_and_mounted(agent: Agent, way: Callable[..., Path], options: str) -> None:
    volume, target = f"made{next(_numbers)}", agent.directory / "at"
    target.mkdir()
    at = way(agent, f"moorage:///{volume}?{options}", target)
    assert effect(agent, volume, at) == URIS[options]
    groups = agent.moorage("volume", "show", volume)["groups"]
    assert len(groups) == (2 if "groups=2" in options else len(groups))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", EXISTING)
def test_a_volume_that_is_there(agent: Agent, way: Callable[..., Path], options: str) -> None:
    volume, target = f"there{next(_numbers)}", agent.directory / "at"
    target.mkdir()
    agent.moorage("volume", "create", volume, "--size", "64M", "--replicas", "1")
    agent.moorage("mount", volume, str(target))
    agent.moorage("umount", str(target))
    at = way(agent, f"moorage:///{volume}{options}", target)
    assert effect(agent, volume, at) == EXISTING[options]


@pytest.mark.parametrize("way", [by_command, by_table, by_table_options, by_automount])
def test_the_cluster_that_it_names(far: Cluster, make_agent: MakeAgent, way: Callable[..., Path]) -> None:
    """From Python one connects to it: a connection is to one cluster."""
    agent, volume = make_agent("a1", far=far), f"twin{next(_numbers)}"
    target = agent.directory / "at"
    target.mkdir()
    agent.cluster.create(volume)
    at = way(agent, f"moorage://far/{volume}?size=64M&replicas=1", target)
    agent.sh(f"echo there > {at}/file")
    assert agent.record(volume)["registry"] == far.registry


@pytest.mark.parametrize("uri", ["moorage:///x?mode=wo", "moorage:///x?colour=red", "moorage:///x/file"])
def test_what_no_uri_may_say_is_refused_in_the_same_words(agent: Agent, uri: str) -> None:
    target = agent.directory / "at"
    target.mkdir()
    file = agent.directory / "table"
    file.write_text(f"{uri} {target} auto\n")
    version = agent.moorage("table", "get")["version"]
    said = {
        agent.moorage(*arguments, code=3)["error"]["message"].removeprefix("line 1: ")
        for arguments in (
            ("mount", uri, str(target)),
            ("automount", str(target), uri),
            ("table", "set", str(file), "--version", str(version)),
        )
    }
    assert len(said) == 1, said
