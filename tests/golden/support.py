"""What the tests of old formats share: the files, and the directories unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import ModuleType

from . import values, values3, values4, values6

HERE = Path(__file__).parent
V1, V2, V3, V4, V5, V6 = (HERE / f"v{number}" for number in range(1, 7))
# The sets that have a state of both groups, and what was proposed for it: METADATA_COMMANDS and so on.
STATES: dict[Path, ModuleType] = {V1: values, V3: values3, V4: values4, V6: values6}
RUNTIME = ("lock.mdb", "device.lock")  # locks: who holds them is of no life but this one


def disk(name: str) -> bytes:
    return (V1 / "disk" / name).read_bytes()


def wire(name: str, of: Path = V1) -> bytes:
    return (of / "wire" / name).read_bytes()


def note(name: str) -> bytes:
    return (V2 / "notes" / name).read_bytes()


def backup(name: str) -> bytes:
    return (V5 / "backups" / name).read_bytes()


def unpack(name: str, into: Path, of: Path = V1) -> Path:
    with tarfile.open(of / f"{name}.tar.xz") as tar:
        tar.extractall(into / name, filter="data")
    return into / name


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in RUNTIME
    }
