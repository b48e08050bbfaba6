"""Notes on the hosts of volumes: read field by field, written the same today, and refused as they are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moorage.gateway.csi.node import Node
from moorage.gateway.csi.notes import Held
from moorage.gateway.csi.notes import Notes as CsiNotes
from moorage.gateway.csi.pending import Pending
from moorage.gateway.csi.publishing import Publisher
from moorage.gateway.docker.known import Known, KnownVolume
from moorage.gateway.docker.ledger import Entry
from moorage.gateway.docker.notes import Notes as DockerNotes
from moorage.gateway.docker.service import DockerService
from moorage.gateway.mount import unmounting
from moorage.gateway.mount.mounting import mounts
from moorage.gateway.mount.record import Place, Record, StateDirectory, Status
from moorage.gateway.table.applying import Applier
from moorage.gateway.table.notes import Note
from moorage.gateway.table.notes import Notes as TableNotes
from moorage.wire.errors import Corrupt, VersionMismatch

from . import make, support
from . import values2 as v

NOBODY: Any = None
NAMES = sorted(v.NOTES)


def put(top: Path, name: str, content: bytes) -> Path:
    path = top / v.NOTES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def mount(top: Path) -> Place:
    return Place(top / Path(v.NOTES["mount-record"][0]).parent)


def held(top: Path) -> Held:
    found = CsiNotes(top).load("db")
    assert found is not None
    return found


READ: dict[str, Callable[[Path], Any]] = {
    "mount-record": lambda top: mount(top).load(),
    "mount-status": lambda top: mount(top).status(),
    "table": lambda top: TableNotes(top).all()["/data"],
    "docker-volume": lambda top: DockerNotes(top).load("db"),
    "docker-known": lambda top: Known(DockerNotes(top)).all(),
    "csi": held,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_it_said(name: str, tmp_path: Path) -> None:
    put(tmp_path, name, support.note(name))
    found, fields = READ[name](tmp_path), v.NOTES[name][2]
    if name == "docker-known":
        assert found == [KnownVolume(each, *row) for each, row in fields["volumes"].items()]
        return
    kinds = {
        "mount-record": Record,
        "mount-status": Status,
        "table": Note,
        "docker-volume": Entry,
        "csi": Held,
    }
    assert type(found) is kinds[name] and set(vars(found)) == set(fields)  # no field is left out here
    said = {**asdict(found), "users": sorted(found.users)} if name == "docker-volume" else asdict(found)
    assert json.loads(json.dumps(said)) == fields


@pytest.mark.parametrize("name", NAMES)
def test_a_note_without_a_format_says_the_same(name: str, tmp_path: Path) -> None:
    put(tmp_path, name, support.note(name))
    now = READ[name](tmp_path)
    put(tmp_path, name, json.dumps(v.WITHOUT_FORMAT[name]).encode())
    assert READ[name](tmp_path) == now


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_today_is_what_was_written(name: str) -> None:
    assert make.note_files()[name] == support.note(name)


# -- refused --------------------------------------------------------------------------------------------


async def start_docker(top: Path) -> None:
    DockerService(NOBODY, state_dir=top, root=top / "root", socket=top / "socket", discovery=None)


async def describe(top: Path) -> None:
    mounts(StateDirectory(top))


START: dict[str, Callable[[Path], Awaitable[Any]]] = {
    "mount-record": lambda top: unmounting.clean_up(StateDirectory(top)),
    "mount-status": describe,
    "table": lambda top: Applier(NOBODY, StateDirectory(top), host="h1").apply([]),
    "docker-volume": start_docker,
    "docker-known": start_docker,
    "csi": lambda top: Node(
        NOBODY, Pending(), CsiNotes(top), Publisher(NOBODY, StateDirectory(top)), stages=False
    ).put_right(),
}


def changed(name: str, **fields: Any) -> bytes:
    return json.dumps({**json.loads(support.note(name)), **fields}).encode()


async def refused(name: str, content: bytes, kind: type[Exception], says: str, top: Path) -> None:
    for each in ("mount-record", name):  # a status is of a mount
        put(top, each, support.note(each))
    DockerNotes(top).prepare()
    path = put(top, name, content)
    before = support.content(top)
    with pytest.raises(kind, match=f"{path}: {says}"):
        await START[name](top)
    assert support.content(top) == before


@pytest.mark.parametrize("name", NAMES)
async def test_a_note_of_another_format(name: str, tmp_path: Path) -> None:
    says = r"a note of format 9, this version reads [\d and]+: use the version that wrote it"
    await refused(name, changed(name, format=9), VersionMismatch, says, tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["more", "list", "format"])
async def test_a_note_that_no_version_wrote(name: str, change: str, tmp_path: Path) -> None:
    contents = {"more": changed(name, more=1), "list": b"[]", "format": changed(name, format="one")}
    says = r"damaged note \(.*\): unmount by umount what it is about, then remove the file"
    await refused(name, contents[change], Corrupt, says, tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mount-status"])  # which may say nothing
async def test_a_note_that_says_nothing(name: str, tmp_path: Path) -> None:
    content = b'{"format": %d}' % v.NOTES[name][1]
    await refused(name, content, Corrupt, r"damaged note \(fields that no version wrote: .*\)", tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("docker")])
@pytest.mark.parametrize("content", [b"", b'{"fo', b"[" * 100_000, b"\xff"])
async def test_a_torn_note(name: str, content: bytes, tmp_path: Path) -> None:
    await refused(name, content, Corrupt, r"damaged note \(not JSON\)", tmp_path)
