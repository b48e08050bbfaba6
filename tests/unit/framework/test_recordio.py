"""RecordIO: however the bytes are cut, the records are the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.framework.recordio import RECORD_SIZE_MAX, RecordReader
from moorage.wire.errors import ProtocolError


def framed(*records: bytes) -> bytes:
    return b"".join(b"%d\n%b" % (len(each), each) for each in records)


def drain(reader: RecordReader) -> list[bytes]:
    found = []
    while (record := reader.next_record()) is not None:
        found.append(record)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def read(pieces: list[bytes]) -> tuple[list[bytes], str]:
    """The records, and what was wrong after them."""
    reader, found = RecordReader(), []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (record := reader.next_record()) is not None:
                found.append(record)
    except ProtocolError:
        return found, "malformed"
    return found, "inside" if reader.inside else ""


places = st.lists(st.integers(0, 400), max_size=12)


@given(st.lists(st.binary(max_size=80), max_size=6), places)
def test_any_cut_gives_the_same_records(records: list[bytes], places: list[int]) -> None:
    data = framed(*records)
    assert read(cut(data, [min(each, len(data)) for each in places])) == (records, "")


@given(st.lists(st.binary(max_size=40), max_size=4), st.binary(min_size=1, max_size=12), places)
def test_any_cut_of_what_is_malformed_gives_the_same_records_and_the_same_end(
    records: list[bytes], more: bytes, places: list[int]
) -> None:
    data = framed(*records) + more
    whole = read([data])
    assert whole[0][: len(records)] == records
    assert read(cut(data, [min(each, len(data)) for each in places])) == whole
    assert read([data[at : at + 1] for at in range(len(data))]) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"x",
        b"12x",
        b"-1\n",
        b"+1\na",
        b" 1\na",
        b"1 \na",
        b"1\r\na",
        b"0x1\na",
        b"\xd9\xa1\na",  # a digit elsewhere
        b"123456789",
        b"000000001\na",
        b"1\nab\n",
        b"%d\n" % (RECORD_SIZE_MAX + 1),
    ],
)
def test_what_is_no_length_is_an_error_for_ever(data: bytes) -> None:
    reader = RecordReader()
    reader.feed(data)
    with pytest.raises(ProtocolError):
        drain(reader)
    reader.feed(framed(b"fine"))
    with pytest.raises(ProtocolError):
        drain(reader)


def test_the_largest_record_is_waited_for() -> None:
    reader = RecordReader()
    reader.feed(b"%d\n" % RECORD_SIZE_MAX)
    assert drain(reader) == [] and reader.inside


def test_where_a_stream_may_end() -> None:
    reader = RecordReader()
    assert drain(reader) == [] and not reader.inside
    for piece, inside in [(b"5", True), (b"\n", True), (b"hell", True), (b"o", False), (b"0\n", False)]:
        reader.feed(piece)
        drain(reader)
        assert reader.inside is inside, piece
