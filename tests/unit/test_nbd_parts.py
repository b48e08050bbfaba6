"""Small parts of the NBD gateway: the errno table, reply buffers, addresses, extents, the device in
memory.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from moorage.gateway.memory import MemoryDevice
from moorage.gateway.nbd import NbdServer
from moorage.gateway.nbd import protocol as p
from moorage.gateway.nbd.buffers import POOLED_SIZE_MIN, BufferPool, SentBuffers
from moorage.gateway.nbd.replies import EXTENTS_MAX, status_reply, structured_error
from moorage.wire import errors

NUMBERS = {
    errors.NoSpace: errno.ENOSPC,
    errors.ReadOnly: errno.EPERM,
    errors.Invalid: errno.EINVAL,
    errors.LimitExceeded: errno.EINVAL,
}


@pytest.mark.parametrize("kind", list(errors.BY_CODE.values()))
def test_every_error_has_an_errno(kind: type[errors.MoorageError]) -> None:
    expected = errno.EINVAL if issubclass(kind, errors.Invalid) else errno.EIO
    assert p.error_number(kind("x")) == NUMBERS.get(kind, expected)


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError(errno.ENOSPC, "x"), asyncio.CancelledError()])
def test_foreign_errors_are_eio(error: BaseException) -> None:
    assert p.error_number(error) == errno.EIO


def test_structured_error_clips_its_message() -> None:
    chunk = structured_error(7, errno.EIO, "ü" * 9000)
    size = p.CHUNK.unpack_from(chunk)[4]
    assert size == len(chunk) - p.CHUNK.size == 6 + p.STRING_SIZE_MAX


def test_pool_gives_back_what_it_took_up_to_its_bound() -> None:
    pool = BufferPool(3 * POOLED_SIZE_MIN)
    first = pool.take(POOLED_SIZE_MIN)
    pool.give(first)
    assert pool.take(POOLED_SIZE_MIN) is first
    assert pool.take(POOLED_SIZE_MIN) is not first
    for _ in range(3):
        pool.give(bytearray(POOLED_SIZE_MIN))
    other = bytearray(2 * POOLED_SIZE_MIN)
    pool.give(other)  # over the bound: the old size goes
    assert pool._bytes == len(other)
    pool.give(bytearray(4 * POOLED_SIZE_MIN))  # larger than the bound itself
    assert pool._bytes == 0


def test_a_buffer_returns_only_when_its_last_byte_is_sent() -> None:
    pool = BufferPool(1 << 20)
    sent = SentBuffers(pool)
    large = bytearray(POOLED_SIZE_MIN)
    sent.note(b"x" * 10)
    sent.note(large)
    sent.note(b"y" * 5)
    sent.recycle(6)  # one byte of the large one is still queued
    assert pool.take(POOLED_SIZE_MIN) is not large
    sent.recycle(5)
    assert pool.take(POOLED_SIZE_MIN) is large


def extents_of(reply: bytes) -> list[tuple[int, int]]:
    return list(p.EXTENT.iter_unpack(reply[p.STATUS_CHUNK.size :]))


def test_extents_are_merged_and_clipped() -> None:
    given = [(4096, True), (0, False), (4096, True), (8192, False), (1 << 40, True)]
    assert extents_of(status_reply(1, given, 20000, False)) == [(8192, 3), (8192, 0), (3616, 3)]
    assert extents_of(status_reply(1, given, 20000, True)) == [(8192, 3)]


def test_extents_are_bounded() -> None:
    given = [(1, bool(i % 2)) for i in range(EXTENTS_MAX + 10)]
    assert extents_of(status_reply(1, given, 1 << 20, False)) == [
        (1, 3 if hole else 0) for _, hole in given[:EXTENTS_MAX]
    ]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "unix:",
        "tcp:",
        "tcp:localhost",
        "tcp::1",
        "tcp:h:-1",
        "tcp:h:65536",
        "tcp:h:²",
        "udp:h:1",
        "/path",
    ],
)
async def test_bad_addresses_say_what_is_accepted(address: str) -> None:
    with pytest.raises(errors.Invalid, match="use"):
        await NbdServer({}).serve(address)


async def test_port_in_use_and_unknown_host_cannot_listen() -> None:
    server = NbdServer({})
    bound = await server.serve("tcp:127.0.0.1:0")
    with pytest.raises(errors.CannotBind, match=bound):
        await NbdServer({}).serve(bound)
    with pytest.raises(errors.CannotBind, match=r"host\.invalid"):
        await server.serve("tcp:host.invalid:1")
    await server.stop()


async def test_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = NbdServer({})
    assert await server.serve(f"unix:{path}") == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.stop()
    assert not path.exists()


async def test_stale_socket_is_replaced_but_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first = NbdServer({})
    await first.serve(f"unix:{path}")
    with pytest.raises(errors.Busy, match="listens"):
        await NbdServer({}).serve(f"unix:{path}")
    assert path.exists()
    await first.stop()
    path.write_text("precious")
    with pytest.raises(errors.Invalid, match="not a socket"):
        await NbdServer({}).serve(f"unix:{path}")
    assert path.read_text() == "precious"
    with pytest.raises(errors.CannotBind):
        await NbdServer({}).serve(f"unix:{tmp_path}/missing/s")
    with pytest.raises(errors.CannotBind):
        await NbdServer({}).serve(f"unix:{tmp_path}/{'long' * 40}")


async def test_stop_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = NbdServer({})
    await server.serve(f"unix:{path}")
    os.rename(path, tmp_path / "old")
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        await server.stop()
        assert path.exists()


def test_memory_device_reports_every_outcome_once() -> None:
    device = MemoryDevice(1 << 20, read_only=True)
    seen: list[BaseException | None] = []
    device.write_nowait(0, memoryview(b"x"), seen.append)
    device.zero_nowait(0, 4096, seen.append, discard=True)
    device.read_nowait((1 << 20) - 1, memoryview(bytearray(2)), seen.append)
    device.flush_nowait(seen.append)
    device.close()
    assert [type(outcome) for outcome in seen] == [
        errors.ReadOnly,
        errors.ReadOnly,
        errors.Invalid,
        type(None),
    ]
