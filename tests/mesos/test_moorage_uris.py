"""Objects of buckets as `uris` of tasks: the fetcher gets them by `moorage hadoop`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import moorage
from moorage.cli.local_cluster import LocalCluster

from .conftest import MakeMesos, MakeScheduler
from .scheduler import launch

pytestmark = pytest.mark.timeout(120)
LARGE = bytes(range(256)) * 10_000


@pytest.fixture
async def local() -> AsyncIterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="moo") as directory:
        cluster = LocalCluster(Path(directory) / "c")
        await cluster.start()
        yield cluster
        await cluster.kill()


@pytest.fixture
async def env(local: LocalCluster, tmp_path: Path) -> dict[str, str]:
    """Of an agent: what finds the cluster, and the program."""
    program = tmp_path / "bin" / "hadoop"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m moorage.cli.main hadoop "$@"\n')
    program.chmod(0o755)
    async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
        bucket = await cluster.buckets.create("images")
        await bucket.put("bin/tool", b"#!/bin/sh\nwc -c < large\n")
        await bucket.put("large", LARGE)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "MOORAGE_REGISTRY": local.registry,
        "MOORAGE_SECRET_FILE": str(local.secret_file),
    }


@pytest.mark.slow
async def test_a_task_finds_objects_in_its_sandbox(
    env: dict[str, str], mesos: MakeMesos, scheduler: MakeScheduler, tmp_path: Path
) -> None:
    cluster = await mesos(env=env)
    framework = await scheduler(cluster.master)
    uris = [
        {"value": "moorage:///images/bin/tool", "executable": True},
        {"value": "moorage:///images/large", "extract": False},
    ]
    for task, wanted in (("a", "TASK_FINISHED"), ("b", "TASK_FAILED")):
        offer = await framework.offer()
        made = framework.task(offer, task, "./tool")
        made["command"]["uris"] = uris
        await framework.accept(offer, launch(made))
        await framework.update(task, wanted, timeout=60)
        uris = [{"value": "moorage:///images/none"}]
    assert cluster.sandbox("a").strip() == str(len(LARGE))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = str(tmp_path / "bin" / "hadoop")
        return subprocess.run([program, *arguments], capture_output=True, text=True, env=env, check=False)

    assert run("version").stdout.startswith("Moorage ")
    assert run("fs", "-du", "moorage:///images/large").stdout.split()[0] == str(len(LARGE))
    assert run("fs", "-test", "-e", "moorage:///images/large").returncode == 0
    assert run("fs", "-test", "-e", "moorage:///images/none").returncode != 0
    copied = run("fs", "-copyToLocal", "moorage:///images/large", str(tmp_path))
    assert copied.returncode == 0 and (tmp_path / "large").read_bytes() == LARGE
    failed = run("fs", "-copyToLocal", "moorage:///images/none", str(tmp_path / "none"))
    assert failed.returncode != 0 and "no object 'none'" in failed.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["large"]
