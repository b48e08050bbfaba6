"""Bodies of the hot messages of the quorum log: APPEND, ACK, NACK, READ and HEARTBEAT. Little-endian.

Pure: numbers to bytes and back; record heads are opaque here (``quorum.record`` reads them). A body of the
wrong size raises :class:`ProtocolError`. All integers are unsigned; epochs and LSNs stay below 2^63.

APPEND (ONEWAY, writer to member), 56 bytes, then the heads of ``count`` records one behind the other (each
with its check and block checksums); the payload is their data, one behind the other. Frame flags: 1 FLUSH.

====== ==== ========== =====================================================================
offset size field      meaning
====== ==== ========== =====================================================================
0      8    replica    whom it is for
8      8    writer     id of the writer, as in its SEAL
16     8    epoch      the writer's epoch (a record carries its own)
24     8    prev_epoch epoch of the record before the first one
32     8    prev_lsn   its LSN; 0 at the beginning of the log
40     8    commit     greatest LSN that is committed
48     4    session    which SEAL of this writer to this replica it belongs to
52     4    count      records; 0 is a notice: the position before and the commit LSN
====== ==== ========== =====================================================================

ACK (ONEWAY, member to writer), 56 bytes; cumulative within (epoch, session):

====== ==== ========== =====================================================================
0      8    replica    who says so
8      8    epoch      the writer's epoch
16     8    received   its log equals the writer's up to this LSN
24     8    durable    the same, and durable
32     8    applied    greatest LSN in its index
40     8    limit      bytes of records granted since the session began
48     4    session
52     4    flags      1 WHOLE, 2 FULL, 4 FORKED, 8 BAD (``quorum.member``)
====== ==== ========== =====================================================================

NACK (ONEWAY, member to writer), 40 bytes:

====== ==== ========== =====================================================================
0      8    replica
8      8    epoch      of the message that is refused
16     8    promised   the epoch that this member has promised
24     8    received   as in ACK
32     4    session    of the message that is refused
36     4    code       1 FENCED, 2 NO_SESSION, 3 GAP, 4 NO_ROOM, 6 STALLED (``quorum.member``)
====== ==== ========== =====================================================================

READ (REQUEST), 40 bytes (frame flags: 2 SUMS, no data is asked for, only what there is; 4 PREFIX, the reader
has no epoch of its own: any prefix of the log will do that reaches the position (epoch, lsn); 8 AT, 8 bytes
more at the end of the body: the LSN of a snapshot, as which the blocks are read; 16 LSNS, no data is asked
for, only when each block was written or discarded last):

====== ==== ========== =====================================================================
0      8    replica
8      8    epoch      of the reader
16     8    lsn        the read must see this LSN
24     8    chunk      group-local
32     4    block      first block in the chunk
36     4    count      blocks, at least 1
====== ==== ========== =====================================================================

reply to READ, 16 bytes, then ``count`` checksums of 8 bytes (0: a block that is a hole), or LSNs (0: it was
never written) when these were asked for; the payload is the
data of all blocks, holes as zeroes, or nothing when all are holes (frame flags: 1 HOLES) or when only SUMS
were asked for. To a READ with PREFIX the reply has this flag too, and 8 bytes more at its end: the epoch of
the record at ``applied``. Errors are ERROR frames (Behind, Fenced, NoReplica, Corrupt, ...):

====== ==== ========== =====================================================================
0      8    applied    greatest LSN that the data shows
8      4    count
12     4    reserved   zero
====== ==== ========== =====================================================================

HEARTBEAT (REQUEST, one for each connection of a holder), 8 bytes; the reply is the read lease of every
replica that this connection has sealed and that was not fenced on it before (12 bytes):

====== ==== ========== =====================================================================
0      8    sent       the holder's clock, opaque to the member; echoed
8      4    lease_ms   reply only: how long the promise runs from ``sent``
====== ==== ========== =====================================================================
"""

from __future__ import annotations

import struct
from typing import Final

from moorage.wire.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

FLUSH: Final = 1  # frame flag of APPEND
HOLES: Final = 1  # frame flag of a reply to READ
SUMS: Final = 2  # frame flag of a READ
PREFIX: Final = 4  # frame flag of a READ, and of the reply to it
AT: Final = 8  # frame flag of a READ
LSNS: Final = 16  # frame flag of a READ

_APPEND = struct.Struct("<QQQQQQII")
_ACK = struct.Struct("<QQQQQQII")
_NACK = struct.Struct("<QQQQII")
_READ = struct.Struct("<QQQQII")
_READ_REPLY = struct.Struct("<QII")
_HEARTBEAT = struct.Struct("<Q")
_HEARTBEAT_REPLY = struct.Struct("<QI")
APPEND_SIZE: Final = _APPEND.size
READ_REPLY_SIZE: Final = _READ_REPLY.size
assert (_APPEND.size, _ACK.size, _NACK.size, _READ.size) == (56, 56, 40, 40)
assert (_READ_REPLY.size, _HEARTBEAT.size, _HEARTBEAT_REPLY.size) == (16, 8, 12)


# Packing takes the fields in the order of the tables (and, for APPEND and the reply to READ, the caller
# appends heads or checksums): the bound methods of Struct are the functions, since a wrapper would cost
# as much as the packing itself.
pack_append = _APPEND.pack
pack_ack = _ACK.pack
pack_nack = _NACK.pack
pack_read = _READ.pack
pack_heartbeat = _HEARTBEAT.pack
pack_heartbeat_reply = _HEARTBEAT_REPLY.pack


def unpack_append(body: Buffer) -> tuple[int, int, int, int, int, int, int, int]:
    """The fields in the order of the table; the heads are ``body[APPEND_SIZE:]``."""
    if len(body) < APPEND_SIZE:
        raise ProtocolError(f"an APPEND of {len(body)} bytes")
    return _APPEND.unpack_from(body)


def unpack_ack(body: Buffer) -> tuple[int, int, int, int, int, int, int, int]:
    """The fields in the order of the table."""
    if len(body) != _ACK.size:
        raise ProtocolError(f"an ACK of {len(body)} bytes")
    return _ACK.unpack(body)


def unpack_nack(body: Buffer) -> tuple[int, int, int, int, int, int]:
    """The fields in the order of the table."""
    if len(body) != _NACK.size:
        raise ProtocolError(f"a NACK of {len(body)} bytes")
    return _NACK.unpack(body)


def unpack_read(body: Buffer) -> tuple[int, int, int, int, int, int]:
    """The fields in the order of the table."""
    if len(body) != _READ.size:
        raise ProtocolError(f"a READ of {len(body)} bytes")
    return _READ.unpack(body)


def split_snapshot(body: memoryview, flags: int) -> tuple[memoryview, int]:
    """Of a READ: the body that any has, and the LSN of the snapshot behind it; 0 when it asks for none."""
    if not flags & AT:
        return body, 0
    if len(body) <= 8 or not (snapshot := int.from_bytes(body[-8:], "little")):
        raise ProtocolError("a READ that does not tell its snapshot")
    return body[:-8], snapshot


def pack_read_reply(applied: int, count: int, sums: Buffer) -> bytes:
    """``sums``: ``count`` packed checksums of 8 bytes."""
    return _READ_REPLY.pack(applied, count, 0) + sums


def unpack_read_reply(body: Buffer) -> tuple[int, int, Buffer]:
    """(applied, count, packed checksums: a view into ``body``)."""
    if len(body) < READ_REPLY_SIZE:
        raise ProtocolError(f"a reply to READ of {len(body)} bytes")
    applied, count, _ = _READ_REPLY.unpack_from(body)
    sums = body[READ_REPLY_SIZE:]
    if len(sums) != count * 8:
        raise ProtocolError(f"a reply to READ with {len(sums)} bytes of checksums for {count} blocks")
    return applied, count, sums


def split_epoch(body: memoryview, flags: int) -> tuple[memoryview, int]:
    """Of a reply to a READ with PREFIX: the body that any READ gets, and the epoch behind it."""
    if not flags & PREFIX or len(body) < READ_REPLY_SIZE + 8:
        raise ProtocolError("a reply to READ that does not tell its epoch")
    return body[:-8], int.from_bytes(body[-8:], "little")


def unpack_heartbeat(body: Buffer) -> int:
    if len(body) != _HEARTBEAT.size:
        raise ProtocolError(f"a HEARTBEAT of {len(body)} bytes")
    sent: int = _HEARTBEAT.unpack(body)[0]
    return sent


def unpack_heartbeat_reply(body: Buffer) -> tuple[int, int]:
    """(sent, lease_ms)."""
    if len(body) != _HEARTBEAT_REPLY.size:
        raise ProtocolError(f"a reply to HEARTBEAT of {len(body)} bytes")
    return _HEARTBEAT_REPLY.unpack(body)
