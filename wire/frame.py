"""The frame: the one unit that crosses a Moorage socket (byte table in docs/wire.md).

Owns the header codec and the size limits. Pure: bytes in, values out; never touches a socket.
Invariant: whatever the bytes are, decoding raises :class:`ProtocolError` or nothing.

Header, little-endian, 32 bytes, then ``body_size`` bytes of body, then ``payload_size`` bytes of payload:

====== ==== ============ ==========================================================================
offset size field        meaning
====== ==== ============ ==========================================================================
0      2    magic        0x4F4D ("MO")
2      1    version      1
3      1    kind         REQUEST, REPLY, ERROR, CANCEL, ONEWAY
4      2    op           what the body is: CALL, HELLO, PING, RAFT, APPEND, ...
6      2    flags        belongs to the op
8      4    body_size    <= 1 MiB
12     4    payload_size <= 8 MiB
16     8    request_id   chosen by who asks, unique among the open ones of that end; 0 for ONEWAY
24     4    deadline_ms  how long the asker still waits; 0: no limit
28     4    check        low 32 bits of xxh3_64 of the 28 bytes before and the body
====== ==== ============ ==========================================================================

The payload has no check here: its blocks carry their own, end to end.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack
import xxhash

from moorage.wire.errors import Invalid, MoorageError, ProtocolError, VersionMismatch, from_wire

Buffer = bytes | bytearray | memoryview

MAGIC: Final = 0x4F4D
VERSION: Final = 1
HEADER_SIZE: Final = 32
BODY_SIZE_MAX: Final = 1 << 20
PAYLOAD_SIZE_MAX: Final = 8 << 20

# kinds: plain ints, since an IntEnum costs a Python-level call per comparison on the hot path
REQUEST: Final = 1
REPLY: Final = 2
ERROR: Final = 3
CANCEL: Final = 4
ONEWAY: Final = 5

# ops
CALL: Final = 1
HELLO: Final = 2
PING: Final = 3
RAFT: Final = 4
APPEND: Final = 16
ACK: Final = 17
NACK: Final = 18
READ: Final = 19
HEARTBEAT: Final = 20

# magic, version and kind as one word: one comparison instead of three per frame
_TAG_BASE: Final = MAGIC | VERSION << 16
_UNCHECKED = struct.Struct("<IHHIIQI")
_CHECK = struct.Struct("<I")
HEADER = struct.Struct("<IHHIIQII")
assert HEADER.size == HEADER_SIZE == _UNCHECKED.size + _CHECK.size

KIND_OF_TAG: Final = {_TAG_BASE | kind << 24: kind for kind in (REQUEST, REPLY, ERROR, CANCEL, ONEWAY)}

check_of: Final = xxhash.xxh3_64_intdigest  # of head[:28] + body; its low 32 bits go on the wire
_pack = _UNCHECKED.pack
_pack_check = _CHECK.pack


def encode(
    kind: int, op: int, request_id: int, body: Buffer, payload_size: int, flags: int, deadline_ms: int
) -> bytes:
    """Header and body in one piece; the payload follows it on the wire. Limits are the sender's mistake
    and raise :class:`Invalid`."""
    size = len(body)
    if size > BODY_SIZE_MAX or payload_size > PAYLOAD_SIZE_MAX:
        raise Invalid(f"frame too large: body {size}, payload {payload_size} bytes", body=size)
    head = _pack(_TAG_BASE | kind << 24, op, flags, size, payload_size, request_id, deadline_ms)
    if size:
        return b"".join((head, _pack_check(check_of(head + body) & 0xFFFFFFFF), body))
    return head + _pack_check(check_of(head) & 0xFFFFFFFF)


def kind_of(tag: int) -> int:
    """The frame's kind out of its first word; raises when this is not a frame of our version."""
    if tag & 0xFFFF != MAGIC:
        raise ProtocolError(f"not a Moorage frame: it starts with {tag.to_bytes(4, 'little')!r}")
    if (tag >> 16) & 0xFF != VERSION:
        raise VersionMismatch(f"peer sends frames of version {(tag >> 16) & 0xFF}, this side reads {VERSION}")
    kind = tag >> 24
    if not REQUEST <= kind <= ONEWAY:
        raise ProtocolError(f"unknown frame kind {kind}")
    return kind


def pack(value: Any) -> bytes:
    """msgpack of a control message."""
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: Buffer) -> Any:
    """Inverse of :func:`pack`; anything malformed raises :class:`ProtocolError`."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except Exception as exc:  # msgpack raises many kinds, ValueError and RecursionError-like among them
        raise ProtocolError(f"body is not msgpack: {type(exc).__name__}") from None


def pack_error(error: MoorageError) -> bytes:
    """Body of an ERROR frame. Details that msgpack cannot carry are sent as their text."""
    try:
        return pack([error.code, error.message, error.details])
    except (TypeError, ValueError, OverflowError):
        return pack([error.code, error.message, {key: str(value) for key, value in error.details.items()}])


def unpack_error(body: Buffer) -> MoorageError:
    """The error that a peer reported; raises :class:`ProtocolError` when the body is none."""
    value = unpack(body)
    match value:
        case [int(code), str(message), dict(details)] if all(isinstance(key, str) for key in details):
            for reserved in ("self", "message"):  # the constructor's own names
                details.pop(reserved, None)
            return from_wire(code, message, details)
    raise ProtocolError("malformed error body")
