"""Backups that an earlier version wrote: read field by field, and written the same today."""

from __future__ import annotations

import io
import struct

import msgpack
import pytest
import xxhash

from moorage.client.backup_stream import BackupReader, Base, Header
from moorage.wire.errors import Corrupt, VersionMismatch

from . import make, support
from . import values as v
from . import values5 as v5


@pytest.mark.parametrize("name", v5.BACKUPS)
def test_what_is_written_today_is_what_was_written(name: str) -> None:
    assert make.backups()[name] == support.backup(name)


@pytest.mark.parametrize("name", v5.BACKUPS)
def test_a_backup(name: str) -> None:
    raw, (fields, frames) = support.backup(name), v5.BACKUPS[name]
    reader = BackupReader(io.BytesIO(raw))
    base = fields["base"] and Base(**fields["base"])
    assert reader.header == Header(**{**fields, "base": base})
    assert set(fields) == set(Header.__dataclass_fields__)
    found = reader.batch()
    assert [(each.kind, each.offset, each.length) for each in found] == [each[:3] for each in frames]
    for frame, (kind, _, length, number) in zip(found, frames, strict=True):
        assert frame.data == (v.block(number, length // v.BLOCK_SIZE) if kind == 1 else b"")
    assert reader.batch() == [] and reader.totals.stream == len(raw)


def test_a_backup_by_the_letter() -> None:
    """As docs/formats.md has it."""
    raw = support.backup("full")
    magic, version, zero, size, zeroes, check = struct.unpack_from("<4sHHIIQ", raw)
    assert (magic, version, zero, zeroes) == (b"MOBK", 1, 0, 0)
    body = raw[24 : 24 + size]
    assert check == xxhash.xxh3_64_intdigest(raw[:16] + body) and msgpack.unpackb(body) == v5.FULL
    at, digest, data_size = 24 + size, xxhash.xxh3_64(), 0
    for kind, offset, length, number in v5.FULL_FRAMES:
        data = v.block(number, length // v.BLOCK_SIZE) if kind == 1 else b""
        assert struct.unpack_from("<B7xQQ", raw, at) == (kind, offset, length)
        found = raw[at + 24 : at + 32]
        assert int.from_bytes(found, "little") == xxhash.xxh3_64_intdigest(raw[at : at + 24] + data, check)
        assert raw[at + 32 : at + 32 + len(data)] == data
        digest.update(found)
        data_size += len(data)
        at += 32 + len(data)
    assert struct.unpack_from("<B7xQQ", raw, at) == (3, len(v5.FULL_FRAMES), data_size)
    tail = struct.pack("<Q", digest.intdigest())
    assert raw[at + 24 : at + 32] == struct.pack(
        "<Q", xxhash.xxh3_64_intdigest(raw[at : at + 24] + tail, check)
    )
    assert raw[at + 32 :] == tail


def test_a_backup_of_another_version() -> None:
    raw = bytearray(support.backup("full"))
    struct.pack_into("<H", raw, 4, 2)
    with pytest.raises(Corrupt, match="the header does not match its check"):
        BackupReader(io.BytesIO(raw))
    size = struct.unpack_from("<I", raw, 8)[0]
    struct.pack_into("<Q", raw, 16, xxhash.xxh3_64_intdigest(bytes(raw[:16] + raw[24 : 24 + size])))
    with pytest.raises(VersionMismatch, match="the backup: backup in version 2, this version reads 1"):
        BackupReader(io.BytesIO(raw))
