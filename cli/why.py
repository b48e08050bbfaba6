"""`moorage why` and `moorage events`: what is wrong, and what has happened."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import click
from rich.text import Text

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_command, connection_options, run_or_exit
from moorage.client.cluster import Cluster
from moorage.client.why import Finding

EVENTS_SHOWN = 8
POLL_S = 1.0


@click.command()
@click.argument("name", metavar="VOLUME|BUCKET|HOST|DEVICE")
@cluster_command
async def why(cluster: Cluster, as_json: bool, name: str) -> None:
    """Say what is not as it should be with a volume, bucket, host or device: since when, because of what,
    what is being done, and what you could do."""
    found = await cluster.why(name)
    events, _ = await cluster.events(after=-1000, about=name)
    if as_json:
        output.emit_json({"findings": [each.to_json() for each in found], "events": events[-EVENTS_SHOWN:]})
        return
    console = output.console()
    if not found:
        console.print(Text(f"{name} is as it should be", style="green"))
    for each in found:
        _tell(console, each)
    if events:
        console.print(Text("what has happened", style="bold"))
        for event in events[-EVENTS_SHOWN:]:
            console.print(_line(event))


def _tell(console: Any, finding: Finding) -> None:
    since = f", for {_duration(finding.for_ms)}" if finding.for_ms is not None else ""
    console.print(Text(f"{finding.what}{since}", style="bold yellow"))
    for word, text in (("because", finding.because), ("now", finding.doing), ("you could", finding.could)):
        if text:
            console.print(Text(f"  {word}: {text}"))


def _duration(ms: int) -> str:
    return output.since(int(time.time() * 1000) - ms)


@click.command()
@click.argument("about", required=False, default="", metavar="[NAME]")
@click.option("--last", type=click.IntRange(1, 2000), default=30, show_default=True, help="So many at first.")
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@connection_options
def events(
    about: str,
    last: int,
    follow: bool,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Show what has happened: devices that came and went, replicas that moved, takeovers; about NAME (a
    volume, bucket, host or device), or all. The registry keeps the last 2048."""

    async def run() -> None:
        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            after = -last if not about else -2048
            found, after = await connected.events(after=after, about=about)
            found = found[-last:]
            while True:
                for event in found:
                    _print(event, as_json)
                if not follow:
                    return
                await asyncio.sleep(POLL_S)
                found, after = await connected.events(after=after, about=about)

    run_or_exit(run, as_json=as_json)


def _print(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.emit_json_line(event)
    else:
        output.console().print(_line(event))


def _line(event: dict[str, Any]) -> Text:
    when = datetime.fromtimestamp(event["at_ms"] / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return Text(f"  {when}  {event['text']}")
