"""The URI of a volume means the same by whatever way it comes to be mounted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.client.uri import parse

from ..uris import EXISTING, MADE, Effect, effect
from .conftest import PROGRAM, Agent, Cluster
from .test_table import MakeAgent, apply, far, set_table

__all__ = ["far"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_numbers = itertools.count()


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


def by_dvdcli(agent: Agent, uri: str, target: Path) -> Path:
    return dvdcli(agent, f"--volumename={uri}")


def by_dvdcli_options(agent: Agent, uri: str, target: Path) -> Path:
    address = parse(uri)
    options = (f"--volumeopts={key}={value}" for key, value in address.options.items())
    return dvdcli(agent, "--volumedriver=moorage", f"--volumename={address.name}", *options)


def dvdcli(agent: Agent, *arguments: str) -> Path:
    done = agent.run(*PROGRAM, "dvdcli", "mount", *arguments)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def by_dvdi(agent: Agent, uri: str, target: Path) -> Path:
    return dvdi(agent, DVDI_VOLUME_NAME=uri)


def by_dvdi_options(agent: Agent, uri: str, target: Path) -> Path:
    address = parse(uri)
    options = ",".join(f"{key}={value}" for key, value in address.options.items())
    return dvdi(agent, DVDI_VOLUME_NAME=address.name, DVDI_VOLUME_OPTS=options)


def dvdi(agent: Agent, **variables: str) -> Path:
    """Where a task that stays has its volume."""
    task = 'echo "{\\"path\\": \\"$DVDI_VOLUME_PATH\\"}"; exec sleep infinity'
    service = agent.serve(*PROGRAM, "dvdi", "run", "--", "sh", "-ec", task, **variables)
    return Path(service.answer()["path"])


PUBLISH = """
import grpc
from moorage.gateway.csi import csi_pb2 as pb
capability = pb.VolumeCapability(access_mode={{"mode": "SINGLE_NODE_WRITER"}}, mount={{}})
request = pb.NodePublishVolumeRequest(
    volume_id={name!r}, target_path={target!r}, volume_capability=capability, volume_context={options!r}
)
with grpc.insecure_channel({endpoint!r}) as channel:
    call = channel.unary_unary("/csi.v1.Node/NodePublishVolume", type(request).SerializeToString)
    call(request, timeout=60)
"""


def by_csi(agent: Agent, uri: str, target: Path) -> Path:
    """Which has ids and a context instead of URIs: the name, and the same options."""
    endpoint, address = f"unix://{agent.directory}/csi.sock", parse(uri)
    agent.start("csi", "--endpoint", endpoint).answer()
    options = dict(address.options)
    agent.python(PUBLISH.format(name=address.name, target=str(target), options=options, endpoint=endpoint))
    return target


URI = [by_command, by_python, by_table, by_automount, by_dvdcli, by_dvdi]
BESIDE = [by_table_options, by_dvdcli_options, by_dvdi_options, by_csi]  # a name, and options beside it
OF_OTHERS = [by_command, by_table, by_table_options, by_automount, by_dvdcli, by_dvdi]


def found(agent: Agent, volume: str, at: Path) -> Effect:
    mounted = agent.sh(f"findmnt --noheadings --output FSTYPE,OPTIONS {at}")
    return effect(agent.moorage("volume", "show", volume), agent.record(volume), mounted)


@pytest.mark.parametrize("way", URI + BESIDE)
@pytest.mark.parametrize("options", MADE)
def test_a_volume_is_made_and_mounted(agent: Agent, way: Callable[..., Path], options: str) -> None:
    volume, target = f"made{next(_numbers)}", agent.directory / "at"
    target.mkdir()
    at = way(agent, f"moorage:///{volume}?{options}", target)
    assert found(agent, volume, at) == MADE[options]
    groups = agent.moorage("volume", "show", volume)["groups"]
    assert len(groups) == (2 if "groups=2" in options else len(groups))


@pytest.mark.parametrize("way", URI + BESIDE)
@pytest.mark.parametrize("options", EXISTING)
def test_a_volume_that_is_there(agent: Agent, way: Callable[..., Path], options: str) -> None:
    volume, target = f"there{next(_numbers)}", agent.directory / "at"
    target.mkdir()
    agent.moorage("volume", "create", volume, "--size", "64M", "--replicas", "1")
    agent.moorage("mount", volume, str(target))
    agent.moorage("umount", str(target))
    at = way(agent, f"moorage:///{volume}{options}", target)
    assert found(agent, volume, at) == EXISTING[options]


@pytest.mark.parametrize("way", OF_OTHERS)
def test_the_cluster_that_it_names(far: Cluster, make_agent: MakeAgent, way: Callable[..., Path]) -> None:
    """From Python one connects to it: a connection is to one cluster, and so are the drivers of Docker and
    CSI."""
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
    for command in (("dvdcli", "mount", f"--volumename={uri}"), ("dvdi", "run", "true")):
        agent.env["DVDI_VOLUME_NAME"] = uri
        done = agent.run(*PROGRAM, *command)
        assert done.returncode == 3 and not done.stdout
        words = done.stderr.strip().removeprefix("moorage: ")
        said.add(words.removeprefix("DVDI_VOLUME_NAME, DVDI_VOLUME_OPTS: "))
    assert len(said) == 1, said
