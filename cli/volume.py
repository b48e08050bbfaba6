"""`moorage volume`: create, list, show, resize, delete."""

from __future__ import annotations

from typing import Any

import click

from moorage.cli import output
from moorage.cli.options import SIZE, cluster_command
from moorage.client.cluster import Cluster
from moorage.client.redundancy import Redundancy


@click.group()
def volume() -> None:
    """Create, look at, grow and delete volumes."""


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="Such as 512M, 10GiB; a multiple of 4 KiB.")
@click.option("--replicas", type=int, default=3, show_default=True, help="1, 3 or 5, each on another host.")
@click.option("--groups", type=int, default=0, help="Replica groups to stripe over; 0 chooses.")
@click.option("--durability", type=click.Choice(["sync", "writeback"]), default="sync", show_default=True)
@click.option("--fs", type=click.Choice(["ext4", "xfs"]), help="What its first mount makes of it.")
@cluster_command
async def create(
    cluster: Cluster,
    as_json: bool,
    name: str,
    size: int,
    replicas: int,
    groups: int,
    durability: str,
    fs: str | None,
) -> None:
    """Create volume NAME. Its space is taken only as it is written."""
    made = await cluster.create_volume(
        name, size=size, replicas=replicas, groups=groups, durability=durability, fs=fs
    )
    if as_json:
        output.emit_json(made.to_json())
    else:
        click.echo(f"created {name}: {output.size(size)}, {replicas} replicas, {durability}")


@volume.command("list")
@cluster_command
async def list_volumes(cluster: Cluster, as_json: bool) -> None:
    """List all volumes."""
    found = [one.to_json() for one in await cluster.list_volumes()]
    if as_json:
        output.emit_json(found)
        return
    if not found:
        click.echo("no volumes yet: `moorage volume create NAME --size 10G` makes one")
        return
    columns = ("name", "size", "replicas", "groups", "durability", "state", "held by", "epoch")
    rows = [
        (
            one["name"],
            output.size(one["size"]),
            one["replicas"],
            len(one["groups"]),
            one["durability"],
            output.health(one["state"]),
            holder_text(one.get("holder")),
            one["epoch"],
        )
        for one in found
    ]
    output.console().print(output.table("Volumes", columns, rows))


@volume.command()
@click.argument("name")
@cluster_command
async def show(cluster: Cluster, as_json: bool, name: str) -> None:
    """Show one volume, where its replicas are, and how many more host losses it survives now."""
    found = await cluster.show(name)
    one, redundancy = found.to_json(), await cluster.redundancy(found)
    if as_json:
        output.emit_json({**one, "redundancy": redundancy.to_json()})
        return
    click.echo(f"{name}: {output.size(one['size'])}, {one['durability']}, {one['state']}")
    click.echo(f"held by {holder_text(one.get('holder'))}, epoch {one['epoch']}")
    if one["fs"]:
        click.echo(f"file system: {one['fs']['type']}, {one['fs']['state']}")
    for line in redundancy_text(redundancy):
        click.echo(line)
    versions = {group["group"]: group["version"] for group in one["groups"]}
    rows = [
        (
            copy.group,
            versions[copy.group],
            copy.replica,
            copy.host,
            copy.device,
            copy.state,
            f"{output.since(copy.verified_ms)} ago" if copy.verified_ms else "never",
        )
        for copy in redundancy.copies
    ]
    columns = ("group", "version", "replica", "host", "device", "copy", "checked")
    output.console().print(output.table("Replicas", columns, rows))


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="The new size; not smaller than it is.")
@cluster_command
async def resize(cluster: Cluster, as_json: bool, name: str, size: int) -> None:
    """Grow volume NAME, also while it is attached."""
    await cluster.resize(name, size)
    if as_json:
        output.emit_json({"name": name, "size": size})
    else:
        click.echo(f"{name} is {output.size(size)} now")


@volume.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also when somebody holds it: the holder is fenced.")
@cluster_command
async def delete(cluster: Cluster, as_json: bool, name: str, force: bool) -> None:
    """Delete volume NAME and its data."""
    await cluster.delete(name, force=force)
    if as_json:
        output.emit_json({"deleted": name})
    else:
        click.echo(f"deleted {name}")


def holder_text(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "nobody"
    return f"{holder.get('program', '?')} (pid {holder.get('pid', '?')} on {holder.get('host', '?')})"


def redundancy_text(redundancy: Redundancy) -> list[str]:
    """What it survives, and how old the knowledge is that this rests on."""
    k, no_loss = redundancy.survives, redundancy.loses_nothing
    if k >= 0:
        lines = [f"survives {_losses(k)} now without waiting, {_losses(no_loss)} without losing data"]
    else:
        worst = "a group lacks a majority of good copies"
        lines = [f"survives no more host loss now: {worst}; {_losses(no_loss)} without losing data"]
    oldest = output.since(redundancy.verified_ms)
    checked = f"oldest check {oldest} ago" if redundancy.verified_ms else "no copy was ever checked"
    if redundancy.verified_ms and redundancy.never_verified:
        checked += f"; {redundancy.never_verified} copies were never checked"
    return [*lines, checked]


def _losses(count: int) -> str:
    return f"{count or 'no'} more host loss{'es' if count > 1 else ''}"
