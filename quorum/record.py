"""Records of the quorum log: the unit that a writer gives an LSN to, and the head format that frames,
segments and messages share (docs/node-store.md, docs/wire.md). Pure: bytes in, values out.

Head, little-endian, 48 bytes, then ``count`` block checksums of 8 bytes for a WRITE, or LSNs for SNAPSHOTS:

====== ==== ======== =====================================================================
offset size field    meaning
====== ==== ======== =====================================================================
0      8    epoch    the epoch that the record was *first* written in (recovery keeps it)
8      8    lsn      from 1, without gaps, per replica group
16     8    chunk    group-local chunk number: chunk ``i`` of a volume is ``i // G`` of group ``i % G``;
                     below ``CHUNKS_MAX``, as is the end of a range
24     4    block    first block in the chunk (0..1023); 0 for the other kinds
28     4    count    blocks (WRITE, ZERO), group-local chunks (ZERO_CHUNKS) or LSNs (SNAPSHOTS); 0 for BARRIER
32     4    data_size  bytes of data that belong to the record: ``count * 4096`` for WRITE, else 0
36     1    kind     see ``Kind``
37     3    reserved zero
40     8    check    xxh3_64 of the 40 bytes before, and of the block checksums or LSNs behind
====== ==== ======== =====================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import xxhash

from moorage.wire.errors import Corrupt

# Python 3.11 has no Buffer protocol type: these three are what we pass around.
Buffer = bytes | bytearray | memoryview

BLOCK_SIZE = 4096
CHUNK_SIZE = 4 << 20
BLOCKS_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
# Chunks of a group: far above the largest volume (64 TiB are 2**24), far below what a store's index can key
# (pages of a chunk are numbered in 64 bits). A chunk past it is refused before it is logged.
CHUNKS_MAX = 1 << 48

HEAD = struct.Struct("<QQQIIIB3x")
HEAD_SIZE = HEAD.size + 8
assert HEAD_SIZE == 48

SNAPSHOTS_MAX = 512  # of a group

EPOCH_MAX = LSN_MAX = (1 << 63) - 1  # half the field: a position past it is refused, never wrapped


class Kind(IntEnum):
    BARRIER = 1  # first record of an epoch; commits what was recovered
    WRITE = 2  # blocks with data
    ZERO = 3  # discard or write-zeroes inside one chunk: reads as zeroes afterwards
    ZERO_CHUNKS = 4  # the same over whole consecutive group-local chunks
    SNAPSHOTS = 5  # which LSNs are kept to be read, all of them, its own perhaps (a new one); no data


class Position(NamedTuple):
    """(epoch, LSN) of a record; compares as Raft's last log term and index do."""

    epoch: int
    lsn: int


ZERO_POSITION = Position(0, 0)


class Record:
    """One record. ``sums`` holds the packed block checksums (of SNAPSHOTS: the packed LSNs), ``data`` the
    blocks; the owner of the buffer is whoever built the record, and it must not change while the record
    lives."""

    __slots__ = ("block", "chunk", "count", "data", "epoch", "kind", "lsn", "sums")

    def __init__(
        self,
        epoch: int,
        lsn: int,
        kind: int,
        chunk: int = 0,
        block: int = 0,
        count: int = 0,
        sums: Buffer = b"",
        data: Buffer = b"",
    ) -> None:
        self.epoch = epoch
        self.lsn = lsn
        self.kind = kind
        self.chunk = chunk
        self.block = block
        self.count = count
        self.sums = sums
        self.data = data

    def __repr__(self) -> str:
        name = Kind(self.kind).name
        return f"Record({self.epoch},{self.lsn} {name} chunk={self.chunk} block={self.block}+{self.count})"

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.lsn)

    @property
    def size(self) -> int:
        """Bytes of head, checksums and data, as stored and sent."""
        return HEAD_SIZE + len(self.sums) + len(self.data)

    @property
    def snapshots(self) -> list[int]:
        """Of SNAPSHOTS: the LSNs."""
        return unpack_lsns(self.sums)


_xxh3 = xxhash.xxh3_64_intdigest
_CHECK = struct.Struct("<Q")
_WRITE = int(Kind.WRITE)
_ZERO = int(Kind.ZERO)
_ZERO_CHUNKS = int(Kind.ZERO_CHUNKS)
_BARRIER = int(Kind.BARRIER)
_SNAPSHOTS = int(Kind.SNAPSHOTS)
SUM_SIZE = 8


def pack_lsns(lsns: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(lsns)}Q", *lsns)


def unpack_lsns(packed: Buffer) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // SUM_SIZE}Q", packed))


def numbers_size(kind: int, count: int) -> int:
    """Bytes of checksums or LSNs behind the head of such a record."""
    return count * SUM_SIZE if kind in (_WRITE, _SNAPSHOTS) else 0


def block_sum(block: Buffer) -> int:
    """Checksum of one block: xxh3_64, with 0 moved to 1, since 0 means "never written" in a table."""
    return int(_xxh3(block)) or 1


def block_sums(data: Buffer) -> bytes:
    """The packed checksums of whole blocks (``len(data)`` is a multiple of ``BLOCK_SIZE``)."""
    if len(data) == BLOCK_SIZE:
        return _CHECK.pack(_xxh3(data) or 1)
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_SIZE)
    return b"".join([_CHECK.pack(_xxh3(view[at : at + BLOCK_SIZE]) or 1) for at in starts])


def first_bad_block(sums: Buffer, data: Buffer) -> int:
    """Index of the first block of ``data`` that does not match its checksum, or -1."""
    view = memoryview(data)
    for index in range(len(view) // BLOCK_SIZE):
        found = _xxh3(view[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]) or 1
        if found != _CHECK.unpack_from(sums, index * SUM_SIZE)[0]:
            return index
    return -1


def encode_head(
    epoch: int, lsn: int, kind: int, chunk: int, block: int, count: int, sums: Buffer = b""
) -> bytes:
    """Head, check and block checksums of a record, as they are sent and stored. The values are the
    caller's responsibility (``problem`` finds what is wrong with them)."""
    data_size = count * BLOCK_SIZE if kind == _WRITE else 0
    head = HEAD.pack(epoch, lsn, chunk, block, count, data_size, kind)
    if sums:
        return b"".join((head, _CHECK.pack(_xxh3(head + sums)), sums))
    return head + _CHECK.pack(_xxh3(head))


def problem(epoch: int, lsn: int, kind: int, chunk: int, block: int, count: int, data_size: int) -> str:
    """What makes these values no valid record, or the empty string."""
    if not (0 < epoch <= EPOCH_MAX and 0 < lsn <= LSN_MAX):
        return "position out of range"
    if chunk + (count if kind == _ZERO_CHUNKS else 1) > CHUNKS_MAX:
        return "chunks out of range"
    if kind in (_WRITE, _ZERO):
        if not (count and block + count <= BLOCKS_PER_CHUNK):
            return "blocks outside of the chunk"
        return "" if data_size == (count * BLOCK_SIZE if kind == _WRITE else 0) else "wrong data size"
    if kind == _ZERO_CHUNKS:
        return "" if count and not block and not data_size else "no range of whole chunks"
    if kind == _BARRIER:
        return "" if not (chunk or block or count or data_size) else "a barrier with a range"
    if kind == _SNAPSHOTS:
        return "" if count <= SNAPSHOTS_MAX and not (chunk or block or data_size) else "no list of snapshots"
    return f"unknown kind {kind}"


def are_snapshots(lsns: Sequence[int], lsn: int) -> bool:
    """Whether they rise, and none is above that of the record that lists them."""
    return list(lsns) == sorted(set(lsns)) and (not lsns or 0 < lsns[0] <= lsns[-1] <= lsn)


def decode_head(buffer: Buffer, offset: int = 0) -> tuple[Record, int, int]:
    """Parse one head: (record without data, offset behind it and its checksums, size of its data).

    ``sums`` of the record is a copy. Raises :class:`Corrupt` for anything that ``encode_head`` cannot
    have made, a short buffer included.
    """
    sums_at = offset + HEAD_SIZE
    if len(buffer) < sums_at:
        raise Corrupt("record head is cut short", offset=offset)
    epoch, lsn, chunk, block, count, data_size, kind = HEAD.unpack_from(buffer, offset)
    wrong = problem(epoch, lsn, kind, chunk, block, count, data_size)
    if wrong:
        raise Corrupt(f"record head at {offset}: {wrong}", offset=offset)
    end = sums_at + numbers_size(kind, count)
    if len(buffer) < end:
        raise Corrupt("block checksums are cut short", offset=offset)
    sums = bytes(buffer[sums_at:end])
    checked = bytes(buffer[offset : offset + HEAD.size]) + sums
    if _xxh3(checked) != _CHECK.unpack_from(buffer, offset + HEAD.size)[0]:
        raise Corrupt(f"record head at {offset} does not match its check", offset=offset)
    if kind == _SNAPSHOTS and not are_snapshots(unpack_lsns(sums), lsn):
        raise Corrupt(
            f"record head at {offset}: LSNs of snapshots that do not rise to its own", offset=offset
        )
    return Record(epoch, lsn, kind, chunk, block, count, sums), end, data_size


def decode_batch(heads: Buffer, payload: Buffer) -> list[Record]:
    """Records of one message: concatenated heads, and their data one behind the other in ``payload``.

    ``data`` of each record is a view into ``payload`` (no copy). LSNs must follow one another and epochs
    must not fall. Raises :class:`Corrupt`.
    """
    records: list[Record] = []
    view = memoryview(payload)
    at = data_at = lsn = epoch = 0
    end = len(heads)
    while at < end:
        record, at, data_size = decode_head(heads, at)
        if lsn and (record.lsn != lsn + 1 or record.epoch < epoch):
            raise Corrupt("records of a batch do not follow one another", lsn=record.lsn)
        lsn, epoch = record.lsn, record.epoch
        if data_size:
            record.data = view[data_at : data_at + data_size]
            data_at += data_size
        records.append(record)
    if data_at != len(view):
        raise Corrupt(f"a batch with {len(view)} bytes of data where its heads say {data_at}")
    return records
