"""`moorage automount`: a directory that shows every volume, each mounted when somebody goes there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

import click

from moorage.cli.options import Seconds, cluster_of, connection_options, run_or_exit


@click.command()
@click.argument("path", type=click.Path())
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@click.option(
    "--idle", type=Seconds(min=1), default=300.0, show_default=True, help="Unmounted after so many seconds."
)
@click.option(
    "--timeout", type=Seconds(min=1), default=30.0, show_default=True, help="Seconds that an access may wait."
)
@click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
@connection_options
def automount(
    path: str,
    volumes: tuple[str, ...],
    idle: float,
    timeout: float,
    state_dir: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Show every volume of the cluster as PATH/NAME until SIGTERM or SIGINT.

    A volume is mounted when somebody goes into its directory, and unmounted when nobody has used it for a
    while. VOLUME: a moorage:// URI, for a volume that needs options, such as moorage:///logs?mode=ro or
    moorage:///new?size=1G, which is made at the first access. What is in use at the end stays mounted, and
    the next start goes on with it.
    """

    root = os.path.realpath(path)

    async def run() -> None:
        import moorage
        from moorage.gateway.automount.namespace import Namespace
        from moorage.gateway.mount.record import StateDirectory, state_directory
        from moorage.service import log

        log.configure("INFO")
        _lead_a_process_group()
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)

        def ready(adopted: list[str]) -> None:
            if as_json:
                click.echo(json.dumps({"event": "ready", "path": root, "mounted": adopted}))
            else:
                click.echo(f"the volumes are at {root}, {len(adopted)} mounted; stop with Ctrl-C")

        named = cluster_of(cluster, registry, volumes)
        async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
            namespace = Namespace(
                connected,
                StateDirectory(state_directory(state_dir)),
                root,
                chosen=list(volumes),
                idle=idle,
                timeout=timeout,
            )
            left = await namespace.run(until=told, ready=ready)
        if as_json:
            click.echo(json.dumps({"event": "ended", "mounted": left}))
        elif left:
            click.echo(f"in use, and mounted still: {', '.join(left)}")

    run_or_exit(run, as_json=as_json)


def _lead_a_process_group() -> None:
    """The kernel tells the service from those who go to a volume by the process group: nobody else may be in
    it. Whoever has the terminal (sudo, a script) gives it away, so that Ctrl-C still comes here."""
    if os.getpgrp() == os.getpid():
        return
    former = os.getpgrp()
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):  # there is no terminal
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        if os.tcgetpgrp(terminal) == former:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(terminal, os.getpid())
        os.close(terminal)
