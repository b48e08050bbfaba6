"""`moorage quota`: what principals may have, and have."""

from __future__ import annotations

import click

from moorage.cli import output
from moorage.cli.options import SIZE, cluster_command
from moorage.client.cluster import Cluster


@click.command("set")
@click.argument("principal")
@click.option(
    "--capacity", type=SIZE, help="Of its volumes, as they are sized, and its objects  [default: any]"
)
@click.option("--volumes", type=click.IntRange(min=0), help="How many volumes and buckets  [default: any]")
@cluster_command
async def set_quota(
    cluster: Cluster, as_json: bool, principal: str, capacity: int | None, volumes: int | None
) -> None:
    """Limit what volumes and buckets of PRINCIPAL come to, in place of the quota that it had.

    A quota below what there is takes nothing away, and lets nothing be added.
    """
    quota = await cluster.set_quota(principal, capacity=capacity, volumes=volumes)
    if as_json:
        output.emit_json(quota.to_json())
    else:
        may, has = _texts(quota.capacity, quota.volumes), _texts(quota.used_bytes, quota.used_volumes)
        click.echo(f"{principal} may have {may}, and has {has}")


@click.command("list")
@cluster_command
async def list_quotas(cluster: Cluster, as_json: bool) -> None:
    """List the principals that have a quota, volumes or buckets."""
    found = await cluster.quotas()
    if as_json:
        output.emit_json([quota.to_json() for quota in found])
        return
    if not found:
        click.echo(
            "no quotas yet: volumes count from the first `moorage quota set PRINCIPAL --capacity 1T` on"
        )
        return
    columns = ("principal", "capacity", "quota", "volumes", "quota")
    rows = [
        (
            quota.principal,
            output.size(quota.used_bytes),
            "any" if quota.capacity is None else output.size(quota.capacity),
            quota.used_volumes,
            "any" if quota.volumes is None else quota.volumes,
        )
        for quota in found
    ]
    output.console().print(output.table("Quotas", columns, rows))


@click.command()
@click.argument("principal")
@cluster_command
async def remove(cluster: Cluster, as_json: bool, principal: str) -> None:
    """Limit volumes and buckets of PRINCIPAL no more."""
    quota = await cluster.remove_quota(principal)
    if as_json:
        output.emit_json(quota.to_json())
    else:
        click.echo(f"{principal} may have any, and has {_texts(quota.used_bytes, quota.used_volumes)}")


def _texts(size: int | None, volumes: int | None) -> str:
    count = "any volumes" if volumes is None else f"{volumes} volume{'s' * (volumes != 1)}"
    return f"{count} of {'any size' if size is None else output.size(size)} in sum"
