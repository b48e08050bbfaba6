"""Replies that take more than one ``pack``: pure functions from figures and data to bytes."""

from __future__ import annotations

from moorage.gateway.nbd import protocol as p

EXTENTS_MAX = 16 * 1024
"""In one block status reply; a client asks again for the rest, as the specification lets us expect."""

ZERO_SCAN_MIN = 4096
_ZEROES = memoryview(bytes(p.PAYLOAD_SIZE_MAX))  # never written, so the kernel backs it by its one zero page


def shortest_reply(reply: bytearray) -> bytes | bytearray:
    """The reply itself, or a hole of the same range when all its data is zero.

    The comparison stops at the first byte that differs, so data pays next to nothing for it; and for a
    megabyte of zeroes it is several times cheaper than to send them.
    """
    start = p.DATA_CHUNK.size
    size = len(reply) - start
    if size < ZERO_SCAN_MIN or not reply.startswith(_ZEROES[:size], start):
        return reply
    magic, flags, _, cookie, _, offset = p.DATA_CHUNK.unpack_from(reply)
    return p.HOLE_CHUNK.pack(magic, flags, p.CHUNK_OFFSET_HOLE, cookie, 12, offset, size)


def structured_error(cookie: int, number: int, message: str) -> bytes:
    """An ERROR chunk that ends its reply and carries a sentence for a person."""
    text = message.encode(errors="replace")[: p.STRING_SIZE_MAX]
    size = 6 + len(text)
    header = p.ERROR_CHUNK.pack(
        p.STRUCTURED_REPLY_MAGIC, p.REPLY_FLAG_DONE, p.CHUNK_ERROR, cookie, size, number, len(text)
    )
    return header + text


def out_of_bounds(offset: int, length: int, size: int) -> str:
    return f"offset {offset} + length {length} is beyond the end of the device ({size})"


def status_reply(cookie: int, extents: list[tuple[int, bool]], length: int, only_one: bool) -> bytes:
    """One chunk with the extents, neighbours of one state merged, clipped to what was asked for."""
    merged: list[tuple[int, int]] = []
    left = length
    for size, is_hole in extents:
        if len(merged) > EXTENTS_MAX:
            break
        size = min(size, left)
        left -= size
        state = p.STATE_HOLE | p.STATE_ZERO if is_hole else 0
        if size and merged and merged[-1][1] == state:
            merged[-1] = (merged[-1][0] + size, state)
        elif size:
            merged.append((size, state))
    del merged[1 if only_one else EXTENTS_MAX :]
    header = p.STATUS_CHUNK.pack(
        p.STRUCTURED_REPLY_MAGIC,
        p.REPLY_FLAG_DONE,
        p.CHUNK_BLOCK_STATUS,
        cookie,
        4 + 8 * len(merged),
        p.CONTEXT_ALLOCATION_ID,
    )
    return header + b"".join(p.EXTENT.pack(*extent) for extent in merged)
