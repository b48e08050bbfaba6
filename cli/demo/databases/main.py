"""The command: machines, the two parts, timelines and the table of promises; nothing is left behind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from moorage.cli import output
from moorage.cli.demo.databases import steps
from moorage.cli.demo.databases.stage import Stage
from moorage.cli.machines import MachineCluster, end_as_by_ctrl_c
from moorage.cli.network import Network
from moorage.cli.options import run_or_exit
from moorage.cli.report import Report
from moorage.gateway.mount.system import check_root

PARTS = ("mariadb", "postgres")


@click.command()
@click.option("--only", type=click.Choice(PARTS), help="One part alone.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--keep", is_flag=True, help="Leave data and logs behind.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo_mysql(only: str | None, data: Path | None, keep: bool, as_json: bool) -> None:
    """MariaDB, WordPress and PostgreSQL on volumes, on hosts that die. Takes about two minutes; needs root.

    Three hosts on this machine, each with a network, mounts and processes of its own. Everything on the host
    of a database dies at once; another host mounts its volumes, and it must all be there.
    """
    report = Report(output.console(stderr=as_json))
    stages: list[Stage] = []

    async def run() -> None:
        check_root()
        directory = _working_directory(data)
        try:
            await _run(report, directory, stages, only)
        finally:
            if keep:
                report.step(f"data and logs are in {directory}")
            else:
                shutil.rmtree(directory if data is None else directory / "cluster", ignore_errors=True)

    run_or_exit(run, as_json=as_json)
    timelines = [timeline for stage in stages for timeline in stage.timelines]
    if as_json:
        output.emit_json({**report.document(), "timelines": [one.document() for one in timelines]})
    else:
        for timeline in timelines:
            report.console.print()
            report.console.print(timeline.table())
        report.print()
    raise SystemExit(0 if report.kept else 1)


def _working_directory(data: Path | None) -> Path:
    """The databases' users pass through it, and look at nothing."""
    if data is None:
        data = Path(tempfile.mkdtemp(prefix="moorage-demo-"))
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o711)
    return data


async def _run(report: Report, directory: Path, stages: list[Stage], only: str | None) -> None:
    report.step("three hosts come up, each with its own network, mounts and processes, and with Moorage")
    end_as_by_ctrl_c()
    cluster = MachineCluster(directory / "cluster", Network())
    try:
        await cluster.start()
        stages.append(stage := Stage(cluster, report))
        if only in (None, "mariadb"):
            await steps.web_site(stage, "h1", "h2")
        if only in (None, "postgres"):
            await steps.bank(stage, "h3", "h1")
    finally:
        await cluster.close()
