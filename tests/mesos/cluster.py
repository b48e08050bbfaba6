"""A running master and its agents, each a process of its own that can fail alone.

    DIR/cluster.json   how each daemon is started
    DIR/pids/NAME      "PID STARTTIME" of the running daemon
    DIR/logs/NAME.log  what it says
    DIR/master, DIR/agents/N/{work,run,fetch,disks,tmp}

All of it is found again from DIR alone: the command line has no process that lives as long as the cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from . import calls, cgroups, machine, processes, run
from .daemons import Daemon, Options, describe, disk_root
from .errors import MesosError

PARTS_OF_AN_AGENT = ("work", "run", "fetch", "tmp")


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.daemons: dict[str, Daemon] = {}
        self._children: list[subprocess.Popen[bytes]] = []  # those of this process, to be reaped
        if self._file.exists():
            rows = json.loads(self._file.read_text())
            self.daemons = {name: Daemon(**row) for name, row in rows.items()}

    @property
    def _file(self) -> Path:
        return self.directory / "cluster.json"

    @property
    def master(self) -> str:
        return self.daemon("master").address

    @property
    def agents(self) -> list[str]:
        return [name for name in self.daemons if name != "master"]

    def daemon(self, name: str) -> Daemon:
        if name not in self.daemons:
            known = ", ".join(self.daemons) or "none"
            raise MesosError(f"no such daemon: {name} (there are: {known})")
        return self.daemons[name]

    def agent(self, name: str) -> Daemon:
        if not (daemon := self.daemon(name)).home:
            raise MesosError(f"{name} is not an agent")
        return daemon

    # ---- life of the whole ----

    def up(self, options: Options, programs: Path, timeout: float = 60) -> None:
        """Start all, and return when every agent has registered."""
        if any(self.pid(name) for name in self.daemons):
            raise MesosError(f"a cluster is already running in {self.directory}")
        self.daemons = describe(options, self.directory, programs)
        for name in ("pids", "logs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for daemon in map(self.agent, self.agents):
            for part in PARTS_OF_AN_AGENT:
                Path(daemon.home, part).mkdir(parents=True, exist_ok=True)
            _mount_disks(daemon)
        rows = {name: dataclasses.asdict(daemon) for name, daemon in self.daemons.items()}
        self._file.write_text(json.dumps(rows, indent=1))
        try:
            cgroups.claim(self._cgroups())
            for name in self.daemons:
                self.start(name)
            self._wait_ready(timeout)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Kill the daemons and all that they started; nothing stays mounted, no cgroup is left."""
        if "master" in self.daemons and self.pid("master"):
            self.kill("master")
        for name in self.agents:
            self.kill_host(name)
        cgroups.release(self._cgroups())
        self.unmount()
        for child in self._children:
            child.wait(10)
        self._children.clear()

    def clean(self) -> None:
        """Empty the directory of a cluster that is not running."""
        self.unmount()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.daemons = {}

    def unmount(self) -> None:
        for point in machine.mounts_below(self.directory):
            run.attempt(["umount", "--lazy", point])

    def _wait_ready(self, seconds: float) -> None:
        end, why = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            for name in self.daemons:
                if not self.pid(name):
                    last = "\n".join(self.log(name).splitlines()[-15:])
                    raise MesosError(f"{name} ended; the end of its log is\n{last}")
            try:
                known = calls.get(self.master, "/slaves")["slaves"]
                if sum(1 for slave in known if slave["active"]) >= len(self.agents):
                    return
                why = f"{len(known)} of {len(self.agents)} agents registered"
            except (OSError, ValueError, http.client.HTTPException) as error:
                why = str(error)
            time.sleep(0.05)
        raise MesosError(f"not ready after {seconds:g} s: {why}")

    # ---- one daemon ----

    def pid(self, name: str) -> int | None:
        """Of a daemon that runs."""
        try:
            pid, started = (self.directory / "pids" / name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        process = processes.stat(int(pid))
        same = process is not None and process.started == started
        return int(pid) if same and processes.alive(int(pid)) else None

    def start(self, name: str, *, rebooted: bool = False, new_id: bool = False) -> None:
        """``rebooted``: with a new boot id, no cgroups. ``new_id``: as another agent with the same disks."""
        daemon = self.daemon(name)
        if self.pid(name):
            raise MesosError(f"{name} is already running")
        if rebooted:
            boot_id = Path(self.agent(name).home, "work", "meta", "boot_id")
            boot_id.write_text(f"00000000-0000-0000-0000-{time.time_ns() // 1000 % 16**12:012x}")
            cgroups.release(self._cgroups(name))
            cgroups.claim(self._cgroups(name))
        if new_id:
            Path(self.agent(name).home, "work", "meta", "slaves", "latest").unlink(missing_ok=True)
        with (self.directory / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                daemon.argv,
                env=daemon.env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(process)
        found = processes.stat(process.pid)
        (self.directory / "pids" / name).write_text(f"{process.pid} {found.started if found else '?'}")

    def signal(self, name: str, number: signal.Signals) -> None:
        """To the daemon alone; tasks of an agent keep running."""
        if not (pid := self.pid(name)):
            raise MesosError(f"{name} is not running")
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        self.signal(name, signal.SIGKILL)
        self._wait_dead(name)

    def kill_host(self, name: str) -> None:
        """Kill -9 an agent with every process of its containers: a host that loses power."""
        if pid := self.pid(name):
            os.kill(pid, signal.SIGSTOP)  # it must not see its containers die
        for _ in range(20):  # what was forked meanwhile, too
            victims = {each for each in self._of_host(name) if processes.alive(each)}
            if not victims:
                break
            processes.send(victims, signal.SIGKILL)
            time.sleep(0.02)
        self._wait_dead(name)

    def reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _wait_dead(self, name: str) -> None:
        end = time.monotonic() + 10
        while self.pid(name):
            if time.monotonic() > end:
                raise MesosError(f"{name} does not die")
            time.sleep(0.01)
        self.reap()

    def _of_host(self, name: str) -> set[int]:
        daemon, pid = self.agent(name), self.pid(name)
        found = {pid} if pid else set()
        marks = tuple(f"{key}={daemon.home}/".encode() for key in ("MESOS_DIRECTORY", "MESOS_SANDBOX"))
        for each in processes.table():
            if any(variable.startswith(marks) for variable in processes.environment(each)):
                found.add(each)
        for path in (path for cgroup in self._cgroups(name) for path in cgroups.find(cgroup)):
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (path / "cgroup.procs").read_text().split()}
        return processes.family(found)

    def _cgroups(self, *names: str) -> list[str]:
        found = (self.agent(name).cgroup for name in names or self.agents)
        return [cgroup for cgroup in found if cgroup]

    def leftovers(self) -> list[str]:
        """What is there of the agents, and must not be once all is down: processes and cgroups."""
        pids = {str(pid) for name in self.agents for pid in self._of_host(name) if processes.alive(pid)}
        return [*sorted(pids), *(str(path) for cgroup in self._cgroups() for path in cgroups.find(cgroup))]

    # ---- what can be seen ----

    def agent_id(self, name: str) -> str:
        """By which the master knows an agent."""
        address = self.agent(name).address
        for slave in calls.get(self.master, "/slaves")["slaves"]:
            if slave["pid"].endswith("@" + address):
                return str(slave["id"])
        raise MesosError(f"{name} is not registered")

    def agent_at(self, hostname: str) -> str:
        """The name of the agent that an offer comes from."""
        return next(name for name in self.agents if self.agent(name).address.startswith(f"{hostname}:"))

    def api(self, kind: str, body: dict[str, Any] | None = None, target: str = "master") -> tuple[int, str]:
        """One call of the operator API."""
        call: dict[str, Any] = {"type": kind} if body is None else {"type": kind, kind.lower(): body}
        return calls.operator(self.daemon(target).address, call)

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")

    def sandbox(self, task: str, name: str = "stdout") -> str:
        """A file that a task left behind."""
        pattern = f"slaves/*/frameworks/*/executors/{task}/runs/*/{name}"
        works = [Path(self.agent(each).home, "work") for each in self.agents]
        found = [path for work in works for path in work.glob(pattern) if path.parent.name != "latest"]
        return max(found, key=lambda path: path.stat().st_mtime).read_text()


def _mount_disks(daemon: Daemon) -> None:
    for number, disk in enumerate(daemon.disks, 1):
        root = disk_root(daemon.home, number)
        root.mkdir(parents=True, exist_ok=True)
        kind, _, size = disk.rpartition(":")
        if not root.is_mount():
            if kind == "tmpfs":
                run.output(["mount", "-t", "tmpfs", "-o", f"size={size}m", "moorage-mesos", str(root)])
            else:
                run.output(["mount", "--bind", str(root), str(root)])
