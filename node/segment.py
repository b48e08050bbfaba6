"""The segment format: bytes of segment files in and out (byte tables in docs/node-store.md). Pure.

Owns: segment header, frames (one frame is one group commit) and their entries. Must never do I/O.
Invariants: a checksum covers the segment's number, so bytes of a former life of the file never parse, and is
seeded with a secret of the device, so what a client wrote as data never does; a
frame's header and entry table have one checksum, each entry's body its own, each block of data its own: so
damage can be told apart by replica. Frames start at multiples of ``ALIGN``: a sector that holds acknowledged
bytes is not written again by a later group commit.

Segment header (64 bytes, little-endian, the rest of 512 is zero)::

    0 4s magic "MOSG"  4 u16 version  6 u16 -  8 u64 number  16 u64 first_group  24 u64 previous number
    32 u64 end of the previous one  40 16s device  56 u64 check (xxh3_64 of the 56 bytes before)

Frame header (64), then ``entry_count`` entry heads (40 each), then the bodies, then the data::

    0 4s magic "MOGC"  4 u16 version  6 u16 -  8 u64 segment  16 u64 group  24 u32 frame_size
    28 u32 bodies_size  32 u32 data_size  36 u32 entry_count  40 u32 data_at  44 4s -
    48 u64 check of the 48 bytes before  56 u64 check of the 56 bytes before and the entry heads

Data begins at ``data_at``, which is right behind the bodies unless there is much of it: then it begins, and
ends, at a page of the file, so that it can be written past the page cache.

Entry head::

    0 u64 replica  8 u64 argument  16 u32 body_size  20 u32 data_size  24 u32 records  28 u8 kind  29 3x
    32 u64 check (of the body)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import xxhash

from moorage.quorum.record import (
    BLOCK_SIZE,
    HEAD,
    HEAD_SIZE,
    Buffer,
    Kind,
    Record,
    encode_head,
    first_bad_block,
    numbers_size,
)
from moorage.wire.errors import Corrupt, MoorageError, VersionMismatch

ALIGN = 512
PAGE = 4096
# Much data in large pieces goes past the page cache: a copy into pages that are touched for the first time
# costs more than all the rest of a large write. Small blocks are likely to be read soon, and stay in it.
DIRECT_BYTES = 256 << 10
DIRECT_PIECE = 32 << 10
VERSION = 1  # of segment headers, and of most frames
SNAPSHOTS_VERSION = 2  # of a frame with records or runs about snapshots; else it is as one of version 1
SEGMENT_HEADER = struct.Struct("<4sHHQQQQ16sQ")
SEGMENT_HEADER_SIZE = 64
FIRST_FRAME = ALIGN
FRAME_HEADER = struct.Struct("<4sHHQQIIIIII")  # without its two checks
FRAME_HEADER_SIZE = 64
ENTRY = struct.Struct("<QQIIIB3xQ")
ENTRY_SIZE = 40
_CHECK = struct.Struct("<Q")
SEGMENT_MAGIC = b"MOSG"
FRAME_MAGIC = b"MOGC"
_PADDING = bytes(ALIGN)
assert SEGMENT_HEADER.size == SEGMENT_HEADER_SIZE
assert FRAME_HEADER.size + 2 * _CHECK.size == FRAME_HEADER_SIZE
assert ENTRY.size == ENTRY_SIZE

OFFSET_BITS = 32  # a block's location: segment number << 32 | offset in the file
OFFSET_MASK = (1 << OFFSET_BITS) - 1

_xxh3 = xxhash.xxh3_64_intdigest


class EntryKind(IntEnum):
    RECORDS = 1  # records of the quorum log; argument: LSN that the member had applied
    STATE = 2  # the member's durable state (its own encoding)
    BLOCKS = 3  # blocks and tombstones with LSNs: a copy from a peer, or compaction
    CREATE = 4  # msgpack of the replica's description; argument: its handle
    DROP = 5
    RESET = 6  # forget all blocks, keep the replica; argument: its new handle
    PENDING = 7  # pending records at a new place (compaction); the log does not change by it


class SegmentHeader(NamedTuple):
    number: int
    first_group: int
    previous: int  # segment number, 0: none
    previous_end: int  # where its log ended: nothing behind it was ever acknowledged
    device: bytes


class FrameHeader(NamedTuple):
    segment: int
    group: int
    frame_size: int
    bodies_size: int
    data_size: int
    entry_count: int
    data_at: int


class EntryHead(NamedTuple):
    replica: int
    argument: int
    body_size: int
    data_size: int
    records: int
    kind: int
    check: int


def pack_segment_header(header: SegmentHeader, seed: int) -> bytes:
    raw = SEGMENT_HEADER.pack(SEGMENT_MAGIC, VERSION, 0, *header, 0)[:-8]
    return (raw + _CHECK.pack(_xxh3(raw, seed))).ljust(FIRST_FRAME, b"\0")


def parse_segment_header(raw: Buffer, seed: int) -> SegmentHeader | None:
    """None when these bytes are not a whole header (a file that was never used, or a torn write). Raises
    VersionMismatch for a whole one of another version: magic, version and check keep their place in all."""
    if len(raw) < SEGMENT_HEADER_SIZE:
        return None
    magic, version, _, number, first, previous, end, device, check = SEGMENT_HEADER.unpack_from(raw)
    if magic != SEGMENT_MAGIC or check != _xxh3(bytes(raw[: SEGMENT_HEADER_SIZE - 8]), seed):
        return None
    if version != VERSION:
        raise _other_version("a segment header", version, f"{VERSION}")
    return SegmentHeader(number, first, previous, end, device)


def _other_version(what: str, version: int, known: str) -> VersionMismatch:
    return VersionMismatch(
        f"{what} of version {version}, this version reads {known}: use the one that wrote it"
    )


def device_field(raw: bytes) -> bytes:
    """Which device a segment header names, right or wrong."""
    return bytes(SEGMENT_HEADER.unpack_from(raw)[7])


class Entry:
    """One entry of a frame under construction. ``bodies`` and ``data`` are kept, not copied, until it is
    written; ``done`` is called with None once it is durable, or with the error."""

    __slots__ = (
        "apply",
        "argument",
        "barrier",
        "bodies",
        "body_size",
        "count",
        "data",
        "data_size",
        "done",
        "kind",
        "queued_at",
        "records",
        "snapshots",
        "ticket",
    )

    def __init__(self, kind: int, argument: int = 0) -> None:
        self.kind = kind
        self.argument = argument
        self.bodies: list[Buffer] = []
        self.body_size = 0
        self.data: list[Buffer] = []
        self.data_size = 0
        self.count = 0
        self.records: list[Record] = []
        self.queued_at = 0.0  # of records: when the first of them came
        self.done: list[Callable[[MoorageError | None], None]] = []
        self.snapshots = False  # a record or run in it is about them
        self.ticket = 0  # of the member: persisted with this entry
        self.apply = 0  # LSN to apply up to, once this entry is durable
        self.barrier = False  # it replaces records or the state: nothing behind it is applied before it is

    @property
    def size(self) -> int:
        return self.body_size + self.data_size

    def add_body(self, body: Buffer) -> None:
        self.bodies.append(body)
        self.body_size += len(body)

    def add_data(self, data: Buffer) -> None:
        self.data.append(data)
        self.data_size += len(data)


def align(size: int) -> int:
    return (size + ALIGN - 1) & ~(ALIGN - 1)


class Frame(NamedTuple):
    """A frame to be written: ``front``, and at ``data_at`` behind its start ``data``; ``size`` in all."""

    front: bytes
    data: list[Buffer]
    data_at: int
    size: int
    direct: bool  # ``data`` begins and ends at a page of the file


def build_frame(segment: int, group: int, start: int, entries: list[tuple[int, Entry]], seed: int) -> Frame:
    """A frame of (replica, entry) that begins at ``start`` of the segment's file."""
    heads: list[bytes] = []
    bodies: list[bytes] = []
    data: list[Buffer] = []
    bodies_size = data_size = 0
    pack = ENTRY.pack
    for replica, entry in entries:
        body = entry.bodies[0] if len(entry.bodies) == 1 else b"".join(entry.bodies)
        size = len(body)
        heads.append(
            pack(replica, entry.argument, size, entry.data_size, entry.count, entry.kind, _xxh3(body))
        )
        bodies.append(bytes(body))
        data += entry.data
        bodies_size += size
        data_size += entry.data_size
    front_size = data_at = FRAME_HEADER_SIZE + ENTRY_SIZE * len(entries) + bodies_size
    direct = data_size >= max(DIRECT_BYTES, DIRECT_PIECE * len(data))
    if direct:
        data_at = -(-(start + front_size) // PAGE) * PAGE - start
    frame_size = align(data_at + data_size)
    fields = (segment, group, frame_size, bodies_size, data_size, len(entries), data_at)
    version = SNAPSHOTS_VERSION if any(entry.snapshots for _, entry in entries) else VERSION
    header = FRAME_HEADER.pack(FRAME_MAGIC, version, 0, *fields, 0)
    header += _CHECK.pack(_xxh3(header, seed))
    table = b"".join(heads)
    header += _CHECK.pack(_xxh3(header + table, seed))
    front = b"".join((header, table, *bodies, bytes(data_at - front_size)))
    if padding := frame_size - data_at - data_size:
        data.append(_PADDING[:padding])
    return Frame(front, data, data_at, frame_size, direct)


def parse_frame_header(raw: Buffer, segment: int | None, seed: int) -> FrameHeader | None:
    """The header of a frame of this segment (None: of any), when these bytes are one. What it says of its
    entries is verified by :func:`frame_verified`. Raises VersionMismatch for a whole one of another version:
    magic, version, segment and the first check keep their place in all."""
    if len(raw) < FRAME_HEADER_SIZE:
        return None
    magic, version, _, number, group, size, bodies, data, count, data_at, _ = FRAME_HEADER.unpack_from(raw)
    if magic != FRAME_MAGIC or segment not in (None, number):
        return None
    if _CHECK.unpack_from(raw, FRAME_HEADER.size)[0] != _xxh3(bytes(raw[: FRAME_HEADER.size]), seed):
        return None
    if version not in (VERSION, SNAPSHOTS_VERSION):
        raise _other_version("a frame", version, f"{VERSION} and {SNAPSHOTS_VERSION}")
    front_size = FRAME_HEADER_SIZE + count * ENTRY_SIZE + bodies
    if not front_size <= data_at < front_size + PAGE or size != align(data_at + data):
        return None
    return FrameHeader(number, group, size, bodies, data, count, data_at)


def frame_verified(frame: memoryview, header: FrameHeader, seed: int) -> bool:
    """Whether header and entry table match their check; ``frame`` begins at the header."""
    table_end = FRAME_HEADER_SIZE + header.entry_count * ENTRY_SIZE
    if len(frame) < table_end:
        return False
    (check,) = _CHECK.unpack_from(frame, FRAME_HEADER_SIZE - 8)
    covered = bytes(frame[: FRAME_HEADER_SIZE - 8]) + bytes(frame[FRAME_HEADER_SIZE:table_end])
    return bool(check == _xxh3(covered, seed))


class ParsedEntry(NamedTuple):
    head: EntryHead
    body: memoryview
    data: memoryview
    data_offset: int  # in the frame
    whole: bool  # body and data match their checks


def parse_entries(frame: memoryview, header: FrameHeader) -> Iterator[ParsedEntry]:
    """Entries of a verified frame, in order; what does not match its checksum comes with ``whole`` false."""
    body_at = FRAME_HEADER_SIZE + header.entry_count * ENTRY_SIZE
    data_at = header.data_at
    for index in range(header.entry_count):
        head = EntryHead(*ENTRY.unpack_from(frame, FRAME_HEADER_SIZE + index * ENTRY_SIZE))
        body = frame[body_at : body_at + head.body_size]
        data = frame[data_at : data_at + head.data_size]
        whole = (
            len(body) == head.body_size
            and len(data) == head.data_size
            and body_verified(head, body)
            and _data_whole(head, body, data)
        )
        yield ParsedEntry(head, body, data, data_at, whole)
        body_at += head.body_size
        data_at += head.data_size


def body_verified(head: EntryHead, body: memoryview) -> bool:
    return head.check == _xxh3(body)


def _data_whole(head: EntryHead, body: memoryview, data: memoryview) -> bool:
    try:
        sums = _block_sums(head, body)
    except (Corrupt, ValueError):
        return False
    return len(sums) // 8 * BLOCK_SIZE == head.data_size and first_bad_block(sums, data) < 0


def _block_sums(head: EntryHead, body: memoryview) -> bytes:
    """Of the blocks that the body says are its data."""
    if head.kind in (EntryKind.RECORDS, EntryKind.PENDING):
        return b"".join([r.sums for r in unpack_heads(body, head.records) if r.kind == Kind.WRITE])
    if head.kind == EntryKind.BLOCKS:
        return b"".join([_CHECK.pack(run_sum) for run in unpack_runs(body) for run_sum in run.sums])
    return b""


# -- record heads ---------------------------------------------------------------------------------


def pack_head(record: Record) -> bytes:
    """The head of a record with its checksums behind (the format of quorum/record.py)."""
    return encode_head(
        record.epoch, record.lsn, record.kind, record.chunk, record.block, record.count, record.sums
    )


def unpack_heads(body: memoryview, count: int) -> list[Record]:
    """``count`` record heads; their own checks are not looked at: the caller has checked the whole body.
    Raises Corrupt when they do not fill it."""
    records = []
    at = 0
    try:
        for _ in range(count):
            epoch, lsn, chunk, block, blocks, _, kind = HEAD.unpack_from(body, at)
            at += HEAD_SIZE
            end = at + numbers_size(kind, blocks)
            sums = bytes(body[at:end])
            at = end
            records.append(Record(epoch, lsn, kind, chunk, block, blocks, sums))
    except struct.error:
        at = -1
    if at != len(body):
        raise Corrupt(f"{count} record heads do not fill a body of {len(body)} bytes")
    return records


# -- runs: blocks with LSNs, as copied between members and by compaction --------------------------------

# chunk, first block (or, for CHUNKS, how many chunks), count, kind
# (of SNAPSHOTS: LSN of the record that listed them, 0: there was none yet; 0; how many)
RUN = struct.Struct("<QIHBx")
RUN_SIZE = 16
assert RUN.size == RUN_SIZE


class RunKind(IntEnum):
    DATA = 1  # count x (lsn u64), count x (sum u64) follow; data holds the blocks
    ZERO = 2  # tombstones of blocks: count x (lsn u64)
    CHUNKS = 3  # tombstone of whole chunks: one lsn
    SNAPSHOTS = 4  # which LSNs are kept to be read: all of them


class Run(NamedTuple):
    kind: int
    chunk: int
    block: int  # CHUNKS: how many chunks
    lsns: tuple[int, ...]
    sums: tuple[int, ...]

    def pack(self) -> bytes:
        count = len(self.lsns)
        return b"".join(
            (
                RUN.pack(self.chunk, self.block, count, self.kind),
                struct.pack(f"<{count}Q", *self.lsns),
                struct.pack(f"<{len(self.sums)}Q", *self.sums),
            )
        )


def unpack_runs(body: memoryview) -> list[Run]:
    """Runs of a body that passed its check, or of a message: ValueError when it makes no sense."""
    runs, at = [], 0
    try:
        while at < len(body):
            chunk, block, count, kind = RUN.unpack_from(body, at)
            at += RUN_SIZE
            lsns = struct.unpack_from(f"<{count}Q", body, at)
            at += 8 * count
            sums: tuple[int, ...] = ()
            if RunKind(kind) == RunKind.DATA:
                sums = struct.unpack_from(f"<{count}Q", body, at)
                at += 8 * count
            runs.append(Run(kind, chunk, block, lsns, sums))
    except struct.error as error:
        raise ValueError(f"a run is cut short: {error}") from None
    return runs
