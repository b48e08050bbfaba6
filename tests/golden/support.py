"""What the tests of old formats share: the files, and the directories unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path

HERE = Path(__file__).parent
V1 = HERE / "v1"
RUNTIME = ("lock.mdb", "device.lock")  # locks: who holds them is of no life but this one


def disk(name: str) -> bytes:
    return (V1 / "disk" / name).read_bytes()


def wire(name: str) -> bytes:
    return (V1 / "wire" / name).read_bytes()


def unpack(name: str, into: Path) -> Path:
    with tarfile.open(V1 / f"{name}.tar.xz") as tar:
        tar.extractall(into / name, filter="data")
    return into / name


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in RUNTIME
    }
