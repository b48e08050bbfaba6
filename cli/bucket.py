"""`moorage bucket`: create, list, show and delete buckets of objects."""

from __future__ import annotations

import click

from moorage.cli import output
from moorage.cli.options import cluster_command
from moorage.cli.redundancy import bucket_copies_table, redundancy_text
from moorage.client.cluster import Cluster


@click.group()
def bucket() -> None:
    """Buckets of objects, replicated by quorum as volumes are; `moorage object` puts and gets."""


@bucket.command()
@click.argument("name")
@click.option("--replicas", type=int, default=3, show_default=True, help="Of each object, on as many hosts.")
@click.option("--groups", type=int, default=0, help="Replica groups; 0: by the number of hosts.")
@click.option("--locks", is_flag=True, help="Versions are on, and can be locked.")
@cluster_command
async def create(cluster: Cluster, as_json: bool, name: str, replicas: int, groups: int, locks: bool) -> None:
    """Create a bucket. Buckets and volumes share their names."""
    made = await (await cluster.buckets.create(name, replicas=replicas, groups=groups, locks=locks)).show()
    if as_json:
        output.emit_json(made)
    else:
        click.echo(f"created bucket {name}: {replicas} replicas, {len(made['groups'])} groups")


@bucket.command("list")
@cluster_command
async def list_buckets(cluster: Cluster, as_json: bool) -> None:
    """List all buckets."""
    rows = await cluster.buckets.list()
    if as_json:
        output.emit_json(rows)
        return
    if not rows:
        click.echo("no buckets: `moorage bucket create NAME` makes one")
        return
    shown = [(row["name"], row["replicas"], output.since(row["created_ms"])) for row in rows]
    output.console().print(output.table("Buckets", ("bucket", "replicas", "age"), shown))


@bucket.command()
@click.argument("name")
@cluster_command
async def show(cluster: Cluster, as_json: bool, name: str) -> None:
    """Show how many objects are in a bucket, where its replicas are, what each of them lacks, and how many
    more host losses it survives now. `moorage why NAME` says what is done about it."""
    found, copies = await (await cluster.bucket(name)).show(), await cluster.bucket_copies(name)
    if as_json:
        output.emit_json({**found, "groups": copies.groups, "redundancy": copies.redundancy.to_json()})
        return
    click.echo(f"bucket {name}: {found['objects']} objects, {output.size(found['bytes'])}")
    if found["versioning"] is not None:
        former = f"{found['former_versions']} former ones, {output.size(found['former_bytes'])}"
        locks = ", can be locked" if found["locks"] else ""
        click.echo(f"versions: {found['versioning']}{locks}; {former}")
    for line in redundancy_text(copies.redundancy):
        click.echo(line)
    output.console().print(bucket_copies_table(copies.groups, copies.redundancy))


@bucket.command()
@click.argument("name")
@click.argument("state", type=click.Choice(["enabled", "suspended"]))
@click.option("--locks", is_flag=True, help="Versions can be locked; that cannot be switched off.")
@cluster_command
async def versions(cluster: Cluster, as_json: bool, name: str, state: str, locks: bool) -> None:
    """Keep what is replaced or deleted from now on as former versions, or, suspended, do not; those that
    there are stay. `moorage object versions NAME` lists them."""
    await (await cluster.bucket(name)).set_versioning(state, locks=locks)
    if as_json:
        output.emit_json({"bucket": name, "versioning": state})
    else:
        click.echo(f"versions of bucket {name} are {state}")


@bucket.command()
@click.argument("name")
@cluster_command
async def delete(cluster: Cluster, as_json: bool, name: str) -> None:
    """Delete a bucket without objects, and without versions of any. Uploads that were begun go with it."""
    await cluster.buckets.delete(name)
    if as_json:
        output.emit_json({"deleted": name})
    else:
        click.echo(f"deleted bucket {name}")
