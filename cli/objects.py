"""`moorage object`: put, get, list and delete objects of buckets."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

import moorage
from moorage.cli import output
from moorage.cli.options import cluster_command, connection_options, run_or_exit
from moorage.client.cluster import Cluster
from moorage.client.objects.bucket import ObjectInfo
from moorage.wire.errors import Invalid, Locked

PLACE = "BUCKET/KEY"
READ_BYTES = 1 << 20


@click.group("object")
def objects() -> None:
    """Objects of buckets, by BUCKET/KEY."""


@objects.command()
@click.argument("file", type=click.File("rb"))
@click.argument("place", metavar=PLACE)
@connection_options
def put(
    file: BinaryIO,
    place: str,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Store FILE (- for standard input) as an object: whole, or not at all."""

    async def run() -> None:
        name, key = _parse(place)
        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            bucket = await connected.bucket(name)
            with _bar() as bar:
                info = await bucket.put(key, _reading(file, bar, bar.add_task(place, total=_size(file))))
        if as_json:
            output.emit_json(_to_json(info))
        else:
            click.echo(f"put {place}: {output.size(info.size)}, etag {info.etag}")

    run_or_exit(run, as_json=as_json)


@objects.command()
@click.argument("place", metavar=PLACE)
@click.argument("file", type=click.File("wb", atomic=True))
@click.option("--version", help="A former one, as `moorage object versions` names it.")
@connection_options
def get(
    place: str,
    file: BinaryIO,
    version: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Write an object to FILE (- for standard output), which appears when all of it is there."""

    async def run() -> None:
        name, key = _parse(place)
        async with await moorage.connect(cluster, registry=registry, secret_file=secret_file) as connected:
            info, reader = await (await connected.bucket(name)).open(key, version=version)
            with _bar() as bar:
                task = bar.add_task(place, total=info.size)
                async for piece in reader:
                    await asyncio.to_thread(file.write, piece)
                    bar.advance(task, len(piece))
        if as_json:
            output.emit_json(_to_json(info), err=True)  # standard output may be the object

    run_or_exit(run, as_json=as_json)


@objects.command("list")
@click.argument("place", metavar="BUCKET[/PREFIX]")
@click.option("--all", "deep", is_flag=True, help="What is below each slash, too.")
@cluster_command
async def list_objects(cluster: Cluster, as_json: bool, place: str, deep: bool) -> None:
    """List the objects of a bucket whose keys begin with PREFIX, up to the next slash."""
    name, _, prefix = place.partition("/")
    bucket = await cluster.bucket(name)
    found: list[ObjectInfo] = []
    below: list[str] = []
    page = await bucket.page(prefix, delimiter="" if deep else "/")
    while True:
        found, below = found + page.objects, below + page.prefixes
        if not page.next:
            break
        page = await bucket.page(prefix, delimiter="" if deep else "/", start=page.next)
    if as_json:
        output.emit_json({"objects": [_to_json(each) for each in found], "prefixes": below})
        return
    rows = [(each, "", "") for each in below]
    rows += [(each.key, output.size(each.size), output.since(each.modified_ms)) for each in found]
    if not rows:
        click.echo(f"no objects: `moorage object put FILE {name}/KEY` makes one")
    else:
        output.console().print(output.table(place, ("key", "size", "age"), rows))


@objects.command()
@click.argument("place", metavar="BUCKET[/PREFIX]")
@cluster_command
async def versions(cluster: Cluster, as_json: bool, place: str) -> None:
    """List all versions of the objects whose keys begin with PREFIX, of each the newest first; deletions
    too."""
    name, _, prefix = place.partition("/")
    bucket = await cluster.bucket(name)
    page = await bucket.versions_page(prefix)
    found = page.versions
    while page.next is not None:
        page = await bucket.versions_page(prefix, after=page.next[0], after_version=page.next[1])
        found += page.versions
    if as_json:
        output.emit_json([_version_to_json(each) for each in found])
        return
    rows = [
        (each.key, each.version, "deleted" if each.marker else output.size(each.size), _age(each))
        for each in found
    ]
    if not rows:
        click.echo(f"no objects: `moorage object put FILE {name}/KEY` makes one")
    else:
        output.console().print(output.table(place, ("key", "version", "size", "age"), rows))


def _age(info: ObjectInfo) -> str:
    return output.since(info.modified_ms) + (", current" if info.latest and not info.marker else "")


@objects.command()
@click.argument("places", nargs=-1, required=True, metavar=f"{PLACE}...")
@click.option("--version", help="This one goes for good. Of one object.")
@cluster_command
async def delete(cluster: Cluster, as_json: bool, places: tuple[str, ...], version: str | None) -> None:
    """Delete objects. What is not there is no error. Where versions are on, they stay, and what was deleted
    is current again when the version that stands for the deletion is deleted."""
    if version is not None and len(places) > 1:
        raise Invalid("--version is of one object: name one")
    rows = []
    for place in places:
        name, key = _parse(place)
        (done,) = await (await cluster.bucket(name)).delete_versions([(key, version)])
        if done.locked:
            raise Locked(f"{place}: version {version} is locked: it stays")
        rows.append({"object": place, "deleted": done.existed, "version": done.version})
    if as_json:
        output.emit_json(rows)
    for row in rows if not as_json else ():
        of = f" (version {row['version']})" if row["version"] is not None else ""
        click.echo(f"{'deleted' if row['deleted'] else 'there was no'} {row['object']}{of}")


def _parse(place: str) -> tuple[str, str]:
    name, slash, key = place.partition("/")
    if not name or not slash or not key:
        raise Invalid(f"{place!r} is not an object: use {PLACE}")
    return name, key


def _to_json(info: ObjectInfo) -> dict[str, object]:
    return {"key": info.key, "size": info.size, "etag": info.etag, "modified_ms": info.modified_ms}


def _version_to_json(info: ObjectInfo) -> dict[str, object]:
    about = {"version": info.version, "latest": info.latest, "marker": info.marker}
    return {**_to_json(info), **about, "lock": dataclasses.asdict(info.lock)}


def _size(file: BinaryIO) -> int | None:
    path = Path(file.name) if isinstance(file.name, str) else None
    return path.stat().st_size if path is not None and path.is_file() else None


async def _reading(file: BinaryIO, bar: Progress, task: TaskID) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, READ_BYTES):
        yield piece
        bar.advance(task, len(piece))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=output.console(stderr=True), transient=True)
