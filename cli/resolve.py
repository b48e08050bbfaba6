"""`moorage resolve`: where a name lives."""

from __future__ import annotations

import dataclasses

import click

from moorage.cli import output
from moorage.cli.options import cluster_command
from moorage.cli.volume import holder_text
from moorage.client.cluster import Cluster


@click.command()
@click.argument("name", default="")
@click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
@cluster_command
async def resolve(cluster: Cluster, as_json: bool, name: str, state_dir: str | None) -> None:
    """Print where NAME lives: a volume, a line of the mount table, a URI or a mount point of one.

    Without NAME: every storage that this cluster knows.
    """
    found = await cluster.resolve(name, state_dir=state_dir)
    if as_json:
        output.emit_json([dataclasses.asdict(each) for each in found])
        return
    rows = [
        (
            each.name,
            each.kind,
            each.uri,
            each.cluster,
            each.target,
            "?" if each.mounted_at is None else ", ".join(each.mounted_at),
            holder_text(each.holder) if each.kind == "volume" else "",
        )
        for each in found
    ]
    columns = ("name", "kind", "uri", "cluster", "table says", "mounted here", "held by")
    output.console().print(output.table("Storage", columns, rows))
