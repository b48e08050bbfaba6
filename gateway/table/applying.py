"""Make the mount table so on this host: mount what is missing, unmount what left it, and only that.

Owns the decisions of a pass, and its report: one word and a reason for each line. Everything is seen in the
system and in the notes of this host, nothing is remembered in the process: it may die at any moment, and the
next pass goes on. Lines are worked on side by side: one whose storage does not answer holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from moorage.client.cluster import Cluster, connect
from moorage.client.mount_table import Line
from moorage.gateway.mount import system
from moorage.gateway.mount.mounting import Mount, mounts
from moorage.gateway.mount.record import StateDirectory
from moorage.gateway.table import rendering
from moorage.gateway.table.looks import Looks
from moorage.gateway.table.notes import Note, Notes, note_of
from moorage.wire.errors import Busy, Invalid, MoorageError, NotFound, Unavailable

log = logging.getLogger(__name__)

BY = "mount table"
COMMAND_TIMEOUT_S = 60.0
AT_ONCE_MAX = 16  # mounts that are made side by side
GOING = ("serving", "restarting")
# What a line may come to.
MOUNTED, FAILED, UNMOUNTED, LEFT, ELSEWHERE, NAMED = (
    "mounted",
    "failed",
    "unmounted",  # it left the table
    "left",  # it left the table, and is in use yet
    "elsewhere",  # a line for other hosts
    "named",  # a line with noauto
)
BAD = (FAILED, LEFT)


@dataclass(frozen=True)
class Report:
    """Of one line; ``line``: its number, 0 for one that left the table."""

    line: int
    name: str
    source: str
    target: str
    kind: str
    state: str
    reason: str = ""


class Applier:
    def __init__(self, cluster: Cluster, directory: StateDirectory, *, host: str) -> None:
        self._cluster = cluster
        self._directory = directory
        self._host = host
        self._notes = Notes(directory.path)
        self._others: dict[str, Cluster] = {}
        self._looks = Looks()
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """The only one of this host. Raises Busy; Denied without root."""
        system.check_root()
        self._directory.prepare()
        with self._notes.held():
            try:
                yield
            finally:
                for cluster in self._others.values():
                    await cluster.close()

    async def apply(self, lines: Iterable[Line], unreadable: Iterable[str] = ()) -> list[Report]:
        """One pass. What was mounted for a line that cannot be read any more stays: ``unreadable`` lines say
        nothing about what left the table."""
        lines, unreadable = list(lines), list(unreadable)
        wanted: dict[str, Line] = {}
        reports = [Report(0, "", "", "", "", FAILED, problem) for problem in unreadable]
        for line in lines:
            if not line.is_for(self._host):
                reports.append(_report(line, ELSEWHERE))
            elif not line.automatic:
                reports.append(_report(line, NAMED))
            elif line.target in wanted:
                same = wanted[line.target].number
                reports.append(_report(line, FAILED, f"line {same} is for this host and target, too"))
            else:
                wanted[line.target] = line
        gone = [
            note
            for target, note in self._notes.all().items()
            if (target in wanted and wanted[target].what != note.what)
            or (target not in wanted and not unreadable)
        ]
        removed = {report.target: report for report in await asyncio.gather(*map(self._remove, gone))}
        reports += [report for target, report in removed.items() if target not in wanted]
        work = []
        for target, line in wanted.items():
            if target in removed and removed[target].state == LEFT:
                reports.append(_report(line, FAILED, f"what it was before: {removed[target].reason}"))
            else:
                work.append(self._keep(line))
        reports += await asyncio.gather(*work)
        return sorted(reports, key=lambda report: (report.line, report.target))

    # -- what left the table -------------------------------------------------------------------------

    async def _remove(self, note: Note) -> Report:
        state, reason = UNMOUNTED, ""
        try:
            await self._unmount(note)
            self._notes.remove(note.target)
        except MoorageError as error:
            state, reason = LEFT, str(error)
        return Report(0, note.volume, note.source, note.target, note.kind, state, reason)

    async def _unmount(self, note: Note) -> None:
        if note.volume:
            found = self._mount_at(note.target)
            if found is not None and found.by == BY:
                await found.unmount()
        elif (entry := system.mounted_at(note.target)) is not None:
            await system.unmount(entry)

    # -- what is in the table ------------------------------------------------------------------------

    async def _keep(self, line: Line) -> Report:
        async with self._at_once:
            try:
                await (self._keep_volume(line) if line.address else self._keep_foreign(line))
            except MoorageError as error:
                return _report(line, FAILED, str(error))
            except OSError as error:
                return _report(line, FAILED, f"{error.strerror}: {error.filename}")
            return _report(line, MOUNTED)

    async def _keep_volume(self, line: Line) -> None:
        address = line.address
        assert address is not None
        found = self._mount_at(line.target)
        if found is not None and found.volume != address.name:
            raise Busy(f"volume {found.volume!r} is mounted there already, not by this line")
        if found is not None and found.state in GOING and system.mounted_at(line.target) is not None:
            return
        if found is not None and found.by == BY:  # it was lost, or unmounted by hand: take the rest back
            await found.unmount()
        cluster = await self._cluster_of(address.cluster)
        await _check_nobody_has_it(cluster, address.name)
        self._prepare(line)
        log.info("mounting %s at %s", line.source, line.target)
        await cluster.mount(
            line.source,
            line.target,
            owner=line.owner,
            options=line.options,
            state_dir=self._directory.path,
            by=BY,
        )

    async def _cluster_of(self, name: str) -> Cluster:
        config = self._cluster.config
        if name in ("", config.name, config.registry):
            return self._cluster
        if name not in self._others:
            self._others[name] = await connect(name, host=self._host)
        return self._others[name]

    async def _keep_foreign(self, line: Line) -> None:
        entry = system.mounted_at(line.target)
        if entry is not None:
            if line.target not in self._notes.all():
                raise Busy(f"{line.target} is a mount point already, of {entry.source}")
            if not await self._looks.has_died(line.target):
                return
            log.warning("what served %s has ended, mounting it again", line.target)
            await system.unmount(entry)
        self._prepare(line)
        program, *arguments = rendering.command(line)
        log.info("mounting %s at %s: %s", line.source, line.target, " ".join((program, *arguments)))
        try:
            await system.run(program, *arguments, timeout=COMMAND_TIMEOUT_S)
        except NotFound:
            package = rendering.PACKAGES.get(program, f"what has {program}")
            raise NotFound(f"{program} is not installed: install {package}") from None
        await self._check_it_came(line.target, program)

    async def _check_it_came(self, target: str, program: str) -> None:
        """A command that went to the background finds out later that it cannot have what it was to mount:
        when the first one asks for it."""
        died = system.mounted_at(target) is not None and await self._looks.has_died(target)
        entry = system.mounted_at(target)
        if died and entry is not None:
            await system.unmount(entry)
        if died or entry is None:
            raise Unavailable(f"{program} said nothing, but {target} is not mounted: see its log")

    def _prepare(self, line: Line) -> None:
        """The intent is noted before anything is done: who comes after a crash knows whose mount it is."""
        target = Path(line.target)
        if not target.exists():
            target.mkdir(parents=True)
        if not target.is_dir():
            raise Invalid(f"mount point {target} is not a directory")
        self._notes.write(note_of(line))

    def _mount_at(self, target: str) -> Mount | None:
        return next((mount for mount in mounts(self._directory) if mount.target == target), None)


async def keep(
    applier: Applier,
    cluster: Cluster,
    *,
    interval: float,
    until: asyncio.Event,
    tell: Callable[[int, list[Report]], None],
) -> None:
    """Pass after pass until ``until`` is set; the mounts stay then. ``tell`` hears of the version and of
    every report that is another one than before. Without the registry the last version known is kept."""
    ending = asyncio.ensure_future(until.wait())
    table, told = None, None
    while not until.is_set():
        try:
            table = await cluster.newer_mount_table(table.version if table else None) or table
        except MoorageError as error:
            log.warning("the mount table is not to be had, keeping what is known: %s", error)
        if table is not None:
            lines, problems = table.lines()
            reports = await applier.apply(lines, problems)
            if told != (table.version, reports):
                told = (table.version, reports)
                tell(table.version, reports)
        await asyncio.wait((ending,), timeout=interval)
    await ending


def _report(line: Line, state: str, reason: str = "") -> Report:
    return Report(line.number, line.name, line.source, line.target, line.kind, state, reason)


async def _check_nobody_has_it(cluster: Cluster, volume: str) -> None:
    """Asked in every pass where another host has it: without a process for each answer."""
    with contextlib.suppress(NotFound):  # the mount makes it, or says so
        info = await cluster.show(volume)
        if info.has_writer and info.holder is not None:
            raise Busy(
                f"volume {volume!r} is held by {info.holder['program']} (pid {info.holder['pid']}) on "
                f"{info.holder['host']}"
            )
