"""Client processes that the demo, the drills and the tests lead: a volume over NBD, a verifying load.

They are processes of their own, so that one can be frozen while another takes its volume over, and so that
nothing their leader does disturbs what they measure. None outlives its leader, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Self

from moorage.cli.local_cluster import die_with_parent
from moorage.wire.errors import Unavailable

ANSWER_TIMEOUT_S = 60.0


class ClientProcess:
    """`moorage ARGUMENTS` that answers with JSON lines; ends with the ``async with`` block, frozen or not."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], log: Path, prefix: tuple[str, ...] = ()
    ) -> None:
        self._arguments = arguments
        self._prefix = prefix  # of the command; it must end in an exec, such as nsenter
        self._environment = {**os.environ, **environment}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self.ready: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._prefix,
                sys.executable,
                "-m",
                "moorage.cli.main",
                *self._arguments,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,
                start_new_session=True,  # Ctrl-C is for the leader: it ends them in order
            )
        try:
            self.ready = await self.answer()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        self._process.stdin.close()
        assert self._process.stdout is not None
        await self._process.stdout.read()

    async def ask(self, command: str) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        await self._process.stdin.drain()
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        what = f"moorage {' '.join(self._arguments[:3])}"
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Unavailable(f"{what}: no answer in {ANSWER_TIMEOUT_S:.0f} s; see {self._log}") from None
        if not line:
            code = await self._process.wait()
            said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(f"{what} ended with exit code {code}: {' '.join(said)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: int) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self._process.pid, number)


async def run_program(*command: str) -> str:
    """Run a program that is not ours; its output, or an error with what it said."""
    # Who is not root has no sbin in the path, where Debian keeps the tools of file systems.
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise Unavailable(f"{command[0]} is not installed: `make setup` as root installs it")
    process = await asyncio.create_subprocess_exec(
        program, *command[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    text = said.decode(errors="replace")
    if process.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed with {process.returncode}: {text.strip()[-500:]}")
    return text
