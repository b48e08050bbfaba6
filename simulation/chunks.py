"""Another size of a chunk, wherever the code has it or what follows from it.

Owns the list of these places: modules take the size by name when they are imported, since the hot path has no
time to look it up. ``tests/simulation/test_chunks.py`` finds out whether one is missing. No byte of a format
tells the size, so that all of :data:`SIZES` keep them.
"""

from __future__ import annotations

from typing import Any

from moorage.client import front, layers, reads, transfer, volume
from moorage.client.objects import reading, space, writing
from moorage.metadata import placement
from moorage.metadata.objects import calls as objects_calls
from moorage.metadata.objects import layout
from moorage.metadata.tasks import objects as objects_tasks
from moorage.node import checkpointer, copying, handlers, index, page, reader, scrub, store
from moorage.node import objects as node_objects
from moorage.quorum import record
from moorage.quorum.record import BLOCK_SIZE, CHUNKS_MAX

SIZES = (page.PAGE_BLOCKS * BLOCK_SIZE, 256 << 10, 4 << 20)  # a page of the index, two, the real one

PLACES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (record, ("CHUNK_SIZE", "BLOCKS_PER_CHUNK")),
    (index, ("BLOCKS_PER_CHUNK", "PAGES_PER_CHUNK")),
    (checkpointer, ("PAGES_PER_CHUNK",)),
    (copying, ("BLOCKS_PER_CHUNK", "PAGES_PER_CHUNK", "CURSOR_MAX")),
    (handlers, ("BLOCKS_PER_CHUNK",)),
    (page, ("PAGES_PER_CHUNK", "BLOCKS_PER_CHUNK")),
    (reader, ("PAGES_PER_CHUNK",)),
    (scrub, ("PAGES_PER_CHUNK",)),
    (store, ("PAGES_PER_CHUNK",)),
    (placement, ("CHUNK_SIZE",)),
    (front, ("CHUNK_SIZE", "BLOCKS_PER_CHUNK", "CHUNK_MASK")),
    (reads, ("CHUNK_SIZE", "_BLOCKS")),
    (volume, ("CHUNK_SIZE",)),
    (layers, ("CHUNK_SIZE", "BLOCKS_PER_CHUNK")),
    (transfer, ("CHUNK_SIZE", "LOOK_BYTES")),
    (layout, ("BLOCKS_PER_CHUNK",)),
    (objects_tasks, ("BLOCKS_PER_CHUNK",)),
    (objects_calls, ("BLOCKS_PER_CHUNK",)),
    (node_objects, ("BLOCKS_PER_CHUNK", "BLOCKS_AT_ONCE")),
    (space, ("BLOCKS_PER_CHUNK", "PIECE_BLOCKS", "RUN_BLOCKS_MAX")),
    (writing, ("BLOCKS_PER_CHUNK", "PIECE_BLOCKS", "PIECE_BYTES", "RUN_BLOCKS_MAX")),
    (reading, ("BLOCKS_PER_CHUNK", "PIECE_BLOCKS")),
)


def blocks_per_chunk() -> int:
    """As it is in this history."""
    return record.BLOCKS_PER_CHUNK


def chunk_patches(size: int) -> list[tuple[Any, str, Any]]:
    blocks = size // BLOCK_SIZE
    pages = blocks // page.PAGE_BLOCKS
    values = {
        "CHUNK_SIZE": size,
        "CHUNK_MASK": size - 1,
        "BLOCKS_PER_CHUNK": blocks,
        "PAGES_PER_CHUNK": pages,
        "CURSOR_MAX": CHUNKS_MAX * pages,
        "LOOK_BYTES": 64 * size,
        "PIECE_BLOCKS": (piece := min(256, blocks)),
        "PIECE_BYTES": piece * BLOCK_SIZE,
        "BLOCKS_AT_ONCE": piece,
        "RUN_BLOCKS_MAX": 16 * piece,
        "_BLOCKS": [slice(at, at + BLOCK_SIZE) for at in range(0, size, BLOCK_SIZE)],
    }
    return [(module, name, values[name]) for module, names in PLACES for name in names]
