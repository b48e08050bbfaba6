"""`moorage up`: a local cluster in the foreground, found by every other command without an option.

Owns the supervision of its hosts: one that ends is started again, unless its exit code says that this does
not help.
"""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import click

from moorage.cli import output
from moorage.cli.local_cluster import LocalCluster, LocalHost
from moorage.cli.options import run_or_exit
from moorage.client.config import DEFAULT_CLUSTER, clusters_directory
from moorage.service.exits import Exit
from moorage.wire.errors import MoorageError

# As docs/launch.md tells every supervisor: restart with a pause, but not for these.
FINAL = {Exit.USAGE, Exit.CONFIGURATION, Exit.REFUSED, Exit.CORRUPT, Exit.DEVICE_FAILED}
RESTART_FIRST_S, RESTART_MAX_S = 1.0, 30.0
STEADY_S = 30.0  # a host that ran so long begins with the first pause again
DEFAULT_DIRECTORY = Path("~/.local/share/moorage/local")


@click.command()
@click.option(
    "--hosts", type=click.Choice(["1", "3", "5"]), default="3", show_default=True, help="How many hosts."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the cluster is kept.",
)
@click.option("--capacity", help="Bytes that each device may use, such as 20G.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
def up(hosts: str, data: Path, capacity: str | None, as_json: bool) -> None:
    """Run a cluster of host processes on this machine until Ctrl-C; the data stays for the next time.

    A host that ends is started again.
    """
    directory = data.expanduser()

    async def run() -> None:
        options = {"MOORAGE_CAPACITY": capacity} if capacity else {}
        cluster = LocalCluster(directory, hosts=int(hosts), options=options)
        await cluster.start()
        try:
            configured = _configure(cluster)
            _announce(cluster, configured, as_json)
            await _until_told(cluster, as_json)
        finally:
            await cluster.stop()

    run_or_exit(run, as_json=as_json)


def _configure(cluster: LocalCluster) -> Path | None:
    """Make this the default cluster of the user, unless another one is or nothing can be written."""
    path = clusters_directory() / f"{DEFAULT_CLUSTER}.json"
    document = {"registry": cluster.registry, "secret_file": str(cluster.secret_file), "written_by": "up"}
    try:
        if path.exists() and not _is_ours(path):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2))
    except OSError:
        return None
    return path


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False  # somebody's, and damaged
    return isinstance(found, dict) and found.get("written_by") == "up"


def _announce(cluster: LocalCluster, configured: Path | None, as_json: bool) -> None:
    if as_json:
        document = {"event": "ready", "registry": cluster.registry, "secret_file": str(cluster.secret_file)}
        click.echo(json.dumps(document))
        return
    rows = [
        (host.name, host.pid, host.ready["address"], host.ready["http"], host.log) for host in cluster.hosts
    ]
    output.console().print(output.table("Cluster", ("host", "pid", "address", "http", "log"), rows))
    if configured:
        click.echo("Other terminals find it by themselves: moorage status")
    else:
        click.echo("This is not the default cluster of other commands; to use it:")
        click.echo(f"  export MOORAGE_REGISTRY={cluster.registry}")
        click.echo(f"  export MOORAGE_SECRET_FILE={cluster.secret_file}")
    click.echo("Next: moorage volume create NAME --size 1G, moorage attach NAME --nbd unix:/tmp/NAME.sock")
    click.echo("Ctrl-C stops it; the data stays.")


async def _until_told(cluster: LocalCluster, as_json: bool) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    watchers = [asyncio.create_task(_keep_running(host, as_json)) for host in cluster.hosts]

    async def all_ended() -> None:
        await asyncio.gather(*watchers)
        told.set()

    ending = asyncio.create_task(all_ended())
    await told.wait()
    ending.cancel()
    await asyncio.gather(ending, *watchers, return_exceptions=True)


async def _keep_running(host: LocalHost, as_json: bool) -> None:
    """Start the host again, with a pause, whenever it has ended; return when a restart would not help."""
    loop = asyncio.get_running_loop()
    pause = RESTART_FIRST_S
    while True:
        began = loop.time()
        code = await host.wait()
        if loop.time() - began > STEADY_S:
            pause = RESTART_FIRST_S
        again = code not in FINAL
        _say_ended(host, code, pause if again else None, as_json)
        if not again:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, RESTART_MAX_S)
        await host.launch()
        try:
            await host.wait_ready(timeout=None)
        except MoorageError:
            continue  # it has ended again: host.wait() knows how
        _say_back(host, as_json)


def _say_ended(host: LocalHost, code: int, pause: float | None, as_json: bool) -> None:
    if as_json:
        said = {"event": "ended", "host": host.name, "code": code, "again_in_s": pause}
        click.echo(json.dumps(said))
        return
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}; see {host.log}"
    then = "a restart does not help" if pause is None else f"starting it again in {pause:g} s"
    click.echo(f"{host.name} {how}: {then}", err=True)


def _say_back(host: LocalHost, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "back", "host": host.name, "pid": host.pid}))
    else:
        click.echo(f"{host.name} is back (pid {host.pid})", err=True)
