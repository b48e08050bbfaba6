"""CSI plug-ins under an agent: the isolator volume/csi, and a storage local resource provider."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import machine, run
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, disk, reserve

NAME = "org.moorage.csi.dir"
PLUGIN = Path(__file__).parent / "standins" / "csi_plugin.py"
LIMITS = [
    {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}},
    {"name": "mem", "type": "SCALAR", "scalar": {"value": 64}},
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("privileged")]


class Plugin:
    """Where the plug-in keeps its volumes, and what it was asked. The path of its socket must be short."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.conf = directory / "conf"
        self.endpoint = f"unix://{directory}/sock"
        self.conf.mkdir()

    def configure(self, conf: Json) -> None:
        (self.conf / "plugin.json").write_text(json.dumps(conf))

    def contained(self, *services: str) -> Json:
        """To be started by the agent, which passes on no PATH."""
        env = {"CSI_ROOT": str(self.root), "CSI_STAGE": "1", "PATH": os.environ["PATH"]}
        variables = [{"name": key, "value": value} for key, value in env.items()]
        command = {"shell": False, "value": sys.executable, "arguments": [sys.executable, str(PLUGIN)]}
        command["environment"] = {"variables": variables}
        return {"services": list(services), "command": command, "resources": LIMITS}

    @contextmanager
    def running(self) -> Iterator[None]:
        env = {**os.environ, "CSI_ROOT": str(self.root), "CSI_ENDPOINT": self.endpoint}
        with subprocess.Popen([sys.executable, str(PLUGIN)], env=env) as process:
            try:
                yield
            finally:
                process.kill()

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def plugin() -> Iterator[Plugin]:
    directory = Path(tempfile.mkdtemp(prefix="moorage-csi-"))
    yield Plugin(directory)
    left = machine.mounts_below(directory)
    for point in left:
        run.attempt(["umount", "--lazy", point])
    shutil.rmtree(directory)
    assert left == []


def volume(id_: str, path: str, mode: str = "RW") -> Json:
    capability = {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}
    static = {"volume_id": id_, "volume_context": {"fs": "ext4"}, "volume_capability": capability}
    source = {"type": "CSI_VOLUME", "csi_volume": {"plugin_name": NAME, "static_provisioning": static}}
    return {"container_path": path, "mode": mode, "source": source}


async def use(plugin: Plugin, mesos: MakeMesos, scheduler: MakeScheduler) -> list[str]:
    """Run a task on two volumes: the calls that were made for it."""
    flags = (f"csi_plugin_config_dir={plugin.conf}",)
    cluster = await mesos(isolation=("filesystem/linux,volume/csi",), agent_flags=flags)
    framework = await scheduler(cluster.master)
    offer = await framework.offer()
    container = {"type": "MESOS", "volumes": [volume("one", "vol"), volume("two", "ro", "RO")]}
    command = "echo 1 > vol/f && mountpoint -q vol && ! touch ro/f"
    status = await framework.run(offer, "a", command, container=container)
    assert status["state"] == "TASK_FINISHED", status
    assert (plugin.root / "volumes" / "one" / "f").read_text() == "1\n"
    end = time.monotonic() + 10
    while sum("Unpublish" in call for call in plugin.calls()) < 2:
        assert time.monotonic() < end, plugin.calls()
        await asyncio.sleep(0.02)
    return [call for call in plugin.calls() if "Volume " in call]


async def test_a_plugin_that_runs_already(plugin: Plugin, mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    endpoint = {"csi_service": "NODE_SERVICE", "endpoint": plugin.endpoint}
    targets = str(plugin.directory / "targets")
    plugin.configure({"type": NAME, "endpoints": [endpoint], "target_path_root": targets})
    with plugin.running():
        calls = await use(plugin, mesos, scheduler)
    assert sorted(calls) == [
        "Node/NodePublishVolume one readonly=False context={'fs': 'ext4'}",
        "Node/NodePublishVolume two readonly=True context={'fs': 'ext4'}",
        "Node/NodeUnpublishVolume one",
        "Node/NodeUnpublishVolume two",
    ]


async def test_a_plugin_that_the_agent_starts(
    plugin: Plugin, mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    plugin.configure({"type": NAME, "containers": [plugin.contained("NODE_SERVICE")]})
    calls = await use(plugin, mesos, scheduler)
    assert [call for call in calls if "one" in call][:2] == [
        "Node/NodeStageVolume one",
        "Node/NodePublishVolume one readonly=False context={'fs': 'ext4'}",
    ]


async def test_volumes_of_a_resource_provider_are_offered_as_raw_disks(
    plugin: Plugin, mesos: MakeMesos, scheduler: MakeScheduler
) -> None:
    (plugin.root / "volumes" / "pre-1").mkdir(parents=True)
    contained = plugin.contained("CONTROLLER_SERVICE", "NODE_SERVICE")
    storage = {"plugin": {"type": NAME, "name": "local", "containers": [contained]}}
    plugin.configure({"type": "org.apache.mesos.rp.local.storage", "name": "moorage", "storage": storage})
    flags = (f"resource_provider_config_dir={plugin.conf}",)
    cluster = await mesos(isolation=("filesystem/linux",), agent_flags=flags)
    framework = await scheduler(cluster.master)
    # A disk alone is not worth an offer (--min_allocatable_resources): it comes along with cpus or mem.
    offer = await framework.whole_offer(lambda offer: disk(offer, "RAW") is not None)
    raw = disk(offer, "RAW")
    assert raw is not None
    assert (raw["disk"]["source"]["id"], raw["disk"]["source"]["vendor"]) == ("pre-1", f"{NAME}.local")
    assert "provider_id" in raw
    reserved = framework.reserved(raw)
    made = {"source": reserved, "target_type": "MOUNT", "target_profile": "default"}
    outcomes = await framework.outcomes(
        offer, reserve(reserved), {"type": "CREATE_DISK", "create_disk": made}
    )
    assert [state for state, _ in outcomes] == ["OPERATION_FINISHED", "OPERATION_FAILED"]
    assert "Profile 'default' not found" in outcomes[1][1]
