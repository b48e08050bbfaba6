"""The command `moorage`: one table of commands, each imported only when it is asked for.

Owns the table and the outermost handler. A service must not pay for the client library's imports, nor
`--help` for any of them; and what goes wrong anywhere below ends as one line and an exit code of
`moorage.service.exits`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

# Command -> "module:attribute", or a table of its own.
SECRET = {
    "create": "moorage.cli.services:secret_create",
    "token": "moorage.cli.services:secret_token",
}
BENCH = {
    "background": "moorage.cli.background:background",
    "block": "moorage.cli.bench:block",
    "bucket": "moorage.cli.bench_bucket:bucket",
    "object": "moorage.cli.bench_object:bench_object",
    "takeover": "moorage.cli.takeover.main:takeover",
    "verify": "moorage.cli.verify:verify",
}
DRILL = {
    "all": "moorage.cli.drill.main:every",
    "bit-rot": "moorage.cli.drill.main:bit_rot",
    "full-disk": "moorage.cli.drill.main:full_disk",
    "host-loss": "moorage.cli.drill.main:host_loss",
    "move": "moorage.cli.drill.main:move",
    "partition": "moorage.cli.drill.main:partition",
    "repair": "moorage.cli.drill.main:repair",
    "silent-host": "moorage.cli.drill.main:silent_host",
    "zombie": "moorage.cli.drill.main:zombie",
}
DVDI = {
    "run": "moorage.cli.dvdi:run_task",
}
QUOTA = {
    "list": "moorage.cli.quota:list_quotas",
    "remove": "moorage.cli.quota:remove",
    "set": "moorage.cli.quota:set_quota",
}
TABLE = {
    "apply": "moorage.cli.table:apply",
    "get": "moorage.cli.table:get",
    "set": "moorage.cli.table:set_table",
}
COMMANDS: dict[str, str | dict[str, str]] = {
    "attach": "moorage.cli.attach:attach",
    "automount": "moorage.cli.automount:automount",
    "backup": "moorage.cli.backup:backup",
    "balance": "moorage.cli.balance:balance",
    "bench": BENCH,
    "csi": "moorage.cli.csi:csi",
    "demo": "moorage.cli.demo.main:demo",
    "bucket": "moorage.cli.bucket:bucket",
    "demo-mysql": "moorage.cli.demo.databases.main:demo_mysql",
    "device": "moorage.cli.places:device",
    "docker": "moorage.cli.docker:docker",
    "drill": DRILL,
    "dvdcli": "moorage.cli.dvdcli:dvdcli",
    "dvdi": DVDI,
    "events": "moorage.cli.why:events",
    "framework": "moorage.cli.framework:framework",
    "hadoop": "moorage.cli.hadoop:hadoop",
    "health": "moorage.cli.health:health",
    "host": "moorage.cli.services:host",
    "key": "moorage.cli.key:key",
    "member": "moorage.cli.member:member",
    "metadata": "moorage.cli.services:metadata",
    "mount": "moorage.cli.mount:mount",
    "mounts": "moorage.cli.mount:mounts",
    "node": "moorage.cli.services:node",
    "object": "moorage.cli.objects:objects",
    "quota": QUOTA,
    "registry": "moorage.cli.services:registry",
    "resolve": "moorage.cli.resolve:resolve",
    "s3": "moorage.cli.s3:s3",
    "scrub": "moorage.cli.scrub:scrub",
    "secret": SECRET,
    "snapshot": "moorage.cli.snapshot:snapshot",
    "status": "moorage.cli.status:status",
    "table": TABLE,
    "umount": "moorage.cli.mount:umount",
    "up": "moorage.cli.up:up",
    "volume": "moorage.cli.volume:volume",
    "why": "moorage.cli.why:why",
}
_HELP = {
    "bench": "Measure volumes and buckets, load a volume and verify it, or measure how it is taken over.",
    "drill": "Try the failures on this cluster, on a scratch volume under load, and judge what was measured.",
    "dvdi": "Volumes of a task that names them in its environment.",
    "quota": "Limit what the volumes and buckets of a principal (a team, a framework) come to.",
    "secret": "Make the files that services and clients prove themselves with.",
    "table": "Say what is mounted where on all hosts, and make it so on this one.",
}


class LazyGroup(click.Group):
    """A group whose commands are names until they are used."""

    def __init__(self, *, table: Mapping[str, str | dict[str, str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self._table.get(cmd_name)
        if found is None:
            return None
        if isinstance(found, dict):
            return LazyGroup(name=cmd_name, table=found, help=_HELP[cmd_name])
        module, _, attribute = found.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


class Program(LazyGroup):
    """The outermost group. With ``--json``, what click says of the command line is JSON like other errors."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        options = given[: given.index("--")] if "--" in given else given
        if "--json" not in options:
            return super().main(given, *more, **extra)
        try:
            sys.exit(super().main(given, *more, **{**extra, "standalone_mode": False}))
        except click.ClickException as error:
            from moorage.cli.output import emit_error
            from moorage.wire.errors import Invalid

            emit_error(Invalid(error.format_message()), as_json=True)
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(1)


@click.group(cls=Program, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moorage", message="%(prog)s %(version)s")
def main() -> None:
    """Moorage: replicated volumes for tasks on a cluster.

    Try `moorage up` for a cluster on this machine, `moorage demo` to see it survive.
    """


if __name__ == "__main__":
    sys.exit(main(prog_name="moorage"))
