"""`moorage registry|metadata|node|host` and `moorage secret`: from the shell to the services.

Owns the glue: which services a process runs, and what each is built from. Flags come from the one table
of options; everything else is `moorage.service.lifecycle`. docs/launch.md is the contract.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from moorage.service.embed import EmbeddedService
from moorage.service.http import create_token
from moorage.service.lifecycle import Build, Launch, complain, run
from moorage.service.options import Option, options_of
from moorage.wire.errors import MoorageError
from moorage.wire.secret import ClusterSecret


def build_registry(launch: Launch) -> list[EmbeddedService]:
    return [_registry(launch, launch.directory)]


def build_metadata(launch: Launch) -> list[EmbeddedService]:
    assert launch.settings.registry is not None
    return [_metadata(launch, launch.directory, launch.settings.registry)]


def build_node(launch: Launch) -> list[EmbeddedService]:
    assert launch.settings.registry is not None
    return [_node(launch, launch.directory, launch.settings.registry)]


def build_host(launch: Launch) -> list[EmbeddedService]:
    """All three, each in its own subdirectory. The registry that the others use is this process's own
    group: its member here is asked first, since it knows the leader wherever the others have moved to."""
    others = [address for name, address in launch.settings.peers.items() if name != launch.settings.name]
    spec = ",".join([launch.address, *others])
    return [
        _registry(launch, launch.directory / "registry"),
        _metadata(launch, launch.directory / "metadata", spec),
        _node(launch, launch.directory / "node", spec),
    ]


def _registry(launch: Launch, directory: Path) -> EmbeddedService:
    from moorage.registry.health import Timings
    from moorage.registry.service import RegistryConfig, RegistryService

    settings = launch.settings
    return RegistryService(
        RegistryConfig(
            name=settings.name,
            directory=directory,
            address=launch.address,
            http=launch.http,
            peers=_peers(launch),
            secret=launch.secret,
            hello=launch.hello,
            timings=Timings(settings.heartbeat_ms, settings.suspect_ms, settings.down_ms),
        )
    )


def _metadata(launch: Launch, directory: Path, registry: str) -> EmbeddedService:
    from moorage.client.repairer import Repairer
    from moorage.metadata.service import MetadataConfig, MetadataService

    settings = launch.settings
    return MetadataService(
        MetadataConfig(
            name=settings.name,
            group=settings.group,
            directory=directory,
            address=launch.address,
            http=launch.http,
            registry=registry,
            secret=launch.secret,
            hello=launch.hello,
            peers=_peers(launch),
            lease_ms=settings.lease_ms,
            repair_after_ms=settings.repair_after_s * 1000,
        ),
        Repairer(launch.hello, launch.secret),
    )


def _node(launch: Launch, directory: Path, registry: str) -> EmbeddedService:
    from moorage.node.config import NodeConfig
    from moorage.node.service import NodeService

    settings = launch.settings
    return NodeService(
        NodeConfig(
            data_dir=directory,
            name=settings.name,
            secret=launch.secret,
            registry=registry,
            address=lambda: launch.address,
            http=lambda: launch.http,
            labels=tuple(sorted(settings.labels.items())),
            capacity=settings.capacity,
            heartbeat_ms=settings.heartbeat_ms,
            read_lease_ms=settings.read_lease_ms,
            scrub_period_s=settings.scrub_period,
            copy_within_s=settings.copy_within,
            background_rate=settings.background_rate,
        )
    )


def _peers(launch: Launch) -> dict[str, str]:
    """The first members of a group. The own address is what this process listens on, also when --peers
    says another."""
    others = {name: where for name, where in launch.settings.peers.items() if name != launch.settings.name}
    return others if launch.settings.join else {**others, launch.settings.name: launch.address}


def _command(service: str, build: Build, help_text: str) -> click.Command:
    def callback(**flags: str | None) -> None:
        sys.exit(run(service, flags, build))

    params: list[click.Parameter] = [
        click.Option([option.flag, option.name], metavar=option.type, help=_help_of(option))
        for option in options_of(service)
    ]
    return click.Command(service, params=params, callback=callback, help=help_text)


def _host() -> click.Group:
    """Runs the services of a host; its subcommands are about hosts of a cluster."""
    from moorage.cli import places

    runs = _command("host", build_host, "")
    group = click.Group(
        "host",
        invoke_without_command=True,
        params=runs.params,
        help="Run registry, metadata and node of one host in one process; or empty a host, or give it up.",
    )

    @click.pass_context
    def callback(context: click.Context, /, **flags: str | None) -> None:
        if context.invoked_subcommand is None:
            assert runs.callback is not None
            runs.callback(**flags)

    group.callback = callback
    for command in (
        places.list_hosts,
        places.drain_of("host"),
        places.undrain_of("host"),
        places.evict_of("host"),
    ):
        group.add_command(command)
    return group


def _help_of(option: Option) -> str:
    default = f" Default: {option.default}." if option.default else ""
    return f"{option.help}{default} [{option.variable}]"


registry = _command(
    "registry", build_registry, "Run one member of the registry: who is in the cluster, and how well."
)
metadata = _command(
    "metadata", build_metadata, "Run one member of a metadata group: what volumes exist, and who may write."
)
node = _command("node", build_node, "Run the data node of one device.")
host = _host()


@click.command("create")
@click.argument("path", type=click.Path(path_type=Path))
def secret_create(path: Path) -> None:
    """Make a new cluster: write its id and secret to PATH (mode 0600). Every service and client needs a
    copy."""
    _made(lambda: ClusterSecret.create(path).cluster, path, "cluster {} has its secret in {}")


@click.command("token")
@click.argument("path", type=click.Path(path_type=Path))
def secret_token(path: Path) -> None:
    """Write a new bearer token of the JSON API to PATH (mode 0600), for --token-file."""
    _made(lambda: create_token(path), path, "a token is in {1}")


def _made(make: Callable[[], object], path: Path, words: str) -> None:
    try:
        made = make()
    except MoorageError as error:
        sys.exit(int(complain("secret", error)))
    click.echo(words.format(made, path))
