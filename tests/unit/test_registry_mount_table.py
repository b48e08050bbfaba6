"""The versions of the mount table, command by command."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.registry import mount_table
from moorage.registry.state import RegistryMachine
from moorage.service.kv import KV
from moorage.wire.errors import Invalid, LimitExceeded, MoorageError, NotFound, Stale


class Registry:
    def __init__(self) -> None:
        self.kv = KV()
        self._machine = RegistryMachine()

    def set(self, version: Any, text: Any = "x", request: Any = "", **fields: Any) -> int:
        command = {"version": version, "text": text, "by": "test", "at_ms": 5, "request": request, **fields}
        try:
            answer = self._machine.apply(self.kv, {"op": "set_mount_table", **command}, 1)
        except MoorageError:
            self.kv.rollback()
            raise
        self.kv.commit()
        return int(answer["version"])


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_there_is_none_at_first(registry: Registry) -> None:
    assert mount_table.get(registry.kv, None) == {**mount_table.NO_TABLE, "history": []}
    assert mount_table.newest_version(registry.kv) == 0


def test_each_change_is_a_version(registry: Registry) -> None:
    assert [registry.set(0, "a"), registry.set(1, "b")] == [1, 2]
    history = [{"version": 1, "by": "test", "at_ms": 5}, {"version": 2, "by": "test", "at_ms": 5}]
    newest = {"version": 2, "text": "b", "by": "test", "at_ms": 5, "history": history}
    assert mount_table.get(registry.kv, None) == newest
    assert mount_table.get(registry.kv, 1)["text"] == "a"


def test_who_changes_an_older_one_is_told(registry: Registry) -> None:
    registry.set(0, "a")
    for version in (0, 2):
        with pytest.raises(Stale, match=rf"at version 1, not {version}: get it"):
            registry.set(version, "b")
    assert mount_table.get(registry.kv, None)["text"] == "a"


def test_a_repetition_gets_the_same_answer(registry: Registry) -> None:
    assert registry.set(0, "a", request="r1") == 1
    assert registry.set(0, "a", request="r1") == 1
    with pytest.raises(Stale):
        registry.set(0, "a", request="r2")
    assert mount_table.newest_version(registry.kv) == 1


def test_the_last_versions_are_kept(registry: Registry) -> None:
    last = mount_table.VERSIONS_KEPT + 3
    for version in range(last):
        registry.set(version, f"text {version}")
    assert len(mount_table.get(registry.kv, None)["history"]) == mount_table.VERSIONS_KEPT
    assert mount_table.get(registry.kv, 4)["text"] == "text 3"
    with pytest.raises(NotFound, match="version 3 of the mount table is not kept: known are 4 to 19"):
        mount_table.get(registry.kv, 3)


@pytest.mark.parametrize("version", [-1, None, "1", True, 1.0])
def test_a_version_is_a_number(registry: Registry, version: Any) -> None:
    with pytest.raises(Invalid, match="bad version"):
        registry.set(version)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"text": None}, Invalid),
        ({"text": "a\0b"}, Invalid),
        ({"text": "x" * mount_table.SIZE_MAX}, None),
        ({"text": "ü" * (mount_table.SIZE_MAX // 2 + 1)}, LimitExceeded),
        ({"by": None}, Invalid),
        ({"request": "x" * 257}, Invalid),
    ],
)
def test_what_is_kept_is_bounded(registry: Registry, fields: dict[str, Any], error: Any) -> None:
    if error is None:
        assert registry.set(0, **fields) == 1
        return
    with pytest.raises(error):
        registry.set(0, **fields)
    assert mount_table.newest_version(registry.kv) == 0
