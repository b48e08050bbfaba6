"""`moorage key`: access keys of principals, for S3."""

from __future__ import annotations

import click

from moorage.cli import output
from moorage.cli.options import cluster_command
from moorage.client.cluster import DEFAULT_PRINCIPAL, Cluster


@click.group()
def key() -> None:
    """Access keys for S3: each belongs to a principal, and may do what that one may."""


@key.command()
@click.argument("principal", default=DEFAULT_PRINCIPAL)
@cluster_command
async def create(cluster: Cluster, as_json: bool, principal: str) -> None:
    """Make a key for PRINCIPAL, and show its secret: whoever has both is that principal to the gateway."""
    made = await cluster.keys.create(principal)
    if as_json:
        output.emit_json(made.to_json(with_secret=True))
        return
    click.echo(f"AWS_ACCESS_KEY_ID={made.id}\nAWS_SECRET_ACCESS_KEY={made.secret}")


@key.command("list")
@cluster_command
async def list_keys(cluster: Cluster, as_json: bool) -> None:
    """List all keys, without their secrets."""
    found = await cluster.keys.list()
    if as_json:
        output.emit_json([each.to_json(with_secret=False) for each in found])
        return
    if not found:
        click.echo("no keys: `moorage key create PRINCIPAL` makes one")
        return
    rows = [(each.id, each.principal, output.since(each.created_ms), each.by) for each in found]
    output.console().print(output.table("Access keys", ("key", "principal", "age", "made by"), rows))


@key.command()
@click.argument("identity", metavar="KEY")
@cluster_command
async def revoke(cluster: Cluster, as_json: bool, identity: str) -> None:
    """Take a key back: within seconds nothing that is signed with it is accepted any more."""
    await cluster.keys.revoke(identity)
    if as_json:
        output.emit_json({"revoked": identity})
    else:
        click.echo(f"revoked {identity}")
