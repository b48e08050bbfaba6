"""A `moorage s3` process of our own, for as long as a command needs one.

Owns the process and its log. It is in a session of its own: Ctrl-C at our terminal is for us, who still need
it to clean up; it dies with us all the same.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from moorage.cli.local_cluster import die_with_parent
from moorage.wire.errors import Invalid, Unavailable

READY_S = 30.0
STOP_S = 10.0
LOG_END = 500


@dataclass(frozen=True)
class LocalGateway:
    url: str
    pid: int


@asynccontextmanager
async def local_gateway(*options: str) -> AsyncIterator[LocalGateway]:
    """It listens on a free port of 127.0.0.1; ``options``: of `moorage s3`, which finds its cluster by them
    and by our environment. Raises Invalid without its extra, Unavailable when it does not start."""
    try:
        import awscrt  # noqa: F401
    except ImportError as error:
        raise Invalid(f"{error}: install moorage[s3], or measure with --by library") from error
    with tempfile.TemporaryDirectory(prefix="moorage-s3-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "moorage.cli.main", "s3", "--listen", "127.0.0.1:0", "--json"),
                *options,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            yield LocalGateway(await _ready(process, log), process.pid)
        finally:
            await _stop(process)


async def _ready(process: asyncio.subprocess.Process, log: Path) -> str:
    assert process.stdout is not None
    line = b""
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
    except TimeoutError:
        pass
    if not line:
        raise Unavailable(f"`moorage s3` did not start within {READY_S:.0f} s: {_end_of(log)}")
    return str(json.loads(line)["url"])


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_END:].strip() or "it said nothing"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
