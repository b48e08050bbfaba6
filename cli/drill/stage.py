"""Where a drill takes place: a scratch volume, a verifying load on it, and what is measured meanwhile.

Owns the scratch volume from before it is created until it is deleted, whatever happens in between. Nothing
here touches any other volume.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.bench.verify import BLOCK
from moorage.cli.clients import ClientProcess
from moorage.cli.drill.faults import Victim, to_its_end
from moorage.cli.drill.outcome import Budget, Outcome
from moorage.cli.drill.plan import Picture, unhealthy
from moorage.cli.drill.recovery import CURRENT, Recovery, await_current
from moorage.cli.report import Report
from moorage.client.cluster import Cluster, VolumeInfo
from moorage.wire.errors import MoorageError, NotFound, Unavailable

PREFIX = "drill-"
POLL_S = 0.2
NOTICE_S = 5.0  # a silent member falls behind at once under load
ASK_S = 3.0
CLEAN_UP_S = 30.0


@dataclass(frozen=True)
class Options:
    """``hold_s``: how long a fault lasts that has an end. ``blocks``, ``depth``: of the load."""

    budget: Budget
    host: str | None = None
    hold_s: float = 10.0
    blocks: int = 8192
    depth: int = 16
    max_fill: int = 1 << 30
    inject: str = ""
    undo: str = ""
    by_hand: bool = False
    measure_s: float = 3.0  # before the fault, and after it


@dataclass
class Stage:
    cluster: Cluster
    report: Report
    options: Options
    outcome: Outcome
    directory: Path
    volume: VolumeInfo
    victim: Victim

    # -- the load ------------------------------------------------------------------------------------

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def load(self, *, journal: bool = False) -> ClientProcess:
        """The verifying load: a process of its own, which holds the scratch volume."""
        config, options = self.cluster.config, self.options
        arguments = ["bench", "verify", self.volume.name, "--steps", "--registry", config.registry]
        arguments += ["--secret-file", str(config.secret_file.absolute())]
        arguments += ["--depth", str(options.depth), "--blocks", str(options.blocks)]
        arguments += ["--journal", str(self.journal)] if journal else []
        return ClientProcess(arguments, {}, self.directory / "load.log")

    async def phase(self, load: ClientProcess, name: str) -> None:
        """Begin a phase; the figures of the one before are shown."""
        self.report.phase(await load.ask(f"phase {name}"))

    async def begin(self, load: ClientProcess) -> None:
        """A baseline: what the stalls are without a fault."""
        options = self.options
        self.report.step(
            f"a verifying load on {self.volume.name}, depth {options.depth}, half reads, half writes"
        )
        await self.wait(min(1.0, options.measure_s), "warming up")
        await load.ask("phase before")
        await self.wait(options.measure_s, "measuring without a fault")

    async def end(self, load: ClientProcess, *, copies: bool = True) -> None:
        """Some more load, then everything is read back; and from each replica alone, when all are there."""
        await self.wait(self.options.measure_s, "measuring after the fault")
        await self.phase(load, "end")
        phases = self.report.phases
        self.outcome.stalls(phases[1:])
        errors = sum(phase["errors"] for phase in phases)
        first = next((phase["first_error"] for phase in phases if phase["first_error"]), "")
        self.report.promise("no I/O error", errors == 0, f"{errors} errors" + (f": {first}" if first else ""))
        self.report.progress("reading every block back")
        found = await load.ask("verify")
        self.outcome.checked_blocks = int(found["verified"])
        wrong = found["mismatches"]
        self.report.promise("every block reads as it was written", not wrong, wrong[0] if wrong else "")
        if copies:
            await self._copies(load)

    async def _copies(self, load: ClientProcess) -> None:
        """Each replica alone has the right bytes."""
        for host in self.hosts:
            self.report.progress(f"reading every block from {host} alone")
            said = await self.copy(load, host)
            self.report.promise(f"the copy on {host} is right", not said, said)

    async def copy(self, load: ClientProcess, host: str) -> str:
        """What is wrong with one copy after what is allowed for its repair; "" when nothing is."""
        end = time.perf_counter() + self.options.budget.max_recovery_s
        while True:
            found = await load.ask(f"copy {host}")
            if found["mismatches"]:
                return str(found["mismatches"][0])
            said = found["error"] or (f"{found['bad']} runs of blocks are bad" if found["bad"] else "")
            if not said or time.perf_counter() > end:
                return said
            await asyncio.sleep(POLL_S)

    @property
    def hosts(self) -> list[str]:
        return sorted({member["host"] for group in self.volume.groups for member in group["members"]})

    # -- waiting -------------------------------------------------------------------------------------

    async def wait(self, seconds: float, what: str) -> None:
        self.report.progress(f"{what}, {seconds:g} s")
        await asyncio.sleep(seconds)
        self.report.quiet()

    async def noticed(self, load: ClientProcess, timeout: float) -> str:
        """Wait until the holder sees that the victim does not follow; what it says, "" when it never did."""
        host, end = self.victim.host, time.perf_counter() + timeout
        self.report.progress(f"waiting until the load notices that {host} is away")
        while time.perf_counter() < end:
            if (state := await self.state(load)) != CURRENT:
                self.report.quiet()
                return state
            await asyncio.sleep(0.02)
        self.report.quiet()
        return ""

    async def state(self, load: ClientProcess) -> str:
        """What the holder says of the victim."""
        members = (await load.ask("members"))["members"]
        return next(str(each["state"]) for each in members if each["host"] == self.victim.host)

    async def heard(self, load: ClientProcess) -> None:
        """Wait until the victim is heard of again, whatever it has to catch up with."""
        state = await self.state(load)
        while "reached" in state or "silent" in state:
            await asyncio.sleep(POLL_S)
            state = await self.state(load)

    async def token(self) -> str:
        """Of the victim's device: each start of its process has another one."""
        return str((await self.cluster.status(timeout=ASK_S))["devices"][self.victim.device]["token"])

    async def moved(self, began: float) -> bool:
        """Wait until no replica is on the victim any more; whether it came to that in time."""
        while time.perf_counter() - began < self.options.budget.max_recovery_s:
            with suppress(MoorageError):  # metadata's leader may have been on that host
                self.volume = await self.cluster.show(self.volume.name)
                if self.victim.host not in self.hosts:
                    return True
            self.report.progress(f"{time.perf_counter() - began:.1f} s: a replica is on its way")
            await asyncio.sleep(POLL_S)
        return False

    async def recovered(self, load: ClientProcess, began: float, old_token: str | None) -> Recovery:
        """Wait until all replicas are current; ``old_token``: and the victim's process is another one."""

        async def back() -> bool:
            try:
                return old_token is None or await self.token() != old_token
            except MoorageError:
                return False

        found = await await_current(
            load,
            timeout=self.options.budget.max_recovery_s,
            host=None,
            began=began,
            back=back,
            told=self.report.progress,
        )
        self.report.quiet()
        self.outcome.recovery_s = found.seconds
        return found


async def look(cluster: Cluster) -> Picture:
    """Ask everybody."""
    view = await cluster.status()

    async def replicas(device: str) -> list[dict[str, Any]] | str:
        try:
            return await cluster.list_replicas(device, timeout=ASK_S)
        except MoorageError as error:
            return str(error)

    devices = sorted(view["devices"])
    rows, silent, volumes = await asyncio.gather(
        asyncio.gather(*(replicas(device) for device in devices)),
        cluster.silent_services(timeout=ASK_S),
        cluster.list_volumes(),
    )
    return Picture(view, dict(zip(devices, rows, strict=True)), silent, volumes)


async def healthy(cluster: Cluster, patience_s: float = 0.0) -> Picture:
    """The cluster when a host may be taken away; Unavailable that says why not."""
    end = time.perf_counter() + patience_s
    while True:
        picture = await look(cluster)
        if not (reasons := unhealthy(picture)):
            return picture
        if time.perf_counter() > end:
            raise Unavailable(
                f"the cluster is not well, nothing was done: {'; '.join(reasons[:5])}; see `moorage status`"
            )
        await asyncio.sleep(1.0)


@asynccontextmanager
async def scratch_volume(cluster: Cluster, report: Report, size: int) -> AsyncIterator[VolumeInfo]:
    """One group of three replicas. Deleted at the end, by force; when that fails, it is said."""
    name = PREFIX + secrets.token_hex(4)
    try:
        yield await cluster.create_volume(name, size=size, replicas=3, groups=1)
    finally:
        report.progress(f"deleting {name}")
        await to_its_end(_delete(cluster, report, name))
        report.quiet()


async def _delete(cluster: Cluster, report: Report, name: str) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_S):
            await cluster.delete(name, force=True)
    except NotFound:
        pass  # it was not created
    except (MoorageError, TimeoutError) as error:
        report.step(f"volume {name} is left, delete it: `moorage volume delete {name}` ({error})")


def volume_size(options: Options) -> int:
    return max(1 << 20, options.blocks * BLOCK)


async def describe_victim(cluster: Cluster, volume: VolumeInfo, host: str) -> Victim:
    (device,) = {
        member["device"] for group in volume.groups for member in group["members"] if member["host"] == host
    }
    address = (await cluster.status())["devices"][device]["address"]
    return Victim(host, device, address, await cluster.describe_device(device))
