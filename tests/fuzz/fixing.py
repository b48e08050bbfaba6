"""Checks made right again in mutated bytes: behind them is where a parser can go wrong."""

from __future__ import annotations

import struct

import xxhash

_xxh3 = xxhash.xxh3_64_intdigest


def fix_frames(data: bytes) -> bytes:
    """Wire frames one behind the other, as far as their sizes lead."""
    raw, at = bytearray(data), 0
    while at + 32 <= len(raw):
        body, payload = struct.unpack_from("<II", raw, at + 8)
        if at + 32 + body > len(raw):
            break
        check = _xxh3(bytes(raw[at : at + 28] + raw[at + 32 : at + 32 + body])) & 0xFFFFFFFF
        struct.pack_into("<I", raw, at + 28, check)
        at += 32 + body + payload
    return bytes(raw)


def fix_records(data: bytes, payload: bytes = b"") -> bytes:
    """Record heads one behind the other; block checksums too, as far as ``payload`` has the blocks."""
    raw, at, data_at = bytearray(data), 0, 0
    while at + 48 <= len(raw):
        count, kind = struct.unpack_from("<I", raw, at + 28)[0], raw[at + 36]
        end = at + 48 + (8 * count if kind == 2 else 0)
        if end > len(raw):
            break
        for sum_at in range(at + 48, end, 8):
            if data_at + 4096 <= len(payload):
                struct.pack_into("<Q", raw, sum_at, _xxh3(payload[data_at : data_at + 4096]) or 1)
            data_at += 4096
        struct.pack_into("<Q", raw, at + 40, _xxh3(bytes(raw[at : at + 40] + raw[at + 48 : end])))
        at = end
    return bytes(raw)


def fix_backup(data: bytes) -> bytes:
    """The header of a backup, and the frames behind it up to the trailer, whose digest is made right too."""
    raw = bytearray(data)
    if len(raw) < 24:
        return data
    at = 24 + struct.unpack_from("<I", raw, 8)[0]
    seed = _xxh3(bytes(raw[:16] + raw[24:at]))
    struct.pack_into("<Q", raw, 16, seed)
    digest = xxhash.xxh3_64()
    while at + 32 <= len(raw):
        kind, length = raw[at], struct.unpack_from("<Q", raw, at + 16)[0]
        end = at + 32 + {1: length, 3: 8}.get(kind, 0)
        if end > len(raw):
            break
        if kind == 3:
            struct.pack_into("<Q", raw, at + 32, digest.intdigest())
        struct.pack_into("<Q", raw, at + 24, _xxh3(bytes(raw[at : at + 24] + raw[at + 32 : end]), seed))
        digest.update(raw[at + 24 : at + 32])
        at = end
    return bytes(raw)


def fix_segment(data: bytes, seed: int) -> bytes:
    """The header of a segment, and the frames behind it: headers, entry heads, bodies."""
    raw = bytearray(data)
    if len(raw) >= 64:
        struct.pack_into("<Q", raw, 56, _xxh3(bytes(raw[:56]), seed))
    at = 512
    while at + 64 <= len(raw):
        size, _, _, count, _ = struct.unpack_from("<IIIII", raw, at + 24)
        table_end = at + 64 + 40 * count
        if table_end > len(raw):
            break
        body_at = table_end
        for head in range(at + 64, table_end, 40):
            body_size = struct.unpack_from("<I", raw, head + 16)[0]
            struct.pack_into("<Q", raw, head + 32, _xxh3(bytes(raw[body_at : body_at + body_size])))
            body_at += body_size
        struct.pack_into("<Q", raw, at + 48, _xxh3(bytes(raw[at : at + 48]), seed))
        covered = bytes(raw[at : at + 56] + raw[at + 64 : table_end])
        struct.pack_into("<Q", raw, at + 56, _xxh3(covered, seed))
        if size < 64:
            break
        at += size
    return bytes(raw)
