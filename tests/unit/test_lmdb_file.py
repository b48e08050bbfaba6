"""A new LMDB environment is whole, under a durable name, or not there."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from moorage.service import lmdb_check, lmdb_file
from moorage.service.lmdb_file import make_environment
from moorage.wire.errors import Corrupt

MAP_SIZE = 1 << 30


def test_it_has_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index"

    def fail(old: Path, new: Path) -> None:
        lmdb.open(str(old), subdir=False, readonly=True, lock=False).close()
        raise OSError(5, "the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(lmdb_file.os, "replace", fail)
        with pytest.raises(OSError, match="the power is gone"):
            make_environment(path, map_size=MAP_SIZE)
    assert not (path / "data.mdb").exists()
    make_environment(path, map_size=MAP_SIZE)
    assert [each.name for each in path.iterdir()] == ["data.mdb"]
    assert lmdb_check.check(path, sealed=True) == 0


def test_one_that_is_there_is_left_alone(tmp_path: Path) -> None:
    make_environment(tmp_path, map_size=MAP_SIZE)
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    make_environment(tmp_path, map_size=MAP_SIZE)
    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        assert txn.get(b"key") == b"value"


@pytest.mark.parametrize("size", [0, 100, 4096, 8191])
def test_a_file_without_its_meta_pages_is_damaged(tmp_path: Path, size: int) -> None:
    make_environment(tmp_path, map_size=MAP_SIZE)
    data = tmp_path / "data.mdb"
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(Corrupt, match="shorter than its two meta pages"):
        lmdb_check.check(tmp_path, sealed=False)
