"""The segment format: what goes in comes out, and garbage is never taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.node.segment import (
    ALIGN,
    FRAME_HEADER_SIZE,
    PAGE,
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
from moorage.wire.errors import Corrupt

SEED = 0x5EED


def test_segment_header() -> None:
    header = SegmentHeader(7, 100, 5, 4608, b"0123456789abcdef")
    raw = pack_segment_header(header, SEED)
    assert len(raw) == ALIGN
    assert parse_segment_header(raw, SEED) == header
    for at in range(64):
        changed = bytearray(raw)
        changed[at] ^= 1
        assert parse_segment_header(changed, SEED) is None, at


def frame_of(entries: list[tuple[int, Entry]], segment: int = 3, group: int = 9, start: int = 512) -> bytes:
    frame = build_frame(segment, group, start, entries, SEED)
    raw = b"".join((frame.front, *frame.data))
    assert len(raw) == frame.size and frame.size % ALIGN == 0
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
    header = parse_frame_header(raw, 3, SEED)
    assert header is not None and header.group == 9 and frame_verified(raw, header, SEED)
    assert parse_frame_header(raw, 4, SEED) is None, "another segment's number"
    first, second = parse_entries(raw, header)
    assert (first.head.replica, first.head.argument, first.whole, second.whole) == (77, 8, True, True)
    assert bytes(first.data) == data == bytes(raw[first.data_offset : first.data_offset + 8192])
    found = unpack_heads(first.body, 3)
    assert [repr(each) for each in found] == [repr(each) for each in records]
    assert found[0].sums == records[0].sums


@pytest.mark.parametrize("start", [512, 1024, 4096, 8192 + 3584])
def test_much_data_begins_and_ends_at_a_page_of_the_file(start: int) -> None:
    pieces = [bytes([number]) * (128 << 10) for number in range(3)]
    entry = Entry(EntryKind.RECORDS)
    for lsn, piece in enumerate(pieces, 1):
        entry.add_body(pack_head(Record(1, lsn, Kind.WRITE, 0, 32 * lsn, 32, block_sums(piece), piece)))
        entry.add_data(piece)
    entry.count = 3
    frame = build_frame(3, 9, start, [(77, entry)], SEED)
    assert frame.direct and (start + frame.data_at) % PAGE == 0 == (start + frame.size) % PAGE
    raw = memoryview(frame_of([(77, entry)], start=start))
    header = parse_frame_header(raw, 3, SEED)
    assert header is not None and frame_verified(raw, header, SEED)
    (parsed,) = parse_entries(raw, header)
    assert parsed.whole and bytes(parsed.data) == b"".join(pieces)
    assert parsed.data_offset == frame.data_at


def test_small_pieces_stay_packed() -> None:
    entry = Entry(EntryKind.RECORDS)
    for lsn in range(1, 101):
        piece = bytes([lsn]) * 4096
        entry.add_body(pack_head(Record(1, lsn, Kind.WRITE, 0, lsn, 1, block_sums(piece), piece)))
        entry.add_data(piece)
    frame = build_frame(3, 9, 512, [(77, entry)], SEED)
    assert not frame.direct and frame.data_at == len(frame.front)


def test_an_empty_frame() -> None:
    raw = memoryview(frame_of([]))
    header = parse_frame_header(raw, 3, SEED)
    assert header is not None and frame_verified(raw, header, SEED) and header.frame_size == ALIGN
    assert list(parse_entries(raw, header)) == []


def test_who_does_not_know_the_seed_makes_no_frame_and_no_segment() -> None:
    raw = frame_of([(77, Entry(EntryKind.DROP))])
    header = parse_frame_header(raw, 3, SEED)
    assert header is not None
    assert parse_frame_header(raw, 3, SEED + 1) is None
    assert not frame_verified(memoryview(raw), header, SEED + 1)
    segment = pack_segment_header(SegmentHeader(7, 100, 5, 4608, b"0123456789abcdef"), SEED)
    assert parse_segment_header(segment, 0) is None


@given(st.binary(max_size=300))
def test_garbage_is_no_frame(raw: bytes) -> None:
    assert parse_segment_header(raw, SEED) is None
    assert parse_frame_header(raw, 1, SEED) is None
    # a plausible header in front of garbage is not verified
    forged = bytearray(frame_of([(1, Entry(EntryKind.DROP))], segment=1))
    forged[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(raw)] = raw
    header = parse_frame_header(forged, 1, SEED)
    assert header is not None
    if frame_verified(memoryview(forged), header, SEED):
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


def test_heads_that_do_not_fill_their_body() -> None:
    raw = memoryview(pack_head(Record(1, 1, Kind.BARRIER)) * 2)
    assert len(unpack_heads(raw, 2)) == 2
    for count in (0, 1, 3, 1 << 31):
        with pytest.raises(Corrupt, match="do not fill"):
            unpack_heads(raw, count)
    wide = pack_head(Record(1, 1, Kind.WRITE, 0, 0, 2, bytes(16)))
    with pytest.raises(Corrupt, match="do not fill"):
        unpack_heads(memoryview(wide)[:-8], 1)


@pytest.mark.parametrize("kind", [EntryKind.RECORDS, EntryKind.PENDING, EntryKind.BLOCKS])
def test_an_entry_whose_body_makes_no_sense_is_not_whole(kind: EntryKind) -> None:
    entry = Entry(kind)
    entry.add_body(b"no heads and no runs")
    entry.count = 3
    raw = memoryview(frame_of([(1, entry)]))
    header = parse_frame_header(raw, 3, SEED)
    assert header is not None and frame_verified(raw, header, SEED)
    assert [each.whole for each in parse_entries(raw, header)] == [False]
