"""The superblock: identity, tokens, counts, and the lock."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from moorage.node.config import CAPACITY_MIN, NodeConfig
from moorage.node.superblock import COUNT_STEP, FILE, Superblock
from moorage.service import identity
from moorage.wire.errors import Corrupt, IdentityConflict, Invalid, NoSpace
from moorage.wire.secret import ClusterSecret

GIB = 1 << 30


def test_a_device_keeps_its_identity(tmp_path: Path) -> None:
    first = Superblock(tmp_path, GIB)
    fields = first.fields
    assert len(fields.device) == 32 and fields.token == ""
    first.close()
    second = Superblock(tmp_path, 2 * GIB)
    assert second.fields.device == fields.device
    assert second.fields.segment_size == fields.segment_size, "fixed when the device is made"
    assert second.fields.capacity == 2 * GIB
    second.close()


def test_one_process_per_device(tmp_path: Path) -> None:
    first = Superblock(tmp_path, GIB)
    with pytest.raises(IdentityConflict, match="in use"):
        Superblock(tmp_path, GIB)
    first.close()
    Superblock(tmp_path, GIB).close()


def test_a_move_is_written_down_before_it_is_asked_for(tmp_path: Path) -> None:
    first = Superblock(tmp_path, GIB)
    old, new = first.begin_move()
    assert old == "" and new
    first.close()  # killed before the answer
    second = Superblock(tmp_path, GIB)
    assert second.fields.next_token == new
    assert second.begin_move() == (old, new), "the same question again"
    second.moved()
    assert second.fields.token == new
    assert second.begin_move()[0] == new
    second.close()


def test_a_count_never_goes_back(tmp_path: Path) -> None:
    sent = []
    for _ in range(3):
        block = Superblock(tmp_path, GIB)
        for _ in range(COUNT_STEP + 5):
            if block.needs_count():
                block.reserve_counts()
            sent.append(block.take_count())
        block.close()  # as a kill: nothing is written at the end
    assert sent == sorted(set(sent))


def test_a_full_file_system_reserves_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Superblock(tmp_path, GIB)
    block.reserve_counts()
    for _ in range(COUNT_STEP):
        block.take_count()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(identity, "store", full)
        for write in (block.reserve_counts, block.begin_move):
            with pytest.raises(NoSpace, match="make room"):
                write()
        assert block.needs_count() and not block.fields.next_token
    block.reserve_counts()
    assert not block.needs_count()
    block.close()


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    Superblock(tmp_path, GIB).close()
    path = tmp_path / FILE
    raw = path.read_bytes()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 0x10
        path.write_bytes(bytes(changed))
        with pytest.raises(Exception, match=FILE):
            Superblock(tmp_path, GIB)
    path.write_bytes(raw)
    Superblock(tmp_path, GIB).close()


def test_a_lost_superblock_is_not_replaced(tmp_path: Path) -> None:
    Superblock(tmp_path, GIB).close()
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "00000001.seg").write_bytes(b"")
    (tmp_path / FILE).unlink()
    with pytest.raises(Corrupt, match="missing"):
        Superblock(tmp_path, GIB)


def test_a_capacity_too_small_is_refused(tmp_path: Path) -> None:
    secret = ClusterSecret("0" * 16, b"k" * 32)
    config = NodeConfig(tmp_path, "h1", secret, ["x:1"], lambda: "x:2", capacity=CAPACITY_MIN - 1)
    with pytest.raises(Invalid, match="too small"):
        config.validate()
