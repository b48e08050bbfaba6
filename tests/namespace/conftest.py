"""A cluster, and agents that mount its volumes: each has a mount namespace and a state directory of its own.

What a test mounts is in that namespace only: it goes with it, and nothing that others mount or copy gets in
between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moorage.sync
from moorage.cli.local_cluster import die_with_parent
from tests import processes
from tests.fsck import check_clean_at
from tests.prerequisites import PATH, no_mounts, no_programs, require

TOOLS = ("losetup", "mkfs.ext4", "mkfs.xfs", "mount", "nsenter", "unshare")
TIMEOUT_S = 60.0
PROGRAM = (sys.executable, "-m", "moorage.cli.main")


@pytest.fixture(scope="session", autouse=True)
def mountable() -> None:
    require(no_mounts(("/dev/fuse", "/dev/loop-control", "/dev/autofs")) or no_programs(*TOOLS))


def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.05)
    return found


class Service:
    """A command that runs until it is told to end, and answers with JSON lines."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                text=True,
                preexec_fn=die_with_parent,
            )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}: {self.log.read_text()[-1000:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            return self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def said(self) -> str:
        return self.log.read_text()


class Cluster:
    """`moorage up`."""

    def __init__(self, directory: Path) -> None:
        arguments = ["up", "--json", "--data", str(directory / "data"), "--capacity", "4G"]
        env = {**os.environ, "HOME": str(directory)}
        self._service = Service([*PROGRAM, *arguments], env, directory / "up.log")
        self.directory = directory
        ready = self._service.answer()
        self.registry, self.secret_file = ready["registry"], ready["secret_file"]
        self.client = moorage.sync.connect(registry=self.registry, secret_file=self.secret_file)

    def create(self, *names: str) -> None:
        for name in names:
            self.client.create_volume(name, "64M", replicas=1)

    def close(self) -> None:
        self.client.close()
        self._service.end()


class Agent:
    """A host, as far as mounting goes."""

    def __init__(self, cluster: Cluster, name: str, directory: Path, clusters: dict[str, Cluster]) -> None:
        self.name = name
        self.cluster = cluster
        self.directory = directory
        self.state_dir = directory / "st"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sleep", "infinity"],
            env={"PATH": PATH},
            preexec_fn=die_with_parent,
        )
        until(
            lambda: os.readlink(f"/proc/{self._holder.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), name
        )
        self._inside = ["nsenter", "--mount", f"--target={self._holder.pid}"]
        known = directory / "config" / "moorage" / "clusters"
        known.mkdir(parents=True)
        for each, other in clusters.items():
            content = {"registry": other.registry, "secret_file": other.secret_file}
            (known / f"{each}.json").write_text(json.dumps(content))
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")},
            "MOORAGE_REGISTRY": cluster.registry,
            "MOORAGE_SECRET_FILE": cluster.secret_file,
            "MOORAGE_STATE_DIR": str(self.state_dir),
            "MOORAGE_MOUNT_ROOT": str(directory / "v"),
            "MOORAGE_HOST": name,
            "XDG_CONFIG_HOME": str(directory / "config"),
            "PATH": PATH,
        }
        self.services: list[Service] = []
        self._users: list[subprocess.Popen[str]] = []

    def run(self, *command: str, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """In a session of its own: no process group of a service's."""
        return subprocess.run(
            [*self._inside, *command],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,
        )

    def sh(self, script: str, timeout: float = TIMEOUT_S) -> str:
        done = self.run("sh", "-ec", script, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fails(self, script: str) -> str:
        done = self.run("sh", "-ec", script)
        assert done.returncode != 0, done.stdout
        return done.stderr.strip()

    def moorage(self, *arguments: str, code: int = 0) -> Any:
        """What a command says with --json, or of its error."""
        done = self.run(*PROGRAM, *arguments, "--json")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout or done.stderr)

    def python(self, code: str) -> str:
        done = self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *arguments: str) -> Service:
        return self.serve(*PROGRAM, *arguments, "--json")

    def serve(self, *command: str, **variables: str) -> Service:
        """``variables``: more of its environment."""
        log = self.directory / f"service{len(self.services)}.log"
        service = Service([*self._inside, *command], {**self.env, **variables}, log)
        self.services.append(service)
        return service

    def hold(self, directory: Path) -> subprocess.Popen[str]:
        """A process that stands in a directory."""
        return self.stay("sh", "-ec", f"cd {directory}; echo there; exec sleep infinity")

    def stay(self, *command: str) -> subprocess.Popen[str]:
        """A process that says "there" and stays until it is killed, at the latest with the agent."""
        process = subprocess.Popen(
            [*self._inside, *command],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._users.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        process.stdout.close()
        assert said == "there\n"
        return process

    def mounts(self) -> dict[str, dict[str, Any]]:
        """By volume: what is noted of it."""
        found = {}
        for path in self.state_dir.glob("*/record.json"):
            with contextlib.suppress(FileNotFoundError):  # it ends just now
                volume = json.loads(path.read_text())["volume"]
                found[volume] = json.loads(path.with_name("status.json").read_text())
        return found

    def mounted(self) -> dict[str, str]:
        """Target -> options, of what is mounted in this namespace."""
        rows = [row.split() for row in Path(f"/proc/{self._holder.pid}/mounts").read_text().splitlines()]
        return {row[1]: row[3] for row in rows}

    def record(self, volume: str) -> dict[str, Any]:
        (found,) = [
            record
            for path in self.state_dir.glob("*/record.json")
            if (record := json.loads(path.read_text()))["volume"] == volume
        ]
        return found

    def record_at(self, target: str) -> dict[str, Any]:
        records = [json.loads(path.read_text()) for path in self.state_dir.glob("*/record.json")]
        (found,) = [record for record in records if record["target"] == target]
        return found

    def check_clean(self, volume: str) -> None:
        """`fsck -f` finds nothing to mend. It is unmounted."""
        asyncio.run(check_clean_at(self.env, volume))

    def pids(self, volume: str) -> list[int]:
        """Keeper and daemon of a mount."""
        return processes.naming(str(self.state_dir / self.record(volume)["id"]))

    def close(self) -> None:
        for user in self._users:
            user.kill()
            user.wait()
        for service in self.services:
            service.end()
        for path in self.state_dir.glob("*/record.json"):
            target = json.loads(path.read_text())["target"]
            self.run(*PROGRAM, "umount", target, "--force", "--timeout", "10")
        leftovers = [path.parent.name for path in self.state_dir.glob("*/record.json")]
        self._holder.kill()
        self._holder.wait()
        assert leftovers == []


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # A short path: sockets are below it.
    with tempfile.TemporaryDirectory(prefix="ns-") as directory:
        made = Cluster(Path(directory))
        yield made
        made.close()


@pytest.fixture
def make_agent(cluster: Cluster) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []
    with tempfile.TemporaryDirectory(prefix="ns-") as directory:

        def make(name: str, **clusters: Cluster) -> Agent:
            agent = Agent(cluster, name, Path(directory) / name, clusters)
            made.append(agent)
            return agent

        yield make
        for agent in made:
            agent.close()


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    return make_agent("a1")
