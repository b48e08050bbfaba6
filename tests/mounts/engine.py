"""A Docker engine of its own for a test: data, sockets, processes and cgroups apart from any other one's.

No network is made, and no image is fetched: the one that containers run is a static busybox.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

from moorage.cli.local_cluster import die_with_parent
from moorage.gateway.mount import system

from .conftest import run_program

IMAGE = "busybox"
PROGRAMS = ("busybox", "docker", "dockerd")
START_S = 60.0
TIMEOUT_S = 120.0
_NETWORK = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")


class Engine:
    """``lose`` is what a power failure does to it and its containers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._socket = f"unix://{directory}/d.sock"
        self._cgroup = f"/moorage-{directory.parent.name}"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "x/containerd/containerd.pid").unlink(missing_ok=True)  # of one that was killed
        self._process = self._spawn()
        async with asyncio.timeout(START_S):
            while (await self._docker("info"))[0] != 0:
                assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
                await asyncio.sleep(0.1)

    def _spawn(self) -> subprocess.Popen[bytes]:
        program, directory = shutil.which("dockerd", path=system.PATH), self.directory
        assert program is not None
        paths = ("--data-root", f"{directory}/data", "--exec-root", f"{directory}/x")
        more = ("--pidfile", f"{directory}/pid", "--storage-driver=vfs", "--cgroup-parent", self._cgroup)
        with (directory / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *_NETWORK, *paths, *more, "-H", self._socket],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
                env={**os.environ, "PATH": system.PATH},
            )

    async def load_image(self) -> None:
        busybox = shutil.which("busybox", path=system.PATH)
        assert busybox is not None
        archive = self.directory / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(os.path.realpath(busybox), "bin/busybox")
            for name in ("cat", "dd", "ls", "sh", "sleep", "sync"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link, io.BytesIO())
        await self.docker("import", str(archive), IMAGE)

    async def docker(self, *arguments: str) -> str:
        code, said = await self._docker(*arguments)
        assert code == 0, said
        return said

    async def refused(self, *arguments: str) -> str:
        code, said = await self._docker(*arguments)
        assert code != 0, said
        return said

    async def run(self, volume: str, script: str, *options: str) -> str:
        """A container with the volume at /data; its output."""
        mounted = ("--rm", "--network", "none", "-v", f"{volume}:/data", *options)
        return await self.docker("run", *mounted, IMAGE, "sh", "-c", script)

    async def _docker(self, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            "docker",
            *("-H", self._socket, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode().strip()

    async def kill(self) -> None:
        """The engine alone; its containers run on."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def lose(self) -> None:
        """The engine, its containerd, their shims and all containers, at once."""
        for _ in range(20):  # what was forked meanwhile, too
            found = self._processes()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process is not None:
                self._process.poll()
            if not found:
                return
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self.lose()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait, 10)
        for entry in reversed(system.mount_table()):
            if Path(entry.target).is_relative_to(self.directory):
                await run_program("umount", "--lazy", entry.target)
        for path in self._cgroups():
            path.rmdir()
        shutil.rmtree(self.directory)

    def _processes(self) -> set[int]:
        """By their command line, which names the directory, or by their cgroup."""
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{self.directory}/".encode() in (path / "cmdline").read_bytes() and self._is_engine(path):
                    found.add(int(path.name))
        for cgroup in self._cgroups():
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (cgroup / "cgroup.procs").read_text().split()}
        return {pid for pid in found if _runs(pid)}

    @staticmethod
    def _is_engine(path: Path) -> bool:
        return (path / "comm").read_text().startswith(("dockerd", "containerd", "runc", "docker-init"))

    def _cgroups(self) -> list[Path]:
        """The deepest first."""
        hierarchies = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*"))
        roots = [Path(f"{hierarchy}{self._cgroup}") for hierarchy in hierarchies]
        found = [path for root in roots if root.is_dir() for path in (root, *root.rglob("*/"))]
        return sorted(found, key=lambda path: -len(path.parts))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
