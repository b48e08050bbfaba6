"""NBD clients that others wrote: libnbd (nbdinfo, nbdcopy, Python), qemu (qemu-img, qemu-io), fio."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.gateway.memory import MemoryDevice
from moorage.wire import errors

from .conftest import Play
from .support import MIB, Bench, FailingDevice

SYSTEM_PYTHON = "/usr/bin/python3"  # the libnbd binding belongs to it


@pytest.fixture
def device() -> Iterator[MemoryDevice]:
    device = MemoryDevice(32 * MIB, deferred=True)
    yield device
    device.close()


def image(path: Path, size: int) -> bytes:
    """A sparse file: random data with holes between, and an odd length of data at its end."""
    rng = random.Random(7)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in (0, 3 * MIB + 4096, size // 2, size - 70001):
            file.seek(offset)
            file.write(rng.randbytes(70001))
    return path.read_bytes()


def test_nbdinfo_sees_what_is_offered(play_uvloop: Play, device: MemoryDevice) -> None:
    async def scenario(bench: Bench) -> None:
        (export,) = json.loads(await bench.program("nbdinfo", "--json", bench.uri()))["exports"]
        assert export["export-size"] == 32 * MIB and export["contexts"] == ["base:allocation"]
        assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
        assert export["block_size_maximum"] == 32 * MIB
        for ability in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
            assert export[f"can_{ability}"], ability
        assert not export["is_read_only"] and not export["is_rotational"]
        listed = json.loads(await bench.program("nbdinfo", "--list", "--json", bench.uri("")))
        assert [one["export-name"] for one in listed["exports"]] == ["vol"]
        await bench.program("nbdinfo", bench.uri("nothing"), expect=1)

    play_uvloop(scenario, {"vol": device})


def test_read_only_export(play_uvloop: Play, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.program("nbdinfo", "--is", "readonly", bench.uri())
        await bench.program("nbdinfo", "--can", "trim", bench.uri(), expect=2)
        refused = await bench.program("qemu-io", "-f", "raw", "-c", "write 0 4k", bench.uri(), expect=1)
        assert "read-only" in refused.lower() or "permi" in refused.lower()
        await bench.program("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", bench.uri())

    device = MemoryDevice(MIB, read_only=True)
    play_uvloop(scenario, {"vol": device})
    device.close()


@pytest.mark.parametrize("connections", ["1", "4"])
def test_nbdcopy_in_and_out(play: Play, device: MemoryDevice, tmp_path: Path, connections: str) -> None:
    original = image(tmp_path / "in", 32 * MIB)

    async def scenario(bench: Bench) -> None:
        copy = ("nbdcopy", f"--connections={connections}", "--flush")
        await bench.program(*copy, str(tmp_path / "in"), bench.uri())
        await bench.program(*copy, bench.uri(), str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == original

    play(scenario, {"vol": device})


def test_qemu_img_converts_compares_and_maps(play: Play, device: MemoryDevice, tmp_path: Path) -> None:
    original = image(tmp_path / "in", 32 * MIB)

    async def scenario(bench: Bench) -> None:
        raw = ("-f", "raw")
        await bench.program("qemu-img", "convert", *raw, "-n", "-O", "raw", str(tmp_path / "in"), bench.uri())
        await bench.program("qemu-img", "compare", *raw, "-F", "raw", str(tmp_path / "in"), bench.uri())
        await bench.program("qemu-img", "convert", *raw, "-O", "qcow2", bench.uri(), str(tmp_path / "q"))
        await bench.program("qemu-img", "convert", "-O", "raw", str(tmp_path / "q"), str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == original
        extents = json.loads(await bench.program("qemu-img", "map", *raw, "--output=json", bench.uri()))
        assert sum(extent["length"] for extent in extents) == 32 * MIB
        holes = [extent for extent in extents if extent["zero"]]
        assert holes and all(not any(original[e["start"] : e["start"] + e["length"]]) for e in holes)
        assert [e["data"] for e in extents if e["start"] == 0] == [True]

    play(scenario, {"vol": device})


def test_qemu_io_at_any_alignment(play_uvloop: Play, device: MemoryDevice) -> None:
    commands = [
        "write -P 1 0 1M",
        "write -P 2 4095 2",
        "write -f -P 3 8191 20001",
        "read -P 1 0 4095",
        "read -P 2 4095 2",
        "read -P 1 4097 4094",
        "read -P 3 8191 20001",
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "write -z 200000 777",
        "read -P 0 200000 777",
        "read -P 1 199999 1",
        "read -P 1 200777 1",
        "write -z -u 300k 4k",
        "flush",
        "read 31M 1M",
    ]

    async def scenario(bench: Bench) -> None:
        argv = [part for command in commands for part in ("-c", command)]
        output = await bench.program("qemu-io", "-f", "raw", *argv, bench.uri())
        assert "failed" not in output and "error" not in output.lower()

    play_uvloop(scenario, {"vol": device})


FIO = [
    "fio",
    "--name=verify",
    "--ioengine=nbd",
    "--rw=randwrite",
    "--size=8m",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--randrepeat=0",
    "--output-format=json",
]


@pytest.mark.parametrize(
    "shape",
    [
        ("--bs=4k", "--iodepth=64"),
        ("--bsrange=512-256k", "--bs_unaligned", "--iodepth=32"),
        ("--bs=1m", "--iodepth=8"),
        ("--bs=4k", "--iodepth=16", "--numjobs=4", "--offset_increment=8m"),
    ],
)
def test_fio_verifies(
    play_uvloop: Play, device: MemoryDevice, shape: tuple[str, ...], tmp_path: Path
) -> None:
    async def scenario(bench: Bench) -> None:
        output = await bench.program(*FIO, *shape, f"--aux-path={tmp_path}", f"--uri={bench.uri()}")
        jobs = json.loads(output[output.index("{") :])["jobs"]
        assert all(job["error"] == 0 and job["write"]["total_ios"] > 0 for job in jobs)

    play_uvloop(scenario, {"vol": device})


LIBNBD_RANDOM = """
import nbd, random, sys
rng = random.Random(int(sys.argv[2]))
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(sys.argv[3] == "structured")
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
size = h.get_size()
model = bytearray(size)
def range_of(largest):
    offset = rng.randrange(size)
    return offset, rng.randint(1, min(largest, size - offset))
for turn in range(400):
    what = rng.choice("rrrwwwztfc")
    offset, length = range_of(rng.choice([100, 5000, 100000, 300000]))
    if what == "w":
        data = rng.randbytes(length)
        h.pwrite(data, offset, rng.choice([0, nbd.CMD_FLAG_FUA]))
        model[offset:offset + length] = data
    elif what == "r":
        assert h.pread(length, offset) == model[offset:offset + length], (turn, offset, length)
    elif what == "z":
        flags = rng.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA])
        h.zero(length, offset, flags)
        model[offset:offset + length] = bytes(length)
    elif what == "t":
        h.trim(length, offset)
        model[offset:offset + length] = bytes(length)
    elif what == "c":
        h.cache(length, offset)
    else:
        h.flush()
if sys.argv[3] == "structured":
    at = 0
    while at < size:
        found = []
        h.block_status(size - at, at, lambda context, start, entries, error: found.extend(entries) and 0)
        for length, state in zip(found[::2], found[1::2]):
            assert state == 0 or not any(model[at:at + length]), at
            at += length
    assert at == size
assert h.pread(size, 0) == model
h.shutdown()
"""


@pytest.mark.parametrize("replies", ["structured", "simple"])
def test_libnbd_random_operations_match_a_model(play: Play, replies: str) -> None:
    async def scenario(bench: Bench) -> None:
        seed = str(random.Random(os.getpid()).randrange(1 << 30))
        print(f"seed {seed}")  # noqa: T201 (shown only when the test fails)
        await bench.program(SYSTEM_PYTHON, "-c", LIBNBD_RANDOM, bench.uri(), seed, replies)

    device = MemoryDevice(3 * MIB + 12345, deferred=True)
    play(scenario, {"vol": device})
    device.close()


LIBNBD_ERRORS = """
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(sys.argv[2] == "structured")
h.connect_uri(sys.argv[1])
size = h.get_size()
def fails(number, operation, *args):
    try:
        operation(*args)
    except nbd.Error as error:
        assert error.errnum == number, (operation, args, error.errnum, error.string)
        return
    raise AssertionError((operation, args, "succeeded"))
exec(sys.argv[3])
assert h.aio_is_ready()
h.shutdown()
"""

BOUNDS = """
for offset in (size - 1, size, 1 << 63):
    fails(errno.EINVAL, h.pread, 2, offset)
    fails(errno.ENOSPC, h.pwrite, b"xy", offset)
    fails(errno.ENOSPC, h.zero, 2, offset)
    fails(errno.EINVAL, h.trim, 2, offset)
    fails(errno.EINVAL, h.cache, 2, offset)
fails(errno.ENOSPC, h.pwrite, bytes(1 << 20), size - 1)
fails(errno.EINVAL, h.pwrite, b"x", 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pread, 1, 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.trim, 1, 0, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1, size - 1) == b"\\0"
h.pwrite(b"z", size - 1)
assert h.pread(1, size - 1) == b"z"
"""


@pytest.mark.parametrize("replies", ["structured", "simple"])
def test_libnbd_out_of_bounds(play_uvloop: Play, device: MemoryDevice, replies: str) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.program(SYSTEM_PYTHON, "-c", LIBNBD_ERRORS, bench.uri(), replies, BOUNDS)

    play_uvloop(scenario, {"vol": device})


ALL_FAIL = """
fails(errno.{0}, h.pread, 512, 0)
fails(errno.{0}, h.pwrite, b"x" * 512, 0)
fails(errno.{0}, h.pwrite, b"x" * 100000, 0)
fails(errno.{0}, h.zero, 512, 0)
fails(errno.{0}, h.trim, 512, 0)
fails(errno.{0}, h.flush)
"""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (errors.NoSpace("no room above the reserve"), "ENOSPC"),
        (errors.Fenced("epoch 7 belongs to another writer"), "EIO"),
        (errors.NoQuorum("waiting for 2 of 3"), "EIO"),
        (errors.Invalid("not that way"), "EINVAL"),
        (RuntimeError("our own mistake"), "EIO"),
    ],
)
@pytest.mark.parametrize("replies", ["structured", "simple"])
def test_device_errors_reach_the_client(
    play_uvloop: Play, replies: str, error: Exception, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.program(SYSTEM_PYTHON, "-c", LIBNBD_ERRORS, bench.uri(), replies, ALL_FAIL.format(name))

    device = FailingDevice(MIB, error)
    play_uvloop(scenario, {"vol": device})
    device.close()
    assert len(re.findall(re.escape(str(error)), caplog.text)) == 1  # not once per failed operation


def test_read_only_device_refuses_changes(play_uvloop: Play) -> None:
    checks = """
fails(errno.EPERM, h.pwrite, b"x", 0)
fails(errno.EPERM, h.pwrite, bytes(1 << 20), 0)
fails(errno.EPERM, h.zero, 1, 0)
fails(errno.EPERM, h.trim, 1, 0)
assert h.pread(4, 0) == bytes(4)
"""

    async def scenario(bench: Bench) -> None:
        await bench.program(SYSTEM_PYTHON, "-c", LIBNBD_ERRORS, bench.uri(), "structured", checks)

    device = MemoryDevice(2 * MIB, read_only=True)
    play_uvloop(scenario, {"vol": device})
    device.close()
