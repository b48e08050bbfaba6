"""`moorage bench bucket`: what a bucket of very many objects costs beside one of a hundredth of them."""

from __future__ import annotations

import datetime
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import output
from moorage.cli.bench import bars
from moorage.cli.local_cluster import LocalCluster
from moorage.cli.options import SIZE, Seconds, run_or_exit
from moorage.wire.errors import NoSpace

if TYPE_CHECKING:
    from moorage.bench.bucket import Load, Stage

HOSTS = 3
BLOCK = 4096
KIB = 1024
SPARE = 4 << 30  # of a device, for what is granted in advance and its log
RECORDS = 1024  # bytes of metadata for an object: more than was seen
NAME = "bench"


@click.command()
@click.option("--objects", type=click.IntRange(4000), default=100_000, show_default=True, help="At the end.")
@click.option("--size", type=SIZE, default=KIB, help="Of each object.  [default: 1 KiB]")
@click.option(
    "--seconds", type=Seconds(min=0.1), default=3.0, show_default=True, help="For each kind of operation."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=64,
    show_default=True,
    help="Puts under way while it is filled.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Where to work; default: a temporary directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bucket(
    objects: int, size: int, seconds: float, concurrency: int, data: Path | None, as_json: bool
) -> None:
    """Fill a bucket, and measure it with a hundredth of its objects and with all of them, side by side.

    On three hosts on this machine, which are started for it. Pages of a list, gets, puts, memory, metadata
    on disk, and how soon a killed host is back. Ctrl-C ends it early and still shows what was measured.
    """
    options = {"objects": objects, "size": size, "seconds": seconds, "concurrency": concurrency}

    async def run() -> None:
        directory = data or Path(tempfile.mkdtemp(prefix="moorage-bucket-"))
        each = objects * -(-size // BLOCK) * BLOCK
        try:
            _check_room(directory, HOSTS * objects * RECORDS + HOSTS * each)
            capacity = {"MOORAGE_CAPACITY": str(2 * each + SPARE)}
            local = LocalCluster(directory / "cluster", hosts=HOSTS, options=capacity)
            plan = _Plan(local, options)
            try:
                await local.start()
                await plan.run()
            finally:
                await local.kill()
                plan.show(as_json)
        finally:
            shutil.rmtree(directory if data is None else directory / "cluster", ignore_errors=True)

    run_or_exit(run, as_json=as_json)


def _check_room(directory: Path, needed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NoSpace(
            f"{directory} has {output.size(free)} left, and {output.size(needed)} are needed: choose another"
            " place with --data, or fewer --objects"
        )


class _Plan:
    """All stages of one invocation, in order, with their progress."""

    def __init__(self, local: LocalCluster, options: dict[str, Any]) -> None:
        self._local = local
        self._options = options
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._stages: list[Stage] = []
        self._complete = False

    async def run(self) -> None:
        import moorage
        from moorage.bench.bucket import SHARE, Load

        objects = self._options["objects"]
        few = objects // SHARE
        async with await moorage.connect(
            registry=self._local.registry, secret_file=self._local.secret_file
        ) as cluster:
            load = Load(
                await cluster.buckets.create(NAME),
                objects,
                size=self._options["size"],
                concurrency=self._options["concurrency"],
            )
            with bars() as shown:
                task = shown.add_task("", total=objects)

                def filled(count: int) -> None:
                    shown.update(task, completed=count, description=f"fill: {count:,} of {objects:,}")

                def does(what: str) -> None:
                    shown.update(task, description=what)

                await self._measure(load, few, await load.fill(few, filled), does)
                await load.fill(objects - few, filled)
                await self._measure(load, objects, await load.fill(objects, filled), does)
        self._complete = True

    async def _measure(self, load: Load, objects: int, put_per_s: float, does: Callable[[str], None]) -> None:
        from moorage.bench.bucket import Stage
        from moorage.bench.processes import disk_usage, memory_of

        stage = Stage(objects, put_per_s)
        self._stages.append(stage)
        hosts = self._local.hosts
        stage.operations = await load.ask(self._options["seconds"], does)
        stage.memory = [memory_of(host.pid) for host in hosts]
        stage.metadata_bytes = [disk_usage(host.data / "metadata") for host in hosts]
        for host in hosts:
            does(f"restart {host.name}")
            await host.kill()
            began = time.monotonic()
            await host.launch()
            await host.wait_ready()
            stage.ready_s.append(time.monotonic() - began)

    def show(self, as_json: bool) -> None:
        """What was measured so far, which after an interrupt is not all."""
        from moorage.bench import bucket_report

        if as_json:
            options = {**self._options, "complete": self._complete}
            output.emit_json(bucket_report.document(self._stages, began=self._began, options=options))
        elif self._stages:
            columns = ["what", *(f"{stage.objects:,}" for stage in self._stages)]
            columns += ["ratio"] if len(self._stages) > 1 else []
            output.console().print(output.table("Bucket", columns, bucket_report.rows(self._stages)))
