"""`moorage scrub`: read back what a device, a host, a volume, a bucket or the whole cluster holds, now."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from moorage.cli import output
from moorage.cli.options import connection_options, run_or_exit
from moorage.client.cluster import Cluster

POLL_S = 1.0
Targets = dict[str, list[int] | None]  # device -> replicas; None: all


@click.command()
@click.argument("target", required=False)
@click.option("--no-wait", is_flag=True, help="Begin, and do not watch.")
@connection_options
def scrub(
    target: str | None,
    no_wait: bool,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Read back all copies of TARGET now: a device, a host, a volume or bucket, or everything when it is left
    out.

    Blocks that do not match their checksums are reported, and written again by whoever has the volume
    attached; those of a bucket are copied from another replica. It takes what users leave of the disks.
    Ctrl-C ends the watching, not the scrub.
    """

    async def run() -> None:
        import moorage

        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            targets = await _targets(connected, target)
            begun = {device: await connected.scrub(device, chosen) for device, chosen in targets.items()}
            rows = await _rows(connected, begun)
            while not no_wait and any(_is_under_way(row) for row in rows):
                _show_progress(rows)
                await asyncio.sleep(POLL_S)
                rows = await _rows(connected, begun)
            _show(rows, as_json)

    run_or_exit(run, as_json=as_json)


async def _targets(cluster: Cluster, target: str | None) -> Targets:
    devices = (await cluster.status())["devices"]
    if target is not None and target in devices:
        return {target: None}
    of_host: Targets = {
        device: None for device, row in sorted(devices.items()) if target in (None, row["host"])
    }
    if of_host or target is None:
        return of_host
    found: dict[str, list[int] | None] = {}
    for group in await _groups(cluster, target):
        for member in group["members"]:
            replicas = found.setdefault(member["device"], [])
            assert replicas is not None
            replicas.append(member["replica"])
    return found


async def _groups(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    if (volume := await cluster.volume_or_bucket(name)) is not None:
        return volume.groups
    groups: list[dict[str, Any]] = (await (await cluster.bucket(name)).show())["groups"]
    return groups


async def _rows(cluster: Cluster, begun: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Of the replicas that were asked for."""
    found = await asyncio.gather(*(cluster.list_replicas(device) for device in begun))
    return [
        {"device": device, **row}
        for (device, replicas), rows in zip(begun.items(), found, strict=True)
        for row in rows
        if row["replica"] in replicas
    ]


def _is_under_way(row: dict[str, Any]) -> bool:
    """One that is damaged or copied is written anew: it is not read back before."""
    return bool(row["scrub"]["asked"]) and bool(row["whole"])


def _show_progress(rows: list[dict[str, Any]]) -> None:
    if sys.stderr.isatty():
        done = sum(row["scrub"]["bytes_done"] if _is_under_way(row) else row["bytes"] for row in rows)
        size = sum(row["bytes"] for row in rows)
        click.echo(f"\r{output.size(done)} of {output.size(size)} read back ", err=True, nl=False)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        output.emit_json(rows)
        return
    columns = ("device", "replica", "volume", "bytes", "bad blocks", "checked")
    table = [
        (
            row["device"],
            row["replica"],
            row["volume"],
            output.size(row["bytes"]),
            row["bad_blocks"],
            f"{output.since(row['verified_ms'])} ago" if row["verified_ms"] else "never",
        )
        for row in rows
    ]
    output.console().print(output.table("Scrub", columns, table))
