"""The commands: check the cluster, ask, drill, clean up, and judge.

Owns the order: nothing is touched before the cluster was found well and somebody has agreed, and whatever was
begun is undone, also after Ctrl-C, SIGTERM and errors.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from moorage.cli import output
from moorage.cli.drill import outcome as outcomes
from moorage.cli.drill.outcome import Budget, Outcome
from moorage.cli.drill.plan import choose_host, left_behind
from moorage.cli.drill.stage import (
    PREFIX,
    Options,
    Stage,
    describe_victim,
    healthy,
    scratch_volume,
    volume_size,
)
from moorage.cli.drill.steps import AWAY, NAMES, Drill, check_options, make
from moorage.cli.options import SIZE, Seconds, connection_options, run_or_exit
from moorage.cli.report import Report
from moorage.client.cluster import Cluster
from moorage.wire.errors import Invalid, MoorageError

BETWEEN_S = 60.0  # a host that came back is suspect until it has reported


class Runner:
    """Runs drills one after another, and asks before each."""

    def __init__(self, options: Options, *, yes: bool, as_json: bool) -> None:
        self._options = options
        self._yes = yes
        self._console = output.console(stderr=as_json)
        self.outcomes: list[Outcome] = []
        self.interrupted = 0  # the signal that ended it

    async def run(self, cluster: Cluster, names: Sequence[str], *, together: bool) -> None:
        """``together``: one that cannot be done here is skipped, one that fails does not end the others."""
        for name in names:
            outcome = Outcome(name, self._options.budget)
            report = Report(self._console)
            patience = BETWEEN_S if self.outcomes else 0.0
            outcome.promises, outcome.phases = report.promises, report.phases
            self.outcomes.append(outcome)
            report.step(f"drill: {name}")
            try:
                await self._one(cluster, outcome, report, patience)
            except Invalid as error:
                if not together:
                    raise
                outcome.skipped = str(error)
                report.step(f"skipped: {error}")
            except MoorageError as error:
                if not together:
                    raise
                outcome.error = str(error)
                report.step(f"failed: {error}")
            finally:
                report.quiet()

    async def _one(self, cluster: Cluster, outcome: Outcome, report: Report, patience: float) -> None:
        picture = await healthy(cluster, patience)
        for name in left_behind(picture, PREFIX):
            report.step(
                f"{name} is the scratch volume of a drill that was killed: `moorage volume delete {name}`"
            )
        size = volume_size(self._options)
        if outcome.drill == "full-disk":
            size = 2 * self._options.max_fill + (256 << 20)
        with tempfile.TemporaryDirectory(prefix="moorage-drill-") as directory:
            async with scratch_volume(cluster, report, size) as volume:
                members = {member["host"] for member in volume.groups[0]["members"]}
                away = outcome.drill in AWAY
                host = choose_host(picture, members, self._options.host, away=away)
                outcome.host = host if away or outcome.drill == "bit-rot" else ""
                victim = await describe_victim(cluster, volume, host)
                stage = Stage(cluster, report, self._options, outcome, Path(directory), volume, victim)
                drill = await make(outcome.drill, stage)
                await self._agreed(drill)
                await drill.run()
        for verdict in outcome.verdicts():
            report.promise(verdict.what, verdict.kept, verdict.figure, budget=True)

    async def _agreed(self, drill: Drill) -> None:
        if self._yes:
            return
        if not sys.stdin.isatty():
            raise Invalid(f"{drill.says}: say --yes to have that done on this cluster")
        if not await _asked(f"This drill: {drill.says}.\nGo on? [y/N] "):
            raise Invalid("not agreed to: nothing was done")

    @contextmanager
    def ended_in_order(self) -> Iterator[None]:
        """Signals cancel the drill, once: what was begun is undone, which takes its time."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def told(number: int) -> None:
            if not self.interrupted:
                self.interrupted = number
                task.cancel()
                click.echo("cleaning up", err=True)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, told, number)
        try:
            yield
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
            task.uncancel()


async def _asked(question: str) -> bool:
    """On the terminal. No thread waits for the line: Ctrl-C must end it."""
    click.echo(question, nl=False, err=True)
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(sys.stdin.fileno())
        line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), readable)
    try:
        return (await line).strip().lower() in ("y", "yes")
    finally:
        loop.remove_reader(sys.stdin.fileno())
        os.set_blocking(sys.stdin.fileno(), True)  # as the terminal was: the shell has it too


def _options_of(*, host: bool, remote: bool, fill: bool) -> list[Callable[[Any], Any]]:
    found = [
        click.option("--yes", is_flag=True, help="Do not ask: it may be done."),
        click.option(
            "--max-stall",
            type=Seconds(min=0),
            default=1.0,
            show_default=True,
            help="Seconds without an acknowledgement that are allowed, of reads and of writes.",
        ),
        click.option(
            "--max-recovery",
            type=Seconds(min=0),
            default=60.0,
            show_default=True,
            help="Seconds until the redundancy is whole again that are allowed.",
        ),
        click.option(
            "--measure",
            type=Seconds(min=0.1),
            default=3.0,
            show_default=True,
            help="Seconds of load before the fault, and after it.",
        ),
        click.option(
            "--blocks",
            type=click.IntRange(256, 1 << 16),
            default=8192,
            show_default=True,
            help="Of 4 KiB: how much of the scratch volume the load uses.",
        ),
        click.option(
            "--depth",
            type=click.IntRange(1, 256),
            default=16,
            show_default=True,
            help="Operations in flight.",
        ),
    ]
    if host:
        found.append(click.option("--host", help="The host to hit; default: one that may be."))
    if remote:
        found += [
            click.option(
                "--hold",
                type=Seconds(min=0),
                default=10.0,
                show_default=True,
                help="Seconds that a fault lasts that has to be undone.",
            ),
            click.option(
                "--inject", default="", help="Shell command that makes the fault ($DRILL_HOST, ...)."
            ),
            click.option("--undo", default="", help="Shell command that undoes it; it is always run."),
            click.option(
                "--manual", is_flag=True, help="You make the fault, when told to; the drill watches."
            ),
        ]
    if fill:
        found.append(
            click.option(
                "--max-fill",
                type=SIZE,
                default=1 << 30,
                help="Most room on a device that may be filled.  [default: 1G]",
            )
        )
    return found


def _command(name: str, names: Sequence[str], help_text: str, **which: bool) -> click.Command:
    def callback(
        yes: bool,
        max_stall: float,
        max_recovery: float,
        measure: float,
        blocks: int,
        depth: int,
        cluster: str | None,
        registry: str | None,
        secret_file: str | None,
        as_json: bool,
        host: str | None = None,
        hold: float = 10.0,
        inject: str = "",
        undo: str = "",
        manual: bool = False,
        max_fill: int = 1 << 30,
    ) -> None:
        options = Options(
            Budget(max_stall, max_recovery),
            host=host,
            hold_s=hold,
            measure_s=measure,
            blocks=blocks,
            depth=depth,
            max_fill=max_fill,
            inject=inject,
            undo=undo,
            by_hand=manual,
        )
        runner = Runner(options, yes=yes, as_json=as_json)

        async def main() -> None:
            import moorage

            if len(names) == 1:
                check_options(name, options)
            with runner.ended_in_order():
                async with await moorage.connect(
                    cluster, registry=registry, secret_file=secret_file
                ) as connected:
                    await runner.run(connected, names, together=len(names) > 1)

        run_or_exit(main, as_json=as_json)
        _finish(runner, as_json)

    command: Any = callback
    for option in reversed(_options_of(**which)):
        command = option(command)
    return click.command(name, help=help_text)(connection_options(command))


def _finish(runner: Runner, as_json: bool) -> None:
    if runner.interrupted:
        raise SystemExit(128 + runner.interrupted)
    if as_json:
        output.emit_json(outcomes.document(runner.outcomes))
    else:
        output.console().print(outcomes.table(runner.outcomes))
        for line in outcomes.reasons(runner.outcomes):
            click.echo(line)
    raise SystemExit(int(outcomes.worst(runner.outcomes)))


host_loss = _command(
    "host-loss",
    ["host-loss"],
    "Kill one host under load; it is started again by what runs it.",
    host=True,
    remote=True,
    fill=False,
)
silent_host = _command(
    "silent-host",
    ["silent-host"],
    "Freeze one host for some seconds: it says nothing, its connections stay open.",
    host=True,
    remote=True,
    fill=False,
)
partition = _command(
    "partition",
    ["partition"],
    "Cut one host off from clients and from the other hosts for some seconds.",
    host=True,
    remote=True,
    fill=False,
)
zombie = _command(
    "zombie",
    ["zombie"],
    "Freeze a client, take its volume over, thaw it: nothing that it tries takes effect.",
    host=False,
    remote=False,
    fill=False,
)
bit_rot = _command(
    "bit-rot",
    ["bit-rot"],
    "Flip bits of the scratch volume on one replica: reads stay right, the copy is repaired.",
    host=True,
    remote=False,
    fill=False,
)
move = _command(
    "move",
    ["move"],
    "Move a replica of the scratch volume to another host under load.",
    host=True,
    remote=False,
    fill=False,
)
repair = _command(
    "repair",
    ["repair"],
    "Kill one host under load, and have its replica made anew on another one.",
    host=True,
    remote=False,
    fill=False,
)
full_disk = _command(
    "full-disk",
    ["full-disk"],
    "Fill the devices: writes are refused, reads and discards go on, discards make room.",
    host=False,
    remote=False,
    fill=True,
)
every = _command(
    "all",
    NAMES,
    "All drills that can be done from here, one after another; one table at the end.",
    host=True,
    remote=False,
    fill=True,
)
