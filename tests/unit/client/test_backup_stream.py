"""The stream of a backup: what was written is read, and nothing else is ever taken for it."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.client.backup_stream import (
    PIECE_SIZE,
    BackupReader,
    BackupWriter,
    Base,
    Frame,
    Header,
    Kind,
    check_chain,
)
from moorage.quorum.record import BLOCK_SIZE
from moorage.wire.errors import Corrupt, Invalid, InvariantViolation, MoorageError

BLOCKS = 8
FULL = Header("c" * 16, "db", 7, "mon", 20, 1000, BLOCKS * BLOCK_SIZE, BLOCK_SIZE, 3, 1, "sync", None)
NEXT = replace(FULL, snapshot="tue", snapshot_id=21, created_ms=2000, base=Base(7, "mon", 20, 1000))
Extent = tuple[int, int, bool]  # first block, blocks, is it a hole


def content(first: int, count: int) -> bytes:
    return random.Random(first).randbytes(count * BLOCK_SIZE)


def put(writer: BackupWriter, extent: Extent) -> None:
    first, count, is_hole = extent
    if is_hole:
        writer.hole(first * BLOCK_SIZE, count * BLOCK_SIZE)
    else:
        writer.data(first * BLOCK_SIZE, content(first, count))


def written(header: Header, extents: list[Extent], stream: Any = None) -> bytes:
    stream = stream or io.BytesIO()
    writer = BackupWriter(stream, header)
    for extent in extents:
        put(writer, extent)
    writer.end()
    raw: bytes = stream.getvalue()
    assert writer.totals.stream == len(raw)
    return raw


def read(raw: bytes, stream: Callable[[bytes], Any] = io.BytesIO) -> tuple[Header, list[Frame]]:
    reader = BackupReader(stream(raw))
    frames: list[Frame] = []
    while batch := reader.batch():
        frames += batch
    assert reader.batch() == []
    return reader.header, frames


EXTENTS: list[Extent] = [(0, 2, False), (2, 5, True), (7, 1, False)]
RAW = written(FULL, EXTENTS)
PLACES = [0, len(RAW) - 40 - 4096 - 32 - 32 - 8192 - 32]  # of the header, of each frame, of the trailer
for _, count, is_hole in EXTENTS:
    PLACES.append(PLACES[-1] + 32 + (0 if is_hole else count * BLOCK_SIZE))


class Drops:
    """A pipe that takes and gives as much as it likes."""

    def __init__(self, raw: bytes = b"") -> None:
        self.raw, self.at, self.name = bytearray(raw), 0, "pipe"
        self.rng = random.Random(len(raw))

    def write(self, data: memoryview) -> int:
        taken = self.rng.randint(1, len(data))
        self.raw += data[:taken]
        return taken

    def read(self, size: int) -> bytes:
        part = bytes(self.raw[self.at : self.at + self.rng.randint(1, size)])
        self.at += len(part)
        return part

    def getvalue(self) -> bytes:
        return bytes(self.raw)


@st.composite
def extents(draw: st.DrawFn, gaps: bool) -> list[Extent]:
    cuts = sorted(
        draw(st.sets(st.integers(0, 40), min_size=2)) if gaps else {0, 40, *draw(st.sets(st.integers(1, 39)))}
    )
    found = [(a, b - a, draw(st.booleans())) for a, b in pairwise(cuts)]
    return [each for each in found if not gaps or draw(st.booleans())]


@settings(max_examples=60)
@given(st.data(), st.booleans())
def test_what_is_written_is_read(data: st.DataObject, is_full: bool) -> None:
    header = replace(FULL if is_full else NEXT, size=40 * BLOCK_SIZE)
    told = data.draw(extents(gaps=not is_full))
    raw = written(header, told, Drops() if data.draw(st.booleans()) else None)
    found, frames = read(raw, data.draw(st.sampled_from([io.BytesIO, Drops])))
    assert found == header
    assert [(f.offset // BLOCK_SIZE, f.length // BLOCK_SIZE, f.kind == Kind.HOLE) for f in frames] == told
    assert all(
        f.data == content(f.offset // BLOCK_SIZE, f.length // BLOCK_SIZE) for f in frames if f.kind == 1
    )


def test_a_batch_is_bounded() -> None:
    size = 16 * PIECE_SIZE
    stream = io.BytesIO()
    writer = BackupWriter(stream, replace(FULL, size=size))
    for offset in range(0, size, PIECE_SIZE):
        writer.data(offset, bytes(PIECE_SIZE))
    writer.end()
    reader = BackupReader(io.BytesIO(stream.getvalue()))
    batches = list(iter(reader.batch, []))
    assert len(batches) == 16 and reader.totals.data == size
    many = replace(NEXT, size=2000 * BLOCK_SIZE)
    reader = BackupReader(io.BytesIO(written(many, [(at, 1, True) for at in range(0, 2000, 2)])))
    assert [len(each) for each in iter(reader.batch, [])] == [256, 256, 256, 232]


# -- damage ---------------------------------------------------------------------------------------------


def refused(raw: bytes, match: str = ".") -> Corrupt:
    with pytest.raises(Corrupt, match=match) as caught:
        read(raw)
    assert type(caught.value) is Corrupt and "use another copy of it" in str(caught.value)
    return caught.value


def test_each_byte_counts() -> None:
    """Where one is another, the frame is named that it is in."""
    for at in [
        *range(0, PLACES[1] + 64),
        *range(PLACES[1] + 64, len(RAW), 97),
        *range(len(RAW) - 80, len(RAW)),
    ]:
        raw = bytearray(RAW)
        raw[at] ^= 1 << at % 8
        byte = refused(bytes(raw)).details["byte"]
        place = max(each for each in PLACES if each <= at)
        assert byte == place or byte == len(RAW), at  # a size that is larger leads to the end


def test_a_stream_that_ends_early() -> None:
    for size in [*range(0, PLACES[1] + 64), *range(PLACES[1] + 64, len(RAW), 53), *PLACES, len(RAW) - 1]:
        error = refused(RAW[:size], f"ends at byte {size}, before the end")
        assert error.details["byte"] == size


def test_bytes_behind_the_trailer() -> None:
    for more in (b"\0", b"x" * 5000, RAW):
        assert refused(RAW + more, "bytes behind the trailer").details["byte"] == len(RAW)


def pieces(raw: bytes = RAW) -> list[bytes]:
    return [raw[a:b] for a, b in zip(PLACES, [*PLACES[1:], len(raw)], strict=True)]


def test_frames_that_are_missing_doubled_or_out_of_order() -> None:
    head, first, hole, last, end = pieces()
    out_of_order = "missing, or out of order"
    for wrong in (
        [hole, first, last],
        [first, last, hole],
        [first, last],
        [hole, last],
        [first, first, hole, last],
    ):
        refused(b"".join([head, *wrong, end]), out_of_order)
    for wrong in ([first, hole], [first], []):
        refused(b"".join([head, *wrong, end]), "the trailer is not that of the frames before it")


def test_frames_that_are_missing_in_an_incremental_one() -> None:
    """It may leave out anything: the trailer alone knows."""
    raw = written(NEXT, EXTENTS)
    at = raw.index(RAW[PLACES[1] : PLACES[1] + 24])
    shift = at - PLACES[1]
    places = [0, *(each + shift for each in PLACES[1:])]
    head, first, hole, last, end = (raw[a:b] for a, b in zip(places, [*places[1:], len(raw)], strict=True))
    assert read(b"".join([head, first, hole, last, end]))
    for wrong in ([first, last], [hole, last], [first, hole], []):
        refused(b"".join([head, *wrong, end]), "the trailer is not that of the frames before it")
    for wrong in ([hole, first, last], [first, hole, hole, last]):
        refused(b"".join([head, *wrong, end]), "missing, or out of order")


def test_a_frame_of_another_backup() -> None:
    other = pieces(written(replace(FULL, snapshot_id=99), EXTENTS))
    for at in range(1, 5):
        mixed = pieces()
        mixed[at] = other[at]
        assert refused(b"".join(mixed), "does not match its check").details["byte"] == PLACES[at]


def test_a_frame_of_the_same_snapshot_with_other_data() -> None:
    """Its check matches, and it is where it belongs: the digest knows."""
    stream = io.BytesIO()
    writer = BackupWriter(stream, FULL)
    writer.data(0, bytes(2 * BLOCK_SIZE))
    mixed = pieces()
    mixed[1] = stream.getvalue()[PLACES[1] :]
    refused(b"".join(mixed), "the trailer is not that of the frames before it")


def test_a_full_one_that_leaves_out_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(BackupWriter, "_is_short", lambda self: False)
        raw = written(FULL, EXTENTS[:2])
    refused(raw, "the trailer is not that of the frames before it")


@pytest.mark.parametrize("raw", [b"\x7fELF" + bytes(100), bytes(100), b"MOSG" + RAW[4:]])
def test_what_is_no_backup(raw: bytes) -> None:
    refused(raw, "the backup is damaged at byte 0: it is no backup of Moorage")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 4097},
        {"size": 1 << 63},
        {"block_size": 512},
        {"volume": 7},
        {"created_ms": -1},
        {"replicas": True},
        {"base": Base("7", "mon", 20, 1)},  # type: ignore[arg-type]
    ],
)
def test_a_header_with_what_no_version_wrote(change: dict[str, Any]) -> None:
    stream = io.BytesIO()
    BackupWriter(stream, replace(FULL, **change))
    refused(stream.getvalue(), "damaged at byte 0: the header: ")


def test_a_header_with_other_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"\x80", b"\xc0", b"\xc1", b"\x81\xa1", b"\x91" * 5000):
        stream = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(Header, "pack", lambda self, body=body: body)
            BackupWriter(stream, FULL)
        refused(stream.getvalue(), "damaged at byte 0: the header: ")


def test_sizes_that_would_take_memory() -> None:
    raw = bytearray(RAW)
    struct.pack_into("<I", raw, 8, (64 << 10) + 1)
    refused(bytes(raw), "a header of 65537 bytes")
    raw = bytearray(RAW)
    struct.pack_into("<Q", raw, PLACES[1] + 16, 1 << 40)
    assert refused(bytes(raw), "a frame does not match its check").details["byte"] == PLACES[1]


# -- the writer's own mistakes --------------------------------------------------------------------------


def test_a_writer_refuses_what_no_reader_takes() -> None:
    for extents, match in [
        ([(1, 1, False)], "frames are missing"),
        ([(0, 1, False), (0, 1, False)], "out of order"),
        ([(0, BLOCKS + 1, True)], "of a volume of"),
        ([(0, 0, True)], "a frame of 0 bytes"),
        ([(0, BLOCKS - 1, True)], "tells of every byte"),
    ]:
        with pytest.raises(InvariantViolation, match=match):
            written(FULL, extents)


class Fails:
    name = "out.mob"

    def __init__(self, error: OSError | None) -> None:
        self.error = error

    def write(self, data: memoryview) -> None:
        if self.error:
            raise self.error

    read = write


def test_a_stream_that_fails() -> None:
    full: Any = Fails(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left") as caught:
        BackupWriter(full, FULL)
    assert caught.value.filename == "out.mob"
    with pytest.raises(OSError, match="No space left") as caught:
        BackupReader(full)
    assert caught.value.filename == "out.mob"
    never: Any = Fails(None)
    for attempt in (lambda: BackupWriter(never, FULL), lambda: BackupReader(never)):
        with pytest.raises(Invalid, match=r"out\.mob does not block"):
            attempt()


# -- chains ---------------------------------------------------------------------------------------------


def chain(*headers: Header) -> None:
    readers = []
    for number, header in enumerate(headers):
        stream = io.BytesIO()
        BackupWriter(stream, header)
        stream.seek(0)
        stream.name = f"b{number}"  # type: ignore[attr-defined]
        readers.append(BackupReader(stream))
    check_chain(readers)


LAST = replace(
    NEXT, snapshot="wed", snapshot_id=22, created_ms=3000, base=Base(7, "tue", 21, 2000), size=1 << 20
)


def test_chains() -> None:
    chain(FULL)
    chain(FULL, NEXT)
    chain(FULL, NEXT, LAST)
    for headers, match in [
        ((), "name the backups"),
        ((NEXT,), "b0 holds only what changed since db@mon: name the full backup first"),
        ((FULL, FULL), "b1 is a full backup, of db@mon: it can only be the first"),
        (
            (FULL, LAST),
            r"b1 holds what changed since db@tue \(snapshot 21\), but b0 is of db@mon \(snapshot 20\)",
        ),
        ((FULL, LAST, NEXT), "b1 holds what changed since db@tue"),
        ((FULL, NEXT, NEXT), "b2 holds what changed since db@mon"),
        ((replace(FULL, cluster="d" * 16), NEXT), "b1 holds"),
        ((replace(FULL, volume_id=8), NEXT), "b1 holds"),
        ((replace(FULL, created_ms=1001), NEXT), "b1 holds"),
        ((replace(FULL, size=1 << 20), NEXT), "b1 holds"),
    ]:
        with pytest.raises(MoorageError, match=match) as caught:
            chain(*headers)
        assert type(caught.value) is Invalid
