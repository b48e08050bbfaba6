"""Files that version 1 wrote: read field by field, and written the same today."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from moorage.node.replica import ReplicaInfo
from moorage.node.segment import (
    EntryKind,
    ParsedEntry,
    frame_verified,
    parse_entries,
    parse_frame_header,
    parse_segment_header,
    unpack_heads,
    unpack_runs,
)
from moorage.node.superblock import Superblock
from moorage.quorum.record import decode_head
from moorage.quorum.state import MemberState
from moorage.service import identity
from moorage.wire.errors import Corrupt, IdentityConflict, Invalid, VersionMismatch
from moorage.wire.secret import ClusterSecret

from . import make, support
from . import values as v


@pytest.mark.parametrize("name", sorted(make.disk_files()))
def test_what_is_written_today_is_what_was_written(name: str) -> None:
    assert make.disk_files()[name] == support.disk(name)


def test_no_file_is_left_out() -> None:
    assert sorted(path.name for path in (support.V1 / "disk").iterdir()) == sorted(make.disk_files())


def test_golden_files_are_made_once() -> None:
    before = support.content(support.HERE)
    with pytest.raises(SystemExit, match="never made again"):
        make.main(["1"])
    assert support.content(support.HERE) == before


# -- identity files -------------------------------------------------------------------------------------


def test_identity_files(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(support.disk("identity.json"))
    assert identity.load(tmp_path / "identity.json", "service") == v.IDENTITY
    identity.claim_directory(tmp_path, cluster=v.CLUSTER, name="h1", kind="node").release()
    with pytest.raises(IdentityConflict, match="belongs to name 'h1'"):
        identity.claim_directory(tmp_path, cluster=v.CLUSTER, name="h2", kind="node")


def test_superblock(tmp_path: Path) -> None:
    (tmp_path / "superblock").write_bytes(support.disk("superblock"))
    block = Superblock(tmp_path, None)
    assert {key: getattr(block.fields, key) for key in v.SUPERBLOCK} == v.SUPERBLOCK
    assert block.begin_move() == ("a" * 32, "b" * 32) and block.needs_count()
    block.close()


@pytest.mark.parametrize(("kind", "name"), [("service", "identity.json"), ("device", "superblock")])
def test_an_identity_file_of_another_version(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    bare = {**json.loads(support.disk(name)), "format": 2}
    del bare["check"]
    check = identity.xxhash.xxh3_64_hexdigest(identity._dump(bare))
    path.write_bytes(identity._dump({**bare, "check": check}) + b"\n")
    before = support.content(tmp_path)
    with pytest.raises(VersionMismatch, match=rf"{name}: identity format 2, not 1: use the version"):
        if kind == "device":
            Superblock(tmp_path, 1 << 30)
        else:
            identity.claim_directory(tmp_path, cluster=v.CLUSTER, name="h1", kind="node")
    assert {key: raw for key, raw in support.content(tmp_path).items() if key != "lock"} == before


@pytest.mark.parametrize("change", [{"count": "40"}, {"count": True}, {"more": 1}, {"seed": None}])
def test_a_superblock_with_other_fields(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "superblock"
    path.write_bytes(identity.encode("device", {**v.SUPERBLOCK, **change}))
    before = support.content(tmp_path)
    with pytest.raises(Corrupt, match="superblock: fields that no version wrote"):
        Superblock(tmp_path, None)
    assert support.content(tmp_path) == before


def test_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(support.disk("secret"))
    os.chmod(path, 0o600)
    secret = ClusterSecret.load(path)
    assert secret.cluster == v.CLUSTER
    assert secret.mac("label", b"message") == ClusterSecret(v.CLUSTER, v.KEY).mac("label", b"message")
    path.write_bytes(b"2:" + support.disk("secret"))
    with pytest.raises(Invalid, match="secret is not one line CLUSTER_ID:HEXSECRET"):
        ClusterSecret.load(path)


# -- the segment ----------------------------------------------------------------------------------------


def test_segment_header() -> None:
    raw = support.disk("segment-header")
    assert (raw[:4], raw[4:8]) == (b"MOSG", b"\x01\0\0\0")
    assert parse_segment_header(raw, v.SEED) == v.SEGMENT_HEADER
    assert parse_segment_header(raw, v.SEED + 1) is None


def entries() -> list[ParsedEntry]:
    raw = memoryview(support.disk("frame"))
    assert (bytes(raw[:4]), bytes(raw[4:8])) == (b"MOGC", b"\x01\0\0\0")
    header = parse_frame_header(raw, v.FRAME[0], v.SEED)
    assert header is not None and (header.segment, header.group) == v.FRAME
    assert header.frame_size == len(raw) and header.entry_count == len(v.ENTRIES)
    assert frame_verified(raw, header, v.SEED)
    return list(parse_entries(raw, header))


def test_a_frame_with_every_kind_of_entry() -> None:
    found = entries()
    assert all(entry.whole for entry in found)
    assert [(e.head.replica, e.head.kind, e.head.argument) for e in found] == v.ENTRIES
    assert {entry.head.kind for entry in found} == set(EntryKind)


def body_of(kind: EntryKind) -> ParsedEntry:
    return next(entry for entry in entries() if entry.head.kind == kind)


def test_entry_create() -> None:
    info = ReplicaInfo(*msgpack.unpackb(body_of(EntryKind.CREATE).body))
    assert [info.replica, info.volume, info.group, info.durability, info.members] == v.REPLICA_INFO


@pytest.mark.parametrize("kind", [EntryKind.RECORDS, EntryKind.PENDING])
def test_entries_of_records(kind: EntryKind) -> None:
    entry = body_of(kind)
    rows = v.RECORDS if kind == EntryKind.RECORDS else v.RECORDS[-1:]
    records = unpack_heads(entry.body, entry.head.records)
    at = 0
    for record, (epoch, lsn, record_kind, chunk, block, count, number) in zip(records, rows, strict=True):
        assert (record.epoch, record.lsn, record.kind) == (epoch, lsn, record_kind)
        assert (record.chunk, record.block, record.count) == (chunk, block, count)
        data = v.block(number, count) if record_kind == 2 else b""
        assert entry.data[at : at + len(data)] == data
        at += len(data)
    assert at == len(entry.data)


def test_entry_blocks() -> None:
    entry = body_of(EntryKind.BLOCKS)
    data = b""
    for run, (kind, chunk, block, lsns, number) in zip(unpack_runs(entry.body), v.RUNS, strict=True):
        assert (run.kind, run.chunk, run.block, run.lsns) == (kind, chunk, block, lsns)
        data += v.block(number, len(lsns)) if kind == 1 else b""
    assert entry.data == data


def test_entries_of_notes_and_drop() -> None:
    assert body_of(EntryKind.STATE).body == support.disk("member-state")
    assert body_of(EntryKind.RESET).body == support.disk("member-state-copying")
    drop = body_of(EntryKind.DROP)
    assert (len(drop.body), len(drop.data)) == (0, 0)


def test_record_heads() -> None:
    raw, at = support.disk("records"), 0
    for epoch, lsn, kind, chunk, block, count, _ in v.RECORDS:
        record, at, data_size = decode_head(raw, at)
        assert (record.epoch, record.lsn, record.kind) == (epoch, lsn, kind)
        assert (record.chunk, record.block, record.count) == (chunk, block, count)
        assert data_size == (count * 4096 if kind == 2 else 0)
    assert at == len(raw)


# -- a member's state -----------------------------------------------------------------------------------


def test_member_state() -> None:
    raw = support.disk("member-state")
    assert msgpack.unpackb(raw)[0] == 1
    state = MemberState.unpack(raw)
    assert {key: getattr(state, key) for key in v.STATE} == v.STATE and state.copy is None


def test_member_state_of_a_copy() -> None:
    state = MemberState.unpack(support.disk("member-state-copying"))
    assert {key: getattr(state, key) for key in v.COPYING} == v.COPYING and state.copy is not None
    assert {key: getattr(state.copy, key) for key in v.COPY} == v.COPY
    assert set(state.copy.__slots__) == set(v.COPY)
    assert set(state.__slots__) == {*v.COPYING, "copy"}


def test_member_state_of_another_version() -> None:
    with pytest.raises(VersionMismatch, match=r"state of a replica in version 2, this version reads 1"):
        MemberState.unpack(msgpack.packb([2, "another layout"]))
