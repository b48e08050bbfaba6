"""A cluster of host processes on this machine: what `moorage up`, the demo and the fault tests stand on.

Owns the processes (each dies with its parent, also when frozen), their directories and ports. The services
get everything through their environment, as docs/launch.md describes: nothing here is known to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from moorage.service.exits import Exit
from moorage.service.identity import replace_durably
from moorage.wire.errors import CannotBind, Corrupt, Denied, DeviceFailed, Invalid, MoorageError, Unavailable
from moorage.wire.secret import ClusterSecret

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
_PR_SET_PDEATHSIG = 1
_BY_EXIT: dict[int, type[MoorageError]] = {
    Exit.INTERNAL: MoorageError,
    Exit.CONFIGURATION: Invalid,
    Exit.REFUSED: Denied,
    Exit.CORRUPT: Corrupt,
    Exit.CANNOT_BIND: CannotBind,
    Exit.DEVICE_FAILED: DeviceFailed,
}


class LocalHost:
    """One `moorage host` process, its directory and its addresses. Restarting it is starting it again."""

    def __init__(
        self, name: str, directory: Path, environment: dict[str, str], prefix: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.directory = directory
        self.environment = environment
        self.prefix = prefix  # of the command; it must end in an exec, such as nsenter
        self.ready: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Unavailable(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    async def launch(self) -> None:
        """Start the process; :meth:`wait_ready` tells when it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.prefix,
                sys.executable,
                "-m",
                "moorage.cli.main",
                "host",
                env={**_inherited(), **self.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    async def wait_ready(self, timeout: float | None = READY_TIMEOUT_S) -> None:
        """Return when the ready line was read; raises :class:`Unavailable` with the end of the log. ``None``:
        however long it waits for others."""
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Unavailable(f"{self.name} is not ready after {timeout:.0f} s; {self._log_end()}") from None
        if not line:
            code = await self._process.wait()
            kind = _BY_EXIT.get(code, Unavailable)  # the caller ends with the same code
            raise kind(f"{self.name} ended with exit code {code}; {self._log_end()}")
        self.ready = json.loads(line)

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-5:] if self.log.exists() else []
        return f"see {self.log}: " + (" | ".join(lines) if lines else "it is empty")

    def signal(self, number: int) -> None:
        if self.running:
            self._send(number)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.signal(signal.SIGKILL)
        await self.wait()

    def freeze(self) -> None:
        """SIGSTOP: silent, its sockets stay open, as a machine that lost its power or its cable."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    async def wait(self) -> int:
        if self._process is None:
            return 0
        code = await self._process.wait()
        # The pipe's transport ends with the process; reading to the end closes it for good.
        if self._process.stdout is not None:
            await self._process.stdout.read()
        return code

    async def stop(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, then SIGKILL when that takes too long; returns the exit code."""
        self.thaw()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                return await self.wait()
        except TimeoutError:
            await self.kill()
            return -signal.SIGKILL


class LocalCluster:
    """Hosts ``h1`` .. ``hN`` below ``directory``; one that holds a cluster already is started as it is."""

    def __init__(self, directory: Path, *, hosts: int = 3, options: dict[str, str] | None = None) -> None:
        self.directory = directory.absolute()
        self.secret_file = self.directory / "secret"
        plan = self._load_or_create(hosts)
        self.registry = ",".join(f"127.0.0.1:{port}" for port, _ in plan.values())
        peers = ",".join(f"{name}=127.0.0.1:{port}" for name, (port, _) in plan.items())
        self.hosts = [
            LocalHost(
                name,
                self.directory / name,
                {
                    "MOORAGE_NAME": name,
                    "MOORAGE_DATA_DIR": str(self.directory / name / "data"),
                    "MOORAGE_PORT": str(port),
                    "MOORAGE_HTTP_PORT": str(http),
                    "MOORAGE_PEERS": peers,
                    "MOORAGE_SECRET_FILE": str(self.secret_file),
                    **(options or {}),
                },
            )
            for name, (port, http) in plan.items()
        ]

    def _load_or_create(self, hosts: int) -> dict[str, tuple[int, int]]:
        """The ports of each host. The plan is written last: without one no host was ever started."""
        plan_file = self.directory / "cluster.json"
        try:
            if plan_file.exists():
                return _parse_plan(plan_file)
            self.directory.mkdir(parents=True, exist_ok=True)
            self._ensure_secret()
            ports = _free_ports(2 * hosts)
            plan = {f"h{i + 1}": (ports[2 * i], ports[2 * i + 1]) for i in range(hosts)}
            replace_durably(plan_file, json.dumps(plan).encode(), mode=0o644)
        except OSError as error:
            raise Invalid(
                f"cannot keep a cluster in {self.directory}: {error.strerror}: choose another one with --data"
            ) from None
        return plan

    def _ensure_secret(self) -> None:
        """The one of a start that did not come to its plan is as good as a new one."""
        if self.secret_file.exists():
            ClusterSecret.load(self.secret_file)
            return
        beside = self.secret_file.with_name("secret.new")
        beside.unlink(missing_ok=True)
        ClusterSecret.create(beside)
        beside.replace(self.secret_file)

    async def start(self) -> None:
        """Launch all hosts at once and wait until each is ready; nothing is left running when one fails."""
        try:
            for host in self.hosts:
                await host.launch()
            async with asyncio.TaskGroup() as group:
                for host in self.hosts:
                    group.create_task(host.wait_ready())
        except BaseException as error:
            await self.kill()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def kill(self) -> None:
        """SIGKILL to all of them at once: a power failure that spares the page cache."""
        for host in self.hosts:
            host.signal(signal.SIGKILL)
        for host in self.hosts:
            await host.wait()

    async def stop(self) -> None:
        await asyncio.gather(*(host.stop() for host in self.hosts))

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, name: str) -> LocalHost:
        return next(host for host in self.hosts if host.name == name)


def _parse_plan(path: Path) -> dict[str, tuple[int, int]]:
    try:
        plan = {
            str(name): (int(port), int(http)) for name, (port, http) in json.loads(path.read_bytes()).items()
        }
        if plan and all(0 < port <= 65535 for ports in plan.values() for port in ports):
            return plan
    except (ValueError, TypeError, AttributeError):
        pass
    raise Corrupt(
        f"{path} is damaged: restore this file, or start another cluster with --data; it is one line"
        ' of JSON, {"h1": [PORT, HTTP_PORT], ...}'
    )


def _inherited() -> dict[str, str]:
    """Our environment without Moorage's own variables: a host gets what its plan says, nothing else."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MOORAGE_")}


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until all are drawn, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def die_with_parent() -> None:
    """For ``preexec_fn``: SIGKILL to this child when its parent ends, also when it is stopped."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
