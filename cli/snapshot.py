"""`moorage snapshot`: what volumes were at one moment. Create, list, delete, roll back, clone."""

from __future__ import annotations

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_command, cluster_of, connection_options, run_or_exit
from moorage.client import uri
from moorage.client.cluster import Cluster
from moorage.client.snapshots import SnapshotInfo
from moorage.wire.errors import Invalid

SNAPSHOT = "VOLUME@SNAPSHOT"


@click.group()
def snapshot() -> None:
    """Snapshots of volumes: read-only, and made in some milliseconds while programs write."""


@snapshot.command()
@click.argument("snapshots", nargs=-1, required=True, metavar=f"{SNAPSHOT}...")
@click.option("--group", "name", metavar="NAME", help="Snapshots NAME of several VOLUMES, at one moment.")
@cluster_command
async def create(cluster: Cluster, as_json: bool, snapshots: tuple[str, ...], name: str | None) -> None:
    """Create a snapshot of a volume, or with --group NAME of several volumes at one moment.

    \b
    moorage snapshot create db@nightly
    moorage snapshot create --group nightly db logs
    """
    if name is None:
        if len(snapshots) > 1:
            raise Invalid("several volumes at one moment: moorage snapshot create --group NAME VOLUME...")
        volume, name = uri.parse_snapshot(snapshots[0])
        made = await cluster.snapshots.create(name, volume)
    else:
        made = await cluster.snapshots.create(name, *snapshots)
    if as_json:
        output.emit_json([each.to_json() for each in made])
    for each in made if not as_json else ():
        click.echo(f"created {each.volume}@{each.name}: {output.size(each.size)}")


@snapshot.command("list")
@click.argument("volumes", nargs=-1, metavar="[VOLUME]...")
@cluster_command
async def list_snapshots(cluster: Cluster, as_json: bool, volumes: tuple[str, ...]) -> None:
    """List the snapshots of some volumes, or of all."""
    found: list[SnapshotInfo] = []
    for name in volumes or [one.name for one in await cluster.list_volumes() if one.snapshots]:
        found += await cluster.snapshots.list(name)
    if as_json:
        output.emit_json([each.to_json() for each in found])
        return
    if not found:
        click.echo(f"no snapshots: `moorage snapshot create {SNAPSHOT}` makes one")
        return
    columns = ("snapshot", "size", "age", "state", "with", "clones")
    together = {each.set: sum(other.set == each.set for other in found) - 1 for each in found if each.set}
    rows = [
        (
            f"{each.volume}@{each.name}",
            output.size(each.size),
            output.since(each.created_ms),
            output.health(each.state),
            f"{together[each.set]} others" if together.get(each.set) else "",
            each.children or "",
        )
        for each in found
    ]
    output.console().print(output.table("Snapshots", columns, rows))


@snapshot.command()
@click.argument("name", metavar=SNAPSHOT)
@cluster_command
async def delete(cluster: Cluster, as_json: bool, name: str) -> None:
    """Delete a snapshot. Its space comes back with time."""
    await cluster.snapshots.delete(name)
    if as_json:
        output.emit_json({"deleted": name})
    else:
        click.echo(f"deleted {name}")


@snapshot.command()
@click.argument("name", metavar=SNAPSHOT)
@click.option("--force", is_flag=True, help="Also when somebody holds the volume: the holder is fenced.")
@connection_options
def rollback(
    name: str,
    force: bool,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Give a volume the contents of one of its snapshots again.

    What was written since is gone, unless another snapshot has it; all snapshots stay. Nobody attaches the
    volume before this is complete: if it was interrupted, say it again.
    """

    async def run() -> None:
        named = cluster_of(cluster, registry, [name])
        async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
            with _bar() as bar:
                task = bar.add_task("looking for what has changed", total=None)
                written = await connected.snapshots.rollback(
                    name,
                    force=force,
                    progress=lambda done, size: bar.update(task, completed=done, total=size),
                )
        if as_json:
            output.emit_json({"rolled_back": name, "written": written})
        else:
            click.echo(f"{name} it is again: {output.size(written)} written")

    run_or_exit(run, as_json=as_json)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=output.console(stderr=True), transient=True)


@snapshot.command()
@click.argument("name", metavar=SNAPSHOT)
@click.argument("clone", metavar="NAME")
@click.option("--replicas", type=int, default=3, show_default=True, help="1, 3 or 5, each on another host.")
@click.option("--durability", type=click.Choice(["sync", "writeback"]), default="sync", show_default=True)
@cluster_command
async def clone(
    cluster: Cluster, as_json: bool, name: str, clone: str, replicas: int, durability: str
) -> None:
    """Create volume NAME with the contents of a snapshot, at once and without copying any.

    What is never written to in the clone is read from the snapshot, which cannot be deleted before it. A
    volume that stands alone is made by `moorage volume copy`.
    """
    made = await cluster.create_volume(clone, parent=name, replicas=replicas, durability=durability)
    if as_json:
        output.emit_json(made.to_json())
    else:
        click.echo(f"created {clone}: {output.size(made.size)}, as {name}")
