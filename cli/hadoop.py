"""`moorage hadoop`: what the fetcher of Mesos asks of a `hadoop` program, for objects of buckets.

Owns the few commands of Hadoop's that a fetcher uses, with their exit code: 0 when it is so, or done. A
file appears whole, under its name, or not at all; every block was checked on the way.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import click

import moorage
from moorage.cli.options import connection_options, run_or_exit
from moorage.client import uri
from moorage.client.cluster import Cluster
from moorage.wire.errors import Invalid


@click.group()
def hadoop() -> None:
    """Stand in for the program `hadoop` of an agent: `uris` of tasks may be moorage:///BUCKET/KEY then.

    \b
    printf '#!/bin/sh\\nexec moorage hadoop "$@"\\n' >/opt/moorage/bin/hadoop
    chmod +x /opt/moorage/bin/hadoop
    mesos-agent --hadoop_home=/opt/moorage ...
    """


@hadoop.command()
def version() -> None:
    """Say which version this is: a fetcher asks before it uses it."""
    click.echo(f"Moorage {moorage.__version__}")


@hadoop.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", type=click.Choice(["-copyToLocal", "-get", "-du", "-test"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@connection_options
def fs(
    command: str,
    arguments: tuple[str, ...],
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """-copyToLocal URI FILE, -get URI FILE, -du URI, -test -e URI."""
    flags = [each for each in arguments if each.startswith("-")]
    names = [each for each in arguments if not each.startswith("-")] or [""]
    into = Path(names[-1])
    is_folder = into.is_dir()
    wanted = 2 if command in ("-copyToLocal", "-get") else 1

    async def run() -> None:
        if len(names) != wanted or (command == "-test" and flags != ["-e"]):
            raise Invalid(f"moorage hadoop fs {command}: {fs.__doc__}")
        address = uri.parse(names[0])
        if not address.path:
            raise Invalid(f"{names[0]} is no object: write moorage:///BUCKET/KEY")
        named = cluster or address.cluster or None
        async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
            if command == "-du":
                info = await (await connected.bucket(address.name)).head(address.path)
                click.echo(f"{info.size}  {names[0]}")
            elif command == "-test":
                await (await connected.bucket(address.name)).head(address.path)
            else:
                name = address.path.rpartition("/")[2]
                await _copy(connected, address, into / name if is_folder else into)

    run_or_exit(run, as_json=as_json)


async def _copy(cluster: Cluster, address: uri.Address, into: Path) -> None:
    _, reader = await (await cluster.bucket(address.name)).open(address.path)
    handle, partial = tempfile.mkstemp(dir=into.parent, prefix=f".{into.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in reader:
                await asyncio.to_thread(file.write, piece)
        os.chmod(partial, 0o644)
        os.replace(partial, into)
    except BaseException:
        os.unlink(partial)
        raise
