"""`moorage table` and `moorage resolve`: versions, what an agent makes of them, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import PROGRAM, Agent, Cluster, Service, until

pytestmark = pytest.mark.timeout(180)
MakeAgent = Callable[..., Agent]


def set_table(agent: Agent, *lines: str) -> int:
    client = agent.cluster.client
    version = client.mount_table().version
    made = client.set_mount_table("".join(f"{line}\n" for line in lines), version=version)
    assert made == version + 1
    return made


def apply(agent: Agent, code: int = 0) -> dict[str, tuple[str, str]]:
    """Target -> state and reason."""
    said = agent.run(*PROGRAM, "table", "apply", "--json")
    assert said.returncode == code, (said.stdout, said.stderr)
    return states(said.stdout)


def states(text: str | dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = json.loads(text) if isinstance(text, str) else text
    return {line["target"]: (line["state"], line["reason"]) for line in found["lines"]}


def answer_until(service: Service, target: Path, state: str) -> str:
    while (found := states(service.answer()).get(str(target), ("", "")))[0] != state:
        pass
    return found[1]


def test_a_table_is_changed_by_compare_and_set(agent: Agent) -> None:
    version = set_table(agent, "# nothing yet")
    file = agent.directory / "edited"
    file.write_text(agent.sh(f"{' '.join(PROGRAM)} table get"))
    assert file.read_text().splitlines() == [f"# moorage table, version {version}", "# nothing yet"]
    with file.open("a") as out:
        out.write("\nmoorage:///db /data zfs\ns3://media /media s3 name=pictures\nx y\n")
    said = agent.moorage("table", "set", str(file), code=3)["error"]
    assert said["message"].startswith("line 3: 'zfs' is not for a volume")
    assert said["details"]["problems"][1] == "line 5: 2 fields: write SOURCE TARGET KIND [OPTIONS]"
    assert agent.moorage("table", "get")["version"] == version
    text = file.read_text().replace("zfs", "ext4").replace("x y\n", "")
    file.write_text(text)
    assert agent.moorage("table", "set", str(file)) == {"version": version + 1}
    stale = agent.moorage("table", "set", str(file), code=9)["error"]
    assert stale["message"] == (
        f"the mount table is at version {version + 1}, not {version}: get it and change that one"
    )
    found = agent.moorage("table", "get")
    assert found["text"] == text.partition("\n")[2]
    assert [(line["number"], line["name"], line["kind"]) for line in found["lines"]] == [
        (2, "db", "ext4"),
        (3, "pictures", "s3"),
    ]
    assert agent.moorage("table", "get", "--version", str(version))["text"] == "# nothing yet\n"
    assert "say --version" in agent.fails(f"echo 'a:/b /c nfs' | {' '.join(PROGRAM)} table set -")


def test_apply_mounts_what_is_missing_and_unmounts_what_left(agent: Agent) -> None:
    data, other = agent.directory / "a" / "data", agent.directory / "other"
    other.mkdir()
    agent.cluster.create("other")
    agent.moorage("mount", "other", str(other))
    line = f"moorage:///kept {data} ext4 size=64M,replicas=1,owner=1000:1001,noatime"
    set_table(
        agent, line, f"moorage:///other {other} auto", "nas:/x /nowhere nfs hosts=b*", "n:/y /n nfs noauto"
    )
    assert apply(agent) == {
        str(data): ("mounted", ""),
        str(other): ("mounted", ""),
        "/nowhere": ("elsewhere", ""),
        "/n": ("named", ""),
    }
    assert agent.sh(f"stat -c %u:%g {data}") == "1000:1001"
    assert "noatime" in agent.mounted()[str(data)]
    assert apply(agent)[str(data)] == ("mounted", "")
    assert agent.mounts()["kept"]["epoch"] == 1
    set_table(agent, "# nothing")
    assert apply(agent) == {str(data): ("unmounted", "")}
    assert agent.mounts().keys() == {"other"}  # it was not the table that mounted it
    assert apply(agent) == {}


@pytest.mark.slow
def test_keep_follows_the_table_and_goes_on_after_a_kill(agent: Agent) -> None:
    first, second = agent.directory / "first", agent.directory / "second"
    agent.cluster.create("one", "two")
    set_table(agent, f"moorage:///one {first} ext4")
    command = ("table", "apply", "--keep", "--interval", "0.2")
    service = agent.start(*command)
    answer_until(service, first, "mounted")
    said = agent.moorage("table", "apply", code=9)["error"]["message"]
    assert said == "another `moorage table apply` is at work for this state directory"
    agent.sh(f"umount {first}")  # by hand, and behind everybody's back
    until(lambda: str(first) in agent.mounted(), "mounted again")
    set_table(agent, f"moorage:///one {first} ext4", f"moorage:///two {second} ext4")
    answer_until(service, second, "mounted")
    service.end(signal.SIGKILL)
    assert {str(first), str(second)} <= agent.mounted().keys()
    set_table(agent, f"moorage:///two {second} ext4")
    service = agent.start(*command)
    answer_until(service, first, "unmounted")
    assert service.end() == 0
    assert agent.mounts().keys() == {"two"}
    agent.moorage("umount", "two")
    agent.check_clean("one")
    agent.check_clean("two")


@pytest.mark.slow
def test_what_is_in_use_stays_until_it_is_not(agent: Agent) -> None:
    target = agent.directory / "data"
    agent.cluster.create("old", "new")
    set_table(agent, f"moorage:///old {target} ext4")
    apply(agent)
    user = agent.hold(target)
    set_table(agent, f"moorage:///new {target} ext4")
    state, reason = apply(agent, code=9)[str(target)]
    assert state == "failed" and "is in use by sleep" in reason
    assert agent.mounts().keys() == {"old"}
    user.kill()
    user.wait()
    assert apply(agent) == {str(target): ("mounted", "")}
    assert agent.mounts().keys() == {"new"}


@pytest.mark.slow
def test_a_volume_that_is_held_elsewhere_comes_when_its_holder_dies(make_agent: MakeAgent) -> None:
    first, second = make_agent("a1"), make_agent("a2")
    first.cluster.create("moving")
    set_table(first, f"moorage:///moving {first.directory / 'd'} ext4 hosts=a1",
              f"moorage:///moving {second.directory / 'd'} ext4 hosts=a2")  # fmt: skip
    apply(first)
    first.sh(f"echo hello > {first.directory / 'd'}/file; sync -f {first.directory / 'd'}")
    service = second.start("table", "apply", "--keep", "--interval", "0.2")
    reason = answer_until(service, second.directory / "d", "failed")
    assert "volume 'moving' is held by" in reason and "on a1" in reason
    assert "moving" not in second.mounts()
    for pid in first.pids("moving"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    answer_until(service, second.directory / "d", "mounted")
    assert second.sh(f"cat {second.directory / 'd'}/file") == "hello"
    service.end()
    second.moorage("umount", "moving")
    second.check_clean("moving")


STUB = """#!/bin/sh
echo "$(basename $0) $*" >> {log}
test "$1" != bad:/x || {{ echo "no such export" >&2; exit 32; }}
test "$1" = silent:/x || mount -t tmpfs "$1" "$2"
"""


@pytest.mark.slow
def test_foreign_storage_is_mounted_by_its_command(agent: Agent) -> None:
    bin_dir, log = agent.directory / "bin", agent.directory / "calls"
    bin_dir.mkdir()
    for name in ("mount.nfs4", "hadoop-fuse-dfs"):
        (bin_dir / name).write_text(STUB.format(log=log))
        (bin_dir / name).chmod(0o755)
    agent.env["PATH"] = f"{bin_dir}:{agent.env['PATH']}"
    at = {name: agent.directory / name for name in ("good", "bad", "silent", "hdfs", "taken", "gone", "tmp")}
    at["taken"].mkdir()
    agent.sh(f"mount -t tmpfs someone {at['taken']}")
    set_table(
        agent,
        f"nas:/x {at['good']} nfs4 vers=4.2",
        f"bad:/x {at['bad']} nfs4",
        f"silent:/x {at['silent']} nfs4",
        f"hdfs://nn:8020 {at['hdfs']} hdfs",
        f"nas:/x {at['taken']} nfs4",
        f"x:/x {at['gone']} glusterfs",
        f"none {at['tmp']} tmpfs size=1M",
    )
    found = apply(agent, code=9)
    assert {target: state for target, (state, _) in found.items()} == {
        str(path): "mounted" if name in ("good", "hdfs", "tmp") else "failed" for name, path in at.items()
    }
    assert found[str(at["bad"])][1] == f"mount.nfs4 bad:/x {at['bad']}: no such export"
    assert (
        found[str(at["silent"])][1]
        == f"mount.nfs4 said nothing, but {at['silent']} is not mounted: see its log"
    )
    assert found[str(at["taken"])][1] == f"{at['taken']} is a mount point already, of someone"
    assert found[str(at["gone"])][1].startswith("mount.glusterfs is not installed")
    assert sorted(log.read_text().splitlines()) == sorted([
        f"mount.nfs4 nas:/x {at['good']} -o vers=4.2",
        f"mount.nfs4 bad:/x {at['bad']}",
        f"mount.nfs4 silent:/x {at['silent']}",
        f"hadoop-fuse-dfs dfs://nn:8020 {at['hdfs']}",
    ])  # fmt: skip
    before = len(log.read_text().splitlines())
    set_table(agent, f"nas:/x {at['good']} nfs4 vers=4.2")
    left = apply(agent)
    assert left[str(at["good"])] == ("mounted", "") and left[str(at["hdfs"])] == ("unmounted", "")
    assert len(log.read_text().splitlines()) == before  # what was mounted was not mounted again
    mounted = agent.mounted()
    assert str(at["taken"]) in mounted and str(at["hdfs"]) not in mounted and str(at["tmp"]) not in mounted


@pytest.fixture
def far() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="ns-") as directory:
        made = Cluster(Path(directory))
        yield made
        made.close()


@pytest.mark.slow
def test_a_volume_of_another_cluster(make_agent: MakeAgent, far: Cluster) -> None:
    agent = make_agent("a1", far=far)
    agent.cluster.create("twin")
    here, there = agent.directory / "here", agent.directory / "there"
    set_table(
        agent,
        f"moorage:///twin {here} ext4",
        f"moorage://far/twin {there} ext4 size=64M,replicas=1,name=far-twin",
    )
    assert apply(agent) == {str(here): ("mounted", ""), str(there): ("mounted", "")}
    agent.sh(f"echo here > {here}/file; echo there > {there}/file")
    assert agent.record_at(str(there))["registry"] == far.registry
    found = {each["name"]: each for each in agent.moorage("resolve")}
    assert found["far-twin"]["cluster"] == "far" and found["far-twin"]["mounted_at"] == [str(there)]
    assert found["twin"]["mounted_at"] == [str(here)]
    set_table(agent, f"moorage:///twin {here} ext4")
    assert apply(agent)[str(there)] == ("unmounted", "")


@pytest.mark.slow
def test_resolve_finds_every_storage_of_the_cluster(make_agent: MakeAgent) -> None:
    first, second = make_agent("a1"), make_agent("a2")
    first.cluster.create("bare", "tabled")
    target = first.directory / "tabled"
    set_table(first, f"moorage:///tabled {target} ext4 hosts=a1", "nas:/export /storage/nas nfs4 noauto",
              "s3://media /storage/media s3 name=pictures,noauto")  # fmt: skip
    apply(first)
    (found,) = first.moorage("resolve", "tabled")
    assert (found["kind"], found["uri"], found["line"]) == ("volume", "moorage:///tabled?fs=ext4", 1)
    assert found["mounted_at"] == [str(target)] and found["hosts"] == ["a1"]
    assert found["holder"]["host"] == "a1" and found["holder_alive"]
    (seen,) = second.moorage("resolve", "moorage:///tabled")
    assert seen["mounted_at"] == [] and seen["holder"] == found["holder"]
    (plain,) = second.moorage("resolve", "bare")
    assert (plain["uri"], plain["line"], plain["holder"]) == ("moorage:///bare", 0, None)
    assert [each["kind"] for each in second.moorage("resolve", "/storage/nas")] == ["nfs4"]
    assert [each["uri"] for each in second.moorage("resolve", "pictures")] == ["s3://media"]
    assert {"bare", "tabled", "nas", "pictures"} <= {each["name"] for each in second.moorage("resolve")}
    said = second.moorage("resolve", "nosuch", code=3)["error"]["message"]
    assert said.startswith("'nosuch' is no volume, and no line of the mount table")
    code = "import moorage.sync as m\nwith m.connect() as c: print(c.resolve('tabled')[0].mounted_at[0])"
    assert first.python(code) == str(target)
