from __future__ import annotations

import random

import pytest

from moorage.node.config import CAPACITY_MIN
from moorage.node.log import FRAME_OVERHEAD
from moorage.node.segment import ENTRY_SIZE, FIRST_FRAME, FRAME_HEADER_SIZE, align
from moorage.node.space import SEGMENTS_MAX, Layout, segment_size_for, writers_room


@pytest.mark.parametrize("capacity", [CAPACITY_MIN, 100 << 20, 1 << 30, 50 << 30, 4 << 40])
def test_a_layout_fits_its_capacity(capacity: int) -> None:
    layout = Layout(capacity, segment_size_for(capacity))
    assert layout.segment_size >= (5 << 20) + (64 << 10), "an entry with a record of a whole chunk fits"
    assert layout.slots * layout.segment_size < capacity
    assert layout.usable >= capacity // 3
    assert layout.slots <= SEGMENTS_MAX, "each is an open file"
    assert layout.segment_size <= max(64 << 20, capacity // 2048), "some are allocated ahead"


@pytest.mark.parametrize("capacity", [CAPACITY_MIN, 128 << 20, 1 << 30, 8 << 30])
@pytest.mark.parametrize("seed", range(20))
def test_what_was_promised_fits_whatever_the_sizes(capacity: int, seed: int) -> None:
    """Records of 4 KiB to a whole chunk, each in a frame of its own, laid out as the log does."""
    rng = random.Random(seed)
    layout = Layout(capacity, segment_size_for(capacity))
    size = layout.segment_size
    rest, free = rng.randrange(size), rng.randint(layout.reserve, layout.slots)
    sizes = rng.choice([[1], [1024], [1, 1024], [400, 1024], [size // 4096 - 1024, 1024], range(1, 1025)])
    room, end = writers_room(layout, free, rest, 0), size - rest
    while (record := 48 + 4104 * min(1024, rng.choice(sizes))) <= room:
        room -= record
        frame = align(record + ENTRY_SIZE + FRAME_OVERHEAD)
        if end + frame > size:
            free, end = free - 1, FIRST_FRAME
        end += frame if record > 256 << 10 else align(record + ENTRY_SIZE + FRAME_HEADER_SIZE)
    assert free >= layout.reserve


def test_what_was_promised_is_not_promised_again() -> None:
    layout = Layout(1 << 30, segment_size_for(1 << 30))
    everything = writers_room(layout, layout.slots, 0, 0)
    assert 0 < everything < layout.usable
    assert writers_room(layout, layout.slots, 0, 1000) == everything - 1000
    assert writers_room(layout, layout.reserve, 0, 0) == 0
    assert writers_room(layout, 0, 0, 0) == 0
