"""The blocking client of the mount keeper against the real server."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.gateway.memory import MemoryDevice
from moorage.gateway.mount import volume_file
from moorage.gateway.mount.volume_file import Parking
from moorage.gateway.nbd import NbdServer
from moorage.gateway.nbd import protocol as nbd
from moorage.gateway.nbd.client import NbdConnection

SIZE = 8 << 20


async def served(path: Path, work: Callable[[], None], device: MemoryDevice) -> None:
    server = NbdServer({"db": device})
    await server.serve(f"unix:{path}")
    try:
        await asyncio.to_thread(work)
    finally:
        await server.stop()


async def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)

    def work() -> None:
        with NbdConnection(str(tmp_path / "s"), "db") as connection:
            assert (connection.size, connection.read_only) == (SIZE, False)
            connection.write(12345, data)
            connection.flush()
            assert connection.read(12345, len(data)) == data
            connection.trim(0, 1 << 20)
            connection.write_zeroes(1 << 20, 4096)
            assert connection.read(12345, 4096) == bytes(4096)
            assert connection.read(1 << 20, 8192)[4096:] == data[(1 << 20) + 4096 - 12345 :][:4096]
            with pytest.raises(OSError) as raised:
                connection.read(SIZE - 10, 20)
            assert raised.value.errno == errno.EINVAL
            assert connection.read(SIZE - 10, 10) == bytes(10), "an error ends a request, not the connection"

    await served(tmp_path / "s", work, MemoryDevice(SIZE))


async def test_errors_have_their_numbers(tmp_path: Path) -> None:
    def work() -> None:
        with NbdConnection(str(tmp_path / "s"), "db") as connection:
            assert connection.read_only
            with pytest.raises(PermissionError):
                connection.write(0, b"x")
        with pytest.raises(ConnectionError, match="export 'other'"):
            NbdConnection(str(tmp_path / "s"), "other")
        with pytest.raises(ConnectionError, match="no NBD server at"):
            NbdConnection(str(tmp_path / "none"), "db")

    await served(tmp_path / "s", work, MemoryDevice(SIZE, read_only=True))


@pytest.mark.parametrize(
    ("info", "error", "raised", "says"),
    [
        (
            nbd.EXPORT_INFO.pack(nbd.INFO_EXPORT, SIZE, 0)[:11],
            0,
            ConnectionError,
            "describes the export in 11",
        ),
        (nbd.EXPORT_INFO.pack(nbd.INFO_EXPORT, SIZE, 0), (1 << 32) - 1, OSError, "Invalid argument"),
    ],
)
async def test_what_no_server_of_ours_says(
    info: bytes, error: int, raised: type[Exception], says: str, tmp_path: Path
) -> None:
    said = nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE)
    for reply, data in ((nbd.REP_INFO, info), (nbd.REP_ACK, b"")):
        said += nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, reply, len(data)) + data
    said += nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, 1)

    def work() -> None:
        with pytest.raises(raised, match=says), NbdConnection(str(tmp_path / "s"), "db") as connection:
            connection.flush()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        asking = asyncio.create_task(asyncio.to_thread(work))
        accepted, _ = await asyncio.to_thread(listening.accept)
        with accepted:
            await asyncio.to_thread(accepted.sendall, said)
            await asking


async def test_requests_are_parked_while_there_is_no_server(tmp_path: Path) -> None:
    path, device = tmp_path / "s", MemoryDevice(SIZE)
    parking, answers = Parking(str(path), "db"), list[bytes]()

    def ask() -> None:
        parking.run(lambda connection: connection.write(0, b"written in the end"))
        answers.append(bytes(parking.run(lambda connection: connection.read(0, 18))))

    thread = threading.Thread(target=ask)
    thread.start()
    assert answers == []
    await served(path, thread.join, device)
    for _ in range(2):  # the connections of a server that went are of no more use, and harm nobody
        await served(path, ask, device)
    assert answers == [b"written in the end"] * 3
    parking.close()
    with pytest.raises(OSError, match="being ended"):
        parking.run(lambda connection: connection.flush())


async def test_a_size_is_told_while_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that have nothing to do with the mount ask for it."""
    monkeypatch.setattr(volume_file, "SIZE_TIMEOUT_S", 0.1)
    path = tmp_path / "s"
    parking = Parking(str(path), "db")
    parked = threading.Thread(target=lambda: parking.run(lambda connection: connection.flush()))
    first: list[int] = []
    asked = threading.Thread(target=lambda: first.append(parking.size()))
    asked.start()  # nobody told it ever: it has to wait
    await served(path, asked.join, MemoryDevice(SIZE))
    assert first == [SIZE]
    parked.start()
    assert await asyncio.to_thread(parking.size) == SIZE
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen()
        assert await asyncio.to_thread(parking.size) == SIZE
    path.unlink()
    await served(path, parked.join, MemoryDevice(SIZE))
    await served(path, lambda: first.append(parking.size()), MemoryDevice(2 * SIZE))
    assert first == [SIZE, 2 * SIZE]
    parking.close()
