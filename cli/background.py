"""`moorage bench background`: what users feel of a copy, and what they leave for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path

import aiohttp
import click

from moorage.bench.background import MIB, CopyRun, Load, Outcome, watch_copy
from moorage.cli import output
from moorage.cli.local_cluster import LocalCluster, LocalHost
from moorage.cli.options import SIZE, Seconds, run_or_exit
from moorage.client.cluster import Cluster
from moorage.client.volume import Volume

SETTLE_S = 3.0  # the start of a process takes the machine's time
METRIC = "moorage_node_copied_bytes_total"


@click.command()
@click.option("--seconds", type=Seconds(min=1), default=10.0, show_default=True, help="Of the load alone.")
@click.option("--size", type=SIZE, default=1 << 30, help="Bytes to copy.  [default: 1 GiB]")
@click.option("--rate", type=float, default=200.0, show_default=True, help="Users' operations per second.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def background(seconds: float, size: int, rate: float, data: Path | None, as_json: bool) -> None:
    """Load alone, copy alone, both; on three hosts on this machine, which are started for it.

    Users read and write 4 KiB at random, so many per second. A host is killed, a volume is written anew
    meanwhile, and when the host is back it copies that. Aimed at: users' p99 within twice of what it is
    without the copy, and the copy at 80 % of what users leave of the rate that it has alone.
    """

    async def run() -> None:
        directory = data or Path(tempfile.mkdtemp(prefix="moorage-background-"))
        cluster = LocalCluster(directory / "cluster", options={"MOORAGE_CAPACITY": str(6 * size + (4 << 30))})
        try:
            await cluster.start()
            outcome = await _measure(cluster, seconds, size, rate)
        finally:
            await cluster.kill()
            shutil.rmtree(directory if data is None else directory / "cluster", ignore_errors=True)
        if as_json:
            output.emit_json(outcome.document())
        else:
            _show(outcome)

    run_or_exit(run, as_json=as_json)


async def _measure(local: LocalCluster, seconds: float, size: int, rate: float) -> Outcome:
    import moorage

    async with (
        await moorage.connect(registry=local.registry, secret_file=local.secret_file) as cluster,
        await _volume(cluster, "users", 256 * MIB) as users,
        await _volume(cluster, "copy", size) as copy,
    ):
        await _fill(users, 0)
        await _fill(copy, 1)
        alone = await _load_alone(users, seconds, rate)
        copy_alone = await _copy(local, copy, 2, None)
        load = Load(users, rate)
        copy_beside = await _copy(local, copy, 3, load)
    beside = load.figures(copy_beside.began, copy_beside.ended)
    written = beside["operations_per_s"] / 2 * 4096
    return Outcome(alone, beside, copy_alone.bytes_per_s, copy_beside.bytes_per_s, written)


async def _volume(cluster: Cluster, name: str, size: int) -> Volume:
    await cluster.create_volume(name, size=size, replicas=3)
    return await cluster.attach(name)


async def _fill(volume: Volume, seed: int) -> None:
    rng = random.Random(seed)
    data = [rng.randbytes(MIB) for _ in range(8)]
    for at in range(0, volume.size // MIB, 4):
        await asyncio.gather(
            *(volume.write(each * MIB, data[each % 8]) for each in range(at, min(at + 4, volume.size // MIB)))
        )
    await volume.flush()


async def _load_alone(users: Volume, seconds: float, rate: float) -> dict[str, float]:
    load = Load(users, rate)
    task = asyncio.create_task(load.run())
    await asyncio.sleep(SETTLE_S)
    since = time.monotonic()
    await asyncio.sleep(seconds)
    load.stop()
    await task
    return load.figures(since, since + seconds)


async def _copy(local: LocalCluster, volume: Volume, seed: int, load: Load | None) -> CopyRun:
    """The last host is away while the volume is written, and copies that; ``load`` runs beside it."""
    victim = local.hosts[-1]
    await victim.kill()
    await _fill(volume, seed)
    task = None if load is None else asyncio.create_task(load.run())
    await victim.launch()
    await victim.wait_ready()
    try:
        return await watch_copy(lambda: _copied(victim), lambda: _is_current(volume, victim))
    finally:
        if task is not None and load is not None:
            load.stop()
            await task


def _is_current(volume: Volume, host: LocalHost) -> bool:
    return all(member["state"] == "current" for member in volume.members() if member["host"] == host.name)


async def _copied(host: LocalHost) -> int:
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.request("GET", f"http://{host.ready['http']}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith(METRIC):
                    return int(float(line.split()[-1]))
    return 0


def _show(outcome: Outcome) -> None:
    names = ("write_p50_us", "write_p99_us", "read_p50_us", "read_p99_us")
    rows: list[tuple[str, ...]] = [
        (
            name.removesuffix("_us").replace("_", " ") + ", us",
            f"{outcome.alone[name]:,.0f}",
            f"{outcome.beside[name]:,.0f}",
            f"{outcome.beside[name] / max(1e-9, outcome.alone[name]):.2f}",
        )
        for name in names
    ]
    copies = outcome.copy_alone, outcome.copy_beside
    rows.append(("copy, MB/s", *(f"{each / 1e6:,.1f}" for each in copies), f"{copies[1] / copies[0]:.2f}"))
    output.console().print(output.table("Background", ("what", "alone", "together", "ratio"), rows))
    click.echo(f"users' p99: {outcome.latency_ratio:.2f} times idle (aim: at most 2)")
    click.echo(f"copy: {outcome.copy_ratio:.0%} of what users leave (aim: at least 80 %)")
