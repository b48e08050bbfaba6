"""`moorage table`: the mount table of the cluster, and this host's part of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import signal
from typing import TYPE_CHECKING, TextIO

import click

from moorage.cli import output
from moorage.cli.options import Seconds, cluster_command, connection_options, run_or_exit
from moorage.client.cluster import Cluster
from moorage.client.mount_table import check
from moorage.service.exits import Exit
from moorage.wire.errors import Invalid

if TYPE_CHECKING:
    from moorage.gateway.table.applying import Report

_HEAD = re.compile(r"# moorage table, version (\d+)\n?")


@click.command()
@click.option("--version", type=click.IntRange(min=1), help="An older one [default: the newest].")
@click.option("--history", is_flag=True, help="List the versions that are kept.")
@cluster_command
async def get(cluster: Cluster, as_json: bool, version: int | None, history: bool) -> None:
    """Print the mount table.

    Its first line is a comment with the version, by which `moorage table set` knows what was changed.
    """
    found = await cluster.mount_table(version)
    if as_json:
        lines, problems = found.lines()
        described = {"lines": [dataclasses.asdict(line) for line in lines], "problems": problems}
        output.emit_json({**dataclasses.asdict(found), **described})
    elif history:
        rows = [(each["version"], output.since(each["at_ms"]), each["by"]) for each in found.history]
        output.console().print(output.table("Mount table", ("version", "age", "by"), rows))
    else:
        click.echo(f"# moorage table, version {found.version}")
        click.echo(found.text, nl=bool(found.text) and not found.text.endswith("\n"))


@click.command("set")
@click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"))
@click.option(
    "--version", type=click.IntRange(min=0), help="Which one was changed [default: as its first line says]."
)
@cluster_command
async def set_table(cluster: Cluster, as_json: bool, file: TextIO, version: int | None) -> None:
    """Replace the mount table by FILE (- for stdin).

    It is refused when a line is wrong, and when the table is another version than the one that was changed
    (0: there was none).
    """
    text = file.read()
    check(text)  # with the numbers that the lines of the file have
    if head := _HEAD.match(text):
        text = text[head.end() :]
    if version is None:
        if head is None:
            raise Invalid(
                "which version was changed? Keep the first line of `moorage table get`, or say --version "
                "(0 for the first)"
            )
        version = int(head[1])
    made = await cluster.set_mount_table(text, version=version)
    if as_json:
        output.emit_json({"version": made})
    else:
        click.echo(f"the mount table is at version {made} now")


@click.command()
@click.option("--keep/--once", default=False, help="Stay, and keep it so; or do it once, the default.")
@click.option("--interval", type=Seconds(min=0.1), default=5.0, show_default=True, help="Seconds, of --keep.")
@click.option("--host", help="Name of this host, for `hosts=` [env: MOORAGE_HOST; default: its host name].")
@click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
@connection_options
def apply(
    keep: bool,
    interval: float,
    host: str | None,
    state_dir: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Mount on this host what the mount table says, and unmount what has left it.

    What was mounted in another way is never touched. Tells what came of each line; --once ends with 9 when a
    line failed. With --keep it goes on until SIGTERM, when all stays mounted.
    """

    async def run() -> None:
        import moorage
        from moorage.gateway.mount.record import StateDirectory, state_directory
        from moorage.gateway.table import applying
        from moorage.service import log

        if keep:
            log.configure("INFO")
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        async with await moorage.connect(
            cluster, registry=registry, secret_file=secret_file, host=host
        ) as connected:
            directory = StateDirectory(state_directory(state_dir))
            applier = applying.Applier(connected, directory, host=connected.hello.name)
            async with applier.at_work():
                if keep:
                    await applying.keep(
                        applier,
                        connected,
                        interval=interval,
                        until=told,
                        tell=lambda version, reports: _tell(version, reports, as_json),
                    )
                    return
                table = await connected.mount_table()
                reports = await applier.apply(*table.lines())
        _tell(table.version, reports, as_json)
        if any(report.state in applying.BAD for report in reports):
            raise SystemExit(int(Exit.UNAVAILABLE))

    run_or_exit(run, as_json=as_json)


def _tell(version: int, reports: list[Report], as_json: bool) -> None:
    if as_json:
        said = {"version": version, "lines": [dataclasses.asdict(report) for report in reports]}
        click.echo(json.dumps(said))
        return
    rows = [
        (report.line or "", report.source, report.target, report.state, report.reason) for report in reports
    ]
    columns = ("line", "source", "target", "state", "reason")
    output.console().print(output.table(f"Mount table, version {version}", columns, rows))
