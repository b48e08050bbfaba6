"""`moorage dvdi run`: a task with the volumes that its DVDI variables name, without Docker or an isolator.

Owns the life around the task: mount, tell it the paths, start it, pass signals on, unmount. A task never
outlives this command, nor its mounts a task that has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage.cli.options import run_or_exit
from moorage.wire.errors import DeadlineExceeded, Invalid

if TYPE_CHECKING:
    from moorage.gateway.docker.dvdi import TaskVolume

MOUNT_S = 100.0
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_task(command: tuple[str, ...]) -> None:
    """Run COMMAND with the volumes that the environment names, and unmount them when it ends.

    DVDI_VOLUME_NAME, DVDI_VOLUME_OPTS (KEY=VALUE,...) and DVDI_VOLUME_CONTAINERPATH describe a volume; the
    same names with 1 to 9 behind them describe more. COMMAND finds the paths in DVDI_VOLUME_PATH, or with
    the same digit. Ends with the exit code of COMMAND, or with 128 and its signal.
    """
    codes: list[int] = []

    async def run() -> None:
        from moorage.gateway.docker.dvdi import volumes_of

        volumes = volumes_of(os.environ)
        if not volumes:
            raise Invalid("no volume is named: set DVDI_VOLUME_NAME, or DVDI_VOLUME_NAME1 to ..9")
        async with contextlib.AsyncExitStack() as stack:
            paths = {}
            for volume in volumes:
                paths[volume.variable] = await stack.enter_async_context(_mounted(volume))
            codes.append(await _run(command, paths))

    run_or_exit(run, as_json=False)
    raise SystemExit(codes[0])


@contextlib.asynccontextmanager
async def _mounted(volume: TaskVolume) -> AsyncIterator[str]:
    from moorage.cli.dvdcli import host_volumes
    from moorage.gateway.docker import users

    name, user = volume.address.name, users.of_process(os.getpid())
    async with host_volumes(volume.address.cluster) as host:
        try:
            async with asyncio.timeout(MOUNT_S):
                await host.put_right()
                path = await host.mount(volume.address, user, f"moorage dvdi (pid {os.getpid()})")
        except TimeoutError:
            raise DeadlineExceeded(f"volume {name!r} is not mounted within {MOUNT_S:g} s") from None
        try:
            with _shown_at(volume.container_path, path):
                yield path
        finally:
            await host.unmount(name, user)


@contextlib.contextmanager
def _shown_at(wanted: str, path: str) -> Iterator[None]:
    """A link where the task wants to see it; nothing that is there gives way to it."""
    if not wanted:
        yield
        return
    link = Path(wanted).absolute()
    if link.is_symlink() and os.readlink(link) == path:
        link.unlink()  # of a task that was killed
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    except OSError as error:
        raise Invalid(f"DVDI_VOLUME_CONTAINERPATH {wanted}: {error.strerror}") from None
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


async def _run(command: tuple[str, ...], paths: dict[str, str]) -> int:
    from moorage.cli.local_cluster import die_with_parent

    try:
        task = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **paths}, preexec_fn=die_with_parent
        )
    except OSError as error:
        raise Invalid(f"cannot run {command[0]}: {error.strerror}") from None
    loop = asyncio.get_running_loop()
    for number in PASSED_ON:
        loop.add_signal_handler(number, _send, task, number)
    code = await task.wait()
    return code if code >= 0 else 128 - code


def _send(task: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        task.send_signal(number)
