"""The command: machines, runs, and the table of their phases."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from moorage.cli import output
from moorage.cli.machines import MachineCluster, end_as_by_ctrl_c
from moorage.cli.network import Network
from moorage.cli.options import run_or_exit
from moorage.cli.takeover.runs import PHASES, Run, Takeovers

SCHEMA = "moorage.bench.takeover/1"
AIM_P50_S, AIM_P99_S = 5.0, 10.0  # without --force


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--force", is_flag=True, help="Mount with --force: the lease is not waited for.")
@click.option("--unplug", is_flag=True, help="Pull the host's cable too: nobody is sent a reset by it.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--keep", is_flag=True, help="Leave data and logs behind.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def takeover(runs: int, force: bool, unplug: bool, data: Path | None, keep: bool, as_json: bool) -> None:
    """SIGKILL of a whole host, until its volume is in use on another one.

    Three hosts on this machine, each with a network, mounts and processes of its own; needs root. A program
    writes to a file on a mounted volume; everything on its host dies: program, mount, client, node, metadata,
    registry. The volume is mounted on another host, which reads all that was synced, and writes. After the
    last run e2fsck looks at the file system. Exit code 1 when a line is lost, the file system is not clean,
    or a takeover without --force takes longer than is aimed at.
    """
    done: list[Run] = []
    clean, said = False, ""

    async def run() -> None:
        nonlocal clean, said
        directory = data or Path(tempfile.mkdtemp(prefix="moorage-takeover-"))
        try:
            clean, said = await _run(directory, done, runs, force, unplug, lambda one: _tell(one, as_json))
        finally:
            if keep:
                output.console(stderr=True).print(f"data and logs are in {directory}")
            else:
                shutil.rmtree(directory if data is None else directory / "cluster", ignore_errors=True)

    try:
        run_or_exit(run, as_json=as_json)
    except SystemExit:
        if done and not as_json:
            _show(done, force)
        raise
    lost = sum(one.lost + one.wrong for one in done)
    whole = [one.seconds for one in done]
    in_time = force or (percentile(whole, 50) <= AIM_P50_S and percentile(whole, 99) <= AIM_P99_S)
    if as_json:
        output.emit_json(document(done, force, unplug, in_time, clean))
    else:
        _show(done, force)
        console = output.console()
        console.print(f"e2fsck finds the file system {'clean' if clean else 'NOT CLEAN'}: {said}")
    raise SystemExit(0 if in_time and clean and not lost else 1)


async def _run(
    directory: Path, done: list[Run], count: int, force: bool, unplug: bool, told: Callable[[Run], None]
) -> tuple[bool, str]:
    end_as_by_ctrl_c()
    cluster = MachineCluster(directory / "cluster", Network())
    try:
        await cluster.start()
        takeovers = Takeovers(cluster, force=force, unplug=unplug)
        await takeovers.prepare()
        async for one in takeovers.run(count):
            done.append(one)
            told(one)
        return await takeovers.finish()
    finally:
        await cluster.close()


def _tell(run: Run, as_json: bool) -> None:
    led = f", which led {' and '.join(run.led)}" if run.led else ""
    lost = f", {run.lost} LOST" if run.lost else ""
    text = f"{run.victim}{led} → {run.successor}: {run.seconds:.2f} s, {run.written} lines{lost}"
    output.console(stderr=as_json).print(text)


def percentile(values: list[float], percent: float) -> float:
    """By nearest rank: of 20 values, p99 is the greatest."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def _rows(runs: list[Run]) -> dict[str, list[float]]:
    return {name: [run.phases[name] for run in runs] for name in PHASES} | {
        "in all": [run.seconds for run in runs]
    }


def document(runs: list[Run], force: bool, unplug: bool, in_time: bool, clean: bool) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "force": force,
        "unplug": unplug,
        "in_time": in_time,
        "clean": clean,
        "phases": {
            name: {"p50_s": percentile(values, 50), "p99_s": percentile(values, 99)}
            for name, values in _rows(runs).items()
        },
        "runs": [run.to_json() for run in runs],
    }


def _show(runs: list[Run], force: bool) -> None:
    rows = [
        (name, f"{percentile(values, 50):.2f} s", f"{percentile(values, 99):.2f} s", PHASES.get(name, ""))
        for name, values in _rows(runs).items()
    ]
    table = output.table(f"Takeover, {len(runs)} runs", ("phase", "p50", "p99", "what"), rows)
    if not force:
        table.caption = f"aim: p50 within {AIM_P50_S:g} s, p99 within {AIM_P99_S:g} s"
    console = output.console()
    console.print(table)
    for leads, what in ((True, "the host led metadata"), (False, "it did not")):
        some = [run.seconds for run in runs if ("metadata" in run.led) is leads]
        if some:
            console.print(
                f"{what}: {len(some)} runs, p50 {percentile(some, 50):.2f} s, longest {max(some):.2f} s"
            )
    written, lost = sum(run.written for run in runs), sum(run.lost + run.wrong for run in runs)
    console.print(f"{written - lost} of {written} synced lines were there")
