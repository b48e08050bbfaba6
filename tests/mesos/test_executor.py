"""The command executor and the fetcher that stand in for Mesos's own: commands, kills, checks and URIs."""

from __future__ import annotations

import functools
import http.server
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..prerequisites import require
from . import programs
from .cluster import Cluster
from .conftest import MakeMesos, MakeScheduler
from .scheduler import Json, Scheduler, launch

STUBBORN = "trap '' TERM; touch ready; while :; do sleep 0.05; done"


@pytest.fixture
async def cluster(mesos: MakeMesos) -> Cluster:
    return await mesos()


@pytest.fixture
async def framework(cluster: Cluster, scheduler: MakeScheduler) -> Scheduler:
    return await scheduler(cluster.master)


async def run(framework: Scheduler, name: str, command: str | Json, **more: Any) -> Json:
    return await framework.run(await framework.offer(), name, command, **more)


async def start(framework: Scheduler, name: str, command: str, **more: Any) -> None:
    offer = await framework.offer()
    await framework.accept(offer, launch(framework.task(offer, name, command, **more)))
    await framework.update(name, "TASK_RUNNING")


async def test_commands(cluster: Cluster, framework: Scheduler) -> None:
    arguments = ["printf", "%s|", "a b", "$HOME"]
    await run(framework, "argv", {"shell": False, "value": "printf", "arguments": arguments})
    assert cluster.sandbox("argv") == "a b|$HOME|"

    variables = [{"name": "GREETING", "value": "hello"}]
    command = {
        "value": "echo $GREETING $MESOS_ALLOCATION_ROLE; exit 7",
        "environment": {"variables": variables},
    }
    status = await run(framework, "env", command)
    assert (status["state"], status["message"]) == ("TASK_FAILED", "Command exited with status 7")
    assert cluster.sandbox("env") == "hello storage\n"
    status = await run(framework, "missing", {"shell": False, "value": "/no/such/program"})
    assert status["state"] == "TASK_FAILED" and "/no/such/program" in status["message"]
    status = await run(framework, "long", "sleep 1000", max_completion_time={"nanoseconds": 10**8})
    assert (status["state"], status["reason"]) == ("TASK_FAILED", "REASON_MAX_COMPLETION_TIME_REACHED")


@pytest.mark.slow
async def test_the_user_of_a_command(cluster: Cluster, framework: Scheduler, installed: Path) -> None:
    if os.geteuid() != 0 or not all(programs.public(each) for each in (installed, programs.interpreter())):
        require("tasks as another user need root, and a cache and a Python that all users reach")
    await run(framework, "a", {"value": "id -un", "user": "nobody"})
    assert cluster.sandbox("a") == "nobody\n"


async def test_sigterm_comes_first(cluster: Cluster, framework: Scheduler) -> None:
    command = "trap 'echo term; exit 0' TERM; touch ready; while :; do sleep 0.05; done"
    await start(framework, "a", command)
    await ready(cluster, "a")
    await framework.kill("a")
    assert (await framework.update("a"))["state"] == "TASK_KILLING"
    assert (await framework.update("a"))["state"] == "TASK_KILLED", "also with status 0"
    assert cluster.sandbox("a") == "term\n"


@pytest.mark.slow
async def test_sigkill_comes_after_the_grace_period(cluster: Cluster, framework: Scheduler) -> None:
    policy = {"grace_period": {"nanoseconds": 10**9}}
    await start(framework, "a", STUBBORN, kill_policy=policy)
    await start(framework, "b", STUBBORN, kill_policy={"grace_period": {"nanoseconds": 60 * 10**9}})
    for name in ("a", "b"):
        await ready(cluster, name)
    began = time.monotonic()
    await framework.kill("a")
    await framework.update("a", "TASK_KILLED")
    assert 0.9 < time.monotonic() - began < 10
    await framework.kill("b", kill_policy={"grace_period": {"nanoseconds": 10**8}})
    await framework.update("b", "TASK_KILLED", timeout=10)
    await framework.kill("nobody-knows")
    assert (await framework.update("nobody-knows"))["state"] == "TASK_UNKNOWN"


async def ready(cluster: Cluster, task: str) -> None:
    """The trap of a task is set."""
    end = time.monotonic() + 10
    while True:
        try:
            cluster.sandbox(task, "ready")
            return
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.02)  # noqa: ASYNC251 - nothing else is to happen


@pytest.mark.slow
async def test_health_checks(framework: Scheduler) -> None:
    check = {
        **{"type": "COMMAND", "command": {"value": "test -f ok"}, "delay_seconds": 0},
        **{"interval_seconds": 0.1, "timeout_seconds": 5, "consecutive_failures": 2},
    }
    await start(framework, "a", "sleep 0.5; touch ok; sleep 0.7; rm ok; sleep 1000", health_check=check)
    seen: list[tuple[str, bool | None]] = []
    while not seen or seen[-1][0] != "TASK_KILLED":
        status = await framework.update("a")
        seen.append((status["state"], status.get("healthy")))
    assert seen[0] == ("TASK_RUNNING", True), "failures in the grace period do not count"
    assert seen.count(("TASK_RUNNING", False)) == 2
    assert seen[-1] == ("TASK_KILLED", False)


@pytest.mark.slow
async def test_checks_over_the_network(cluster: Cluster, framework: Scheduler) -> None:
    ip = cluster.agent("agent1").address.partition(":")[0]
    health = {
        "type": "HTTP",
        "http": {"port": 31111, "path": "/"},
        "delay_seconds": 0,
        "interval_seconds": 0.1,
    }
    check = {"type": "TCP", "tcp": {"port": 31111}, "delay_seconds": 0, "interval_seconds": 0.1}
    command = f"exec python3 -m http.server -b {ip} 31111"
    await start(framework, "a", command, health_check=health, check=check)
    healthy = succeeded = False
    while not (healthy and succeeded):
        status = await framework.update("a")
        assert status["state"] == "TASK_RUNNING"
        healthy = healthy or status.get("healthy", False)
        succeeded = succeeded or status.get("check_status", {}).get("tcp", {}).get("succeeded", False)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A file, an archive that has it, and a Hadoop client that copies anything."""
    (tmp_path / "plain").write_text("plain\n")
    with tarfile.open(tmp_path / "archive.tgz", "w:gz") as archive:
        archive.add(tmp_path / "plain", "plain")
    hadoop = tmp_path / "bin" / "hadoop"
    hadoop.parent.mkdir()
    hadoop.write_text('#!/bin/sh\n[ "$1" = version ] || echo "$2 $3" > "$4"\n')
    hadoop.chmod(0o755)
    return tmp_path


@pytest.fixture
def web(shelf: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=shelf))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
async def test_uris_are_fetched(shelf: Path, web: str, mesos: MakeMesos, scheduler: MakeScheduler) -> None:
    cluster = await mesos(env={"PATH": f"{shelf}/bin:{os.environ['PATH']}"})
    framework = await scheduler(cluster.master)
    uris = [
        {"value": f"file://{shelf}/plain", "output_file": "sub/renamed", "extract": False},
        {"value": f"{web}/archive.tgz"},
        {"value": "moorage://images/tool", "executable": True},
        {"value": f"{shelf}/plain", "cache": True, "output_file": "cached"},
    ]
    command = {"value": "cat sub/renamed plain tool cached; test -x tool", "uris": uris}
    status = await run(framework, "a", command)
    assert status["state"] == "TASK_FINISHED", cluster.sandbox("a", "stderr")
    assert cluster.sandbox("a") == "plain\nplain\n-copyToLocal moorage://images/tool\nplain\n"
    status = await run(framework, "b", {"value": "true", "uris": [{"value": "file:///no/such/file"}]})
    assert (status["state"], status["reason"]) == ("TASK_FAILED", "REASON_CONTAINER_LAUNCH_FAILED")
