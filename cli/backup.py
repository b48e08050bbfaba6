"""`moorage backup`: snapshots into files or pipes, new volumes out of them.

Owns the files: what is not complete never has the name that was asked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Unpack

import click

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_of, connection_options, run_or_exit
from moorage.cli.transfer import Stopwatch, shape_options, transfer_bar
from moorage.client.transfer import Shape
from moorage.wire.errors import Invalid

STREAM = "-"


@click.group()
def backup() -> None:
    """Write snapshots to files or pipes, and make volumes of them.

    A backup is one stream, which goes through any pipe: `moorage backup create db@mon - | zstd > db.zst`.
    """


@backup.command()
@click.argument("snapshot", metavar="VOLUME@SNAPSHOT")
@click.argument("file", metavar="FILE|-")
@click.option("--since", default="", metavar="VOLUME@OLDER", help="Only what changed since that snapshot.")
@click.option("--force", is_flag=True, help="Write over FILE, if it exists.")
@connection_options
def create(
    snapshot: str,
    file: str,
    since: str,
    force: bool,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Back a snapshot up to FILE, or to stdout.

    FILE gets its name when all of it is on stable storage. With `-`, what there is to say goes to stderr.
    The volume may be written meanwhile. With --since it is an incremental one: a restore needs the backup of
    VOLUME@OLDER, too.
    """

    async def run() -> None:
        named = cluster_of(cluster, registry, [snapshot])
        with _written(file, force) as stream:
            async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
                watch = Stopwatch()
                with transfer_bar(f"backing up {snapshot}", as_json=as_json) as progress:
                    made = await connected.backup(snapshot, stream, since=since, progress=progress)
        assert made.totals is not None
        if as_json:
            said = {**made.to_json(), "seconds": watch.seconds}
            output.emit_json(said, err=file == STREAM)
        else:
            done = f"{output.size(made.totals.stream)} in {watch.seconds:.1f} s"
            click.echo(f"backed up {made.header.shown}: {done}", err=file == STREAM)

    run_or_exit(run, as_json=as_json)


@backup.command()
@click.argument("files", metavar="FILE|-...", nargs=-1, required=True)
@click.argument("name")
@shape_options
@connection_options
def restore(
    files: tuple[str, ...],
    name: str,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
    **shape: Unpack[Shape],
) -> None:
    """Make the new volume NAME of a full backup, and of incremental ones behind it, in their order.

    Nothing is left of NAME when it fails or is interrupted, or when a backup is damaged or not whole.
    """

    async def run() -> None:
        with ExitStack() as stack:
            streams = [stack.enter_context(_opened(file)) for file in _each_once(files)]
            async with await moorage.connect(
                cluster, registry=registry, secret_file=secret_file
            ) as connected:
                watch = Stopwatch()
                with transfer_bar(f"restoring {name}", as_json=as_json) as progress:
                    made = await connected.restore(streams, name, progress=progress, **shape)
        if as_json:
            output.emit_json({**made.to_json(), "seconds": watch.seconds})
        else:
            click.echo(f"restored {name}: {output.size(made.size)} in {watch.seconds:.1f} s")

    run_or_exit(run, as_json=as_json)


@backup.command()
@click.argument("file", metavar="FILE|-")
@click.option("--verify", is_flag=True, help="Read all of it, and check everything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: str, verify: bool, as_json: bool) -> None:
    """Show what a backup is of, and whether it is whole. Needs no cluster."""

    async def run() -> None:
        from moorage.client.backup import show as look

        with _opened(file) as stream, transfer_bar(f"reading {file}", as_json=as_json) as progress:
            found = await look(stream, verify=verify, progress=progress)
        if as_json:
            output.emit_json({**found.to_json(), "verified": verify})
            return
        header, base = found.header, found.header.base
        kind = f"what changed since {header.volume}@{base.snapshot}" if base else "full"
        click.echo(f"{header.volume}@{header.snapshot}, made {output.since(header.created_ms)} ago: {kind}")
        click.echo(
            f"volume: {output.size(header.size)}, {header.replicas} replicas, {header.groups} groups,"
            f" {header.durability}"
        )
        ids = f"cluster {header.cluster}, volume {header.volume_id}, snapshot {header.snapshot_id}"
        click.echo(f"ids: {ids}" + (f", its base {base.snapshot_id}" if base else ""))
        if found.totals is not None:
            data, holes = output.size(found.totals.data), output.size(found.totals.holes)
            click.echo(f"whole: {data} of data, {holes} of holes, {found.totals.frames} frames, all verified")

    run_or_exit(run, as_json=as_json)


def _each_once(files: tuple[str, ...]) -> tuple[str, ...]:
    if files.count(STREAM) > 1:
        raise Invalid("- is given twice, and there is one standard input: name files, or /dev/fd/N")
    return files


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """Not buffered: a thread that waits in a read must hold no lock when the program ends."""
    with open(0 if file == STREAM else file, "rb", buffering=0, closefd=file != STREAM) as stream:
        yield stream


@contextmanager
def _written(file: str, force: bool) -> Iterator[BinaryIO]:
    """Beside its place, until it is complete and on stable storage. Readable by its owner alone: it has all
    that was in the volume."""
    if file == STREAM:
        if sys.stdout.isatty():
            raise Invalid("stdout is a terminal: redirect it, or name a FILE")
        with open(1, "wb", buffering=0, closefd=False) as stream:
            yield stream
        return
    target = Path(file).resolve()
    _check_free(target, force)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:200]}.", suffix=".part", dir=target.parent)
    try:
        with open(descriptor, "wb", buffering=0) as stream:
            yield stream
            os.fsync(descriptor)
        _check_free(target, force)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    _sync_directory(target.parent)


def _check_free(target: Path, force: bool) -> None:
    if target.exists() and not (force and target.is_file()):
        way = "--force writes over it" if target.is_file() else "name a file, or - and redirect it"
        raise Invalid(f"{target} exists: {way}")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
