"""Records of the quorum log: the unit that a writer gives an LSN to, and the head format that frames,
segments and messages share (docs/formats.md). Pure: bytes in, values out.

Head, little-endian, 48 bytes, then ``count`` block checksums of 8 bytes for a WRITE:

====== ==== ======== =====================================================================
offset size field    meaning
====== ==== ======== =====================================================================
0      8    epoch    the epoch that the record was *first* written in (recovery keeps it)
8      8    lsn      from 1, without gaps, per replica group
16     8    chunk    group-local chunk number: chunk ``i`` of a volume is ``i // G`` of group ``i % G``
24     4    block    first block in the chunk (0..1023); 0 for ZERO_CHUNKS and BARRIER
28     4    count    blocks (WRITE, ZERO) or group-local chunks (ZERO_CHUNKS); 0 for BARRIER
32     4    data_size  bytes of data that belong to the record: ``count * 4096`` for WRITE, else 0
36     1    kind     see ``Kind``
37     3    reserved zero
40     8    check    xxh3_64 of the 40 bytes before, and of the block checksums behind
====== ==== ======== =====================================================================
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

# Python 3.11 has no Buffer protocol type: these three are what we pass around.
Buffer = bytes | bytearray | memoryview

BLOCK_SIZE = 4096
CHUNK_SIZE = 4 << 20
BLOCKS_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE

HEAD = struct.Struct("<QQQIIIB3x")
HEAD_SIZE = HEAD.size + 8
assert HEAD_SIZE == 48

EPOCH_MAX = LSN_MAX = (1 << 63) - 1  # half the field: a position past it is refused, never wrapped


class Kind(IntEnum):
    BARRIER = 1  # first record of an epoch; commits what was recovered
    WRITE = 2  # blocks with data
    ZERO = 3  # discard or write-zeroes inside one chunk: reads as zeroes afterwards
    ZERO_CHUNKS = 4  # the same over whole consecutive group-local chunks


class Position(NamedTuple):
    """(epoch, LSN) of a record; compares as Raft's last log term and index do."""

    epoch: int
    lsn: int


ZERO_POSITION = Position(0, 0)


class Record:
    """One record. ``sums`` holds the packed block checksums, ``data`` the blocks; the owner of the buffer
    is whoever built the record, and it must not change while the record lives."""

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
