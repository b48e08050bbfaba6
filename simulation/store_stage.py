"""What is small, slow or always due in a history of one store, so that rare branches happen often.

Owns what is put in the place of the store's own numbers. Must never change what is promised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from moorage.node import checkpointer as checkpointer_module
from moorage.node import reader as reader_module
from moorage.node import replica as replica_module
from moorage.node import scrub as scrub_module
from moorage.node import segment as segment_module
from moorage.node import store as store_module
from moorage.node.store import Store
from moorage.simulation.chunks import SIZES, chunk_patches
from moorage.simulation.disk import Device, SimLane
from moorage.simulation.loop import SimLoop

KIB = 1 << 10


class _SlowLane(SimLane):
    """Reads that take long enough for the store to change meanwhile."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        loop = self._process.loop
        delay_s = loop.rng.choice((0.0, 0.01, 0.05))
        loop.at(delay_s, lambda: super(_SlowLane, self).submit(work, done), process=self._process)


class _Story(logging.Handler):
    """What the store logs is part of the story."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        cause = f" [{record.exc_info[1]!r}]" if record.exc_info else ""
        self._loop.story.append(f"{self._loop.now:.6f} {record.getMessage()}{cause}")


@contextmanager
def staged(loop: SimLoop, device: Device, segment_size: int, is_quiet: Callable[[], bool]) -> Iterator[None]:
    """Sizes and times small enough that each life fills segments, makes checkpoints and compacts, for as long
    as it lasts; what the store logs is told. ``is_quiet``: nothing is due any more."""
    rng = loop.rng
    small: list[tuple[Any, str, Any]] = [
        (store_module, "ENTRY_BYTES_MAX", segment_size // 4),
        (store_module, "UPKEEP_SECONDS", rng.choice((0.002, 0.01, 0.1))),
        (store_module, "READY_SEGMENTS", rng.choice((1, 3))),
        (replica_module, "TAIL_KEPT", rng.choice((0, 16, 1024)) - 60),
        (segment_module, "DIRECT_BYTES", rng.choice((8, 256)) * KIB),
        (segment_module, "DIRECT_PIECE", 4 * KIB),
        *chunk_patches(rng.choice(SIZES)),
        (scrub_module, "TICK_S", rng.choice((0.005, 0.05))),
        (scrub_module, "RETRY_S", 0.05),
        (scrub_module, "SAVE_S", rng.choice((0.0, 0.05))),
        (scrub_module, "PAGES_AT_ONCE", rng.choice((1, 2, 64))),
        (scrub_module, "GAP", rng.choice((0, 16)) * KIB),
    ]
    if rng.random() < 0.3:
        small.append((reader_module, "Lane", _SlowLane))
        device.disk.cached = False
    if rng.random() < 0.6:  # compaction is due all the time
        small.append((Store, "_short_of_space", lambda store: not is_quiet() and rng.random() < 0.7))
    if rng.random() < 0.6:
        small.append((checkpointer_module, "PAGES_PER_TRANSACTION", rng.choice((1, 2))))
    logger, handler = logging.getLogger("moorage"), _Story(loop)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        with ExitStack() as stack:
            for target, name, value in small:
                stack.enter_context(patch.object(target, name, value))
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
