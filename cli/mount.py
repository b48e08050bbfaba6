"""`moorage mount`, `umount` and `mounts`: volumes as file systems on this host."""

from __future__ import annotations

import dataclasses
import os

import click

from moorage.cli import output
from moorage.cli.options import Seconds, cluster_of, connection_options, run_or_exit
from moorage.wire.errors import Invalid

_STATE_DIR = click.option(
    "--state-dir", help="Where mounts are noted [env: MOORAGE_STATE_DIR; default: /run/moorage/mounts]."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def _owner(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    from moorage.client.mount_table import parse_owner

    try:
        return parse_owner(value)
    except Invalid as error:
        raise click.BadParameter(f"{error}.") from None


@click.command()
@click.argument("volume")
@click.argument("path", type=click.Path())
@click.option("--fs", type=click.Choice(["ext4", "xfs"]), help="File system of a new volume [default: ext4].")
@click.option("--owner", callback=_owner, help="UID:GID of the root directory of a new file system.")
@click.option("--read-only", is_flag=True, help="Several hosts may at once, while nobody writes.")
@click.option("--force", is_flag=True, help="Take it from its holder, who is fenced.")
@click.option("--overwrite", is_flag=True, help="Format it, whatever it holds: ALL ITS DATA IS LOST.")
@click.option("-o", "--options", default="", help="Mount options of the file system, as for mount(8).")
@click.option(
    "--wait", type=Seconds(min=0), default=10.0, show_default=True, help="For a holder that seems dead."
)
@_STATE_DIR
@connection_options
def mount(
    volume: str,
    path: str,
    fs: str | None,
    owner: tuple[int, int] | None,
    read_only: bool,
    force: bool,
    overwrite: bool,
    options: str,
    wait: float,
    state_dir: str | None,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Mount VOLUME (a name or a moorage:// URI) at the directory PATH.

    A volume that is new and blank gets a file system first; one that holds anything is never formatted
    without --overwrite. The mount stays until `moorage umount`. One host at a time writes to a volume: where
    another one has it mounted and lives, this fails and says who; where that one is dead, its lease (4 s) is
    waited for.
    """

    async def run() -> None:
        import moorage
        from moorage.gateway.mount import mounting

        mounting.check_host()  # before anything is asked of the cluster
        named = cluster_of(cluster, registry, [volume])
        async with await moorage.connect(named, registry=registry, secret_file=secret_file) as connected:
            if overwrite and not read_only:
                click.echo(f"moorage: --overwrite: ALL THAT {volume} HOLDS WILL BE LOST", err=True)
            mounted = await connected.mount(
                volume,
                path,
                fs=fs,
                owner=owner,
                read_only=read_only,
                force=force,
                overwrite=overwrite,
                options=[option for option in options.split(",") if option],
                wait=wait,
                state_dir=state_dir,
                by=f"moorage mount ({os.environ.get('SUDO_USER', 'root')})",
            )
        if as_json:
            output.emit_json(dataclasses.asdict(mounted))
        else:
            on = f"{mounted.fs} on {mounted.device}, epoch {mounted.epoch}"
            click.echo(f"{mounted.volume} is mounted at {mounted.target} ({on})")

    run_or_exit(run, as_json=as_json)


@click.command()
@click.argument("what")
@click.option(
    "--force", is_flag=True, help="Also when its volume does not answer: WHAT WAS NOT WRITTEN IS LOST."
)
@click.option(
    "--timeout", type=Seconds(min=0.1), default=60.0, show_default=True, help="Seconds to write back."
)
@_STATE_DIR
@_JSON
def umount(what: str, force: bool, timeout: float, state_dir: str | None, as_json: bool) -> None:
    """Unmount WHAT, a mount point or a volume, and let the volume go."""

    async def run() -> None:
        from moorage.gateway.mount import unmounting
        from moorage.gateway.mount.record import StateDirectory, state_directory
        from moorage.gateway.mount.system import check_root

        check_root()
        directory = StateDirectory(state_directory(state_dir))
        place = unmounting.find(directory, what)
        record = place.load()
        await unmounting.unmount(place, force=force, timeout=timeout)
        if as_json:
            output.emit_json({"volume": record.volume, "target": record.target})
        else:
            click.echo(f"{record.volume} is unmounted from {record.target}")

    run_or_exit(run, as_json=as_json)


@click.command()
@_STATE_DIR
@_JSON
def mounts(state_dir: str | None, as_json: bool) -> None:
    """List what is mounted on this host: where, by whom, with which epoch, and how it is."""

    async def run() -> None:
        from moorage.gateway.mount.mounting import mounts as list_mounts
        from moorage.gateway.mount.record import StateDirectory, state_directory

        directory = state_directory(state_dir)
        if directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK):
            raise Invalid(f"{directory} is for root only: run it with sudo")
        found = list_mounts(StateDirectory(directory))
        if as_json:
            output.emit_json([dataclasses.asdict(each) for each in found])
            return
        rows = [
            (each.volume, each.target, each.fs, each.device, each.epoch, each.by, each.state)
            for each in found
        ]
        columns = ("volume", "path", "fs", "device", "epoch", "by", "state")
        output.console().print(output.table("Mounts", columns, rows))
        for each in found:
            if each.reason:
                click.echo(f"{each.target}: {each.reason}")

    run_or_exit(run, as_json=as_json)
