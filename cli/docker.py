"""`moorage docker`: the volume driver of Docker engines on this host, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage.cli.options import connection_options, run_or_exit

if TYPE_CHECKING:
    from moorage.gateway.docker.service import DockerService

SOCKET = "/run/docker/plugins/moorage.sock"


@click.command()
@click.option(
    "--socket", default=SOCKET, show_default=True, help="Where to serve; there an engine finds it as it is."
)
@click.option(
    "--discovery",
    help="File to name the socket in, for one elsewhere: such as /etc/docker/plugins/moorage.spec, or .json. "
    "Its name is the driver's.",
)
@click.option(
    "--mount-root",
    help="Where volumes are mounted [env: MOORAGE_MOUNT_ROOT; default: /run/moorage/volumes].",
)
@click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
@connection_options
def docker(
    socket: str,
    discovery: str | None,
    mount_root: str | None,
    state_dir: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Serve the volumes of the cluster to Docker engines, as their volume driver "moorage".

    Serves until SIGTERM or SIGINT. What is mounted stays mounted: containers go on, and the next start knows
    of them.
    """

    path = Path(socket).absolute()
    file = Path(discovery).absolute() if discovery else None

    async def run() -> None:
        import moorage
        from moorage.client import config
        from moorage.gateway.docker import root
        from moorage.gateway.docker.discovery import DiscoveryFile
        from moorage.gateway.docker.service import DockerService
        from moorage.gateway.mount.record import state_directory
        from moorage.gateway.mount.system import check_root

        found = DiscoveryFile(file, path) if file else None
        config.load(cluster, registry=registry, secret_file=secret_file)  # what it says is wrong for ever
        check_root()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
        service = DockerService(
            lambda: moorage.connect(cluster, registry=registry, secret_file=secret_file),
            state_dir=state_directory(state_dir),
            root=root.mount_root(mount_root),
            socket=path,
            discovery=found,
        )
        serving = asyncio.ensure_future(_serve(service, str(path), as_json))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    run_or_exit(run, as_json=as_json)


async def _serve(service: DockerService, socket: str, as_json: bool) -> None:
    async with service.running() as tasks:
        if as_json:
            click.echo(json.dumps({"event": "ready", "socket": socket}))
        else:
            click.echo(f"the volume driver is served at {socket}; stop with Ctrl-C")
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
