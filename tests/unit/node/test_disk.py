"""Segment files on the real file system: whole writes, through the page cache and past it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.node.disk import File, RealDisk
from moorage.node.segment import PAGE
from moorage.wire.buffers import payload_buffer

SIZE = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    disk = RealDisk(tmp_path / "segments")
    made = disk.create("1.seg", SIZE)
    yield made
    made.close()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each write that did its work: whether it went past the page cache."""
    real, seen = os.pwritev, []

    def pwritev(fd: int, *rest: Any) -> int:
        done = real(fd, *rest)
        seen.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return done

    monkeypatch.setattr(os, "pwritev", pwritev)
    return seen


def content(file: File, offset: int, size: int) -> bytes:
    into = bytearray(size)
    assert file.preadv([into], offset) == size
    return bytes(into)


def payload(size: int) -> memoryview:
    made = payload_buffer(size)
    made[:] = os.urandom(size)
    return made


def test_payload_buffers_go_past_the_page_cache(file: File, direct: list[bool]) -> None:
    pieces = [payload(64 << 10), payload(32 << 10)[: 3 * PAGE]]
    file.pwritev([b"front"], 100)
    file.pwritev_direct(pieces, PAGE)
    file.fdatasync()
    assert direct == [False, True]
    assert content(file, PAGE, (64 << 10) + 3 * PAGE) == b"".join(pieces)
    assert content(file, 100, 5) == b"front"


def test_memory_that_is_not_aligned_is_written_all_the_same(file: File, direct: list[bool]) -> None:
    pieces = [payload(64 << 10), memoryview(os.urandom((64 << 10) + 1))[1:], payload(64 << 10)]
    file.pwritev_direct(pieces, 2 * PAGE)
    assert direct[-1] is False
    assert content(file, 2 * PAGE, 192 << 10) == b"".join(pieces)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMFILE])
def test_without_direct_io_or_a_descriptor_for_it_all_goes_through_the_cache(
    file: File, direct: list[bool], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    data = payload(64 << 10)
    file.pwritev_direct([data], 0)
    assert direct == [False] and content(file, 0, 64 << 10) == data


def test_a_direct_write_goes_to_the_file_that_is_open(file: File, tmp_path: Path) -> None:
    data = payload(256 << 10)
    (tmp_path / "segments").rename(tmp_path / "moved")
    RealDisk(tmp_path / "segments").create("1.seg", SIZE).close()
    file.pwritev_direct([data], PAGE)
    assert content(file, PAGE, len(data)) == data


def test_only_segments_are_looked_at(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path / "segments")
    disk.create("00000007.seg", SIZE).close()
    (tmp_path / "segments" / "lost+found").mkdir()
    (tmp_path / "segments" / "README.txt").write_text("do not touch")
    assert disk.names() == ["00000007.seg"]


def test_what_was_cached_before_a_direct_write_is_not_read_after_it(file: File) -> None:
    old, new = payload(256 << 10), payload(256 << 10)
    file.pwritev([old], 0)
    assert content(file, 0, len(old)) == old
    file.pwritev_direct([new], 0)
    assert content(file, 0, len(new)) == new
