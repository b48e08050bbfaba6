"""The holder of a volume is frozen, another client takes over, the first is thawed: a zombie.

The demo and the drill show it alike. What is promised: the second client gets the volume, finds all that was
acknowledged to the first, and nothing that the first tries afterwards takes effect.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from pathlib import Path

from moorage.bench.verify import BLOCK, Pattern, judge, read_journal
from moorage.cli.clients import ClientProcess
from moorage.cli.report import Report
from moorage.client.cluster import Cluster
from moorage.client.volume import Volume

ZOMBIE_S = 1.5


async def takeover(
    report: Report, cluster: Cluster, name: str, load: ClientProcess, journal: Path, blocks: int
) -> float:
    """``load`` holds volume ``name``, and notes its acknowledgements in ``journal``. Returns how many seconds
    the takeover took."""
    report.step("SIGSTOP of the client; a second one takes the volume over with --force")
    load.signal(signal.SIGSTOP)
    began = time.perf_counter()
    async with await cluster.attach(name, force=True) as volume:
        seconds = time.perf_counter() - began
        report.promise("a second client takes over from a frozen one", True, f"{seconds:.2f} s")
        await _check_acknowledged(report, volume, load, journal, blocks)
        await volume.write(0, b"second" + bytes(BLOCK - 6))
        before = await _content(volume, blocks)
        report.step("SIGCONT of the first client: a zombie")
        await _thaw_zombie(report, load)
        report.promise("nothing that the zombie tried appears", before == await _content(volume, blocks))
    return seconds


async def _check_acknowledged(
    report: Report, volume: Volume, load: ClientProcess, journal: Path, blocks: int
) -> None:
    acked, _ = read_journal(journal)
    content = await volume.read(0, blocks * BLOCK)
    wrong, _ = await asyncio.to_thread(judge, Pattern(load.ready["run"]), content, 0, acked)
    figure = wrong[0] if wrong else f"{sum(acked.values()):,} versions of {len(acked):,} blocks"
    report.promise("every write acknowledged to the first client is there", not wrong, figure)


async def _thaw_zombie(report: Report, load: ClientProcess) -> None:
    load.signal(signal.SIGCONT)
    # Answers that were under way when it was frozen are acknowledgements of the time before: let them arrive.
    await asyncio.sleep(ZOMBIE_S)
    await load.ask("phase zombie")
    await asyncio.sleep(ZOMBIE_S)
    zombie = await load.ask("phase gone")
    refused = zombie["errors"] and zombie["first_error"].startswith("Fenced")
    done = f"{zombie['reads']} reads and {zombie['writes']} writes done, {zombie['errors']} refused"
    report.promise(
        "the zombie is refused as fenced",
        bool(refused) and zombie["writes"] == zombie["reads"] == 0,
        f"{done}; {zombie['first_error'] or 'no error'}",
    )


async def _content(volume: Volume, blocks: int) -> str:
    return hashlib.sha256(await volume.read(0, blocks * BLOCK)).hexdigest()
