"""`moorage bench verify`: a load that checks what it reads, by hand or step by step for a program.

With ``--steps`` it takes one word a line from stdin, and answers each with one JSON line: ``phase NAME`` ends
the running phase and begins another, ``share S`` makes S of the operations reads (1: all of them), ``verify``
lets I/O end and reads every block back, ``copy HOST`` does so from the replica on HOST alone (while nothing
is written), ``stop`` ends.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import output
from moorage.cli.options import Seconds, cluster_of, connection_options, run_or_exit
from moorage.wire.errors import Invalid, MoorageError

if TYPE_CHECKING:
    from moorage.bench.verify import VerifyingLoad
    from moorage.client.volume import Volume


@click.command()
@click.argument("name")
@click.option(
    "--seconds", type=Seconds(min=0.1), default=10.0, show_default=True, help="How long to load it."
)
@click.option(
    "--depth", type=click.IntRange(1, 256), default=16, show_default=True, help="Operations in flight."
)
@click.option(
    "--blocks", type=click.IntRange(min=1), default=8192, show_default=True, help="Of 4 KiB, from the start."
)
@click.option(
    "--run",
    type=click.IntRange(min=0),
    help="Number that marks the blocks of this run; default: a random one.",
)
@click.option("--journal", type=click.Path(path_type=Path), help="File that gets each acknowledgement.")
@click.option("--flush-every", type=Seconds(min=0), default=0.0, help="Seconds between flushes; 0: none.")
@click.option("--force", is_flag=True, help="Take the volume from its holder.")
@click.option(
    "--steps",
    is_flag=True,
    help="Be led from stdin, one word a line: phase NAME, members, share S, verify, copy HOST, stop.",
)
@connection_options
def verify(
    name: str,
    seconds: float,
    depth: int,
    blocks: int,
    run: int | None,
    journal: Path | None,
    flush_every: float,
    force: bool,
    steps: bool,
    cluster: str | None,
    registry: str | None,
    secret_file: str | None,
    as_json: bool,
) -> None:
    """Write and read volume NAME, and check every block read against every version it may hold.

    It overwrites the first --blocks blocks of the volume, with zeroes to begin with.
    """

    async def main() -> None:
        import moorage
        from moorage.bench.verify import BLOCK, Journal, VerifyingLoad

        kept = Journal(journal) if journal else None  # first: when it cannot be written, nothing is zeroed
        named = cluster_of(cluster, registry, [name])
        async with (
            await moorage.connect(named, registry=registry, secret_file=secret_file) as connected,
            await connected.attach(name, force=force) as volume,
        ):
            if blocks * BLOCK > volume.size:
                raise Invalid(f"{name} has {volume.size // BLOCK} blocks: use --blocks up to that")
            # What stands there from before is no version of this run: it would be taken for damage.
            await volume.write_zeroes(0, blocks * BLOCK)
            marked = int.from_bytes(os.urandom(6), "big") if run is None else run
            load = VerifyingLoad(volume, blocks=blocks, run=marked, depth=depth, journal=kept)
            flusher = asyncio.create_task(_flush(volume, load, flush_every)) if flush_every else None
            try:
                await (_by_steps(volume, load) if steps else _by_hand(load, seconds, as_json))
            finally:
                if flusher:
                    flusher.cancel()
            if load.mismatches:
                raise MoorageError(f"{len(load.mismatches)} blocks were wrong: {load.mismatches[0]}")

    run_or_exit(main, as_json=as_json)


async def _flush(volume: Volume, load: VerifyingLoad, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        load.flush_begins()
        await volume.flush()
        load.flushed()


async def _by_hand(load: VerifyingLoad, seconds: float, as_json: bool) -> None:
    load.start("load")
    await asyncio.sleep(seconds)
    figures = await load.stop()
    figures["verified_blocks"] = await load.verify_all()
    figures["mismatches"] = len(load.mismatches)
    if as_json:
        output.emit_json(figures)
    else:
        output.console().print(output.table("Verified", ("what", "figure"), list(figures.items())))


async def _by_steps(volume: Volume, load: VerifyingLoad) -> None:
    loop = asyncio.get_running_loop()
    _answer({"event": "ready", "run": load.pattern.run, "epoch": volume.epoch})
    load.start("start")
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        word, _, argument = line.strip().partition(" ")
        if word == "members":
            _answer({"members": volume.members(), "bad_blocks": volume.describe()["bad_blocks"]})
        elif word == "share":
            load.set_read_share(float(argument))
            _answer({"share": argument})
        elif word == "copy":
            _answer(await _verify_copy(volume, load, argument))
        elif word == "phase":
            _answer({**load.next_phase(argument), "mismatches": load.mismatches})
        elif word == "verify":
            figures = await load.stop()
            _answer({**figures, "verified": await load.verify_all(), "mismatches": load.mismatches})
        elif word in ("stop", ""):
            _answer({**await load.stop(), "mismatches": load.mismatches})
            return


async def _verify_copy(volume: Volume, load: VerifyingLoad, host: str) -> dict[str, Any]:
    """``bad``: how many runs of blocks have bad copies, which are being repaired; ``error``: why it cannot be
    told."""
    try:
        bad = await load.verify_copy(functools.partial(volume.read_from, host))
    except MoorageError as error:
        return {"host": host, "bad": None, "error": str(error), "mismatches": load.mismatches}
    return {"host": host, "bad": bad, "error": "", "mismatches": load.mismatches}


def _answer(document: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(document, default=str))
    sys.stdout.flush()
