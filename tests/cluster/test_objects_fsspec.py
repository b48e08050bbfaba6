"""Buckets as an fsspec file system, by URL, as pandas, pyarrow, dask and zarr use one."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import fsspec
import pytest

from moorage.cli.local_cluster import LocalCluster


@pytest.fixture
def options(local: LocalCluster) -> dict[str, Any]:
    return {"registry": local.registry, "secret_file": str(local.secret_file), "skip_instance_cache": True}


@pytest.mark.slow
async def test_files_by_url(options: dict[str, Any], tmp_path: Path) -> None:
    await asyncio.to_thread(_use, options, tmp_path)


def _use(options: dict[str, Any], tmp_path: Path) -> None:
    fs, _ = fsspec.url_to_fs("moorage:///photos", **options)
    fs.mkdir("moorage:///photos")
    assert fs.ls("") == [{"name": "photos", "size": 0, "type": "directory"}]
    large = random.Random(1).randbytes(20_000_000)
    with fs.open("moorage:///photos/a/large", "wb") as file:
        for at in range(0, len(large), 1_500_000):
            file.write(large[at : at + 1_500_000])
        assert not fs.exists("photos/a/large"), "it appears when it is closed"
    with fs.open("photos/a/large") as file:
        fs.pipe_file("photos/a/large", b"another")
        file.seek(12_345_678)
        assert file.read(1000) == large[12_345_678:12_346_678], "and stays what it was when it was opened"
    assert fs.cat("photos/a/large") == b"another"
    fs.pipe({"photos/a/b/1": b"1", "photos/a/b/2": b"22", "photos/c": b"333"})
    assert fs.ls("photos/a", detail=False) == ["photos/a/b", "photos/a/large"]
    assert fs.find("photos") == ["photos/a/b/1", "photos/a/b/2", "photos/a/large", "photos/c"]
    assert fs.glob("photos/a/*/?") == ["photos/a/b/1", "photos/a/b/2"]
    assert [(top, folders, files) for top, folders, files in fs.walk("photos/a/b")] == [
        ("photos/a/b", [], ["1", "2"])
    ]
    assert fs.info("photos/c")["size"] == 3 and fs.isdir("photos/a") and not fs.exists("photos/none")
    assert fs.cat_file("photos/c", 1, -1) == b"3" and fs.cat_ranges(["photos/c"], [0], [2]) == [b"33"]
    with pytest.raises(FileNotFoundError):
        fs.open("photos/none")
    with pytest.raises(FileExistsError):
        fs.open("photos/c", "xb")
    for size in (10, 10_000_000):
        file = fs.open("photos/x", "xb")
        file.write(bytes(size))
        fs.pipe_file("photos/x", b"meanwhile")
        with pytest.raises(FileExistsError):
            file.close()
        assert not file._bucket.list_uploads(), "nothing is left of it"
        assert fs.cat("photos/x") == b"meanwhile", "one that is made by another is not replaced"
        fs.rm("photos/x")
    fs.cp("photos/c", "photos/d")
    fs.mv("photos/d", "photos/e")
    assert fs.cat("photos/e") == b"333" and not fs.exists("photos/d")
    fs.get("photos/a", str(tmp_path / "a"), recursive=True)
    assert (tmp_path / "a" / "b" / "2").read_bytes() == b"22"
    fs.put(str(tmp_path / "a"), "photos/back", recursive=True)
    assert fs.cat("photos/back/b/1") == b"1"
    with fs.transaction:
        with fs.open("photos/t", "wb") as file:
            file.write(b"all or nothing")
        assert not fs.exists("photos/t")
    assert fs.cat("photos/t") == b"all or nothing"
    mapper = fs.get_mapper("photos/zarr")
    mapper["x/0.0"] = b"chunk"
    assert mapper["x/0.0"] == b"chunk" and list(mapper) == ["x/0.0"]
    with pytest.raises(OSError, match="delete them first"):
        fs.rmdir("photos")
    fs.rm("photos", recursive=True)
    assert fs.ls("") == []
    with pytest.raises(FileNotFoundError):
        fs.cat("photos/none")
    fs.close()
