"""`moorage framework`: Moorage's services as tasks of a Mesos cluster, on reserved persistent volumes."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from rich.text import Text

import moorage
from moorage.cli import output
from moorage.cli.options import run_or_exit
from moorage.framework.core import Core
from moorage.framework.master import Credentials, Master
from moorage.framework.release import release_all
from moorage.framework.rollout import Rollout
from moorage.framework.scheduler import Scheduler, find_spec, look_at_agents
from moorage.framework.spec import Spec, document_of, parse
from moorage.framework.view import plan_of, waits_of
from moorage.wire.errors import Invalid, NotFound, Unavailable
from moorage.wire.secret import read_private

Command = Callable[..., None]
P = ParamSpec("P")


@click.group()
def framework() -> None:
    """Run Moorage's services on a Mesos cluster: plan, deploy, keep running, change, give back."""


@dataclass(frozen=True)
class Where:
    """What says which cluster is meant: a file with its spec, or ``name`` and ``principal`` of the framework
    of which the master keeps it."""

    spec_path: Path | None
    name: str
    principal: str
    masters: tuple[str, ...]
    secret_file: Path | None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Master, Spec]]:
        """The master, and the spec. Raises Invalid or NotFound."""
        spec = load_spec(self.spec_path) if self.spec_path is not None else None
        principal = spec.principal if spec is not None else self.principal
        credentials = None
        if self.secret_file is not None:
            secret = read_private(self.secret_file, "Mesos secret file").decode("utf-8", "replace")
            credentials = Credentials(principal, secret.rstrip("\n"))
        async with Master(self.masters, credentials=credentials) as master:
            yield master, spec or await find_spec(master, self.name, principal)


def master_options(command: Callable[Concatenate[Where, P], None]) -> Command:
    """SPEC, or --name and --principal; --master and --mesos-secret-file; --json is the command's own."""

    @functools.wraps(command)
    def packed(
        spec_path: Path | None,
        name: str | None,
        principal: str | None,
        masters: tuple[str, ...],
        mesos_secret_file: Path | None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        if spec_path is not None and (name or principal):
            raise click.UsageError("SPEC has name and principal: give it, or --name and --principal.")
        if spec_path is None and not name:
            raise click.UsageError("Give SPEC, or the --name of the framework whose spec the master keeps.")
        named = name or ""
        command(Where(spec_path, named, principal or named, masters, mesos_secret_file), *args, **kwargs)

    made: Command = packed
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
        click.option(
            "--mesos-secret-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File (mode 0600) with the secret of the principal, where masters ask for it.",
        ),
        click.option(
            "--master",
            "masters",
            multiple=True,
            required=True,
            metavar="HOST:PORT",
            help="A Mesos master; may be repeated. The one that leads is found. [MOORAGE_MESOS_MASTER]",
            envvar="MOORAGE_MESOS_MASTER",
        ),
        click.option("--principal", help="Without SPEC: of the framework, if it is not called like it."),
        click.option("--name", help="Without SPEC: of the framework whose spec the master keeps."),
        click.argument(
            "spec_path", metavar="[SPEC]", required=False, type=click.Path(path_type=Path, dir_okay=False)
        ),
    ):
        made = option(made)
    return made


def load_spec(path: Path) -> Spec:
    """Raises Invalid, which names the file and the field."""
    import yaml

    try:
        return parse(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise Invalid(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    except Invalid as error:
        raise Invalid(f"{path}: {error}") from None


@framework.command()
@master_options
def plan(where: Where, as_json: bool) -> None:
    """Show what `run` would reserve, create and launch on which agent, and what is in the way. Changes
    nothing."""

    async def run() -> None:
        async with where.open() as (master, spec):
            core = Core(spec, str)
            core.known_tasks(await master.query("GET_TASKS"), 0.0)
            core.inventory(*await look_at_agents(master), 0.0)
        _show_plan(plan_of(core, spec, core.plan), as_json)

    run_or_exit(run, as_json=as_json)


def scheduler_options(command: Command) -> Command:
    """Of commands that a scheduler that runs is told."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
        click.option(
            "--token-file",
            required=True,
            type=click.Path(path_type=Path, dir_okay=False),
            help="File (mode 0600) with the bearer token of `run --token-file`.",
        ),
        click.option("--address", required=True, metavar="HOST:PORT", help="Where `run --http` listens."),
    ):
        command = option(command)
    return command


async def _tell(address: str, token_file: Path, name: str, params: dict[str, Any]) -> dict[str, Any]:
    from moorage.framework.remote import call
    from moorage.service.http import load_token

    return await call(address, load_token(token_file), f"framework.{name}", params)


@framework.command()
@click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path, dir_okay=False))
@scheduler_options
@click.option("--dry-run", is_flag=True, help="Show the plan; nothing is changed.")
def apply(spec_path: Path, address: str, token_file: Path, dry_run: bool, as_json: bool) -> None:
    """Give the scheduler that runs a new spec, and show what follows from it. The master keeps it; another
    command, image or other options go round host by host."""

    async def run() -> None:
        params = {"spec": document_of(load_spec(spec_path)), "dry_run": dry_run}
        _show_plan(await _tell(address, token_file, "apply", params), as_json)

    run_or_exit(run, as_json=as_json)


@framework.command()
@click.option("--image", help="Of the containers that the tasks run in.")
@click.option("--version", help="Tag of the image, which stays the same but for that.")
@click.option("--command", "line", help="That starts `moorage`, as one would type it.")
@scheduler_options
@click.option("--dry-run", is_flag=True, help="Show the plan; nothing is changed.")
def upgrade(
    image: str | None,
    version: str | None,
    line: str | None,
    address: str,
    token_file: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Have a new release go round, host by host: the spec that the master keeps, with another image or
    command. It waits for all to be well after each host, and goes back by itself when it does not hold.
    `rollout` holds it, or takes it back."""

    async def run() -> None:
        params: dict[str, Any] = {"dry_run": dry_run}
        if image is not None:
            params["image"] = image
        if version is not None:
            params["version"] = version
        if line is not None:
            params["command"] = shlex.split(line)
        _show_plan(await _tell(address, token_file, "upgrade", params), as_json)

    run_or_exit(run, as_json=as_json)


@framework.command()
@click.argument("action", type=click.Choice(["pause", "resume", "abort", "force"]))
@scheduler_options
def rollout(action: str, address: str, token_file: Path, as_json: bool) -> None:
    """A release that goes round: no other host's turn comes (pause) until it goes on (resume); everything
    goes back to the former release (abort); the next hosts do not wait until all is well (force)."""

    async def run() -> None:
        await _tell(address, token_file, "rollout", {"action": action})
        if as_json:
            output.emit_json({"action": action})
        else:
            click.echo(f"{action}: the scheduler does so; `run` says how far it is")

    run_or_exit(run, as_json=as_json)


def _show_plan(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.emit_json(made)
        return
    console = output.console()
    rows = [
        (each["instance"], each["agent"], output.size(each["disk_mib"] << 20), each["port"], each["step"])
        for each in made["steps"]
    ]
    console.print(output.table("Plan", ("instance", "agent", "disk", "port", "what is done"), rows))
    for problem in made["problems"]:
        console.print(Text(problem, style="yellow"))


@framework.command("run")
@master_options
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Where the scheduler's own JSON API and probes listen; needs --token-file. Port 0: any free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File (mode 0600) with the bearer token of that API, from `moorage secret token`.",
)
@click.option(
    "--new",
    "is_new",
    is_flag=True,
    help="No agent holds anything of this cluster, also none that is unreachable now.",
)
def run_framework(
    where: Where, as_json: bool, http: str | None, token_file: Path | None, is_new: bool
) -> None:
    """Deploy what SPEC says and keep it running, until Ctrl-C: tasks go on without it. The master keeps SPEC:
    with --name instead of it, here or elsewhere, this goes on with what it was run with, or given by `apply`,
    last. A SPEC that is another one takes the place of that. Without --json a line for each change; with it a
    JSON object."""

    async def run() -> None:
        show = _Changes(as_json)
        async with where.open() as (master, spec):
            scheduler = Scheduler(spec, master, show, is_new)
            async with _served(scheduler, http, token_file) as address:
                show.http = address
                await scheduler.run()

    run_or_exit(run, as_json=as_json)


@asynccontextmanager
async def _served(scheduler: Scheduler, http: str | None, token_file: Path | None) -> AsyncIterator[str]:
    """The scheduler's own HTTP, if it is asked for: HOST:PORT."""
    if http is None:
        yield ""
        return
    from prometheus_client import CollectorRegistry

    from moorage.framework.api import Api
    from moorage.service.http import HttpServer, load_token

    if token_file is None:
        raise Invalid("--http needs --token-file: `moorage secret token PATH` makes one")
    host, _, port = http.rpartition(":")
    if not host or not port.isdecimal():
        raise Invalid(f"--http {http!r}: use HOST:PORT")
    api = Api(scheduler)
    server = HttpServer(
        token=load_token(token_file), metrics=CollectorRegistry(), not_ready=api.not_ready, page=api.page
    )
    server.add_routes(api.routes())
    bound = await server.start(host.strip("[]"), int(port))
    try:
        yield f"{host}:{bound}"
    finally:
        await server.stop()


class _Changes:
    """One line whenever what runs, or what is waited for, is another than before."""

    def __init__(self, as_json: bool) -> None:
        self.http = ""
        self._as_json = as_json
        self._shown: dict[str, Any] = {}
        self._since = time.monotonic()

    def __call__(self, core: Core) -> None:
        tasks = core.alive()
        wanted = sorted(
            {*core.plan.bindings, *(each.instance for each in core.plan.wanted)} - core.plan.former
        )
        running = [str(each) for each in wanted if each in tasks and tasks[each].state == "TASK_RUNNING"]
        found: dict[str, Any] = {
            "wanted": len(wanted),
            "running": running,
            "waits": waits_of(core),
            "problems": core.problems(),
            "registry": core.registry(),
            "rollout": _rollout(core.rollout),
            "maintenance": core.maintenance.states(),
            "http": self.http,
        }
        if found == self._shown or (not wanted and not found["problems"]):
            return
        self._shown = found
        seconds = round(time.monotonic() - self._since, 1)
        if self._as_json:
            output.emit_json_line({"seconds": seconds, **found})
        else:
            click.echo(f"{seconds:8.1f} s  {len(running)} of {len(wanted)} tasks run")
            for text in [*(f"{key}: {why}" for key, why in found["waits"].items()), *found["problems"]]:
                click.echo(f"            {text}")
            for host, state in found["maintenance"].items():
                click.echo(f"            planned maintenance of {host}: {state}")
            if found["rollout"]:
                click.echo(f"            new release: {found['rollout']}")
            elif wanted and len(running) == len(wanted) and not found["waits"]:
                click.echo(f"            for clients: MOORAGE_REGISTRY={','.join(found['registry'])}")


def _rollout(rollout: Rollout) -> str:
    if not rollout.is_under_way:
        return f"taken back: {rollout.failed}" if rollout.failed else ""
    back = f"taken back ({rollout.failed}), " if rollout.failed else ""
    return f"{back}it is the turn of {rollout.current or 'the next host'}" + (
        f"; waits: {rollout.waits}" if rollout.waits else ""
    )


@framework.command()
@click.argument("agent")
@master_options
@click.option("--no-wait", is_flag=True, help="Do not look on until it is empty.")
def drain(where: Where, agent: str, as_json: bool, no_wait: bool) -> None:
    """Empty the host of AGENT, an agent id or its host name: `moorage host drain` for who knows Mesos' names.

    `moorage host undrain` with the host's name ends it."""
    from moorage.cli.places import look_on

    async def run() -> None:
        async with where.open() as (master, spec):
            core = Core(spec, str)
            core.inventory(*await look_at_agents(master), 0.0)
        hosts = [each.host for each in core.agents.values() if agent in (each.id, each.hostname)]
        if len(hosts) != 1:
            known = ", ".join(sorted(f"{each.hostname} ({each.id})" for each in core.agents.values()))
            raise NotFound(f"{len(hosts)} agents are called {agent!r}: there are {known or 'none'}")
        if not (registry := ",".join(core.registry())):
            raise Unavailable(f"the cluster {spec.name} has no registry yet: nothing is there to be emptied")
        connecting = moorage.connect(registry=registry, secret_file=spec.secret_file)
        async with await connecting as cluster:
            await cluster.places.drain("host", hosts[0])
            await look_on(cluster, "host", hosts[0], as_json, no_wait)

    run_or_exit(run, as_json=as_json)


@framework.command()
@master_options
@click.option("--yes", is_flag=True, help="Do it: all data of the cluster is destroyed.")
def release(where: Where, as_json: bool, yes: bool) -> None:
    """Give everything back to Mesos: end the framework and its tasks, destroy all its volumes WITH ALL DATA,
    and unreserve. Nothing else ever does that."""

    async def run() -> None:
        async with where.open() as (master, spec):
            if not yes:
                raise Invalid(
                    f"this destroys all data of the cluster {spec.name}: say --yes if that is what you want"
                )
            done = await release_all(master, spec)
        if as_json:
            output.emit_json(done)
        else:
            click.echo(f"released: {done['volumes']} volumes, {done['reservations']} reservations")
            if done["unreachable"]:
                click.echo(f"{done['unreachable']} agents are unreachable: repeat this when they are back")

    run_or_exit(run, as_json=as_json)
