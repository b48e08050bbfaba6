"""`moorage bench block`: measure a volume by library and by NBD, as a table or as JSON."""

from __future__ import annotations

import asyncio
import datetime
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import output
from moorage.cli.options import SIZE, Seconds, connection_options, run_or_exit
from moorage.wire.errors import Invalid

if TYPE_CHECKING:
    from moorage.bench.block import Measurement
    from moorage.client.cluster import Cluster
    from moorage.client.volume import Volume

MIB = 1 << 20
REGION = 256 * MIB
ATTACH_TIMEOUT_S = 30.0


@click.command()
@click.option("--volume", "name", help="An existing volume; without it, one is created and deleted.")
@click.option("--overwrite", is_flag=True, help="Agree that --volume loses what is in the region measured.")
@click.option(
    "--seconds",
    type=Seconds(min=0.1),
    default=5.0,
    show_default=True,
    help="For each workload, after a warm-up of a fifth of it.",
)
@click.option("--by", type=click.Choice(["library", "nbd", "both"]), default="both", show_default=True)
@click.option("--only", help="Only workloads whose name contains this, such as 'write' or 'depth 1'.")
@click.option(
    "--region", type=SIZE, default=REGION, help="Bytes of the volume to work on.  [default: 256 MiB]"
)
@click.option("--replicas", type=int, default=3, show_default=True, help="Of the volume that is created.")
@click.option("--durability", type=click.Choice(["sync", "writeback"]), default="sync", show_default=True)
@click.option("--pid", "pids", type=int, multiple=True, help="A server process; default: devices found here.")
@connection_options
def block(
    name: str | None,
    overwrite: bool,
    seconds: float,
    by: str,
    only: str | None,
    region: int,
    replicas: int,
    durability: str,
    pids: tuple[int, ...],
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Measure 4 KiB random reads and writes at depths 1 and 32, and 1 MiB sequential ones at depth 8.

    By library: in this process, through the client library. By NBD: fio, through the NBD server, in front of
    the same volume. Ctrl-C ends it early and still shows what was measured.
    """
    if name is not None and not overwrite:
        raise click.UsageError(f"this overwrites data in {name}: say --overwrite too, or leave --volume out")

    async def run() -> None:
        import moorage

        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            servers = list(pids) or await device_pids(connected)
            async with _volume(connected, name, region, replicas, durability) as volume:
                plan = _Plan(volume, by=by, only=only, seconds=seconds, region=region, servers=servers)
                try:
                    await plan.run()
                finally:
                    plan.show(as_json)

    run_or_exit(run, as_json=as_json)


@asynccontextmanager
async def _volume(
    cluster: Cluster, name: str | None, region: int, replicas: int, durability: str
) -> AsyncIterator[Volume]:
    """The volume asked for, or a fresh one that is deleted at the end, come what may."""
    chosen = name or f"bench-{secrets.token_hex(4)}"
    if name is None:
        await cluster.create_volume(chosen, size=max(region, MIB), replicas=replicas, durability=durability)
    try:
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            volume = await cluster.attach(chosen)
        async with volume:
            yield volume
    finally:
        if name is None:
            await cluster.delete(chosen, force=True)


async def device_pids(cluster: Cluster) -> list[int]:
    """Processes on this machine that listen where the cluster's devices are said to be."""
    from moorage.bench.processes import listening_pids

    view = await cluster.status()
    addresses = [str(device["address"]) for device in view["devices"].values()]
    ports = [int(port) for port in (address.rpartition(":")[2] for address in addresses) if port.isdigit()]
    return sorted(set(listening_pids(ports).values()))


class _Plan:
    """All runs of one invocation, in order, with their progress."""

    def __init__(
        self, volume: Volume, *, by: str, only: str | None, seconds: float, region: int, servers: list[int]
    ) -> None:
        from moorage.bench.block import WORKLOADS
        from moorage.bench.fio import require_fio

        self._volume = volume
        self._ways = ("library", "nbd") if by == "both" else (by,)
        if "nbd" in self._ways:
            require_fio()
        self._workloads = [one for one in WORKLOADS if only is None or only in one.name]
        if not self._workloads:
            names = "; ".join(one.name for one in WORKLOADS)
            raise Invalid(f"no workload's name contains {only!r}; there are: {names}")
        self._seconds = seconds
        self._warm_up = seconds / 5
        self._region = min(region, volume.size)
        self._servers = servers
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._measured: list[Measurement] = []

    async def run(self) -> None:
        from moorage.bench.block import fill, run_by_library
        from moorage.bench.fio import run_by_nbd, served

        with bars() as shown:
            filling = shown.add_task("fill", total=1.0)
            await fill(self._volume, self._region, lambda share: shown.update(filling, completed=share))
            shown.remove_task(filling)
            total = len(self._workloads) * len(self._ways) * (self._seconds + self._warm_up)
            overall = shown.add_task("all", total=total)
            async with served(self._volume) as uri:
                for workload in self._workloads:
                    for way in self._ways:
                        shown.update(overall, description=f"{workload.name}, by {way}")
                        before = shown.tasks[0].completed
                        common: dict[str, Any] = {
                            "region": self._region,
                            "seconds": self._seconds,
                            "warm_up": self._warm_up,
                            "server_pids": self._servers,
                            "on_progress": lambda done, at=before: shown.update(overall, completed=at + done),
                        }
                        if way == "library":
                            self._measured.append(await run_by_library(self._volume, workload, **common))
                        else:
                            self._measured.append(await run_by_nbd(self._volume, uri, workload, **common))

    def show(self, as_json: bool) -> None:
        """What was measured so far, which after an interrupt is not all."""
        from moorage.bench import report

        described = self._volume.describe()
        options = {
            "seconds": self._seconds,
            "warm_up": self._warm_up,
            "region": self._region,
            "server_pids": self._servers,
            "complete": len(self._measured) == len(self._workloads) * len(self._ways),
        }
        if as_json:
            made = report.document(self._measured, began=self._began, volume=described, options=options)
            output.emit_json(made)
        elif self._measured:
            output.console().print(report.table(self._measured, f"Volume {self._volume.name}"))


def bars() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
