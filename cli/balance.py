"""`moorage balance`: how evenly devices are filled, and whether replicas may move to even them out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click
from rich.text import Text

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_command, connection_options, run_or_exit
from moorage.client.cluster import Cluster

POLL_S = 1.0
QUIET_S = 15.0  # metadata looks every 10 s
BAR = 30  # characters


@click.group()
def balance() -> None:
    """Look at how evenly devices are filled; stop replicas from moving for that alone, or let them go on."""


@balance.command()
@click.option("--follow", is_flag=True, help="Go on until nothing has been on the way for 15 s, or Ctrl-C.")
@connection_options
def show(
    follow: bool, cluster: str | None, registry: str | None, secret_file: str | None, as_json: bool
) -> None:
    """Show how full each device is, and what moves to even that out.

    Replicas begin to move when the fullest device is 10 points of its capacity fuller than the emptiest one.
    """

    async def run() -> None:
        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            quiet_at = time.monotonic() + QUIET_S
            while True:
                found = await _look(connected)
                if found["moves"]:
                    quiet_at = time.monotonic() + QUIET_S
                if as_json:
                    output.emit_json_line(found) if follow else output.emit_json(found)
                else:
                    _show(found)
                if not follow or not found["unevenness"] or time.monotonic() > quiet_at:
                    return
                await asyncio.sleep(POLL_S)

    run_or_exit(run, as_json=as_json)


async def _look(cluster: Cluster) -> dict[str, Any]:
    view, moves = await cluster.status(), await cluster.places.moves()
    devices = [
        {
            "device": device,
            "host": row["host"],
            "used": row["used"],
            "capacity": row["capacity"],
            "fill": round(row["used"] / row["capacity"], 4) if row["capacity"] else 0.0,
            "counts": row["health"] == "up" and not row["drain"],
        }
        for device, row in view["devices"].items()
    ]
    return {
        "devices": sorted(devices, key=lambda each: (-each["fill"], each["device"])),
        "paused": view["balance"]["paused"],
        "paused_by": view["balance"]["by"] if view["balance"]["paused"] else "",
        "paused_at_ms": view["balance"]["at_ms"] if view["balance"]["paused"] else 0,
        "moves": [each for each in moves.moves if each["why"] == "balance"],
        "unevenness": moves.unevenness,
    }


def _show(found: dict[str, Any]) -> None:
    console = output.console()
    rows = [
        (
            each["device"],
            each["host"],
            output.size(each["used"]),
            output.size(each["capacity"]),
            f"{each['fill']:.0%}",
            Text("█" * round(BAR * each["fill"]), style="cyan" if each["counts"] else "bright_black"),
            "" if each["counts"] else "nothing is placed here now",
        )
        for each in found["devices"]
    ]
    console.print(output.table("Devices", ("device", "host", "used", "capacity", "full", "", ""), rows))
    for each in found["moves"]:
        where = f"{each['volume']} group {each['group']}: {each['from']['host']} -> {each['to']['host']}"
        console.print(Text(f"  on the way, for {output.since(each['since_ms'])}: {where}"))
    if found["paused"]:
        since = output.since(found["paused_at_ms"])
        console.print(
            Text(f"paused by {found['paused_by']} {since} ago: `moorage balance resume`", style="yellow")
        )
    for text in found["unevenness"]:
        console.print(Text(f"now: {text}"))
    if not (found["moves"] or found["paused"] or found["unevenness"]):
        console.print(Text("nothing moves", style="green"))


@balance.command()
@cluster_command
async def pause(cluster: Cluster, as_json: bool) -> None:
    """Move no replica any more only to even devices out; what is on the way for that is called off. Repairs
    and drains go on."""
    await cluster.places.pause_balance()
    if as_json:
        output.emit_json({"paused": True})
    else:
        click.echo("paused: `moorage balance resume` lets it go on")


@balance.command()
@cluster_command
async def resume(cluster: Cluster, as_json: bool) -> None:
    """Let replicas move again to even devices out."""
    await cluster.places.resume_balance()
    if as_json:
        output.emit_json({"paused": False})
    else:
        click.echo("it goes on: `moorage balance show --follow` looks on")
