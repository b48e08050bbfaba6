"""`moorage attach`: hold a volume and serve it over NBD until told to stop."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import click

from moorage.cli.options import Seconds, cluster_of, connection_options, run_or_exit

if TYPE_CHECKING:
    from moorage.client.volume import Volume


@click.command()
@click.argument("name")
@click.option("--nbd", "address", required=True, help="Where to serve it: unix:PATH or tcp:HOST:PORT.")
@click.option("--read-only", is_flag=True, help="Look without taking it: also beside its holder.")
@click.option("--force", is_flag=True, help="Take it from its holder, who is fenced.")
@click.option("--timeout", type=Seconds(min=0.1), default=30.0, show_default=True, help="Seconds to attach.")
@connection_options
def attach(
    name: str,
    address: str,
    read_only: bool,
    force: bool,
    timeout: float,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Attach volume NAME (or a moorage:// URI) and serve it over NBD until SIGTERM or SIGINT.

    The export has the volume's name. When another client takes the volume over, all I/O fails from then on,
    and this command ends with an error that says who did.
    """

    async def run() -> None:
        import moorage
        from moorage.gateway.nbd.listener import check_address

        check_address(address)  # before a holder is fenced for a slip of the pen
        named = cluster_of(cluster, registry, [name])
        async with await moorage.connect(
            named, registry=registry, secret_file=secret_file, timeout=timeout
        ) as connected:
            volume = await connected.attach(name, read_only=read_only, force=force, timeout=timeout)
            async with volume:
                await _serve(volume, address, as_json)

    run_or_exit(run, as_json=as_json)


async def _serve(volume: Volume, address: str, as_json: bool) -> None:
    from moorage.gateway.nbd.server import NbdServer

    server = NbdServer({volume.name: volume})
    bound = await server.serve(address)
    try:
        _announce(volume, bound, as_json)
        await _until_told_or_lost(volume)
    finally:
        await server.stop()


def _announce(volume: Volume, address: str, as_json: bool) -> None:
    if as_json:
        ready = {"event": "ready", "volume": volume.name, "nbd": address, "epoch": volume.epoch}
        click.echo(json.dumps(ready))
    else:
        click.echo(
            f"{volume.name} is attached (epoch {volume.epoch}) and served at {address}; stop with Ctrl-C"
        )


async def _until_told_or_lost(volume: Volume) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    waits = {
        asyncio.ensure_future(told.wait()): "told",
        asyncio.ensure_future(volume.wait_lost()): "lost",
    }
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
