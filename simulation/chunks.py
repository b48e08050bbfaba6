"""Another size of a chunk, wherever the code has it or what follows from it.

Owns the list of these places: modules take the size by name when they are imported, since the hot path has no
time to look it up. ``tests/simulation/test_chunks.py`` finds out whether one is missing. No byte of a format
tells the size, so that all of :data:`SIZES` keep them.
"""

from __future__ import annotations

from typing import Any

from moorage.client import front, reads, volume
from moorage.metadata import placement
from moorage.node import checkpointer, copying, handlers, index, reader, scrub, store
from moorage.quorum import record
from moorage.quorum.record import BLOCK_SIZE, CHUNKS_MAX

SIZES = (index.PAGE_BLOCKS * BLOCK_SIZE, 256 << 10, 4 << 20)  # a page of the index, two, the real one

PLACES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (record, ("CHUNK_SIZE", "BLOCKS_PER_CHUNK")),
    (index, ("BLOCKS_PER_CHUNK", "PAGES_PER_CHUNK")),
    (checkpointer, ("PAGES_PER_CHUNK",)),
    (copying, ("BLOCKS_PER_CHUNK", "PAGES_PER_CHUNK", "CURSOR_MAX")),
    (handlers, ("BLOCKS_PER_CHUNK",)),
    (reader, ("PAGES_PER_CHUNK",)),
    (scrub, ("PAGES_PER_CHUNK",)),
    (store, ("PAGES_PER_CHUNK",)),
    (placement, ("CHUNK_SIZE",)),
    (front, ("CHUNK_SIZE", "BLOCKS_PER_CHUNK", "CHUNK_MASK")),
    (reads, ("CHUNK_SIZE", "_BLOCKS")),
    (volume, ("CHUNK_SIZE",)),
)


def blocks_per_chunk() -> int:
    """As it is in this history."""
    return record.BLOCKS_PER_CHUNK


def chunk_patches(size: int) -> list[tuple[Any, str, Any]]:
    blocks = size // BLOCK_SIZE
    pages = blocks // index.PAGE_BLOCKS
    values = {
        "CHUNK_SIZE": size,
        "CHUNK_MASK": size - 1,
        "BLOCKS_PER_CHUNK": blocks,
        "PAGES_PER_CHUNK": pages,
        "CURSOR_MAX": CHUNKS_MAX * pages,
        "_BLOCKS": [slice(at, at + BLOCK_SIZE) for at in range(0, size, BLOCK_SIZE)],
    }
    return [(module, name, values[name]) for module, names in PLACES for name in names]
