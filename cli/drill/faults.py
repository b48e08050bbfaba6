"""Faults of one host: how each is made, and how it is undone.

Owns the signals, rules and commands of a drill. Must never signal a process that is not provably the host
meant, nor make a fault that does not end by itself before its guard is armed: a process that undoes it also
when the drill is killed (:mod:`moorage.cli.drill.guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from moorage.cli.drill import guard
from moorage.service.process import open_process
from moorage.wire.errors import Invalid, Unavailable

T = TypeVar("T")
COMMAND_S = 60.0
RESCAN_S = 0.2  # a connection that the host makes meanwhile is cut this soon


@dataclass(frozen=True)
class Victim:
    """The host that a fault is for: its device, and what that says of its process and directory."""

    host: str
    device: str
    address: str
    said: dict[str, Any]

    @property
    def pid(self) -> int:
        return int(self.said["process"]["pid"])

    def open(self) -> int:
        """A pidfd; Invalid that says why this drill cannot signal the host."""
        try:
            opened = open_process(self.said.get("process", {}))
            try:
                signal.pidfd_send_signal(opened, 0)
            except OSError as error:
                os.close(opened)
                raise Invalid(f"pid {self.pid}: {error.strerror}") from None
            return opened
        except Invalid as error:
            raise Invalid(
                f"host {self.host} cannot be reached with a signal: {error}; say with --inject and --undo"
                " how to make the fault there, or use --manual"
            ) from None


class Guard:
    """Undoes with :meth:`undo`, at the latest at the end of the ``async with`` block, or of this process."""

    def __init__(
        self, *, thaw: int | None = None, command: str = "", env: dict[str, str] | None = None
    ) -> None:
        self._todo = {"thaw": thaw, "command": command}
        self._fds = () if thaw is None else (thaw,)
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-IS",  # nothing but the standard library, whatever stands beside it
            str(Path(guard.__file__)),
            json.dumps(self._todo),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._env,
            pass_fds=self._fds,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"armed\n":
            raise Unavailable("the guard of the fault did not start: nothing was done")
        return self

    async def undo(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # the sign
        _, said = await to_its_end(process.communicate())
        if process.returncode:
            text = said.decode(errors="replace").strip()[-300:]
            raise Unavailable(f"the fault could not be undone: {self._todo['command']}: {text}")

    async def __aexit__(self, *_: object) -> None:
        await self.undo()


class Fault:
    """One fault of one host. ``async with fault:`` makes sure that it is undone; ``says`` is for people."""

    word: str  # for the name of a phase
    says: str
    restarts = False  # the host's process ends: it is another one afterwards

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def inject(self) -> None:
        raise NotImplementedError

    async def hold(self, seconds: float) -> None:
        """Keep it up for so long."""
        await asyncio.sleep(seconds)

    async def undo(self) -> None:
        await self._stack.aclose()


class Kill(Fault):
    """SIGKILL. What runs the host starts it again."""

    word = "killed"
    restarts = True

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        os.close(victim.open())
        self.says = (
            f"SIGKILL to host {victim.host} (pid {victim.pid}); what runs it (moorage up, systemd, Mesos)"
            " must start it again"
        )

    async def inject(self) -> None:
        with self.victim_fd() as opened:
            signal.pidfd_send_signal(opened, signal.SIGKILL)

    @contextlib.contextmanager
    def victim_fd(self) -> Iterator[int]:
        opened = self.victim.open()
        try:
            yield opened
        finally:
            os.close(opened)


class Freeze(Fault):
    """SIGSTOP, then SIGCONT: silent, its sockets stay open, as a machine that lost its power."""

    word = "silent"

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        os.close(victim.open())
        self.says = f"SIGSTOP to host {victim.host} (pid {victim.pid}), and SIGCONT later"

    async def inject(self) -> None:
        opened = self.victim.open()
        self._stack.callback(os.close, opened)
        await self._stack.enter_async_context(Guard(thaw=opened))
        signal.pidfd_send_signal(opened, signal.SIGSTOP)


class Partition(Fault):
    """DROP of all TCP of the host's process, in and out, by iptables in a chain of its own. Needs root."""

    word = "cut off"

    def __init__(self, victim: Victim) -> None:
        super().__init__(victim)
        os.close(victim.open())
        other = "say with --inject and --undo how to cut it off, or use --manual"
        if os.geteuid() != 0:
            raise Invalid(f"host {victim.host} can be cut off by root only (iptables): {other}")
        if tool("iptables") is None:
            raise Invalid(f"host {victim.host} cannot be cut off: iptables is not installed; {other}")
        self._chain = f"moorage-drill-{secrets.token_hex(4)}"
        self._cut: set[tuple[int, str, int]] = set()
        self.says = (
            f"iptables drops all that host {victim.host} (pid {victim.pid}) sends and receives over TCP,"
            " and lets it through again later"
        )

    async def inject(self) -> None:
        ends = tcp_ends(self.victim.pid)
        os.close(self.victim.open())  # it is still the one whose sockets were read
        if not ends:
            raise Invalid(f"the sockets of host {self.victim.host} (pid {self.victim.pid}) cannot be seen")
        await self._stack.enter_async_context(Guard(command=undo_rules(self._chain)))
        await self._cut_off(ends)

    async def _cut_off(self, ends: set[tuple[int, str, int]]) -> None:
        """Rules for what is new. A family's chain is filled before anything leads to it."""
        for family in sorted({family for family, _, _ in ends - self._cut}):
            program = f"{tool(_TOOLS[family])} -w 5"
            first = family not in {known for known, _, _ in self._cut}
            if first:
                await run(f"{program} -N {self._chain}")
            for end in sorted(end for end in ends - self._cut if end[0] == family):
                await self._drop(program, end)
            for hook in ("INPUT", "OUTPUT") if first else ():
                await run(f"{program} -I {hook} 1 -j {self._chain}")

    async def _drop(self, program: str, end: tuple[int, str, int]) -> None:
        _, address, port = end
        source, target = (f"-s {address} ", f"-d {address} ") if address else ("", "")
        for match in (f"{source}-p tcp --sport {port}", f"{target}-p tcp --dport {port}"):
            await run(f"{program} -A {self._chain} {match} -j DROP")
        self._cut.add(end)

    async def hold(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._cut_off(tcp_ends(self.victim.pid))
            await asyncio.sleep(RESCAN_S)


class Commands(Fault):
    """What the user says: a shell command that makes the fault, and one that undoes it."""

    word = "hit"

    def __init__(self, victim: Victim, inject: str, undo: str, restarts: bool) -> None:
        super().__init__(victim)
        self._inject, self._undo = inject, undo
        self.restarts = restarts
        self._env = {
            "DRILL_HOST": victim.host,
            "DRILL_ADDRESS": victim.address,
            "DRILL_DEVICE": victim.device,
        }
        then = f", then `{undo}`" if undo else ""
        self.says = f"`{inject}`{then} for host {victim.host}"

    async def inject(self) -> None:
        await self._stack.enter_async_context(Guard(command=self._undo, env=self._env))
        await run(self._inject, self._env)


class ByHand(Fault):
    """A person makes the fault; the drill watches."""

    word = "hit by hand"

    def __init__(self, victim: Victim, restarts: bool) -> None:
        super().__init__(victim)
        self.restarts = restarts
        self.says = f"now make host {victim.host} ({victim.address}) fail: power it off, or pull its cable"

    async def inject(self) -> None:
        """Somebody is at it."""


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await what must not be left half done: a cancellation is seen to afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def run(command: str, env: dict[str, str] | None = None) -> None:
    """A shell command in a session of its own, so that Ctrl-C is not for it. Unavailable when it fails."""
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            said, _ = await process.communicate()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise Unavailable(f"{command} is not done after {COMMAND_S:.0f} s") from None
        raise
    if process.returncode:
        text = said.decode(errors="replace").strip()[-300:]
        raise Unavailable(f"{command} failed with exit code {process.returncode}: {text}")


_TOOLS = {4: "iptables", 6: "ip6tables"}


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def undo_rules(chain: str) -> str:
    """A shell script that removes the chain and what leads to it, however much of them is there, and fails
    when something is left."""
    lines = []
    for program in filter(None, (tool(name) for name in _TOOLS.values())):
        for step in (f"-D INPUT -j {chain}", f"-D OUTPUT -j {chain}", f"-F {chain}", f"-X {chain}"):
            lines.append(f"{program} -w 5 {step} 2>/dev/null")
        lines.append(f"{program} -w 5 -S | grep {chain} >&2 && exit 1")
    return "\n".join([*lines, "exit 0"])


def tcp_ends(pid: int) -> set[tuple[int, str, int]]:
    """(4 or 6, address, port) of each TCP socket of a process on this machine; the address is "" when it
    listens on every one."""
    inodes = set()
    directory = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            with contextlib.suppress(OSError):
                target = os.readlink(directory / entry)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    ends: set[tuple[int, str, int]] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    ends.add(parse_end(fields[1]))
    return ends


def parse_end(text: str) -> tuple[int, str, int]:
    """``0100007F:1F90`` of /proc/net/tcp: words of 4 bytes in the machine's order, then the port."""
    words, _, port = text.partition(":")
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version, "" if address.is_unspecified else str(address), int(port, 16)
