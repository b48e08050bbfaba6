"""The command: set up, run the steps, print the table, leave nothing behind."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import click

from moorage.cli import output
from moorage.cli.clients import ClientProcess
from moorage.cli.demo import steps
from moorage.cli.drill.takeover import takeover
from moorage.cli.local_cluster import LocalCluster
from moorage.cli.options import run_or_exit
from moorage.cli.report import Report


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--keep", is_flag=True, help="Leave data and logs behind.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(data: Path | None, keep: bool, as_json: bool) -> None:
    """Three hosts, a volume, and what happens when hosts die and clients freeze. Takes about a minute."""
    report = Report(output.console(stderr=as_json))

    async def run() -> None:
        directory = data or Path(tempfile.mkdtemp(prefix="moorage-demo-"))
        try:
            await _run(report, directory)
        finally:
            if keep:
                report.step(f"data and logs are in {directory}")
            else:
                shutil.rmtree(directory, ignore_errors=True)

    run_or_exit(run, as_json=as_json)
    if as_json:
        output.emit_json(report.document())
    else:
        report.print()
    raise SystemExit(0 if report.kept else 1)


async def _run(report: Report, directory: Path) -> None:
    import moorage

    local = LocalCluster(directory / "cluster")
    began = time.perf_counter()
    report.step("three hosts come up, each a registry, a metadata and a node service")
    await local.start()
    try:
        env = {"MOORAGE_REGISTRY": local.registry, "MOORAGE_SECRET_FILE": str(local.secret_file)}
        async with await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster:
            await cluster.create_volume("load", size=1 << 30, replicas=3)
            report.promise("a cluster and a volume", True, f"{time.perf_counter() - began:.1f} s")
            await steps.image_round_trip(report, cluster, env, directory)
            journal = directory / "journal"
            arguments = ["bench", "verify", "load", "--steps", "--journal", str(journal)]
            arguments += ["--depth", str(steps.LOAD_DEPTH), "--blocks", str(steps.LOAD_BLOCKS)]
            async with ClientProcess(arguments, env, directory / "load.log") as load:
                await steps.hosts_die(report, local, load)
                await takeover(report, cluster, "load", load, journal, steps.LOAD_BLOCKS)
    finally:
        await local.kill()
