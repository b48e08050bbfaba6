"""The steps of the demo. Each shows one promise on real processes, and notes whether it was kept."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sysconfig
import time
from pathlib import Path

from moorage.cli.clients import ClientProcess, run_program
from moorage.cli.drill.recovery import await_current
from moorage.cli.local_cluster import LocalCluster
from moorage.cli.report import Report
from moorage.client.cluster import Cluster

IMAGE_SIZE = 192 << 20
LOAD_BLOCKS = 16384  # 64 MiB
LOAD_DEPTH = 16
BEFORE_S, KILLED_S, SILENT_S, SETTLED_S = 5.0, 8.0, 10.0, 4.0
CAUGHT_UP_TIMEOUT_S = 30.0
NOT_REAL_FILES = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "ensurepip"}


def make_image(directory: Path) -> Path:
    """A source tree for a file system: the standard library of the running Python."""
    tree = directory / "tree"
    source = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(
        source, tree, ignore=lambda _, names: [n for n in names if n in NOT_REAL_FILES or n.endswith(".a")]
    )
    return tree


async def image_round_trip(report: Report, cluster: Cluster, env: dict[str, str], directory: Path) -> None:
    """A file system made from real files goes in and out through somebody else's NBD client."""
    report.step("an ext4 image made from real files, copied in and out by nbdcopy")
    image, back = directory / "image", directory / "back"
    tree = await asyncio.to_thread(make_image, directory)
    await run_program("mkfs.ext4", "-q", "-d", str(tree), str(image), f"{IMAGE_SIZE >> 20}M")
    await cluster.create_volume("image", size=IMAGE_SIZE, replicas=3)
    path = directory / "image.sock"
    uri = f"nbd+unix:///image?socket={path}"
    began = time.perf_counter()
    arguments = ["attach", "image", "--nbd", f"unix:{path}", "--json"]
    async with ClientProcess(arguments, env, directory / "attach.log"):
        await run_program("nbdcopy", "--flush", str(image), uri)
        await run_program("nbdcopy", uri, str(back))
    seconds = time.perf_counter() - began
    same = await asyncio.to_thread(lambda: _digest(image) == _digest(back))
    report.promise(
        "the image comes back bit for bit", same, f"{IMAGE_SIZE >> 20} MiB in and out in {seconds:.1f} s"
    )
    await run_program("e2fsck", "-fn", str(back))
    report.promise("e2fsck finds the copy clean", True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def hosts_die(report: Report, local: LocalCluster, load: ClientProcess) -> None:
    """One host is killed, another goes silent, under a load that checks every block it reads."""
    victim, silent = local.hosts[1], local.hosts[2]
    report.step(f"a verifying load, depth {LOAD_DEPTH}, half reads, half writes")
    await asyncio.sleep(1)
    await load.ask("phase before")
    await asyncio.sleep(BEFORE_S)

    report.step(f"SIGKILL of {victim.name}")
    # The phase begins first: the gap at the fault belongs to it.
    report.phase(await load.ask(f"phase {victim.name} killed"))
    await victim.kill()
    await asyncio.sleep(KILLED_S)
    report.phase(await load.ask(f"phase {victim.name} returns"))
    await victim.launch()
    await victim.wait_ready()
    await _caught_up(report, load, victim.name)
    await asyncio.sleep(SETTLED_S)

    report.step(f"SIGSTOP of {silent.name}: silent, its sockets stay open")
    report.phase(await load.ask(f"phase {silent.name} silent"))
    silent.freeze()
    await asyncio.sleep(SILENT_S)
    report.phase(await load.ask(f"phase {silent.name} returns"))
    silent.thaw()
    await _caught_up(report, load, silent.name)
    await asyncio.sleep(SETTLED_S)
    report.phase(await load.ask("phase after"))
    await asyncio.sleep(SETTLED_S)
    report.phase(await load.ask("phase end"))
    errors = sum(phase["errors"] for phase in report.phases)
    report.promise("no I/O error while hosts died", errors == 0, f"{errors} errors")
    report.promise("every read showed what was written", not report.phases[-1]["mismatches"])


async def _caught_up(report: Report, load: ClientProcess, host: str) -> None:
    found = await await_current(load, timeout=CAUGHT_UP_TIMEOUT_S, host=host)
    figure = f"{found.seconds:.1f} s" + (f": {found.missing}" if found.missing else "")
    report.promise(f"{host} comes back and catches up", not found.missing, figure)
