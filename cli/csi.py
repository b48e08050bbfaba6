"""`moorage csi`: the driver for orchestrators that speak the Container Storage Interface."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import click

from moorage.cli.options import connection_options, run_or_exit
from moorage.wire.errors import Invalid


@click.command()
@click.option("--endpoint", envvar="CSI_ENDPOINT", help="unix:///PATH to serve at [env: CSI_ENDPOINT].")
@click.option("--node-id", help="This node's name [env: MOORAGE_HOST; default: the host name].")
@click.option(
    "--stage", is_flag=True, help="Ask callers to stage volumes; one that is not staged is not published."
)
@click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
@connection_options
def csi(
    endpoint: str | None,
    node_id: str | None,
    stage: bool,
    state_dir: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Serve CSI (Identity, Controller and Node) until SIGTERM or SIGINT; what is published stays.

    Mesos's volume/csi isolator, Kubernetes, Nomad and others call it. The cluster need not answer yet.
    """

    async def run() -> None:
        try:
            from moorage.gateway.csi.server import Server
        except ImportError as error:
            raise Invalid(f"{error}: install moorage[csi]") from error
        from moorage.client import config
        from moorage.client.cluster import Cluster
        from moorage.gateway.mount.record import StateDirectory, state_directory
        from moorage.gateway.mount.system import check_root
        from moorage.service.log import configure
        from moorage.wire.secret import ClusterSecret

        if not endpoint:
            raise Invalid("no endpoint is given: pass --endpoint unix:///PATH, or set $CSI_ENDPOINT")
        check_root()
        configure("INFO")
        settled = config.load(cluster, registry=registry, secret_file=secret_file)
        host = node_id or os.environ.get("MOORAGE_HOST")
        async with Cluster(settled, ClusterSecret.load(settled.secret_file), host=host) as connected:
            server = Server(connected, endpoint, StateDirectory(state_directory(state_dir)), stages=stage)
            await server.start()
            try:
                ready = {"event": "ready", "endpoint": endpoint, "node_id": connected.hello.name}
                click.echo(
                    json.dumps(ready) if as_json else f"{connected.hello.name} serves CSI at {endpoint}"
                )
                await _until_told()
            finally:
                await server.stop()

    run_or_exit(run, as_json=as_json)


async def _until_told() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()
