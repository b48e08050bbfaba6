"""`moorage member`: who is in the Raft groups of the registry and of metadata, and who replaces whom."""

from __future__ import annotations

from collections.abc import Callable

import click

from moorage.cli import output
from moorage.cli.options import cluster_command
from moorage.client.cluster import Cluster
from moorage.wire import address
from moorage.wire.errors import Invalid


@click.group()
def member() -> None:
    """Look at the members of the registry and of the metadata groups, and replace them."""


@member.command("list")
@cluster_command
async def list_members(cluster: Cluster, as_json: bool) -> None:
    """List all members, who leads, and who does not answer."""
    members = cluster.members
    found = [each for group in await members.groups() for each in await members.list(group)]
    if as_json:
        output.emit_json([each.to_json() for each in found])
        return
    rows = [
        (each.group, each.name, _role(each.voter, each.leads), each.address, each.trouble) for each in found
    ]
    output.console().print(output.table("Members", ("group", "member", "role", "address", "trouble"), rows))


def _role(voter: bool, leads: bool) -> str:
    return "leader" if leads else "voter" if voter else "learner"


@member.command()
@click.argument("group")
@click.argument("new", metavar="NAME=HOST:PORT")
@cluster_command
async def add(cluster: Cluster, as_json: bool, group: str, new: str) -> None:
    """Add a member to GROUP (registry, or a metadata group such as m1). Start it first, with --join yes."""
    name, where = _parsed(new)
    await cluster.members.add(group, name, where, _told(as_json))
    _done(as_json, f"{name} votes in {group}", group=group, added=name)


@member.command()
@click.argument("group")
@click.argument("name")
@cluster_command
async def remove(cluster: Cluster, as_json: bool, group: str, name: str) -> None:
    """Take member NAME out of GROUP. Refused when the others that answer would be no majority."""
    await cluster.members.remove(group, name)
    text = f"{name} is no member of {group} any more: its process may be stopped"
    _done(as_json, text, group=group, removed=name)


@member.command()
@click.argument("group")
@click.argument("old")
@click.argument("new", metavar="NAME=HOST:PORT")
@cluster_command
async def replace(cluster: Cluster, as_json: bool, group: str, old: str, new: str) -> None:
    """A new member takes the place of OLD in GROUP. Start it first, with --join yes; when this is
    interrupted, the same command goes on."""
    name, where = _parsed(new)
    await cluster.members.replace(group, old, name, where, _told(as_json))
    _done(as_json, f"{name} has replaced {old} in {group}", group=group, added=name, removed=old)


def _parsed(text: str) -> tuple[str, str]:
    name, equals, where = text.partition("=")
    if not name or (equals and not where):
        raise Invalid(f"{text!r}: use NAME=HOST:PORT")
    return name, str(address.parse(where)) if where else ""


def _told(as_json: bool) -> Callable[[str], None]:
    return (lambda text: None) if as_json else (lambda text: click.echo(f"waiting: {text}", err=True))


def _done(as_json: bool, text: str, **fields: str) -> None:
    if as_json:
        output.emit_json(fields)
    else:
        click.echo(text)
