"""`moorage host drain|undrain|evict` and `moorage device drain|undrain|evict|replace`.

Owns what a person sees while replicas move. The work is the cluster's: it goes on when the command is
interrupted, and the same command looks on again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_command, connection_options, run_or_exit
from moorage.client.cluster import Cluster
from moorage.client.places import Kind, Moves

POLL_S = 1.0
FORCE = click.option("--force", is_flag=True, help="Also when some replicas cannot be placed elsewhere.")
NO_WAIT = click.option("--no-wait", is_flag=True, help="Do not look on until it is empty.")


def watching(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A command without a deadline: replicas may move for hours."""

    @connection_options
    def command(
        cluster: str | None, registry: str | None, secret_file: str | None, as_json: bool, **given: Any
    ) -> None:
        async def run() -> None:
            connecting = moorage.connect(cluster, registry=registry, secret_file=secret_file)
            async with await connecting as connected:
                await body(connected, as_json, **given)

        run_or_exit(run, as_json=as_json)

    command.__doc__ = body.__doc__
    return command


def drain_of(kind: Kind) -> click.Command:
    async def drain(cluster: Cluster, as_json: bool, name: str, force: bool, no_wait: bool) -> None:
        await cluster.places.drain(kind, name, force=force)
        await look_on(cluster, kind, name, as_json, no_wait)

    drain.__doc__ = f"""Empty {kind} NAME: its replicas move to other hosts, and nothing new is placed there.

    Each replica counts until its successor does, so nothing is at risk meanwhile. Interrupt it as you like:
    the work goes on, and the same command looks on again; `undrain` ends it.
    """
    return click.command("drain")(click.argument("name")(FORCE(NO_WAIT(watching(drain)))))


def undrain_of(kind: Kind) -> click.Command:
    async def undrain(cluster: Cluster, as_json: bool, name: str) -> None:
        await cluster.places.undrain(kind, name)
        if as_json:
            output.emit_json({"undrained": name})
        else:
            click.echo(f"{kind} {name} is used again; what has moved stays where it is")

    undrain.__doc__ = f"""Stop emptying {kind} NAME, and place new replicas there again."""
    return click.command("undrain")(click.argument("name")(cluster_command(undrain)))


def evict_of(kind: Kind) -> click.Command:
    async def evict(cluster: Cluster, as_json: bool, name: str, force: bool, no_wait: bool) -> None:
        devices = await cluster.places.evict(kind, name, force=force)
        await look_on(cluster, kind, name, as_json, no_wait)
        if not no_wait:
            await cluster.places.forget(kind, name, devices)

    evict.__doc__ = f"""Give {kind} NAME up: it is gone for good, and its replicas are placed anew.

    A device that was evicted is refused for ever; a new one on an empty directory may take its place. Refused
    for a device that is up (drain it) and when a volume would be left without a majority, unless --force.
    """
    return click.command("evict")(click.argument("name")(FORCE(NO_WAIT(watching(evict)))))


@click.command()
@click.argument("old")
@click.argument("new")
@FORCE
@NO_WAIT
@watching
async def replace(cluster: Cluster, as_json: bool, old: str, new: str, force: bool, no_wait: bool) -> None:
    """Move everything on device OLD to device NEW, and leave OLD empty."""
    await cluster.places.drain("device", old, to=new, force=force)
    await look_on(cluster, "device", old, as_json, no_wait)


@click.command("list")
@cluster_command
async def list_devices(cluster: Cluster, as_json: bool) -> None:
    """List all devices, and how many replicas each has."""
    view = await cluster.status()
    moves = await cluster.places.moves(sorted(view["devices"]))
    rows = [
        {"device": device, **row, "replicas": moves.left[device]}
        for device, row in sorted(view["devices"].items())
    ]
    if as_json:
        output.emit_json(rows)
        return
    columns = ("device", "host", "health", "replicas", "used", "capacity", "why")
    cells = [
        (
            row["device"],
            row["host"],
            output.health(row["health"]),
            row["replicas"],
            output.size(row["used"]),
            output.size(row["capacity"]),
            _why(row),
        )
        for row in rows
    ]
    output.console().print(output.table("Devices", columns, cells))


@click.command("list")
@cluster_command
async def list_hosts(cluster: Cluster, as_json: bool) -> None:
    """List all hosts, and how many replicas each has."""
    view = await cluster.status()
    moves = await cluster.places.moves(sorted(view["devices"]))
    rows = [
        {
            "host": host,
            **row,
            "replicas": sum(
                moves.left[device] for device, each in view["devices"].items() if each["host"] == host
            ),
        }
        for host, row in sorted(view["hosts"].items())
    ]
    if as_json:
        output.emit_json(rows)
        return
    cells = [
        (
            row["host"],
            output.health(row["health"]),
            row["replicas"],
            row["address"],
            _why(row),
        )
        for row in rows
    ]
    output.console().print(output.table("Hosts", ("host", "health", "replicas", "address", "why"), cells))


@click.group()
def device() -> None:
    """Look at devices, empty them, and give them up."""


for _command in (list_devices, drain_of("device"), undrain_of("device"), evict_of("device"), replace):
    device.add_command(_command)


def _why(row: dict[str, Any]) -> str:
    drained = f"drained by {row['drain']['by']}" if row["drain"] else ""
    return "; ".join(filter(None, (row["reason"], drained)))


async def look_on(cluster: Cluster, kind: Kind, name: str, as_json: bool, no_wait: bool) -> None:
    devices = await cluster.places.devices(kind, name)
    found = await cluster.places.moves(devices)
    if no_wait:
        if as_json:
            output.emit_json(found.to_json())
        else:
            click.echo(
                f"{kind} {name}: {_left(found)} replicas are to move; `moorage {kind} list` counts them"
            )
        return
    began, total = time.monotonic(), _left(found)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=output.console(stderr=True),
        disable=as_json,
    )
    with bar:
        task = bar.add_task(f"emptying {name}", total=total, note="")
        while (left := _left(found)) > 0:
            bar.update(task, completed=total - left, total=max(total, left), note=_note(found, devices))
            await asyncio.sleep(POLL_S)
            found = await cluster.places.moves(devices)
        bar.update(task, completed=total, note="")
    seconds = time.monotonic() - began
    if as_json:
        output.emit_json({kind: name, "moved": total, "seconds": round(seconds, 1), **found.to_json()})
    else:
        click.echo(f"{kind} {name} holds no replica any more ({total} moved in {seconds:.0f} s)")


def _left(found: Moves) -> int:
    return sum(found.left.values())


def _note(found: Moves, devices: list[str]) -> str:
    moving = [each for each in found.moves if each["from"]["device"] in devices]
    if moving:
        first = moving[0]
        led = f" by {first['led_by']['program']}" if first["led_by"] else ""
        where = f"{first['volume']} group {first['group']} to {first['to']['host']}"
        return f"{len(moving)} on their way: {where}{led}"
    waiting = [each for each in found.blocked if each["device"] in devices]
    return f"{waiting[0]['name']} group {waiting[0]['group']}: {waiting[0]['text']}" if waiting else ""
