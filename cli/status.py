"""`moorage status`: who is in the cluster, and how they are."""

from __future__ import annotations

from typing import Any

import click

from moorage.cli import output
from moorage.cli.options import cluster_command
from moorage.client.cluster import Cluster


@click.command()
@cluster_command
async def status(cluster: Cluster, as_json: bool) -> None:
    """Show hosts and devices, and how they are; with --json the services too."""
    view = await cluster.status()
    if as_json:
        output.emit_json(view)
        return
    console = output.console()
    console.print(output.table("Hosts", ("host", "health", "address", "why"), _hosts(view)))
    columns = ("device", "host", "health", "used", "capacity", "why")
    console.print(output.table("Devices", columns, _devices(view)))


def _hosts(view: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (name, output.health(host["health"]), host["address"], host.get("reason"))
        for name, host in sorted(view["hosts"].items())
    ]


def _devices(view: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            identity,
            device["host"],
            output.health(device["health"]),
            output.size(device["used"]),
            output.size(device["capacity"]),
            device.get("reason"),
        )
        for identity, device in sorted(view["devices"].items())
    ]
