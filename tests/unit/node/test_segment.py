"""The segment format: what goes in comes out, and garbage is never taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.node.segment import (
    ALIGN,
    FRAME_HEADER_SIZE,
    Entry,
    EntryKind,
    Run,
    RunKind,
    SegmentHeader,
    build_frame,
    frame_verified,
    pack_head,
    pack_segment_header,
    parse_entries,
    parse_frame_header,
    parse_segment_header,
    unpack_heads,
    unpack_runs,
)
from moorage.quorum.record import Kind, Record, block_sums


def test_segment_header() -> None:
    header = SegmentHeader(7, 100, 5, 4608, b"0123456789abcdef")
    raw = pack_segment_header(header)
    assert len(raw) == ALIGN
    assert parse_segment_header(raw) == header
    for at in range(64):
        changed = bytearray(raw)
        changed[at] ^= 1
        assert parse_segment_header(changed) is None, at


def frame_of(entries: list[tuple[int, Entry]], segment: int = 3, group: int = 9) -> bytes:
    buffers, size, _ = build_frame(segment, group, entries)
    raw = b"".join(bytes(each) for each in buffers)
    assert len(raw) == size and size % ALIGN == 0
    return raw


def test_frame_with_records() -> None:
    data = bytes(range(256)) * 32
    records = [
        Record(4, 10, Kind.WRITE, 2, 5, 2, block_sums(data), data),
        Record(4, 11, Kind.ZERO, 2, 5, 2),
        Record(5, 12, Kind.BARRIER),
    ]
    entry = Entry(EntryKind.RECORDS, 8)
    for record in records:
        entry.add_body(pack_head(record))
    entry.add_data(data)
    entry.count = 3
    empty = Entry(EntryKind.DROP)
    raw = memoryview(frame_of([(77, entry), (78, empty)]))
    header = parse_frame_header(raw, 3)
    assert header is not None and header.group == 9 and frame_verified(raw, header)
    assert parse_frame_header(raw, 4) is None, "another segment's number"
    first, second = parse_entries(raw, header)
    assert (first.head.replica, first.head.argument, first.whole, second.whole) == (77, 8, True, True)
    assert bytes(first.data) == data == bytes(raw[first.data_offset : first.data_offset + 8192])
    found = unpack_heads(first.body, 3)
    assert [repr(each) for each in found] == [repr(each) for each in records]
    assert found[0].sums == records[0].sums


def test_an_empty_frame() -> None:
    raw = memoryview(frame_of([]))
    header = parse_frame_header(raw, 3)
    assert header is not None and frame_verified(raw, header) and header.frame_size == ALIGN
    assert list(parse_entries(raw, header)) == []


@given(st.binary(max_size=300))
def test_garbage_is_no_frame(raw: bytes) -> None:
    assert parse_segment_header(raw) is None
    assert parse_frame_header(raw, 1) is None
    # a plausible header in front of garbage is not verified
    forged = bytearray(frame_of([(1, Entry(EntryKind.DROP))], segment=1))
    forged[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(raw)] = raw
    header = parse_frame_header(forged, 1)
    if header is not None and frame_verified(memoryview(forged), header):
        assert forged[: FRAME_HEADER_SIZE + 40] == frame_of([(1, Entry(EntryKind.DROP))], segment=1)[:104]


def test_runs() -> None:
    runs = [
        Run(RunKind.DATA, 3, 7, (5, 6), (111, 222)),
        Run(RunKind.ZERO, 3, 9, (8,), ()),
        Run(RunKind.CHUNKS, 4, 12, (9,), ()),
    ]
    body = b"".join(run.pack() for run in runs)
    assert unpack_runs(memoryview(body)) == runs
    for end in range(1, len(body)):
        if end not in (16 + 32, 16 + 32 + 16 + 8):
            with pytest.raises(ValueError):
                unpack_runs(memoryview(body)[:end])
