"""The drills. Each says what it will do before it does anything, and notes promises, stalls and recovery.

A drill is made on a :class:`~moorage.cli.drill.stage.Stage`, and raises Invalid there when it cannot be done
from here. It must leave nothing behind but what is deleted with the scratch volume.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

from moorage.bench.verify import Pattern
from moorage.cli import output
from moorage.cli.clients import ClientProcess
from moorage.cli.drill import faults, rot
from moorage.cli.drill.faults import Fault, Victim
from moorage.cli.drill.fill import Fill
from moorage.cli.drill.recovery import CURRENT
from moorage.cli.drill.stage import NOTICE_S, Options, Stage, scratch_volume
from moorage.cli.drill.takeover import takeover
from moorage.wire.errors import Invalid, NoSpace

BY_HAND_S = 600.0
OTHERS = 32 << 20  # bytes of the volume that shows whether there is room again


class Drill(Protocol):
    says: str
    """What will happen, before anybody is asked whether it may."""

    async def run(self) -> None: ...


class HostFault:
    """A host is away for a while under load: killed, silent, or cut off."""

    def __init__(self, stage: Stage, local: Callable[[Victim], Fault], restarts: bool) -> None:
        self._stage, options = stage, stage.options
        self._by_hand = options.by_hand
        if options.by_hand:
            self._fault: Fault = faults.ByHand(stage.victim, restarts)
        elif options.inject:
            self._fault = faults.Commands(stage.victim, options.inject, options.undo, restarts)
        else:
            self._fault = local(stage.victim)
        self.says = self._fault.says

    async def run(self) -> None:
        stage, fault, host = self._stage, self._fault, self._stage.victim.host
        async with stage.load() as load:
            await stage.begin(load)
            token = await stage.token() if fault.restarts else None
            stage.report.step(fault.says)
            # The phase begins first: the gap at the fault belongs to it.
            await stage.phase(load, f"{host} {fault.word}")
            async with fault:
                began = time.perf_counter()
                await fault.inject()
                patience = BY_HAND_S if self._by_hand else max(NOTICE_S, stage.options.hold_s)
                seen = await stage.noticed(load, patience)
                if not isinstance(fault, faults.Kill):
                    seen = seen if await self._hold(load, fault) else ""
                    began = time.perf_counter()
                    await fault.undo()
            stage.report.promise(f"the load notices that {host} is away", bool(seen), seen)
            back = await self._recover(load, began, token)
            await stage.end(load, copies=back)

    async def _hold(self, load: ClientProcess, fault: Fault) -> bool:
        """Whether the victim is still away at the end: else the fault was none."""
        stage, seconds = self._stage, self._stage.options.hold_s
        stage.report.progress(f"{stage.victim.host} is {fault.word}, {seconds:g} s")
        await fault.hold(seconds)
        stage.report.quiet()
        away = await stage.state(load) != CURRENT
        await stage.phase(load, f"{stage.victim.host} returns")
        if self._by_hand:
            stage.report.step(f"now bring host {stage.victim.host} back")
            await stage.heard(load)
        return away

    async def _recover(self, load: ClientProcess, began: float, token: str | None) -> bool:
        stage = self._stage
        found = await stage.recovered(load, began, token)
        figure = f"{found.seconds:.1f} s" + (f": {found.missing}" if found.missing else "")
        stage.report.promise("every replica has all that is committed again", not found.missing, figure)
        return not found.missing


def host_loss(stage: Stage) -> HostFault:
    return HostFault(stage, faults.Kill, restarts=True)


def silent_host(stage: Stage) -> HostFault:
    return HostFault(stage, faults.Freeze, restarts=False)


def partition(stage: Stage) -> HostFault:
    return HostFault(stage, faults.Partition, restarts=False)


class Move:
    """The replica on one host moves to another one under load; with ``kills`` since that host has died."""

    def __init__(self, stage: Stage, kills: bool) -> None:
        self._stage, self._kill = stage, faults.Kill(stage.victim) if kills else None
        self.says = f"moves what the scratch volume has on host {stage.victim.host} to another host"
        if self._kill is not None:
            self.says = f"{self._kill.says}; then {self.says}"

    async def run(self) -> None:
        stage, host = self._stage, self._stage.victim.host
        async with stage.load() as load:
            await stage.begin(load)
            token = await stage.token() if self._kill is not None else None
            stage.report.step(self.says)
            await stage.phase(load, f"leaving {host}")
            began = time.perf_counter()
            if self._kill is not None:
                await self._kill.inject()
                await stage.noticed(load, NOTICE_S)
            await stage.cluster.move(stage.volume.name, stage.victim.device)
            left = await stage.moved(began)
            stage.report.promise(f"the volume has left {host}", left, f"{time.perf_counter() - began:.1f} s")
            found = await stage.recovered(load, began, token)
            figure = f"{found.seconds:.1f} s" + (f": {found.missing}" if found.missing else "")
            whole = left and not found.missing
            stage.report.promise("there are three whole replicas", whole, figure)
            await stage.end(load, copies=whole)


class Zombie:
    """A client is frozen, another takes its volume over, the first is thawed."""

    says = "freezes a client process of this drill, takes its volume over, and thaws it; no host is touched"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def run(self) -> None:
        stage = self._stage
        async with stage.load(journal=True) as load:
            await stage.begin(load)
            stage.outcome.recovery_s = await takeover(
                stage.report, stage.cluster, stage.volume.name, load, stage.journal, stage.options.blocks
            )
            stage.outcome.checked_blocks = stage.options.blocks


class BitRot:
    """Bits flip on one replica: reads stay right, and the copy is repaired."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._segments = rot.segments(stage.victim)
        self.says = (
            f"flips a bit in each of {rot.AT_ONCE} blocks of the scratch volume, in the files of host"
            f" {stage.victim.host} below {self._segments}"
        )

    async def run(self) -> None:
        stage, report = self._stage, self._stage.report
        since = time.time() - 2.0
        async with stage.load() as load:
            await stage.begin(load)
            # A block that is written again is no rot any more: while it lasts, the load only reads.
            await load.ask("share 1")
            await stage.recovered(load, time.perf_counter(), None)
            await stage.wait(1.0, "until the last writes are everywhere")
            pattern = Pattern(load.ready["run"])
            places = await asyncio.to_thread(rot.find, self._segments, pattern, since)
            await stage.phase(load, "rot")
            flipped = await asyncio.to_thread(self._flip, places, pattern)
            report.step(f"{flipped} blocks have rotted on {stage.victim.host}")
            report.promise("blocks of the scratch volume were found", flipped > 0, f"{flipped} flipped")
            await stage.wait(stage.options.measure_s, "reading around the rot")
            await self._repaired(load)
            await stage.phase(load, "repaired")
            await load.ask("share 0.5")
            await stage.end(load)

    def _flip(self, places: list[rot.Place], pattern: Pattern) -> int:
        rng = random.Random(pattern.run)
        return sum(rot.flip(place, pattern) for place in rot.choose(places, rng))

    async def _repaired(self, load: ClientProcess) -> None:
        stage, host, began = self._stage, self._stage.victim.host, time.perf_counter()
        stage.report.progress(f"reading every block from {host} alone until all are repaired")
        said = await stage.copy(load, host)
        stage.outcome.recovery_s = time.perf_counter() - began
        bad = (await load.ask("members"))["bad_blocks"]
        stage.report.promise("the rot was noticed", bad > 0, f"{bad} reads met a bad copy")
        stage.report.promise(f"the copy on {host} is repaired", not said, said)


class FullDisk:
    """The devices of the scratch volume fill up: reads and discards go on, and make room for writes."""

    def __init__(self, stage: Stage, rooms: dict[str, int]) -> None:
        self._stage = stage
        # A write needs room at a majority: it is refused once the second of three is full.
        self._room = sorted(rooms.values())[len(rooms) // 2]
        limit = stage.options.max_fill
        if self._room > limit:
            raise Invalid(
                f"the devices of the scratch volume have room for {output.size(self._room)}: filling them"
                f" takes long, and other volumes have none then; --max-fill is {output.size(limit)}"
            )
        hosts = ", ".join(f"{host} {output.size(room)}" for host, room in sorted(rooms.items()))
        self.says = (
            f"writes until the devices are full ({hosts}), and discards all again; meanwhile writes to other"
            " volumes on these hosts fail with NoSpace"
        )

    async def run(self) -> None:
        stage, report, outcome = self._stage, self._stage.report, self._stage.outcome
        fill = Fill(run=random.getrandbits(40))
        async with await stage.cluster.attach(stage.volume.name) as volume:
            report.step(f"filling {stage.volume.name}")
            refused = await fill.fill(volume, report.progress)
            report.quiet()
            report.promise(
                "a write without room is refused", isinstance(refused, NoSpace), str(refused or "never")[:200]
            )
            report.step(f"full after {output.size(fill.filled)}: reads go on, and so do discards")
            await fill.read_on(volume, seconds=stage.options.measure_s)
            await fill.discard_half(volume)
            outcome.recovery_s = await fill.write_again(volume, stage.options.budget.max_recovery_s)
            again = outcome.recovery_s <= stage.options.budget.max_recovery_s
            report.promise("after discards there is room for writes", again, f"{outcome.recovery_s:.1f} s")
            wrong = await fill.check(volume, report.progress)
            report.quiet()
            report.promise("every block reads as it was written", not wrong, wrong)
            await volume.discard(0, volume.size)
            outcome.read_stall_ms, outcome.checked_blocks = fill.read_gap * 1e3, fill.checked
        await self._others_write()

    async def _others_write(self) -> None:
        """The room is back for others: a new volume can be written."""
        stage, allowed = self._stage, self._stage.options.budget.max_recovery_s
        stage.report.progress("writing to another volume")
        fill = Fill(run=random.getrandbits(40))
        fill.kept = OTHERS
        async with (
            scratch_volume(stage.cluster, stage.report, OTHERS) as other,
            await stage.cluster.attach(other.name) as volume,
        ):
            seconds = await fill.write_again(volume, allowed)
        stage.report.promise("other volumes have room again", seconds <= allowed, f"{seconds:.1f} s")


async def rooms(stage: Stage) -> dict[str, int]:
    """Bytes that writers may be granted, by host of the scratch volume."""
    devices = {member["host"]: member["device"] for member in stage.volume.groups[0]["members"]}
    said = await asyncio.gather(*(stage.cluster.describe_device(device) for device in devices.values()))
    return {host: int(row["room"]) for host, row in zip(devices, said, strict=True)}


AWAY = (
    "host-loss",
    "silent-host",
    "partition",
    "repair",
)  # these take a host away: nothing may depend on it alone
FAULTS = ("host-loss", "silent-host", "partition")  # these can be made elsewhere, by what the user says
NAMES = ("zombie", "bit-rot", "silent-host", "partition", "host-loss", "move", "repair", "full-disk")


async def make(name: str, stage: Stage) -> Drill:
    """Invalid, with what to do instead, when it cannot be done from here."""
    if name == "full-disk":
        return FullDisk(stage, await rooms(stage))
    if name in ("move", "repair"):
        await check_spare_host(stage)
        return Move(stage, kills=name == "repair")
    kinds: dict[str, Callable[[Stage], Drill]] = {
        "host-loss": host_loss,
        "silent-host": silent_host,
        "partition": partition,
        "zombie": Zombie,
        "bit-rot": BitRot,
    }
    return kinds[name](stage)


async def check_spare_host(stage: Stage) -> None:
    """Invalid when there is no host that a replica could move to."""
    devices = (await stage.cluster.status())["devices"].values()
    able = {row["host"] for row in devices if row["health"] == "up" and not row["drain"]}
    if able <= set(stage.hosts):
        raise Invalid("a replica can move only where there is a host more than replicas: add a fourth host")


def check_options(name: str, options: Options) -> None:
    if (options.inject or options.undo or options.by_hand) and name not in FAULTS:
        raise Invalid(f"--inject, --undo and --manual are for {', '.join(FAULTS)}")
    if options.inject and options.by_hand:
        raise Invalid("--inject and --manual contradict each other: a program makes the fault, or a person")
    if options.undo and not options.inject:
        raise Invalid("--undo goes with --inject: it undoes what that does")
    if options.inject and not options.undo and name != "host-loss":
        raise Invalid(f"a {name} does not end by itself: say with --undo what ends it")
