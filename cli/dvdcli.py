"""`dvdcli`, as Mesos's docker/volume isolator and others call it, with the volumes of Moorage behind it.

Owns the arguments and the output: a path, or JSON. It needs no service on the host. The cluster is found by
the environment (or by the name, when that is a URI that says one). docs/docker.md tells how Mesos uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import output
from moorage.cli.options import run_or_exit
from moorage.wire.errors import DeadlineExceeded, Invalid, NotFound

if TYPE_CHECKING:
    from moorage.client.cluster import Cluster
    from moorage.gateway.docker.volumes import HostVolumes

DRIVER = "moorage"
DEADLINE_S = 95.0  # Mesos waits for 120 s; what was begun is taken back in what is left
ANONYMOUS = ""  # all tasks of an agent are one user: its isolator counts them

_DRIVER = click.option("--volumedriver", "driver", default=DRIVER, help='"moorage".')
_NAME = click.option("--volumename", "name", required=True, help="Name of the volume, or its URI.")
_OPTS = click.option("--volumeopts", "opts", multiple=True, metavar="KEY=VALUE", help="Such as size=10G.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dvdcli() -> None:
    """Mount volumes on this host for those who ask for a path."""


@dvdcli.command()
@_DRIVER
@_NAME
@_OPTS
def mount(driver: str, name: str, opts: tuple[str, ...]) -> None:
    """Mount a volume and print where. With a size among the options, one that is missing is created."""

    async def run() -> None:
        from moorage.gateway.docker.wish import parse_pairs, wish

        _check(driver)
        address = wish(name, parse_pairs(opts))
        async with host_volumes(address.cluster) as volumes:
            for problem in await volumes.put_right():
                click.echo(f"moorage: {problem}", err=True)
            click.echo(await volumes.mount(address, ANONYMOUS, "dvdcli"))

    _run(run)


@dvdcli.command()
@_DRIVER
@_NAME
def unmount(driver: str, name: str) -> None:
    """Unmount a volume. Where nothing is mounted that is done already."""

    async def run() -> None:
        from moorage.gateway.docker.wish import wish

        try:
            _check(driver)
            address = wish(name)
        except Invalid:
            return  # nothing of that kind was ever mounted
        async with host_volumes(address.cluster) as volumes:
            await volumes.unmount(address.name, ANONYMOUS)

    _run(run)


@dvdcli.command()
@_DRIVER
@_NAME
def path(driver: str, name: str) -> None:
    """Print where a volume is mounted."""

    async def run() -> None:
        from moorage.gateway.docker.wish import wish

        _check(driver)
        address = wish(name)
        async with host_volumes(address.cluster) as volumes:
            found = volumes.path(address.name)
            if not found:
                raise NotFound(f"volume {address.name!r} is not mounted on this host by dvdcli")
            click.echo(found)

    _run(run)


@dvdcli.command()
@_DRIVER
@_NAME
@_OPTS
def create(driver: str, name: str, opts: tuple[str, ...]) -> None:
    """Create a volume; one that exists stays as it is."""

    async def run() -> None:
        from moorage.gateway.docker.wish import parse_pairs, wish

        _check(driver)
        address = wish(name, parse_pairs(opts))
        async with host_volumes(address.cluster) as volumes:
            click.echo((await volumes.create(address)).name)

    _run(run)


@dvdcli.command()
@_DRIVER
@_NAME
def remove(driver: str, name: str) -> None:
    """Delete a volume: ALL ITS DATA IS LOST. Refused while somebody uses it."""

    async def run() -> None:
        from moorage.gateway.docker.wish import wish

        _check(driver)
        address = wish(name)
        async with host_volumes(address.cluster) as volumes:
            await volumes.remove(address)

    _run(run)


@dvdcli.command()
@_DRIVER
@_NAME
def get(driver: str, name: str) -> None:
    """Describe a volume, as JSON."""

    async def run() -> None:
        from moorage.gateway.docker.wish import wish

        _check(driver)
        address = wish(name)
        async with cluster(address.cluster) as connected, host_volumes(address.cluster) as volumes:
            info = await connected.show(address.name)
            output.emit_json(
                {"Name": info.name, "Mountpoint": volumes.path(info.name), "Status": {"size": info.size}}
            )

    _run(run)


@dvdcli.command("list")
@_DRIVER
def list_volumes(driver: str) -> None:
    """List the volumes of the cluster, as JSON."""

    async def run() -> None:
        _check(driver)
        async with cluster("") as connected, host_volumes("") as volumes:
            found = await connected.list_volumes()
            output.emit_json([{"Name": each.name, "Mountpoint": volumes.path(each.name)} for each in found])

    _run(run)


def _check(driver: str) -> None:
    if driver != DRIVER:
        raise Invalid(f"volume driver {driver!r} is not served by this dvdcli: use {DRIVER!r}")


@contextlib.asynccontextmanager
async def cluster(name: str) -> AsyncIterator[Cluster]:
    import moorage

    async with await moorage.connect(name or None) as connected:
        yield connected


@contextlib.asynccontextmanager
async def host_volumes(name: str) -> AsyncIterator[HostVolumes]:
    """The volumes of this host, or of this Mesos agent. ``name``: of the cluster, connected to at need."""
    import moorage
    from moorage.gateway.docker import root
    from moorage.gateway.docker.service import LazyCluster
    from moorage.gateway.docker.volumes import HostVolumes
    from moorage.gateway.mount.record import state_directory
    from moorage.gateway.mount.system import check_root

    check_root()
    lazy = LazyCluster(lambda: moorage.connect(name or None))
    volumes = HostVolumes(lazy, root.of_agent(state_directory()), root.of_agent(root.mount_root()))
    volumes.prepare()
    try:
        yield volumes
    finally:
        await lazy.close()


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await main()
        except TimeoutError:
            raise DeadlineExceeded(f"not done within {DEADLINE_S:g} s: see `moorage status`") from None

    run_or_exit(bounded, as_json=False)


if __name__ == "__main__":
    dvdcli(prog_name="dvdcli")
