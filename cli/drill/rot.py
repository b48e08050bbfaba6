"""Bit rot: flip bytes in the segment files of one replica, in blocks of the scratch volume and nowhere else.

A block of the load says itself which run, block and version it is, and what all its bytes are: only a block
that is whole and of this run is touched. Owns the search and the flip.
"""

from __future__ import annotations

import mmap
import os
import random
from dataclasses import dataclass
from pathlib import Path

from moorage.bench.verify import BLOCK, MAGIC, TAG, Pattern
from moorage.cli.drill.faults import Victim
from moorage.node.superblock import FILE as SUPERBLOCK
from moorage.wire.errors import Invalid

AT_ONCE = 64  # blocks that rot
FLIPPED_AT = TAG.size + 7  # in the filler: the block still says whose it is


@dataclass(frozen=True)
class Place:
    path: Path
    offset: int
    block: int
    version: int


def segments(victim: Victim) -> Path:
    """The directory of the victim's segments on this machine; Invalid that says why it cannot be had."""
    os.close(victim.open())  # it runs here
    directory = Path(str(victim.said["directory"]))
    try:
        own = (directory / SUPERBLOCK).read_text()
    except OSError as error:
        raise Invalid(
            f"the data of host {victim.host} cannot be read: {directory}: {error.strerror}"
        ) from None
    if victim.device not in own or not (directory / "segments").is_dir():
        raise Invalid(f"{directory} does not hold the device of host {victim.host}")
    return directory / "segments"


def find(directory: Path, pattern: Pattern, since: float) -> list[Place]:
    """The newest version of each block of this run, in every place where it stands. ``since`` (time.time()):
    files that were not written since then are passed over."""
    newest: dict[int, list[Place]] = {}
    for path in sorted(directory.glob("*.seg")):
        if path.stat().st_mtime < since:
            continue
        for place in _in_file(path, pattern):
            known = newest.get(place.block, [])
            if not known or known[0].version < place.version:
                newest[place.block] = [place]
            elif known[0].version == place.version:
                known.append(place)
    return [place for places in newest.values() for place in places]


def _in_file(path: Path, pattern: Pattern) -> list[Place]:
    needle = MAGIC + pattern.run.to_bytes(8, "little")
    found = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(needle)
        while at >= 0:
            _, _, block, version = TAG.unpack_from(data, at) if at + BLOCK <= len(data) else (b"", 0, 0, 0)
            if version:
                found.append(Place(path, at, block, version))
            at = data.find(needle, at + 1)
    return found


def choose(places: list[Place], rng: random.Random) -> list[Place]:
    """Some blocks, with every place where each stands."""
    blocks = sorted({place.block for place in places})
    picked = set(rng.sample(blocks, min(AT_ONCE, len(blocks))))
    return [place for place in places if place.block in picked]


def flip(place: Place, pattern: Pattern) -> bool:
    """Flip one bit of the block; False when something else stands there now, which is left alone."""
    with place.path.open("r+b", buffering=0) as file:
        content = os.pread(file.fileno(), BLOCK, place.offset)
        if len(content) < BLOCK or pattern.version(place.block, content) != place.version:
            return False
        os.pwrite(file.fileno(), bytes([content[FLIPPED_AT] ^ 0x40]), place.offset + FLIPPED_AT)
    return True
