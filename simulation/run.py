"""One history, from its seed to its verdict.

Owns the acts: boot, storm, healing, and the checks of each. Liveness is required once everything has
healed: hosts serve, volumes attach and answer, every replica is current again. A failed history raises
:class:`Failed` with the seed, the cause and the story.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from moorage.client.cluster import Cluster
from moorage.client.volume import Volume
from moorage.metadata.healing import TURN
from moorage.simulation import checks, snapshot_checks
from moorage.simulation.cluster import Client, SimCluster, staged
from moorage.simulation.nemesis import LOSING, Fault, Nemesis, draw_plan
from moorage.simulation.object_checks import wrong_objects
from moorage.simulation.objects import ObjectPrograms
from moorage.simulation.operation import SECTOR
from moorage.simulation.tunables import IMPATIENT, Tunables
from moorage.simulation.workload import SCRATCH, SIZE, VOLUMES, Workload
from moorage.simulation.world import World, bury, world
from moorage.wire.errors import MoorageError

BOOT_S = 30.0
STORM_S = 8.0
WIND_DOWN_S = 40.0  # operations under way end by their own deadlines
HEAL_S = 60.0
SPACE_S = 60.0
SNAPSHOTS_SHARE = 0.6  # of histories
OBJECTS_SHARE = 0.35  # of histories, in which two of three programs use objects


class Failed(AssertionError):
    """A history that broke a promise. ``cause`` says which; ``seed`` and ``plan`` give it again."""

    def __init__(
        self, seed: int, plan: list[Fault], now: float, cause: BaseException, story: list[str]
    ) -> None:
        self.seed = seed
        self.plan = plan
        self.cause = cause
        self.story = story
        self.where = ""  # the traceback
        super().__init__(f"seed {seed} at {now:.3f} s: {type(cause).__name__}: {cause}")


@dataclass
class Outcome:
    seed: int
    trace: str = ""
    events: int = 0
    virtual_s: float = 0.0
    operations: int = 0
    answered: int = 0
    keys: int = 0
    blocks: int = 0
    objects: int = 0  # operations on these that were answered
    shown: int = 0  # reads at snapshots that were answered
    refused: bool = False  # a host whose device is corrupt started no more: nothing was asked of the end
    faults: dict[str, int] = field(default_factory=dict)


def run_seed(
    seed: int,
    plan: list[Fault] | None = None,
    storm_s: float = STORM_S,
    aim: str = "",
    moves: bool = False,
    snapshots: bool | None = None,
    objects: bool | None = None,
) -> Outcome:
    """One history. ``plan``: faults in place of those that the seed draws; ``aim``: of those that it draws;
    ``moves``: there are hosts to move replicas to, and they are moved soon; ``snapshots``, ``objects``:
    whether programs use them, drawn from the seed if it is not said. Raises :class:`Failed`."""
    if snapshots is None:
        snapshots = Random(f"{seed} has snapshots").random() < SNAPSHOTS_SHARE
    if objects is None:
        objects = Random(f"{seed} has objects").random() < OBJECTS_SHARE
    drawn = draw_plan(seed, storm_s, aim)
    # In writeback a loss of power may leave one copy alone (the others are being copied anew): then a bit
    # that rots there is one failure too many. Of what was drawn: a thinner plan changes no volume.
    rots = any(fault.kind in LOSING for fault in drawn)
    modes = ("sync", "sync" if rots else "writeback")
    found = _run(seed, drawn if plan is None else plan, storm_s, modes, moves, snapshots, objects)
    bury()
    if isinstance(found, Failed):
        raise found
    return found


def _run(
    seed: int,
    plan: list[Fault],
    storm_s: float,
    modes: tuple[str, str],
    moves: bool,
    snapshots: bool,
    objects: bool,
) -> Outcome | Failed:
    with world(seed) as made:
        tunables = Tunables.draw(made.rng)
        if moves:
            tunables = replace(tunables, spares=2, patience=IMPATIENT)
        if snapshots:  # of several logs at one moment, more often than not
            tunables = replace(tunables, groups=max(tunables.groups, 1 + seed % 2))
        with staged(made, tunables):
            history = _Play(made, tunables, seed, plan, storm_s, modes, snapshots, objects)
            try:
                history.play()
            except Exception as error:
                failed = Failed(seed, plan, made.loop.now, error, list(made.loop.story))
                failed.where = "".join(traceback.format_exception(error))
                _forget_frames(error)
                return failed
            return history.outcome


def _forget_frames(error: BaseException | None) -> None:
    """They hold processes, whose code must not run on in whoever looks at the error."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class _RefusesError(Exception):
    """A host says that its device is corrupt and starts no more."""


class _Play:
    def __init__(
        self,
        made: World,
        tunables: Tunables,
        seed: int,
        plan: list[Fault],
        storm_s: float,
        modes: tuple[str, str],
        snapshots: bool,
        objects: bool,
    ) -> None:
        self.world = made
        self.loop = made.loop
        self.cluster = SimCluster(made, tunables, masters=3, clients=3)
        self.workload = Workload(self.cluster, seed, modes, snapshots)
        self.snapshots = self.workload.snapshots
        self.objects = ObjectPrograms(self.cluster, seed) if objects else None
        self.workload.on_attach = checks.check_leads_all
        self.storm_s = storm_s
        self.plan = plan
        self.outcome = Outcome(seed)
        self.made_well = False  # the last client has seen everything
        self.well_for = 0  # how often in a row it found all members current, and nothing behind
        self.finished: list[Volume] = []

    def play(self) -> None:
        self._boot()
        nemesis = self._storm()
        try:
            self._calm(nemesis)
            self._judge()
        except _RefusesError:  # then there is no end at which all is well, but what was seen has to be right
            self.outcome.refused = True
            if self.objects is not None:
                self.outcome.objects = self.objects.check()
            self.outcome.keys = self.workload.history.check()
        self.outcome.trace = self.loop.trace_hash()
        self.outcome.events, self.outcome.virtual_s = self.loop.events, self.loop.now

    def _until(
        self, reached: Callable[[], bool], within_s: float, what: str, why: Callable[[], str] = str
    ) -> None:
        """Go on until it is so. Whatever a process did not catch fails the history. ``why``: what keeps it
        from being so."""

        def stop() -> bool:
            return bool(self.loop.failures) or reached()

        in_time = self.loop.run(stop, self.loop.now + within_s)
        if self.loop.failures:
            process, error = self.loop.failures[0]
            raise AssertionError(f"{process} did not catch {error!r}") from error
        if not in_time and any(host.refuses and not host.ready for host in self.cluster.hosts):
            raise _RefusesError
        assert in_time, f"not within {within_s:g} s: {what} {why()}".rstrip()

    def _boot(self) -> None:
        for host in self.cluster.hosts:
            host.start()
        self._until(self._all_ready, BOOT_S, "all hosts are ready")

    def _all_ready(self) -> bool:
        return self.loop.events % 64 == 0 and all(host.ready for host in self.cluster.hosts)

    def _storm(self) -> Nemesis:
        for client in self.cluster.clients:
            uses_objects = self.objects is not None and client is not self.cluster.clients[0]
            client.program = (self.objects if uses_objects else self.workload).program  # type: ignore[union-attr]
            client.start()
        if self.cluster.tunables.spares:
            operator = Client(self.cluster, "operator", "10.0.2.2")
            operator.program = self.workload.operate
            operator.start()
        victim = self.cluster.world.rng.choice(self.cluster.hosts)
        nemesis = Nemesis(self.cluster, self.workload, self.plan, victim)
        end = self.loop.now + self.storm_s
        self._until(lambda: self.loop.now >= end, self.storm_s + 1, "the storm ends")
        return nemesis

    def _calm(self, nemesis: Nemesis) -> None:
        """Everything heals, programs end, and a last client looks at all that there is."""
        self.loop.note("healing")
        self.outcome.faults = nemesis.done
        nemesis.heal()
        self.workload.stopping = True
        if self.objects is not None:
            self.objects.stopping = True
        for client in self.cluster.clients:
            client.wanted = False
        for host in self.cluster.hosts:
            if host.process is not None:
                host.process.dies_at = 0
                host.process.resume()
            if not host.ready:
                host.kill()  # as an operator would: a device that failed is out until it is started again
            host.start()
        self._until(self._programs_ended, WIND_DOWN_S, "all programs end")
        for client in self.cluster.clients:
            client.kill()
        for host in self.cluster.hosts:
            if checks.has_failed(host):
                host.kill()
        self._until(self._all_ready, BOOT_S, "all hosts are ready again")
        self.loop.note("looking")
        last = Client(self.cluster, "last", "10.0.2.1")
        last.program = self._look
        last.start()
        self._until(lambda: self.made_well, HEAL_S, "all volumes answer, all replicas are current")
        self._wait_for_lists()
        self._until(self._well_placed, HEAL_S, "each device has what is placed there")
        self._until(lambda: self.well_for > 2, HEAL_S, "all replicas have all")
        what = "objects are where metadata says, and nowhere else"
        self._until(self._well_stored, HEAL_S, what, lambda: wrong_objects(self.cluster))

    def _programs_ended(self) -> bool:
        return self.loop.events % 64 == 0 and all(
            client.process is None or not client.process.alive or client.ended
            for client in self.cluster.clients
        )

    async def _look(self, client: Client, cluster: Cluster) -> None:
        for name in SCRATCH:
            await self.workload.show(client, cluster, name)
        await cluster.set_quota("default")  # any: now volumes are charged, if none of the clients came to it
        for name in VOLUMES:
            volume = await self.workload.attach(client, cluster, name, True, 10.0)
            while volume is None:
                if self.snapshots is not None:
                    await self.snapshots.finish_rollback(client, cluster, name, True)
                volume = await self.workload.attach(client, cluster, name, True, 10.0)
            step = 64 * 1024 // SECTOR
            for first in range(0, SIZE // SECTOR, step):
                while not await self.workload.read(client, volume, first, first + step):
                    pass
            await volume.flush()
            self.finished.append(volume)
        if self.snapshots is not None:
            for name in VOLUMES:
                await self.snapshots.look(client, cluster, name)
            await self.snapshots.clones.delete_all(client, cluster)
        if self.objects is not None:
            await self.objects.look(client, cluster)
        self.made_well = True
        while True:  # from now on it only says whether all have all
            await asyncio.sleep(0.5)
            members = [member for volume in self.finished for member in volume.members()]
            well = all(member["state"] == "current" and not member["behind"] for member in members)
            well = well and checks.nothing_to_mend(self.cluster) and await self._at_rest(cluster)
            self.well_for = self.well_for + 1 if well else 0

    async def _at_rest(self, cluster: Cluster) -> bool:
        """No replica is on its way, and what should go and can has gone."""
        try:
            moves = await cluster.places.moves()
            drops = [each for status in await cluster.metadata_status() for each in status["drops_first"]]
        except MoorageError as error:
            self.loop.tell(f"metadata cannot be asked: {error}")
            return False
        waiting = [each for each in moves.blocked if each["text"] == TURN]
        if moves.moves or drops or waiting:
            self.loop.tell(f"not at rest: {moves.moves}, {drops}, {waiting}")
        return not (moves.moves or drops or waiting)

    def _judge(self) -> None:
        chunks = SIZE // self.cluster.tunables.chunk_size
        self.outcome.operations = len(self.workload.history.operations)
        self.outcome.answered = self.workload.done
        shown = [each for each in self.workload.history.operations if each.kind == "shown" and each.found]
        self.outcome.shown = len(shown)
        self.outcome.keys = self.workload.history.check()
        if self.objects is not None:
            self.outcome.objects = self.objects.check()
        assert not (misplaced := checks.misplaced(self.cluster)), misplaced
        self.outcome.blocks = checks.check_identical(self.cluster, chunks)
        self._until(self._charged_well, HEAL_S, "what volumes count for principals is what they are")
        self._until(self._members_agree, HEAL_S, "all members of metadata and of the registry are as far")
        before = [checks.contents(host, chunks) for host in self.cluster.hosts]
        self.loop.note("replaying")
        for host in self.cluster.hosts:
            host.kill()
        self.well_for = 0
        self._until(self._all_ready, BOOT_S, "all hosts are ready after the replay")
        self._until(lambda: self.well_for > 2, HEAL_S, "all replicas have all after the replay")
        self._wait_for_lists()
        after = [checks.contents(host, chunks) for host in self.cluster.hosts]
        for host, was, found in zip(self.cluster.hosts, before, after, strict=True):
            checks.check_replayed(host, was, found)
        self._until(self._no_leak, SPACE_S, "space that nothing refers to is not counted as live")

    def _wait_for_lists(self) -> None:
        what = "all replicas list the snapshots that metadata has"
        self._until(self._well_listed, HEAL_S, what, lambda: snapshot_checks.wrong_lists(self.cluster))

    def _well_stored(self) -> bool:
        return self.loop.events % 512 == 0 and not wrong_objects(self.cluster)

    def _well_placed(self) -> bool:
        return self.loop.events % 64 == 0 and not checks.misplaced(self.cluster)

    def _well_listed(self) -> bool:
        return self.loop.events % 64 == 0 and not snapshot_checks.wrong_lists(self.cluster)

    def _charged_well(self) -> bool:
        return self.loop.events % 64 == 0 and checks.charged_well(self.cluster)

    def _members_agree(self) -> bool:
        return self.loop.events % 64 == 0 and checks.members_agree(self.cluster)

    def _no_leak(self) -> bool:
        return self.loop.events % 5000 == 0 and not checks.leaked(
            self.cluster, SIZE // self.cluster.tunables.chunk_size
        )
