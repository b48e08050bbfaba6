"""The files beside the ledger: entries and locks, the copy of what the cluster has, discovery, roots."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from moorage.client.cluster import VolumeInfo
from moorage.gateway.docker.discovery import DiscoveryFile
from moorage.gateway.docker.known import Known
from moorage.gateway.docker.ledger import Entry
from moorage.gateway.docker.notes import Notes
from moorage.gateway.docker.root import of_agent
from moorage.gateway.mount.system import mount_table
from moorage.wire.errors import Invalid


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    made = Notes(tmp_path)
    made.prepare()
    return made


def info(name: str, size: int = 4096, state: str = "ready") -> VolumeInfo:
    values = {"name": name, "size": size, "state": state, "created_ms": 1000}
    return VolumeInfo.from_wire(values)


def files(notes: Notes) -> list[str]:
    return sorted(path.name for path in (notes.known_file.parent / "volumes").iterdir())


async def test_an_entry_is_there_for_the_next_life_and_leaves_nothing_when_it_is_empty(notes: Notes) -> None:
    entry = Entry(frozenset({"", "a"}), {"mode": "ro"})
    async with notes.locked("a.b"):
        notes.save("a.b", entry)
    assert Notes(notes.known_file.parent.parent).load("a.b") == entry
    assert notes.names() == ["a.b"]
    async with notes.locked("a.b"):
        notes.save("a.b", Entry())
    assert files(notes) == [] and notes.load("a.b") == Entry()


async def test_one_at_a_time_works_on_a_volume(notes: Notes) -> None:
    at_work, turns = 0, 0

    async def work() -> None:
        nonlocal at_work, turns
        async with notes.locked("db"):
            at_work += 1
            assert at_work == 1
            with notes.locked_nowait("db") as free, notes.locked_nowait("other") as other:
                assert not free and other
            await asyncio.sleep(0)
            at_work -= 1
            turns += 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert turns == 20 and files(notes) == []


async def test_a_torn_entry_is_none(notes: Notes) -> None:
    (notes.known_file.parent / "volumes" / "db.json").write_text("")
    assert notes.load("db") == Entry()


def test_what_is_known_outlives_the_process(notes: Notes) -> None:
    known = Known(notes)
    assert not known.loaded
    known.replace([])
    assert known.loaded and Known(notes).loaded
    known.replace([info("b"), info("a"), info("gone", state="deleting")])
    assert [each.name for each in Known(notes).all()] == ["a", "b"]
    assert known.replace([info("b", size=8192)]) == {"a"}
    assert known.get("a") is None and Known(notes).get("b") == known.get("b")


def test_what_is_made_or_removed_while_the_cluster_is_asked_is_not_undone(notes: Notes) -> None:
    known = Known(notes)
    known.replace([info("old")])
    known.asking()
    known.add(info("new"))
    known.remove("old")
    assert known.replace([info("old")]) == set()
    assert [each.name for each in known.all()] == ["new"]
    known.asking()
    assert known.replace([]) == {"new"}


def test_a_discovery_file_is_removed_by_whom_it_names(tmp_path: Path) -> None:
    spec, plugin = tmp_path / "etc" / "moorage.spec", tmp_path / "moorage.json"
    first = DiscoveryFile(spec, tmp_path / "one.sock")
    first.write()
    assert spec.read_text() == f"unix://{tmp_path}/one.sock"
    second = DiscoveryFile(spec, tmp_path / "two.sock")
    second.write()
    first.remove()
    assert spec.exists()
    second.remove()
    second.remove()
    assert not spec.exists()
    DiscoveryFile(plugin, tmp_path / "one.sock").write()
    assert json.loads(plugin.read_text()) == {"Name": "moorage", "Addr": f"unix://{tmp_path}/one.sock"}
    with pytest.raises(Invalid, match="spec"):
        DiscoveryFile(tmp_path / "moorage.txt", tmp_path / "one.sock")


def test_agents_are_kept_apart() -> None:
    assert of_agent(Path("/v"), {}) == Path("/v")
    assert of_agent(Path("/v"), {"LIBPROCESS_IP": "10.0.0.1"}) == Path("/v/@10.0.0.1")
    assert of_agent(Path("/v"), {"LIBPROCESS_IP": "../x"}).parent == Path("/v")


def test_the_mount_table_tells_what_is_shared() -> None:
    private, shared = mount_table(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "52 27 254:0 /v /v rw,relatime shared:3 master:1 - ext4 /dev/vda rw"
    )
    assert not private.shared and shared.shared
