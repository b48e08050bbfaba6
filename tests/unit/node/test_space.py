from __future__ import annotations

import pytest

from moorage.node.config import CAPACITY_MIN
from moorage.node.space import SEGMENTS_MAX, Layout, segment_size_for, writers_room


@pytest.mark.parametrize("capacity", [CAPACITY_MIN, 100 << 20, 1 << 30, 50 << 30, 4 << 40])
def test_a_layout_fits_its_capacity(capacity: int) -> None:
    layout = Layout(capacity, segment_size_for(capacity))
    assert layout.segment_size >= (5 << 20) + (64 << 10), "an entry with a record of a whole chunk fits"
    assert layout.slots * layout.segment_size < capacity
    assert layout.usable >= capacity // 3
    assert layout.slots <= SEGMENTS_MAX, "each is an open file"
    assert layout.segment_size <= max(64 << 20, capacity // 2048), "some are allocated ahead"


def test_what_was_promised_is_not_promised_again() -> None:
    layout = Layout(1 << 30, segment_size_for(1 << 30))
    everything = writers_room(layout, layout.slots, 0, 0)
    assert 0 < everything < layout.usable
    assert writers_room(layout, layout.slots, 0, 1000) == everything - 1000
    assert writers_room(layout, layout.reserve, 0, 0) == 0
    assert writers_room(layout, 0, 0, 0) == 0
