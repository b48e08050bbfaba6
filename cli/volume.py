"""`moorage volume`: create, copy, list, show, resize, set, move, delete."""

from __future__ import annotations

from typing import Any, Unpack

import click

import moorage
from moorage.cli import output
from moorage.cli.options import SIZE, cluster_command, cluster_of, connection_options, run_or_exit
from moorage.cli.redundancy import copies_table, redundancy_text
from moorage.cli.transfer import Stopwatch, shape_options, transfer_bar
from moorage.client.cluster import Cluster
from moorage.client.transfer import Shape
from moorage.wire.errors import Invalid, NotFound


@click.group()
def volume() -> None:
    """Create, look at, grow, limit and delete volumes."""


IOPS = click.option("--iops", type=click.IntRange(min=0), help="At most so many operations a second; 0: any.")
BW = click.option("--bw", type=SIZE, help="At most so many bytes a second, such as 50M; 0: any.")


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="Such as 512M, 10GiB; a multiple of 4 KiB.")
@click.option("--replicas", type=int, default=3, show_default=True, help="1, 3 or 5, each on another host.")
@click.option("--groups", type=int, default=0, help="Replica groups to stripe over; 0 chooses.")
@click.option("--durability", type=click.Choice(["sync", "writeback"]), default="sync", show_default=True)
@click.option("--fs", type=click.Choice(["ext4", "xfs"]), help="What its first mount makes of it.")
@IOPS
@BW
@click.option("--principal", help="For whose quota it counts  [env: MOORAGE_PRINCIPAL; default: default]")
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
    iops: int | None,
    bw: int | None,
    principal: str | None,
) -> None:
    """Create volume NAME. Its space is taken only as it is written."""
    made = await cluster.create_volume(
        *(name, size),
        replicas=replicas,
        groups=groups,
        durability=durability,
        fs=fs,
        iops=iops or 0,
        bw=bw or 0,
        principal=principal,
    )
    if as_json:
        output.emit_json(made.to_json())
    else:
        click.echo(f"created {name}: {output.size(size)}, {replicas} replicas, {durability}")


@volume.command()
@click.argument("source", metavar="VOLUME[@SNAPSHOT]")
@click.argument("name")
@shape_options
@connection_options
def copy(
    source: str,
    name: str,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
    **shape: Unpack[Shape],
) -> None:
    """Make the new volume NAME, with the contents of a snapshot, or of a volume as it is now.

    Of a volume, a snapshot is made for as long as the copy takes; it may be written meanwhile. Holes stay
    holes. Nothing is left of NAME when it fails or is interrupted.
    """

    async def run() -> None:
        named = cluster_of(cluster, registry, [source])
        async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
            watch = Stopwatch()
            with transfer_bar(f"copying {source} to {name}", as_json=as_json) as progress:
                made = await connected.copy_volume(source, name, progress=progress, **shape)
        if as_json:
            output.emit_json({**made.to_json(), "seconds": watch.seconds})
        else:
            click.echo(f"copied {source} to {name}: {output.size(made.size)} in {watch.seconds:.1f} s")

    run_or_exit(run, as_json=as_json)


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
    click.echo(f"ceilings: {ceilings_text(one['iops'], one['bw'])}; principal: {one['principal']}")
    if one["fs"]:
        click.echo(f"file system: {one['fs']['type']}, {one['fs']['state']}")
    if found.parent:
        click.echo(f"clone of {found.parent['name']}@{found.parent['snapshot_name']}")
    if found.snapshots:
        count = len(found.snapshots)
        click.echo(f"{count} snapshot{'s' * (count > 1)}: `moorage snapshot list {name}`")
    for line in redundancy_text(redundancy):
        click.echo(line)
    output.console().print(copies_table(found.groups, redundancy))


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


@volume.command("set")
@click.argument("name")
@IOPS
@BW
@cluster_command
async def set_volume(cluster: Cluster, as_json: bool, name: str, iops: int | None, bw: int | None) -> None:
    """Limit volume NAME to so many operations and bytes a second, also while it is attached.

    Who has it attached keeps to it within about a second. What is not given stays; 0 takes a ceiling away.
    """
    if iops is None and bw is None:
        raise Invalid("nothing to set: give --iops, --bw or both; 0 takes a ceiling away")
    changed = await cluster.set_volume(name, iops=iops, bw=bw)
    if as_json:
        output.emit_json(changed.to_json())
    else:
        click.echo(f"ceilings of {name}: {ceilings_text(changed.iops, changed.bw)}")


@volume.command()
@click.argument("name")
@click.option("--from", "off", required=True, metavar="HOST|DEVICE", help="Where it should leave.")
@click.option("--to", default="", metavar="DEVICE", help="Where it should go; default: as placement says.")
@cluster_command
async def move(cluster: Cluster, as_json: bool, name: str, off: str, to: str) -> None:
    """Move what volume NAME has on one host or device, also while it is written. It goes on by itself;
    `moorage volume show NAME` says where it is, `moorage why NAME` how far."""
    devices = await _devices_called(cluster, off)
    on_it = {member["device"] for group in (await cluster.show(name)).groups for member in group["members"]}
    moving = sum([await cluster.move(name, device, to=to) for device in devices if device in on_it])
    if not moving:
        raise NotFound(f"volume {name!r} has no replica on {off}: `moorage volume show {name}` says where")
    if as_json:
        output.emit_json({"name": name, "moving": moving})
    else:
        click.echo(f"{moving} replicas of {name} leave {off}")


async def _devices_called(cluster: Cluster, name: str) -> list[str]:
    view = await cluster.status()
    return [name] if name in view["devices"] else await cluster.places.devices("host", name)


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


def ceilings_text(iops: int, bw: int) -> str:
    texts = [f"{iops} operations/s"] * bool(iops) + [f"{output.size(bw)}/s"] * bool(bw)
    return ", ".join(texts) or "none"


def holder_text(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "nobody"
    return f"{holder.get('program', '?')} (pid {holder.get('pid', '?')} on {holder.get('host', '?')})"
