"""A CSI driver as a process, and a client of it: what an orchestrator is to it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from moorage.gateway.csi import csi_pb2 as pb
from moorage.gateway.mount import system, unmounting
from moorage.gateway.mount.record import Place, StateDirectory

CALL_TIMEOUT_S = 90.0  # longer than any call may take
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
METHODS = {
    method.name: (f"/csi.v1.{service}/{method.name}", method)
    for service, descriptor in pb.DESCRIPTOR.services_by_name.items()
    for method in descriptor.methods
}


def capability(
    mode: str = "SINGLE_NODE_WRITER", *, fs: str = "", flags: tuple[str, ...] = (), block: bool = False
) -> Any:
    access = {"block": {}} if block else {"mount": {"fs_type": fs, "mount_flags": flags}}
    return pb.VolumeCapability(access_mode={"mode": mode}, **access)


class Client:
    """Calls by name; an answer is (status code, message or response)."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.aio.insecure_channel(endpoint)

    async def call(self, method_name: str, /, **fields: Any) -> tuple[str, Any]:
        path, method = METHODS[method_name]
        request = GetMessageClass(method.input_type)(**fields)
        send = self._channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            return "OK", await send(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()

    async def raw(self, path: str) -> tuple[str, str]:
        """A call that the driver's own description does not have."""
        send = self._channel.unary_unary(path)
        try:
            return "OK", str(await send(b"", timeout=CALL_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""

    async def ok(self, name: str, /, **fields: Any) -> Any:
        code, answer = await self.call(name, **fields)
        assert code == "OK", f"{name}: {code}: {answer}"
        return answer

    async def close(self) -> None:
        await self._channel.close()


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """A mount namespace for this thread and the processes that it starts. Containers that others start on
    this machine meanwhile have no copies of what is mounted in here, and keep nothing of it from ending; nor
    is a copy kept of what others have mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for entry in reversed(system.mount_table()):
            if entry.source.startswith("/dev/loop") or entry.type == "fuse.moorage":
                subprocess.run(["umount", "--lazy", entry.target], check=False)
        yield
        # Threads that were started meanwhile share this one's place in the file system: no way back with it.
        if libc.unshare(_CLONE_FS) or libc.setns(before, _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)


class Driver:
    """`moorage csi` for one node: its own state directory and socket."""

    def __init__(self, directory: Path, environment: dict[str, str], node: str = "n1") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.node = node
        self.state = directory / "state"
        self.socket = directory / "csi.sock"
        self.endpoint = f"unix://{self.socket}"
        self.log = directory / "csi.log"
        self.environment = {
            **environment,
            "MOORAGE_STATE_DIR": str(self.state),
            "CSI_ENDPOINT": self.endpoint,
        }
        self._process: asyncio.subprocess.Process | None = None
        self.client: Client

    def command(self, *arguments: str) -> tuple[str, ...]:
        program = (sys.executable, "-m", "moorage.cli.main", "csi")
        return (*program, "--json", "--node-id", self.node, *arguments)

    async def start(self, *arguments: str) -> Driver:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(*arguments),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            line = await self._process.stdout.readline()
        assert line and json.loads(line)["event"] == "ready", self.log.read_text()
        self.client = Client(self.endpoint)
        return self

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None and self._process.stdout is not None
        await self.client.close()
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(60):
            await self._process.stdout.read()
            return await self._process.wait()

    def mounts(self) -> list[Place]:
        return StateDirectory(self.state).places()

    async def close(self) -> None:
        """And nothing of it is left."""
        if self._process is not None and self._process.returncode is None:
            await self.stop()
        for place in self.mounts():
            await unmounting.unmount(place, force=True)

    async def kill_host(self) -> None:
        """The driver and everything that keeps its mounts, as if the host had lost its power."""
        for path in sorted(self.state.glob("[0-9a-f]*/record.json")):
            place = path.parent
            pids = [
                int((place / "keeper.lock").read_text()),
                json.loads((place / "status.json").read_text())["pid"],
            ]
            for pid in pids:
                assert str(place).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
                os.kill(pid, signal.SIGKILL)
        await self.stop(signal.SIGKILL)
