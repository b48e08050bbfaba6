"""From options to flags and resources, without any daemon."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from . import library, machine
from .daemons import Options, describe, for_agent, last_of_each, parsed, with_disks

HOME = Path("/d/agents/2")


def test_the_last_value_that_fits_an_agent_wins() -> None:
    values = ("cpus:1", "1:cpus:2", "2:disk:{i};ip:{ip};in:{dir}")
    assert for_agent(values, 1, "127.0.0.1", HOME) == ["cpus:1", "cpus:2"]
    assert for_agent(values, 2, "127.0.0.2", HOME)[-1] == "disk:2;ip:127.0.0.2;in:/d/agents/2"


def test_a_flag_given_twice_is_given_once() -> None:
    flags = ("port=1", "switch_user", "--port=2", "no-switch_user", "x")
    assert last_of_each(flags) == ["--port=2", "--no-switch_user", "--x"]


def test_resources_as_rows() -> None:
    assert parsed("cpus:4;ports:[1-2,5-9]") == [
        {"name": "cpus", "type": "SCALAR", "scalar": {"value": 4.0}},
        {
            "name": "ports",
            "type": "RANGES",
            "ranges": {"range": [{"begin": 1, "end": 2}, {"begin": 5, "end": 9}]},
        },
    ]


@pytest.mark.parametrize("resources", ["cpus:1", json.dumps(parsed("cpus:1"))])
def test_mount_disks_are_added(resources: str) -> None:
    _, first, second = json.loads(with_disks(resources, HOME, ["64", "tmpfs:16"]))
    assert first["scalar"]["value"] == 64 and second["scalar"]["value"] == 16
    assert second["disk"]["source"] == {"type": "MOUNT", "mount": {"root": "/d/agents/2/disks/d2"}}


def test_agents_follow_each_other(tmp_path: Path) -> None:
    options = Options(agents=2, agent_ip="127.1.0.255", launcher="linux")
    daemons = describe(options, tmp_path, tmp_path)
    assert [each.address for each in daemons.values()] == [
        "127.0.0.1:5050",
        "127.1.0.255:5051",
        "127.1.1.0:5051",
    ]
    assert daemons["agent1"].cgroup != daemons["agent2"].cgroup


@pytest.mark.parametrize(
    ("isolation", "launcher"),
    [((), "posix"), (("1:filesystem/linux",), "linux"), (("2:cgroups/cpu",), "posix")],
)
def test_the_launcher_follows_the_isolation(
    isolation: tuple[str, ...], launcher: str, tmp_path: Path
) -> None:
    agent = describe(Options(isolation=isolation), tmp_path, tmp_path)["agent1"]
    assert f"--launcher={launcher}" in agent.argv


def test_mount_points_are_unescaped() -> None:
    assert machine.unescaped(r"/a\040b\134") == "/a b\\"


def test_what_is_downloaded_is_pinned() -> None:
    assert all(re.search(" --hash=sha256:[0-9a-f]{64}$", each) for each in (library.PACKAGE, library.PIP))


def test_make_setup_installs_what_mesos_needs() -> None:
    makefile = (machine.ROOT / "Makefile").read_text().replace("\\\n", "")
    listed = re.search(r"^SYSTEM_PACKAGES := (.*)$", makefile, re.MULTILINE)
    assert listed and set(machine.PACKAGES) <= set(listed[1].split())
